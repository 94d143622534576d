// Scaled dot-product attention on CUDA: from a call to a launch. Batch axes are merged where strides
// allow, tiles are chosen, and calls that tensor cores cannot take go to the multiply-add kernel.
#include "cuda/kernels/attention.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "cuda/check.h"
#include "cuda/kernels/register.h"
#include "tensor/cpu/dropout.h"
#include "tensor/op.h"
#include "tensor/ops/attributes.h"

namespace tenon::cuda {
namespace {

constexpr const char* kOp = "scaled_dot_product_attention";
constexpr int kOperands = 5;  // query, key, value, mask, output

const TensorView* mask_of(const KernelArgs& args) {
  return args.inputs.size() > 3 && args.inputs[3].present ? &args.inputs[3] : nullptr;
}

/// The stride along `axis`, counted from the last one; 0 where the operand is broadcast.
std::int64_t stride_from_end(const TensorView* view, int axis) {
  if (view == nullptr || axis >= view->rank()) return 0;
  const int index = view->rank() - 1 - axis;
  return view->sizes[index] == 1 ? 0 : view->strides[index];
}

/// Fills in strides, and the batch axes with neighbours merged where all operands allow it.
void set_layout(AttentionParams& params, const KernelArgs& args) {
  const TensorView& output = args.outputs[0];
  const TensorView* views[kOperands] = {&args.inputs[0], &args.inputs[1], &args.inputs[2],
                                        mask_of(args), &output};
  AttentionOperand* strides[kOperands] = {&params.query_strides, &params.key_strides,
                                          &params.value_strides, &params.mask_strides,
                                          &params.output_strides};
  for (int i = 0; i < kOperands; ++i) {
    strides[i]->column = stride_from_end(views[i], 0);
    strides[i]->row = stride_from_end(views[i], 1);
  }
  params.batches = 1;
  int& axes = params.batch_axes;
  for (int axis = 0; axis < output.rank() - 2; ++axis) {
    const std::int64_t size = output.sizes[axis];
    params.batches *= size;
    if (size == 1) continue;
    std::int64_t step[kOperands];
    bool merges = axes > 0;
    for (int i = 0; i < kOperands; ++i) {
      step[i] = stride_from_end(views[i], output.rank() - 1 - axis);
      merges = merges && strides[i]->batch[axes - 1] == step[i] * size;
    }
    if (!merges) ++axes;
    for (int i = 0; i < kOperands; ++i) strides[i]->batch[axes - 1] = step[i];
    params.batch_sizes[axes - 1] = merges ? params.batch_sizes[axes - 1] * size : size;
  }
}

/// Fills in the dropout; true when it drops everything, so that the output is zero.
bool set_dropout(AttentionParams& params, const AttentionAttrs& attributes,
                 const KernelArgs& args) {
  const cpu::DropoutPlan plan =
      cpu::plan_dropout(kOp, {attributes.dropout_p, attributes.mode, attributes.site}, args,
                        params.batches * params.length, params.keys);
  params.has_dropout = plan.active;
  params.dropout_key = plan.key;
  params.keep_scale = plan.scale;
  // p rounds to 1, which the 16 bits that kernels compare with cannot express.
  if (plan.threshold > 0xffff) params.keep_scale = 0;
  params.dropout_threshold = std::min(plan.threshold, 0xffffU);
  return plan.active && plan.scale == 0;
}

/// What a call comes down to. Nothing is launched for `zero`: an empty output, no keys to sum over,
/// or p == 1.
struct Call {
  AttentionParams params;
  bool zero = false;
};

Call make_call(const KernelArgs& args) {
  const auto& attributes = args.attributes<AttentionAttrs>();
  const TensorView& output = args.outputs[0];
  const TensorView* mask = mask_of(args);
  AttentionParams params{};
  params.query = args.inputs[0].data;
  params.key = args.inputs[1].data;
  params.value = args.inputs[2].data;
  params.output = output.data;
  params.length = output.size(-2);
  params.keys = args.inputs[1].size(-2);
  params.head = args.inputs[0].size(-1);
  params.head_v = output.size(-1);
  set_layout(params, args);
  params.scale_log2 = attributes.scale.value() * std::numbers::log2e;
  params.is_causal = attributes.is_causal;
  if (mask != nullptr) {
    params.mask = mask->data;
    params.mask_kind =
        mask->dtype == DType::boolean ? AttentionMask::boolean : AttentionMask::additive;
  }
  const bool dropped = set_dropout(params, attributes, args);
  return {params, dropped || params.keys == 0 || output.numel() == 0};
}

void write_zeros(const KernelArgs& args) {
  const TensorView& output = args.outputs[0];
  if (output.numel() == 0) return;
  const Stream stream = stream_of(args);
  use_device(stream.device);
  // Strided outputs are dense: their elements fill one block of memory.
  TENON_CUDA_CHECK(cudaMemsetAsync(output.data, 0,
                                   static_cast<std::size_t>(output.numel()) * size_of(output.dtype),
                                   stream.handle));
}

bool has_dense_rows(const TensorView& view) {
  return view.rank() >= 1 && (view.size(-1) <= 1 || view.stride(-1) == 1);
}

/// Every row starts at a multiple of 16 bytes; a null pointer counts as aligned.
bool has_aligned_rows(const TensorView& view) {
  if (!has_dense_rows(view) || reinterpret_cast<std::uintptr_t>(view.data) % 16 != 0) return false;
  for (int axis = 0; axis < view.rank() - 1; ++axis) {
    if (view.sizes[axis] > 1 && view.strides[axis] % 8 != 0) return false;
  }
  return true;
}

int device_attribute(cudaDeviceAttr attribute, int device) {
  int value = 0;
  TENON_CUDA_CHECK(cudaDeviceGetAttribute(&value, attribute, device));
  return value;
}

void run_simt(const KernelArgs& args) {
  const auto [params, zero] = make_call(args);
  if (zero) return write_zeros(args);
  const DType dtype = args.outputs[0].dtype;
  launch_flash_simt(params, dtype, choose_flash_simt_tiling(dtype, params.head_v), stream_of(args));
}

void run_mma(const KernelArgs& args) {
  // Kernels are selected before addresses are known.
  if (!std::ranges::all_of(args.inputs.first(3), has_aligned_rows)) return run_simt(args);
  const auto [params, zero] = make_call(args);
  if (zero) return write_zeros(args);
  const Stream stream = stream_of(args);
  const AttentionTiling tiling = choose_flash_mma_tiling(
      params, device_attribute(cudaDevAttrMultiProcessorCount, stream.device));
  launch_flash_mma(params, args.outputs[0].dtype, tiling, stream);
}

bool supports_mma(const KernelArgs& args) {
  const TensorView& query = args.inputs[0];
  return flash_mma_takes(query.dtype, query.size(-1), args.inputs[2].size(-1)) &&
         device_attribute(cudaDevAttrComputeCapabilityMajor, query.device.index) >= 8;
}

bool supports_simt(const KernelArgs& args) { return is_floating(args.inputs[0].dtype); }

bool accepts_mma(int operand, const TensorView& view) {
  return operand >= 3 || has_aligned_rows(view);
}

bool accepts_simt(int operand, const TensorView& view) {
  return operand >= 3 || has_dense_rows(view);
}

}  // namespace

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
  // The plain scores are compared before they are scaled, so the scale must keep their order.
  const float scale = static_cast<float>(params.scale_log2);
  const bool plain = params.mask_kind == AttentionMask::none && scale > 0 && std::isfinite(scale);
  if (plain && tiling.head <= 128) {
    const bool large =
        params.length > 64 && params.batches * ceil_div(params.length, 128) >= multiprocessors;
    if (large) tiling.rows = 128;
    if (!params.has_dropout) tiling.variant = AttentionVariant::plain;
    if (params.has_dropout && large) tiling.variant = AttentionVariant::dropout;
  }
  // 16-bit elements: the query tile, and two stages of a key and a value tile.
  tiling.shared_bytes =
      std::int64_t{2} * tiling.head * (tiling.rows + 4 * tiling.keys) + kAttentionBlockBytes;
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

void register_attention_kernels() {
  register_kernel(kOp, DeviceType::cuda,
                  {"cuda.flash_mma", run_mma, supports_mma, accepts_mma, true});
  register_kernel(kOp, DeviceType::cuda,
                  {"cuda.flash_simt", run_simt, supports_simt, accepts_simt, true});
}

}  // namespace tenon::cuda
