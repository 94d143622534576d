// var: variance over some axes or all.
#include <algorithm>
#include <cmath>

#include "tensor/cpu/reduce.h"
#include "tensor/ops/indexing_attributes.h"
#include "tensor/rules/infer_rules.h"
#include "tensor/rules/reduction.h"

namespace tenon {

Tensor var(const Tensor& input, const std::vector<std::int64_t>& dim, double correction,
           bool keepdim) {
  static const Op& op = get_op("var");
  return apply1(op, {input}, VarAttrs{ops::axes_of("var", input, dim), correction, keepdim});
}

namespace ops {
namespace {

std::vector<TensorSpec> infer_var(const InferContext& context) {
  require_floating(context, 0);
  const auto& attrs = context.attributes<VarAttrs>();
  return infer_reduction(context, attrs.dim, attrs.keepdim);
}

std::vector<Tensor> vjp_var(const VjpContext& call) {
  const auto& attrs = call.attributes<VarAttrs>();
  const TensorSpec& spec = call.input_spec(0);
  // In 16 bits x - mean would lose what makes it differ from zero.
  const DType dtype = accumulation_dtype(spec.dtype);
  const auto wide = [&](const Tensor& x) { return x.dtype() == dtype ? x : cast(x, dtype); };
  const Dim count = reduced_count("var", attrs.dim, spec.shape);
  const Number correction = attrs.correction;
  // A whole number keeps the count symbolic.
  const Scalar divisor = correction.is_integer() ? Scalar(count - Dim(correction.integer()))
                                                 : Scalar(count) - correction;
  const Tensor share = div(mul(wide(call.cotangent(0)), 2), divisor);
  const Tensor x = wide(call.input(0));
  const Tensor centered = sub(x, mean(x, attrs.dim, /*keepdim=*/true));
  // 2·(x - mean)/(n - correction)·gradient
  const Tensor gradient = mul(centered, with_reduced_axes("var", share, spec.shape, attrs.dim));
  return {spec.dtype == dtype ? gradient : cast(gradient, spec.dtype)};
}

/// Count, mean and Σ(x - mean)² of some values, in double: merging rounds the mean, and what that costs
/// grows with mean/σ. T. F. Chan, G. H. Golub, R. J. LeVeque, "Updating Formulae and a Pairwise
/// Algorithm for Computing Sample Variances", 1979.
struct Moments {
  double count;
  double mean;
  double squares;
  Moments() = default;
  explicit Moments(double value) : count(1), mean(value), squares(0) {}
};

struct Variance {
  using Accumulator = Moments;
  static Moments identity() { return Moments{}; }
  static Moments combine(Moments a, const Moments& b) {
    const double count = a.count + b.count;
    const double share = count == 0 ? 0 : b.count / count;
    const double delta = b.mean - a.mean;
    // The last term is 0, or NaN where a value is infinite.
    a.squares += b.squares + delta * (a.count * share) * delta + (delta - delta);
    a.mean += delta * share;
    a.count = count;
    return a;
  }
};

void run_var(const KernelArgs& args) {
  const auto& attrs = args.attributes<VarAttrs>();
  const std::int64_t outputs = args.outputs[0].numel();
  if (outputs == 0) return;
  const std::int64_t count = args.inputs[0].numel() / outputs;
  // As in PyTorch, a correction beyond the count divides by 0.
  const double divisor = std::max(0.0, static_cast<double>(count) - attrs.correction);
  const cpu::ReducePlan plan = cpu::plan_reduction(args, attrs.dim, attrs.keepdim);
  // 16-bit floats are rounded once, from double.
  const bool to_odd = !cpu::element_access(args.outputs[0].dtype).is_value;
  cpu::Floats::dispatch(args.inputs[0].dtype, [&]<class C>() {
    cpu::run_reduction<C, C, Variance>(args, plan, [divisor, to_odd](const Moments& m) {
      const double variance = m.squares / divisor;
      return to_odd ? static_cast<C>(cpu::round_to_odd(variance)) : static_cast<C>(variance);
    });
  });
}

}  // namespace

Op define_var() {
  return OpBuilder("var")
      .doc(
          "Σ(x - mean)²/(n - correction) over the axes dim, all when none is given; not finite "
          "where "
          "n <= correction.")
      .operand("input")
      .infer(infer_var)
      .vjp(vjp_var)
      .saves_inputs({0})
      .cpu({"cpu.var", run_var, nullptr, any_layout, false})
      .range(ranges::nonnegative)
      .done();
}

}  // namespace ops
}  // namespace tenon
