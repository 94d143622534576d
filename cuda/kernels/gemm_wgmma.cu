// A persistent, warp-specialized matrix product: D = epilogue(A·B + bias), float32 accumulators.
//
//   warpgroup 0    a thread copies tiles of A and B to a ring of stages, 64 of k each
//   warpgroup 1    products of the 1st, 3rd, 5th … tile of D that this block computes, each followed
//                  by its epilogue
//   warpgroup 2    the same for the 2nd, 4th, 6th …
//
// Stages are filled in the order of the tiles, so the two warpgroups take turns at the tensor cores:
// while one rounds and stores its tile, the other multiplies (CUTLASS calls it ping-pong). A warp puts
// its results, 16 rows of 64 columns at a time, into shared memory, from where the copy engine stores
// them. Every sum over k is one thread's, in order of k.
#include "cuda/kernels/gemm_wgmma.h"

#include "cuda/device/mma.cuh"
#include "cuda/device/product_epilogue.cuh"
#include "cuda/device/tma.cuh"
#include "cuda/device/wgmma.cuh"
#include "cuda/tensor_map.h"

// A pass over an architecture without wgmma uses none of this.
#pragma nv_diag_suppress 177

namespace tenon::cuda {
namespace {

constexpr int kThreads = 384;
constexpr int kDepth = 64;      // of k, in a stage: a swizzled row
constexpr int kRowBytes = 128;  // of it
constexpr int kRows = 128;      // of a tile of D
constexpr int kTileColumns = 192;
[[maybe_unused]] constexpr int kGroupTiles =
    8;                         // tiles that follow one another along m before n advances
constexpr int kSlotRows = 16;  // of D, that a warp stores at once
constexpr int kSlotBytes = kSlotRows * kRowBytes;
constexpr int kConsumerWarps = 8;
[[maybe_unused]] constexpr int kStepBytes = 32;  // 16 of k in a swizzled row

struct GemmParams {
  CUtensorMap a, b, d, aux, activation;
  const void* bias;
  int m, n;
  int stages_of_tile;  // ⌈k / kDepth⌉
  int tiles_m, tiles_n;
  bool stores_second;  // aux of gelu, activation of gelu_gradient
};

template <class T_, bool kTransposed_, GemmEpilogue kEpilogue_>
struct Tile {
  using T = T_;
  static constexpr int kColumns = kTileColumns;
  static constexpr bool kTransposed = kTransposed_;  // rows of B's tile are k, not n
  static constexpr GemmEpilogue kEpilogue = kEpilogue_;
  static constexpr int kStages = 4;
  [[maybe_unused]] static constexpr int kChunks = kColumns / 64;  // of the epilogue
  static constexpr int kBytesA = kRows * kRowBytes;
  static constexpr int kBytesB = kColumns * kRowBytes;
  [[maybe_unused]] static constexpr int kPartBytes =
      kDepth * kRowBytes;  // 64 columns of a transposed tile of B
  static constexpr int kStageBytes = kBytesA + kBytesB;
  static constexpr int kAlignment = 1024;
  [[maybe_unused]] static constexpr int kParts = 2 * kChunks;  // of 16 rows, for each warp
  /// Slots of a warp: two for D, and where there is more to read or store, one for each.
  static constexpr int kSlots = kEpilogue == GemmEpilogue::none ? 2 : 4;
  static constexpr int kSharedBytes = kAlignment + kStages * kStageBytes +
                                      kConsumerWarps * kSlots * kSlotBytes +
                                      (2 * kStages + kConsumerWarps) * kBarrierBytes;
  static_assert(kSharedBytes <= 227 * 1024);
};

/// Where the parts of a block's shared memory are.
template <class Tile>
struct SharedLayout {
  std::uint32_t stages;
  __device__ __forceinline__ explicit SharedLayout(const unsigned char* shared)
      : stages((shared_address(shared) + Tile::kAlignment - 1) & ~(Tile::kAlignment - 1U)) {}
  __device__ __forceinline__ std::uint32_t a(int stage) const {
    return stages + stage * Tile::kStageBytes;
  }
  __device__ __forceinline__ std::uint32_t b(int stage) const { return a(stage) + Tile::kBytesA; }
  /// D in slots 0 and 1, what is stored beside it in 2, gelu_gradient's input in 3.
  __device__ __forceinline__ std::uint32_t slot(int warp, int index) const {
    return a(Tile::kStages) + (warp * Tile::kSlots + index) * kSlotBytes;
  }
  __device__ __forceinline__ std::uint32_t full(int stage) const {
    return slot(kConsumerWarps, 0) + stage * kBarrierBytes;
  }
  __device__ __forceinline__ std::uint32_t empty(int stage) const {
    return full(Tile::kStages + stage);
  }
  __device__ __forceinline__ std::uint32_t aux(int warp) const {
    return full(2 * Tile::kStages + warp);
  }
};

template <class Tile>
using Position = RingPosition<Tile::kStages>;

struct Corner {
  int row, column;
};

/// The corner of a tile of D. Tiles that run at the same time share rows of A and columns of B in L2.
template <class Tile>
__device__ __forceinline__ Corner corner_of(const GemmParams& p, int tile) {
  const int per_group = kGroupTiles * p.tiles_n;
  const int group = tile / per_group;
  const int first = group * kGroupTiles;
  const int height = min(kGroupTiles, p.tiles_m - first);
  const int inside = tile - group * per_group;
  return {(first + inside % height) * kRows, inside / height * Tile::kColumns};
}

/// One thread: copies every stage of every tile of this block.
template <class Tile>
__device__ __forceinline__ void copy_stages(const GemmParams& p, const SharedLayout<Tile>& layout) {
  Position<Tile> position;
  const int tiles = p.tiles_m * p.tiles_n;
  for (int tile = static_cast<int>(blockIdx.x); tile < tiles; tile += gridDim.x) {
    const Corner corner = corner_of<Tile>(p, tile);
    for (int i = 0; i < p.stages_of_tile; ++i) {
      const int stage = position.stage;
      const std::uint32_t full = layout.full(stage);
      barrier_wait(layout.empty(stage), position.parity ^ 1U);
      barrier_expect(full, Tile::kStageBytes);
      copy_tensor_async(layout.a(stage), p.a, i * kDepth, corner.row, full);
      if constexpr (Tile::kTransposed) {
#pragma unroll
        for (int part = 0; part < Tile::kColumns / 64; ++part) {
          copy_tensor_async(layout.b(stage) + part * Tile::kPartBytes, p.b,
                            corner.column + 64 * part, i * kDepth, full);
        }
      } else {
        copy_tensor_async(layout.b(stage), p.b, i * kDepth, corner.column, full);
      }
      position.advance();
    }
  }
}

template <class Tile>
using Accumulators = float[2][Tile::kColumns / 8][4];  // rows 0 to 63 and 64 to 127

template <class T>
__device__ __forceinline__ float2 unpack(std::uint32_t word);
template <>
__device__ __forceinline__ float2 unpack<BFloat16>(std::uint32_t word) {
  return make_float2(__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000U));
}
template <>
__device__ __forceinline__ float2 unpack<Half>(std::uint32_t word) {
  float2 pair;
  asm("{ .reg .f16 low, high; mov.b32 {low, high}, %2; cvt.f32.f16 %0, low; cvt.f32.f16 %1, high; }"
      : "=f"(pair.x), "=f"(pair.y)
      : "r"(word));
  return pair;
}

/// Sums begin with the bias of their column.
template <class Tile>
__device__ __forceinline__ void start_sums(const GemmParams& p, Accumulators<Tile>& c, int column,
                                           int lane) {
  using T = typename Tile::T;
#pragma unroll
  for (int j = 0; j < Tile::kColumns / 8; ++j) {
    const int at = column + 8 * j + 2 * (lane & 3);
    float2 bias = make_float2(0, 0);
    if (p.bias != nullptr && at < p.n) {
      const T* source = static_cast<const T*>(p.bias) + at;
      bias = unpack<T>(__ldg(reinterpret_cast<const unsigned*>(source)));
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      c[half][j][0] = c[half][j][2] = bias.x;
      c[half][j][1] = c[half][j][3] = bias.y;
    }
  }
}

/// Lets warpgroup `turn` multiply, after wait_for_turn of its own; 0 and 1 take turns.
__device__ __forceinline__ void give_turn(int turn) {
  asm volatile("bar.arrive %0, 256;" ::"r"(1 + turn) : "memory");
}
__device__ __forceinline__ void wait_for_turn(int turn) {
  asm volatile("bar.sync %0, 256;" ::"r"(1 + turn) : "memory");
}

/// Adds the products of one tile; each stage is given back when no product reads it any more.
template <class Tile>
__device__ __forceinline__ void multiply_tile(Accumulators<Tile>& c, int stages, int turn,
                                              bool another, const SharedLayout<Tile>& layout,
                                              Position<Tile>& position, int lane) {
  // A parity tells two rounds apart: nobody may wait for a stage that is two rounds away.
  wait_for_turn(turn);
  int previous = 0;
  for (int i = 0; i < stages; ++i) {
    const int stage = position.stage;
    barrier_wait(layout.full(stage), position.parity);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kDepth / 16; ++step) {
      const std::uint32_t b = layout.b(stage);
      const std::uint64_t b_descriptor =
          Tile::kTransposed ? wgmma_descriptor(b + step * 16 * kRowBytes, Tile::kPartBytes)
                            : wgmma_descriptor(b + step * kStepBytes);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const std::uint32_t a = layout.a(stage) + half * 64 * kRowBytes + step * kStepBytes;
        wgmma_shared<typename Tile::T, Tile::kColumns, Tile::kTransposed>(
            c[half], wgmma_descriptor(a), b_descriptor);
      }
    }
    wgmma_commit();
    if (i > 0) {
      wgmma_wait<1>();
      barrier_arrive_for_warp(layout.empty(previous), lane);
    }
    previous = stage;
    position.advance();
  }
  if (another) give_turn(1 - turn);
  wgmma_wait<0>();
  barrier_arrive_for_warp(layout.empty(previous), lane);
  wgmma_settle(c[0]);
  wgmma_settle(c[1]);
}

