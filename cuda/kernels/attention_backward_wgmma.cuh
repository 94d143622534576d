// Attention's gradient by wgmma: the tiles of its kernels, and the warpgroup that copies what the others
// compute with; see attention_backward_wgmma_sums.cuh.
#pragma once

#include "cuda/device/tma.cuh"
#include "cuda/kernels/attention_backward_mma.cuh"

namespace tenon::cuda {

/// A mask as these kernels know it: none, one that is the same for all queries, or an additive one of
/// (queries, keys), copied to shared memory with the tiles.
enum class BackwardMask : std::uint8_t { none, keys, pairs };

/// One turn of a block: its item and, of the batches that share the item's keys, one.
template <class T>
struct BackwardTurn {
  BackwardBlock<T> block;
  bool is_first, is_last;  // of the item's turns
  bool ends;               // the block's turns
};

inline constexpr int kPartColumns = 64;  // of a swizzled row of a tile, whose parts lie one by one
inline constexpr int kPartRowBytes = 2 * kPartColumns;

/// Compile-time facts of a kernel. kKeys: it sums dK and dV, else dQ.
template <class T_, int kHead_, bool kDrops_, bool kKeys_, BackwardMask kMask_>
struct WarpgroupTile {
  using T = T_;
  static constexpr bool kDrops = kDrops_;
  static constexpr bool kKeys = kKeys_;
  static constexpr bool kMasks = kMask_ == BackwardMask::keys;
  static constexpr bool kKeyMasks = kMasks;
  static constexpr bool kPairs = kMask_ == BackwardMask::pairs;
  static constexpr int kHead = kHead_;
  static constexpr int kParts = kHead / kPartColumns;
  static constexpr bool kWide = kParts > 1;
  static constexpr int kRowTiles = 1;
  static constexpr int kColumnTiles = kStageRows / 8;
  static constexpr int kWarpRows = 16;
  static constexpr int kGroupRows = 64;
  static constexpr int kRows = 2 * kGroupRows;  // of an item
  static constexpr int kStages = kWide && kPairs ? 3 : 4;
  // The sums of wide keys leave no registers for own rows: products read them where they lie.
  static constexpr bool kTight = kWide && kKeys;
  // Own rows stay until an item is written, through their memory; else the next item's come early.
  static constexpr bool kKeepsOwn = kWide && (kKeys || kPairs);

  // Of three warpgroups, together the 504 that the block starts with.
  static constexpr int kProducerRegisters = kKeys || kWide ? 24 : 56;
  static constexpr int kConsumerRegisters = (504 - kProducerRegisters) / 2;

  // Own rows: K and V; or Q, dO, O and lse. A wide O comes as a stage before those of the keys.
  static constexpr int kOwnPart = kRows * kPartRowBytes;
  static constexpr int kOwnBytes = kParts * kOwnPart;
  static constexpr int kOwnLse = (kKeys || kWide ? 2 : 3) * kOwnBytes;
  // A stage: Q and dO, or K and V; a mask of pairs; a bit for each pair; statistics of the queries.
  static constexpr int kRing = kOwnLse + (kKeys ? 0 : 1024);
  static constexpr int kOtherPart = kStageRows * kPartRowBytes;
  static constexpr int kOtherBytes = kParts * kOtherPart;
  static constexpr int kPairMask = 2 * kOtherBytes;
  static constexpr int kBits = kPairMask + (kPairs ? kStageRows * kRows * 2 : 0);
  static constexpr int kStatistics = kBits + (kDrops ? kStageRows * kRows / 8 : 0);
  static constexpr int kStageBytes =
      (kStatistics + (kKeys ? 2 * kStageRows * 4 : 0) + 1023) / 1024 * 1024;
  // 16 rows for each warp, through which results are written, part by part.
  static constexpr int kRingEnd = kRing + kStages * kStageBytes;
  static constexpr int kResults = kKeepsOwn ? 0 : kRingEnd;
  static constexpr int kItems = kRingEnd + (kKeepsOwn ? 0 : kOwnPart);
  static constexpr int kBarriers = kItems + 2 * static_cast<int>(sizeof(BackwardTurn<T>));
  static constexpr int kSharedBytes =
      kBarriers + (2 * kStages + 2) * static_cast<int>(kBarrierBytes);
  static_assert(kSharedBytes <= 227 * 1024 && kBarriers % 8 == 0);
};

inline constexpr int kGroupThreads = 128;
inline constexpr int kBlockThreads = 3 * kGroupThreads;
inline constexpr int kProducerWarps = 4;
inline constexpr int kConsumerWarps = 8;

/// Byte offset of a 16-byte chunk in a tile of kTileRows rows, swizzled as wgmma reads it.
template <int kTileRows>
__device__ __forceinline__ int swizzled_offset(int row, int chunk) {
  constexpr int kChunks = kPartRowBytes / 16;
  return chunk / kChunks * (kTileRows * kPartRowBytes) + row * kPartRowBytes +
         (((chunk % kChunks) ^ (row & 7)) << 4);
}

/// Where the parts of a block's shared memory are.
template <class Tile>
struct SharedLayout {
  unsigned char* shared;
  std::uint32_t address;
  std::uint64_t descriptor;  // of a tile at `address`

