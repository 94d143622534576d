// FlashAttention-2 with mma.sync: softmax(Q·Kᵀ·scale + mask)·V for float16 and bfloat16, accumulated
// in float32. Compute capability 8.0; heads that are multiples of 8 up to 256, zero-padded to the
// tile; rows of query, key and value aligned to 16 bytes.
//
// A block of 4 warps owns kRows query rows, each warp kRows/4 of them, and walks over tiles of kKeys
// keys. Keys and values go through two buffers in shared memory: the copy of the next tile runs while
// this one is computed. Scores stay in registers: as C fragments of Q·Kᵀ they are, rounded, the A
// fragments of P·V. Two 16-row fragments a warp halve the shared memory traffic of keys and values.
#include "cuda/device/mma.cuh"
#include "cuda/kernels/attention_common.cuh"
#include "cuda/launch.h"

namespace tenon::cuda {
namespace {

constexpr int kMmaThreads = 128;
constexpr int kMmaWarps = kMmaThreads / 32;
constexpr unsigned kFullWarp = 0xffffffffU;
// A row's maximum may lag by this many powers of two: results are exact all the same, and the
// accumulators are rescaled a few times a row instead of once a tile. 2^8 fits float16.
constexpr float kMaxLag = 8.0F;

/// Compile-time facts of one kernel.
template <class T_, int kHead_, int kRows_, int kKeys_, AttentionVariant kVariant_>
struct MmaTile {
  using T = T_;
  static constexpr int kHead = kHead_;
  static constexpr int kRows = kRows_;
  static constexpr int kKeys = kKeys_;
  static constexpr bool kPlainScores = kVariant_ != AttentionVariant::general;
  static constexpr bool kMayDrop = kVariant_ != AttentionVariant::plain;
  static constexpr int kWarpRows = kRows / kMmaWarps;
  static constexpr int kRowTiles = kWarpRows / 16;  // fragments of a warp along the rows
  static constexpr int kKeyTiles = kKeys / 8;       // C fragments of the scores along the keys
  static constexpr int kHeadTiles = kHead / 8;      // C fragments of the output along the head
  static constexpr int kHeadSteps = kHead / 16;     // products along the head
  static constexpr int kChunks = kHead / 8;         // 16-byte chunks of a row
  static constexpr int kRowBytes = kHead * 2;
  static constexpr bool kQueryInRegisters = kHead <= 64;
  static constexpr int kQueryBytes = kRows * kRowBytes;
  static constexpr int kKeyBytes = kKeys * kRowBytes;
  static constexpr int kStageBytes = 2 * kKeyBytes;  // keys, then values
  static constexpr int kTileBytes = kQueryBytes + 2 * kStageBytes;
  static constexpr int kSharedBytes = kTileBytes + static_cast<int>(kAttentionBlockBytes);
  static constexpr int kMinBlocks = kRowTiles == 2 || kHead > 128 ? 2 : 3;
};

/// The registers of one warp. Index [i][h]: row 16·i + 8·h + g of the warp's rows.
template <class Tile>
struct MmaState {
  float output[Tile::kRowTiles][Tile::kHeadTiles][4];
  float top[Tile::kRowTiles][2];  // running maximum, in units of log2
  float sum[Tile::kRowTiles][2];  // of the columns that this lane holds
};

/// Byte offset of a 16-byte chunk in a tile whose rows are Tile::kRowBytes long. The exclusive or
/// spreads 8 rows of one chunk over all banks: ldmatrix reads without conflicts.
template <class Tile>
__device__ __forceinline__ int chunk_offset(int row, int chunk) {
  return row * Tile::kRowBytes + ((chunk ^ (row & 7)) << 4);
}

/// Starts copying kTileRows rows of `global`; rows from `rows` on and chunks from `chunks` on are 0.
template <class Tile, int kTileRows>
__device__ __forceinline__ void copy_tile(std::uint32_t shared, const typename Tile::T* global,
                                          std::int64_t stride, std::int64_t rows, int chunks) {
  constexpr int kStep = kMmaThreads / Tile::kChunks;
  static_assert(kTileRows % kStep == 0);
  const int chunk = static_cast<int>(threadIdx.x) % Tile::kChunks;
  const int first = static_cast<int>(threadIdx.x) / Tile::kChunks;
  const auto* source = global + first * stride + chunk * 8;
#pragma unroll
  for (int i = 0; i < kTileRows / kStep; ++i) {
    const int row = first + i * kStep;
    copy_async16(shared + chunk_offset<Tile>(row, chunk), source, row < rows && chunk < chunks);
    source += kStep * stride;
  }
}

/// Starts copying the keys and values of the tile that begins at `key`.
template <class Tile>
__device__ __forceinline__ void copy_keys(const AttentionParams& params,
                                          const AttentionBlock<typename Tile::T>& block,
                                          std::uint32_t stage, std::int64_t key) {
  const std::int64_t rows = params.keys - key;
  copy_tile<Tile, Tile::kKeys>(stage, block.key + key * params.key_strides.row,
                               params.key_strides.row, rows, static_cast<int>(params.head / 8));
  copy_tile<Tile, Tile::kKeys>(stage + Tile::kKeyBytes,
                               block.value + key * params.value_strides.row,
                               params.value_strides.row, rows, static_cast<int>(params.head_v / 8));
}

/// A fragments of the warp's rows for columns 16·step… of the head.
template <class Tile>
__device__ __forceinline__ void load_query(std::uint32_t (&query)[Tile::kRowTiles][4],
                                           std::uint32_t shared_query, int warp_row, int lane,
                                           int step) {
#pragma unroll
  for (int i = 0; i < Tile::kRowTiles; ++i) {
    const int row = warp_row + 16 * i + (lane & 15);
    load_matrices(query[i], (shared_query + chunk_offset<Tile>(row, lane >> 4)) ^ (step << 5));
  }
}

/// score += Q·Kᵀ for one 16-column step of the head.
template <class Tile>
__device__ __forceinline__ void add_key_products(
    float (&score)[Tile::kRowTiles][Tile::kKeyTiles][4],
    const std::uint32_t (&query)[Tile::kRowTiles][4], std::uint32_t keys, int lane, int step) {
  const int row = ((lane >> 4) << 3) + (lane & 7);
  // The tile's base is aligned to rows, so a step is an exclusive or of the swizzled address.
  const std::uint32_t base = (keys + chunk_offset<Tile>(row, (lane >> 3) & 1)) ^ (step << 5);
#pragma unroll
  for (int j = 0; j < Tile::kKeyTiles / 2; ++j) {
    std::uint32_t key[4];
    load_matrices(key, base + j * 16 * Tile::kRowBytes);
#pragma unroll
    for (int i = 0; i < Tile::kRowTiles; ++i) {
      mma_m16n8k16<typename Tile::T>(score[i][2 * j], query[i], key[0], key[1]);
      mma_m16n8k16<typename Tile::T>(score[i][2 * j + 1], query[i], key[2], key[3]);
    }
  }
}

/// output += P·V; `p` holds A fragments: p[i][j][h] is rows h of row tile i, key tile j.
template <class Tile>
__device__ __forceinline__ void add_value_products(
    MmaState<Tile>& state, const std::uint32_t (&p)[Tile::kRowTiles][Tile::kKeyTiles][2],
    std::uint32_t values, int lane) {
#pragma unroll
  for (int step = 0; step < Tile::kKeyTiles / 2; ++step) {
    const std::uint32_t base = values + chunk_offset<Tile>(16 * step + (lane & 15), lane >> 4);
#pragma unroll
    for (int d = 0; d < Tile::kHeadTiles / 2; ++d) {
      std::uint32_t value[4];
      load_matrices_transposed(value, base ^ (d << 5));
#pragma unroll
      for (int i = 0; i < Tile::kRowTiles; ++i) {
        const std::uint32_t a[4] = {p[i][2 * step][0], p[i][2 * step][1], p[i][2 * step + 1][0],
                                    p[i][2 * step + 1][1]};
        mma_m16n8k16<typename Tile::T>(state.output[i][2 * d], a, value[0], value[1]);
        mma_m16n8k16<typename Tile::T>(state.output[i][2 * d + 1], a, value[2], value[3]);
      }
    }
  }
}

/// Applies scale and mask (general variant), and hides keys past the end or after the query.
template <class Tile>
__device__ __forceinline__ void hide_scores(const AttentionParams& params, const char* mask,
                                            float (&score)[Tile::kRowTiles][Tile::kKeyTiles][4],
                                            std::int64_t row0, std::int64_t key0, int lane) {
  const bool edge =
      key0 + Tile::kKeys > params.keys || (params.is_causal && key0 + Tile::kKeys - 1 > row0);
  const bool masked = !Tile::kPlainScores && params.mask_kind != AttentionMask::none;
  const auto scale = static_cast<float>(params.scale_log2);
  if (!edge && Tile::kPlainScores) return;
  // Keys of this tile that exist; a row sees those before `seen`.
  const auto present = static_cast<int>(min(params.keys - key0, std::int64_t{Tile::kKeys}));
#pragma unroll
  for (int i = 0; i < Tile::kRowTiles; ++i) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const std::int64_t row = row0 + 16 * i + 8 * h + (lane >> 2);
      const int seen = seen_keys(params, row, key0, present);
#pragma unroll
      for (int j = 0; j < Tile::kKeyTiles; ++j) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const int column = 8 * j + 2 * (lane & 3) + c;
          float& s = score[i][j][2 * h + c];
          if constexpr (!Tile::kPlainScores) s *= scale;
          if (masked && column < seen && row < params.length) {
            s = apply_mask<typename Tile::T>(params, mask, row, key0 + column, s);
          }
          if (column >= seen) s = -INFINITY;
        }
      }
    }
  }
}