/// This lane's address in ldmatrix and stmatrix of the 8-column tiles `tile` and `tile` + 1 of a slot,
/// matrices in the order of a pair of fragments.
__device__ __forceinline__ std::uint32_t fragment_offset(int tile, int lane) {
  const int row = lane & 15;
  return row * kRowBytes + (((tile + (lane >> 4)) ^ (row & 7)) << 4);
}

/// One warp's part of a tile: 16 rows of 64 columns.
template <class Tile>
struct Part {
  int half, chunk, row, column;
  __device__ __forceinline__ Part(int index, Corner corner, int warp)
      : half(index / Tile::kChunks),
        chunk(index % Tile::kChunks),
        row(corner.row + 64 * half + kSlotRows * (warp % 4)),
        column(corner.column + 64 * chunk) {}
};

/// Rounds a part into the slot at `d`. `beside` holds the part of gelu_gradient's input and gets what is
/// stored beside D, as pairs of fragments.
template <class Tile>
__device__ __forceinline__ void fill_slot(const float (&c)[Tile::kColumns / 8][4], int chunk,
                                          std::uint32_t d, std::uint32_t (&beside)[4][4],
                                          int lane) {
  using T = typename Tile::T;
#pragma unroll
  for (int pair = 0; pair < 4; ++pair) {
    std::uint32_t result[4];
#pragma unroll
    for (int word = 0; word < 4; ++word) {  // rows 0 to 7, 8 to 15, of one tile and the next
      const float(&x)[4] = c[8 * chunk + 2 * pair + word / 2];
      const float2 aux = unpack<T>(beside[pair][word]);
      const Finished low = finish<Tile::kEpilogue>(x[2 * (word % 2)], aux.x);
      const Finished high = finish<Tile::kEpilogue>(x[2 * (word % 2) + 1], aux.y);
      result[word] = pack_floats<T>(low.d, high.d);
      beside[pair][word] = pack_floats<T>(low.second, high.second);
    }
    store_matrices(d + fragment_offset(2 * pair, lane), result);
  }
}

