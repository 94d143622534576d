// amin: the smallest element over some axes or all.
#include "tensor/cpu/reduce.h"
#include "tensor/rules/reduction.h"

namespace tenon {

Tensor amin(const Tensor& input, const std::vector<std::int64_t>& dim, bool keepdim) {
  static const Op& op = get_op("amin");
  return ops::call_reduction(op, input, dim, keepdim);
}

namespace ops {
namespace {

void run_amin(const KernelArgs& args) {
  cpu::require_elements(args);
  cpu::AllDTypes::dispatch(args.inputs[0].dtype, [&]<class C>() {
    cpu::run_reduction<C, C, cpu::Smallest<C>>(args, [](auto value) { return value; });
  });
}

}  // namespace

Op define_amin() {
  return reduction_op(
             "amin",
             "The smallest element over the axes dim, all when none is given; NaN where one is.",
             infer_extremum, {"cpu.amin", run_amin, nullptr, any_layout, false})
      .vjp(vjp_extremum)
      .saves_inputs({0})
      .saves_outputs({0})
      .range(ranges::same)
      .done();
}

}  // namespace ops
}  // namespace tenon
