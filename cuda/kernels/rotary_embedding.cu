// rotary_embedding, input·cos + [-b a]·sin for the halves a and b of each row, and its gradient: in float32
// (float64 for float64), any strides. A thread computes a vector of each half, or one element where rows
// are not dense or not aligned to vectors. Memory bound: the input's bytes twice; cos and sin come from
// the cache where rows share them.
#include "cuda/device/memory.cuh"
#include "cuda/kernels/register.h"
#include "cuda/launch.h"
#include "cuda/strides.h"
#include "tensor/dtype.h"

namespace tenon::cuda {
namespace {

constexpr int kThreads = 256;

struct RotaryParams {
  void* output = nullptr;
  const void* inputs[3] = {};  // input or grad, cos, sin
  std::int64_t inner[4] = {};  // strides along a row: of the output, then of these
  std::int64_t units = 0;      // that threads compute
  std::int64_t row_units = 0;
  std::int64_t half = 0;
  Divisor row_divisor;  // by row_units
  bool wide = false;
  IndexMap<4> rows;
};

/// kLength elements from `offset` on; neighbours, unless it is one.
template <int kLength, class T>
__device__ __forceinline__ void load(const void* data, std::int64_t offset,
                                     compute_type<T> (&values)[kLength]) {
  load_widened<kLength, T>(static_cast<const T*>(data) + offset, values);
}

template <class T, int kLength, bool kBack>
__global__ void __launch_bounds__(kThreads) rotary_kernel(const RotaryParams p) {
  using C = compute_type<T>;
  const std::int64_t index = block_index() * kThreads + threadIdx.x;
  if (index >= p.units) return;
  const std::int64_t row =
      p.wide ? divide_wide(index, p.row_units)
             : static_cast<std::int64_t>(p.row_divisor.divide(static_cast<std::uint32_t>(index)));
  const std::int64_t first = (index - row * p.row_units) * kLength;
  std::int64_t offsets[4];
  p.rows.offsets(row, offsets);
  C x[2][kLength], cos[2][kLength], sin[2][kLength], y[2][kLength];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const std::int64_t column = first + h * p.half;
    load<kLength, T>(p.inputs[0], offsets[1] + column * p.inner[1], x[h]);
    load<kLength, T>(p.inputs[1], offsets[2] + column * p.inner[2], cos[h]);
    load<kLength, T>(p.inputs[2], offsets[3] + column * p.inner[3], sin[h]);
  }
#pragma unroll
  for (int i = 0; i < kLength; ++i) {
    const C of_a = kBack ? x[1][i] * sin[1][i] : -x[1][i] * sin[0][i];
    const C of_b = kBack ? -x[0][i] * sin[0][i] : x[0][i] * sin[1][i];
    y[0][i] = x[0][i] * cos[0][i] + of_a;
    y[1][i] = x[1][i] * cos[1][i] + of_b;
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const std::int64_t column = first + h * p.half;
    store_narrowed<kLength>(static_cast<T*>(p.output) + offsets[0] + column * p.inner[0], y[h]);
  }
}

/// Whether vectors of `length` elements read all rows, and halves of rows, of these operands.
bool takes_vectors(const StridedAxes& rows, std::span<const TensorView> views,
                   const RotaryParams& p, std::int64_t length) {
  if (p.half % length != 0) return false;
  for (int i = 0; i < 4; ++i) {
    if (p.inner[i] != 1 || !is_aligned(views[static_cast<std::size_t>(i)].data, kVectorBytes)) {
      return false;
    }
    for (const std::int64_t stride : rows.strides[i]) {
      if (stride % length != 0) return false;
    }
  }
  return true;
}

Extents without_last(const Extents& extents) {
  Extents result;
  for (int i = 0; i + 1 < extents.size(); ++i) result.push_back(extents[i]);
  return result;
}

template <bool kBack>
void run(const KernelArgs& args) {
  const TensorView& output = args.outputs[0];
  if (output.numel() == 0) return;
  const TensorView views[] = {output, args.inputs[0], args.inputs[1], args.inputs[2]};
  RotaryParams p;
  p.output = output.data;
  p.half = output.size(-1) / 2;
  Extents strides[4];
  for (int i = 0; i < 4; ++i) {
    const Extents all = broadcast_strides(views[i], output.sizes);
    strides[i] = without_last(all);
    p.inner[i] = all.back();
    if (i > 0) p.inputs[i - 1] = views[i].data;
  }
  const StridedAxes rows = collapse_axes(without_last(output.sizes), strides, /*sort=*/true);
  p.rows = IndexMap<4>(rows);
  dispatch_float(output.dtype, [&]<typename T>() {
    const bool vectors = takes_vectors(rows, views, p, vector_length<T>);
    p.row_units = vectors ? p.half / vector_length<T> : p.half;
    p.units = rows.numel() * p.row_units;
    p.wide = p.units > kMaxNarrowIndex;
    if (!p.wide) p.row_divisor = Divisor(static_cast<std::uint32_t>(p.row_units));
    launch(stream_of(args), kBack ? "rotary_embedding_backward" : "rotary_embedding",
           vectors ? rotary_kernel<T, vector_length<T>, kBack> : rotary_kernel<T, 1, kBack>,
           ceil_div(p.units, kThreads), kThreads, 0, p);
  });
}

}  // namespace

void register_rotary_embedding_kernels() {
  const auto add = [](const char* op, const char* name, void (*run)(const KernelArgs&)) {
    register_kernel(op, DeviceType::cuda,
                    {.name = name,
                     .run = run,
                     .accepts = any_layout,
                     .strided_output = true,
                     .sliced_output = true});
  };
  add("rotary_embedding", "cuda.rotary_embedding", run<false>);
  add("rotary_embedding_backward", "cuda.rotary_embedding_backward", run<true>);
}

}  // namespace tenon::cuda
