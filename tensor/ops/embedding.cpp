// embedding: rows of a table by index.
#include "tensor/cpu/embedding.h"
#include "tensor/rules/gradients.h"
#include "tensor/rules/index_rules.h"
#include "tensor/rules/infer_rules.h"
#include "tensor/rules/view_rules.h"
#include "tensor/support/check.h"

namespace tenon {

Tensor embedding(const Tensor& input, const Tensor& weight) {
  static const Op& op = get_op("embedding");
  return apply1(op, {ops::wide_index(input), weight});
}

namespace ops {
namespace {

std::vector<TensorSpec> infer_embedding(const InferContext& context) {
  const TensorSpec& input = context[0];
  const TensorSpec& weight = context[1];
  require_index(context, 0);
  require_floating(context, 1);
  TENON_CHECK(weight.shape.rank() == 2, ShapeError,
              "[embedding] operand 'weight' has shape {}; needed two axes, (V, D)",
              weight.shape.to_string());
  Shape shape = input.shape;
  shape.push_back(weight.shape[1]);
  return with_shape(weight, std::move(shape));
}

std::vector<Tensor> vjp_embedding(const VjpContext& call) {
  if (!call.needs(1)) return {{}, {}};
  const Shape& weight = call.input_spec(1).shape;
  const Dim count = call.input_spec(0).shape.numel();
  const Tensor rows = reshape(call.cotangent(0), {count, weight[1]});  // (…, D) -> (N, D)
  return {{}, index_select_backward(rows, reshape(call.input(0), {count}), 0, weight[0])};
}

bool accepts(int operand, const TensorView& view) {
  return operand == 0 ? view.is_contiguous() : last_axis_dense(operand, view);
}

}  // namespace

Op define_embedding() {
  return OpBuilder("embedding")
      .doc(
          "Row input[…] of weight (V, D) for every index; an index outside [0, V) is an error on "
          "the "
          "CPU and a row of NaN on CUDA.")
      .operand("input")
      .operand("weight")
      .selects_by({.index = 0, .table = 1})
      .infer(infer_embedding)
      .vjp(vjp_embedding)
      .saves_inputs({0})
      .cpu({"cpu.embedding", cpu::run_embedding, nullptr, accepts, false})
      .done();
}

}  // namespace ops
}  // namespace tenon