/// Online softmax: turns scores into probabilities relative to state.top, rounded to A fragments.
template <class Tile>
__device__ __forceinline__ void update_softmax(
    const AttentionParams& params, MmaState<Tile>& state,
    const float (&score)[Tile::kRowTiles][Tile::kKeyTiles][4],
    std::uint32_t (&p)[Tile::kRowTiles][Tile::kKeyTiles][2]) {
  const float scale = Tile::kPlainScores ? static_cast<float>(params.scale_log2) : 1.0F;
  float top[Tile::kRowTiles][2];
  bool grew = false;
#pragma unroll
  for (int i = 0; i < Tile::kRowTiles; ++i) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float highest = score[i][0][2 * h];
#pragma unroll
      for (int j = 0; j < Tile::kKeyTiles; ++j) {
        highest = fmaxf(highest, fmaxf(score[i][j][2 * h], score[i][j][2 * h + 1]));
      }
      highest = fmaxf(highest, __shfl_xor_sync(kFullWarp, highest, 1));
      highest = fmaxf(highest, __shfl_xor_sync(kFullWarp, highest, 2));
      top[i][h] = fmaxf(state.top[i][h], highest * scale);
      grew |= top[i][h] > state.top[i][h] + kMaxLag;
    }
  }
  if (__any_sync(kFullWarp, grew)) {
#pragma unroll
    for (int i = 0; i < Tile::kRowTiles; ++i) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float factor =
            exp2_approximate(state.top[i][h] - (top[i][h] == -INFINITY ? 0.0F : top[i][h]));
        state.top[i][h] = top[i][h];
        state.sum[i][h] *= factor;
#pragma unroll
        for (int d = 0; d < Tile::kHeadTiles; ++d) {
          state.output[i][d][2 * h] *= factor;
          state.output[i][d][2 * h + 1] *= factor;
        }
      }
    }
  }
