// clone: the same values in memory of their own.
#include "tensor/cpu/copy.h"
#include "tensor/ops/op_list.h"
#include "tensor/rules/infer_rules.h"

namespace tenon {

Tensor clone(const Tensor& input) {
  static const Op& op = get_op("clone");
  return apply1(op, {input});
}

namespace ops {
namespace {

void run_clone(const KernelArgs& args) { cpu::copy_strided(args.inputs[0], args.outputs[0]); }

}  // namespace

Op define_clone() {
  return OpBuilder("clone")
      .doc("A row-major copy, never the input itself; its kernels copy between any strides.")
      .operand("input")
      .trait(Trait::elementwise)
      .trait(Trait::storage_dtypes)
      .infer(infer_like_input)
      .vjp([](const VjpContext& call) -> std::vector<Tensor> { return {call.cotangent(0)}; })
      .cpu({.name = "cpu.copy", .run = run_clone, .accepts = any_layout, .strided_output = true})
      .done();
}

}  // namespace ops
}  // namespace tenon
