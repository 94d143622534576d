// Scaled dot-product attention on CUDA: from a call to a launch. Batch axes are merged where strides
// allow, tiles are chosen, and calls that tensor cores cannot take go to the multiply-add kernel.
#include "cuda/kernels/attention.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "cuda/check.h"
#include "cuda/kernels/attention_cudnn.h"
#include "cuda/kernels/register.h"
#include "tensor/cpu/dropout.h"
#include "tensor/rules/attention_rules.h"
#include "tensor/support/check.h"

namespace tenon::cuda {
namespace {

constexpr const char* kOp = "scaled_dot_product_attention";
constexpr const char* kLseOp = "scaled_dot_product_attention_lse";

/// The stride along `axis`, counted from the last one; 0 where the operand is broadcast.
std::int64_t stride_from_end(const TensorView* view, int axis) {
  if (view == nullptr || axis >= view->rank()) return 0;
  const int index = view->rank() - 1 - axis;
  return view->sizes[index] == 1 ? 0 : view->strides[index];
}

/// Bytes of one query's dropout decisions, as scaled_dot_product_attention_lse returns them.
std::int64_t keep_bits_row(std::int64_t keys) { return ceil_div(keys, 128) * 16; }

/// What a call comes down to. The output of `zero` is all zeros: no keys to sum over, or p == 1.
struct AttentionCall {
  AttentionParams params;
  bool zero = false;
};

AttentionCall make_call(const KernelArgs& args) {
  const TensorView& output = args.outputs[0];
  const TensorView& mask = args.inputs[3];
  AttentionParams params{};
  params.query = args.inputs[0].data;
  params.key = args.inputs[1].data;
  params.value = args.inputs[2].data;
  params.output = output.data;
  params.length = output.size(-2);
  params.keys = args.inputs[1].size(-2);
  params.head = args.inputs[0].size(-1);
  params.head_v = output.size(-1);
  const OperandLayout operands[] = {{&args.inputs[0], &params.query_strides},
                                    {&args.inputs[1], &params.key_strides},
                                    {&args.inputs[2], &params.value_strides},
                                    {mask.present ? &mask : nullptr, &params.mask_strides},
                                    {&output, &params.output_strides}};
  set_layout(params, output.sizes, ops::heads_of_a_key(args.inputs[0], args.inputs[1]), operands);
  const bool dropped = set_attributes(params, args.attributes<AttentionAttrs>(), mask, args);
  if (args.outputs.size() > 1) {
    params.lse = args.outputs[1].data;
    set_keep_bits(params, args.outputs[2]);
  }
  return {params, dropped || params.keys == 0};
}

/// Runs `launch` where there is something to compute, and writes what needs no kernel.
template <class Launch>
void run_call(const KernelArgs& args, const Launch& launch) {
  const auto [params, zero] = make_call(args);
  const Stream stream = stream_of(args);
  if (args.outputs.size() > 1 && params.keep_bits == nullptr)
    fill_bytes(args.outputs[2], 0xff, stream);
  const bool wanted = params.lse != nullptr || (!zero && params.head_v > 0);
  if (wanted && params.batches * params.length > 0) launch(params, stream);
  if (!zero) return;
  fill_bytes(args.outputs[0], 0, stream);
  if (params.keep_bits != nullptr) fill_bytes(args.outputs[2], 0, stream);
}

/// Whether scores are compared before they are scaled: nothing is added, and their order is kept.
bool has_plain_scores(const AttentionParams& params) {
  const auto scale = static_cast<float>(params.scale_log2);
  return params.mask_kind == AttentionMask::none && scale > 0 && std::isfinite(scale);
}

void run_simt(const KernelArgs& args) {
  run_call(args, [&](const AttentionParams& params, Stream stream) {
    const DType dtype = args.outputs[0].dtype;
    launch_flash_simt(params, dtype, choose_flash_simt_tiling(dtype, params.head_v), stream);
  });
}

/// Whether vector copies can read the operands, and the decisions that are drawn first and then
/// read. Kernels are selected before addresses are known.
bool is_aligned(const KernelArgs& args) {
  return std::ranges::all_of(args.inputs.first(3), has_aligned_rows) &&
         (args.outputs.size() < 3 || has_aligned_start(args.outputs[2]));
}

/// Into the workspace of key_bias_and_bits_workspace.
void draw_mask_and_bits(AttentionParams& params, const KernelArgs& args, Stream stream) {
  const TensorView& mask = args.inputs[3];
  draw_key_bias(params, mask, args.inputs[0].dtype, args.workspace, stream);
  draw_keep_bits(params,
                 static_cast<char*>(args.workspace) +
                     key_bias_workspace(mask, params.batches, params.keys),
                 stream);
}

void run_mma(const KernelArgs& args) {
  if (!is_aligned(args)) return run_simt(args);
  run_call(args, [&](AttentionParams params, Stream stream) {
    draw_mask_and_bits(params, args, stream);
    const AttentionTiling tiling =
        choose_flash_mma_tiling(params, device_limits(stream.device).multiprocessors);
    launch_flash_mma(params, args.outputs[0].dtype, tiling, stream);
  });
}

void run_tf32x3(const KernelArgs& args) {
  if (!is_aligned(args)) return run_simt(args);
  run_call(args, [&](AttentionParams params, Stream stream) {
    draw_mask_and_bits(params, args, stream);
    draw_pair_bias(params, args.inputs[3],
                   static_cast<char*>(args.workspace) + key_bias_and_bits_workspace(args), stream);
    const AttentionTiling tiling =
        choose_flash_tf32x3_tiling(params, device_limits(stream.device).multiprocessors);
    launch_flash_tf32x3(params, tiling, stream);
  });
}

/// Tensor maps have no negative strides, and rows are apart.
bool accepts_wgmma(int operand, const TensorView& view) {
  if (operand >= 3) return true;
  if (!has_aligned_rows(view)) return false;
  for (int axis = 0; axis < view.rank() - 1; ++axis) {
    const bool is_row = axis == view.rank() - 2;
    if (view.sizes[axis] > 1 && view.strides[axis] < (is_row ? 1 : 0)) return false;
  }
  return true;
}

/// The mask's part of what flash_wgmma takes: of keys, hidden from all queries, or of (queries, keys) as
/// a tensor map can describe.
bool takes_wgmma_mask(const TensorView& mask, DType dtype) {
  if (!mask.present) return true;
  if (mask.dtype != DType::boolean && mask.dtype != dtype) return false;
  if (stride_from_end(&mask, 1) == 0) return true;
  return accepts_wgmma(0, mask) && mask.size(-1) > 1;
}

void run_wgmma(const KernelArgs& args) {
  for (int i = 0; i < 3; ++i) {
    if (!accepts_wgmma(i, args.inputs[static_cast<std::size_t>(i)])) return run_mma(args);
  }
  if (!takes_wgmma_mask(args.inputs[3], args.inputs[0].dtype)) return run_mma(args);
  run_call(args, [&](const AttentionParams& params, Stream stream) {
    launch_flash_wgmma(params, args.outputs[0].dtype, args.workspace, stream);
  });
}

bool supports_wgmma(const KernelArgs& args) {
  const TensorView& query = args.inputs[0];
  const auto& attributes = args.attributes<AttentionAttrs>();
  constexpr std::int64_t kMost = std::int64_t{1} << 30;
  const std::int64_t head = query.size(-1), head_v = args.inputs[2].size(-1);
  const std::int64_t keys = args.inputs[1].size(-2);
  const bool is_grouped = ops::heads_of_a_key(query, args.inputs[1]) != 1;
  const int batch_axes = query.rank() - 2 + (is_grouped ? 1 : 0);
  const auto scale = static_cast<float>(attributes.scale.value());
  const bool has_dropout = drops(attributes.mode, attributes.dropout_p, args.training);
  return flash_mma_takes(query.dtype, head, head_v) && std::max(head, head_v) <= 128 && !has_dropout &&
         batch_axes <= 3 && query.numel() > 0 && keys > 0 && query.numel() / head < kMost &&
         keys < kMost && scale > 0 && std::isfinite(scale) &&
         takes_wgmma_mask(args.inputs[3], query.dtype) &&
         has_wgmma(device_limits(query.device.index));
}

std::size_t wgmma_workspace(const KernelArgs& args) {
  // Unaligned operands go to flash_mma.
  return std::max(key_tiles_bytes(make_call(args).params), key_bias_and_bits_workspace(args));
}

bool supports_mma(const KernelArgs& args) {
  const TensorView& query = args.inputs[0];
  return flash_mma_takes(query.dtype, query.size(-1), args.inputs[2].size(-1)) &&
         has_tensor_cores(device_limits(query.device.index));
}

std::size_t tf32x3_workspace(const KernelArgs& args) {
  return key_bias_and_bits_workspace(args) +
         pair_bias_workspace(args.inputs[3], args.inputs[0].size(-2), args.inputs[1].size(-2));
}

bool supports_tf32x3(const KernelArgs& args) {
  const TensorView& query = args.inputs[0];
  return flash_tf32x3_takes(query.dtype, query.size(-1), args.inputs[2].size(-1)) &&
         has_tf32x3(device_limits(query.device.index));
}

bool supports_simt(const KernelArgs& args) { return is_floating(args.inputs[0].dtype); }

bool accepts_mma(int operand, const TensorView& view) {
  return operand >= 3 || has_aligned_rows(view);
}

bool accepts_simt(int operand, const TensorView& view) {
  return operand >= 3 || has_dense_rows(view);
}

/// Calls that cuDNN does not get, with either long walks or enough short ones for every multiprocessor,
/// whose time flash_mma's smaller tiles would use better.
bool prefers_wgmma(const KernelArgs& args) {
  constexpr std::int64_t kRows = 128, kLong = 256;
  const TensorView& query = args.inputs[0];
  const std::int64_t length = query.size(-2), keys = args.inputs[1].size(-2);
  const bool is_planned = query.data == nullptr;
  const bool fits_cudnn = !args.inputs[3].present && query.rank() <= 4;
  if (fits_cudnn && cudnn_attention_preferred(length, keys, is_planned)) return false;
  if (std::min(length, keys) < kRows * 3 / 4) return false;
  const std::int64_t items = query.numel() / (length * query.size(-1)) * ceil_div(length, kRows);
  return std::min(length, keys) >= kLong ||
         items >= device_limits(query.device.index).multiprocessors;
}

}  // namespace

void set_layout(AttentionParams& params, const Extents& sizes, std::int64_t group,
                std::span<const OperandLayout> operands) {
  params.group = group;
  for (const OperandLayout& operand : operands) {
    operand.strides->column = stride_from_end(operand.view, 0);
    operand.strides->row = stride_from_end(operand.view, 1);
  }
  params.batches = 1;
  int& axes = params.batch_axes;
  axes = 0;
  const auto add_axis = [&](std::int64_t size, bool may_merge, const auto& step) {
    params.batches *= size;
    if (size == 1) return;
    const bool merges =
        may_merge && axes > 0 && std::ranges::all_of(operands, [&](const OperandLayout& o) {
          return o.strides->batch[axes - 1] == step(o) * size;
        });
    if (!merges) ++axes;
    for (const OperandLayout& operand : operands) operand.strides->batch[axes - 1] = step(operand);
    params.batch_sizes[axes - 1] = merges ? params.batch_sizes[axes - 1] * size : size;
  };
  for (int axis = 0; axis < sizes.size() - 2; ++axis) {
    const int from_end = sizes.size() - 1 - axis;
    const std::int64_t members = axis == sizes.size() - 3 ? group : 1;
    const auto has_members = [&](const TensorView* view) {
      return view != nullptr && from_end < view->rank() &&
             view->sizes[view->rank() - 1 - from_end] == sizes[axis];
    };
    add_axis(sizes[axis] / members, true, [&](const OperandLayout& operand) {
      return stride_from_end(operand.view, from_end) * (has_members(operand.view) ? members : 1);
    });
    add_axis(members, false, [&](const OperandLayout& operand) {
      return has_members(operand.view) ? stride_from_end(operand.view, from_end) : 0;
    });
  }
  params.key_batches = params.batches / group;
}

bool set_attributes(AttentionParams& params, const AttentionAttrs& attributes,
                    const TensorView& mask, const KernelArgs& args) {
  params.scale_log2 = attributes.scale.value() * std::numbers::log2e;
  params.is_causal = attributes.is_causal;
  if (mask.present) {
    params.mask = mask.data;
    params.mask_kind =
        mask.dtype == DType::boolean ? AttentionMask::boolean : AttentionMask::additive;
  }
  const cpu::DropoutPlan plan =
      cpu::plan_dropout(args.op->name, {attributes.dropout_p, attributes.mode, attributes.site},
                        args, params.batches * params.length, params.keys);
  params.has_dropout = plan.active;
  params.dropout_key = plan.key;
  params.keep_scale = plan.scale;
  // p rounds to 1, which the 16 bits that kernels compare with cannot express.
  if (plan.threshold > 0xffff) params.keep_scale = 0;
  params.dropout_threshold = std::min(plan.threshold, 0xffffU);
  return plan.active && params.keep_scale == 0;
}

void set_keep_bits(AttentionParams& params, const TensorView& keep_bits) {
  if (!params.has_dropout || !keep_bits.present || keep_bits.numel() == 0) return;
  params.keep_bits = static_cast<std::uint8_t*>(keep_bits.data);
  params.keep_bits_stride = keep_bits.size(-1);
}

std::size_t key_bias_and_bits_workspace(const KernelArgs& args) {
  const TensorView& query = args.inputs[0];
  std::int64_t batches = 1;
  for (int axis = 0; axis < query.rank() - 2; ++axis) batches *= query.sizes[axis];
  return key_bias_workspace(args.inputs[3], batches, args.inputs[1].size(-2)) +
         keep_bits_workspace(args);
}

std::size_t keep_bits_workspace(const KernelArgs& args) {
  if (args.outputs.size() > 1) return 0;
  const auto& attributes = args.attributes<AttentionAttrs>();
  const TensorView& query = args.inputs[0];
  std::int64_t rows = 1;
  for (int axis = 0; axis < query.rank() - 1; ++axis) rows *= query.sizes[axis];
  const std::int64_t keys = args.inputs[1].size(-2);
  const bool drops =
      cpu::plan_dropout(args.op->name, {attributes.dropout_p, attributes.mode, attributes.site},
                        args, rows, keys)
          .active;
  return drops ? static_cast<std::size_t>(rows * keep_bits_row(keys)) : 0;
}

void draw_keep_bits(AttentionParams& params, void* workspace, Stream stream) {
  if (!params.has_dropout || params.keys == 0) return;
  if (params.keep_bits == nullptr) {
    params.keep_bits = static_cast<std::uint8_t*>(workspace);
    params.keep_bits_stride = keep_bits_row(params.keys);
  }
  launch_draw_keep_bits(params, stream);
}

bool masks_keys(const TensorView& mask) { return mask.present && stride_from_end(&mask, 1) == 0; }

namespace {

/// Bytes of the biases alone.
std::int64_t key_bias_bytes(std::int64_t batches, std::int64_t keys) {
  return batches * ceil_div(keys, 128) * 128 * static_cast<std::int64_t>(sizeof(float));
}

}  // namespace

std::size_t key_bias_workspace(const TensorView& mask, std::int64_t batches, std::int64_t keys) {
  if (!masks_keys(mask)) return 0;
  return static_cast<std::size_t>(key_bias_bytes(batches, keys) + ceil_div(batches * 16, 256) * 256);
}

void draw_key_bias(AttentionParams& params, const TensorView& mask, DType dtype, void* workspace,
                   Stream stream) {
  if (!masks_keys(mask) || params.keys == 0 || params.keys > kMostBiasedKeys) return;
  params.key_bias = static_cast<const float*>(workspace);
  params.key_bias_stride = ceil_div(params.keys, 128) * 128;
  params.live_keys = reinterpret_cast<const std::int32_t*>(
      static_cast<const char*>(workspace) + key_bias_bytes(params.batches, params.keys));
  launch_key_bias(params, dtype, stream);
}

std::size_t pair_bias_workspace(const TensorView& mask, std::int64_t length, std::int64_t keys) {
  constexpr std::int64_t kMostBytes = std::int64_t{1} << 30;
  if (!mask.present || masks_keys(mask)) return 0;
  TensorView layout = mask;
  layout.data = nullptr;
  const bool lies_well = mask.dtype == DType::float32 && keys % 4 == 0 &&
                         mask.size(-1) == keys && has_aligned_rows(layout);
  if (lies_well) return 0;
  std::int64_t bytes = length * ceil_div(keys, 4) * 16;
  for (int axis = 0; axis < mask.rank() - 2; ++axis) {
    if (stride_from_end(&mask, mask.rank() - 1 - axis) != 0) bytes *= mask.sizes[axis];
  }
  return bytes <= kMostBytes ? static_cast<std::size_t>(bytes) : 0;
}

void draw_pair_bias(AttentionParams& params, const TensorView& mask, void* workspace,
                    Stream stream) {
  if (!mask.present || masks_keys(mask) || params.keys == 0) return;
  if (pair_bias_workspace(mask, params.length, params.keys) > 0) {
    params.pair_bias = static_cast<const float*>(workspace);
    params.pair_strides = {.batch = {}, .row = ceil_div(params.keys, 4) * 4, .column = 1};
    std::int64_t matrix = params.length * params.pair_strides.row;
    for (int axis = params.batch_axes - 1; axis >= 0; --axis) {
      if (params.mask_strides.batch[axis] == 0) continue;
      params.pair_strides.batch[axis] = matrix;
      matrix *= params.batch_sizes[axis];
    }
    launch_pair_bias(params, stream);
  } else if (mask.dtype == DType::float32 && params.keys % 4 == 0 && mask.size(-1) == params.keys &&
             has_aligned_rows(mask)) {
    params.pair_bias = static_cast<const float*>(params.mask);
    params.pair_strides = params.mask_strides;
  }
}

void fill_bytes(const TensorView& output, int byte, Stream stream) {
  if (output.numel() == 0) return;
  use_device(stream.device);
  // Strided outputs are dense: their elements fill one block of memory.
  TENON_CUDA_CHECK(cudaMemsetAsync(output.data, byte,
                                   static_cast<std::size_t>(output.numel()) * size_of(output.dtype),
                                   stream.handle));
}

bool has_dense_rows(const TensorView& view) {
  return view.rank() >= 1 && (view.size(-1) <= 1 || view.stride(-1) == 1);
}

bool has_aligned_start(const TensorView& view) {
  return reinterpret_cast<std::uintptr_t>(view.data) % 16 == 0;
}

bool has_aligned_rows(const TensorView& view) {
  if (!has_dense_rows(view) || !has_aligned_start(view)) return false;
  const auto elements = static_cast<std::int64_t>(16 / size_of(view.dtype));
  for (int axis = 0; axis < view.rank() - 1; ++axis) {
    if (view.sizes[axis] > 1 && view.strides[axis] % elements != 0) return false;
  }
  return true;
}

bool has_tensor_cores(const DeviceLimits& limits) { return limits.major >= 8; }

bool has_tf32x3(const DeviceLimits& limits) {
  return has_tensor_cores(limits) && limits.shared_of_block >= kTf32SharedBytes;
}

bool flash_mma_takes(DType dtype, std::int64_t head, std::int64_t head_v) {
  const auto fits = [](std::int64_t size) { return size > 0 && size <= 256 && size % 8 == 0; };
  return (dtype == DType::float16 || dtype == DType::bfloat16) && fits(head) && fits(head_v);
}

AttentionTiling choose_flash_mma_tiling(const AttentionParams& params, int multiprocessors) {
  AttentionTiling tiling;
  const std::int64_t head = std::max(params.head, params.head_v);
  tiling.head = head <= 64 ? 64 : head <= 128 ? 128 : 256;
  tiling.threads = 128;
  tiling.rows = 64;
  tiling.keys = tiling.head <= 128 ? 64 : 32;
  const bool large =
      params.length > 64 && params.batches * ceil_div(params.length, 128) >= multiprocessors;
  if (params.key_bias != nullptr && tiling.head <= 128) {
    if (large) tiling.rows = 128;
    tiling.variant = params.has_dropout ? AttentionVariant::keys_dropout : AttentionVariant::keys;
  } else if (has_plain_scores(params) && tiling.head <= 128) {
    if (large) tiling.rows = 128;
    if (!params.has_dropout) tiling.variant = AttentionVariant::plain;
    if (params.has_dropout && large) tiling.variant = AttentionVariant::dropout;
  }
  // 16-bit elements: the query tile, and two stages of a key tile, a value tile and, where the variant
  // may drop, a bit for each score.
  const bool may_drop =
      tiling.variant != AttentionVariant::plain && tiling.variant != AttentionVariant::keys;
  const int bits = may_drop ? tiling.rows * tiling.keys / 4 : 0;
  tiling.shared_bytes =
      std::int64_t{2} * tiling.head * (tiling.rows + 4 * tiling.keys) + bits + kAttentionBlockBytes;
  return tiling;
}

bool flash_tf32x3_takes(DType dtype, std::int64_t head, std::int64_t head_v) {
  const auto fits = [](std::int64_t size) { return size > 0 && size <= 128 && size % 4 == 0; };
  return dtype == DType::float32 && fits(head) && fits(head_v);
}

AttentionTiling choose_flash_tf32x3_tiling(const AttentionParams& params, int multiprocessors) {
  AttentionTiling tiling;
  tiling.head = std::max(params.head, params.head_v) <= 64 ? 64 : 128;
  tiling.threads = 128;
  tiling.rows = 64;
  tiling.keys = kTf32Keys;
  const bool large = tiling.head == 64 && params.length > 64 &&
                     params.batches * ceil_div(params.length, 128) >= multiprocessors;
  if (large) tiling.rows = 128;
  if (params.key_bias != nullptr) {
    tiling.variant = params.has_dropout ? AttentionVariant::keys_dropout : AttentionVariant::keys;
  } else if (has_plain_scores(params)) {
    if (!params.has_dropout) tiling.variant = AttentionVariant::plain;
    if (params.has_dropout && large) tiling.variant = AttentionVariant::dropout;
  }
  // Rows padded by 16 bytes: the query tile, and two stages of a key and a value tile and decisions.
  const bool may_drop = tiling.variant != AttentionVariant::plain;
  tiling.shared_bytes = (tiling.rows + 4 * tiling.keys) * (tiling.head + 4) * std::int64_t{4} +
                        (may_drop ? 2 * tiling.rows * tiling.keys / 8 : 0) + kAttentionBlockBytes;
  // And the masks of a step.
  if (tiling.variant == AttentionVariant::general) {
    tiling.shared_bytes += tiling.rows * (tiling.keys + 4) * std::int64_t{4};
  }
  return tiling;
}

AttentionTiling choose_flash_simt_tiling(DType dtype, std::int64_t head_v) {
  AttentionTiling tiling;
  const bool wide = dtype == DType::float64;
  tiling.rows = 64;
  tiling.keys = wide ? 32 : 64;
  tiling.head = wide || head_v <= 64 ? 64 : 128;
  tiling.threads = 128;
  const int depth = wide ? 32 : 64;
  const int pad = wide ? 2 : 4;
  // Query, keys, values and probabilities, rows padded by 16 bytes where they are read along.
  const std::int64_t elements = (tiling.rows + tiling.keys) * (depth + pad) +
                                tiling.keys * tiling.head + tiling.rows * (tiling.keys + pad);
  tiling.shared_bytes = elements * (wide ? 8 : 4) + kAttentionBlockBytes;
  return tiling;
}

std::string multiply_add_reason(DType dtype, std::int64_t head, std::int64_t head_v) {
  if (dtype == DType::float64) return "float64 has multiply-adds alone; float32 takes tensor cores";
  const bool is_float32 = dtype == DType::float32;
  const bool fits =
      is_float32 ? flash_tf32x3_takes(dtype, head, head_v) : flash_mma_takes(dtype, head, head_v);
  if (fits) return "this GPU lacks the tensor cores or the shared memory of the other kernels";
  return fmt::format("head sizes {} and {}; tensor cores take multiples of {} up to {}: pad them",
                     head, head_v, is_float32 ? 4 : 8, is_float32 ? 128 : 256);
}

void register_attention_kernels() {
  for (const char* op : {kOp, kLseOp}) {
    register_kernel(op, DeviceType::cuda,
                    {.name = "cuda.flash_mma",
                     .run = run_mma,
                     .supports = supports_mma,
                     .accepts = accepts_mma,
                     .strided_output = true,
                     .workspace_bytes = key_bias_and_bits_workspace});
    register_kernel(op, DeviceType::cuda,
                    {.name = "cuda.flash_tf32x3",
                     .run = run_tf32x3,
                     .supports = supports_tf32x3,
                     .accepts = accepts_mma,
                     .strided_output = true,
                     .workspace_bytes = tf32x3_workspace});
    register_kernel(op, DeviceType::cuda,
                    {.name = "cuda.flash_simt",
                     .run = run_simt,
                     .supports = supports_simt,
                     .accepts = accepts_simt,
                     .strided_output = true,
                     .slow_because = [](const KernelArgs& args) {
                       const TensorView& query = args.inputs[0];
                       return multiply_add_reason(query.dtype, query.size(-1),
                                                  args.inputs[2].size(-1));
                     }});
    register_kernel(op, DeviceType::cuda,
                    {.name = "cuda.flash_wgmma",
                     .run = run_wgmma,
                     .supports = supports_wgmma,
                     .accepts = accepts_wgmma,
                     .strided_output = true,
                     .workspace_bytes = wgmma_workspace,
                     .preferred = prefers_wgmma});
  }
}

}  // namespace tenon::cuda
