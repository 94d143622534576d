// Linear, Dropout, LayerNorm, Embedding and Identity: PyTorch's arguments, names, initial values
// and printed text. Weights are drawn from the given generator or the default one.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "nn/module.h"
#include "tensor/random.h"

namespace tenon::nn {

/// x·weightᵀ + bias: (…, in_features) -> (…, out_features).
class Linear : public Module {
 public:
  /// Weight (out, in) and bias (out) uniform in ±1/√in: PyTorch's kaiming_uniform_(a=√5).
  /// ValueError for a negative size, DTypeError unless options.dtype is floating.
  Linear(std::int64_t in_features, std::int64_t out_features, bool bias = true,
         TensorOptions options = {}, Generator* generator = nullptr);
  /// Takes the tensors as they are, so that a weight can be tied: Linear(embedding->weight).
  explicit Linear(Tensor shared_weight, Tensor shared_bias = {});

  Tensor forward(const Tensor& input) const { return linear(input, weight, bias); }
  std::string extra_repr() const override;
  bool is_leaf() const override { return true; }

  const std::int64_t in_features;
  const std::int64_t out_features;
  const Tensor weight;  // (out_features, in_features)
  const Tensor bias;    // (out_features), or undefined
};

/// Functional dropout in the mode of this module.
class Dropout : public Module {
 public:
  /// ValueError unless 0 <= p <= 1.
  explicit Dropout(double p = 0.5);
  Tensor forward(const Tensor& input) const { return dropout(input, p); }
  std::string extra_repr() const override;
  bool is_leaf() const override { return true; }

  const double p;
};

/// Normalizes the last axes, whose sizes are `normalized_shape`.
class LayerNorm : public Module {
 public:
  /// Weight ones and bias zeros, each of normalized_shape; neither without `elementwise_affine`.
  explicit LayerNorm(std::vector<std::int64_t> normalized_shape, double eps = 1e-5,
                     bool elementwise_affine = true, bool bias = true, TensorOptions options = {});
  explicit LayerNorm(std::int64_t normalized_size, double eps = 1e-5,
                     bool elementwise_affine = true, bool bias = true, TensorOptions options = {});

  Tensor forward(const Tensor& input) const {
    return layer_norm(input, normalized_shape, weight, bias, eps);
  }
  std::string extra_repr() const override;
  bool is_leaf() const override { return true; }

  const std::vector<std::int64_t> normalized_shape;
  const double eps;
  const Tensor weight;
  const Tensor bias;
};

/// Rows of weight (num_embeddings, embedding_dim) by index: (…) -> (…, embedding_dim).
class Embedding : public Module {
 public:
  /// Weight standard normal. ValueError for a negative size.
  Embedding(std::int64_t num_embeddings, std::int64_t embedding_dim, TensorOptions options = {},
            Generator* generator = nullptr);
  Tensor forward(const Tensor& input) const { return embedding(input, weight); }
  std::string extra_repr() const override;
  bool is_leaf() const override { return true; }

  const std::int64_t num_embeddings;
  const std::int64_t embedding_dim;
  const Tensor weight;
};

/// Returns its input.
class Identity : public Module {
 public:
  Tensor forward(const Tensor& input) const { return input; }
  bool is_leaf() const override { return true; }
};

}  // namespace tenon::nn
