// Scaled dot-product attention on CUDA: what its kernels are given, which tiles they use, and their
// launchers. The op is defined in tensor/ops/scaled_dot_product_attention.cpp.
//
// Both kernels work like FlashAttention-2 (T. Dao, "FlashAttention-2: Faster Attention with Better
// Parallelism and Work Partitioning", 2023): a block of threads holds a tile of query rows, walks
// over tiles of keys with an online softmax, and never writes a score to device memory.
#pragma once

#include <cstdint>

#include <span>

#include "cuda/launch.h"
#include "tensor/op.h"
#include "tensor/ops/attributes.h"
#include "tensor/philox.h"

namespace tenon::cuda {

inline constexpr int kMaxAttentionBatchAxes = kMaxRank - 2;
/// Shared memory in which a block of threads keeps what it computes.
inline constexpr std::int64_t kAttentionBlockBytes = 64;

enum class AttentionMask : std::uint8_t { none, boolean, additive };

/// One operand: strides in elements; the last axis of query, key and value has stride 1.
struct AttentionOperand {
  std::int64_t batch[kMaxAttentionBatchAxes];
  std::int64_t row;
  std::int64_t column;
};

/// A launch. Sizes are (batches…, length, head), (…, keys, head), (…, keys, head_v).
struct AttentionParams {
  const void* query;
  const void* key;
  const void* value;
  const void* mask;
  void* output;
  AttentionOperand query_strides;
  AttentionOperand key_strides;
  AttentionOperand value_strides;
  AttentionOperand mask_strides;
  AttentionOperand output_strides;

  int batch_axes;
  std::int64_t batch_sizes[kMaxAttentionBatchAxes];
  std::int64_t batches;
  std::int64_t length;
  std::int64_t keys;
  std::int64_t head;
  std::int64_t head_v;

  double scale_log2;  // scale · log2(e): probabilities are powers of two
  bool is_causal;
  AttentionMask mask_kind;
  bool has_dropout;
  DropoutKey dropout_key;
  std::uint32_t dropout_threshold;
  double keep_scale;  // 1/(1-p); 0 when everything is dropped

  // What the gradient reads, row-major; null where not wanted.
  void* lse;                      // (batches, length) of the compute type, natural logarithm
  std::uint8_t* keep_bits;        // (batches, length, keep_bits_stride): a bit for each key
  std::int64_t keep_bits_stride;  // bytes, a multiple of 16

  std::int64_t row_blocks;  // tiles of query rows; set by the launchers
};

/// Which of a kernel's compiled forms runs.
enum class AttentionVariant : std::uint8_t {
  plain,    ///< no mask, no dropout, scale > 0
  dropout,  ///< plain with dropout
  general,  ///< any mask, any scale, with or without dropout
};

/// The tiles of one launch.
struct AttentionTiling {
  AttentionVariant variant = AttentionVariant::general;
  int rows = 0;  // query rows of a block
  int keys = 0;  // keys of one step
  int head = 0;  // head sizes, zero-padded up to this
  int threads = 0;
  std::int64_t shared_bytes = 0;
};

/// An operand of a call (null: absent), and where its strides go.
struct OperandLayout {
  const TensorView* view;
  AttentionOperand* strides;
};
/// Fills in the operands' strides along `sizes`, and the batch axes with neighbours merged where all
/// operands allow it. An operand of smaller size or rank is repeated: its stride is 0.
void set_layout(AttentionParams& params, const Extents& sizes,
                std::span<const OperandLayout> operands);
/// Fills in scale, causality and mask, and the dropout; true when that drops everything.
bool set_attributes(AttentionParams& params, const AttentionAttrs& attributes,
                    const TensorView& mask, const KernelArgs& args);
/// Where the kernels keep, or find, the decisions of an active dropout; without one they are unused.
void set_keep_bits(AttentionParams& params, const TensorView& keep_bits);
/// Scratch memory for the decisions of a call that does not return them: a Kernel::workspace_bytes.
std::size_t keep_bits_workspace(const KernelArgs& args);
/// Draws the decisions of an active dropout where the call returns them, or else in `workspace`, and
/// points params.keep_bits there: kernels for tensor cores only read them.
void draw_keep_bits(AttentionParams& params, void* workspace, Stream stream);
/// Sets every byte of a dense tensor.
void fill_bytes(const TensorView& output, int byte, Stream stream);
/// The elements of the last axis are neighbours.
bool has_dense_rows(const TensorView& view);
/// has_dense_rows, and every row starts at a multiple of 16 bytes.
bool has_aligned_rows(const TensorView& view);

/// Keys of one step of flash_tf32x3.
inline constexpr int kTf32Keys = 32;
/// Shared memory that a block of any tf32x3 kernel has enough of.
inline constexpr int kTf32SharedBytes = 140 << 10;

/// Whether a device has the tensor cores that the mma kernels use: compute capability 8.0.
bool has_tensor_cores(int device);
/// Whether it has them, and the shared memory that the largest tf32x3 tiles take: compute capability
/// 8.0, 9.0 or 10.0.
bool has_tf32x3(int device);
/// Whether flash_mma can take these sizes: 16-bit floats, head sizes multiples of 8 up to 256.
bool flash_mma_takes(DType dtype, std::int64_t head, std::int64_t head_v);
/// Tiles of flash_mma: 128 rows, or 64 where 128 would leave multiprocessors idle, for masks, and
/// for heads above 128.
AttentionTiling choose_flash_mma_tiling(const AttentionParams& params, int multiprocessors);
/// Whether flash_tf32x3 can take these sizes: float32, head sizes multiples of 4 up to 128.
bool flash_tf32x3_takes(DType dtype, std::int64_t head, std::int64_t head_v);
/// Tiles of flash_tf32x3: 128 rows, or 64 where 128 would leave multiprocessors idle, for masks, and
/// for heads above 64.
AttentionTiling choose_flash_tf32x3_tiling(const AttentionParams& params, int multiprocessors);
/// Tiles of flash_simt; `head` is the slice of the value's head that one block computes.
AttentionTiling choose_flash_simt_tiling(DType dtype, std::int64_t head_v);

/// Draws params.keep_bits, which is not null; those that causality hides are left as they are.
void launch_draw_keep_bits(const AttentionParams& params, Stream stream);
/// Tensor cores: 16-bit floats that flash_mma_takes, rows aligned to 16 bytes. All sizes but `keys` are
/// > 0, keep_bits are drawn, and `tiling` comes from choose_flash_mma_tiling.
void launch_flash_mma(const AttentionParams& params, DType dtype, const AttentionTiling& tiling,
                      Stream stream);
/// Tensor cores at float32's accuracy: sizes that flash_tf32x3_takes, otherwise as
/// launch_flash_mma; `tiling` comes from choose_flash_tf32x3_tiling.
void launch_flash_tf32x3(const AttentionParams& params, const AttentionTiling& tiling,
                         Stream stream);
/// Multiply-adds: any floating dtype. Sizes are > 0, the query's head may be 0.
void launch_flash_simt(const AttentionParams& params, DType dtype, const AttentionTiling& tiling,
                       Stream stream);

}  // namespace tenon::cuda
