#include "tensor/rules/norm_rules.h"

#include <numeric>

#include "tensor/functional.h"
#include "tensor/rules/infer_rules.h"
#include "tensor/support/check.h"

namespace tenon::ops {
namespace {

/// ShapeError unless the last sizes of `shape` are `normalized`.
void require_last_axes(std::string_view op, const Shape& shape, const Shape& normalized,
                       std::string_view what) {
  bool fits = normalized.rank() >= 1 && normalized.rank() <= shape.rank();
  for (int axis = 1; fits && axis <= normalized.rank(); ++axis) {
    fits = unify(shape[-axis], normalized[-axis]);
  }
  TENON_CHECK(fits, ShapeError, "[{}] input {} and {} {}; needed the sizes of the last axes", op,
              shape.to_string(), what, normalized.to_string());
}

void require_axes(const InferContext& context, int input, std::int64_t axes) {
  const Shape& shape = context[input].shape;
  TENON_CHECK(axes >= 1 && axes <= shape.rank(), ShapeError,
              "[{}] input {} over its last {} axes; needed from 1 to {}", context.op().name,
              shape.to_string(), axes, shape.rank());
}

/// A weight or bias of the sizes of operand `input`'s last axes.
void require_vector(const InferContext& context, int input, int i, std::int64_t axes) {
  const std::string& op = context.op().name;
  const std::string& name = context.op().operands[static_cast<std::size_t>(i)].name;
  const Shape& shape = context[input].shape;
  TENON_CHECK(context[i].shape.rank() == axes, ShapeError,
              "[{}] input {} and {} {}; needed the sizes of the last {} axes", op,
              shape.to_string(), name, context[i].shape.to_string(), axes);
  require_last_axes(op, shape, context[i].shape, name);
}

std::vector<std::int64_t> axes_between(std::int64_t first, std::int64_t last) {
  std::vector<std::int64_t> axes(static_cast<std::size_t>(last - first));
  std::iota(axes.begin(), axes.end(), first);
  return axes;
}

}  // namespace

void require_normalized_shape(std::string_view op, const Tensor& input,
                              const std::vector<std::int64_t>& normalized_shape) {
  if (in_pattern()) return;
  const Shape normalized(std::vector<Dim>(normalized_shape.begin(), normalized_shape.end()));
  require_last_axes(op, input.shape(), normalized, "normalized_shape");
}

std::vector<TensorSpec> infer_norm(const InferContext& context, std::int64_t axes) {
  require_floating(context, 0);
  require_same_dtype(context);
  require_axes(context, 0, axes);
  for (int i = 1; i < context.size(); ++i) {
    if (context.has(i)) require_vector(context, 0, i, axes);
  }
  return {context[0]};
}

std::vector<TensorSpec> infer_norm_backward(const InferContext& context) {
  const auto& attrs = context.attributes<NormBackwardAttrs>();
  require_floating(context, 0);
  require_same_dtype(context);
  require_same_shape(context, 0, 1);
  require_axes(context, 1, attrs.axes);
  if (context.has(2)) require_vector(context, 1, 2, attrs.axes);
  const TensorSpec& input = context[1];
  TensorSpec vector = input;
  vector.shape = Shape();
  for (std::int64_t axis = attrs.axes; axis >= 1; --axis) {
    vector.shape.push_back(input.shape[static_cast<int>(-axis)]);
  }
  std::vector<TensorSpec> outputs;
  if (attrs.input) outputs.push_back(input);
  if (attrs.weight) outputs.push_back(vector);
  if (attrs.bias) outputs.push_back(vector);
  if (context.has(3)) {
    const bool fits = !outputs.empty() && context[3].shape.rank() == outputs[0].shape.rank();
    bool equal = fits;
    for (int axis = 0; equal && axis < outputs[0].shape.rank(); ++axis) {
      equal = unify(outputs[0].shape[axis], context[3].shape[axis]);
    }
    TENON_CHECK(equal, ShapeError, "[{}] addend {}; needed the shape of the first gradient",
                context.op().name, context[3].shape.to_string());
  }
  return outputs;
}

NormGradients call_norm_backward(const Op& op, const Tensor& grad, const Tensor& input,
                                 const Tensor& weight, const NormBackwardAttrs& attrs) {
  if (!attrs.input && !attrs.weight && !attrs.bias) return {};
  const Tensor operands[] = {grad, input, weight};
  return named_gradients(apply(op, operands, attrs), attrs.input, attrs.weight, attrs.bias);
}

NormGradients named_gradients(const std::vector<Tensor>& outputs, bool input, bool weight,
                              bool bias) {
  auto next = outputs.begin();
  NormGradients gradients;
  if (input) gradients.input = *next++;
  if (weight) gradients.weight = *next++;
  if (bias) gradients.bias = *next++;
  return gradients;
}

std::vector<Tensor> decompose_norm_backward(std::span<const Tensor> inputs,
                                            const NormBackwardAttrs& attrs, bool centers) {
  const Tensor& grad = inputs[0];
  const Tensor& weight = inputs[2];
  const std::int64_t rank = inputs[1].dim();
  const auto row_axes = axes_between(0, rank - attrs.axes);
  const auto norm_axes = axes_between(rank - attrs.axes, rank);
  const auto row_mean = [&](const Tensor& x) { return mean(x, norm_axes, /*keepdim=*/true); };
  // No axes would mean all of them.
  const auto over_rows = [&](const Tensor& x) { return row_axes.empty() ? x : sum(x, row_axes); };

  const Tensor x = centers ? inputs[1] - row_mean(inputs[1]) : inputs[1];
  const Tensor factor = rsqrt(row_mean(square(x)) + attrs.eps);
  const Tensor normalized = x * factor;
  std::vector<Tensor> outputs;
  if (attrs.input) {
    const Tensor g = weight ? grad * weight : grad;
    const Tensor shifted = centers ? g - row_mean(g) : g;
    outputs.push_back((shifted - normalized * row_mean(g * normalized)) * factor);
  }
  if (attrs.weight) outputs.push_back(over_rows(grad * normalized));
  if (attrs.bias) outputs.push_back(over_rows(grad));
  if (inputs.size() > 3) outputs[0] = outputs[0] + inputs[3];
  return outputs;
}

}  // namespace tenon::ops
