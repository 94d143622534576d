// FlashAttention-2 in float32 on tensor cores: softmax(Q·Kᵀ·scale + mask)·V, each product of floats by
// three of TF32 numbers (cuda/device/tf32x3.cuh). Compute capability 8.0; heads that are multiples of 4
// up to 128, zero-padded to the tile; rows of query, key and value aligned to 16 bytes. Dropout reads
// the decisions that were drawn before; keys that a mask of keys hides at either end are passed over.
//
// A block of 4 warps owns kRows query rows, each warp kRows/4 of them, and walks over tiles of kKeys
// keys. Keys, values and decisions go through two buffers in shared memory: the copy of the next tile
// runs while this one is computed. The parts of keys and values are found as they are read, which costs
// about as many instructions as the products: two 16-row fragments a warp halve that.
#include "cuda/kernels/attention_softmax.cuh"
#include "cuda/kernels/attention_tf32x3.cuh"
#include "cuda/launch.h"

namespace tenon::cuda {
namespace {

/// Compile-time facts of one kernel.
template <int kHead_, int kRowTiles_, AttentionVariant kVariant_>
struct Tf32Tile {
  static constexpr int kThreads = 128;
  static constexpr int kHead = kHead_;
  static constexpr int kRowTiles = kRowTiles_;
  static constexpr bool kKeyBias = kVariant_ == AttentionVariant::keys_dropout;
  static constexpr bool kPairMasks = kVariant_ == AttentionVariant::general;
  static constexpr bool kPlainScores =
      kVariant_ == AttentionVariant::plain || kVariant_ == AttentionVariant::dropout;
  static constexpr bool kMayDrop = kVariant_ != AttentionVariant::plain;
  static constexpr int kKeys = kTf32Keys;
  static constexpr int kColumnTiles = kKeys / 8;
  static constexpr int kWarpRows = 16 * kRowTiles;
  static constexpr int kRows = kThreads / 32 * kWarpRows;
};

/// Offsets in shared memory, in bytes: the query tile, then two stages of keys, values and a word of
/// decisions for each query, then masks of one step, then the block.
template <class Tile>
struct SharedLayout {
  static constexpr int kStages = tile_bytes<Tile>(Tile::kRows);
  static constexpr int kValues = tile_bytes<Tile>(Tile::kKeys);
  static constexpr int kBits = 2 * kValues;
  static constexpr int kStageBytes = kBits + (Tile::kMayDrop ? Tile::kRows * 4 : 0);
  static constexpr int kPairs = kStages + 2 * kStageBytes;
  static constexpr int kPairBytes = kPairStride<Tile::kKeys> * 4;  // of a query
  static constexpr int kBlock = kPairs + (Tile::kPairMasks ? Tile::kRows * kPairBytes : 0);
  static constexpr int kBytes = kBlock + static_cast<int>(kAttentionBlockBytes);
  static __device__ int stage(int tile) { return kStages + tile % 2 * kStageBytes; }
};
static_assert(kTf32Keys == 32, "a word of decisions");

/// Starts copying tile number `tile` of the keys, values and decisions; `shared` is the block's memory.
template <class Tile>
__device__ __forceinline__ void copy_keys(const AttentionParams& params,
                                          const AttentionBlock<float>& block, std::uint32_t shared,
                                          int tile) {
  using SharedLayout = SharedLayout<Tile>;
  const std::uint32_t stage = shared + SharedLayout::stage(tile);
  const std::int64_t key = std::int64_t{tile} * Tile::kKeys;
  const std::int64_t rows = params.keys - key;
  copy_tile<Tile, Tile::kKeys>(stage, block.key + key * params.key_strides.row,
                               params.key_strides.row, rows, params.head);
  copy_tile<Tile, Tile::kKeys>(stage + SharedLayout::kValues,
                               block.value + key * params.value_strides.row,
                               params.value_strides.row, rows, params.head_v);
  const int row = static_cast<int>(threadIdx.x);
  if (!Tile::kMayDrop || !params.has_dropout || row >= Tile::kRows) return;
  const std::int64_t query = block.row_block * Tile::kRows + row;
  copy_async<4>(
      stage + SharedLayout::kBits + row * 4,
      params.keep_bits + (block.batch * params.length + query) * params.keep_bits_stride + key / 8,
      query < params.length && rows > 0);
}

/// Zeroes the dropped probabilities; `bits` are the decisions of the warp's rows.
template <class Tile>
__device__ __forceinline__ void drop(Scores<Tile>& p, const std::uint32_t* bits, int lane) {
#pragma unroll
  for (int i = 0; i < Tile::kRowTiles; ++i) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const std::uint32_t keep = bits[16 * i + 8 * h + (lane >> 2)] >> (2 * (lane & 3));
#pragma unroll
      for (int j = 0; j < Tile::kColumnTiles; ++j) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          if ((keep & (1U << (8 * j + c))) == 0) p[i][j][2 * h + c] = 0;
        }
      }
    }
  }
}

