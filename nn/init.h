// Initial values, written into existing tensors: PyTorch's names, formulas and defaults. The numbers
// come from Tenon's generator, so they are another sample of the same distribution.
//
//   nn::init::normal_(linear->weight, 0, 0.02);
//   nn::init::kaiming_uniform_(conv->weight, {.nonlinearity = nn::init::Nonlinearity::relu});
#pragma once

#include <cstdint>

#include "tensor/random.h"
#include "tensor/tensor.h"

namespace tenon::nn::init {

void constant_(Tensor tensor, double value);
inline void zeros_(Tensor tensor) { constant_(std::move(tensor), 0); }
inline void ones_(Tensor tensor) { constant_(std::move(tensor), 1); }
/// Uniform in [low, high).
void uniform_(Tensor tensor, double low = 0, double high = 1, Generator* generator = nullptr);
void normal_(Tensor tensor, double mean = 0, double std = 1, Generator* generator = nullptr);
/// Normal, cut to [low, high]: the inverse of its distribution function at uniform numbers.
/// ValueError unless low < high and std > 0.
void trunc_normal_(Tensor tensor, double mean = 0, double std = 1, double low = -2, double high = 2,
                   Generator* generator = nullptr);

enum class Nonlinearity { linear, sigmoid, tanh, relu, leaky_relu, selu };
/// The recommended gain; `negative_slope` is leaky_relu's.
double calculate_gain(Nonlinearity nonlinearity, double negative_slope = 0.01);

struct Fans {
  std::int64_t in = 0;
  std::int64_t out = 0;
};
/// For a weight (out, in, kernel…). ShapeError with fewer than two axes.
Fans calculate_fans(const Tensor& weight);

/// Uniform in ±gain·√(6/(fan_in + fan_out)) (Glorot, Bengio, 2010).
void xavier_uniform_(Tensor weight, double gain = 1, Generator* generator = nullptr);
/// Normal of standard deviation gain·√(2/(fan_in + fan_out)).
void xavier_normal_(Tensor weight, double gain = 1, Generator* generator = nullptr);

enum class FanMode { fan_in, fan_out };
struct KaimingOptions {
  double negative_slope = 0;  ///< of leaky_relu
  FanMode mode = FanMode::fan_in;
  Nonlinearity nonlinearity = Nonlinearity::leaky_relu;
  Generator* generator = nullptr;
};
/// Uniform in ±gain·√(3/fan) (He et al., 2015).
void kaiming_uniform_(Tensor weight, const KaimingOptions& options = {});
/// Normal of standard deviation gain/√fan.
void kaiming_normal_(Tensor weight, const KaimingOptions& options = {});

}  // namespace tenon::nn::init
