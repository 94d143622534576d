// add: sum of two tensors, or of a tensor and a number.
#include "tensor/cpu/elementwise.h"
#include "tensor/rules/gradients.h"
#include "tensor/rules/pointwise.h"

namespace tenon {

Tensor add(const Tensor& input, const Tensor& other) {
  static const Op& op = get_op("add");
  return apply1(op, {input, other}, BinaryAttrs{});
}

Tensor add(const Tensor& input, const Scalar& other) {
  static const Op& op = get_op("add");
  return apply1(op, {input, Tensor()}, BinaryAttrs{other});
}

namespace ops {
namespace {

std::vector<Tensor> vjp_add(const VjpContext& call) {
  const Tensor gradient = call.cotangent(0);
  std::vector<Tensor> gradients(2);
  for (int i : {0, 1}) {
    if (call.needs(i))
      gradients[static_cast<std::size_t>(i)] = sum_to(gradient, call.input_spec(i).shape);
  }
  return gradients;
}

}  // namespace

Op define_add() {
  return binary_op("add", "input + other, broadcast; for bool the logical or.", infer_binary,
                   cpu::binary_kernel<cpu::AllDTypes>(
                       "cpu.add", [](auto x, auto y) { return cpu::wrap_add(x, y); }))
      .trait(Trait::commutative)
      .vjp(vjp_add)
      .range(ranges::sum)
      .done();
}

}  // namespace ops
}  // namespace tenon
