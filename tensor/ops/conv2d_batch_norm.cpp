// conv2d_batch_norm, conv2d_batch_norm_relu and conv2d_batch_norm_add_relu: a convolution without a bias
// and what follows it in a residual network. In evaluation batch norm is a factor and an addend for each
// channel, which a kernel applies to its sums; a call that normalizes by the batch is expanded, and so is
// one that is differentiated. Results beside the first are batch_norm's.
#include <algorithm>

#include "tensor/detail/batch_norm_rules.h"
#include "tensor/interpreter.h"
#include "tensor/ops/gradients.h"
#include "tensor/ops/op_list.h"

namespace tenon::ops {
namespace {

enum Operand { kInput, kFilters, kRunningMean, kRunningVar, kWeight, kBias, kResidual };

/// A pattern knows only how many results there may be at most.
constexpr std::size_t kMostResults = 5;

std::vector<Tensor> expand(const char* norm, std::span<const Tensor> inputs, const Attrs& attrs) {
  const auto& a = attrs.as<Conv2dBatchNormAttrs>();
  std::vector<Tensor> operands = {conv2d_with(inputs[kInput], inputs[kFilters], Tensor(), a)};
  operands.insert(operands.end(), inputs.begin() + kRunningMean, inputs.end());
  std::vector<Tensor> outputs =
      apply(get_op(norm), operands, BatchNormAttrs{a.mode, a.momentum, a.eps});
  outputs.resize(std::min(outputs.size(), kMostResults));
  return outputs;
}

std::vector<Tensor> decompose_norm(std::span<const Tensor> inputs, const Attrs& attrs) {
  return expand("batch_norm", inputs, attrs);
}
std::vector<Tensor> decompose_norm_relu(std::span<const Tensor> inputs, const Attrs& attrs) {
  return expand("batch_norm_relu", inputs, attrs);
}
std::vector<Tensor> decompose_norm_add_relu(std::span<const Tensor> inputs, const Attrs& attrs) {
  return expand("batch_norm_add_relu", inputs, attrs);
}

std::vector<Attrs> conv_patterns() {
  std::vector<Attrs> list;
  for (const DropoutMode mode : {DropoutMode::follow, DropoutMode::train, DropoutMode::eval}) {
    list.push_back(
        Conv2dBatchNormAttrs{{{Any(0)}, {Any(1)}, {Any(2)}, Any(3)}, mode, Any(4), Any(5)});
  }
  return list;
}

/// In evaluation the new running statistics are the old ones.
int repeated_operand(const Attrs& attrs, bool training, int output) {
  const auto& a = attrs.as<Conv2dBatchNormAttrs>();
  const int operand =
      repeated_statistics(BatchNormAttrs{a.mode, a.momentum, a.eps}, training, output);
  return operand < 0 ? operand : operand + kFilters;  // which batch_norm does not have
}

Op define(const char* name, const char* doc, Op::Decompose decompose, bool has_residual) {
  OpBuilder builder(name);
  builder.doc(doc)
      .operand("input")
      .operand("filters")
      .optional("running_mean")
      .optional("running_var")
      .optional("weight")
      .optional("bias");
  if (has_residual) builder.operand("residual");
  return builder.decompose(decompose).pattern_attrs(conv_patterns).repeats(repeated_operand).done();
}

}  // namespace

Op define_conv2d_batch_norm() {
  return define(
      "conv2d_batch_norm",
      "batch_norm(conv2d(input, filters), …), with batch_norm's results. Where a kernel does "
      "both, in evaluation, 16-bit floats are rounded once, at the end.",
      decompose_norm, false);
}

Op define_conv2d_batch_norm_relu() {
  return define("conv2d_batch_norm_relu",
                "batch_norm_relu(conv2d(input, filters), …), rounded as conv2d_batch_norm.",
                decompose_norm_relu, false);
}

Op define_conv2d_batch_norm_add_relu() {
  return define("conv2d_batch_norm_add_relu",
                "batch_norm_add_relu(conv2d(input, filters), …, residual), rounded as "
                "conv2d_batch_norm.",
                decompose_norm_add_relu, true);
}

}  // namespace tenon::ops
