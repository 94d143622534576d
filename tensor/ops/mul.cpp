// mul: product of two tensors, or of a tensor and a number, elementwise.
#include "tensor/cpu/elementwise.h"
#include "tensor/rules/gradients.h"
#include "tensor/rules/pointwise.h"

namespace tenon {

Tensor mul(const Tensor& input, const Tensor& other) {
  static const Op& op = get_op("mul");
  return apply1(op, {input, other}, BinaryAttrs{});
}

Tensor mul(const Tensor& input, const Scalar& other) {
  static const Op& op = get_op("mul");
  return apply1(op, {input, Tensor()}, BinaryAttrs{other});
}

namespace ops {
namespace {

std::vector<Tensor> vjp_mul(const VjpContext& call) {
  const Tensor grad = call.cotangent(0);
  if (!call.has(1)) return {mul(grad, call.attributes<BinaryAttrs>().other)};
  std::vector<Tensor> gradients(2);
  for (int i : {0, 1}) {
    if (!call.needs(i)) continue;
    gradients[static_cast<std::size_t>(i)] =
        sum_to(mul(grad, call.input(1 - i)), call.input_spec(i).shape);
  }
  return gradients;
}

}  // namespace

Op define_mul() {
  return binary_op("mul", "input · other, broadcast; for bool the logical and.", infer_binary,
                   cpu::binary_kernel<cpu::AllDTypes>(
                       "cpu.mul", [](auto x, auto y) { return cpu::wrap_mul(x, y); }))
      .trait(Trait::commutative)
      .saves_inputs({0, 1})
      .vjp(vjp_mul)
      .range(ranges::product)
      .done();
}

}  // namespace ops
}  // namespace tenon
