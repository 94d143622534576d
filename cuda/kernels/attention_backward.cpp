// The gradient of scaled dot-product attention on CUDA: from a call to launches.
#include "cuda/kernels/attention_backward.h"

#include <algorithm>

#include "cuda/kernels/attention.h"
#include "cuda/kernels/attention_cudnn.h"
#include "cuda/kernels/register.h"
#include "tensor/rules/attention_rules.h"
#include "tensor/support/check.h"

namespace tenon::cuda {
namespace {

using namespace ops::attention_backward;

void set_layout(AttentionBackwardParams& params, const KernelArgs& args) {
  const TensorView* mask = args.inputs[kMask].present ? &args.inputs[kMask] : nullptr;
  const TensorView* d_mask = args.outputs.size() > 3 ? &args.outputs[3] : nullptr;
  const OperandLayout operands[] = {{&args.inputs[kGrad], &params.grad_strides},
                                    {&args.inputs[kQuery], &params.query_strides},
                                    {&args.inputs[kKey], &params.key_strides},
                                    {&args.inputs[kValue], &params.value_strides},
                                    {&args.inputs[kOutput], &params.output_strides},
                                    {mask, &params.mask_strides},
                                    {&args.outputs[0], &params.d_query_strides},
                                    {&args.outputs[1], &params.d_key_strides},
                                    {&args.outputs[2], &params.d_value_strides},
                                    {d_mask, &params.d_mask_strides}};
  cuda::set_layout(params, args.inputs[kGrad].sizes,
                   ops::heads_of_a_key(args.inputs[kQuery], args.inputs[kKey]), operands);
}

AttentionBackwardParams make_params(const KernelArgs& args) {
  AttentionBackwardParams params{};
  params.grad = args.inputs[kGrad].data;
  params.query = args.inputs[kQuery].data;
  params.key = args.inputs[kKey].data;
  params.value = args.inputs[kValue].data;
  params.output = args.inputs[kOutput].data;
  params.d_query = args.outputs[0].data;
  params.d_key = args.outputs[1].data;
  params.d_value = args.outputs[2].data;
  params.d_mask = args.outputs.size() > 3 ? args.outputs[3].data : nullptr;
  params.length = args.inputs[kQuery].size(-2);
  params.keys = args.inputs[kKey].size(-2);
  params.head = args.inputs[kQuery].size(-1);
  params.head_v = args.inputs[kValue].size(-1);
  set_layout(params, args);
  const auto& attributes = args.attributes<AttentionBackwardAttrs>();
  params.scale = attributes.scale.value();
  const bool dropped = set_attributes(params, attributes, args.inputs[kMask], args);
  if (args.inputs[kLse].present) params.lse = args.inputs[kLse].data;
  set_keep_bits(params, args.inputs[kKeepBits]);
  params.statistics = args.workspace;
  params.zero = dropped || params.batches * params.length * params.keys == 0;
  return params;
}

void run_simt(const KernelArgs& args) {
  const AttentionBackwardParams params = make_params(args);
  const Stream stream = stream_of(args);
  if (params.zero) {
    for (const TensorView& output : args.outputs) fill_bytes(output, 0, stream);
    return;
  }
  launch_backward_simt(params, args.inputs[kQuery].dtype, stream);
}

void launch_mma(const AttentionBackwardParams& params, DType dtype, Stream stream) {
  launch_backward_queries(params, dtype, stream);
  launch_backward_keys(params, dtype, stream);
}

/// Whether vector copies can read the operands: kernels are selected before addresses are known.
bool is_aligned(const KernelArgs& args) {
  return std::ranges::all_of(args.inputs.first(kMask), has_aligned_rows) &&
         has_aligned_start(args.inputs[kKeepBits]);
}

std::size_t statistics_bytes(const KernelArgs& args) {
  const TensorView& query = args.inputs[kQuery];
  std::int64_t rows = 1;
  for (int axis = 0; axis < query.rank() - 1; ++axis) rows *= query.sizes[axis];
  return static_cast<std::size_t>(2 * rows) * size_of(accumulation_dtype(query.dtype));
}

/// Statistics, and behind them what the mask adds to the scores of each key.
std::size_t key_bias_offset(const KernelArgs& args) {
  constexpr std::size_t kAlignment = 256;
  return (statistics_bytes(args) + kAlignment - 1) / kAlignment * kAlignment;
}

/// Memory for a mask of (queries, keys) that backward_wgmma cannot read where it lies: it reads vectors
/// of additive ones.
std::size_t copied_pair_mask_bytes(const KernelArgs& args) {
  const TensorView& mask = args.inputs[kMask];
  if (!mask.present || masks_keys(mask)) return 0;
  const bool is_whole = mask.size(-1) == args.inputs[kKey].size(-2) && mask.size(-1) % 8 == 0;
  TensorView layout = mask;
  layout.data = nullptr;
  if (is_whole && mask.dtype == args.inputs[kQuery].dtype && has_aligned_rows(layout)) return 0;
  return pair_mask_bytes(make_params(args));
}

/// No gradient of a mask is wanted.
bool leaves_mask(const KernelArgs& args) { return args.outputs.size() <= 3; }

/// Why a call is computed by multiply-adds.
std::string simt_reason(const KernelArgs& args) {
  const TensorView& query = args.inputs[kQuery];
  const std::int64_t head = query.size(-1), head_v = args.inputs[kValue].size(-1);
  const bool fits = backward_mma_takes(query.dtype, head, head_v) ||
                    flash_tf32x3_takes(query.dtype, head, head_v);
  if (!fits && flash_mma_takes(query.dtype, head, head_v)) {
    return fmt::format("the gradient's kernels for tensor cores take head sizes up to 128, not {}",
                       std::max(head, head_v));
  }
  if (!fits) return multiply_add_reason(query.dtype, head, head_v);
  return "the forward pass left no log-sum-exp: train what was traced with gradients";
}

/// Statistics and the mask, in either form.
std::size_t statistics_and_mask_bytes(const KernelArgs& args) {
  const TensorView& query = args.inputs[kQuery];
  std::int64_t batches = 1;
  for (int axis = 0; axis < query.rank() - 2; ++axis) batches *= query.sizes[axis];
  const std::int64_t keys = args.inputs[kKey].size(-2);
  const std::size_t pairs = query.dtype == DType::float32
                                ? pair_bias_workspace(args.inputs[kMask], query.size(-2), keys)
                                : copied_pair_mask_bytes(args);
  return key_bias_offset(args) +
         std::max(key_bias_workspace(args.inputs[kMask], batches, keys), pairs);
}

/// Statistics and the mask, and behind them the parts of a gradient of the mask.
std::size_t mask_parts_offset(const KernelArgs& args) {
  constexpr std::size_t kAlignment = 256;
  return (statistics_and_mask_bytes(args) + kAlignment - 1) / kAlignment * kAlignment;
}

std::size_t mma_workspace(const KernelArgs& args) {
  if (leaves_mask(args)) return statistics_and_mask_bytes(args);
  const TensorView& query = args.inputs[kQuery];
  const MaskGradientPlan plan = plan_mask_gradient(make_params(args), query.dtype,
                                                   device_limits(query.device.index));
  const std::int64_t elements = plan.matrices * plan.mask_rows * plan.mask_keys;
  const std::int64_t parts = plan.chunks > 1 ? plan.chunks * elements : 0;
  return mask_parts_offset(args) + static_cast<std::size_t>(parts) * sizeof(float);
}

/// The gradient of the mask, where it is wanted, after those of the other operands by tensor cores.
void launch_mask_gradient(const AttentionBackwardParams& params, const KernelArgs& args) {
  if (leaves_mask(args)) return;
  const Stream stream = stream_of(args);
  if (params.zero) return fill_bytes(args.outputs[3], 0, stream);
  const DType dtype = args.inputs[kQuery].dtype;
  const MaskGradientPlan plan =
      plan_mask_gradient(params, dtype, device_limits(stream.device));
  auto* parts =
      reinterpret_cast<float*>(static_cast<char*>(args.workspace) + mask_parts_offset(args));
  if (dtype == DType::float32) return launch_backward_mask_tf32x3(params, plan, parts, stream);
  launch_backward_mask_mma(params, dtype, plan, parts, stream);
}

/// By `launch`, where the operands are aligned.
void run_aligned(const KernelArgs& args,
                 void (*launch)(const AttentionBackwardParams&, DType, Stream)) {
  AttentionBackwardParams params = make_params(args);
  const Stream stream = stream_of(args);
  const DType dtype = args.inputs[kQuery].dtype;
  if (!params.zero && !is_aligned(args)) return launch_backward_simt(params, dtype, stream);
  if (!params.zero) {
    draw_key_bias(params, args.inputs[kMask], dtype,
                  static_cast<char*>(args.workspace) + key_bias_offset(args), stream);
  }
  params.zero ? launch_mma(params, dtype, stream) : launch(params, dtype, stream);
  launch_mask_gradient(params, args);
}

void run_mma(const KernelArgs& args) { run_aligned(args, launch_mma); }

void run_wgmma(const KernelArgs& args) {
  const TensorView& mask = args.inputs[kMask];
  if (!mask.present || masks_keys(mask)) return run_aligned(args, launch_backward_wgmma);
  AttentionBackwardParams params = make_params(args);
  const Stream stream = stream_of(args);
  const DType dtype = args.inputs[kQuery].dtype;
  if (params.zero || !is_aligned(args) || !has_aligned_start(mask)) return run_mma(args);
  if (copied_pair_mask_bytes(args) > 0) {
    launch_pair_mask(params, dtype, static_cast<char*>(args.workspace) + key_bias_offset(args),
                     stream);
  }
  launch_backward_wgmma(params, dtype, stream);
  launch_mask_gradient(params, args);
}

void run_tf32x3(const KernelArgs& args) {
  AttentionBackwardParams params = make_params(args);
  const Stream stream = stream_of(args);
  if (!params.zero && !is_aligned(args))
    return launch_backward_simt(params, DType::float32, stream);
  if (!params.zero) {
    void* workspace = static_cast<char*>(args.workspace) + key_bias_offset(args);
    draw_key_bias(params, args.inputs[kMask], DType::float32, workspace, stream);
    draw_pair_bias(params, args.inputs[kMask], workspace, stream);
  }
  launch_backward_tf32x3_queries(params, stream);
  launch_backward_tf32x3_keys(params, stream);
  launch_mask_gradient(params, args);
}

/// The forward's statistics are there, and its decisions if it made any.
bool has_statistics(const KernelArgs& args) {
  const bool drops = args.attributes<AttentionBackwardAttrs>().dropout_p != 0;
  return args.inputs[kLse].present && (!drops || args.inputs[kKeepBits].present);
}

bool supports_mma(const KernelArgs& args) {
  const TensorView& query = args.inputs[kQuery];
  return backward_mma_takes(query.dtype, query.size(-1), args.inputs[kValue].size(-1)) &&
         has_statistics(args) && has_tensor_cores(device_limits(query.device.index));
}

bool supports_tf32x3(const KernelArgs& args) {
  const TensorView& query = args.inputs[kQuery];
  return flash_tf32x3_takes(query.dtype, query.size(-1), args.inputs[kValue].size(-1)) &&
         has_statistics(args) && has_tf32x3(device_limits(query.device.index));
}

bool supports_wgmma(const KernelArgs& args) {
  constexpr std::int64_t kMostRows = std::int64_t{1} << 31;
  const TensorView& query = args.inputs[kQuery];
  const TensorView& key = args.inputs[kKey];
  constexpr std::size_t kMostMaskBytes = std::size_t{1} << 30;
  return supports_mma(args) && copied_pair_mask_bytes(args) <= kMostMaskBytes &&
         key.size(-2) <= kMostBiasedKeys &&
         backward_wgmma_takes(query.dtype, query.size(-1), args.inputs[kValue].size(-1),
                              device_limits(query.device.index)) &&
         query.numel() < kMostRows * query.size(-1) && key.numel() < kMostRows * key.size(-1);
}

/// Whether cuDNN's kernel is there and wants the call.
bool goes_to_cudnn(const KernelArgs& args) {
  return std::ranges::any_of(args.op->kernels(DeviceType::cuda), [&](const Kernel& kernel) {
    return kernel.name == kCudnnAttention && kernel.preferred(args) && kernel.supports(args);
  });
}

/// Before cuDNN too with heads up to 64, where it was measured to be ahead. With larger ones it was not
/// measured yet beside cuDNN, which keeps its calls: long rows without mask and dropout.
bool prefers_wgmma(const KernelArgs& args) {
  constexpr std::int64_t kMeasuredHead = 64;
  if (!supports_wgmma(args)) return false;
  const std::int64_t head = std::max(args.inputs[kQuery].size(-1), args.inputs[kValue].size(-1));
  return head <= kMeasuredHead || !goes_to_cudnn(args);
}

bool accepts_mma(int operand, const TensorView& view) {
  switch (operand) {
    case kMask: return true;
    case kLse: return view.is_contiguous();  // read element by element
    case kKeepBits: return view.is_contiguous() && has_aligned_start(view);
    default: return has_aligned_rows(view);
  }
}

bool supports_simt(const KernelArgs& args) { return is_floating(args.inputs[kQuery].dtype); }

bool accepts_simt(int operand, const TensorView& view) {
  return operand == kMask || (operand >= kLse ? view.is_contiguous() : has_dense_rows(view));
}

}  // namespace

MaskGradientPlan plan_mask_gradient(const AttentionBackwardParams& params, DType dtype,
                                    const DeviceLimits& limits) {
  MaskGradientPlan plan{};
  const bool large = dtype != DType::float32 && std::max(params.head, params.head_v) <= 64;
  plan.tile_rows = large ? 128 : 64;
  plan.stages = large && limits.shared_of_block >= (113 << 10) ? 2 : 1;
  plan.matrices = plan.sharing = 1;
  for (int axis = 0; axis < params.batch_axes; ++axis) {
    const bool repeated = params.d_mask_strides.batch[axis] == 0;
    (repeated ? plan.sharing : plan.matrices) *= params.batch_sizes[axis];
  }
  plan.row_tiles = ceil_div(params.length, plan.tile_rows);
  plan.key_tiles = ceil_div(params.keys, kMaskTileKeys);
  const bool one_row = params.d_mask_strides.row == 0, one_key = params.d_mask_strides.column == 0;
  plan.mask_rows = one_row ? 1 : params.length;
  plan.mask_keys = one_key ? 1 : params.keys;
  plan.row_owners = one_row ? 1 : plan.row_tiles;
  plan.key_owners = one_key ? 1 : plan.key_tiles;
  plan.steps =
      plan.sharing * (one_row ? plan.row_tiles : 1) * (one_key ? plan.key_tiles : 1);
  const std::int64_t owners = plan.matrices * plan.row_owners * plan.key_owners;
  const std::int64_t blocks = 2 * limits.multiprocessors;  // that run at a time
  const std::int64_t wanted = owners < blocks ? ceil_div(blocks, std::max<std::int64_t>(owners, 1)) : 1;
  plan.chunk_steps = std::max<std::int64_t>(ceil_div(plan.steps, wanted), 1);
  plan.chunks = std::max<std::int64_t>(ceil_div(plan.steps, plan.chunk_steps), 1);
  return plan;
}

bool backward_mma_takes(DType dtype, std::int64_t head, std::int64_t head_v) {
  return flash_mma_takes(dtype, head, head_v) && std::max(head, head_v) <= 128;
}

bool backward_wgmma_takes(DType dtype, std::int64_t head, std::int64_t head_v,
                          const DeviceLimits& limits) {
  return backward_mma_takes(dtype, head, head_v) && has_wgmma(limits);
}

void register_attention_backward_kernels() {
  const auto add = [](Kernel kernel) {
    register_kernel("scaled_dot_product_attention_backward", DeviceType::cuda, kernel);
  };
  const Kernel mma = {.name = "cuda.flash_backward_mma",
                      .run = run_mma,
                      .supports = supports_mma,
                      .accepts = accepts_mma,
                      .strided_output = true,
                      .sliced_output = true,
                      .workspace_bytes = mma_workspace};
  Kernel wgmma = mma;
  wgmma.name = "cuda.flash_backward_wgmma";
  wgmma.run = run_wgmma;
  wgmma.supports = supports_wgmma;
  wgmma.preferred = prefers_wgmma;
  add(mma);
  add(wgmma);
  Kernel tf32x3 = mma;
  tf32x3.name = "cuda.flash_backward_tf32x3";
  tf32x3.run = run_tf32x3;
  tf32x3.supports = supports_tf32x3;
  add(tf32x3);
  add({.name = "cuda.flash_backward_simt",
       .run = run_simt,
       .supports = supports_simt,
       .accepts = accepts_simt,
       .strided_output = true,
       .workspace_bytes = statistics_bytes,
       .slow_because = simt_reason});
}

}  // namespace tenon::cuda
