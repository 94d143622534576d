// Gradients of embedding, index_select and gather: sums of the elements that go to one place.
//
// Indices are sorted together with their positions (CUB's radix sort, which is stable), so that what
// meets in one place is one segment, in the order of the positions. A block or a warp sums a segment
// by a tree that depends on its length alone: no atomics, the same bits from run to run, float32 sums
// for 16-bit floats. Indices out of range sort behind all others and add nothing.
#include <bit>
#include <cub/device/device_radix_sort.cuh>

#include "cuda/check.h"
#include "cuda/context.h"
#include "cuda/device/memory.cuh"
#include "cuda/device/reduce.cuh"
#include "cuda/kernels/register.h"
#include "cuda/strides.h"
#include "tensor/ops/indexing_attributes.h"

namespace tenon::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kLanes = 32;                // columns of a block's tile, in vectors
constexpr int kRows = kThreads / kLanes;  // threads that share a column

/// Keys in ascending order with the positions that they came from.
struct SortedKeys {
  const std::int64_t* keys = nullptr;
  const std::int64_t* positions = nullptr;
  std::int64_t count = 0;
  std::int64_t limit = 0;  // keys from here on are no places

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

/// The four lists of a sort, and CUB's own memory.
class KeySorter {
 public:
  KeySorter(Stream stream, std::int64_t count)
      : stream_(stream),
        count_(count),
        lists_(stream.device, static_cast<std::size_t>(4 * count) * sizeof(std::int64_t)) {}

  /// Sorts what `p` describes; the result lives as long as this object.
  SortedKeys sort(KeyParams p, const char* name) {
    auto* list = static_cast<std::int64_t*>(lists_.data());
    p.count = count_;
    p.keys = list;
    p.positions = list + count_;
    launch(stream_, name, make_keys_kernel, ceil_div(count_, kThreads), kThreads, 0, p);
    const int bits = std::bit_width(static_cast<std::uint64_t>(p.no_place));
    std::size_t bytes = 0;
    run_sort(nullptr, bytes, list, bits);
    const ScratchMemory memory(stream_.device, bytes);
    run_sort(memory.data(), bytes, list, bits);
    return {list + 2 * count_, list + 3 * count_, count_, p.no_place};
  }

 private:
  void run_sort(void* memory, std::size_t& bytes, std::int64_t* list, int bits) const {
    TENON_CUDA_CHECK(cub::DeviceRadixSort::SortPairs(memory, bytes, list, list + 2 * count_,
                                                     list + count_, list + 3 * count_, count_, 0,
                                                     std::max(bits, 1), stream_.handle));
  }

