// D = epilogue(A·B + C + bias) for products with few rows or few tiles, float32 accumulators.
//
// A cluster of blocks computes one tile of D, each block the sum over a part of k:
//
//   last warp          a thread copies tiles of A and B to a ring of stages, 64 of k each
//   other warps        products, 64 rows a warpgroup; then their sums go to shared memory
//   all, at the end    add the parts of some rows, in the order of k, from the shared memory of all
//                      blocks of the cluster, finish and store them
//
// Two blocks or more share a multiprocessor, so one multiplies while another stores. Of a product of few
// rows only those of A are copied: what else the tile holds ends in rows that nobody reads.
#include "cuda/kernels/gemm_split.h"

#include <algorithm>
#include <utility>

#include "cuda/device/memory.cuh"
#include "cuda/device/mma.cuh"
#include "cuda/device/product_epilogue.cuh"
#include "cuda/device/tma.cuh"
#include "cuda/device/wgmma.cuh"
#include "cuda/kernels/gemm_wgmma.h"
#include "cuda/launch_cluster.h"
#include "cuda/tensor_map.h"

// A pass over an architecture without wgmma uses none of this.
#pragma nv_diag_suppress 177

namespace tenon::cuda {
namespace {

constexpr int kDepth = 64;                       // of k, in a stage: a swizzled row
constexpr int kRowBytes = 128;                   // of it
[[maybe_unused]] constexpr int kStepBytes = 32;  // 16 of k in a swizzled row
[[maybe_unused]] constexpr int kGroupTiles =
    16;                                      // that follow one another along m before n advances
constexpr int kVector = 4;                   // columns that a thread finishes at once
[[maybe_unused]] constexpr int kAtOnce = 4;  // such vectors that it has under way

struct SplitParams {
  CUtensorMap a, b;
  const void* bias;
  const void* addend;
  void* d;
  void* aux;
  void* activation;  // of a gradient
  std::int64_t addend_leading, d_leading, aux_leading;
  int m, n;
  int stages_of_sum;  // ⌈k / kDepth⌉
  int tiles_m, tiles_n;
  int parts;
  int ring;            // stages that are in shared memory at once
  int bytes_of_stage;  // that are copied
  GemmEpilogue epilogue;
};

template <class T_, bool kTransposed_, int kRows_, int kColumns_>
struct Tile {
  using T = T_;
  static constexpr bool kTransposed = kTransposed_;  // rows of B's tile are k, not n
  static constexpr int kRows = kRows_;
  static constexpr int kColumns = kColumns_;
  static constexpr int kConsumers = kRows / 64 * 128;  // threads
  static constexpr int kThreads = kConsumers + 32;
  static constexpr int kBytesA = kRows * kRowBytes;
  static constexpr int kBytesB = kColumns * kRowBytes;
  [[maybe_unused]] static constexpr int kPartBytes = kDepth * kRowBytes;
  static constexpr int kStageBytes = kBytesA + kBytesB;
  static constexpr int kAlignment = 1024;
  static constexpr int kMostResident = kColumns == 64 ? 3 : 2;  // blocks of a multiprocessor
  /// Of a row of sums, in floats: lanes of a quarter warp then write to different banks.
  static constexpr int kPitch = kColumns + 8;
  static constexpr int kSumBytes = kRows * kPitch * 4;
  static constexpr int shared_bytes(int stages) {
    return kAlignment + std::max(stages * kStageBytes, kSumBytes) + 2 * stages * kBarrierBytes;
  }
};

/// Where the parts of a block's shared memory are; the sums take the place of the stages.
template <class Tile>
struct SharedLayout {
  std::uint32_t stages;
  std::uint32_t barriers;
  int ring;
  __device__ __forceinline__ SharedLayout(const unsigned char* shared, int ring)
      : stages((shared_address(shared) + Tile::kAlignment - 1) & ~(Tile::kAlignment - 1U)),
        barriers(stages + max(ring * Tile::kStageBytes, Tile::kSumBytes)),
        ring(ring) {}
  __device__ __forceinline__ std::uint32_t a(int stage) const {
    return stages + stage * Tile::kStageBytes;
  }
  __device__ __forceinline__ std::uint32_t b(int stage) const { return a(stage) + Tile::kBytesA; }
  __device__ __forceinline__ std::uint32_t full(int stage) const {
    return barriers + stage * kBarrierBytes;
  }
  __device__ __forceinline__ std::uint32_t empty(int stage) const { return full(ring + stage); }
  __device__ __forceinline__ std::uint32_t sum(int row, int column) const {
    return stages + (row * Tile::kPitch + column) * 4;
  }
};

struct Corner {
  int row, column;
};

/// The corner of a tile of D. Tiles that run at the same time share rows of A and columns of B in L2.
template <class Tile>
__device__ __forceinline__ Corner corner_of(const SplitParams& p, int tile) {
  const int per_group = kGroupTiles * p.tiles_n;
  const int group = tile / per_group;
  const int first = group * kGroupTiles;
  const int height = min(kGroupTiles, p.tiles_m - first);
  const int inside = tile - group * per_group;
  return {(first + inside % height) * Tile::kRows, inside / height * Tile::kColumns};
}

/// One thread: copies stage `i` of k to stage `stage` of the ring.
template <class Tile>
__device__ __forceinline__ void copy_stage(const SplitParams& p, const SharedLayout<Tile>& layout,
                                           Corner corner, int i, int stage) {
  const std::uint32_t full = layout.full(stage);
  barrier_expect(full, p.bytes_of_stage);
  if constexpr (Tile::kTransposed) {
#pragma unroll
    for (int part = 0; part < Tile::kColumns / 64; ++part) {
      copy_tensor_async(layout.b(stage) + part * Tile::kPartBytes, p.b, corner.column + 64 * part,
                        i * kDepth, full);
    }
  } else {
    copy_tensor_async(layout.b(stage), p.b, i * kDepth, corner.column, full);
  }
  copy_tensor_async(layout.a(stage), p.a, i * kDepth, corner.row, full);
}

/// One thread: the barriers, and the first round of copies, which no barrier holds up.
template <class Tile>
__device__ __forceinline__ void start_copies(const SplitParams& p, const SharedLayout<Tile>& layout,
                                             Corner corner, int first, int last) {
  for (int stage = 0; stage < layout.ring; ++stage) {
    barrier_init(layout.full(stage), 1);
    barrier_init(layout.empty(stage), Tile::kConsumers / 32 * kWarpArrivals);
  }
  fence_barrier_init();
  for (int i = first; i < min(last, first + layout.ring); ++i) {
    copy_stage<Tile>(p, layout, corner, i, i - first);
  }
}

/// One thread: the copies after those.
template <class Tile>
__device__ __forceinline__ void copy_stages(const SplitParams& p, const SharedLayout<Tile>& layout,
                                            Corner corner, int first, int last) {
  int stage = 0;
  std::uint32_t parity = 0;
  for (int i = first + layout.ring; i < last; ++i) {
    barrier_wait(layout.empty(stage), parity);
    copy_stage<Tile>(p, layout, corner, i, stage);
    if (++stage == layout.ring) {
      stage = 0;
      parity ^= 1U;
    }
  }
}

template <class Tile>
using Sums = float[Tile::kColumns / 8][4];

/// Adds the products of `stages` stages to 64 rows of the tile.
template <class Tile>
__device__ __forceinline__ void multiply(Sums<Tile>& c, int stages,
                                         const SharedLayout<Tile>& layout, int group, int lane) {
  int stage = 0, previous = 0;
  std::uint32_t parity = 0;
  for (int i = 0; i < stages; ++i) {
    barrier_wait(layout.full(stage), parity);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kDepth / 16; ++step) {
      const std::uint32_t a = layout.a(stage) + group * 64 * kRowBytes + step * kStepBytes;
      const std::uint32_t b = layout.b(stage);
      const std::uint64_t b_descriptor =
          Tile::kTransposed ? wgmma_descriptor(b + step * 16 * kRowBytes, Tile::kPartBytes)
                            : wgmma_descriptor(b + step * kStepBytes);
      wgmma_shared<typename Tile::T, Tile::kColumns, Tile::kTransposed>(c, wgmma_descriptor(a),
                                                                        b_descriptor);
    }
    wgmma_commit();
    if (i > 0) {
      wgmma_wait<1>();
      barrier_arrive_for_warp(layout.empty(previous), lane);
    }
    previous = stage;
    if (++stage == layout.ring) {
      stage = 0;
      parity ^= 1U;
    }
  }
  wgmma_wait<0>();
  wgmma_settle(c);
}

/// Waits for all threads of the cluster, and shows each what the others wrote.
__device__ __forceinline__ void synchronize(int parts) {
  if (parts == 1) return __syncthreads();
  __syncwarp();
  asm volatile("barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;" ::
                   : "memory");
}

/// Four floats from the shared memory of block `rank` of the cluster, at an address of this block's;
/// not volatile, so that several loads are under way at once.
__device__ __forceinline__ float4 load_sums(std::uint32_t address, int rank) {
  float4 sums;
  asm("{ .reg .u32 there; mapa.shared::cluster.u32 there, %4, %5;"
      " ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [there]; }"
      : "=f"(sums.x), "=f"(sums.y), "=f"(sums.z), "=f"(sums.w)
      : "r"(address), "r"(rank));
  return sums;
}

__device__ __forceinline__ void prefetch(const void* data) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(data));
}

