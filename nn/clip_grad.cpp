#include "nn/clip_grad.h"

#include <cmath>

#include "nn/detail/text.h"
#include "tensor/detail/check.h"
#include "tensor/interpreter.h"

namespace tenon::nn {

namespace detail {

void require_gradients(const Module::NamedTensors& parameters, std::span<const Tensor> gradients) {
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    const auto& [name, parameter] = parameters[i];
    TENON_CHECK(
        gradients[i].defined() || !parameter.requires_grad(), ValueError,
        "[clip_grad_norm] parameter {} has no gradient: the loss does not use it. Freeze it "
        "with requires_grad_(false), or leave it out",
        quote(name));
  }
}

}  // namespace detail

Tensor global_norm(std::span<const Tensor> gradients) {
  DType dtype = DType::float32;
  for (const Tensor& gradient : gradients) {
    if (gradient && gradient.dtype() == DType::float64) dtype = DType::float64;
  }
  std::vector<Tensor> sums;
  for (const Tensor& gradient : gradients) {
    if (gradient) sums.push_back(sum(square(gradient.to(dtype))).view({1}));
  }
  TENON_CHECK(!sums.empty(), ValueError, "[global_norm] no gradient is defined");
  return sqrt(sum(cat(sums)));
}

Tensor clip_coefficient(const Tensor& norm, double max_norm) {
  TENON_CHECK(max_norm > 0 && std::isfinite(max_norm), ValueError,
              "[clip_grad_norm] the largest norm is {}; needed a positive number", max_norm);
  const Tensor ratio = mul(reciprocal(add(norm, 1e-6)), max_norm);
  return minimum(ratio, ones({}, {norm.dtype(), norm.device()}));
}

Tensor clip_grad_norm_(const Module::NamedTensors& parameters, double max_norm) {
  const NoGradGuard no_grad;
  std::vector<Tensor> gradients;
  for (const auto& [name, parameter] : parameters) gradients.push_back(parameter.grad());
  detail::require_gradients(parameters, gradients);
  const Tensor norm = global_norm(gradients);
  const Tensor coefficient = clip_coefficient(norm, max_norm);
  for (std::size_t i = 0; i < gradients.size(); ++i) {
    if (!gradients[i]) continue;
    Tensor parameter = parameters[i].second;
    parameter.set_grad(mul(gradients[i], coefficient.to(gradients[i].dtype())));
  }
  return norm;
}

}  // namespace tenon::nn
