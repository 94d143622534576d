// sum: over some axes or all.
#include "tensor/cpu/reduce.h"
#include "tensor/rules/reduction.h"

namespace tenon {

Tensor sum(const Tensor& input, const std::vector<std::int64_t>& dim, bool keepdim) {
  static const Op& op = get_op("sum");
  return ops::call_reduction(op, input, dim, keepdim);
}

namespace ops {
namespace {

std::vector<TensorSpec> infer_sum(const InferContext& context) {
  std::vector<TensorSpec> outputs = infer_reduction(context);
  if (!is_floating(outputs[0].dtype)) outputs[0].dtype = DType::int64;
  return outputs;
}

void run_sum(const KernelArgs& args) {
  cpu::AllDTypes::dispatch(args.inputs[0].dtype, [&]<class C>() {
    using Sum = cpu::Sum<C>;
    cpu::run_reduction<C, typename Sum::Accumulator, Sum>(args, [](auto total) { return total; });
  });
}

std::vector<Tensor> vjp_sum(const VjpContext& call) {
  // Every element of a sum has its gradient.
  const Shape& shape = call.input_spec(0).shape;
  const auto& dim = call.attributes<ReduceAttrs>().dim;
  return {expand(with_reduced_axes("sum", call.cotangent(0), shape, dim), shape)};
}

}  // namespace

Op define_sum() {
  return reduction_op(
             "sum",
             "Σ over the axes dim, all when none is given; 0 for nothing. Integers and bool "
             "give int64.",
             infer_sum, {"cpu.sum", run_sum, nullptr, any_layout, false})
      .vjp(vjp_sum)
      .range(ranges::same_sign)
      .done();
}

}  // namespace ops
}  // namespace tenon
