// contiguous: the elements in row-major order without gaps.
#include "tensor/cpu/copy.h"
#include "tensor/rules/infer_rules.h"

namespace tenon {

Tensor contiguous(const Tensor& input) {
  static const Op& op = get_op("contiguous");
  return apply1(op, {input});
}

namespace ops {
namespace {

std::optional<Layout> view_contiguous(const Layout& input, const Extents&, const Attrs&) {
  return input.is_contiguous() ? std::optional(input) : std::nullopt;
}

std::vector<Tensor> vjp_contiguous(const VjpContext& call) { return {call.cotangent(0)}; }

}  // namespace

Op define_contiguous() {
  return OpBuilder("contiguous")
      .doc("input in row-major order: itself when it is that already, else a copy.")
      .operand("input")
      .infer(infer_like_input)
      .view(view_contiguous)
      .vjp(vjp_contiguous)
      .cpu(cpu::view_kernel("cpu.contiguous"))
      .done();
}

}  // namespace ops
}  // namespace tenon
