// FlashAttention-2 with mma.sync: softmax(Q·Kᵀ·scale + mask)·V for float16 and bfloat16, accumulated
// in float32. Compute capability 8.0; heads that are multiples of 8 up to 256, zero-padded to the
// tile; rows of query, key and value aligned to 16 bytes.
//
// A block of 4 warps owns kRows query rows, each warp kRows/4 of them, and walks over tiles of kKeys
// keys. Keys and values go through two buffers in shared memory: the copy of the next tile runs while
// this one is computed. Scores stay in registers: as C fragments of Q·Kᵀ they are, rounded, the A
// fragments of P·V. Two 16-row fragments a warp halve the shared memory traffic of keys and values.
#include "cuda/device/memory.cuh"
#include "cuda/kernels/attention_mma.cuh"
#include "cuda/kernels/attention_softmax.cuh"
#include "cuda/launch.h"

namespace tenon::cuda {
namespace {

constexpr int kMmaThreads = 128;
constexpr int kMmaWarps = kMmaThreads / 32;

/// Compile-time facts of one kernel.
template <class T_, int kHead_, int kRows_, int kKeys_, AttentionVariant kVariant_>
struct MmaTile {
  using T = T_;
  static constexpr int kThreads = kMmaThreads;
  static constexpr int kHead = kHead_;
  static constexpr int kRows = kRows_;
  static constexpr int kKeys = kKeys_;
  static constexpr bool kPlainScores = kVariant_ != AttentionVariant::general;
  static constexpr bool kKeyBias =
      kVariant_ == AttentionVariant::keys || kVariant_ == AttentionVariant::keys_dropout;
  static constexpr bool kMayDrop =
      kVariant_ != AttentionVariant::plain && kVariant_ != AttentionVariant::keys;
  static constexpr int kWarpRows = kRows / kMmaWarps;
  static constexpr int kRowTiles = kWarpRows / 16;  // fragments of a warp along the rows
  static constexpr int kColumnTiles = kKeys / 8;    // C fragments of the scores along the keys
  static constexpr bool kQueryInRegisters = kHead <= 64;
  static constexpr int kQueryBytes = kRows * kHead * 2;
  static constexpr int kKeyBytes = kKeys * kHead * 2;
  static constexpr int kStageBytes = 2 * kKeyBytes;  // keys, then values
  static constexpr int kTileBytes = kQueryBytes + 2 * kStageBytes;
  static constexpr int kBitBytes = kMayDrop ? kRows * kKeys / 8 : 0;  // of one tile of keys
  static constexpr int kBlock = kTileBytes + 2 * kBitBytes;           // offset in shared memory
  static constexpr int kSharedBytes = kBlock + static_cast<int>(kAttentionBlockBytes);
  static constexpr int kMinBlocks = kRowTiles == 2 || kHead > 128 ? 2 : 3;
};

/// The registers of one warp.
template <class Tile>
struct MmaState {
  Sums<Tile> output;
  OnlineSoftmax<Tile::kRowTiles> softmax;
};

/// Whether the call drops anything.
template <class Tile>
__device__ __forceinline__ bool drops(const AttentionParams& params) {
  return Tile::kMayDrop && (Tile::kPlainScores || params.has_dropout);
}

/// Starts copying tile number `tile` of the keys, their values, and the dropout's decisions on them, to
/// the tile's stage; `shared` is the block's shared memory.
template <class Tile>
__device__ __forceinline__ void copy_keys(const AttentionParams& params,
                                          const AttentionBlock<typename Tile::T>& block,
                                          std::uint32_t shared, int tile) {
  const std::int64_t key = std::int64_t{tile} * Tile::kKeys;
  const std::int64_t rows = params.keys - key;
  const std::uint32_t stage = shared + Tile::kQueryBytes + tile % 2 * Tile::kStageBytes;
  copy_tile<Tile, Tile::kKeys>(stage, block.key + key * params.key_strides.row,
                               params.key_strides.row, rows, static_cast<int>(params.head / 8));
  copy_tile<Tile, Tile::kKeys>(stage + Tile::kKeyBytes,
                               block.value + key * params.value_strides.row,
                               params.value_strides.row, rows, static_cast<int>(params.head_v / 8));
  const int row = static_cast<int>(threadIdx.x);
  if (!drops<Tile>(params) || row >= Tile::kRows) return;
  constexpr int kBytes = Tile::kKeys / 8;  // of one query
  const std::int64_t query = block.row_block * Tile::kRows + row;
  const std::int64_t index = block.batch * params.length + query;
  copy_async<kBytes>(shared + Tile::kTileBytes + tile % 2 * Tile::kBitBytes + row * kBytes,
                     params.keep_bits + index * params.keep_bits_stride + key / 8,
                     query < params.length && rows > 0);
}

/// Probabilities rounded to A fragments.
template <class Tile>
__device__ __forceinline__ void round_weights(const Scores<Tile>& score, Weights<Tile>& p) {
#pragma unroll
  for (int i = 0; i < Tile::kRowTiles; ++i) {
#pragma unroll
    for (int j = 0; j < Tile::kColumnTiles; ++j) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        p[i][j][h] = pack_floats<typename Tile::T>(score[i][j][2 * h], score[i][j][2 * h + 1]);
      }
    }
  }
}