template <class T>
__device__ __forceinline__ void load_vector(float (&x)[kVector], const void* data,
                                            std::int64_t at) {
  const Pack<T, kVector> pack = load_pack<T, kVector>(static_cast<const T*>(data) + at);
#pragma unroll
  for (int i = 0; i < kVector; ++i) x[i] = widen(pack.item[i]);
}

template <class T>
__device__ __forceinline__ void store_vector(void* data, std::int64_t at,
                                             const float (&x)[kVector]) {
  Pack<T, kVector> pack;
#pragma unroll
  for (int i = 0; i < kVector; ++i) pack.item[i] = convert<T>(x[i]);
  store_pack(static_cast<T*>(data) + at, pack);
}

/// What follows the sum, for neighbours of D. The choice is made once for a vector: made for an element,
/// it keeps them from overlapping.
template <class T>
__device__ __forceinline__ void finish_vector(const SplitParams& p, int row, int column,
                                              float (&x)[kVector]) {
  float other[kVector] = {};
  if (p.addend != nullptr) {
    load_vector<T>(other, p.addend, row * p.addend_leading + column);
#pragma unroll
    for (int i = 0; i < kVector; ++i) x[i] += other[i];
  }
  if (p.bias != nullptr) {
    load_vector<T>(other, p.bias, column);
#pragma unroll
    for (int i = 0; i < kVector; ++i) x[i] += other[i];
  }
  const bool reads_aux = is_gradient(p.epilogue);
  if (reads_aux) load_vector<T>(other, p.aux, row * p.aux_leading + column);
  float second[kVector];
  with_epilogue(p.epilogue, [&](auto epilogue) {
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      const Finished finished = finish<epilogue.value>(x[i], other[i]);
      x[i] = finished.d;
      second[i] = finished.second;
    }
  });
  if (reads_aux && p.activation != nullptr) {
    store_vector<T>(p.activation, static_cast<std::int64_t>(row) * p.n + column, second);
  } else if (!reads_aux && p.aux != nullptr) {
    store_vector<T>(p.aux, row * p.aux_leading + column, second);
  }
  store_vector<T>(p.d, row * p.d_leading + column, x);
}

