// Gradients of embedding, index_select and gather: sums of the elements that go to one place.
//
// Indices are sorted together with their positions (CUB's radix sort, which is stable), so that what
// meets in one place is one segment, in the order of the positions. Slices are summed by warps, a piece
// of a segment each: segments are cut at every kPiece-th place of the sorted list, so that an index that
// many positions share is no warp's alone, and a second launch adds the pieces of the segments that were
// cut. No atomics: the same bits from run to run, float32 sums for 16-bit floats. Indices out of range
// sort behind all others and add nothing.
#include <bit>
#include <cub/device/device_radix_sort.cuh>

#include "cuda/check.h"
#include "cuda/device/any_float.cuh"
#include "cuda/device/memory.cuh"
#include "cuda/device/reduce.cuh"
#include "cuda/kernels/register.h"
#include "cuda/launch.h"
#include "cuda/strides.h"
#include "tensor/ops/indexing_attributes.h"

namespace tenon::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kLanes = 32;                // columns of a block's tile, in vectors
constexpr int kRows = kThreads / kLanes;  // threads that share a column
constexpr int kPiece = 64;                // slices that a warp adds

/// Keys in ascending order with the positions that they came from.
struct SortedKeys {
  const std::int64_t* keys = nullptr;
  const std::int64_t* positions = nullptr;
  std::int64_t count = 0;
  std::int64_t limit = 0;  // keys from here on are no places

  /// What a warp adds: `length` slices from a place on. None where neither a segment nor a piece of one
  /// begins.
  struct Piece {
    int length = 0;
    bool is_segment = false;  // not cut
  };
  /// The piece that begins at i; all lanes of a warp call it.
  __device__ __forceinline__ Piece piece_at(std::int64_t i, int lane) const {
    const std::int64_t key = keys[i];
    const bool starts = i == 0 || keys[i - 1] != key;
    if (key >= limit || (!starts && i % kPiece != 0)) return {};
    const std::int64_t cut = (i / kPiece + 1) * kPiece;
    const std::int64_t end = cut < count ? cut : count;
    Piece piece;
    for (std::int64_t first = i; first < end; first += kWarp) {
      const bool same = first + lane < end && keys[first + lane] == key;
      piece.length += __popc(__ballot_sync(0xffffffffU, same));
    }
    const bool goes_on = i + piece.length == end && end < count && keys[end] == key;
    piece.is_segment = starts && !goes_on;
    return piece;
  }

  /// Whether a segment of equal keys that are places begins at i.
  __device__ __forceinline__ bool starts_at(std::int64_t i) const {
    return keys[i] < limit && (i == 0 || keys[i - 1] != keys[i]);
  }
  /// The end of the segment that begins at i: steps of doubling length, then bisection.
  __device__ __forceinline__ std::int64_t end_of(std::int64_t i) const {
    const std::int64_t key = keys[i];
    std::int64_t inside = i;
    std::int64_t step = 1;
    while (inside + step < count && keys[inside + step] == key) {
      inside += step;
      step *= 2;
    }
    std::int64_t outside = inside + step < count ? inside + step : count;
    while (outside - inside > 1) {
      const std::int64_t middle = inside + (outside - inside) / 2;
      if (keys[middle] == key)
        inside = middle;
      else
        outside = middle;
    }
    return outside;
  }
};

struct KeyParams {
  const void* indices = nullptr;  // in row-major order
  bool is_int32 = false;
  std::int64_t count = 0;
  std::int64_t index_limit = 0;
  std::int64_t step = 1;      // from one index to the next in the output
  std::int64_t no_place = 0;  // the key of an index that is out of range
  std::int64_t* keys = nullptr;
  std::int64_t* positions = nullptr;
  IndexMap<1> lines;  // of a position's line in the output; 0 for index_select
};