/// Starts copying a part of gelu_gradient's input; one thread.
template <class Tile>
__device__ __forceinline__ void copy_aux(const GemmParams& p, const SharedLayout<Tile>& layout,
                                         const Part<Tile>& part, int warp) {
  barrier_expect(layout.aux(warp), kSlotBytes);
  copy_tensor_async(layout.slot(warp, 3), p.aux, part.column, part.row, layout.aux(warp));
}

/// Rounds and stores a warp's rows of a tile, while the part before is being stored and gelu_gradient's
/// input of the next part is on its way.
template <class Tile>
__device__ __forceinline__ void finish_tile(const GemmParams& p, const Accumulators<Tile>& c,
                                            const SharedLayout<Tile>& layout, Corner corner,
                                            int warp, int lane) {
  constexpr bool kGradient = is_gradient(Tile::kEpilogue);
#pragma unroll
  for (int index = 0; index < Tile::kParts; ++index) {
    const Part<Tile> part(index, corner, warp);
    const std::uint32_t d = layout.slot(warp, index % 2);
    std::uint32_t beside[4][4] = {};
    if constexpr (kGradient) {
      barrier_wait(layout.aux(warp), index % 2);
      __syncwarp();
#pragma unroll
      for (int pair = 0; pair < 4; ++pair) {
        load_matrices(beside[pair], layout.slot(warp, 3) + fragment_offset(2 * pair, lane));
      }
      fence_async_proxy();  // they are read before the next part comes
      __syncwarp();
      if (lane == 0 && index + 1 < Tile::kParts) {
        copy_aux<Tile>(p, layout, Part<Tile>(index + 1, corner, warp), warp);
      }
    }
    if (lane == 0) wait_for_stores<1>();
    __syncwarp();
    fill_slot<Tile>(c[part.half], part.chunk, d, beside, lane);
    if (p.stores_second) {
      if (lane == 0) wait_for_stores<0>();
      __syncwarp();
#pragma unroll
      for (int pair = 0; pair < 4; ++pair) {
        store_matrices(layout.slot(warp, 2) + fragment_offset(2 * pair, lane), beside[pair]);
      }
    }
    fence_async_proxy();
    __syncwarp();
    if (lane != 0) continue;
    store_tensor_async(p.d, d, part.column, part.row);
    if (p.stores_second) {
      store_tensor_async(kGradient ? p.activation : p.aux, layout.slot(warp, 2), part.column,
                         part.row);
    }
    commit_stores();
  }
}