/// Starts copying the warp's masks of the keys from `key0` on: what it had is read no more.
template <class Tile>
__device__ __forceinline__ void copy_next_pairs(const AttentionParams& params, const Tf32Mask& mask,
                                                std::uint32_t shared, int warp_row,
                                                std::int64_t row0, std::int64_t key0, int lane) {
  using SharedLayout = SharedLayout<Tile>;
  if (Tile::kPlainScores || Tile::kKeyBias || mask.pairs == nullptr) return;
  __syncwarp();
  copy_pairs<Tile::kWarpRows, Tile::kKeys>(
      params, shared + SharedLayout::kPairs + warp_row * SharedLayout::kPairBytes, mask.pairs, row0,
      key0, lane);
  copy_async_commit();
}

/// Tile number `tile` of the keys, for one warp.
template <class Tile>
__device__ __forceinline__ void attend(const AttentionParams& params,
                                       const AttentionBlock<float>& block,
                                       const Tf32Mask& mask,
                                       OnlineSoftmax<Tile::kRowTiles>& softmax, Sums<Tile>& output,
                                       const unsigned char* shared, int warp_row, int tile,
                                       int lane) {
  using SharedLayout = SharedLayout<Tile>;
  const int stage = SharedLayout::stage(tile);
  const std::int64_t key0 = std::int64_t{tile} * Tile::kKeys;
  const std::int64_t row0 = block.row_block * Tile::kRows + warp_row;
  // Rows past the end, and keys after all of the warp's rows, contribute nothing.
  if (row0 >= params.length || (params.is_causal && key0 >= row0 + Tile::kWarpRows)) return;
  const std::uint32_t address = shared_address(shared);
  Scores<Tile> score;
  multiply_rows<Tile>(score, address + tile_bytes<Tile>(warp_row), address + stage, lane);
  if constexpr (!Tile::kPlainScores) {
    if (params.mask_kind == AttentionMask::none) {
      add_mask<Tile>(params, score, lane, [](int, int) { return make_float2(0, 0); });
    } else {
      const int pairs = SharedLayout::kPairs + warp_row * SharedLayout::kPairBytes;
      mask_query_scores<Tile>(params, mask, score,
                              reinterpret_cast<const float*>(shared + pairs), row0, key0, lane);
      copy_next_pairs<Tile>(params, mask, address, warp_row, row0, key0 + Tile::kKeys, lane);
    }
  }
  hide_scores<float, true>(params, nullptr, score, row0, key0, lane);
  const float scale = Tile::kPlainScores ? static_cast<float>(params.scale_log2) : 1.0F;
  raise_maxima(softmax, score, scale, output);
  exponentiate(softmax, score, scale);
  if (Tile::kMayDrop && params.has_dropout) {
    drop<Tile>(
        score,
        reinterpret_cast<const std::uint32_t*>(shared + stage + SharedLayout::kBits) + warp_row,
        lane);
  }
  add_weighted_rows<Tile>(
      output, score, reinterpret_cast<const float*>(shared + stage + SharedLayout::kValues), lane);
}

/// Normalizes and writes the warp's rows and their log-sum-exp.
template <class Tile>
__device__ __forceinline__ void write_output(const AttentionParams& params,
                                             const AttentionBlock<float>& block,
                                             const OnlineSoftmax<Tile::kRowTiles>& softmax,
                                             const Sums<Tile>& output, int warp_row, int lane) {
  const std::int64_t row0 = block.row_block * Tile::kRows + warp_row;
  float factor[Tile::kRowTiles][2];
  finish_softmax(params, softmax, block.batch, row0, lane, factor);
  const AttentionOperand& strides = params.output_strides;
  write_rows<Tile>({block.output + row0 * strides.row, strides.row, strides.column,
                    params.length - row0, params.head_v},
                   output, factor, lane);
}

