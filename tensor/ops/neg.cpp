// neg: negation.
#include <type_traits>

#include "tensor/cpu/elementwise.h"
#include "tensor/rules/pointwise.h"

namespace tenon {

Tensor neg(const Tensor& input) {
  static const Op& op = get_op("neg");
  return apply1(op, {input});
}

namespace ops {

Op define_neg() {
  return unary_op(
             "neg", "-x, elementwise; integers wrap around.", infer_numeric_like_input,
             cpu::unary_kernel<cpu::Numbers>("cpu.neg",
                                             [](auto x) {
                                               // 0 - 0 would be +0.
                                               if constexpr (std::is_floating_point_v<decltype(x)>)
                                                 return -x;
                                               else
                                                 return cpu::wrap_sub(decltype(x)(0), x);
                                             }))
      .vjp([](const VjpContext& call) -> std::vector<Tensor> { return {neg(call.cotangent(0))}; })
      .range(ranges::negated)
      .done();
}

}  // namespace ops
}  // namespace tenon