/// The vectors of the tile that this block finishes, first to last, numbered along the rows.
struct Share {
  int first, last;
};
template <class Tile>
__device__ __forceinline__ Share share_of(const SplitParams& p, Corner corner, int part) {
  const int vectors = min(Tile::kRows, p.m - corner.row) * (Tile::kColumns / kVector);
  return {part * vectors / p.parts, (part + 1) * vectors / p.parts};
}

/// Has what the end will read beside the sums brought to the cache, while the products run.
template <class Tile>
__device__ __forceinline__ void prefetch_share(const SplitParams& p, Corner corner, Share share,
                                               int thread) {
  using T = typename Tile::T;
  constexpr int kAcross = Tile::kColumns / kVector;
  if (p.bias != nullptr && thread < kAcross && corner.column + thread * kVector < p.n) {
    prefetch(static_cast<const T*>(p.bias) + corner.column + thread * kVector);
  }
  const bool reads_aux = is_gradient(p.epilogue);
  if (p.addend == nullptr && !reads_aux) return;
  for (int i = share.first + thread; i < share.last; i += Tile::kConsumers) {
    const std::int64_t row = corner.row + i / kAcross;
    const int column = corner.column + i % kAcross * kVector;
    if (column >= p.n) continue;
    if (p.addend != nullptr) {
      prefetch(static_cast<const T*>(p.addend) + row * p.addend_leading + column);
    }
    if (reads_aux) prefetch(static_cast<const T*>(p.aux) + row * p.aux_leading + column);
  }
}

