// Gradients of layer_norm, rms_norm and bias_dropout_residual_layer_norm. A row's statistics are computed again from the input; sums over
// rows for weight and bias are cut into blocks by size alone and added in order.
#include "tensor/calls/wanted_gradients.h"
#include "tensor/cpu/dropout.h"
#include "tensor/cpu/layer_norm.h"
#include "tensor/cpu/norm_rows.h"
#include "tensor/ops/norm_attributes.h"

namespace tenon::cpu {
namespace {

using ops::WantedGradients;

/// What is added to the first gradient; null when there is no such operand.
template <class T>
const T* addend_of(const KernelArgs& args) {
  return args.inputs.size() > 3 && args.inputs[3].present ? args.inputs[3].as<const T>() : nullptr;
}

/// One block of rows: gradients of the input rows, and this block's part of the sums over rows.
template <class T>
void run_block(const KernelArgs& args, const WantedGradients& gradients, bool centers,
               std::int64_t begin, std::int64_t end, compute_type<T>* weight_part,
               compute_type<T>* bias_part) {
  using C = compute_type<T>;
  thread_local Scratch grad_scratch, input_scratch, weight_scratch, addend_scratch;
  const auto& attrs = args.attributes<NormBackwardAttrs>();
  const T* addend = addend_of<T>(args);
  const auto axes = static_cast<int>(attrs.axes);
  const NormRows grad_rows(args.inputs[0], axes);
  const NormRows input_rows(args.inputs[1], axes);
  const std::int64_t n = input_rows.length();
  C* g = grad_scratch.get<C>(n);
  C* x = input_scratch.get<C>(n);
  const C* weight = converted<T>(args.inputs[2], n, weight_scratch);
  for (std::int64_t row = begin; row < end; ++row) {
    grad_rows.load<T>(args.inputs[0], row, g);
    if (bias_part != nullptr) add_row(bias_part, g, n);
    if (weight_part == nullptr && gradients.input == nullptr) continue;
    input_rows.load<T>(args.inputs[1], row, x);
    const C factor = center_and_scale(x, n, attrs.eps, centers);
    scale_row(x, n, factor);
    if (weight_part != nullptr) {
      for (std::int64_t i = 0; i < n; ++i) weight_part[i] += g[i] * x[i];
    }
    if (gradients.input == nullptr) continue;
    if (weight != nullptr) {
      for (std::int64_t i = 0; i < n; ++i) g[i] *= weight[i];
    }
    norm_backward_row(g, x, n, factor, centers);
    if (addend != nullptr) {
      C* added = addend_scratch.get<C>(n);
      load_row(addend + row * n, 1, n, added);
      add_row(g, added, n);
    }
    store_row(g, n, gradients.input->as<T>() + row * n, 1);
  }
}

template <class T>
void run_backward(const KernelArgs& args, bool centers) {
  using C = compute_type<T>;
  const auto& attrs = args.attributes<NormBackwardAttrs>();
  const WantedGradients gradients(args, attrs);
  const NormRows rows(args.inputs[1], static_cast<int>(attrs.axes));
  const std::int64_t n = rows.length();
  const std::int64_t per_block = rows_per_block(rows.count(), n);
  const std::int64_t blocks = (rows.count() + per_block - 1) / per_block;
  // (blocks, 2, n): each block's sums for weight and for bias.
  std::vector<C> parts;
  if (gradients.weight || gradients.bias) parts.resize(static_cast<std::size_t>(2 * blocks * n));
  parallel_ranges(rows.count(), per_block, [&](std::int64_t begin, std::int64_t end) {
    C* part = parts.data() + 2 * (begin / per_block) * n;
    run_block<T>(args, gradients, centers, begin, end, gradients.weight ? part : nullptr,
                 gradients.bias ? part + n : nullptr);
  });
  const T* addend = gradients.input ? nullptr : addend_of<T>(args);
  if (gradients.weight) {
    sum_blocks(parts.data(), blocks, 2 * n, n, gradients.weight->as<T>(), addend);
    addend = nullptr;
  }
  if (gradients.bias) {
    sum_blocks(parts.data() + n, blocks, 2 * n, n, gradients.bias->as<T>(), addend);
  }
}

void run(const KernelArgs& args, bool centers) {
  dispatch_float(args.inputs[0].dtype, [&]<typename T>() { run_backward<T>(args, centers); });
}

/// The rows of one call of bias_dropout_residual_layer_norm_backward.
struct ResidualNormCall {
  const KernelArgs& args;
  const ResidualNormBackwardAttrs& attrs = args.attributes<ResidualNormBackwardAttrs>();
  ops::WantedResidualNormGradients wanted{args, attrs};
  NormRows grad{args.inputs[0], 1};
  NormRows input{args.inputs[1], 1};
  NormRows residual{args.inputs[3], 1};
  DropoutPlan dropout = plan_dropout(args.op->name, {attrs.p, attrs.mode, attrs.site}, args,
                                     input.count(), input.segment);
};

/// One block of rows; `parts` are this block's sums for bias, weight and norm_bias.
template <class T>
void run_residual_block(const ResidualNormCall& call, std::int64_t begin, std::int64_t end,
                        compute_type<T>* parts) {
  using C = compute_type<T>;
  thread_local Scratch scratch[5];
  const std::int64_t n = call.input.segment;
  C* g = scratch[0].get<C>(n);
  C* x = scratch[1].get<C>(n);
  C* other = scratch[2].get<C>(n);
  const C* bias = converted<T>(call.args.inputs[2], n, scratch[3]);
  const C* weight = converted<T>(call.args.inputs[4], n, scratch[4]);
  const auto scale = static_cast<C>(call.dropout.scale);
  for (std::int64_t row = begin; row < end; ++row) {
    call.grad.load<T>(call.args.inputs[0], row, g);
    call.input.load<T>(call.args.inputs[1], row, x);
    call.residual.load<T>(call.args.inputs[3], row, other);
    add_row(x, bias, n);
    if (call.dropout.active) dropout_row(x, n, call.dropout, scale, row, 0);
    add_row(x, other, n);
    const C factor = center_and_scale(x, n, call.attrs.eps, /*centers=*/true);
    scale_row(x, n, factor);
    for (std::int64_t i = 0; i < n; ++i) parts[n + i] += g[i] * x[i];
    add_row(parts + 2 * n, g, n);
    for (std::int64_t i = 0; i < n; ++i) g[i] *= weight[i];
    norm_backward_row(g, x, n, factor, /*centers=*/true);
    if (call.wanted.residual) store_row(g, n, call.wanted.residual->as<T>() + row * n, 1);
    if (call.dropout.active) dropout_row(g, n, call.dropout, scale, row, 0);
    add_row(parts, g, n);
    if (call.wanted.input) store_row(g, n, call.wanted.input->as<T>() + row * n, 1);
  }
}

template <class T>
void run_residual(const KernelArgs& args) {
  using C = compute_type<T>;
  const ResidualNormCall call{args};
  const std::int64_t n = call.input.segment;
  const std::int64_t rows = call.input.count();
  const std::int64_t per_block = rows_per_block(rows, n);
  const std::int64_t blocks = (rows + per_block - 1) / per_block;
  std::vector<C> parts(static_cast<std::size_t>(3 * blocks * n));
  parallel_ranges(rows, per_block, [&](std::int64_t begin, std::int64_t end) {
    run_residual_block<T>(call, begin, end, parts.data() + 3 * (begin / per_block) * n);
  });
  const TensorView* vectors[] = {call.wanted.bias, call.wanted.weight, call.wanted.norm_bias};
  for (int i = 0; i < 3; ++i) {
    if (vectors[i]) sum_blocks(parts.data() + i * n, blocks, 3 * n, n, vectors[i]->as<T>());
  }
}

}  // namespace

void layer_norm_backward(const KernelArgs& args) { run(args, /*centers=*/true); }
void rms_norm_backward(const KernelArgs& args) { run(args, /*centers=*/false); }

void bias_dropout_residual_layer_norm_backward(const KernelArgs& args) {
  dispatch_float(args.inputs[0].dtype, [&]<typename T>() { run_residual<T>(args); });
}

}  // namespace tenon::cpu
