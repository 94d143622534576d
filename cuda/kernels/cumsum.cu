// cumsum of a contiguous input along one axis, from its start or its end. Lines of contiguous
// elements are scanned by a block each, tile after tile; otherwise a thread sums a line and its
// neighbours those beside it. Sums are kept in double (int64 for integers), as on the CPU.
#include <cub/block/block_scan.cuh>

#include "cuda/device/convert.cuh"
#include "cuda/kernels/register.h"
#include "cuda/launch.h"
#include "tensor/ops/plain_attributes.h"

namespace tenon::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kItems = 4;  // neighbouring elements of a thread
constexpr std::int64_t kTile = kThreads * kItems;

template <class T>
using RunningSum = std::conditional_t<std::is_integral_v<T>, std::int64_t, double>;

struct CumsumParams {
  const void* input = nullptr;  // [outer, length, inner]
  void* output = nullptr;
  std::int64_t lines = 0;
  std::int64_t length = 0;
  std::int64_t inner = 1;
  bool reverse = false;
};

template <class T, class Out>
__global__ void __launch_bounds__(kThreads) scan_lines_kernel(const CumsumParams p) {
  using S = RunningSum<T>;
  using Scan = cub::BlockScan<S, kThreads>;
  __shared__ typename Scan::TempStorage storage;
  const std::int64_t line = block_index();
  if (line >= p.lines) return;
  const T* source = static_cast<const T*>(p.input) + line * p.length;
  Out* target = static_cast<Out*>(p.output) + line * p.length;
  S before = 0;  // the sum of the tiles before this one
  for (std::int64_t first = 0; first < p.length; first += kTile) {
    const std::int64_t begin = first + static_cast<std::int64_t>(threadIdx.x) * kItems;
    S sums[kItems];
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const std::int64_t at = p.reverse ? p.length - 1 - begin - i : begin + i;
      sums[i] = begin + i < p.length ? static_cast<S>(widen(source[at])) : S(0);
    }
    S total;
    Scan(storage).InclusiveSum(sums, sums, total);
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const std::int64_t at = p.reverse ? p.length - 1 - begin - i : begin + i;
      if (begin + i < p.length) target[at] = convert<Out>(before + sums[i]);
    }
    before += total;
    __syncthreads();  // the next tile's scan reuses the storage
  }
}

template <class T, class Out>
__global__ void __launch_bounds__(kThreads) sum_columns_kernel(const CumsumParams p) {
  const std::int64_t number = block_index() * kThreads + threadIdx.x;
  if (number >= p.lines) return;
  const std::int64_t outer = number / p.inner;
  const std::int64_t base = outer * p.length * p.inner + (number - outer * p.inner);
  RunningSum<T> sum = 0;
  for (std::int64_t i = 0; i < p.length; ++i) {
    const std::int64_t at = base + (p.reverse ? p.length - 1 - i : i) * p.inner;
    sum += static_cast<RunningSum<T>>(widen(static_cast<const T*>(p.input)[at]));
    static_cast<Out*>(p.output)[at] = convert<Out>(sum);
  }
}

void run_cumsum(const KernelArgs& args) {
  const TensorView& input = args.inputs[0];
  const auto& attrs = args.attributes<CumsumAttrs>();
  if (input.numel() == 0) return;
  CumsumParams p{input.data, args.outputs[0].data};
  p.reverse = attrs.reverse;
  const int rank = input.rank();
  const int axis = static_cast<int>(attrs.dim < 0 ? attrs.dim + rank : attrs.dim);
  p.length = rank == 0 ? 1 : input.sizes[axis];
  for (int i = axis + 1; i < rank; ++i) p.inner *= input.sizes[i];
  p.lines = input.numel() / p.length;
  const Stream stream = stream_of(args);
  const auto run = [&]<typename T>() {
    using Out = std::conditional_t<std::is_integral_v<T>, std::int64_t, T>;
    if (p.inner == 1) {
      launch(stream, "cumsum", scan_lines_kernel<T, Out>, p.lines, kThreads, 0, p);
    } else {
      launch(stream, "cumsum", sum_columns_kernel<T, Out>, ceil_div(p.lines, kThreads), kThreads, 0,
             p);
    }
  };
  switch (input.dtype) {
    case DType::int64: return run.operator()<std::int64_t>();
    case DType::int32: return run.operator()<std::int32_t>();
    case DType::uint8:
    case DType::boolean: return run.operator()<std::uint8_t>();  // a byte of 0 or 1
    default: dispatch_float(input.dtype, run);
  }
}

}  // namespace

void register_cumsum_kernels() {
  register_kernel("cumsum", DeviceType::cuda, {.name = "cuda.cumsum", .run = run_cumsum});
}

}  // namespace tenon::cuda