/// Adds, finishes and stores this block's share of the tile.
template <class Tile>
__device__ __forceinline__ void finish_share(const SplitParams& p, const SharedLayout<Tile>& layout,
                                             Corner corner, Share share, int thread) {
  constexpr int kAcross = Tile::kColumns / kVector;
  SharedLayout<Tile> written = layout;  // the address keeps loads behind the barrier
  asm volatile("" : "+r"(written.stages)::"memory");
  for (int i = share.first + thread; i < share.last; i += kAtOnce * Tile::kConsumers) {
    float x[kAtOnce][kVector] = {};
#pragma unroll 2
    for (int rank = 0; rank < p.parts; ++rank) {
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) {
        const int at = min(i + u * Tile::kConsumers, share.last - 1);
        const float4 part = load_sums(written.sum(at / kAcross, at % kAcross * kVector), rank);
        x[u][0] += part.x, x[u][1] += part.y, x[u][2] += part.z, x[u][3] += part.w;
      }
    }
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      const int at = i + u * Tile::kConsumers;
      const int column = corner.column + at % kAcross * kVector;
      if (at >= share.last || column >= p.n) continue;
      finish_vector<typename Tile::T>(p, corner.row + at / kAcross, column, x[u]);
    }
  }
}

/// The products of one warp, and its 16 rows of sums to shared memory.
template <class Tile>
__device__ __forceinline__ void multiply_share(const SharedLayout<Tile>& layout, int stages,
                                               int warp, int lane) {
  Sums<Tile> c;
#pragma unroll
  for (int j = 0; j < Tile::kColumns / 8; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) c[j][i] = 0;
  }
  multiply<Tile>(c, stages, layout, warp / 4, lane);
  // Nobody reads stages any more.
  asm volatile("bar.sync 1, %0;" ::"n"(Tile::kConsumers) : "memory");
  const int row = 16 * warp + lane / 4, column = 2 * (lane % 4);
#pragma unroll
  for (int j = 0; j < Tile::kColumns / 8; ++j) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      asm volatile(
          "st.shared.v2.f32 [%0], {%1, %2};" ::"r"(layout.sum(row + 8 * half, column + 8 * j)),
          "f"(c[j][2 * half]), "f"(c[j][2 * half + 1])
          : "memory");
    }
  }
}

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kMostResident)
    gemm_split_wgmma_kernel(const __grid_constant__ SplitParams p) {
  if constexpr (kHasWgmma) {
    extern __shared__ unsigned char shared[];
    const SharedLayout<Tile> layout(shared, p.ring);
    const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
    const int part = static_cast<int>(blockIdx.x) % p.parts;
    const Corner corner = corner_of<Tile>(p, static_cast<int>(blockIdx.x) / p.parts);
    const int first = part * p.stages_of_sum / p.parts;
    const int last = (part + 1) * p.stages_of_sum / p.parts;
    const Share share = share_of<Tile>(p, corner, part);
    const bool copies = warp == Tile::kConsumers / 32;
    if (!copies) {
      prefetch_share<Tile>(p, corner, share, thread);
    } else if (lane == 0) {
      start_copies<Tile>(p, layout, corner, first, last);
    }
    __syncthreads();
    if (!copies) {
      multiply_share<Tile>(layout, last - first, warp, lane);
    } else if (lane == 0) {
      copy_stages<Tile>(p, layout, corner, first, last);
    }
    synchronize(p.parts);
    if (!copies) finish_share<Tile>(p, layout, corner, share, thread);
    if (p.parts > 1) synchronize(p.parts);  // a block's shared memory must outlast its readers
  }
}

