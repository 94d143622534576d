// Scaled dot-product attention on CUDA: from a call to what its kernels are given, and which of them
// runs, in which tiles. The op is defined in tensor/ops/scaled_dot_product_attention.cpp.
#pragma once

#include <cstdint>

#include <span>
#include <string>

#include "cuda/device_limits.h"
#include "cuda/kernels/attention_launch.h"
#include "tensor/op.h"
#include "tensor/ops/attributes.h"

namespace tenon::cuda {

static_assert(kMaxAttentionBatchAxes == kMaxRank - 2 + 1);

/// An operand of a call (null: absent), and where its strides go.
struct OperandLayout {
  const TensorView* view;
  AttentionOperand* strides;
};
/// Fills in the operands' strides along `sizes`, and the batch axes with neighbours merged where all
/// operands allow it. An operand of smaller size or rank is repeated: its stride is 0; one with `group`
/// times fewer heads repeats each for its group.
void set_layout(AttentionParams& params, const Extents& sizes, std::int64_t group,
                std::span<const OperandLayout> operands);
/// Fills in scale, causality and mask, and the dropout; true when that drops everything.
bool set_attributes(AttentionParams& params, const AttentionAttrs& attributes,
                    const TensorView& mask, const KernelArgs& args);
/// Where the kernels keep, or find, the decisions of an active dropout; without one they are unused.
void set_keep_bits(AttentionParams& params, const TensorView& keep_bits);
/// Scratch memory for the decisions of a call that does not return them: a Kernel::workspace_bytes.
std::size_t keep_bits_workspace(const KernelArgs& args);
/// The same and, before it, key_bias_workspace.
std::size_t key_bias_and_bits_workspace(const KernelArgs& args);
/// Draws the decisions of an active dropout where the call returns them, or else in `workspace`, and
/// points params.keep_bits there: kernels for tensor cores only read them.
void draw_keep_bits(AttentionParams& params, void* workspace, Stream stream);
/// Calls with more keys have no key_bias.
inline constexpr std::int64_t kMostBiasedKeys = 1 << 24;
/// Whether a mask is the same for all queries.
bool masks_keys(const TensorView& mask);
/// Memory for key_bias and live_keys, a multiple of 256 bytes; 0 unless masks_keys.
std::size_t key_bias_workspace(const TensorView& mask, std::int64_t batches, std::int64_t keys);
/// Memory for pair_bias; 0 where a mask of (queries, keys) is read where it lies: floats in aligned rows,
/// or more than copies are worth.
std::size_t pair_bias_workspace(const TensorView& mask, std::int64_t length, std::int64_t keys);
/// Points pair_bias to such a mask, or fills it in in `workspace`, unless masks_keys; `mask` is a view of
/// params.mask.
void draw_pair_bias(AttentionParams& params, const TensorView& mask, void* workspace,
                    Stream stream);
/// Fills in key_bias and live_keys, in `workspace`, where masks_keys.
void draw_key_bias(AttentionParams& params, const TensorView& mask, DType dtype, void* workspace,
                   Stream stream);
/// Sets every byte of a dense tensor.
void fill_bytes(const TensorView& output, int byte, Stream stream);
/// The elements of the last axis are neighbours.
bool has_dense_rows(const TensorView& view);
/// The first element is at a multiple of 16 bytes. Before addresses are known it counts as such,
/// and what is absent too.
bool has_aligned_start(const TensorView& view);
/// has_dense_rows, and every row starts at a multiple of 16 bytes.
bool has_aligned_rows(const TensorView& view);

/// Shared memory, in bytes, that a block of any tf32x3 kernel has enough of.
inline constexpr int kTf32SharedBytes = 151 << 10;

/// Why attention of these sizes is computed by multiply-adds, and what would help.
std::string multiply_add_reason(DType dtype, std::int64_t head, std::int64_t head_v);
/// Whether a GPU has the tensor cores that the mma kernels use: compute capability 8.0.
bool has_tensor_cores(const DeviceLimits& limits);
/// Whether it has them, and the shared memory that the largest tf32x3 tiles take: compute capability
/// 8.0, 9.0 or 10.0.
bool has_tf32x3(const DeviceLimits& limits);
/// Whether flash_mma can take these sizes: 16-bit floats, head sizes multiples of 8 up to 256.
bool flash_mma_takes(DType dtype, std::int64_t head, std::int64_t head_v);
/// Tiles of flash_mma: 128 rows, or 64 where 128 would leave multiprocessors idle, for masks, and
/// for heads above 128.
AttentionTiling choose_flash_mma_tiling(const AttentionParams& params, int multiprocessors);
/// Whether flash_tf32x3 can take these sizes: float32, head sizes multiples of 4 up to 128.
bool flash_tf32x3_takes(DType dtype, std::int64_t head, std::int64_t head_v);
/// Tiles of flash_tf32x3: 128 rows, or 64 where 128 would leave multiprocessors idle, and for heads
/// above 64.
AttentionTiling choose_flash_tf32x3_tiling(const AttentionParams& params, int multiprocessors);
/// Tiles of flash_simt; `head` is the slice of the value's head that one block computes.
AttentionTiling choose_flash_simt_tiling(DType dtype, std::int64_t head_v);

}  // namespace tenon::cuda
