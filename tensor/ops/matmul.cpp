// matmul: matrix product with broadcast batch axes.
#include "tensor/cpu/matmul.h"

#include <algorithm>

#include "tensor/interpreter.h"
#include "tensor/ops/op_list.h"
#include "tensor/rules/gradients.h"
#include "tensor/rules/infer_rules.h"
#include "tensor/support/check.h"

namespace tenon {

Tensor matmul(const Tensor& input, const Tensor& other) {
  static const Op& op = get_op("matmul");
  if (ops::in_pattern() || !input || !other) return apply1(op, {input, other});
  TENON_CHECK(input.dim() >= 1 && other.dim() >= 1, ShapeError,
              "[matmul] {} x {}; needed operands of at least one axis", input.shape().to_string(),
              other.shape().to_string());
  // A 1-D operand is a row on the left and a column on the right; its axis is dropped again.
  const bool vector_left = input.dim() == 1;
  const bool vector_right = other.dim() == 1;
  Tensor result = apply1(
      op, {vector_left ? unsqueeze(input, 0) : input, vector_right ? unsqueeze(other, 1) : other});
  if (vector_right) result = squeeze(result, -1);
  if (vector_left) result = squeeze(result, vector_right ? -1 : -2);
  return result;
}

namespace ops {
namespace {

/// The leading axes of the result; the error shows whole shapes, not only the leading axes.
Shape broadcast_batch(const Shape& a, const Shape& b) {
  const auto batch = [](const Shape& shape) {
    return Shape(std::vector<Dim>(shape.begin(), shape.end() - 2));
  };
  try {
    return broadcast_shapes("matmul", batch(a), batch(b));
  } catch (const ShapeError&) {
    detail::fail<ShapeError>(
        "[matmul] {} x {}; leading axes must broadcast: equal, or one of them 1", a.to_string(),
        b.to_string());
  }
}

std::vector<TensorSpec> infer_matmul(const InferContext& context) {
  require_floating(context, 0);
  require_same_dtype(context);
  const Shape& a = context[0].shape;
  const Shape& b = context[1].shape;
  TENON_CHECK(a.rank() >= 2 && b.rank() >= 2, ShapeError,
              "[matmul] {} x {}; needed operands of at least two axes", a.to_string(),
              b.to_string());
  TENON_CHECK(
      unify(a[-1], b[-2]), ShapeError,
      "[matmul] {} x {}; the last axis of input ({}) must equal the second-last of other ({})",
      a.to_string(), b.to_string(), a[-1].to_string(), b[-2].to_string());
  Shape shape = broadcast_batch(a, b);
  shape.push_back(a[-2]);
  shape.push_back(b[-1]);
  return {{context[0].dtype, std::move(shape), context[0].device}};
}

double count_flops(const KernelArgs& args) {
  return 2.0 * static_cast<double>(args.outputs[0].numel()) *
         static_cast<double>(args.inputs[0].size(-1));
}

/// Whether one matrix serves the whole batch: it has no leading axes, or only axes of size 1.
bool is_shared(const Shape& shape) {
  return std::all_of(shape.begin(), shape.end() - 2, [](const Dim& d) { return d.same_as(1); });
}

std::vector<Tensor> vjp_matmul(const VjpContext& call) {
  const Tensor gradient = call.cotangent(0);  // (…, M, N)
  std::vector<Tensor> gradients(2);
  if (call.needs(0)) {
    // […, M,N] x […, K,N]^T -> […, M,K]
    const Tensor product = matmul(gradient, transpose(call.input(1), -2, -1));
    gradients[0] = sum_to(product, call.input_spec(0).shape);
  }
  if (call.needs(1)) {
    const Tensor input = call.input(0);  // (…, M, K)
    const Shape& shape = call.input_spec(1).shape;
    if (is_shared(shape) && input.dim() == gradient.dim()) {
      // The batch joins the sum over rows, one product: [B·M,K]^T x [B·M,N] -> [K,N]
      const Tensor product = matmul(transpose(as_rows(input), 0, 1), as_rows(gradient));
      gradients[1] = shape.rank() == 2 ? product : reshape(product, shape);
    } else {
      // […, M,K]^T x […, M,N] -> […, K,N]
      gradients[1] = sum_to(matmul(transpose(input, -2, -1), gradient), shape);
    }
  }
  return gradients;
}

}  // namespace

Op define_matmul() {
  return OpBuilder("matmul")
      .doc(
          "out[…, m, n] = Σ_k input[…, m, k]·other[…, k, n]: (…, M, K) x (…, K, N) -> (…, M, N). "
          "Leading axes broadcast; 16-bit floats are summed in float32 and rounded once.")
      .operand("input")
      .operand("other")
      .infer(infer_matmul)
      .flops(count_flops)
      .vjp(vjp_matmul)
      .saves_inputs({0, 1})
      .accumulates_as("matmul_add")
      .cpu({.name = "cpu.gemm", .run = cpu::matmul, .accepts = any_layout, .strided_output = true})
      .done();
}

}  // namespace ops
}  // namespace tenon
