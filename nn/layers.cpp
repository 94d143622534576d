// Construction, initial values and printed text of the layers.
#include "nn/layers.h"

#include <cmath>

#include "nn/detail/text.h"
#include "tensor/detail/check.h"

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
  return fmt::format("p={}, inplace=False", detail::python_float(p));
}

namespace {

Shape norm_shape(const std::vector<std::int64_t>& sizes) {
  TENON_CHECK(!sizes.empty(), ValueError,
              "[LayerNorm] normalized_shape is empty; needed one size or more");
  Shape shape;
  for (std::int64_t size : sizes) shape.push_back(checked_size("LayerNorm", "a size", size));
  return shape;
}

}  // namespace

LayerNorm::LayerNorm(std::vector<std::int64_t> shape, double epsilon, bool elementwise_affine,
                     bool with_bias, TensorOptions options)
    : normalized_shape(std::move(shape)),
      eps(epsilon),
      weight(elementwise_affine
                 ? register_parameter("weight", ones(norm_shape(normalized_shape), options))
                 : Tensor()),
      bias(elementwise_affine && with_bias
               ? register_parameter("bias", zeros(norm_shape(normalized_shape), options))
               : Tensor()) {
  norm_shape(normalized_shape);
  TENON_CHECK(eps >= 0, ValueError, "[LayerNorm] eps is {}; needed at least 0", eps);
}

LayerNorm::LayerNorm(std::int64_t size, double epsilon, bool elementwise_affine, bool with_bias,
                     TensorOptions options)
    : LayerNorm(std::vector<std::int64_t>{size}, epsilon, elementwise_affine, with_bias, options) {}

std::string LayerNorm::extra_repr() const {
  const char* comma = normalized_shape.size() == 1 ? "," : "";
  return fmt::format("({}{}), eps={}, elementwise_affine={}", detail::join(normalized_shape), comma,
                     detail::python_float(eps), python_bool(weight.defined()));
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