/// One of the consumer warps, which are numbered from 0 to 7.
template <class Tile>
__device__ __forceinline__ void multiply_tiles(const GemmParams& p,
                                               const SharedLayout<Tile>& layout, int warp,
                                               int lane) {
  const int turn = warp / 4;
  const int tiles = p.tiles_m * p.tiles_n;
  const int stride = static_cast<int>(gridDim.x);
  Position<Tile> position;
  position.skip(turn * p.stages_of_tile);
  if (turn == 1) give_turn(0);
  for (int tile = static_cast<int>(blockIdx.x) + turn * stride; tile < tiles; tile += 2 * stride) {
    const Corner corner = corner_of<Tile>(p, tile);
    if (is_gradient(Tile::kEpilogue) && lane == 0) {
      copy_aux<Tile>(p, layout, Part<Tile>(0, corner, warp), warp);
    }
    Accumulators<Tile> c;
    start_sums<Tile>(p, c, corner.column, lane);
    multiply_tile<Tile>(c, p.stages_of_tile, turn, tile + stride < tiles, layout, position, lane);
    finish_tile<Tile>(p, c, layout, corner, warp, lane);
    position.skip(p.stages_of_tile);
  }
  if (lane == 0) wait_for_stores<0>();
}

template <class Tile>
__global__ void __launch_bounds__(kThreads, 1)
    gemm_wgmma_kernel(const __grid_constant__ GemmParams p) {
  if constexpr (kHasWgmma) {
    extern __shared__ unsigned char shared[];
    const SharedLayout<Tile> layout(shared);
    const int thread = static_cast<int>(threadIdx.x);
    if (thread == 0) {
      for (int stage = 0; stage < Tile::kStages; ++stage) {
        barrier_init(layout.full(stage), 1);
        barrier_init(layout.empty(stage), kConsumerWarps / 2 * kWarpArrivals);
      }
      for (int warp = 0; warp < kConsumerWarps; ++warp) barrier_init(layout.aux(warp), 1);
      fence_barrier_init();
    }
    __syncthreads();
    if (thread < 128) {
      release_registers<24>();
      if (thread == 0) copy_stages<Tile>(p, layout);
    } else {
      take_registers<240>();
      multiply_tiles<Tile>(p, layout, thread / 32 - 4, thread % 32);
    }
  }
}