#pragma unroll
  for (int i = 0; i < Tile::kRowTiles; ++i) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float offset = state.top[i][h] == -INFINITY ? 0.0F : state.top[i][h];
#pragma unroll
      for (int j = 0; j < Tile::kKeyTiles; ++j) {
        const float p0 = exp2_approximate(fmaf(score[i][j][2 * h], scale, -offset));
        const float p1 = exp2_approximate(fmaf(score[i][j][2 * h + 1], scale, -offset));
        state.sum[i][h] += p0;
        state.sum[i][h] += p1;
        p[i][j][h] = pack_floats<typename Tile::T>(p0, p1);
      }
    }
  }
}

/// Keep decisions of 16 rows x kKeys columns, one Philox call per 8 columns and none twice: lane t
/// of a quad draws rows 8·(t&1) + g of key tiles 2·c + (t>>1). Of call c, word w (columns 2w, 2w+1
/// of that key tile) the decisions are bits 15 - (4c+w) and 31 - (4c+w).
template <class Tile>
__device__ __forceinline__ std::uint32_t draw_dropout(const AttentionParams& params,
                                                      std::int64_t row, std::int64_t key0,
                                                      int lane) {
  constexpr std::uint32_t kTops = 0x80008000U;
  const std::uint32_t threshold = params.dropout_threshold * 0x10001U;
  const std::uint32_t low_bits = threshold & ~kTops;
  const std::int64_t group = (key0 >> 3) + ((lane & 3) >> 1);
  std::uint32_t bits = 0;
#pragma unroll 2
  for (int call = 0; call < Tile::kKeyTiles / 2; ++call) {
    const PhiloxBlock random = dropout_random8(params.dropout_key, row, group + 2 * call);
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      // Both half-words at once: the top bit of each is set where half-word >= threshold.
      const std::uint32_t x = random.word[w];
      const std::uint32_t difference = (x | kTops) - low_bits;
      const std::uint32_t keep = (x & ~threshold) | (~(x ^ threshold) & difference);
      bits |= (keep & kTops) >> (4 * call + w);
    }
  }
  return bits;
}