  Stream stream_;
  std::int64_t count_;
  ScratchMemory lists_;
};

struct SliceSumParams {
  SortedKeys sorted;
  const void* gradient = nullptr;  // [outer, count, inner]
  void* output = nullptr;          // [outer, limit, inner]
  std::int64_t outer = 1;
  std::int64_t inner = 1;
  std::int64_t tiles = 1;  // of kLanes vectors along inner
};

/// A block sums one tile of one segment's slices: thread row y takes slices y, y + kRows, …
template <class T, int kLength>
__global__ void __launch_bounds__(kThreads) sum_slices_kernel(const SliceSumParams p) {
  using C = compute_type<T>;
  __shared__ C partial[kRows][kLanes * kLength];
  const std::int64_t tile = block_index() % p.tiles;
  const std::int64_t rest = block_index() / p.tiles;
  const std::int64_t outer = rest / p.sorted.count;
  const std::int64_t begin = rest - outer * p.sorted.count;
  if (outer >= p.outer || !p.sorted.starts_at(begin)) return;
  const std::int64_t end = p.sorted.end_of(begin);
  const int x = static_cast<int>(threadIdx.x) % kLanes;
  const int y = static_cast<int>(threadIdx.x) / kLanes;
  const std::int64_t column = (tile * kLanes + x) * kLength;
  const T* gradient = static_cast<const T*>(p.gradient) + outer * p.sorted.count * p.inner + column;
  C sums[kLength] = {};
  if (column < p.inner) {
#pragma unroll 4
    for (std::int64_t i = begin + y; i < end; i += kRows) {
      const Pack<T, kLength> pack =
          load_pack<T, kLength>(gradient + p.sorted.positions[i] * p.inner);
#pragma unroll
      for (int j = 0; j < kLength; ++j) sums[j] += widen(pack.item[j]);
    }
  }
#pragma unroll
  for (int j = 0; j < kLength; ++j) partial[y][x * kLength + j] = sums[j];
  __syncthreads();
  if (y > 0 || column >= p.inner) return;
  Pack<T, kLength> result;
#pragma unroll
  for (int j = 0; j < kLength; ++j) {
#pragma unroll
    for (int i = 1; i < kRows; ++i) sums[j] += partial[i][x * kLength + j];
    result.item[j] = convert<T>(sums[j]);
  }
  const std::int64_t row = outer * p.sorted.limit + p.sorted.keys[begin];
  store_pack<T, kLength>(static_cast<T*>(p.output) + row * p.inner + column, result);
}

template <class T, int kLength>
void launch_slice_sums(Stream stream, const char* name, SliceSumParams p) {
  p.tiles = ceil_div(p.inner, kLanes * kLength);
  launch(stream, name, sum_slices_kernel<T, kLength>, p.sorted.count * p.outer * p.tiles, kThreads,
         0, p);
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

void run_index_select_backward(const KernelArgs& args) {
  const TensorView& gradient = args.inputs[0];
  const TensorView& output = args.outputs[0];
  const Stream stream = stream_of(args);
  if (output.numel() == 0) return;
  clear(stream, output);
  if (gradient.numel() == 0) return;
  const std::int64_t dim = args.attributes<IndexSelectBackwardAttrs>().dim;
  const int axis = static_cast<int>(dim < 0 ? dim + output.rank() : dim);

  KeyParams keys = keys_of(args.inputs[1], output.sizes[axis]);
  keys.no_place = output.sizes[axis];
  const Extents no_lines[] = {Extents{0}};
  keys.lines = IndexMap<1>(collapse_axes(args.inputs[1].sizes, no_lines, /*sort=*/false));
  KeySorter sorter(stream, args.inputs[1].numel());
  SliceSumParams p{sorter.sort(keys, "index_select_backward"), gradient.data, output.data};
  for (int i = 0; i < axis; ++i) p.outer *= output.sizes[i];
  for (int i = axis + 1; i < output.rank(); ++i) p.inner *= output.sizes[i];
  dispatch_float(output.dtype, [&]<typename T>() {
    constexpr int kLength = vector_length<T>;
    const bool vectors = p.inner % kLength == 0 && is_aligned(p.gradient, kVectorBytes) &&
                         is_aligned(p.output, kVectorBytes);
    if (vectors) {
      launch_slice_sums<T, kLength>(stream, "index_select_backward", p);
    } else {
      launch_slice_sums<T, 1>(stream, "index_select_backward", p);
    }
  });
}

struct ElementSumParams {
  SortedKeys sorted;
  const void* gradient = nullptr;
  void* output = nullptr;  // contiguous; the keys are its offsets
  IndexMap<1> map;         // position to the gradient's element
};

/// A warp sums one segment of single elements.
template <class T>
__global__ void __launch_bounds__(kThreads) sum_elements_kernel(const ElementSumParams p) {
  using C = compute_type<T>;
  const std::int64_t begin =
      block_index() * (kThreads / kWarp) + static_cast<int>(threadIdx.x) / kWarp;
  if (begin >= p.sorted.count || !p.sorted.starts_at(begin)) return;  // the whole warp
  const std::int64_t end = p.sorted.end_of(begin);
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  C sum = 0;
  for (std::int64_t i = begin + lane; i < end; i += kWarp) {
    std::int64_t offset[1];
    p.map.offsets(p.sorted.positions[i], offset);
    sum += widen(static_cast<const T*>(p.gradient)[offset[0]]);
  }
  sum = warp_reduce(sum, kWarp, Sum{});
  if (lane == 0) static_cast<T*>(p.output)[p.sorted.keys[begin]] = convert<T>(sum);
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
  KeySorter sorter(stream, gradient.numel());
  ElementSumParams p{sorter.sort(keys, "gather_backward"), gradient.data, output.data};
  p.map =
      IndexMap<1>(collapse_axes(gradient.sizes, std::span(&gradient.strides, 1), /*sort=*/false));
  dispatch_float(output.dtype, [&]<typename T>() {
    launch(stream, "gather_backward", sum_elements_kernel<T>,
           ceil_div(p.sorted.count, kThreads / kWarp), kThreads, 0, p);
  });
}

}  // namespace

void register_indexing_backward_kernels() {
  register_kernel("index_select_backward", DeviceType::cuda,
                  {.name = "cuda.index_select_backward", .run = run_index_select_backward});
  register_kernel("gather_backward", DeviceType::cuda,
                  {.name = "cuda.gather_backward",
                   .run = run_gather_backward,
                   .accepts = [](int operand, const TensorView& view) {
                     return operand == 0 || view.is_contiguous();
                   }});
}

}  // namespace tenon::cuda