  __device__ __forceinline__ explicit SharedLayout(unsigned char* shared_)
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
  /// Waits until a stage is empty. What is pending is not kept back meanwhile: its readers may be those
  /// who empty the stage, where stages are few.
  __device__ __forceinline__ void wait_for_empty(std::uint32_t barrier, std::uint32_t parity) {
    if (Tile::kWide && !barrier_ended(barrier, parity)) flush();
    barrier_wait(barrier, parity);
  }
};

/// The thread, read anew, and below a stride: what is computed of them is not worth a register between
/// copies.
[[maybe_unused]] __device__ __forceinline__ int read_thread() {
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
}

/// Starts copying kTileRows rows of kColumns of one operand from `row` on; what does not exist is 0.
template <class Tile, int kTileRows, int kColumns = Tile::kHead>
__device__ __forceinline__ void copy_operand(std::uint32_t shared, const typename Tile::T* data,
                                             const AttentionOperand& strides, std::int64_t row,
                                             std::int64_t rows, std::int64_t head) {
  constexpr int kChunks = kColumns / 8;
  constexpr int kRowsAtOnce = kGroupThreads / kChunks;
  static_assert(kRowsAtOnce % 8 == 0);  // the swizzle repeats
  const int first = read_thread() / kChunks;
  const int chunk = read_thread() % kChunks;
  const int present =
      8 * chunk < head ? static_cast<int>(min(rows - row, std::int64_t{kTileRows})) : 0;
  const std::uint32_t target = shared + swizzled_offset<kTileRows>(first, chunk);
  std::int64_t stride = strides.row;
  asm volatile("" : "+l"(stride));
  const auto* source = data + (row + first) * stride + 8 * chunk;
#pragma unroll
  for (int i = 0; i < kTileRows; i += kRowsAtOnce) {
    copy_async16(target + i * kPartRowBytes, source, i < present - first);
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
    if constexpr (!Tile::kWide) {
      copy_operand<Tile, kRows>(own + 2 * Tile::kOwnBytes, block.output, params.output_strides,
                                row0, params.length, params.head_v);
    }
    const int thread = read_thread();
    const std::int64_t query = row0 + thread;
    copy_async<4>(own + Tile::kOwnLse + 4 * thread,
                  static_cast<const float*>(params.lse) + block.batch * params.length + query,
                  query < params.length);
  }
}

/// Starts copying the mask of the own rows and a tile of the other side: rows of 64 keys, and where keys
/// are the own rows, the later 64 of them behind the first.
template <class Tile>
__device__ __forceinline__ void copy_pair_mask(const AttentionBackwardParams& params,
                                               const BackwardBlock<typename Tile::T>& block,
                                               std::uint32_t target, std::int64_t other) {
  using T = typename Tile::T;
  const T* mask = static_cast<const T*>(params.mask) +
                  batch_offset(params, params.mask_strides, block.batch);
  if constexpr (Tile::kKeys) {
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const std::int64_t key = block.row0 + part * kStageRows;
      copy_operand<Tile, kStageRows, kStageRows>(target + part * Tile::kOtherPart, mask + key,
                                                 params.mask_strides, other, params.length,
                                                 params.keys - key);
    }
  } else {
    copy_operand<Tile, Tile::kRows, kStageRows>(target, mask + other, params.mask_strides,
                                                block.row0, params.length, params.keys - other);
  }
}

/// Starts copying one tile of the other side, its mask, its decisions and its statistics.
template <class Tile>
__device__ __forceinline__ void copy_stage(const AttentionBackwardParams& params,
                                           const BackwardBlock<typename Tile::T>& block,
                                           std::uint32_t stage, std::int64_t other) {
  if constexpr (Tile::kPairs) copy_pair_mask<Tile>(params, block, stage + Tile::kPairMask, other);
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
                                           std::uint32_t tiles, const SharedLayout<Tile>& layout) {
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
      item = {block, member == 0, next.member == 0,
              next.index >= count_items<Tile>(params, tiles)};
    }
    asm volatile("bar.sync 1, %0;" ::"n"(kGroupThreads) : "memory");
    const BackwardBlock<typename Tile::T> block = item.block;
    if (!params.zero) copy_own<Tile>(params, block, layout.address);
    queue.commit(layout.own_full());
    if constexpr (Tile::kWide && !Tile::kKeys) {
      static_assert(Tile::kOwnBytes <= Tile::kStageBytes);
      queue.wait_for_empty(layout.empty(ring.stage), ring.parity ^ 1U);
      copy_operand<Tile, Tile::kRows>(layout.address + layout.stage(ring.stage), block.output,
                                      params.output_strides, block.row0, params.length,
                                      params.head_v);
      queue.commit(layout.full(ring.stage));
      ring.advance();
    }
    const Walk walk = walk_of<Tile>(params, block.batch, block.row0, Tile::kRows);
    for (std::int64_t other = walk.first; other < walk.end; other += kStageRows) {
      queue.wait_for_empty(layout.empty(ring.stage), ring.parity ^ 1U);
      copy_stage<Tile>(params, block, layout.address + layout.stage(ring.stage), other);
      queue.commit(layout.full(ring.stage));
      ring.advance();
    }
    ++turn;
  }
  queue.flush();
}

}  // namespace tenon::cuda
