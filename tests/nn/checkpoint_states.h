// What the tests of checkpoints share: a state dict of every dtype, a tied one, equality to the bit.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "nn/nn.h"

namespace tenon::test {

// Any bit patterns as a tensor.
template <class T, class Bits>
Tensor from_bits(const std::vector<Bits>& bits) {
  static_assert(sizeof(T) == sizeof(Bits));
  std::vector<T> values(bits.size());
  std::memcpy(static_cast<void*>(values.data()), bits.data(), bits.size() * sizeof(T));
  return from_vector<T>(values, {static_cast<std::int64_t>(bits.size())});
}

inline std::string bytes_of(const Tensor& tensor) {
  const Tensor dense = tensor.contiguous();
  return {static_cast<const char*>(dense.view_of_data().data),
          static_cast<std::size_t>(dense.layout().numel()) * size_of(dense.dtype())};
}

inline void expect_same(const nn::StateDict& a, const nn::StateDict& b) {
  ASSERT_EQ(a.size(), b.size());
  for (auto i = a.begin(), j = b.begin(); i != a.end(); ++i, ++j) {
    EXPECT_EQ(i->first, j->first);
    EXPECT_EQ(i->second.spec().to_string(), j->second.spec().to_string()) << i->first;
    EXPECT_EQ(bytes_of(i->second), bytes_of(j->second)) << i->first;
  }
}

inline nn::StateDict every_dtype() {
  using Limits = std::numeric_limits<std::int64_t>;
  nn::StateDict state;
  state.add("float32",
            from_bits<float, std::uint32_t>({0x00000000, 0x80000000, 0x00000001, 0x807fffff,
                                             0x00800000, 0x7f7fffff, 0x3f800000, 0x3f800001,
                                             0x3dcccccd, 0x7f800000, 0xff800000, 0x7fc00000}));
  state.add("float32 nan", from_bits<float, std::uint32_t>({0xffc00000, 0x7fc00001, 0x7f800001}));
  state.add("float64", from_bits<double, std::uint64_t>(
                           {0, 0x8000000000000000, 1, 0x000fffffffffffff, 0x7fefffffffffffff,
                            0x3fb999999999999a, 0x7ff0000000000000, 0xfff0000000000000,
                            0x7ff8000000000000, 0x4340000000000001}));
  state.add("float16", from_bits<Half, std::uint16_t>(
                           {0, 0x8000, 1, 0x83ff, 0x7bff, 0x2e66, 0x7c00, 0xfc00, 0x7e00}));
  state.add("bfloat16", from_bits<BFloat16, std::uint16_t>(
                            {0, 0x8000, 1, 0x807f, 0x7f7f, 0x3dcd, 0x7f80, 0xff80, 0x7fc0}));
  state.add("int64",
            from_vector<std::int64_t>({0, -1, Limits::min(), Limits::max(), (1LL << 53) + 1}, {5}));
  state.add("int32",
            from_vector<std::int32_t>({0, -1, std::numeric_limits<std::int32_t>::min()}, {3}));
  state.add("int16", from_vector<std::int16_t>({0, -1, -32768, 32767}, {4}));
  state.add("int8", from_vector<std::int8_t>({0, -1, -128, 127, 65}, {5}));
  state.add("uint8", from_vector<std::uint8_t>({0, 1, 255}, {3}));
  Tensor flags = zeros({2, 2}, {DType::boolean, kCpu});
  flags.data<bool>()[1] = true;
  state.add("bool", flags);
  state.add("scalar", full({}, 2.5));
  state.add("empty", zeros({0, 3}));
  state.add("\"quoted\\ ключ", ones({1, 1}));
  return state;
}

/// One tensor under two names.
struct Tied : nn::Module {
  Tied() : wte(add<nn::Embedding>("wte", 4, 2)), lm_head(add<nn::Linear>("lm_head", wte->weight)) {}
  nn::Child<nn::Embedding> wte;
  nn::Child<nn::Linear> lm_head;
};

}  // namespace tenon::test