bool is_aligned_row(const void* data, std::int64_t leading) {
  constexpr std::uintptr_t kBytes = 16;
  return reinterpret_cast<std::uintptr_t>(data) % kBytes == 0 && leading % 8 == 0;
}

template <class Tile>
void launch_tile(Stream stream, const char* name, const GemmProblem& problem, void* activation) {
  const auto map = [&](const void* data, std::int64_t rows, std::int64_t columns,
                       std::int64_t leading, int box_rows) {
    if (data == nullptr) return CUtensorMap{};
    return make_tensor_map(data, problem.dtype, rows, columns, leading, box_rows);
  };
  const std::int64_t m = problem.m, n = problem.n, k = problem.k;
  const GemmOperand& a = problem.a;
  const GemmOperand& b = problem.b;
  constexpr bool kGradient = is_gradient(Tile::kEpilogue);
  GemmParams p{};
  p.a = map(a.data, m, k, a.leading, kRows);
  p.b = Tile::kTransposed ? map(b.data, k, n, b.leading, kDepth)
                          : map(b.data, n, k, b.leading, Tile::kColumns);
  p.d = map(problem.d, m, n, problem.d_leading, kSlotRows);
  p.aux = map(problem.aux, m, n, problem.aux_leading, kSlotRows);
  p.activation = map(activation, m, n, n, kSlotRows);
  p.bias = problem.bias;
  p.m = static_cast<int>(m);
  p.n = static_cast<int>(n);
  p.stages_of_tile = static_cast<int>(ceil_div(k, kDepth));
  p.tiles_m = static_cast<int>(ceil_div(m, kRows));
  p.tiles_n = static_cast<int>(ceil_div(n, Tile::kColumns));
  p.stores_second = kGradient ? activation != nullptr : problem.aux != nullptr;
  const int multiprocessors = device_limits(stream.device).multiprocessors;
  const std::int64_t tiles = std::int64_t{p.tiles_m} * p.tiles_n;
  launch(stream, name, gemm_wgmma_kernel<Tile>, tiles < multiprocessors ? tiles : multiprocessors,
         kThreads, Tile::kSharedBytes, p);
}