__global__ void __launch_bounds__(kThreads) make_keys_kernel(const KeyParams p) {
  const std::int64_t i = block_index() * kThreads + threadIdx.x;
  if (i >= p.count) return;
  const std::int64_t index = p.is_int32 ? static_cast<const std::int32_t*>(p.indices)[i]
                                        : static_cast<const std::int64_t*>(p.indices)[i];
  std::int64_t line[1];
  p.lines.offsets(i, line);
  const bool valid = index >= 0 && index < p.index_limit;
  p.keys[i] = valid ? line[0] + index * p.step : p.no_place;
  p.positions[i] = i;
}

/// Sorts by the bits that keys up to `no_place` have; without memory, only sets `bytes`.
void sort_pairs(void* memory, std::size_t& bytes, std::int64_t* list, std::int64_t count,
                std::int64_t no_place, cudaStream_t stream) {
  const int width = static_cast<int>(std::bit_width(static_cast<std::uint64_t>(no_place)));
  const int bits = width > 1 ? width : 1;
  TENON_CUDA_CHECK(cub::DeviceRadixSort::SortPairs(memory, bytes, list, list + 2 * count,
                                                   list + count, list + 3 * count, count, 0, bits,
                                                   stream));
}

/// A sort's memory: keys and positions, sorted keys and positions, then CUB's own.
struct SortMemory {
  std::size_t lists = 0;  // bytes, a multiple of 256
  std::size_t sort = 0;

  SortMemory(std::int64_t count, std::int64_t no_place)
      : lists(round_up(static_cast<std::size_t>(4 * count) * sizeof(std::int64_t))) {
    if (count > 0) sort_pairs(nullptr, sort, nullptr, count, no_place, nullptr);
    sort = round_up(sort);
  }
  std::size_t bytes() const { return lists + sort; }

 private:
  static std::size_t round_up(std::size_t bytes) { return (bytes + 255) / 256 * 256; }
};

/// Sorts what `p` describes in `workspace`, where the result stays.
SortedKeys sort_keys(Stream stream, const char* name, KeyParams p, std::int64_t count,
                     void* workspace) {
  const SortMemory memory(count, p.no_place);
  auto* list = static_cast<std::int64_t*>(workspace);
  p.count = count;
  p.keys = list;
  p.positions = list + count;
  launch(stream, name, make_keys_kernel, ceil_div(count, kThreads), kThreads, 0, p);
  std::size_t bytes = memory.sort;
  sort_pairs(static_cast<std::byte*>(workspace) + memory.lists, bytes, list, count, p.no_place,
             stream.handle);
  return {list + 2 * count, list + 3 * count, count, p.no_place};
}

struct SliceSumParams {
  SortedKeys sorted;
  const void* gradient = nullptr;  // [outer, count, inner]
  void* output = nullptr;          // [outer, limit, inner]
  void* parts = nullptr;           // [outer, 2·pieces, inner] in the compute type
  std::int64_t outer = 1;
  std::int64_t inner = 1;
  std::int64_t pieces = 1;  // ceil(count / kPiece)
  std::int64_t tiles = 1;   // of kLanes vectors along inner
  DType dtype = DType::float32;
};

/// The sum of a piece that begins at place i of a cut segment: between two cuts, one piece may begin at
/// the first and one after it.
template <class C>
__device__ __forceinline__ C* part_of(const SliceSumParams& p, std::int64_t outer, std::int64_t i) {
  const std::int64_t part = 2 * (outer * p.pieces + i / kPiece) + (i % kPiece != 0 ? 1 : 0);
  return static_cast<C*>(p.parts) + part * p.inner;
}

/// The first element of an output slice.
__device__ __forceinline__ std::int64_t slice_of(const SliceSumParams& p, std::int64_t outer,
                                                 std::int64_t key) {
  return (outer * p.sorted.limit + key) * p.inner;
}

