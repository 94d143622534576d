// Kernels that only move elements are compiled by element size, with unsigned integers for values.
#pragma once

#include <cstdint>
#include <cstring>

#include "tensor/dtype.h"
#include "tensor/number.h"

namespace tenon::cuda {

/// Calls `f.template operator()<T>()` with the unsigned integer of `bytes` = 1, 2, 4 or 8 bytes.
template <class F>
void dispatch_size(std::size_t bytes, F&& f) {
  switch (bytes) {
    case 1: return f.template operator()<std::uint8_t>();
    case 2: return f.template operator()<std::uint16_t>();
    case 4: return f.template operator()<std::uint32_t>();
    default: return f.template operator()<std::uint64_t>();
  }
}

/// The bits of `value` as an element of `dtype`, rounded once.
inline std::int64_t element_bits(const Number& value, DType dtype) {
  std::int64_t bits = 0;
  dispatch_all(dtype, [&]<class T>() {
    const T element = value.to<T>();
    std::memcpy(&bits, &element, sizeof(element));
  });
  return bits;
}

}  // namespace tenon::cuda
