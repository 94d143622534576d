// cumsum of a contiguous input along one axis, from its start or its end. Lines of contiguous
// elements are scanned by a block each, tile after tile; otherwise a thread sums a line and its
// neighbours those beside it. Sums are kept in double (int64 for integers), as on the CPU; there is
// a kernel for each, which tests for the elements' type in front of a thread's elements.
#include "cuda/device/convert.cuh"
#include "cuda/device/reduce.cuh"
#include "cuda/kernels/register.h"
#include "cuda/launch.h"
#include "tensor/ops/plain_attributes.h"

namespace tenon::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kItems = 4;  // neighbouring elements of a thread
constexpr std::int64_t kTile = kThreads * kItems;

struct CumsumParams {
  const void* input = nullptr;  // [outer, length, inner]
  void* output = nullptr;       // int64 for integers, else of the input's dtype
  std::int64_t lines = 0;
  std::int64_t length = 0;
  std::int64_t inner = 1;
  bool reverse = false;
  DType dtype = DType::float32;
};

/// Calls f with the input's elements, of one of the types that are summed in S: double or int64.
template <class S, class F>
__device__ __forceinline__ void with_input(const CumsumParams& p, F f) {
  if constexpr (std::is_same_v<S, double>) {
    switch (p.dtype) {
      case DType::float64: return f(static_cast<const double*>(p.input));
      case DType::float16: return f(static_cast<const Half*>(p.input));
      case DType::bfloat16: return f(static_cast<const BFloat16*>(p.input));
      default: return f(static_cast<const float*>(p.input));
    }
  } else {
    switch (p.dtype) {
      case DType::int64: return f(static_cast<const std::int64_t*>(p.input));
      case DType::int32: return f(static_cast<const std::int32_t*>(p.input));
      default: return f(static_cast<const std::uint8_t*>(p.input));  // of a bool too: 0 or 1
    }
  }
}

/// Calls f with the output's elements.
template <class S, class F>
__device__ __forceinline__ void with_output(const CumsumParams& p, F f) {
  if constexpr (std::is_same_v<S, double>) {
    switch (p.dtype) {
      case DType::float64: return f(static_cast<double*>(p.output));
      case DType::float16: return f(static_cast<Half*>(p.output));
      case DType::bfloat16: return f(static_cast<BFloat16*>(p.output));
      default: return f(static_cast<float*>(p.output));
    }
  } else {
    f(static_cast<std::int64_t*>(p.output));
  }
}

/// Shared memory of a block's scan: the sums of its threads, a segment for each lane of a warp.
template <class S>
struct ScanMemory {
  static constexpr int kSegment = kThreads / kWarp;
  S sums[kWarp][kSegment + 1];  // the extra column spreads segments over the banks
  S total;
};

/// Each item becomes the sum of all items up to it, by the order of threads; returns the total. A
/// warp scans the sums of segments; what is added first is 0, so that -0 becomes 0.
template <class S>
__device__ __forceinline__ S scan_block(S (&items)[kItems], ScanMemory<S>& memory) {
  constexpr int kSegment = ScanMemory<S>::kSegment;
  const int thread = static_cast<int>(threadIdx.x);
  S& own = memory.sums[thread / kSegment][thread % kSegment];
  S sum = items[0];
#pragma unroll
  for (int i = 1; i < kItems; ++i) sum += items[i];
  own = sum;
  __syncthreads();
  if (thread < kWarp) {
    S(&segment)[kSegment + 1] = memory.sums[thread];
    S inclusive = segment[0];
#pragma unroll
    for (int i = 1; i < kSegment; ++i) inclusive += segment[i];
#pragma unroll
    for (int offset = 1; offset < kWarp; offset *= 2) {
      const S other = __shfl_up_sync(0xffffffffU, inclusive, offset);
      if (thread >= offset) inclusive += other;
    }
    if (thread == kWarp - 1) memory.total = inclusive;
    S before = __shfl_up_sync(0xffffffffU, S(0) + inclusive, 1);
    if (thread == 0) before = S(0);
#pragma unroll
    for (int i = 0; i < kSegment; ++i) {
      const S value = segment[i];
      segment[i] = before;
      before += value;
    }
  }
  __syncthreads();
  items[0] += own;
#pragma unroll
  for (int i = 1; i < kItems; ++i) items[i] += items[i - 1];
  return memory.total;
}

template <class S>
__global__ void __launch_bounds__(kThreads) scan_lines_kernel(const CumsumParams p) {
  __shared__ ScanMemory<S> memory;
  const std::int64_t line = block_index();
  if (line >= p.lines) return;
  S before = 0;  // the sum of the tiles before this one
  for (std::int64_t first = 0; first < p.length; first += kTile) {
    const std::int64_t begin = first + static_cast<std::int64_t>(threadIdx.x) * kItems;
    const auto place_of = [&](int i) {
      return line * p.length + (p.reverse ? p.length - 1 - begin - i : begin + i);
    };
    S sums[kItems];
    with_input<S>(p, [&](const auto* source) {
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        sums[i] = begin + i < p.length ? static_cast<S>(widen(source[place_of(i)])) : S(0);
      }
    });
    const S total = scan_block(sums, memory);
    with_output<S>(p, [&]<class Out>(Out* target) {
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        if (begin + i < p.length) target[place_of(i)] = convert<Out>(before + sums[i]);
      }
    });
    before += total;
    __syncthreads();  // the next tile's scan reuses the memory
  }
}

template <class S>
__global__ void __launch_bounds__(kThreads) sum_columns_kernel(const CumsumParams p) {
  const std::int64_t number = block_index() * kThreads + threadIdx.x;
  if (number >= p.lines) return;
  const std::int64_t outer = number / p.inner;
  const std::int64_t base = outer * p.length * p.inner + (number - outer * p.inner);
  with_input<S>(p, [&]<class T>(const T* source) {
    using Out = std::conditional_t<std::is_integral_v<T>, std::int64_t, T>;
    S sum = 0;
#pragma unroll 1
    for (std::int64_t i = 0; i < p.length; ++i) {
      const std::int64_t at = base + (p.reverse ? p.length - 1 - i : i) * p.inner;
      sum += static_cast<S>(widen(source[at]));
      static_cast<Out*>(p.output)[at] = convert<Out>(sum);
    }
  });
}

void run_cumsum(const KernelArgs& args) {
  const TensorView& input = args.inputs[0];
  const auto& attrs = args.attributes<CumsumAttrs>();
  if (input.numel() == 0) return;
  CumsumParams p{input.data, args.outputs[0].data};
  p.reverse = attrs.reverse;
  p.dtype = input.dtype;
  const int rank = input.rank();
  const int axis = static_cast<int>(attrs.dim < 0 ? attrs.dim + rank : attrs.dim);
  p.length = rank == 0 ? 1 : input.sizes[axis];
  for (int i = axis + 1; i < rank; ++i) p.inner *= input.sizes[i];
  p.lines = input.numel() / p.length;
  const bool is_float = is_floating(input.dtype);
  if (p.inner == 1) {
    launch(stream_of(args), "cumsum",
           is_float ? scan_lines_kernel<double> : scan_lines_kernel<std::int64_t>, p.lines,
           kThreads, 0, p);
  } else {
    launch(stream_of(args), "cumsum",
           is_float ? sum_columns_kernel<double> : sum_columns_kernel<std::int64_t>,
           ceil_div(p.lines, kThreads), kThreads, 0, p);
  }
}

}  // namespace

void register_cumsum_kernels() {
  register_kernel("cumsum", DeviceType::cuda, {.name = "cuda.cumsum", .run = run_cumsum});
}

}  // namespace tenon::cuda