/// Zeroes the dropped probabilities of one row tile; `bits` is this lane's draw_dropout.
template <class Tile>
__device__ __forceinline__ void drop(std::uint32_t (&p)[Tile::kKeyTiles][2], std::uint32_t bits,
                                     int lane) {
#pragma unroll
  for (int source = 0; source < 4; ++source) {
    const std::uint32_t drawn = __shfl_sync(kFullWarp, bits, source, 4) << (lane & 3);
#pragma unroll
    for (int call = 0; call < Tile::kKeyTiles / 2; ++call) {
      p[2 * call + (source >> 1)][source & 1] &= spread_half_signs(drawn << (4 * call));
    }
  }
}

/// Normalizes the rows and writes them as 16-byte chunks through the warp's part of the query tile.
template <class Tile>
__device__ __forceinline__ void write_output(const AttentionParams& params,
                                             const AttentionBlock<typename Tile::T>& block,
                                             MmaState<Tile>& state, unsigned char* shared_query,
                                             int warp_row, int lane) {
  using T = typename Tile::T;
#pragma unroll
  for (int i = 0; i < Tile::kRowTiles; ++i) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float sum = state.sum[i][h];
      sum += __shfl_xor_sync(kFullWarp, sum, 1);
      sum += __shfl_xor_sync(kFullWarp, sum, 2);
      const float factor = static_cast<float>(params.keep_scale) / sum;
      const int row = warp_row + 16 * i + 8 * h + (lane >> 2);
#pragma unroll
      for (int d = 0; d < Tile::kHeadTiles; ++d) {
        *reinterpret_cast<std::uint32_t*>(shared_query + chunk_offset<Tile>(row, d) +
                                          4 * (lane & 3)) =
            pack_floats<T>(state.output[i][d][2 * h] * factor,
                           state.output[i][d][2 * h + 1] * factor);
      }
    }
  }
  __syncwarp();
  T* output = block.output;
  const std::int64_t row0 = block.row_block * Tile::kRows + warp_row;
  const std::int64_t row_stride = params.output_strides.row;
  const std::int64_t column_stride = params.output_strides.column;
  const auto chunks = static_cast<int>(params.head_v / 8);
  const bool whole_chunks = column_stride == 1 && row_stride % 8 == 0 &&
                            reinterpret_cast<std::uintptr_t>(output) % 16 == 0;
  for (int index = lane; index < Tile::kWarpRows * Tile::kChunks; index += 32) {
    const int row = index / Tile::kChunks, chunk = index % Tile::kChunks;
    if (chunk >= chunks || row0 + row >= params.length) continue;
    const unsigned char* source = shared_query + chunk_offset<Tile>(warp_row + row, chunk);
    T* target = output + (row0 + row) * row_stride + chunk * 8 * column_stride;
    if (whole_chunks) {
      *reinterpret_cast<uint4*>(target) = *reinterpret_cast<const uint4*>(source);
    } else {
      for (int c = 0; c < 8; ++c) target[c * column_stride] = reinterpret_cast<const T*>(source)[c];
    }
  }
}

