// Linear, Dropout, Embedding, Identity, normalization, convolution and pooling: PyTorch's arguments,
// names, initial values and printed text. Weights are drawn from the given generator or the default one.
#pragma once

#include <cstdint>
#include <optional>
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

/// Divides the last axes, whose sizes are `normalized_shape`, by their root mean square.
class RMSNorm : public Module {
 public:
  /// Weight ones, of normalized_shape; none without `elementwise_affine`. eps defaults to the machine
  /// epsilon of the input's dtype.
  explicit RMSNorm(std::vector<std::int64_t> normalized_shape, std::optional<double> eps = {},
                   bool elementwise_affine = true, TensorOptions options = {});
  explicit RMSNorm(std::int64_t normalized_size, std::optional<double> eps = {},
                   bool elementwise_affine = true, TensorOptions options = {});

  Tensor forward(const Tensor& input) const {
    return rms_norm(input, normalized_shape, weight, eps);
  }
  std::string extra_repr() const override;
  bool is_leaf() const override { return true; }

  const std::vector<std::int64_t> normalized_shape;
  const std::optional<double> eps;
  const Tensor weight;
};

/// Normalizes each channel of (N, C, H, W): in training by the batch's statistics, which move the
/// running ones, in evaluation by those.
class BatchNorm2d : public Module {
 public:
  /// Weight ones and bias zeros, running mean zeros and variance ones, each (num_features). Without
  /// `track_running_stats` the batch's statistics serve evaluation too.
  explicit BatchNorm2d(std::int64_t num_features, double eps = 1e-5, double momentum = 0.1,
                       bool affine = true, bool track_running_stats = true,
                       TensorOptions options = {});

  Tensor forward(const Tensor& input) const {
    return batch_norm(input, running_mean, running_var, weight, bias, DropoutMode::follow, momentum,
                      eps);
  }
  std::string extra_repr() const override;
  bool is_leaf() const override { return true; }

  const std::int64_t num_features;
  const double eps;
  const double momentum;
  const Tensor weight;
  const Tensor bias;
  const Tensor running_mean;
  const Tensor running_var;
  /// Kept for PyTorch's checkpoints; it does not count, as the momentum is fixed.
  const Tensor num_batches_tracked;
};

/// Cross-correlation of (N, in_channels, H, W).
class Conv2d : public Module {
 public:
  /// Weight (out, in/groups, KH, KW) and bias (out) uniform in ±1/√(in/groups·KH·KW). ValueError
  /// unless the sizes are positive and the groups divide both channel counts.
  Conv2d(std::int64_t in_channels, std::int64_t out_channels, Size2 kernel_size,
         Size2 stride = {1, 1}, Size2 padding = {0, 0}, Size2 dilation = {1, 1},
         std::int64_t groups = 1, bool bias = true, TensorOptions options = {},
         Generator* generator = nullptr);
  Conv2d(std::int64_t in_channels, std::int64_t out_channels, std::int64_t kernel_size,
         std::int64_t stride = 1, std::int64_t padding = 0, std::int64_t dilation = 1,
         std::int64_t groups = 1, bool bias = true, TensorOptions options = {},
         Generator* generator = nullptr);

  Tensor forward(const Tensor& input) const {
    return conv2d(input, weight, bias, stride, padding, dilation, groups);
  }
  std::string extra_repr() const override;
  bool is_leaf() const override { return true; }

  const std::int64_t in_channels;
  const std::int64_t out_channels;
  const Size2 kernel_size;
  const Size2 stride;
  const Size2 padding;
  const Size2 dilation;
  const std::int64_t groups;
  const Tensor weight;
  const Tensor bias;
};

/// The largest value of each window of (N, C, H, W).
class MaxPool2d : public Module {
 public:
  /// The stride defaults to the window.
  explicit MaxPool2d(Size2 kernel_size, std::optional<Size2> stride = {}, Size2 padding = {0, 0});
  explicit MaxPool2d(std::int64_t kernel_size, std::optional<std::int64_t> stride = {},
                     std::int64_t padding = 0);
  Tensor forward(const Tensor& input) const {
    return max_pool2d(input, kernel_size, stride, padding);
  }
  std::string extra_repr() const override;
  bool is_leaf() const override { return true; }

  const Size2 kernel_size;
  const Size2 stride;
  const Size2 padding;
};

/// The mean of each window of (N, C, H, W), padding counted as zeros.
class AvgPool2d : public Module {
 public:
  /// The stride defaults to the window.
  explicit AvgPool2d(Size2 kernel_size, std::optional<Size2> stride = {}, Size2 padding = {0, 0});
  explicit AvgPool2d(std::int64_t kernel_size, std::optional<std::int64_t> stride = {},
                     std::int64_t padding = 0);
  Tensor forward(const Tensor& input) const {
    return avg_pool2d(input, kernel_size, stride, padding);
  }
  std::string extra_repr() const override;
  bool is_leaf() const override { return true; }

  const Size2 kernel_size;
  const Size2 stride;
  const Size2 padding;
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
