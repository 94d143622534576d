// dQ, or dK and dV, of attention by wgmma, for heads up to 64; the sums and their order are those of
// attention_backward_mma.cuh. A block stays on its multiprocessor and computes item after item, an item
// being 128 rows of one batch:
//
//   warpgroup 0       copies an item's own rows, and tiles of 64 rows of the other side to a ring
//   warpgroups 1, 2   hold 64 own rows each in registers, as A fragments, and walk over the tiles
//
// Keys that several batches share are an item for each of these in turn, whose sums go on.
//
// Products of a warpgroup are queued so that the tensor cores have work while scores are finished:
//
//   registers   P(i)             dS(i)                           P(i+1)
//   queued           dV(i)             S(i+1)  dK(i)  dP(i+1)            dV(i+1)
//
// P waits for S alone, dS for dP; dQ takes the place of dK, and queries have no dV.
#include "cuda/device/tma.cuh"
#include "cuda/kernels/attention_backward_mma.cuh"
#include "cuda/kernels/attention_backward_scores.cuh"

namespace tenon::cuda {

/// One turn of a block: its item and, of the batches that share the item's keys, one.
template <class T>
struct BackwardTurn {
  BackwardBlock<T> block;
  bool is_first, is_last;  // of the item's turns
  bool ends;               // the block's turns
};

/// Compile-time facts of a kernel. kKeys: it sums dK and dV, else dQ.
template <class T_, bool kDrops_, bool kKeys_, bool kMasks_>
struct WarpgroupTile {
  using T = T_;
  static constexpr bool kDrops = kDrops_;
  static constexpr bool kKeys = kKeys_;
  static constexpr bool kMasks = kMasks_;
  static constexpr bool kKeyMasks = kMasks_;  // the same for all queries
  static constexpr int kHead = 64;
  static constexpr int kRowTiles = 1;
  static constexpr int kColumnTiles = kStageRows / 8;
  static constexpr int kWarpRows = 16;
  static constexpr int kGroupRows = 64;
  static constexpr int kRows = 2 * kGroupRows;  // of an item
  static constexpr int kStages = 4;

  // Of three warpgroups, together the 504 that the block starts with.
  static constexpr int kProducerRegisters = kKeys ? 24 : 56;
  static constexpr int kConsumerRegisters = kKeys ? 240 : 224;

  // Own rows: K and V; or Q, dO, O and lse.
  static constexpr int kOwnBytes = kRows * kHead * 2;
  static constexpr int kOwnLse = (kKeys ? 2 : 3) * kOwnBytes;
  // A stage: Q and dO, or K and V; a bit for each pair; statistics of the queries.
  static constexpr int kRing = kOwnLse + (kKeys ? 0 : 1024);
  static constexpr int kOtherBytes = kStageRows * kHead * 2;
  static constexpr int kBits = 2 * kOtherBytes;
  static constexpr int kStatistics = kBits + (kDrops ? kStageRows * kRows / 8 : 0);
  static constexpr int kStageBytes =
      (kStatistics + (kKeys ? 2 * kStageRows * 4 : 0) + 1023) / 1024 * 1024;
  // 16 rows for each warp, through which results are written.
  static constexpr int kResults = kRing + kStages * kStageBytes;
  static constexpr int kItems = kResults + kOwnBytes;
  static constexpr int kBarriers = kItems + 2 * static_cast<int>(sizeof(BackwardTurn<T>));
  static constexpr int kSharedBytes =
      kBarriers + (2 * kStages + 2) * static_cast<int>(kBarrierBytes);
  static_assert(kSharedBytes <= 227 * 1024 && kBarriers % 8 == 0);
};

namespace {

constexpr int kGroupThreads = 128;
constexpr int kBlockThreads = 3 * kGroupThreads;
constexpr int kProducerWarps = 4;
constexpr int kConsumerWarps = 8;

/// Where the parts of a block's shared memory are.
template <class Tile>
struct Layout {
  unsigned char* shared;
  std::uint32_t address;
  std::uint64_t descriptor;  // of a tile at `address`

  __device__ __forceinline__ explicit Layout(unsigned char* shared_)
      : shared(shared_), address(shared_address(shared_)), descriptor(wgmma_descriptor(address)) {}

  __device__ __forceinline__ std::uint64_t tile(int offset) const {  // its descriptor
    return descriptor + (static_cast<std::uint32_t>(offset) >> 4);
  }

