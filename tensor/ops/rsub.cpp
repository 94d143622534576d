// rsub: a number less a tensor.
#include "tensor/cpu/elementwise.h"
#include "tensor/rules/gradients.h"
#include "tensor/rules/pointwise.h"

namespace tenon {

Tensor rsub(const Tensor& input, const Scalar& other) {
  static const Op& op = get_op("rsub");
  return apply1(op, {input}, BinaryAttrs{other});
}

namespace ops {
namespace {

std::vector<Tensor> vjp_rsub(const VjpContext& call) { return {neg(call.cotangent(0))}; }

}  // namespace

Op define_rsub() {
  return unary_op("rsub", "other - input, other being a number.", infer_numeric_binary,
                  cpu::binary_kernel<cpu::Numbers>(
                      "cpu.rsub", [](auto x, auto y) { return cpu::wrap_sub(y, x); }))
      .vjp(vjp_rsub)
      .done();
}

}  // namespace ops
}  // namespace tenon
