// gradcheck: backward against finite differences, entry by entry of the full Jacobian.
//
//   Tensor x = randn({2, 3}, {DType::float64}).requires_grad_();
//   const GradcheckResult result =
//       gradcheck([](const auto& in) { return std::vector{softmax(in[0], -1)}; }, {x});
//   if (!result) std::puts(result.report.c_str());
//
// Each element of each input is moved by ±h and ±2h, and the 4-point central stencil
// (f(x-2h) - 8f(x-h) + 8f(x+h) - f(x+2h))/(12h), of error O(h⁴), gives a column of the Jacobian;
// backward from each element of each output gives a row.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "tensor/tensor.h"

namespace tenon {

/// Several tensors from several tensors. It must give the same values each time it is called, and
/// be smooth within 2h of the inputs.
using TensorFunction = std::function<std::vector<Tensor>(const std::vector<Tensor>& inputs)>;

struct GradcheckOptions {
  /// An entry passes when |backward - stencil| <= atol + rtol·|stencil|.
  double rtol = 1e-6;
  double atol = 1e-8;
  double step = 1e-3;  // h
};

struct GradcheckResult {
  /// Empty when all entries agree; else how many differ, and for the first few of them which input,
  /// output and element it is, and both numbers.
  std::string report;
  explicit operator bool() const { return report.empty(); }
};

/// Checks the gradients of all floating outputs by the inputs that require one, which must be
/// float64 on the CPU (ValueError) and may have any strides; the other inputs are constants. An
/// undefined gradient counts as zeros, but a gradient must have the input's dtype and shape. Finally
/// one backward from all outputs together must give the sum of what they give alone.
GradcheckResult gradcheck(const TensorFunction& f, const std::vector<Tensor>& inputs,
                          const GradcheckOptions& options = {});

}  // namespace tenon