  __device__ __forceinline__ int stage(int index) const {  // an offset
    return Tile::kRing + index * Tile::kStageBytes;
  }
  __device__ __forceinline__ std::uint32_t full(int index) const {
    return address + Tile::kBarriers + index * kBarrierBytes;
  }
  __device__ __forceinline__ std::uint32_t empty(int index) const {
    return full(Tile::kStages + index);
  }
  __device__ __forceinline__ std::uint32_t own_full() const { return full(2 * Tile::kStages); }
  __device__ __forceinline__ std::uint32_t own_empty() const { return full(2 * Tile::kStages + 1); }
  __device__ __forceinline__ BackwardTurn<typename Tile::T>& turn(int number) const {
    return reinterpret_cast<BackwardTurn<typename Tile::T>*>(shared + Tile::kItems)[number & 1];
  }
};

/// The rows of the other side that meet the own rows from `row0` on, `rows` of them. Both ends of
/// causal walks are multiples of kStageRows, but for the last key, and the first key of masked ones.
struct Walk {
  std::int64_t first, end;
};

template <class Tile>
__device__ __forceinline__ Walk walk_of(const AttentionBackwardParams& params, std::int64_t batch,
                                        std::int64_t row0, int rows) {
  if (params.zero) return {0, 0};
  Walk walk = Tile::kKeys ? Walk{params.is_causal ? min(row0, params.length) : 0, params.length}
                          : Walk{0, visible_keys(params, row0 + rows)};
  if constexpr (Tile::kMasks) {
    const LiveKeys live = live_keys(params, batch);
    if (!Tile::kKeys) {
      walk.first = live.first / kStageRows * kStageRows;
      walk.end = max(min(walk.end, live.end), walk.first);
    } else if (row0 >= live.end || row0 + rows <= live.first) {
      walk.end = walk.first;
    }
  }
  return walk;
}

/// Which item a turn is for, and which of the batches that share its keys.
struct TurnPlace {
  std::uint32_t index, member;
};

/// Computed anew at each turn: a copying thread has no registers to keep it in. Causal items get shorter,
/// so blocks take them there and back: who had the longest of a round gets the shortest of the next.
template <class Tile>
__device__ __forceinline__ TurnPlace place_of(const AttentionBackwardParams& params,
                                              std::uint32_t turn) {
  const std::uint32_t group = Tile::kKeys ? static_cast<std::uint32_t>(params.group) : 1U;
  const std::uint32_t round = group == 1 ? turn : turn / group;
  const std::uint32_t place = round % 2 == 0 ? blockIdx.x : gridDim.x - 1 - blockIdx.x;
  return {round * gridDim.x + place, turn - round * group};
}

template <class Tile>
__device__ __forceinline__ std::uint32_t count_items(const AttentionBackwardParams& params,
                                                     std::uint32_t tiles) {
  return static_cast<std::uint32_t>(tiled_batches(params, Tile::kKeys)) * tiles;
}

/// How many tiles, the same in all lanes and known to be.
[[maybe_unused]] __device__ __forceinline__ int count_tiles(std::int64_t first, std::int64_t end) {
  const auto tiles = static_cast<int>((end - first + kStageRows - 1) / kStageRows);
  return __shfl_sync(kFullWarp, tiles, 0);
}

/// Copies that a thread has started for a barrier. It arrives there when later copies are under way.
template <class Tile>
struct CopyQueue {
  std::uint32_t pending = 0;