/// Zeroes the dropped probabilities; `bits` are those of the warp's first row and this tile's keys.
template <class Tile>
__device__ __forceinline__ void drop(Weights<Tile>& p, const unsigned char* bits, int lane) {
  constexpr int kWords = Tile::kKeys / 32;
#pragma unroll
  for (int i = 0; i < Tile::kRowTiles; ++i) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = 16 * i + 8 * h + (lane >> 2);
      const auto words = *reinterpret_cast<const Pack<std::uint32_t, kWords>*>(
          bits + row * kWords * static_cast<int>(sizeof(std::uint32_t)));
#pragma unroll
      for (int w = 0; w < kWords; ++w) {
        // The top bit of byte n is the decision on column 8·n + 2·t, or on the one after it.
        const std::uint32_t even = words.item[w] << (7 - 2 * (lane & 3));
        const std::uint32_t odd = words.item[w] << (6 - 2 * (lane & 3));
#pragma unroll
        for (int n = 0; n < 4; ++n) p[i][4 * w + n][h] &= spread_byte_signs(even, odd, n);
      }
    }
  }
}

/// Normalizes the rows and writes them as 16-byte chunks through the warp's part of the query tile.
template <class Tile>
__device__ __forceinline__ void write_output(const AttentionParams& params,
                                             const AttentionBlock<typename Tile::T>& block,
                                             MmaState<Tile>& state, unsigned char* shared_query,
                                             int warp_row, int lane) {
  const std::int64_t row0 = block.row_block * Tile::kRows + warp_row;
  float factor[Tile::kRowTiles][2];
  finish_softmax(params, state.softmax, block.batch, row0, lane, factor);
  const AttentionOperand& strides = params.output_strides;
  write_rows<Tile>({block.output + row0 * strides.row, strides.row, strides.column,
                    params.length - row0, static_cast<int>(params.head_v)},
                   state.output, factor, shared_query, warp_row, lane);
}

/// Tile number `tile` of the keys, for one warp; `shared` is the block's shared memory.
template <class Tile>
__device__ __forceinline__ void attend(
    const AttentionParams& params, const AttentionBlock<typename Tile::T>& block,
    MmaState<Tile>& state,
    const std::uint32_t (
        &query)[Tile::kQueryInRegisters ? kHeadSteps<Tile> : 1][Tile::kRowTiles][4],
    const unsigned char* shared, int warp_row, int tile, int lane) {
  const std::int64_t row0 = block.row_block * Tile::kRows + warp_row;
  const std::int64_t key0 = std::int64_t{tile} * Tile::kKeys;
  // Rows past the end, and keys after all of the warp's rows, contribute nothing.
  if (row0 >= params.length || (params.is_causal && key0 >= row0 + Tile::kWarpRows)) return;
  const std::uint32_t shared_query = shared_address(shared);
  const std::uint32_t stage = shared_query + Tile::kQueryBytes + tile % 2 * Tile::kStageBytes;
  Scores<Tile> score = {};
#pragma unroll
  for (int step = 0; step < kHeadSteps<Tile>; ++step) {
    if constexpr (Tile::kQueryInRegisters) {
      add_row_products<Tile>(score, query[step], stage, lane, step);
    } else {
      std::uint32_t fragment[Tile::kRowTiles][4];
      load_rows<Tile>(fragment, shared_query, warp_row, lane, step);
      add_row_products<Tile>(score, fragment, stage, lane, step);
    }
  }
  float scale = Tile::kPlainScores ? static_cast<float>(params.scale_log2) : 1.0F;
  if constexpr (Tile::kKeyBias) {
    add_key_bias(score, params.key_bias + block.batch * params.key_bias_stride + key0, scale, lane);
    scale = 1;
  }
  hide_scores<typename Tile::T, Tile::kPlainScores>(params, block.mask, score, row0, key0, lane);
  raise_maxima(state.softmax, score, scale, state.output);
  exponentiate(state.softmax, score, scale);
  Weights<Tile> p;
  round_weights<Tile>(score, p);
  if (drops<Tile>(params)) {
    constexpr int kBytes = Tile::kKeys / 8;  // of one query
    drop<Tile>(p, shared + Tile::kTileBytes + tile % 2 * Tile::kBitBytes + warp_row * kBytes, lane);
  }
  add_weighted_rows<Tile>(state.output, p, stage + Tile::kKeyBytes, lane);
}