/// Stages in shared memory: a block that has a multiprocessor for itself takes nearly all of it.
template <class Tile>
int ring_of(std::int64_t blocks, int stages, int multiprocessors) {
  const int resident = blocks <= multiprocessors ? 1 : blocks <= 2 * multiprocessors ? 2 : 3;
  constexpr int kOfMultiprocessor = 222 * 1024;
  const int fitting =
      (kOfMultiprocessor / std::min(resident, Tile::kMostResident) - 3 * 1024) / Tile::kStageBytes;
  return std::clamp(stages, 1, fitting);
}

template <class Tile>
void launch_tile(Stream stream, const char* name, const GemmProblem& problem, int parts,
                 void* activation) {
  const std::int64_t m = problem.m, n = problem.n, k = problem.k;
  const GemmOperand& a = problem.a;
  const GemmOperand& b = problem.b;
  const int rows = static_cast<int>(std::min<std::int64_t>(Tile::kRows, ceil_div(m, 8) * 8));
  SplitParams p{};
  p.a = make_tensor_map(a.data, problem.dtype, m, k, a.leading, rows);
  p.b = Tile::kTransposed ? make_tensor_map(b.data, problem.dtype, k, n, b.leading, kDepth)
                          : make_tensor_map(b.data, problem.dtype, n, k, b.leading, Tile::kColumns);
  p.bias = problem.bias;
  p.addend = problem.c.data;
  p.addend_leading = problem.c.leading;
  p.d = problem.d;
  p.d_leading = problem.d_leading;
  p.aux = problem.aux;
  p.aux_leading = problem.aux_leading;
  p.activation = activation;
  p.m = static_cast<int>(m);
  p.n = static_cast<int>(n);
  p.stages_of_sum = static_cast<int>(ceil_div(k, kDepth));
  p.tiles_m = static_cast<int>(ceil_div(m, Tile::kRows));
  p.tiles_n = static_cast<int>(ceil_div(n, Tile::kColumns));
  p.parts = parts;
  p.bytes_of_stage = rows * kRowBytes + Tile::kBytesB;
  p.epilogue = problem.epilogue;
  const std::int64_t blocks = std::int64_t{p.tiles_m} * p.tiles_n * parts;
  p.ring = ring_of<Tile>(blocks, static_cast<int>(ceil_div(p.stages_of_sum, parts)),
                         device_limits(stream.device).multiprocessors);
  const LaunchShape shape{blocks, Tile::kThreads,
                          static_cast<std::size_t>(Tile::shared_bytes(p.ring))};
  launch_cluster(stream, name, gemm_split_wgmma_kernel<Tile>, shape, parts, p);
}

template <class T, bool kTransposed>
void launch_plan(Stream stream, const char* name, const GemmProblem& p, const SplitPlan& plan,
                 void* activation) {
  if (plan.columns == 64) {
    return launch_tile<Tile<T, kTransposed, 64, 64>>(stream, name, p, plan.parts, activation);
  }
  if (plan.rows == 64) {
    return launch_tile<Tile<T, kTransposed, 64, 128>>(stream, name, p, plan.parts, activation);
  }
  launch_tile<Tile<T, kTransposed, 128, 128>>(stream, name, p, plan.parts, activation);
}

template <class T>
void launch_layout(Stream stream, const char* name, const GemmProblem& p, const SplitPlan& plan,
                   void* activation) {
  // GemmOperand speaks of B (k, n): stored transposed, its rows are n.
  if (p.b.transposed) return launch_plan<T, false>(stream, name, p, plan, activation);
  launch_plan<T, true>(stream, name, p, plan, activation);
}

