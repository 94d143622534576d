// embedding, index_select and gather: elements moved by index. Slices of contiguous operands go in
// units of up to 16 bytes, a thread a unit. What an index out of range names is NaN, or 0 where the
// dtype has no NaN: a kernel cannot throw.
#include "cuda/device/memory.cuh"
#include "cuda/kernels/element_size.h"
#include "cuda/kernels/register.h"
#include "cuda/launch.h"
#include "cuda/strides.h"
#include "tensor/ops/plain_attributes.h"

namespace tenon::cuda {
namespace {

constexpr int kThreads = 256;

struct alignas(16) Unit16 {
  std::uint64_t half[2];
};

/// Indices in row-major order.
struct IndexList {
  const void* data = nullptr;
  bool is_int32 = false;
  std::int64_t limit = 0;

  IndexList(const TensorView& view, std::int64_t end)
      : data(view.data), is_int32(view.dtype == DType::int32), limit(end) {}
  /// The i-th index, or -1 where it is out of range.
  __device__ __forceinline__ std::int64_t operator[](std::int64_t i) const {
    const std::int64_t index = is_int32 ? static_cast<const std::int32_t*>(data)[i]
                                        : static_cast<const std::int64_t*>(data)[i];
    return index >= 0 && index < limit ? index : -1;
  }
};

/// Slice (outer, index[i]) of the source goes to slice (outer, i) of the output.
struct SliceParams {
  IndexList indices;
  const void* source = nullptr;
  void* output = nullptr;
  std::int64_t outer = 1;
  std::int64_t count = 0;         // of indices
  std::int64_t slices = 0;        // of the source along the axis
  std::int64_t units = 0;         // of a slice
  std::uint64_t nan_pattern = 0;  // the dtype's NaN, repeated over 8 bytes
};

template <class U>
__device__ __forceinline__ U filled_unit(std::uint64_t pattern) {
  if constexpr (std::is_same_v<U, Unit16>)
    return {pattern, pattern};
  else
    return static_cast<U>(pattern);
}

template <class U>
__global__ void __launch_bounds__(kThreads) select_slices_kernel(const SliceParams p) {
  const std::int64_t number = block_index() * kThreads + threadIdx.x;
  if (number >= p.outer * p.count * p.units) return;
  const std::int64_t slice = number / p.units;
  const std::int64_t unit = number - slice * p.units;
  const std::int64_t outer = p.outer == 1 ? 0 : slice / p.count;
  const std::int64_t index = p.indices[slice - outer * p.count];
  static_cast<U*>(p.output)[number] =
      index >= 0 ? static_cast<const U*>(p.source)[(outer * p.slices + index) * p.units + unit]
                 : filled_unit<U>(p.nan_pattern);
}

std::uint64_t nan_pattern(DType dtype) {
  switch (dtype) {
    case DType::float16: return 0x7e007e007e007e00U;
    case DType::bfloat16: return 0x7fc07fc07fc07fc0U;
    case DType::float32: return 0x7fc000007fc00000U;
    case DType::float64: return 0x7ff8000000000000U;
    default: return 0;
  }
}

template <class U>
void run_units(Stream stream, const char* name, SliceParams p, std::int64_t slice_bytes) {
  p.units = slice_bytes / static_cast<std::int64_t>(sizeof(U));
  launch(stream, name, select_slices_kernel<U>, ceil_div(p.outer * p.count * p.units, kThreads),
         kThreads, 0, p);
}

/// Slices of `source`, which is contiguous, along `axis`.
void select_slices(const KernelArgs& args, const TensorView& indices, const TensorView& source,
                   int axis) {
  const std::int64_t limit = source.sizes[axis];
  SliceParams p{IndexList(indices, limit), source.data, args.outputs[0].data};
  p.count = indices.numel();
  p.slices = limit;
  p.nan_pattern = nan_pattern(source.dtype);
  auto slice_bytes = static_cast<std::int64_t>(size_of(source.dtype));
  for (int i = 0; i < axis; ++i) p.outer *= source.sizes[i];
  for (int i = axis + 1; i < source.rank(); ++i) slice_bytes *= source.sizes[i];
  if (args.outputs[0].numel() == 0) return;
  const char* name = args.name();
  if (slice_bytes % kVectorBytes == 0 && is_aligned(p.source, kVectorBytes) &&
      is_aligned(p.output, kVectorBytes)) {
    return run_units<Unit16>(stream_of(args), name, p, slice_bytes);
  }
  dispatch_size(size_of(source.dtype),
                [&]<typename U>() { run_units<U>(stream_of(args), name, p, slice_bytes); });
}

void run_embedding(const KernelArgs& args) {
  select_slices(args, args.inputs[0], args.inputs[1], 0);
}

void run_index_select(const KernelArgs& args) {
  const TensorView& input = args.inputs[0];
  const std::int64_t dim = args.attributes<AxisAttrs>().dim;
  select_slices(args, args.inputs[1], input, static_cast<int>(dim < 0 ? dim + input.rank() : dim));
}

struct GatherParams {
  IndexList indices;
  const void* source = nullptr;
  void* output = nullptr;
  std::int64_t numel = 0;
  std::int64_t step = 0;  // from one index to the next in the source
  std::uint64_t nan_pattern = 0;
  IndexMap<1> map;  // output position to the source's line
};

template <class U>
__global__ void __launch_bounds__(kThreads) gather_kernel(const GatherParams p) {
  const std::int64_t i = block_index() * kThreads + threadIdx.x;
  if (i >= p.numel) return;
  std::int64_t line[1];
  p.map.offsets(i, line);
  const std::int64_t index = p.indices[i];
  static_cast<U*>(p.output)[i] = index >= 0
                                     ? static_cast<const U*>(p.source)[line[0] + index * p.step]
                                     : static_cast<U>(p.nan_pattern);
}

void run_gather(const KernelArgs& args) {
  const TensorView& input = args.inputs[0];
  const TensorView& output = args.outputs[0];
  Extents strides = input.strides;
  std::int64_t step = 0;
  std::int64_t limit = 1;  // a scalar counts as one element along one axis
  if (input.rank() > 0) {
    const std::int64_t dim = args.attributes<AxisAttrs>().dim;
    const int axis = static_cast<int>(dim < 0 ? dim + input.rank() : dim);
    limit = input.sizes[axis];
    step = strides[axis];
    strides[axis] = 0;
  }
  GatherParams p{IndexList(args.inputs[1], limit), input.data, output.data, output.numel(), step};
  if (p.numel == 0) return;
  p.nan_pattern = nan_pattern(input.dtype);
  p.map = IndexMap<1>(collapse_axes(output.sizes, std::span(&strides, 1), /*sort=*/false));
  dispatch_size(size_of(input.dtype), [&]<typename U>() {
    launch(stream_of(args), "gather", gather_kernel<U>, ceil_div(p.numel, kThreads), kThreads, 0,
           p);
  });
}

}  // namespace

void register_indexing_kernels() {
  register_kernel("embedding", DeviceType::cuda, {.name = "cuda.embedding", .run = run_embedding});
  register_kernel("index_select", DeviceType::cuda,
                  {.name = "cuda.index_select", .run = run_index_select});
  register_kernel("gather", DeviceType::cuda,
                  {.name = "cuda.gather",
                   .run = run_gather,
                   .accepts = [](int operand, const TensorView& view) {
                     return operand == 0 || view.is_contiguous();
                   }});
}

}  // namespace tenon::cuda
