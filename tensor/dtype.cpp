#include "tensor/dtype.h"

#include <array>

#include "tensor/support/check.h"

namespace tenon {
namespace {

struct DTypeFacts {
  std::string_view name;
  std::size_t size;
  bool floating;
  DType accumulation;
  double roundoff;
};

constexpr std::array<DTypeFacts, kNumDTypes> kFacts = {{
    {"float32", 4, true, DType::float32, 0x1p-24},
    {"float64", 8, true, DType::float64, 0x1p-53},
    {"float16", 2, true, DType::float32, 0x1p-11},
    {"bfloat16", 2, true, DType::float32, 0x1p-8},
    {"int64", 8, false, DType::int64, 0},
    {"int32", 4, false, DType::int64, 0},
    {"int16", 2, false, DType::int64, 0},
    {"int8", 1, false, DType::int64, 0},
    {"uint8", 1, false, DType::int64, 0},
    {"bool", 1, false, DType::int64, 0},
}};

const DTypeFacts& facts(DType dtype) { return kFacts[static_cast<std::size_t>(dtype)]; }

}  // namespace

std::size_t size_of(DType dtype) { return facts(dtype).size; }
std::string_view name(DType dtype) { return facts(dtype).name; }
bool is_floating(DType dtype) { return facts(dtype).floating; }
DType accumulation_dtype(DType dtype) { return facts(dtype).accumulation; }
double unit_roundoff(DType dtype) { return facts(dtype).roundoff; }

DType parse_dtype(std::string_view text) {
  for (int i = 0; i < kNumDTypes; ++i) {
    if (kFacts[static_cast<std::size_t>(i)].name == text) return static_cast<DType>(i);
  }
  detail::fail<DTypeError>(
      "unknown dtype '{}'; known: float32, float64, float16, bfloat16, int64, int32, int16, int8, "
      "uint8, bool",
      text.substr(0, 40));
}

void throw_unsupported_dtype(DType dtype, std::string_view allowed) {
  detail::fail<DTypeError>("dtype {} is not supported here; needed {}", name(dtype), allowed);
}

}  // namespace tenon