bool is_aligned_row(const void* data, std::int64_t leading) {
  constexpr std::uintptr_t kBytes = 16;
  return reinterpret_cast<std::uintptr_t>(data) % kBytes == 0 && leading % 8 == 0;
}

}  // namespace

bool gemm_split_takes(const GemmProblem& p, const DeviceLimits& limits) {
  constexpr std::int64_t kMost = std::int64_t{1} << 26;  // parts of sizes fit 32 bits
  return has_wgmma(limits) && (p.dtype == DType::float16 || p.dtype == DType::bfloat16) &&
         p.stored_dtype() == p.dtype && p.batch == 1 && !p.a.transposed && p.n % 8 == 0 &&
         p.m < kMost && p.n < kMost && p.k < kMost &&
         ceil_div(p.m, 64) * ceil_div(p.n, 64) < kMost && is_aligned_row(p.a.data, p.a.leading) &&
         is_aligned_row(p.b.data, p.b.leading) && is_aligned_row(p.d, p.d_leading) &&
         is_aligned_row(p.bias, 0) && (p.c.data == nullptr || !p.c.transposed) &&
         is_aligned_row(p.c.data, p.c.data == nullptr ? 0 : p.c.leading) &&
         is_aligned_row(p.aux, p.aux_leading);
}

bool gemm_split_prefers(const GemmProblem& p) {
  constexpr std::int64_t kShortestSum = 2560, kMostRows = 64, kFewestTiles = 8, kMostTiles = 16;
  const std::int64_t tiles = ceil_div(p.m, 64) * ceil_div(p.n, 64);
  return p.k >= kShortestSum && p.m <= kMostRows && tiles >= kFewestTiles && tiles <= kMostTiles &&
         reads_whole_sectors(p);
}

namespace {

/// Some microseconds that an H200 takes beside what all plans take, fitted to 240 products: blocks read at
/// 110 KB/us, end in 0.8 us for 64 x 64 results, and need 0.15 us for each part of a cluster.
double cost_of(const SplitPlan& plan, std::int64_t m, std::int64_t n, std::int64_t k,
               int multiprocessors) {
  const std::int64_t blocks = ceil_div(m, plan.rows) * ceil_div(n, plan.columns) * plan.parts;
  // Clusters leave those multiprocessors idle that do not fit their size.
  const std::int64_t slots = std::max<std::int64_t>(
      plan.parts, plan.parts == 1 ? multiprocessors : multiprocessors - 12 - 2 * plan.parts);
  const auto rounds = static_cast<double>(ceil_div(blocks, slots));
  const std::int64_t rows = std::min<std::int64_t>(plan.rows, ceil_div(m, 8) * 8);
  const std::int64_t stages = ceil_div(ceil_div(k, kDepth), plan.parts);
  const double kilobytes = static_cast<double>(stages * (rows + plan.columns) * kRowBytes) / 1024;
  const double finish = 0.8 * plan.rows * plan.columns / 4096;
  return rounds * (kilobytes / 110 + finish) + (plan.parts > 1 ? 0.15 * plan.parts : 0);
}

}  // namespace

SplitPlan plan_split(std::int64_t m, std::int64_t n, std::int64_t k, int multiprocessors) {
  SplitPlan best;
  double least = cost_of(best, m, n, k, multiprocessors);
  for (const auto& [rows, columns] : {std::pair{64, 64}, {64, 128}, {128, 128}}) {
    for (const int parts : {1, 2, 3, 4, 6, 8}) {
      if (parts > ceil_div(k, kDepth)) continue;
      const SplitPlan plan{rows, columns, parts};
      const double cost = cost_of(plan, m, n, k, multiprocessors);
      if (cost >= least) continue;
      best = plan;
      least = cost;
    }
  }
  return best;
}

void gemm_split(Stream stream, const char* name, const GemmProblem& problem, const SplitPlan& plan,
                void* activation) {
  if (problem.dtype == DType::float16) {
    return launch_layout<Half>(stream, name, problem, plan, activation);
  }
  launch_layout<BFloat16>(stream, name, problem, plan, activation);
}

}  // namespace tenon::cuda