template <class Tile>
__global__ __launch_bounds__(kMmaThreads, Tile::kMinBlocks) void flash_mma_kernel(
    const __grid_constant__ AttentionParams params) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  extern __shared__ __align__(1024) unsigned char shared[];
  if (block_index() >= params.batches * params.row_blocks) return;
  auto& block = *reinterpret_cast<AttentionBlock<typename Tile::T>*>(shared + Tile::kBlock);
  if (threadIdx.x == 0) block = locate_block<typename Tile::T>(params, block_index());
  __syncthreads();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp_row = static_cast<int>(threadIdx.x) / 32 * Tile::kWarpRows;
  const std::int64_t block_row = block.row_block * Tile::kRows;
  const std::uint32_t shared_query = shared_address(shared);

  copy_tile<Tile, Tile::kRows>(shared_query, block.query + block_row * params.query_strides.row,
                               params.query_strides.row, params.length - block_row,
                               static_cast<int>(params.head / 8));
  std::int64_t key_end = visible_keys(params, block_row + Tile::kRows);
  int first = 0;
  if constexpr (Tile::kKeyBias) {
    const LiveKeys live = live_keys(params, block.batch);
    key_end = min(key_end, live.end);
    first = static_cast<int>(live.first / Tile::kKeys);
  }
  const auto tiles = static_cast<int>((key_end + Tile::kKeys - 1) / Tile::kKeys);
  if (first < tiles) copy_keys<Tile>(params, block, shared_query, first);
  copy_async_commit();

  MmaState<Tile> state{};
#pragma unroll
  for (int i = 0; i < Tile::kRowTiles; ++i) {
    state.softmax.top[i][0] = state.softmax.top[i][1] = -INFINITY;
  }
  std::uint32_t query[Tile::kQueryInRegisters ? kHeadSteps<Tile> : 1][Tile::kRowTiles][4];

  for (int tile = first; tile < tiles; ++tile) {
    copy_async_wait<0>();
    __syncthreads();  // this tile has come, and no warp reads the other stage any more
    if (tile + 1 < tiles) {
      copy_keys<Tile>(params, block, shared_query, tile + 1);
      copy_async_commit();
    }
    if constexpr (Tile::kQueryInRegisters) {
      if (tile == first) {
#pragma unroll
        for (int step = 0; step < kHeadSteps<Tile>; ++step) {
          load_rows<Tile>(query[step], shared_query, warp_row, lane, step);
        }
      }
    }
    attend<Tile>(params, block, state, query, shared, warp_row, tile, lane);
  }
  if (first >= tiles) {  // the queries' copy must not meet the results
    copy_async_wait<0>();
    __syncthreads();
  }
  write_output<Tile>(params, block, state, shared, warp_row, lane);
#endif
}

template <class Tile>
void launch_tile(const AttentionParams& params, Stream stream) {
  AttentionParams launched = params;
  launched.row_blocks = ceil_div(params.length, Tile::kRows);
  launch(stream, "flash_mma", flash_mma_kernel<Tile>, params.batches * launched.row_blocks,
         kMmaThreads, Tile::kSharedBytes, launched);
}

/// Calls f with the MmaTile of a tiling.
template <class T, class F>
void dispatch_tile(const AttentionTiling& tiling, const F& f) {
  using enum AttentionVariant;
  const auto pick = [&]<int kHead>() {
    switch (tiling.variant) {
      case plain:
        return tiling.rows == 128 ? f.template operator()<MmaTile<T, kHead, 128, 64, plain>>()
                                  : f.template operator()<MmaTile<T, kHead, 64, 64, plain>>();
      case dropout: return f.template operator()<MmaTile<T, kHead, 128, 64, dropout>>();
      case keys:
        return tiling.rows == 128 ? f.template operator()<MmaTile<T, kHead, 128, 64, keys>>()
                                  : f.template operator()<MmaTile<T, kHead, 64, 64, keys>>();
      case keys_dropout:
        return tiling.rows == 128
                   ? f.template operator()<MmaTile<T, kHead, 128, 64, keys_dropout>>()
                   : f.template operator()<MmaTile<T, kHead, 64, 64, keys_dropout>>();
      case general: return f.template operator()<MmaTile<T, kHead, 64, 64, general>>();
    }
  };
  switch (tiling.head) {
    case 64: return pick.template operator()<64>();
    case 128: return pick.template operator()<128>();
    default: return f.template operator()<MmaTile<T, 256, 64, 32, general>>();
  }
}

}  // namespace

void launch_flash_mma(const AttentionParams& params, DType dtype, const AttentionTiling& tiling,
                      Stream stream) {
  const auto launch = [&]<class Tile>() { launch_tile<Tile>(params, stream); };
  if (dtype == DType::float16) return dispatch_tile<Half>(tiling, launch);
  dispatch_tile<BFloat16>(tiling, launch);
}

std::int64_t flash_mma_shared_bytes(const AttentionTiling& tiling) {
  std::int64_t bytes = 0;
  dispatch_tile<Half>(tiling, [&]<class Tile>() { bytes = Tile::kSharedBytes; });
  return bytes;
}

}  // namespace tenon::cuda
