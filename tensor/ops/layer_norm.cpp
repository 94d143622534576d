// layer_norm over the last axes.
#include "tensor/cpu/layer_norm.h"

#include "tensor/detail/check.h"
#include "tensor/interpreter.h"
#include "tensor/ops/attributes.h"
#include "tensor/ops/infer_rules.h"
#include "tensor/ops/op_list.h"

namespace tenon {
namespace {

/// ShapeError unless the last sizes of `shape` are `normalized`.
void require_last_axes(const Shape& shape, const Shape& normalized, const char* what) {
  bool fits = normalized.rank() >= 1 && normalized.rank() <= shape.rank();
  for (int axis = 1; fits && axis <= normalized.rank(); ++axis) {
    fits = unify(shape[-axis], normalized[-axis]);
  }
  TENON_CHECK(fits, ShapeError,
              "[layer_norm] input {} and {} {}; needed the sizes of the last axes",
              shape.to_string(), what, normalized.to_string());
}

}  // namespace

Tensor layer_norm(const Tensor& input, const std::vector<std::int64_t>& normalized_shape,
                  const Tensor& weight, const Tensor& bias, double eps) {
  static const Op& op = get_op("layer_norm");
  if (!ops::in_pattern()) {
    require_last_axes(input.shape(),
                      Shape(std::vector<Dim>(normalized_shape.begin(), normalized_shape.end())),
                      "normalized_shape");
  }
  return apply1(op, {input, weight, bias},
                LayerNormAttrs{static_cast<std::int64_t>(normalized_shape.size()), eps});
}

Tensor layer_norm(const Tensor& input, const Tensor& weight, const Tensor& bias, double eps) {
  static const Op& op = get_op("layer_norm");
  return apply1(op, {input, weight, bias}, LayerNormAttrs{1, eps});
}

namespace ops {
namespace {

std::vector<TensorSpec> infer_layer_norm(const InferContext& context) {
  require_floating(context, 0);
  require_same_dtype(context);
  const std::int64_t axes = context.attributes<LayerNormAttrs>().axes;
  const Shape& input = context[0].shape;
  TENON_CHECK(axes >= 1 && axes <= input.rank(), ShapeError,
              "[layer_norm] input {} over its last {} axes; needed from 1 to {}", input.to_string(),
              axes, input.rank());
  for (int i = 1; i <= 2; ++i) {
    if (!context.has(i)) continue;
    TENON_CHECK(context[i].shape.rank() == axes, ShapeError,
                "[layer_norm] input {} and {} {}; needed the sizes of the last {} axes",
                input.to_string(), i == 1 ? "weight" : "bias", context[i].shape.to_string(), axes);
    require_last_axes(input, context[i].shape, i == 1 ? "weight" : "bias");
  }
  return {context[0]};
}

/// The kernel walks the input by its strides; weight and bias are small, so they are packed.
bool accepts(int operand, const TensorView& view) { return operand == 0 || view.is_contiguous(); }

}  // namespace

Op define_layer_norm() {
  return OpBuilder("layer_norm")
      .doc(
          "(x - mean)/√(var + eps)·weight + bias over the last `axes` axes; population variance, "
          "statistics in float32 (float64 for float64). Ba, Kiros, Hinton, 2016.")
      .operand("input")
      .optional("weight")
      .optional("bias")
      .infer(infer_layer_norm)
      .cpu({.name = "cpu.layer_norm",
            .run = cpu::layer_norm,
            .accepts = accepts,
            .strided_output = true})
      .done();
}

}  // namespace ops
}  // namespace tenon
