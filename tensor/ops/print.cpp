// print: a line about a tensor when it is computed. A debugging tool: on a GPU each run waits for the
// values and copies them to the host.
#include "tensor/cpu/print.h"

#include "tensor/ops/attributes.h"
#include "tensor/ops/op_list.h"
#include "tensor/rules/infer_rules.h"

namespace tenon {

Tensor print(const Tensor& input, const std::string& label) {
  static const Op& op = get_op("print");
  apply1(op, {input}, PrintAttrs{label});
  return input;
}

namespace ops {
namespace {

/// A Graph's nodes have results; that of print is empty, and nothing reads it.
std::vector<TensorSpec> infer_print(const InferContext& context) {
  return {{DType::uint8, {0}, context[0].device}};
}

}  // namespace

Op define_print() {
  return OpBuilder("print")
      .doc(
          "Writes one line to the print stream: label, dtype, shape, smallest, largest and mean "
          "finite value (the mean in float64), how many are NaN or Inf, the first six. Returns "
          "an empty tensor; the function print returns its input.")
      .operand("input")
      .trait(Trait::effect)
      .trait(Trait::storage_dtypes)
      .infer(infer_print)
      .not_differentiable()
      .cpu({.name = "cpu.print",
            .run = [](const KernelArgs& args) { cpu::print_values(args, args.inputs[0]); },
            .accepts = any_layout})
      .done();
}

}  // namespace ops
}  // namespace tenon
