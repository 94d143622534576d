// Construction, initial values and printed text of the layers.
#include "nn/layers.h"

#include <cmath>

#include "tensor/support/check.h"
#include "tensor/support/text.h"

namespace tenon::nn {

namespace {

std::int64_t checked_size(const char* layer, const char* what, std::int64_t size) {
  TENON_CHECK(size >= 0, ValueError, "[{}] {} is {}; needed at least 0", layer, what, size);
  return size;
}

// U(-1/√fan_in, 1/√fan_in): kaiming_uniform_(a=√5) has gain √(2/(1 + 5)) and bound gain·√(3/fan_in)
// (He et al., "Delving Deep into Rectifiers", 2015).
Tensor fan_in_uniform(const Shape& shape, std::int64_t fan_in, const TensorOptions& options,
                      Generator* generator) {
  if (fan_in == 0) return zeros(shape, options);
  const double bound = 1.0 / std::sqrt(static_cast<double>(fan_in));
  return uniform(shape, -bound, bound, options, generator);
}

const char* python_bool(bool value) { return value ? "True" : "False"; }

std::int64_t size_of_matrix(const char* layer, const Tensor& weight, int axis) {
  TENON_CHECK(weight.is_eager() && weight.layout().rank() == 2, ShapeError,
              "[{}] the weight is {}; needed a matrix (out_features, in_features)", layer,
              weight.defined() ? weight.spec().to_string() : "undefined");
  return weight.layout().sizes[axis];
}

}  // namespace

Linear::Linear(std::int64_t in, std::int64_t out, bool with_bias, TensorOptions options,
               Generator* generator)
    : in_features(checked_size("Linear", "in_features", in)),
      out_features(checked_size("Linear", "out_features", out)),
      weight(register_parameter("weight", fan_in_uniform({out, in}, in, options, generator))),
      bias(with_bias ? register_parameter("bias", fan_in_uniform({out}, in, options, generator))
                     : Tensor()) {}

Linear::Linear(Tensor shared_weight, Tensor shared_bias)
    : in_features(size_of_matrix("Linear", shared_weight, 1)),
      out_features(size_of_matrix("Linear", shared_weight, 0)),
      weight(register_parameter("weight", shared_weight)),
      bias(shared_bias.defined() ? register_parameter("bias", shared_bias) : Tensor()) {
  TENON_CHECK(!bias.defined() || bias.layout().sizes == Extents{out_features}, ShapeError,
              "[Linear] the bias is {}; needed ({},) to fit the weight", bias.spec().to_string(),
              out_features);
}

std::string Linear::extra_repr() const {
  return fmt::format("in_features={}, out_features={}, bias={}", in_features, out_features,
                     python_bool(bias.defined()));
}

Dropout::Dropout(double probability) : p(probability) {
  TENON_CHECK(p >= 0 && p <= 1, ValueError, "[Dropout] p is {}; needed 0 <= p <= 1", p);
}

std::string Dropout::extra_repr() const {
  return fmt::format("p={}, inplace=False", text::python_float(p));
}

namespace {

Shape norm_shape(const char* layer, const std::vector<std::int64_t>& sizes) {
  TENON_CHECK(!sizes.empty(), ValueError, "[{}] normalized_shape is empty; needed one size or more",
              layer);
  Shape shape;
  for (std::int64_t size : sizes) shape.push_back(checked_size(layer, "a size", size));
  return shape;
}

std::string norm_shape_text(const std::vector<std::int64_t>& sizes) {
  return fmt::format("({}{})", text::join(sizes), sizes.size() == 1 ? "," : "");
}

}  // namespace

LayerNorm::LayerNorm(std::vector<std::int64_t> shape, double epsilon, bool elementwise_affine,
                     bool with_bias, TensorOptions options)
    : normalized_shape(std::move(shape)),
      eps(epsilon),
      weight(elementwise_affine
                 ? register_parameter("weight",
                                      ones(norm_shape("LayerNorm", normalized_shape), options))
                 : Tensor()),
      bias(elementwise_affine && with_bias
               ? register_parameter("bias",
                                    zeros(norm_shape("LayerNorm", normalized_shape), options))
               : Tensor()) {
  norm_shape("LayerNorm", normalized_shape);
  TENON_CHECK(eps >= 0, ValueError, "[LayerNorm] eps is {}; needed at least 0", eps);
}

LayerNorm::LayerNorm(std::int64_t size, double epsilon, bool elementwise_affine, bool with_bias,
                     TensorOptions options)
    : LayerNorm(std::vector<std::int64_t>{size}, epsilon, elementwise_affine, with_bias, options) {}

std::string LayerNorm::extra_repr() const {
  return fmt::format("{}, eps={}, elementwise_affine={}", norm_shape_text(normalized_shape),
                     text::python_float(eps), python_bool(weight.defined()));
}

RMSNorm::RMSNorm(std::vector<std::int64_t> shape, std::optional<double> epsilon,
                 bool elementwise_affine, TensorOptions options)
    : normalized_shape(std::move(shape)),
      eps(epsilon),
      weight(
          elementwise_affine
              ? register_parameter("weight", ones(norm_shape("RMSNorm", normalized_shape), options))
              : Tensor()) {
  norm_shape("RMSNorm", normalized_shape);
  TENON_CHECK(!eps || *eps >= 0, ValueError, "[RMSNorm] eps is {}; needed at least 0", *eps);
}

RMSNorm::RMSNorm(std::int64_t size, std::optional<double> epsilon, bool elementwise_affine,
                 TensorOptions options)
    : RMSNorm(std::vector<std::int64_t>{size}, epsilon, elementwise_affine, options) {}

std::string RMSNorm::extra_repr() const {
  return fmt::format("{}, eps={}, elementwise_affine={}", norm_shape_text(normalized_shape),
                     eps ? text::python_float(*eps) : "None", python_bool(weight.defined()));
}

BatchNorm2d::BatchNorm2d(std::int64_t features, double epsilon, double factor, bool affine,
                         bool track_running_stats, TensorOptions options)
    : num_features(checked_size("BatchNorm2d", "num_features", features)),
      eps(epsilon),
      momentum(factor),
      weight(affine ? register_parameter("weight", ones({features}, options)) : Tensor()),
      bias(affine ? register_parameter("bias", zeros({features}, options)) : Tensor()),
      running_mean(track_running_stats ? register_buffer("running_mean", zeros({features}, options))
                                       : Tensor()),
      running_var(track_running_stats ? register_buffer("running_var", ones({features}, options))
                                      : Tensor()),
      num_batches_tracked(
          track_running_stats
              ? register_buffer("num_batches_tracked", zeros({}, {DType::int64, options.device}))
              : Tensor()) {
  TENON_CHECK(eps >= 0, ValueError, "[BatchNorm2d] eps is {}; needed at least 0", eps);
}

std::string BatchNorm2d::extra_repr() const {
  return fmt::format("{}, eps={}, momentum={}, affine={}, track_running_stats={}", num_features,
                     text::python_float(eps), text::python_float(momentum),
                     python_bool(weight.defined()), python_bool(running_mean.defined()));
}

namespace {

std::string pair_text(const Size2& size) { return fmt::format("({}, {})", size[0], size[1]); }

/// One number where both axes have it, as a PyTorch user would have given it.
std::string size_text(const Size2& size) {
  return size[0] == size[1] ? std::to_string(size[0]) : pair_text(size);
}

Size2 square_size(std::int64_t size) { return {size, size}; }

std::optional<Size2> square_size(const std::optional<std::int64_t>& size) {
  return size ? std::optional(square_size(*size)) : std::nullopt;
}

/// The weight's shape, all its numbers checked.
Shape filter_shape(std::int64_t in, std::int64_t out, const Size2& kernel, std::int64_t groups) {
  TENON_CHECK(in > 0 && out > 0 && kernel[0] > 0 && kernel[1] > 0 && groups > 0, ValueError,
              "[Conv2d] {} channels to {} by a window {} in {} groups; needed positive numbers", in,
              out, pair_text(kernel), groups);
  TENON_CHECK(in % groups == 0 && out % groups == 0, ValueError,
              "[Conv2d] {} channels to {} in {} groups; needed groups that divide both", in, out,
              groups);
  return {out, in / groups, kernel[0], kernel[1]};
}

/// The products that an output element sums over.
std::int64_t filter_depth(const Tensor& weight) {
  const Extents& sizes = weight.layout().sizes;
  return sizes[1] * sizes[2] * sizes[3];
}

Tensor new_filters(const Shape& shape, const TensorOptions& options, Generator* generator) {
  return fan_in_uniform(shape, (shape[1] * shape[2] * shape[3]).value(), options, generator);
}

}  // namespace

Conv2d::Conv2d(std::int64_t in, std::int64_t out, Size2 kernel, Size2 steps, Size2 border,
               Size2 spacing, std::int64_t group_count, bool with_bias, TensorOptions options,
               Generator* generator)
    : in_channels(in),
      out_channels(out),
      kernel_size(kernel),
      stride(steps),
      padding(border),
      dilation(spacing),
      groups(group_count),
      weight(register_parameter(
          "weight", new_filters(filter_shape(in, out, kernel, group_count), options, generator))),
      bias(with_bias ? register_parameter(
                           "bias", fan_in_uniform({out}, filter_depth(weight), options, generator))
                     : Tensor()) {}

Conv2d::Conv2d(std::int64_t in, std::int64_t out, std::int64_t kernel, std::int64_t steps,
               std::int64_t border, std::int64_t spacing, std::int64_t group_count, bool with_bias,
               TensorOptions options, Generator* generator)
    : Conv2d(in, out, square_size(kernel), square_size(steps), square_size(border),
             square_size(spacing), group_count, with_bias, options, generator) {}

std::string Conv2d::extra_repr() const {
  std::string text = fmt::format("{}, {}, kernel_size={}, stride={}", in_channels, out_channels,
                                 pair_text(kernel_size), pair_text(stride));
  if (padding != Size2{0, 0}) text += ", padding=" + pair_text(padding);
  if (dilation != Size2{1, 1}) text += ", dilation=" + pair_text(dilation);
  if (groups != 1) text += fmt::format(", groups={}", groups);
  if (!bias.defined()) text += ", bias=False";
  return text;
}

MaxPool2d::MaxPool2d(Size2 kernel, std::optional<Size2> steps, Size2 border)
    : kernel_size(kernel), stride(steps.value_or(kernel)), padding(border) {}

MaxPool2d::MaxPool2d(std::int64_t kernel, std::optional<std::int64_t> steps, std::int64_t border)
    : MaxPool2d(square_size(kernel), square_size(steps), square_size(border)) {}

std::string MaxPool2d::extra_repr() const {
  return fmt::format("kernel_size={}, stride={}, padding={}, dilation=1, ceil_mode=False",
                     size_text(kernel_size), size_text(stride), size_text(padding));
}

AvgPool2d::AvgPool2d(Size2 kernel, std::optional<Size2> steps, Size2 border)
    : kernel_size(kernel), stride(steps.value_or(kernel)), padding(border) {}

AvgPool2d::AvgPool2d(std::int64_t kernel, std::optional<std::int64_t> steps, std::int64_t border)
    : AvgPool2d(square_size(kernel), square_size(steps), square_size(border)) {}

std::string AvgPool2d::extra_repr() const {
  return fmt::format("kernel_size={}, stride={}, padding={}", size_text(kernel_size),
                     size_text(stride), size_text(padding));
}

Embedding::Embedding(std::int64_t num, std::int64_t dim, TensorOptions options,
                     Generator* generator)
    : num_embeddings(checked_size("Embedding", "num_embeddings", num)),
      embedding_dim(checked_size("Embedding", "embedding_dim", dim)),
      weight(register_parameter("weight", randn({num, dim}, options, generator))) {}

std::string Embedding::extra_repr() const {
  return fmt::format("{}, {}", num_embeddings, embedding_dim);
}

}  // namespace tenon::nn
