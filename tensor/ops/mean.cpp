// mean: over some axes or all.
#include "tensor/cpu/reduce.h"
#include "tensor/rules/reduction.h"

namespace tenon {

Tensor mean(const Tensor& input, const std::vector<std::int64_t>& dim, bool keepdim) {
  static const Op& op = get_op("mean");
  return ops::call_reduction(op, input, dim, keepdim);
}

namespace ops {
namespace {

std::vector<TensorSpec> infer_mean(const InferContext& context) {
  require_floating(context, 0);
  return infer_reduction(context);
}

void run_mean(const KernelArgs& args) {
  const std::int64_t outputs = args.outputs[0].numel();
  if (outputs == 0) return;
  const std::int64_t count = args.inputs[0].numel() / outputs;
  cpu::Floats::dispatch(args.inputs[0].dtype, [&]<class C>() {
    const auto divisor = static_cast<C>(count);
    cpu::run_reduction<C, C, cpu::Sum<C>>(args, [divisor](auto total) { return total / divisor; });
  });
}

std::vector<Tensor> vjp_mean(const VjpContext& call) {
  const Shape& shape = call.input_spec(0).shape;
  const auto& dim = call.attributes<ReduceAttrs>().dim;
  // Divided before it is repeated: once an output, not once an element.
  const Tensor share = div(call.cotangent(0), Scalar(reduced_count("mean", dim, shape)));
  return {expand(with_reduced_axes("mean", share, shape, dim), shape)};
}

}  // namespace

Op define_mean() {
  return reduction_op("mean", "Σ/n over the axes dim, all when none is given; NaN for nothing.",
                      infer_mean, {"cpu.mean", run_mean, nullptr, any_layout, false})
      .vjp(vjp_mean)
      .range(ranges::same)
      .done();
}

}  // namespace ops
}  // namespace tenon
