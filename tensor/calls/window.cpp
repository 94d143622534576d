#include "tensor/calls/window.h"

#include <algorithm>

#include "tensor/support/check.h"

namespace tenon::ops {

Dim window_positions(std::string_view op, const Dim& input, const Dim& kernel, std::int64_t stride,
                     std::int64_t padding, std::int64_t dilation) {
  const Dim covered = Dim(dilation) * (kernel - 1) + 1;
  const Dim padded = input + Dim(2) * padding;
  TENON_CHECK(covered <= padded, ShapeError,
              "[{}] a window that covers {} does not fit an axis of {} with padding {}", op,
              covered.to_string(), input.to_string(), padding);
  return (padded - covered) / stride + 1;
}

void require_at_least(std::string_view op, std::string_view what,
                      const std::vector<std::int64_t>& values, std::int64_t least) {
  TENON_CHECK(std::ranges::all_of(values, [&](std::int64_t value) { return value >= least; }),
              ValueError, "[{}] {} is ({}, {}); needed at least {}", op, what, values.at(0),
              values.at(1), least);
}

}  // namespace tenon::ops