template <class T, bool kTransposed>
void launch_epilogue(Stream stream, const char* name, const GemmProblem& p, void* activation) {
  using enum GemmEpilogue;
  switch (p.epilogue) {
    case none: return launch_tile<Tile<T, kTransposed, none>>(stream, name, p, nullptr);
    case gelu_tanh: return launch_tile<Tile<T, kTransposed, gelu_tanh>>(stream, name, p, nullptr);
    case gelu_tanh_gradient:
      return launch_tile<Tile<T, kTransposed, gelu_tanh_gradient>>(stream, name, p, activation);
    case gelu: return launch_tile<Tile<T, kTransposed, gelu>>(stream, name, p, nullptr);
    case gelu_gradient:
      return launch_tile<Tile<T, kTransposed, gelu_gradient>>(stream, name, p, activation);
    case relu: return launch_tile<Tile<T, kTransposed, relu>>(stream, name, p, nullptr);
    case relu_gradient:
      return launch_tile<Tile<T, kTransposed, relu_gradient>>(stream, name, p, activation);
    case silu: return launch_tile<Tile<T, kTransposed, silu>>(stream, name, p, nullptr);
    case silu_gradient:
      return launch_tile<Tile<T, kTransposed, silu_gradient>>(stream, name, p, activation);
  }
}

template <class T>
void launch_layout(Stream stream, const char* name, const GemmProblem& p, void* activation) {
  // GemmOperand speaks of B (k, n): stored transposed, its rows are n.
  if (p.b.transposed) return launch_epilogue<T, false>(stream, name, p, activation);
  launch_epilogue<T, true>(stream, name, p, activation);
}

}  // namespace

bool gemm_wgmma_takes(const GemmProblem& p, const DeviceLimits& limits) {
  constexpr std::int64_t kMost = std::int64_t{1} << 30;
  return has_wgmma(limits) && (p.dtype == DType::float16 || p.dtype == DType::bfloat16) &&
         p.stored_dtype() == p.dtype && p.batch == 1 && !p.a.transposed && p.c.data == nullptr &&
         p.n % 8 == 0 && p.m < kMost && p.n < kMost && p.k < kMost &&
         ceil_div(p.m, kRows) * ceil_div(p.n, 128) < kMost &&
         is_aligned_row(p.a.data, p.a.leading) && is_aligned_row(p.b.data, p.b.leading) &&
         is_aligned_row(p.d, p.d_leading) && is_aligned_row(p.aux, p.aux_leading) &&
         is_aligned_row(p.bias, 0);
}

bool reads_whole_sectors(const GemmProblem& p) {
  constexpr std::int64_t kSector = 16;  // elements
  return p.a.leading % kSector == 0 && p.b.leading % kSector == 0;
}

bool gemm_wgmma_fills(const GemmProblem& p) {
  constexpr std::int64_t kFewest = 132 / 2;
  return ceil_div(p.m, kRows) * ceil_div(p.n, kTileColumns) >= kFewest && reads_whole_sectors(p);
}

bool gemm_wgmma_prefers(const GemmProblem& p) {
  constexpr std::int64_t kColumns = kTileColumns;
  constexpr std::int64_t kFewestTiles = 2 * 132;
  constexpr std::int64_t kShortestSum = 512;
  // A tile that ends outside of D costs as much as any other.
  const std::int64_t tiles = ceil_div(p.m, kRows) * ceil_div(p.n, kColumns);
  // Nor does a wave that has few tiles cost less.
  const std::int64_t waves = ceil_div(tiles, kFewestTiles / 2);
  const std::int64_t covered = waves * (kFewestTiles / 2) * kRows * kColumns;
  // The other kernels' epilogues cost more.
  const bool fits = p.epilogue == GemmEpilogue::none ? 10 * p.m * p.n >= 9 * covered
                                                     : 4 * p.m * p.n >= 3 * covered;
  return p.k >= kShortestSum && tiles >= kFewestTiles && fits && reads_whole_sectors(p);
}

void gemm_wgmma(Stream stream, const char* name, const GemmProblem& problem, void* activation) {
  if (problem.dtype == DType::float16) {
    return launch_layout<Half>(stream, name, problem, activation);
  }
  launch_layout<BFloat16>(stream, name, problem, activation);
}

}  // namespace tenon::cuda