template <class Tile>
__global__ __launch_bounds__(Tile::kThreads, 2) void flash_tf32x3_kernel(
    const __grid_constant__ AttentionParams params) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  using SharedLayout = SharedLayout<Tile>;
  extern __shared__ __align__(16) unsigned char shared[];
  if (block_index() >= params.batches * params.row_blocks) return;
  auto& block = *reinterpret_cast<AttentionBlock<float>*>(shared + SharedLayout::kBlock);
  if (threadIdx.x == 0) block = locate_block<float>(params, block_index());
  __syncthreads();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp_row = static_cast<int>(threadIdx.x) / 32 * Tile::kWarpRows;
  const std::int64_t block_row = block.row_block * Tile::kRows;
  const std::uint32_t address = shared_address(shared);

  copy_tile<Tile, Tile::kRows>(address, block.query + block_row * params.query_strides.row,
                               params.query_strides.row, params.length - block_row, params.head);
  std::int64_t key_end = visible_keys(params, block_row + Tile::kRows);
  int first = 0;
  if constexpr (Tile::kKeyBias) {
    const LiveKeys live = live_keys(params, block.batch);
    key_end = min(key_end, live.end);
    first = static_cast<int>(live.first / Tile::kKeys);
  }
  const auto tiles = static_cast<int>((key_end + Tile::kKeys - 1) / Tile::kKeys);
  if (first < tiles) copy_keys<Tile>(params, block, address, first);
  copy_async_commit();
  Tf32Mask mask;
  if constexpr (!Tile::kPlainScores) {
    mask = find_mask(params, block.batch);
    copy_next_pairs<Tile>(params, mask, address, warp_row, block_row + warp_row, 0, lane);
  }

  OnlineSoftmax<Tile::kRowTiles> softmax{};
  Sums<Tile> output{};
#pragma unroll
  for (int i = 0; i < Tile::kRowTiles; ++i) softmax.top[i][0] = softmax.top[i][1] = -INFINITY;

  for (int tile = first; tile < tiles; ++tile) {
    copy_async_wait<0>();
    __syncthreads();  // this tile has come, and no warp reads the other stage any more
    if (tile + 1 < tiles) {
      copy_keys<Tile>(params, block, address, tile + 1);
      copy_async_commit();
    }
    attend<Tile>(params, block, mask, softmax, output, shared, warp_row, tile, lane);
  }
  write_output<Tile>(params, block, softmax, output, warp_row, lane);
#endif
}

template <class Tile>
void launch_tile(const AttentionParams& params, Stream stream) {
  AttentionParams launched = params;
  launched.row_blocks = ceil_div(params.length, Tile::kRows);
  launch(stream, "flash_tf32x3", flash_tf32x3_kernel<Tile>, params.batches * launched.row_blocks,
         Tile::kThreads, SharedLayout<Tile>::kBytes, launched);
}

/// Calls f with the Tf32Tile of a tiling.
template <class F>
void dispatch_tile(const AttentionTiling& tiling, const F& f) {
  using enum AttentionVariant;
  const auto pick = [&]<int kHead, int kRowTiles> {
    switch (tiling.variant) {
      case plain: return f.template operator()<Tf32Tile<kHead, kRowTiles, plain>>();
      case keys:
      case keys_dropout: return f.template operator()<Tf32Tile<kHead, kRowTiles, keys_dropout>>();
      case dropout:
        return f.template operator()<Tf32Tile<kHead, kRowTiles, kRowTiles == 2 ? dropout : general>>();
      case general: return f.template operator()<Tf32Tile<kHead, kRowTiles, general>>();
    }
  };
  if (tiling.head == 128) return pick.template operator()<128, 1>();
  tiling.rows == 64 ? pick.template operator()<64, 1>() : pick.template operator()<64, 2>();
}

}  // namespace

void launch_flash_tf32x3(const AttentionParams& params, const AttentionTiling& tiling,
                         Stream stream) {
  dispatch_tile(tiling, [&]<class Tile>() { launch_tile<Tile>(params, stream); });
}

std::int64_t flash_tf32x3_shared_bytes(const AttentionTiling& tiling) {
  std::int64_t bytes = 0;
  dispatch_tile(tiling, [&]<class Tile>() { bytes = SharedLayout<Tile>::kBytes; });
  return bytes;
}

}  // namespace tenon::cuda
