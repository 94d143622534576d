// Strided copies, and with them contiguous and the view ops where they must copy. Compiled by element
// size. Three kernels: the pointwise one (vectors where both sides are contiguous along the innermost
// axis); tiles of 32 x 32 through shared memory where the source is contiguous along another axis than the
// target, so that both sides are accessed in whole sectors; and, where one of these axes is short, as the
// channels of images and the windows of filters are, a thread for its elements, which the cache gathers.
#include <algorithm>

#include "cuda/device/pointwise.cuh"
#include "cuda/kernels/copy.h"
#include "cuda/kernels/element_size.h"
#include "cuda/kernels/register.h"
#include "tensor/calls/move_data.h"
#include "tensor/op.h"

namespace tenon::cuda {
namespace {

constexpr int kTile = 32;
constexpr int kTileRows = 8;  // rows that a block copies at a time

struct Identity {
  template <class T>
  __device__ T operator()(T value) const {
    return value;
  }
};

/// A batch of matrices: element (row, col) is at row·target_row + col in the target, and at
/// row + col·source_col in the source.
struct TransposeParams {
  void* target = nullptr;
  const void* source = nullptr;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t target_row = 0;
  std::int64_t source_col = 0;
  std::int64_t row_tiles = 0;
  std::int64_t col_tiles = 0;
  std::int64_t tiles = 0;  // of the whole batch
  IndexMap<2> batch{};     // target, source
};

template <class T>
__global__ void __launch_bounds__(kTile* kTileRows) transpose_kernel(const TransposeParams p) {
  __shared__ T tile[kTile][kTile + 1];  // the extra column spreads a tile's column over the banks
  const std::int64_t number = block_index();
  if (number >= p.tiles) return;
  const std::int64_t col_tile = number % p.col_tiles;
  const std::int64_t row_tile = number / p.col_tiles % p.row_tiles;
  std::int64_t offsets[2];
  p.batch.offsets(number / p.col_tiles / p.row_tiles, offsets);
  const int x = static_cast<int>(threadIdx.x) % kTile;
  const int y = static_cast<int>(threadIdx.x) / kTile;

  const T* source = static_cast<const T*>(p.source) + offsets[1];
#pragma unroll
  for (int i = 0; i < kTile; i += kTileRows) {
    const std::int64_t row = row_tile * kTile + x;
    const std::int64_t col = col_tile * kTile + y + i;
    if (row < p.rows && col < p.cols) tile[y + i][x] = source[row + col * p.source_col];
  }
  __syncthreads();
  T* target = static_cast<T*>(p.target) + offsets[0];
#pragma unroll
  for (int i = 0; i < kTile; i += kTileRows) {
    const std::int64_t row = row_tile * kTile + y + i;
    const std::int64_t col = col_tile * kTile + x;
    if (row < p.rows && col < p.cols) target[row * p.target_row + col] = tile[x][y + i];
  }
}

/// The axis along which the source, but not the target, is contiguous; -1 where tiles do not help.
int transposed_axis(const StridedAxes& axes) {
  const int inner = axes.sizes.size() - 1;
  if (inner < 1 || axes.strides[0][inner] != 1 || axes.strides[1][inner] <= 1) return -1;
  constexpr std::int64_t kSmallest = 8;  // below, most of a tile would be empty
  for (int axis = 0; axis < inner; ++axis) {
    if (axes.strides[1][axis] == 1 && axes.sizes[axis] >= kSmallest &&
        axes.sizes[inner] >= kSmallest) {
      return axis;
    }
  }
  return -1;
}

constexpr int kInterleaveThreads = 256;
constexpr int kMostInterleaved = 16;

struct InterleaveParams {
  void* target = nullptr;
  const void* source = nullptr;
  std::int64_t target_step = 0;  // along the short axis
  std::int64_t source_step = 0;
  std::int64_t count = 0;  // of the other axes together
  int length = 0;          // of the short axis
  IndexMap<2> map{};       // target, source
};

template <class T, int kMost>
__global__ void __launch_bounds__(kInterleaveThreads) interleave_kernel(const InterleaveParams p) {
  const std::int64_t index = block_index() * kInterleaveThreads + threadIdx.x;
  if (index >= p.count) return;
  std::int64_t offsets[2];
  p.map.offsets(index, offsets);
  const T* source = static_cast<const T*>(p.source) + offsets[1];
  T* target = static_cast<T*>(p.target) + offsets[0];
  T values[kMost];
#pragma unroll
  for (int i = 0; i < kMost; ++i) {
    if (i < p.length) values[i] = source[i * p.source_step];
  }
#pragma unroll
  for (int i = 0; i < kMost; ++i) {
    if (i < p.length) target[i * p.target_step] = values[i];
  }
}

/// The axis that a thread takes whole: the shorter one of the two along which target and source are
/// contiguous, where the other is long; -1 where there is none.
int interleaved_axis(const StridedAxes& axes) {
  const int inner = axes.sizes.size() - 1;
  if (inner < 1 || axes.strides[0][inner] != 1 || axes.strides[1][inner] <= 1) return -1;
  constexpr std::int64_t kLong = 32;
  for (int axis = 0; axis < inner; ++axis) {
    if (axes.strides[1][axis] != 1) continue;
    const int shorter = axes.sizes[axis] < axes.sizes[inner] ? axis : inner;
    const int longer = shorter == axis ? inner : axis;
    if (axes.sizes[shorter] <= kMostInterleaved && axes.sizes[longer] >= kLong) return shorter;
  }
  return -1;
}

void copy_interleaved(Stream stream, const char* name, StridedAxes axes, int short_axis,
                      const TensorView& source, const TensorView& target) {
  InterleaveParams p{target.data, source.data, axes.strides[0][short_axis],
                     axes.strides[1][short_axis]};
  p.length = static_cast<int>(axes.sizes[short_axis]);
  const int inner = axes.sizes.size() - 1;
  int long_axis = inner;
  for (int axis = 0; short_axis == inner && axis < inner; ++axis) {
    if (axes.strides[1][axis] == 1) long_axis = axis;
  }
  for (Extents* list : {&axes.sizes, &axes.strides[0], &axes.strides[1]}) {
    const std::int64_t innermost = (*list)[long_axis];
    list->erase(std::max(long_axis, short_axis));
    list->erase(std::min(long_axis, short_axis));
    list->push_back(innermost);  // neighbours along it are neighbouring threads
  }
  const Extents strides[] = {axes.strides[0], axes.strides[1]};
  const StridedAxes rest = collapse_axes(axes.sizes, strides, /*sort=*/false);
  p.map = IndexMap<2>(rest);
  p.count = rest.numel();
  const std::int64_t blocks = ceil_div(p.count, std::int64_t{kInterleaveThreads});
  dispatch_size(size_of(source.dtype), [&]<typename T>() {
    const auto kernel = p.length <= 4   ? interleave_kernel<T, 4>
                        : p.length <= 9 ? interleave_kernel<T, 9>
                                        : interleave_kernel<T, kMostInterleaved>;
    launch(stream, name, kernel, blocks, kInterleaveThreads, 0, p);
  });
}

void copy_transposed(Stream stream, const char* name, StridedAxes axes, int row_axis,
                     const TensorView& source, const TensorView& target) {
  const int inner = axes.sizes.size() - 1;
  TransposeParams p{target.data,
                    source.data,
                    axes.sizes[row_axis],
                    axes.sizes[inner],
                    axes.strides[0][row_axis],
                    axes.strides[1][inner]};
  p.row_tiles = ceil_div(p.rows, kTile);
  p.col_tiles = ceil_div(p.cols, kTile);
  for (Extents* list : {&axes.sizes, &axes.strides[0], &axes.strides[1]}) {
    list->erase(inner);
    list->erase(row_axis);
  }
  const Extents strides[] = {axes.strides[0], axes.strides[1]};
  const StridedAxes batch = collapse_axes(axes.sizes, strides, /*sort=*/false);
  p.batch = IndexMap<2>(batch);
  p.tiles = p.row_tiles * p.col_tiles * batch.numel();
  dispatch_size(size_of(source.dtype), [&]<typename T>() {
    launch(stream, name, transpose_kernel<T>, p.tiles, kTile * kTileRows, 0, p);
  });
}

/// The input seen with the output's sizes: as the op's own view rule says or, for reshape of strides
/// that have no such view, the output seen with the input's sizes.
void run_view_copy(const KernelArgs& args) {
  TensorView source = args.inputs[0];
  TensorView target = args.outputs[0];
  if (target.numel() == 0) return;
  const char* name = args.name();
  const Layout input{source.sizes, source.strides, 0};
  if (const auto layout = args.op->view(input, target.sizes, *args.attrs)) {
    source.data = static_cast<char*>(source.data) +
                  layout->offset * static_cast<std::int64_t>(size_of(source.dtype));
    source.sizes = layout->sizes;
    source.strides = layout->strides;
  } else {
    target.sizes = source.sizes;
    target.strides = contiguous_strides(source.sizes);
  }
  copy_strided(stream_of(args), name, source, target);
}

void run_clone(const KernelArgs& args) {
  copy_strided(stream_of(args), args.name(), args.inputs[0], args.outputs[0]);
}

}  // namespace

void copy_strided(Stream stream, const char* name, const TensorView& source,
                  const TensorView& target) {
  if (target.numel() == 0) return;
  const TensorView views[] = {target, source};
  const StridedAxes axes = collapse_axes(views, /*sort=*/true);
  if (const int short_axis = interleaved_axis(axes); short_axis >= 0) {
    return copy_interleaved(stream, name, axes, short_axis, source, target);
  }
  if (const int row_axis = transposed_axis(axes); row_axis >= 0) {
    return copy_transposed(stream, name, axes, row_axis, source, target);
  }
  dispatch_size(size_of(target.dtype), [&]<typename T>() {
    run_pointwise<T, T>(stream, name, target, {source}, Identity{});
  });
}

void register_copy_kernels() {
  register_kernel(
      "clone", DeviceType::cuda,
      {.name = "cuda.copy", .run = run_clone, .accepts = any_layout, .strided_output = true});
  register_kernel("to_device", DeviceType::cuda,
                  {.name = "cuda.to_device", .run = detail::run_to_device});
  constexpr std::pair<std::string_view, std::string_view> kNames[] = {
      {"contiguous", "cuda.contiguous"}, {"view", "cuda.view"},
      {"reshape", "cuda.reshape"},       {"permute", "cuda.permute"},
      {"transpose", "cuda.transpose"},   {"expand", "cuda.expand"},
      {"narrow", "cuda.narrow"},         {"unsqueeze", "cuda.unsqueeze"},
      {"squeeze", "cuda.squeeze"}};
  for (const auto& [op, name] : kNames) {
    register_kernel(op, DeviceType::cuda,
                    {.name = name, .run = run_view_copy, .accepts = any_layout});
  }
}

}  // namespace tenon::cuda
