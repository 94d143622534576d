// detach: the input, cut off from the tape.
#include "tensor/cpu/copy.h"
#include "tensor/rules/infer_rules.h"

namespace tenon {

Tensor detach(const Tensor& input) {
  static const Op& op = get_op("detach");
  return apply1(op, {input});
}

namespace ops {
namespace {

std::optional<Layout> view_detach(const Layout& input, const Extents&, const Attrs&) {
  return input;
}

}  // namespace

Op define_detach() {
  return OpBuilder("detach")
      .doc("The input itself, through which no gradient flows.")
      .operand("input")
      .infer(infer_like_input)
      .view(view_detach)
      .not_differentiable()
      .cpu(cpu::view_kernel("cpu.detach"))
      .done();
}

}  // namespace ops
}  // namespace tenon