  template <int kPending>
  __device__ __forceinline__ void arrive() {
    if (pending == 0) return;
    copy_async_wait<kPending>();
    fence_async_proxy();
    barrier_arrive(pending);
  }
  /// The copies since the last commit are what `barrier` is for.
  __device__ __forceinline__ void commit(std::uint32_t barrier) {
    copy_async_commit();
    arrive<1>();
    pending = barrier;
  }
  __device__ __forceinline__ void flush() {
    arrive<0>();
    pending = 0;
  }
};

/// The thread, read anew, and below a stride: what is computed of them is not worth a register between
/// copies.
[[maybe_unused]] __device__ __forceinline__ int read_thread() {
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
}

/// Starts copying kTileRows rows of one operand from `row` on; what does not exist is 0.
template <class Tile, int kTileRows>
__device__ __forceinline__ void copy_operand(std::uint32_t shared, const typename Tile::T* data,
                                             const AttentionOperand& strides, std::int64_t row,
                                             std::int64_t rows, std::int64_t head) {
  constexpr int kRowsAtOnce = kGroupThreads / kHeadTiles<Tile>;
  static_assert(kRowsAtOnce % 8 == 0);  // the swizzle repeats
  const int first = read_thread() / kHeadTiles<Tile>;
  const int chunk = read_thread() % kHeadTiles<Tile>;
  const int present =
      8 * chunk < head ? static_cast<int>(min(rows - row, std::int64_t{kTileRows})) : 0;
  const std::uint32_t target = shared + chunk_offset<Tile>(first, chunk);
  std::int64_t stride = strides.row;
  asm volatile("" : "+l"(stride));
  const auto* source = data + (row + first) * stride + 8 * chunk;
#pragma unroll
  for (int i = 0; i < kTileRows; i += kRowsAtOnce) {
    copy_async16(target + i * kRowBytes<Tile>, source, i < present - first);
    source += kRowsAtOnce * stride;
  }
}

/// Starts copying an item's own rows.
template <class Tile>
__device__ __forceinline__ void copy_own(const AttentionBackwardParams& params,
                                         const BackwardBlock<typename Tile::T>& block,
                                         std::uint32_t own) {
  constexpr int kRows = Tile::kRows;
  const std::int64_t row0 = block.row0;
  if constexpr (Tile::kKeys) {
    copy_operand<Tile, kRows>(own, block.key, params.key_strides, row0, params.keys, params.head);
    copy_operand<Tile, kRows>(own + Tile::kOwnBytes, block.value, params.value_strides, row0,
                              params.keys, params.head_v);
  } else {
    copy_operand<Tile, kRows>(own, block.query, params.query_strides, row0, params.length,
                              params.head);
    copy_operand<Tile, kRows>(own + Tile::kOwnBytes, block.grad, params.grad_strides, row0,
                              params.length, params.head_v);
    copy_operand<Tile, kRows>(own + 2 * Tile::kOwnBytes, block.output, params.output_strides, row0,
                              params.length, params.head_v);
    const int thread = read_thread();
    const std::int64_t query = row0 + thread;
    copy_async<4>(own + Tile::kOwnLse + 4 * thread,
                  static_cast<const float*>(params.lse) + block.batch * params.length + query,
                  query < params.length);
  }
}

/// Starts copying one tile of the other side, its decisions and its statistics.
template <class Tile>
__device__ __forceinline__ void copy_stage(const AttentionBackwardParams& params,
                                           const BackwardBlock<typename Tile::T>& block,
                                           std::uint32_t stage, std::int64_t other) {
  const int thread = read_thread();
  const auto copy_bits = [&]<int kBytes>(std::int64_t query, std::int64_t key) {
    const std::int64_t row = block.batch * params.length + query;
    copy_async<kBytes>(stage + Tile::kBits + thread * kBytes,
                       params.keep_bits + row * params.keep_bits_stride + key / 8,
                       query < params.length);
  };
  if constexpr (Tile::kKeys) {
    copy_operand<Tile, kStageRows>(stage, block.query, params.query_strides, other, params.length,
                                   params.head);
    copy_operand<Tile, kStageRows>(stage + Tile::kOtherBytes, block.grad, params.grad_strides,
                                   other, params.length, params.head_v);
    static_assert(2 * kStageRows == kGroupThreads);
    const std::int64_t query = other + thread % kStageRows;
    const std::int64_t plane = thread < kStageRows ? 0 : params.batches * params.length;
    copy_async<4>(
        stage + Tile::kStatistics + 4 * thread,
        static_cast<const float*>(params.statistics) + plane + block.batch * params.length + query,
        query < params.length);
    if (Tile::kDrops && thread < kStageRows) {
      copy_bits.template operator()<Tile::kRows / 8>(query, block.row0);
    }
  } else {
    copy_operand<Tile, kStageRows>(stage, block.key, params.key_strides, other, params.keys,
                                   params.head);
    copy_operand<Tile, kStageRows>(stage + Tile::kOtherBytes, block.value, params.value_strides,
                                   other, params.keys, params.head_v);
    if (Tile::kDrops) copy_bits.template operator()<kStageRows / 8>(block.row0 + thread, other);
  }
}

/// The copying warpgroup: everything that this block's items need.
template <class Tile>
__device__ __forceinline__ void copy_items(const AttentionBackwardParams& params,
                                           std::uint32_t tiles, const Layout<Tile>& layout) {
  RingPosition<Tile::kStages> ring;
  CopyQueue<Tile> queue;
  int turn = 0;
  while (place_of<Tile>(params, turn).index < count_items<Tile>(params, tiles)) {
    // Whoever waits for what is pending may be waited for here.
    queue.flush();
    barrier_wait(layout.own_empty(), (turn & 1) ^ 1U);
    auto& item = layout.turn(turn);
    if (threadIdx.x == 0) {
      const auto [index, member] = place_of<Tile>(params, turn);
      auto block = locate_backward_block<typename Tile::T, std::uint32_t>(
          params, tiles, Tile::kRows, Tile::kKeys, index, member);
      // What nobody reads is not computed: registers are few here.
      if constexpr (Tile::kKeys) {
        block.output = nullptr;
        block.d_query = nullptr;
      } else {
        block.d_key = nullptr;
        block.d_value = nullptr;
      }
      const TurnPlace next = place_of<Tile>(params, turn + 1);
      item = {block, member == 0, next.member == 0, next.index >= count_items<Tile>(params, tiles)};
    }
    asm volatile("bar.sync 1, %0;" ::"n"(kGroupThreads) : "memory");
    const BackwardBlock<typename Tile::T> block = item.block;
    if (!params.zero) copy_own<Tile>(params, block, layout.address);
    queue.commit(layout.own_full());
    const Walk walk = walk_of<Tile>(params, block.batch, block.row0, Tile::kRows);
    for (std::int64_t other = walk.first; other < walk.end; other += kStageRows) {
      barrier_wait(layout.empty(ring.stage), ring.parity ^ 1U);
      copy_stage<Tile>(params, block, layout.address + layout.stage(ring.stage), other);
      queue.commit(layout.full(ring.stage));
      ring.advance();
    }
    ++turn;
  }
  queue.flush();
}

/// The registers of a consumer warp. The first operand meets Q or K, the second dO or V.
template <class Tile>
struct Accumulated {
  AllRows<Tile> first, second;
  Sums<Tile> d_first, d_second;      // dQ; or dK and dV
  float scale;                       // of scores, to powers of two
  RowValues<Tile> lse, delta;        // of own queries
  Scores<Tile> score, d_weight;      // under way, or P and dO·Vᵀ
  Weights<Tile> kept, d_score;       // A fragments of products that are under way
  RingPosition<Tile::kStages> ring;  // of the tile whose scores come next
};

/// scores = own rows · tileᵀ, started. Zeros that were written to the scores first would make the
/// compiler wait for earlier products.
template <class Tile>
__device__ __forceinline__ void start_scores(Scores<Tile>& scores, const AllRows<Tile>& own,
                                             std::uint64_t tile) {
  using T = typename Tile::T;
  constexpr int kStep = 32 / 16;  // 16 columns of a row, in units of a descriptor
  wgmma_fence();
  wgmma_m64n64k16<T, false, false>(scores[0], own[0][0], tile);
#pragma unroll
  for (int k = 1; k < kHeadSteps<Tile>; ++k) {
    wgmma_m64n64k16<T, false, true>(scores[0], own[k][0], tile + k * kStep);
  }
  wgmma_commit();
}

/// sums += weights · tile, started.
template <class Tile>
__device__ __forceinline__ void start_sums(Sums<Tile>& sums, const Weights<Tile>& weights,
                                           std::uint64_t tile) {
  constexpr int kStep = 16 * kRowBytes<Tile> / 16;  // 16 rows
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < kStageRows / 16; ++k) {
    const std::uint32_t a[4] = {weights[0][2 * k][0], weights[0][2 * k][1],
                                weights[0][2 * k + 1][0], weights[0][2 * k + 1][1]};
    wgmma_m64n64k16<typename Tile::T, true, true>(sums[0], a, tile + k * kStep);
  }
  wgmma_commit();
}

/// P of the tile in a stage, and A fragments of what dropout keeps of it.
template <class Tile>
__device__ __forceinline__ void finish_probabilities(const AttentionBackwardParams& params,
                                                     const Layout<Tile>& layout,
                                                     Accumulated<Tile>& a, const BatchMask& mask,
                                                     int stage, std::int64_t row0,
                                                     std::int64_t other, bool edge, int warp,
                                                     int lane) {
  if constexpr (Tile::kKeys) {
    const unsigned char* start = layout.shared + stage;
    finish_key_probabilities<Tile>(
        params, a.scale, a.score, reinterpret_cast<const float*>(start + Tile::kStatistics),
        start + Tile::kBits + warp * Tile::kWarpRows / 8, mask, row0, other, lane, a.kept, edge);
  } else {
    finish_query_probabilities<Tile>(params, a.scale, a.lse, a.score, mask, row0, other, lane,
                                     edge);
  }
}

/// A fragments of dS of the tile in a stage.
template <class Tile>
__device__ __forceinline__ void finish_weights(const Layout<Tile>& layout, Accumulated<Tile>& a,
                                               int stage, int warp, int lane) {
  const unsigned char* start = layout.shared + stage;
  if constexpr (Tile::kKeys) {
    finish_key_weights<Tile>(a.score, a.d_weight,
                             reinterpret_cast<const float*>(start + Tile::kStatistics) + kStageRows,
                             lane, a.d_score);
  } else {
    finish_query_weights<Tile>(a.delta, a.score, a.d_weight,
                               start + Tile::kBits + warp * Tile::kWarpRows * (kStageRows / 8),
                               lane, a.d_score);
  }
}

/// Passes tiles that only the other warpgroup needs.
template <class Tile>
__device__ __forceinline__ void skip_tiles(const Layout<Tile>& layout, Accumulated<Tile>& a,
                                           int count, int lane) {
  for (; count > 0; --count) {
    // An arrival before the stage is full would count for the round before.
    barrier_wait(layout.full(a.ring.stage), a.ring.parity);
    // A lane that has not seen it full would wait for the round after, which its own warp has let
    // come.
    __syncwarp();
    barrier_arrive_for_warp(layout.empty(a.ring.stage), lane);
    a.ring.advance();
  }
}

/// S and dO·Vᵀ of the tile in a stage are under way, with `kBetween` products between them: finishes P and
/// dS, and adds to dV.
template <class Tile, int kBetween>
__device__ __forceinline__ void finish_tile(const AttentionBackwardParams& params,
                                            const Layout<Tile>& layout, Accumulated<Tile>& a,
                                            const BatchMask& mask, int stage, std::int64_t row0,
                                            std::int64_t other, bool edge, int warp, int lane) {
  wgmma_wait<1 + kBetween>();
  wgmma_settle(a.score[0]);
  finish_probabilities<Tile>(params, layout, a, mask, stage, row0, other, edge, warp, lane);
  if constexpr (Tile::kKeys) {
    start_sums<Tile>(a.d_second, a.kept, layout.tile(stage + Tile::kOtherBytes));
    wgmma_wait<1>();
  } else {
    wgmma_wait<0>();
  }
  wgmma_settle(a.d_weight[0]);
  wgmma_settle(a.d_score[0]);
  finish_weights<Tile>(layout, a, stage, warp, lane);
}

/// Adds what the tiles from `other` on give. Nothing is under way when a pass through the loop ends: the
/// compiler would not let products run on that it cannot count.
template <class Tile>
__device__ __forceinline__ void add_tiles(const AttentionBackwardParams& params,
                                          const Layout<Tile>& layout, Accumulated<Tile>& a,
                                          const BatchMask& mask, std::int64_t row0,
                                          std::int64_t other, int tiles, int warp, int lane) {
  if (tiles == 0) return;
  int stage = layout.stage(a.ring.stage);
  barrier_wait(layout.full(a.ring.stage), a.ring.parity);
  start_scores<Tile>(a.score, a.first, layout.tile(stage));
  start_scores<Tile>(a.d_weight, a.second, layout.tile(stage + Tile::kOtherBytes));
  // The diagonal is in the first tile of queries, or in the last tile of keys.
  const bool first_is_edge = Tile::kKeys ? params.is_causal : tiles == 1;
  finish_tile<Tile, 0>(params, layout, a, mask, stage, row0, other, first_is_edge, warp, lane);
#pragma unroll 1
  for (; tiles > 1; --tiles) {
    const std::uint64_t done = layout.tile(stage);
    const std::uint32_t empty = layout.empty(a.ring.stage);
    a.ring.advance();
    stage = layout.stage(a.ring.stage);
    barrier_wait(layout.full(a.ring.stage), a.ring.parity);
    wgmma_wait<0>();  // for dV
    wgmma_settle(a.kept[0]);
    start_scores<Tile>(a.score, a.first, layout.tile(stage));
    start_sums<Tile>(a.d_first, a.d_score, done);
    start_scores<Tile>(a.d_weight, a.second, layout.tile(stage + Tile::kOtherBytes));
    other += kStageRows;
    const bool edge = !Tile::kKeys && tiles == 2;
    finish_tile<Tile, 1>(params, layout, a, mask, stage, row0, other, edge, warp, lane);
    barrier_arrive_for_warp(empty, lane);
  }
  start_sums<Tile>(a.d_first, a.d_score, layout.tile(stage));
  wgmma_wait<0>();
  wgmma_settle(a.d_first[0]);
  if constexpr (Tile::kKeys) wgmma_settle(a.d_second[0]);
  barrier_arrive_for_warp(layout.empty(a.ring.stage), lane);
  a.ring.advance();
}

/// Finds and writes the statistics of the warp's queries.
template <class Tile>
__device__ __forceinline__ void find_statistics(const AttentionBackwardParams& params,
                                                const Layout<Tile>& layout, Accumulated<Tile>& a,
                                                std::int64_t batch, std::int64_t row0, int warp_row,
                                                int lane) {
  using T = typename Tile::T;
  const auto* own_lse = reinterpret_cast<const float*>(layout.shared + Tile::kOwnLse);
  const auto keep_scale = static_cast<float>(params.keep_scale);
  auto* statistics = static_cast<float*>(params.statistics);
  float delta[2] = {};
#pragma unroll
  for (int k = 0; k < kHeadSteps<Tile>; ++k) {
    RowFragments<Tile> output;
    load_rows<Tile>(output, layout.address + 2 * Tile::kOwnBytes, warp_row, lane, k);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 o = unpack_floats<T>(output[0][i]);
      const float2 g = unpack_floats<T>(a.second[k][0][i]);
      delta[i % 2] = fmaf(o.x, g.x, fmaf(o.y, g.y, delta[i % 2]));
    }
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    delta[h] += __shfl_xor_sync(kFullWarp, delta[h], 1);
    delta[h] += __shfl_xor_sync(kFullWarp, delta[h], 2);
    const int row = 8 * h + (lane >> 2);
    const float lse = own_lse[warp_row + row] * static_cast<float>(1 / kLn2);
    a.lse[0][h] = (Tile::kMasks ? finite_or_infinite(lse) : lse) - log2f(keep_scale);
    a.delta[0][h] = delta[h] / keep_scale;
    if (row0 + row >= params.length || (lane & 3) != 0) continue;
    const std::int64_t index = batch * params.length + row0 + row;
    statistics[index] = a.lse[0][h];
    statistics[params.batches * params.length + index] = a.delta[0][h];
  }
}

