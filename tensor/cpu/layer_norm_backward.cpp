// Gradients of layer_norm and rms_norm. A row's statistics are computed again from the input; sums over
// rows for weight and bias are cut into blocks by size alone and added in order.
#include "tensor/cpu/layer_norm.h"
#include "tensor/cpu/norm_rows.h"
#include "tensor/detail/wanted_gradients.h"
#include "tensor/ops/norm_attributes.h"

namespace tenon::cpu {
namespace {

using ops::WantedGradients;

/// One block of rows: gradients of the input rows, and this block's part of the sums over rows.
template <class T>
void run_block(const KernelArgs& args, const WantedGradients& gradients, bool centers,
               std::int64_t begin, std::int64_t end, compute_type<T>* weight_part,
               compute_type<T>* bias_part) {
  using C = compute_type<T>;
  thread_local Scratch grad_scratch, input_scratch, weight_scratch;
  const auto& attrs = args.attributes<NormBackwardAttrs>();
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
  if (gradients.weight) sum_blocks(parts.data(), blocks, 2 * n, n, gradients.weight->as<T>());
  if (gradients.bias) sum_blocks(parts.data() + n, blocks, 2 * n, n, gradients.bias->as<T>());
}

void run(const KernelArgs& args, bool centers) {
  dispatch_float(args.inputs[0].dtype, [&]<typename T>() { run_backward<T>(args, centers); });
}

}  // namespace

void layer_norm_backward(const KernelArgs& args) { run(args, /*centers=*/true); }
void rms_norm_backward(const KernelArgs& args) { run(args, /*centers=*/false); }

}  // namespace tenon::cpu