/// kLength elements of type T; single ones are of p.dtype, which is computed in T.
template <class T, int kLength>
__device__ __forceinline__ Pack<T, kLength> load_gradient(const SliceSumParams& p,
                                                          std::int64_t at) {
  if constexpr (kLength == 1) return {load_as<T>(p.dtype, p.gradient, at)};
  return load_pack<T, kLength>(static_cast<const T*>(p.gradient) + at);
}
template <class T, int kLength>
__device__ __forceinline__ void store_sums(const SliceSumParams& p, std::int64_t at,
                                           const compute_type<T> (&sums)[kLength]) {
  if constexpr (kLength == 1) return store_as(p.dtype, p.output, at, sums[0]);
  store_narrowed(static_cast<T*>(p.output) + at, sums);
}

/// A warp adds the slices of one piece in order, and stores a segment's sum or a part of one.
template <class T, int kLength>
__global__ void __launch_bounds__(kThreads) sum_pieces_kernel(const SliceSumParams p) {
  using C = compute_type<T>;
  constexpr int kAtOnce = 4;  // loads in flight
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const std::int64_t number =
      block_index() * (kThreads / kWarp) + static_cast<int>(threadIdx.x) / kWarp;
  const std::int64_t outer = number / p.sorted.count;
  const std::int64_t begin = number - outer * p.sorted.count;
  if (outer >= p.outer) return;  // the whole warp
  const SortedKeys::Piece piece = p.sorted.piece_at(begin, lane);
  if (piece.length == 0) return;
  const std::int64_t slices = outer * p.sorted.count * p.inner;
  const std::int64_t* positions = p.sorted.positions + begin;
  for (std::int64_t column = lane * kLength; column < p.inner; column += kWarp * kLength) {
    C sums[kLength] = {};
    for (int first = 0; first < piece.length; first += kAtOnce) {
      Pack<T, kLength> packs[kAtOnce];
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        if (first + k >= piece.length) break;
        packs[k] = load_gradient<T, kLength>(p, slices + positions[first + k] * p.inner + column);
      }
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        if (first + k >= piece.length) break;
#pragma unroll
        for (int j = 0; j < kLength; ++j) sums[j] += widen(packs[k].item[j]);
      }
    }
    if (piece.is_segment) {
      store_sums<T>(p, slice_of(p, outer, p.sorted.keys[begin]) + column, sums);
    } else {
      store_narrowed(part_of<C>(p, outer, begin) + column, sums);
    }
  }
}

/// A block adds one tile of the parts of one cut segment, found from the first cut: thread row y takes
/// parts y, y + kRows, …
template <class T, int kLength>
__global__ void __launch_bounds__(kThreads) sum_parts_kernel(const SliceSumParams p) {
  using C = compute_type<T>;
  __shared__ C partial[kRows][kLanes * kLength];
  const std::int64_t tile = block_index() % p.tiles;
  const std::int64_t rest = block_index() / p.tiles;
  const std::int64_t outer = rest / p.pieces;
  const std::int64_t first = (rest - outer * p.pieces) * kPiece;
  const std::int64_t cut = first + kPiece;
  if (outer >= p.outer || cut >= p.sorted.count) return;
  const std::int64_t* keys = p.sorted.keys;
  const std::int64_t key = keys[cut];
  const bool began_before = first > 0 && keys[first - 1] == key;
  if (key >= p.sorted.limit || keys[cut - 1] != key || began_before) return;
  const std::int64_t begin = keys[first] == key ? first : cut - 1;  // or anywhere after `first`
  const std::int64_t count = (p.sorted.end_of(cut) - 1) / kPiece - first / kPiece + 1;
  const int x = static_cast<int>(threadIdx.x) % kLanes;
  const int y = static_cast<int>(threadIdx.x) / kLanes;
  const std::int64_t column = (tile * kLanes + x) * kLength;
  C sums[kLength] = {};
  if (column < p.inner) {
#pragma unroll 4
    for (std::int64_t i = y; i < count; i += kRows) {
      C part[kLength];
      load_widened(part_of<C>(p, outer, i == 0 ? begin : first + i * kPiece) + column, part);
#pragma unroll
      for (int j = 0; j < kLength; ++j) sums[j] += part[j];
    }
  }
#pragma unroll
  for (int j = 0; j < kLength; ++j) partial[y][x * kLength + j] = sums[j];
  __syncthreads();
  if (y > 0 || column >= p.inner) return;
#pragma unroll
  for (int j = 0; j < kLength; ++j) {
#pragma unroll
    for (int i = 1; i < kRows; ++i) sums[j] += partial[i][x * kLength + j];
  }
  store_sums<T>(p, slice_of(p, outer, key) + column, sums);
}

