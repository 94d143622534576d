// Scaled dot-product attention on CUDA: what its kernels are given, and their launchers. This is all
// that kernel sources see of it: headers that know ops and tensors take seconds to parse.
//
// The kernels work like FlashAttention-2 (T. Dao, "FlashAttention-2: Faster Attention with Better
// Parallelism and Work Partitioning", 2023): a block of threads holds a tile of query rows, walks
// over tiles of keys with an online softmax, and never writes a score to device memory.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/launch.h"
#include "tensor/dtype.h"
#include "tensor/philox.h"

namespace tenon::cuda {

/// One more than operands have: heads that share keys are an axis of their own.
inline constexpr int kMaxAttentionBatchAxes = 7;
/// Shared memory in which a block of threads keeps what it computes.
inline constexpr std::int64_t kAttentionBlockBytes = 64;

/// Keys of one step of flash_tf32x3.
inline constexpr int kTf32Keys = 32;

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
  /// Batches that share keys and values, which follow each other. Where it is not 1, they are the last
  /// batch axis, along which the strides of key and value are 0.
  std::int64_t group;
  std::int64_t key_batches;  // batches / group
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

  /// A mask that is the same for all queries, as tensor core kernels read it, in the workspace: what it
  /// adds to scores in units of log2, (batches, key_bias_stride), -inf past the keys; and (batches, 4):
  /// where the keys [first, end) lie outside of which it hides all, and up to which key from first on it
  /// adds 0. Null: none, or `mask` differs by query.
  const float* key_bias;
  std::int64_t key_bias_stride;  // a multiple of 128
  const std::int32_t* live_keys;

  // What the gradient reads, row-major; null where not wanted.
  void* lse;                      // (batches, length) of the compute type, natural logarithm
  std::uint8_t* keep_bits;        // (batches, length, keep_bits_stride): a bit for each key
  std::int64_t keep_bits_stride;  // bytes, a multiple of 16

  /// A mask that differs by query, as the tf32x3 kernels copy it: floats, -inf where bools hide; rows
  /// dense, aligned to 16 bytes. Null: they read `mask` element by element.
  const float* pair_bias;
  AttentionOperand pair_strides;

  std::int64_t row_blocks;  // tiles of query rows; set by the launchers
};

/// Which of a kernel's compiled forms runs.
enum class AttentionVariant : std::uint8_t {
  plain,         ///< no mask, no dropout, scale > 0
  dropout,       ///< plain with dropout
  keys,          ///< key_bias, no dropout
  keys_dropout,  ///< key_bias with dropout
  general,       ///< any mask, any scale, with or without dropout
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

/// Fills in key_bias and live_keys from a mask of the same dtype, or of bools. A key is hidden for certain
/// where the mask lies 2^96 below the batch's largest: no score that is a number of use makes up for that.
void launch_key_bias(const AttentionParams& params, DType dtype, Stream stream);
/// Writes pair_bias, which is pair_bias_bytes long, from any mask of float32 or bools.
void launch_pair_bias(const AttentionParams& params, Stream stream);
/// Writes a mask of (queries, keys) to `workspace`, of pair_mask_bytes: additive, of a 16-bit dtype, rows
/// dense and aligned to 16 bytes; params then has that one.
void launch_pair_mask(AttentionParams& params, DType dtype, void* workspace, Stream stream);
std::size_t pair_mask_bytes(const AttentionParams& params);
/// Draws params.keep_bits, which is aligned to 16 bytes; those that causality hides are left as
/// they are.
void launch_draw_keep_bits(const AttentionParams& params, Stream stream);
/// Tensor cores: 16-bit floats that flash_mma_takes, rows aligned to 16 bytes. All sizes but `keys` are
/// > 0, keep_bits are drawn, and `tiling` comes from choose_flash_mma_tiling.
void launch_flash_mma(const AttentionParams& params, DType dtype, const AttentionTiling& tiling,
                      Stream stream);
/// wgmma: 16-bit floats, head sizes multiples of 8 up to 128, at most kWgmmaBatchAxes batch axes, strides
/// that are multiples of 8 and, but for those of batches, > 0. All sizes are > 0, the scale is positive,
/// no dropout. A mask has row stride 0, or is what a tensor map can describe, of bools
/// or the same dtype. The workspace has key_tiles_bytes.
void launch_flash_wgmma(const AttentionParams& params, DType dtype, void* workspace, Stream stream);
inline constexpr int kWgmmaBatchAxes = 3;
/// Keys of one step of flash_wgmma.
inline constexpr int kWgmmaKeys = 128;

/// A mask of keys, row stride 0, as flash_wgmma reads it, for each of its own batches.
struct KeyTiles {
  /// (masks, tiles, kWgmmaKeys): what is added in units of log2, or for masks of bools what scores are at
  /// most. -inf past the keys.
  float* values;
  /// (masks, list_size): how many tiles show a key, and the first key of each; plus 1 where the tile is
  /// as without a mask. 16-byte loads read them.
  int* lists;
  std::int64_t batch_steps[kWgmmaBatchAxes];  // of a mask's number, along the batch axes
  int tiles;
  int list_size;  // 1 + tiles, rounded up to a multiple of 4
};
/// Fills them in. Tiles without a live key are left out; live_keys says which those are, and with
/// causality only -inf hides for certain.
KeyTiles launch_key_tiles(const AttentionParams& params, DType dtype, void* workspace,
                          Stream stream);
/// Memory for that; 0 without a mask of keys.
std::size_t key_tiles_bytes(const AttentionParams& params);
/// Tensor cores at float32's accuracy: sizes that flash_tf32x3_takes, otherwise as
/// launch_flash_mma; `tiling` comes from choose_flash_tf32x3_tiling.
void launch_flash_tf32x3(const AttentionParams& params, const AttentionTiling& tiling,
                         Stream stream);
/// Multiply-adds: any floating dtype. Sizes are > 0, the query's head may be 0.
void launch_flash_simt(const AttentionParams& params, DType dtype, const AttentionTiling& tiling,
                       Stream stream);

/// Shared memory that a block of such launches asks for, in bytes.
std::int64_t flash_mma_shared_bytes(const AttentionTiling& tiling);
std::int64_t flash_tf32x3_shared_bytes(const AttentionTiling& tiling);
std::int64_t flash_simt_shared_bytes(DType dtype, const AttentionTiling& tiling);

}  // namespace tenon::cuda