/// Writes a warp's sums times `factor`.
template <class Tile>
__device__ __forceinline__ void write_sums(const Layout<Tile>& layout, const Sums<Tile>& sums,
                                           float factor, typename Tile::T* data,
                                           const AttentionOperand& strides, std::int64_t row0,
                                           std::int64_t rows, std::int64_t head, int warp_row,
                                           int lane) {
  const float factors[1][2] = {{factor, factor}};
  write_rows<Tile>(
      {data + row0 * strides.row, strides.row, strides.column, rows - row0, static_cast<int>(head)},
      sums, factors, layout.shared + Tile::kResults, warp_row, lane);
}

/// A consumer warp, one of eight: its 16 rows of every item.
template <class Tile>
__device__ __forceinline__ void add_items(const AttentionBackwardParams& params, float scale,
                                          const Layout<Tile>& layout, int warp, int lane) {
  const int warp_row = warp * Tile::kWarpRows;
  const int group_row = warp / 4 * Tile::kGroupRows;
  Accumulated<Tile> a;
  a.scale = scale;
  bool ends = false;
  for (std::uint32_t number = 0; !ends; ++number) {
    barrier_wait(layout.own_full(), number & 1U);
    const auto& turn = layout.turn(static_cast<int>(number));
    const auto& item = turn.block;
    const std::int64_t row0 = item.row0 + warp_row;
    load_all_rows<Tile>(a.first, layout.address, warp_row, lane);
    load_all_rows<Tile>(a.second, layout.address + Tile::kOwnBytes, warp_row, lane);
    if constexpr (!Tile::kKeys) {
      find_statistics<Tile>(params, layout, a, item.batch, row0, warp_row, lane);
    }
    __syncwarp();
    barrier_arrive_for_warp(layout.own_empty(), lane);

    if (turn.is_first) {
      clear_scores<Tile>(a.d_first);
      clear_scores<Tile>(a.d_second);
    }
    const Walk all = walk_of<Tile>(params, item.batch, item.row0, Tile::kRows);
    const Walk walk = walk_of<Tile>(params, item.batch, item.row0 + group_row, Tile::kGroupRows);
    const BatchMask mask = mask_of_batch<Tile>(params, item.batch);
    const int tiles_before = count_tiles(all.first, walk.first);
    const int own_tiles = count_tiles(walk.first, walk.end);
    skip_tiles<Tile>(layout, a, tiles_before, lane);
    add_tiles<Tile>(params, layout, a, mask, row0, walk.first, own_tiles, warp, lane);
    skip_tiles<Tile>(layout, a, count_tiles(all.first, all.end) - tiles_before - own_tiles, lane);

    const auto factor = static_cast<float>(params.scale);
    ends = turn.ends;
    if (!turn.is_last) continue;
    if constexpr (Tile::kKeys) {
      write_sums<Tile>(layout, a.d_first, factor, item.d_key, params.d_key_strides, row0,
                       params.keys, params.head, warp_row, lane);
      write_sums<Tile>(layout, a.d_second, 1.0F, item.d_value, params.d_value_strides, row0,
                       params.keys, params.head_v, warp_row, lane);
    } else {
      write_sums<Tile>(layout, a.d_first, factor, item.d_query, params.d_query_strides, row0,
                       params.length, params.head, warp_row, lane);
    }
  }
}