/// One tile of keys for one warp.
template <class Tile>
__device__ __forceinline__ void attend(
    const AttentionParams& params, const AttentionBlock<typename Tile::T>& block,
    MmaState<Tile>& state,
    const std::uint32_t (
        &query)[Tile::kQueryInRegisters ? Tile::kHeadSteps : 1][Tile::kRowTiles][4],
    std::uint32_t shared_query, std::uint32_t stage, int warp_row, std::int64_t key0, int lane) {
  const std::int64_t row0 = block.row_block * Tile::kRows + warp_row;
  // Rows past the end, and keys after all of the warp's rows, contribute nothing.
  if (row0 >= params.length || (params.is_causal && key0 >= row0 + Tile::kWarpRows)) return;
  float score[Tile::kRowTiles][Tile::kKeyTiles][4] = {};
#pragma unroll
  for (int step = 0; step < Tile::kHeadSteps; ++step) {
    if constexpr (Tile::kQueryInRegisters) {
      add_key_products<Tile>(score, query[step], stage, lane, step);
    } else {
      std::uint32_t fragment[Tile::kRowTiles][4];
      load_query<Tile>(fragment, shared_query, warp_row, lane, step);
      add_key_products<Tile>(score, fragment, stage, lane, step);
    }
  }
  hide_scores<Tile>(params, block.mask, score, row0, key0, lane);
  std::uint32_t p[Tile::kRowTiles][Tile::kKeyTiles][2];
  update_softmax<Tile>(params, state, score, p);
  if (Tile::kMayDrop && (Tile::kPlainScores || params.has_dropout)) {
#pragma unroll
    for (int i = 0; i < Tile::kRowTiles; ++i) {
      const std::int64_t row =
          block.batch * params.length + row0 + 16 * i + 8 * (lane & 1) + (lane >> 2);
      drop<Tile>(p[i], draw_dropout<Tile>(params, row, key0, lane), lane);
    }
  }
  add_value_products<Tile>(state, p, stage + Tile::kKeyBytes, lane);
}

