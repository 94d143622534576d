// Comparing tensors in tests.
#pragma once

#include <cmath>

#include "tensor/tensor.h"

namespace tenon::test {

/// Largest |a - b|; infinite where one is NaN or shapes differ.
inline double max_difference(const Tensor& a, const Tensor& b) {
  const auto x = a.to_doubles();
  const auto y = b.to_doubles();
  if (x.size() != y.size()) return HUGE_VAL;
  double largest = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    if (x[i] == y[i] || (std::isnan(x[i]) && std::isnan(y[i]))) continue;
    const double apart = std::abs(x[i] - y[i]);
    largest = std::max(largest, std::isnan(apart) ? HUGE_VAL : apart);
  }
  return largest;
}

}  // namespace tenon::test