template <class Tile>
__global__ void __launch_bounds__(kBlockThreads, 1)
    backward_wgmma_kernel(const __grid_constant__ AttentionBackwardParams params,
                          std::uint32_t tiles, float scale) {
  if constexpr (kHasWgmma) {
    extern __shared__ __align__(1024) unsigned char shared[];
    const Layout<Tile> layout(shared);
    const int thread = static_cast<int>(threadIdx.x);
    if (thread == 0) {
      for (int stage = 0; stage < Tile::kStages; ++stage) {
        barrier_init(layout.full(stage), kGroupThreads);
        barrier_init(layout.empty(stage), kConsumerWarps * kWarpArrivals);
      }
      barrier_init(layout.own_full(), kGroupThreads);
      barrier_init(layout.own_empty(), kConsumerWarps * kWarpArrivals);
      fence_barrier_init();
    }
    __syncthreads();
    if (thread < kGroupThreads) {
      release_registers<Tile::kProducerRegisters>();
      copy_items<Tile>(params, tiles, layout);
    } else {
      take_registers<Tile::kConsumerRegisters>();
      add_items<Tile>(params, scale, layout, uniform_warp() - kProducerWarps, thread % 32);
    }
  }
}

template <class Tile>
void launch_tile(const AttentionBackwardParams& params, Stream stream) {
  const auto tiles =
      static_cast<std::uint32_t>(ceil_div(Tile::kKeys ? params.keys : params.length, Tile::kRows));
  const int multiprocessors = device_limits(stream.device).multiprocessors;
  launch(stream, Tile::kKeys ? "attention_backward_keys" : "attention_backward_queries",
         backward_wgmma_kernel<Tile>,
         std::min(std::int64_t{multiprocessors}, tiled_batches(params, Tile::kKeys) * tiles),
         kBlockThreads, Tile::kSharedBytes, params, tiles, static_cast<float>(params.scale_log2));
}

template <class T, bool kKeys>
void launch_side(const AttentionBackwardParams& params, Stream stream) {
  const bool drops = params.has_dropout && !params.zero;
  if (params.key_bias != nullptr) {
    if (drops) return launch_tile<WarpgroupTile<T, true, kKeys, true>>(params, stream);
    return launch_tile<WarpgroupTile<T, false, kKeys, true>>(params, stream);
  }
  if (drops) return launch_tile<WarpgroupTile<T, true, kKeys, false>>(params, stream);
  launch_tile<WarpgroupTile<T, false, kKeys, false>>(params, stream);
}

}  // namespace

void launch_backward_wgmma(const AttentionBackwardParams& params, DType dtype, Stream stream) {
  if (dtype == DType::float16) {
    launch_side<Half, false>(params, stream);
    return launch_side<Half, true>(params, stream);
  }
  launch_side<BFloat16, false>(params, stream);
  launch_side<BFloat16, true>(params, stream);
}

}  // namespace tenon::cuda
