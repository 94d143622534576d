#include "nn/init.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "tensor/interpreter.h"
#include "tensor/support/check.h"

namespace tenon::nn::init {
namespace {

void assign(Tensor& tensor, const Tensor& values) {
  const NoGradGuard no_grad;
  tensor.copy_(values);
}

/// The inverse of erf on (-1, 1): Winitzki's approximation (2008), then Newton's method.
double erf_inverse(double y) {
  constexpr double kA = 0.147;
  const double l = std::log((1 - y) * (1 + y));
  const double t = 2 / (std::numbers::pi * kA) + l / 2;
  double x = std::copysign(std::sqrt(std::sqrt(t * t - l / kA) - t), y);
  for (int i = 0; i < 3; ++i) {
    const double slope = 2 * std::numbers::inv_sqrtpi * std::exp(-x * x);
    if (slope > 0) x -= (std::erf(x) - y) / slope;
  }
  return x;
}

double normal_cdf(double x) { return 0.5 * std::erfc(-x / std::numbers::sqrt2); }

double kaiming_deviation(const Tensor& weight, const KaimingOptions& options) {
  const Fans fans = calculate_fans(weight);
  const std::int64_t fan = options.mode == FanMode::fan_in ? fans.in : fans.out;
  if (fan == 0) return 0;
  return calculate_gain(options.nonlinearity, options.negative_slope) /
         std::sqrt(static_cast<double>(fan));
}

double xavier_deviation(const Tensor& weight, double gain) {
  const Fans fans = calculate_fans(weight);
  const auto sum = static_cast<double>(fans.in + fans.out);
  return sum == 0 ? 0 : gain * std::sqrt(2 / sum);
}

}  // namespace

void constant_(Tensor tensor, double value) {
  assign(tensor, full(tensor.shape(), value, {tensor.dtype(), tensor.device()}));
}

void uniform_(Tensor tensor, double low, double high, Generator* generator) {
  TENON_CHECK(low <= high, ValueError, "[uniform_] from {} to {}; needed low <= high", low, high);
  assign(tensor, uniform(tensor.shape(), low, high, {tensor.dtype(), tensor.device()}, generator));
}

void normal_(Tensor tensor, double mean, double std, Generator* generator) {
  TENON_CHECK(std >= 0, ValueError, "[normal_] std is {}; needed at least 0", std);
  // Scaled in float64 and rounded once.
  const Tensor standard = randn(tensor.shape(), {DType::float64, tensor.device()}, generator);
  assign(tensor, add(mul(standard, std), mean));
}

void trunc_normal_(Tensor tensor, double mean, double std, double low, double high,
                   Generator* generator) {
  TENON_CHECK(low < high && std > 0, ValueError,
              "[trunc_normal_] std {} from {} to {}; needed std > 0 and low < high", std, low,
              high);
  TENON_CHECK(!current_interpreter().is_recording(), TraceError,
              "[trunc_normal_] called inside a trace, where no numbers are known yet; initialize "
              "before");
  const Tensor values = uniform(tensor.shape(), normal_cdf((low - mean) / std),
                                normal_cdf((high - mean) / std), {DType::float64}, generator);
  auto* data = values.data<double>();
  std::for_each(data, data + values.layout().numel(), [&](double& u) {
    u = std::clamp(mean + std * std::numbers::sqrt2 * erf_inverse(2 * u - 1), low, high);
  });
  assign(tensor, values);
}

double calculate_gain(Nonlinearity nonlinearity, double negative_slope) {
  switch (nonlinearity) {
    case Nonlinearity::tanh: return 5.0 / 3;
    case Nonlinearity::relu: return std::numbers::sqrt2;
    case Nonlinearity::leaky_relu: return std::sqrt(2 / (1 + negative_slope * negative_slope));
    case Nonlinearity::selu: return 0.75;
    default: return 1;
  }
}

Fans calculate_fans(const Tensor& weight) {
  const Extents& sizes = weight.layout().sizes;
  TENON_CHECK(sizes.size() >= 2, ShapeError,
              "[calculate_fans] a weight {}; needed two axes or more, (out, in, kernel…)",
              weight.shape().to_string());
  std::int64_t field = 1;
  for (int axis = 2; axis < sizes.size(); ++axis) field *= sizes[axis];
  return {sizes[1] * field, sizes[0] * field};
}

void xavier_uniform_(Tensor weight, double gain, Generator* generator) {
  const double bound = std::sqrt(3.0) * xavier_deviation(weight, gain);
  uniform_(std::move(weight), -bound, bound, generator);
}

void xavier_normal_(Tensor weight, double gain, Generator* generator) {
  const double deviation = xavier_deviation(weight, gain);
  normal_(std::move(weight), 0, deviation, generator);
}

void kaiming_uniform_(Tensor weight, const KaimingOptions& options) {
  const double bound = std::sqrt(3.0) * kaiming_deviation(weight, options);
  uniform_(std::move(weight), -bound, bound, options.generator);
}

void kaiming_normal_(Tensor weight, const KaimingOptions& options) {
  const double deviation = kaiming_deviation(weight, options);
  normal_(std::move(weight), 0, deviation, options.generator);
}

}  // namespace tenon::nn::init
