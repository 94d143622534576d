// rdiv: a number divided by a tensor.
#include "tensor/cpu/elementwise.h"
#include "tensor/rules/gradients.h"
#include "tensor/rules/pointwise.h"

namespace tenon {

Tensor rdiv(const Tensor& input, const Scalar& other) {
  static const Op& op = get_op("rdiv");
  return apply1(op, {input}, BinaryAttrs{other});
}

namespace ops {
namespace {

/// -grad·other/input², without the square, which may overflow.
std::vector<Tensor> vjp_rdiv(const VjpContext& call) {
  const Tensor input = call.input(0);
  const Tensor slope = div(rdiv(input, call.attributes<BinaryAttrs>().other), input);
  return {neg(mul(call.cotangent(0), slope))};
}

}  // namespace

Op define_rdiv() {
  return unary_op("rdiv", "other / input, other being a number; IEEE division.", infer_float_binary,
                  cpu::binary_kernel<cpu::Floats>("cpu.rdiv", [](auto x, auto y) { return y / x; }))
      .saves_inputs({0})
      .vjp(vjp_rdiv)
      .done();
}

}  // namespace ops
}  // namespace tenon
