// Gradients that backward finds, against central differences in float64: for the tests of single ops.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <numeric>
#include <string>
#include <vector>

#include "autograd/autograd.h"
#include "tensor/functional.h"
#include "tensor/interpreter.h"
#include "tensor/tensor.h"

namespace tenon::test {

using OpCall = std::function<Tensor(const std::vector<Tensor>& inputs)>;

/// Cotangents that differ from element to element.
inline std::vector<double> cotangent_values(std::size_t count) {
  std::vector<double> values(count);
  for (std::size_t i = 0; i < count; ++i) values[i] = std::cos(1.0 + 0.7 * static_cast<double>(i));
  return values;
}

/// Each element's derivative by a five-point stencil, against grad() of every input.
inline void expect_gradients(const OpCall& call, std::vector<Tensor> inputs,
                             const std::string& what) {
  for (Tensor& input : inputs) input = input.clone().requires_grad_();
  const Tensor outputs[] = {call(inputs)};
  const std::vector<double> weights =
      cotangent_values(static_cast<std::size_t>(outputs[0].layout().numel()));
  const Tensor cotangents[] = {tensor(weights, outputs[0].shape(), {DType::float64})};
  const std::vector<Tensor> gradients = grad(outputs, inputs, cotangents);
  const NoGradGuard no_grad;
  for (std::size_t k = 0; k < inputs.size(); ++k) {
    std::vector<double> values = inputs[k].to_doubles();
    const std::vector<double> found = gradients[k].to_doubles();
    ASSERT_EQ(gradients[k].shape().hints(), inputs[k].shape().hints()) << what;
    for (std::size_t i = 0; i < values.size(); ++i) {
      const auto loss_at = [&](double shift) {
        std::vector<double> moved = values;
        moved[i] += shift;
        std::vector<Tensor> arguments = inputs;
        arguments[k] = tensor(moved, inputs[k].shape(), {DType::float64});
        const std::vector<double> output = call(arguments).to_doubles();
        return std::inner_product(output.begin(), output.end(), weights.begin(), 0.0);
      };
      constexpr double kStep = 1e-3;
      const double slope =
          (8 * (loss_at(kStep) - loss_at(-kStep)) - (loss_at(2 * kStep) - loss_at(-2 * kStep))) /
          (12 * kStep);
      ASSERT_NEAR(found[i], slope, 1e-7 * (1 + std::fabs(slope)))
          << what << ": operand " << k << ", element " << i;
    }
  }
}

}  // namespace tenon::test