template <class Tile>
__global__ __launch_bounds__(kMmaThreads, Tile::kMinBlocks) void flash_mma_kernel(
    const __grid_constant__ AttentionParams params) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  extern __shared__ __align__(1024) unsigned char shared[];
  if (block_index() >= params.batches * params.row_blocks) return;
  auto& block = *reinterpret_cast<AttentionBlock<typename Tile::T>*>(shared + Tile::kTileBytes);
  if (threadIdx.x == 0) block = locate_block<typename Tile::T>(params, block_index());
  __syncthreads();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp_row = static_cast<int>(threadIdx.x) / 32 * Tile::kWarpRows;
  const std::int64_t block_row = block.row_block * Tile::kRows;
  const std::uint32_t shared_query = shared_address(shared);
  const std::uint32_t stages = shared_query + Tile::kQueryBytes;

  copy_tile<Tile, Tile::kRows>(shared_query, block.query + block_row * params.query_strides.row,
                               params.query_strides.row, params.length - block_row,
                               static_cast<int>(params.head / 8));
  copy_keys<Tile>(params, block, stages, 0);
  copy_async_commit();

  MmaState<Tile> state{};
#pragma unroll
  for (int i = 0; i < Tile::kRowTiles; ++i) state.top[i][0] = state.top[i][1] = -INFINITY;
  std::uint32_t query[Tile::kQueryInRegisters ? Tile::kHeadSteps : 1][Tile::kRowTiles][4];

  const std::int64_t key_end = visible_keys(params, block_row + Tile::kRows);
  const auto tiles = static_cast<int>((key_end + Tile::kKeys - 1) / Tile::kKeys);
  std::uint32_t stage = stages;
  for (int tile = 0; tile < tiles; ++tile) {
    const std::int64_t key0 = std::int64_t{tile} * Tile::kKeys;
    copy_async_wait<0>();
    __syncthreads();  // this tile has come, and no warp reads the other stage any more
    const std::uint32_t next = 2 * stages + Tile::kStageBytes - stage;
    if (tile + 1 < tiles) {
      copy_keys<Tile>(params, block, next, key0 + Tile::kKeys);
      copy_async_commit();
    }
    if constexpr (Tile::kQueryInRegisters) {
      if (tile == 0) {
#pragma unroll
        for (int step = 0; step < Tile::kHeadSteps; ++step) {
          load_query<Tile>(query[step], shared_query, warp_row, lane, step);
        }
      }
    }
    attend<Tile>(params, block, state, query, shared_query, stage, warp_row, key0, lane);
    stage = next;
  }
  write_output<Tile>(params, block, state, shared, warp_row, lane);
#endif
}

template <class T, int kHead, int kRows, int kKeys, AttentionVariant kVariant>
void launch_tile(const AttentionParams& params, Stream stream) {
  using Tile = MmaTile<T, kHead, kRows, kKeys, kVariant>;
  AttentionParams launched = params;
  launched.row_blocks = ceil_div(params.length, kRows);
  launch(stream, "flash_mma", flash_mma_kernel<Tile>, params.batches * launched.row_blocks,
         kMmaThreads, Tile::kSharedBytes, launched);
}

template <class T>
void launch_tiling(const AttentionParams& params, const AttentionTiling& tiling, Stream stream) {
  using enum AttentionVariant;
  const auto pick = [&]<int kHead>() {
    switch (tiling.variant) {
      case plain:
        return tiling.rows == 128 ? launch_tile<T, kHead, 128, 64, plain>(params, stream)
                                  : launch_tile<T, kHead, 64, 64, plain>(params, stream);
      case dropout: return launch_tile<T, kHead, 128, 64, dropout>(params, stream);
      case general: return launch_tile<T, kHead, 64, 64, general>(params, stream);
    }
  };
  switch (tiling.head) {
    case 64: return pick.template operator()<64>();
    case 128: return pick.template operator()<128>();
    default: return launch_tile<T, 256, 64, 32, general>(params, stream);
  }
}

}  // namespace

void launch_flash_mma(const AttentionParams& params, DType dtype, const AttentionTiling& tiling,
                      Stream stream) {
  if (dtype == DType::float16) return launch_tiling<Half>(params, tiling, stream);
  launch_tiling<BFloat16>(params, tiling, stream);
}

}  // namespace tenon::cuda
