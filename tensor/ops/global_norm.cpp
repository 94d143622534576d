// global_norm: the Euclidean norm of many tensors as if they were one, and what clips them by it.
#include "tensor/cpu/optimizer_steps.h"
#include "tensor/interpreter.h"
#include "tensor/ops/op_list.h"
#include "tensor/ops/optimizer_steps.h"
#include "tensor/rules/infer_rules.h"
#include "tensor/support/check.h"

namespace tenon::ops {

GlobalNorm global_norm(const std::vector<Tensor>& tensors, const GlobalNormAttrs& attrs) {
  static const Op& op = get_op("global_norm");
  TENON_CHECK(!tensors.empty(), ValueError, "[global_norm] no tensors; needed at least one");
  const std::vector<Tensor> results = apply(op, tensors, attrs);
  return {results.at(0), results.size() > 1 ? results[1] : Tensor()};
}

namespace {

std::vector<TensorSpec> infer_global_norm(const InferContext& context) {
  TensorSpec norm{DType::float32, {}, context[0].device};
  for (int i = 0; i < context.size(); ++i) {
    require_floating(context, i);
    if (context[i].dtype == DType::float64) norm.dtype = DType::float64;
  }
  const double max_norm = context.attributes<GlobalNormAttrs>().max_norm;
  TENON_CHECK(max_norm >= 0, ValueError, "[global_norm] max_norm is {}; needed at least 0",
              max_norm);
  return std::vector<TensorSpec>(max_norm > 0 ? 2 : 1, norm);
}

/// What gradients flow through.
std::vector<Tensor> decompose_global_norm(std::span<const Tensor> tensors, const Attrs& attrs) {
  DType dtype = DType::float32;
  for (const Tensor& tensor : tensors) {
    if (tensor.dtype() == DType::float64) dtype = DType::float64;
  }
  std::vector<Tensor> sums;
  for (const Tensor& tensor : tensors) sums.push_back(sum(square(tensor.to(dtype))).view({1}));
  const Tensor norm = sqrt(sum(cat(sums)));
  const double max_norm = attrs.as<GlobalNormAttrs>().max_norm;
  if (max_norm == 0) return {norm};
  const Tensor ratio = mul(reciprocal(add(norm, 1e-6)), max_norm);
  return {norm, minimum(ratio, ones({}, {dtype, norm.device()}))};
}

}  // namespace

Op define_global_norm() {
  return OpBuilder("global_norm")
      .doc(
          "√(Σ x²) over all elements of all tensors, shape (): float64 if one of them is, else "
          "float32. With max_norm > 0 also min(1, max_norm/(norm + 1e-6)), the factor that clips "
          "them to it; NaN when the norm is.")
      .variadic("tensors")
      .infer(infer_global_norm)
      .decompose(decompose_global_norm)
      .cpu({.name = "cpu.global_norm", .run = cpu::global_norm})
      .done();
}

}  // namespace tenon::ops
