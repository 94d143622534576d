// Kernels that only move elements are compiled by element size, with unsigned integers for values.
#pragma once

#include <bit>
#include <cstdint>
#include <limits>

#include "tensor/dtype.h"

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

/// The bits of `value` as an element of `dtype`; an integer dtype must be able to hold it.
inline std::int64_t element_bits(double value, DType dtype) {
  switch (dtype) {
    case DType::float32: return std::bit_cast<std::int32_t>(static_cast<float>(value));
    case DType::float64: return std::bit_cast<std::int64_t>(value);
    case DType::float16: return Half(static_cast<float>(value)).bits;
    case DType::bfloat16: return BFloat16(static_cast<float>(value)).bits;
    case DType::boolean: return value != 0 ? 1 : 0;
    default: return static_cast<std::int64_t>(value);
  }
}

}  // namespace tenon::cuda
