#include "nn/clip_grad.h"

#include <cmath>

#include "tensor/interpreter.h"
#include "tensor/support/check.h"
#include "tensor/support/text.h"

namespace tenon::nn {

namespace detail {

void require_gradients(const Module::NamedTensors& parameters, std::span<const Tensor> gradients) {
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    const auto& [name, parameter] = parameters[i];
    TENON_CHECK(
        gradients[i].defined() || !parameter.requires_grad(), ValueError,
        "[clip_grad_norm] parameter {} has no gradient: the loss does not use it. Freeze it "
        "with requires_grad_(false), or leave it out",
        text::quote(name));
  }
}

}  // namespace detail

namespace {

std::vector<Tensor> defined(std::span<const Tensor> gradients) {
  std::vector<Tensor> result;
  for (const Tensor& gradient : gradients) {
    if (gradient) result.push_back(gradient);
  }
  TENON_CHECK(!result.empty(), ValueError, "[global_norm] no gradient is defined");
  return result;
}

/// gradient·coefficient, rounded once: a 16-bit float has few digits for a factor, or none.
Tensor scaled(const Tensor& gradient, const Tensor& coefficient) {
  const DType dtype = accumulation_dtype(gradient.dtype());
  return mul(gradient.to(dtype), coefficient.to(dtype)).to(gradient.dtype());
}

}  // namespace

Tensor global_norm(std::span<const Tensor> gradients) {
  return ops::global_norm(defined(gradients)).norm;
}

GlobalNorm global_norm(std::span<const Tensor> gradients, double max_norm) {
  TENON_CHECK(max_norm > 0 && std::isfinite(max_norm), ValueError,
              "[clip_grad_norm] the largest norm is {}; needed a positive number", max_norm);
  return ops::global_norm(defined(gradients), {max_norm});
}

Tensor clip_grad_norm_(const Module::NamedTensors& parameters, double max_norm) {
  const NoGradGuard no_grad;
  std::vector<Tensor> gradients;
  for (const auto& [name, parameter] : parameters) gradients.push_back(parameter.grad());
  detail::require_gradients(parameters, gradients);
  const auto [norm, coefficient] = global_norm(gradients, max_norm);
  for (std::size_t i = 0; i < gradients.size(); ++i) {
    if (!gradients[i]) continue;
    const auto& [name, parameter] = parameters[i];
    TENON_CHECK(
        gradients[i].spec() == parameter.spec(), ValueError,
        "[clip_grad_norm] parameter {} is {} and its gradient {}; needed a gradient like it",
        text::quote(name), parameter.spec().to_string(), gradients[i].spec().to_string());
    gradients[i] = scaled(gradients[i], coefficient);
  }
  for (std::size_t i = 0; i < gradients.size(); ++i) {
    if (gradients[i]) Tensor(parameters[i].second).set_grad(gradients[i]);
  }
  return norm;
}

}  // namespace tenon::nn
