// The gradient of scaled dot-product attention on CUDA: what its kernels are given and their
// launchers. The op is defined in tensor/ops/scaled_dot_product_attention_backward.cpp.
//
// Probabilities are computed again from a log-sum-exp of each query's scores, as in FlashAttention-2;
// each gradient has a pass of its own, in which one block of threads sums all that reaches its rows
// in a fixed order: no atomics, the same bits in every run.
#pragma once

#include "cuda/device_limits.h"
#include "cuda/kernels/attention_launch.h"

namespace tenon::cuda {

/// A launch; `output`, `lse` and `keep_bits` of AttentionParams are the forward's, which are only read.
struct AttentionBackwardParams : AttentionParams {
  const void* grad;
  void* d_query;
  void* d_key;
  void* d_value;
  void* d_mask;  // null: not wanted
  AttentionOperand grad_strides;
  AttentionOperand d_query_strides;
  AttentionOperand d_key_strides;
  AttentionOperand d_value_strides;
  AttentionOperand d_mask_strides;  // 0 along axes that the mask is repeated on

  double scale;
  /// Two values of the compute type for each of batches x length queries, `batches · length` apart: what
  /// a score's power of two is divided by, as a logarithm, and Σ grad∘output; both with a factor of 1-p
  /// in the kernels for tensor cores.
  void* statistics;
  bool zero;  // nothing reaches the operands: their gradients are 0
};

/// Keys of a tile of scores in the gradient of a mask.
inline constexpr int kMaskTileKeys = 64;

/// How the gradient of a mask is summed on tensor cores; see attention_backward_mask.cuh.
struct MaskGradientPlan {
  int tile_rows;                        // 128, or 64 for heads above 64 and for float32
  int stages;                           // 2 where 128 rows and shared memory allow it, else 1
  std::int64_t mask_rows, mask_keys;    // 1 along an axis on which the mask is repeated
  std::int64_t matrices, sharing;       // of the mask, and batches that read each of them
  std::int64_t row_tiles, key_tiles;    // of the scores of a batch
  std::int64_t row_owners, key_owners;  // of a matrix of the mask
  std::int64_t steps;                   // tiles of scores that are added to one of the mask
  std::int64_t chunks, chunk_steps;     // in which each is summed: with more than one, in parts
};

/// Of params, sizes and d_mask_strides are read.
MaskGradientPlan plan_mask_gradient(const AttentionBackwardParams& params, DType dtype,
                                    const DeviceLimits& limits);

/// Whether backward_mma can take a call: 16-bit floats, head sizes multiples of 8 up to 128.
bool backward_mma_takes(DType dtype, std::int64_t head, std::int64_t head_v);
/// Whether backward_wgmma can: the same sizes, compute capability 9.0.
bool backward_wgmma_takes(DType dtype, std::int64_t head, std::int64_t head_v,
                          const DeviceLimits& limits);

/// Tensor cores: sizes that backward_mma_takes, no mask, lse given, and keep_bits where something
/// is dropped. Rows of grad, query, key, value and output, and keep_bits, are aligned to 16 bytes
/// unless `zero`. The launch for queries, dQ, comes first: it fills `statistics`.
void launch_backward_queries(const AttentionBackwardParams& params, DType dtype, Stream stream);
void launch_backward_keys(const AttentionBackwardParams& params, DType dtype, Stream stream);

/// Both launches by wgmma, not `zero`: compute capability 9.0, fewer than 2^31 queries and keys. A mask is
/// in key_bias, or as launch_pair_mask leaves it.
void launch_backward_wgmma(const AttentionBackwardParams& params, DType dtype, Stream stream);
/// The same for heads above 64, which are compiled apart; called by the one above.
void launch_backward_wgmma_wide(const AttentionBackwardParams& params, DType dtype, Stream stream);

/// Tensor cores at float32's accuracy: sizes that flash_tf32x3_takes, lse given, and keep_bits
/// where something is dropped; aligned as for launch_backward_queries, which comes first here too.
void launch_backward_tf32x3_queries(const AttentionBackwardParams& params, Stream stream);
void launch_backward_tf32x3_keys(const AttentionBackwardParams& params, Stream stream);

/// The gradient of an additive mask, not `zero`, after the launches above for the same dtype: `statistics`
/// are theirs. `parts` are floats for each element of the mask and chunk where there are several.
void launch_backward_mask_mma(const AttentionBackwardParams& params, DType dtype,
                              const MaskGradientPlan& plan, float* parts, Stream stream);
void launch_backward_mask_tf32x3(const AttentionBackwardParams& params,
                                 const MaskGradientPlan& plan, float* parts, Stream stream);

/// Multiply-adds: any floating dtype, rows of grad, query, key, value and output dense. All sizes
/// but those of the heads are > 0.
void launch_backward_simt(const AttentionBackwardParams& params, DType dtype, Stream stream);

/// Shared memory that a block of such launches asks for, in bytes; of params, the sizes of heads,
/// has_dropout and zero are read.
std::int64_t backward_queries_shared_bytes(const AttentionBackwardParams& params, DType dtype);
std::int64_t backward_keys_shared_bytes(const AttentionBackwardParams& params, DType dtype);
std::int64_t backward_tf32x3_queries_shared_bytes(const AttentionBackwardParams& params);
std::int64_t backward_tf32x3_keys_shared_bytes(const AttentionBackwardParams& params);
std::int64_t backward_mask_mma_shared_bytes(const MaskGradientPlan& plan);
std::int64_t backward_mask_tf32x3_shared_bytes(const AttentionBackwardParams& params);
std::int64_t backward_simt_shared_bytes(DType dtype);

}  // namespace tenon::cuda