template <class T, int kLength>
void launch_slice_sums(Stream stream, const char* name, SliceSumParams p) {
  p.tiles = ceil_div(p.inner, kLanes * kLength);
  launch(stream, name, sum_pieces_kernel<T, kLength>,
         ceil_div(p.sorted.count * p.outer, kThreads / kWarp), kThreads, 0, p);
  if (p.sorted.count <= kPiece) return;  // nothing was cut
  launch(stream, name, sum_parts_kernel<T, kLength>, p.pieces * p.outer * p.tiles, kThreads, 0, p);
}

void clear(Stream stream, const TensorView& output) {
  TENON_CUDA_CHECK(cudaMemsetAsync(output.data, 0,
                                   static_cast<std::size_t>(output.numel()) * size_of(output.dtype),
                                   stream.handle));
}

KeyParams keys_of(const TensorView& indices, std::int64_t index_limit) {
  KeyParams p;
  p.indices = indices.data;
  p.is_int32 = indices.dtype == DType::int32;
  p.index_limit = index_limit;
  return p;
}

/// Sizes of a call, and its memory: a sort's, then the parts of cut segments.
struct SliceSumSizes {
  int axis = 0;
  std::int64_t outer = 1;
  std::int64_t inner = 1;
  std::int64_t count = 0;
  std::int64_t pieces = 0;
  std::int64_t no_place = 0;

  explicit SliceSumSizes(const KernelArgs& args) {
    const TensorView& output = args.outputs[0];
    const std::int64_t dim = args.attributes<IndexSelectBackwardAttrs>().dim;
    axis = static_cast<int>(dim < 0 ? dim + output.rank() : dim);
    for (int i = 0; i < axis; ++i) outer *= output.sizes[i];
    for (int i = axis + 1; i < output.rank(); ++i) inner *= output.sizes[i];
    no_place = output.sizes[axis];
    if (output.numel() > 0 && args.inputs[0].numel() > 0) count = args.inputs[1].numel();
    pieces = ceil_div(count, kPiece);
  }
};

std::size_t index_select_workspace(const KernelArgs& args) {
  const SliceSumSizes sizes(args);
  if (sizes.count == 0) return 0;
  const std::size_t value_bytes = args.outputs[0].dtype == DType::float64 ? 8 : 4;
  return SortMemory(sizes.count, sizes.no_place).bytes() +
         static_cast<std::size_t>(2 * sizes.outer * sizes.pieces * sizes.inner) * value_bytes;
}

void run_index_select_backward(const KernelArgs& args) {
  const TensorView& output = args.outputs[0];
  const Stream stream = stream_of(args);
  if (output.numel() == 0) return;
  clear(stream, output);
  const SliceSumSizes sizes(args);
  if (sizes.count == 0) return;

  KeyParams keys = keys_of(args.inputs[1], sizes.no_place);
  keys.no_place = sizes.no_place;
  const Extents no_lines[] = {Extents{0}};
  keys.lines = IndexMap<1>(collapse_axes(args.inputs[1].sizes, no_lines, /*sort=*/false));
  const char* name = "index_select_backward";
  SliceSumParams p{sort_keys(stream, name, keys, sizes.count, args.workspace), args.inputs[0].data,
                   output.data};
  p.parts =
      static_cast<std::byte*>(args.workspace) + SortMemory(sizes.count, sizes.no_place).bytes();
  p.outer = sizes.outer;
  p.inner = sizes.inner;
  p.pieces = sizes.pieces;
  p.dtype = output.dtype;
  dispatch_float(output.dtype, [&]<typename T>() {
    constexpr int kLength = vector_length<T>;
    const bool vectors = p.inner % kLength == 0 && is_aligned(p.gradient, kVectorBytes) &&
                         is_aligned(p.output, kVectorBytes);
    if (vectors) {
      launch_slice_sums<T, kLength>(stream, name, p);
    } else {
      launch_slice_sums<compute_type<T>, 1>(stream, name, p);
    }
  });
}

