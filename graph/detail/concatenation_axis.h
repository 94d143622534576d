// The axis that a call of Trait::concatenation joins along.
#pragma once

#include <cstdint>
#include <variant>

#include "tensor/attrs.h"

namespace tenon::detail {

/// Of results of `rank` axes; the attribute may count from the end.
inline int concatenation_axis(const Attrs& attrs, int rank) {
  const auto axis = static_cast<int>(std::get<std::int64_t>(attrs.value(attrs.find("dim"))));
  return axis < 0 ? axis + rank : axis;
}

}  // namespace tenon::detail
