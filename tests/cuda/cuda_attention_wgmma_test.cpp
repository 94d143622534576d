// flash_wgmma, called by its name, against flash_simt in float64: masks of keys, causality, tails of
// tiles, padded heads, permuted and grouped operands, log-sum-exp, hidden queries, and repetitions.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "tensor/ops/attributes.h"
#include "tests/cuda/cuda_support.h"

namespace tenon::test {
namespace {

constexpr const char* kOp = "scaled_dot_product_attention_lse";
constexpr const char* kName = "cuda.flash_wgmma";
constexpr double kInfinity = std::numeric_limits<double>::infinity();

enum class Mask { none, boolean, additive, hidden_batch, equally_low, tail, bool_pairs, pairs };

struct Case {
  std::int64_t batch, heads, key_heads, length, keys, head, head_v;
  DType dtype;
  Mask mask;
  bool is_causal;
};

std::string text(const Case& c) {
  return "L" + std::to_string(c.length) + " S" + std::to_string(c.keys) + " E" +
         std::to_string(c.head) + " Ev" + std::to_string(c.head_v) + " " +
         std::string(name(c.dtype)) + " mask " + std::to_string(static_cast<int>(c.mask)) +
         (c.is_causal ? " causal" : "") + " heads " + std::to_string(c.heads) + "/" +
         std::to_string(c.key_heads);
}

/// (batch, heads, rows, columns), of which (batch, rows, heads, columns) is row-major.
Tensor make_operand4(const Case& c, std::int64_t heads, std::int64_t rows, std::int64_t columns,
                     Generator* generator) {
  const Tensor values = randn({c.batch, rows, heads, columns}, {}, generator).to(c.dtype);
  return values.to(kCuda).transpose(1, 2);
}

/// (batch, key heads, group, rows, columns): keys and values repeat along the group, without a copy.
Tensor grouped(const Case& c, const Tensor& x) {
  const std::int64_t group = c.heads / c.key_heads;
  const std::int64_t heads = x.view_of_data().sizes[1];
  const Sizes sizes = {c.batch, c.key_heads, heads / c.key_heads, x.view_of_data().sizes[2],
                       x.view_of_data().sizes[3]};
  const Tensor split = x.view(to_shape(sizes));
  return split.expand(to_shape({c.batch, c.key_heads, group, sizes[3], sizes[4]}));
}

/// (batch, 1, length, keys) or (heads, length, keys), with a hidden query and aligned rows.
Tensor make_pair_mask(const Case& c) {
  const bool is_bool = c.mask == Mask::bool_pairs;
  const std::int64_t outer = is_bool ? c.batch : c.heads;
  const std::int64_t row = (c.keys + 15) / 16 * 16;
  std::vector<double> values;
  for (std::int64_t i = 0; i < outer * c.length; ++i) {
    for (std::int64_t k = 0; k < row; ++k) {
      const auto turn = (k * 7 + i * 3) % 11;
      const bool is_shown = turn < 8 && i % c.length != c.length / 2;
      values.push_back(is_bool ? (is_shown ? 1 : 0) : is_shown ? 0.25 * turn : -kInfinity);
    }
  }
  const Sizes sizes = is_bool ? Sizes{outer, 1, c.length, row} : Sizes{outer, c.length, row};
  const Tensor whole = tensor(values, to_shape(sizes), {is_bool ? DType::boolean : c.dtype, kCpu});
  return whole.to(kCuda).narrow(-1, 0, c.keys);
}

/// A mask of keys is (batch, 1, 1, keys).
Tensor make_mask(const Case& c) {
  if (c.mask == Mask::none) return {};
  if (c.mask >= Mask::bool_pairs) return make_pair_mask(c);
  std::vector<double> values;
  const bool is_bool = c.mask == Mask::boolean || c.mask == Mask::tail;
  for (std::int64_t b = 0; b < c.batch; ++b) {
    for (std::int64_t k = 0; k < c.keys; ++k) {
      const auto turn = (k * 7 + b * 3) % 10;
      double value = 0;
      switch (c.mask) {
        case Mask::none:
        case Mask::bool_pairs:
        case Mask::pairs: break;
        case Mask::boolean: value = turn < 7 ? 1 : 0; break;
        case Mask::additive: value = turn < 2 ? -kInfinity : turn < 5 ? -10000 : 0.25 * turn; break;
        case Mask::hidden_batch: value = b == 0 ? -kInfinity : 0; break;
        case Mask::equally_low: value = c.dtype == DType::float16 ? -60000 : -1e30; break;
        case Mask::tail: value = k < 1 + b * c.keys / 3 ? 1 : 0; break;
      }
      values.push_back(value);
    }
  }
  return tensor(values, {c.batch, 1, 1, c.keys}, {is_bool ? DType::boolean : c.dtype, kCpu});
}

struct Result {
  std::vector<double> output, lse;
};

Result run(const Case& c, const char* kernel, std::vector<Tensor> inputs, bool* taken = nullptr) {
  const bool is_exact = inputs[0].dtype() == DType::float64;
  Tensor output = empty({c.batch, c.length, c.heads, c.head_v}, {inputs[0].dtype(), kCuda});
  Tensor lse = empty({c.batch, c.heads, c.length},
                     {is_exact ? DType::float64 : DType::float32, kCuda});
  Tensor bits = empty({c.batch, c.heads, c.length, 0}, {DType::uint8, kCuda});
  output.copy_(full(output.shape(), Scalar(77.0), {output.dtype(), kCuda}));
  const AttentionAttrs attrs{0.0, c.is_causal,
                             Scalar(1 / std::sqrt(static_cast<double>(c.head))),
                             DropoutMode::follow, 0};
  std::vector<Tensor> outputs = {output.transpose(1, 2), lse, bits};
  if (c.heads != c.key_heads) {
    const std::int64_t group = c.heads / c.key_heads;
    for (std::size_t i = 0; i < 3; ++i) inputs[i] = grouped(c, inputs[i]);
    if (inputs[3]) inputs[3] = inputs[3].view({c.batch, 1, 1, 1, c.keys});
    outputs = {grouped(c, outputs[0]), lse.view({c.batch, c.key_heads, group, c.length}),
               bits.view({c.batch, c.key_heads, group, c.length, 0})};
  }
  const bool ran = run_kernel(kOp, kernel, inputs, outputs, Attrs(attrs));
  if (taken != nullptr) *taken = ran;
  return {output.transpose(1, 2).to_doubles(), lse.to_doubles()};
}

double largest_error(const std::vector<double>& got, const std::vector<double>& want) {
  double largest = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    if (got[i] == want[i] || (std::isnan(got[i]) && std::isnan(want[i]))) continue;
    const double error = std::abs(got[i] - want[i]);
    largest = std::isnan(error) ? kInfinity : std::max(largest, error);
  }
  return largest;
}

void check(const Case& c, int repeats = 2) {
  SCOPED_TRACE(text(c));
  Generator generator(23);
  std::vector<Tensor> inputs = {make_operand4(c, c.heads, c.length, c.head, &generator),
                                make_operand4(c, c.key_heads, c.keys, c.head, &generator),
                                make_operand4(c, c.key_heads, c.keys, c.head_v, &generator)};
  const Tensor mask = make_mask(c);
  inputs.push_back(mask ? mask.to(kCuda) : Tensor());
  std::vector<Tensor> exact;
  for (const Tensor& t : inputs) {
    exact.push_back(t && is_floating(t.dtype()) ? t.to(DType::float64) : t);
  }
  bool taken = false;
  const Result got = run(c, kName, inputs, &taken);
  if (!taken) GTEST_SKIP() << "the GPU has no wgmma";
  const Result want = run(c, "cuda.flash_simt", exact);
  const Result other = run(c, "cuda.flash_mma", inputs);
  const double u = c.dtype == DType::float16 ? 0x1p-11 : 0x1p-8;
  EXPECT_LE(largest_error(got.output, want.output),
            2 * largest_error(other.output, want.output) + 1e-3 * u);
  EXPECT_LE(largest_error(got.lse, want.lse), 2 * largest_error(other.lse, want.lse) + 1e-4);
  for (int i = 1; i < repeats; ++i) {
    const Result again = run(c, kName, inputs);
    EXPECT_EQ(largest_error(again.output, got.output), 0) << "repetition " << i;
    EXPECT_EQ(largest_error(again.lse, got.lse), 0) << "repetition " << i;
  }
}

class AttentionWgmma : public testing::Test {
 protected:
  void SetUp() override { SKIP_WITHOUT_GPU(); }
};

constexpr Mask kMasks[] = {Mask::none,        Mask::boolean, Mask::additive,   Mask::hidden_batch,
                           Mask::equally_low, Mask::tail,    Mask::bool_pairs, Mask::pairs};

TEST_F(AttentionWgmma, MasksAndLengths) {
  constexpr std::int64_t kLengths[] = {1, 63, 64, 65, 127, 128, 129, 200, 512, 1000};
  constexpr std::int64_t kHeads[] = {8, 40, 64, 72, 128};
  int turn = 0;
  for (int i = 0; i < 10; ++i) {
    for (const Mask mask : kMasks) {
      for (const bool is_causal : {false, true}) {
        const int t = turn++;
        // One key or query makes others of masks of pairs.
        const int heads = 5;
        const bool has_pairs = mask >= Mask::bool_pairs;
        const std::int64_t length = has_pairs && i == 0 ? 2 : kLengths[i];
        const std::int64_t keys = kLengths[(i + t % 3 * 3) % 10];
        check({2, 3, 3, length, has_pairs && keys == 1 ? 2 : keys, kHeads[t % heads],
               kHeads[(t % 4 == 0 ? t + 1 : t) % heads],
               t / 2 % 2 == 0 ? DType::float16 : DType::bfloat16, mask, is_causal});
        if (HasFatalFailure() || IsSkipped()) return;
      }
    }
  }
}

/// In little work, for tools/sanitize_cuda.py: rings go round, and blocks compute several items.
TEST_F(AttentionWgmma, SmallCasesOfEveryMask) {
  for (const Mask mask : kMasks) {
    check({1, 1, 1, 130, 600, 64, 40, DType::bfloat16, mask, false});
    if (mask != Mask::pairs) check({1, 1, 1, 40, 300, 72, 128, DType::float16, mask, true});
    check({150, 1, 1, 3, 9, 64, 64, DType::float16, mask, mask == Mask::tail});
    if (HasFatalFailure() || IsSkipped()) return;
  }
}

TEST_F(AttentionWgmma, ManyItemsRepeat) {
  for (const Mask mask : {Mask::none, Mask::tail, Mask::additive, Mask::bool_pairs}) {
    for (const std::int64_t head : {64, 128}) {
      for (const bool is_causal : {false, true}) {
        check({3, 16, 16, 1000, 700, head, head, DType::bfloat16, mask, is_causal}, 20);
        if (HasFatalFailure() || IsSkipped()) return;
      }
    }
  }
}

TEST_F(AttentionWgmma, GroupedHeads) {
  for (const Mask mask : {Mask::none, Mask::tail, Mask::additive}) {
    for (const std::int64_t key_heads : {1, 2}) {
      check({2, 6, key_heads, 200, 300, 64, 72, DType::float16, mask, key_heads == 1});
      if (HasFatalFailure() || IsSkipped()) return;
    }
  }
}

/// Rows of keys and values that are not finite do not matter where the mask hides whole tiles of them.
TEST_F(AttentionWgmma, HiddenKeysMayBeNaN) {
  const Case c{1, 2, 2, 200, 300, 64, 64, DType::bfloat16, Mask::tail, false};
  Generator generator(5);
  const auto operand = [&](std::int64_t rows) {
    return make_operand4(c, c.heads, rows, 64, &generator);
  };
  std::vector<Tensor> inputs = {operand(200), operand(300), operand(300)};
  std::vector<double> shown(300, 0);
  std::fill_n(shown.begin(), 100, 1);
  inputs.push_back(tensor(shown, {1, 1, 1, 300}, {DType::boolean, kCpu}).to(kCuda));
  bool taken = false;
  const Result want = run(c, kName, inputs, &taken);
  if (!taken) GTEST_SKIP() << "the GPU has no wgmma";
  for (std::size_t i = 1; i < 3; ++i) {
    const std::int64_t first = i == 1 ? 100 : 128;
    const Tensor hidden = inputs[i].narrow(2, first, 300 - first);
    inputs[i].narrow(2, first, 300 - first)
        .copy_(full(hidden.shape(), Scalar(kInfinity), {c.dtype, kCuda}));
  }
  EXPECT_EQ(largest_error(run(c, kName, inputs).output, want.output), 0);
}

}  // namespace
}  // namespace tenon::test