struct ElementSumParams {
  SortedKeys sorted;
  const void* gradient = nullptr;
  void* output = nullptr;  // contiguous; the keys are its offsets
  IndexMap<1> map;         // position to the gradient's element
  DType dtype = DType::float32;
};

/// A warp sums one segment of single elements.
template <class C>
__global__ void __launch_bounds__(kThreads) sum_elements_kernel(const ElementSumParams p) {
  const std::int64_t begin =
      block_index() * (kThreads / kWarp) + static_cast<int>(threadIdx.x) / kWarp;
  if (begin >= p.sorted.count || !p.sorted.starts_at(begin)) return;  // the whole warp
  const std::int64_t end = p.sorted.end_of(begin);
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  C sum = 0;
  for (std::int64_t i = begin + lane; i < end; i += kWarp) {
    std::int64_t offset[1];
    p.map.offsets(p.sorted.positions[i], offset);
    sum += load_as<C>(p.dtype, p.gradient, offset[0]);
  }
  sum = warp_reduce(sum, kWarp, Sum{});
  if (lane == 0) store_as(p.dtype, p.output, p.sorted.keys[begin], sum);
}

void run_gather_backward(const KernelArgs& args) {
  const TensorView& gradient = args.inputs[0];
  const TensorView& output = args.outputs[0];
  const Stream stream = stream_of(args);
  if (output.numel() == 0) return;
  clear(stream, output);
  if (gradient.numel() == 0) return;

  Extents strides = output.strides;
  KeyParams keys = keys_of(args.inputs[1], 1);  // a scalar counts as one element along one axis
  if (output.rank() > 0) {
    const std::int64_t dim = args.attributes<GatherBackwardAttrs>().dim;
    const int axis = static_cast<int>(dim < 0 ? dim + output.rank() : dim);
    keys.index_limit = output.sizes[axis];
    keys.step = strides[axis];
    strides[axis] = 0;
  }
  keys.no_place = output.numel();
  keys.lines = IndexMap<1>(collapse_axes(gradient.sizes, std::span(&strides, 1), /*sort=*/false));
  ElementSumParams p;
  p.sorted = sort_keys(stream, "gather_backward", keys, gradient.numel(), args.workspace);
  p.gradient = gradient.data;
  p.output = output.data;
  p.map =
      IndexMap<1>(collapse_axes(gradient.sizes, std::span(&gradient.strides, 1), /*sort=*/false));
  p.dtype = output.dtype;
  dispatch_compute(output.dtype, [&]<typename C>() {
    launch(stream, "gather_backward", sum_elements_kernel<C>,
           ceil_div(p.sorted.count, kThreads / kWarp), kThreads, 0, p);
  });
}

std::size_t gather_workspace(const KernelArgs& args) {
  const std::int64_t places = args.outputs[0].numel();
  return places == 0 ? 0 : SortMemory(args.inputs[0].numel(), places).bytes();
}

}  // namespace

void register_indexing_backward_kernels() {
  register_kernel("index_select_backward", DeviceType::cuda,
                  {.name = "cuda.index_select_backward",
                   .run = run_index_select_backward,
                   .workspace_bytes = index_select_workspace});
  register_kernel(
      "gather_backward", DeviceType::cuda,
      {.name = "cuda.gather_backward",
       .run = run_gather_backward,
       .accepts = [](int operand,
                     const TensorView& view) { return operand == 0 || view.is_contiguous(); },
       .workspace_bytes = gather_workspace});
}

}  // namespace tenon::cuda
