// Gradients of softmax, (g - Σ g·y)·y, and of log_softmax, g - exp(y)·Σ g, along one axis of contiguous
// tensors (outer, axis, inner). Rows (inner == 1) that are aligned and fit the registers of a warp or
// block are read once, other rows and columns (inner > 1) twice.
#include "cuda/device/row_stream.cuh"
#include "cuda/kernels/register.h"
#include "cuda/launch.h"
#include "tensor/ops/plain_attributes.h"

namespace tenon::cuda {
namespace {

constexpr int kColumnThreads = 32;  // columns of a block
constexpr int kColumnLanes = 8;     // threads of a column

struct BackwardParams {
  const void* grad = nullptr;
  const void* output = nullptr;  // of the forward op
  void* target = nullptr;
  std::int64_t rows = 0;  // outer · inner
  std::int64_t cols = 0;  // along the axis
  std::int64_t inner = 1;
  int lanes = 1;
  bool log = false;  // log_softmax
};

/// A term of the sum over the axis, and an element of the result given that sum.
struct SoftmaxRule {
  template <class C>
  static __device__ __forceinline__ C term(C g, C y) {
    return g * y;
  }
  template <class C>
  static __device__ __forceinline__ C result(C g, C y, C sum) {
    return (g - sum) * y;
  }
};
struct LogSoftmaxRule {
  template <class C>
  static __device__ __forceinline__ C term(C g, C) {
    return g;
  }
  template <class C>
  static __device__ __forceinline__ C result(C g, C y, C sum) {
    return g - exp_of(y) * sum;
  }
};

/// Calls f with the rule, so that loops in it test nothing.
template <class F>
__device__ __forceinline__ void with_rule(const BackwardParams& p, F f) {
  if (p.log) return f(LogSoftmaxRule{});
  f(SoftmaxRule{});
}

/// A thread holds the rows of both operands.
enum Operand { kGrad, kOutput };
template <class T>
inline constexpr RowStreamNeeds needs = softmax_backward_needs(sizeof(T));

template <class T, int kChunks>
__global__ void __launch_bounds__(largest_stream_block(needs<T>, kChunks),
                                  resident_stream_blocks(needs<T>, kChunks))
    held_rows_kernel(const BackwardParams p, const RowStream stream) {
  using C = compute_type<T>;
  using Ring = RowRing<T, kChunks>;
  __shared__ C scratch[kWarp];
  const int cols = static_cast<int>(p.cols);
  const auto start = [&](const RowGroup& group, int slot) {
    const std::int64_t at = group.row * p.cols;
    Ring::copy(group, cols, static_cast<const T*>(p.grad) + at, slot + kGrad);
    Ring::copy(group, cols, static_cast<const T*>(p.output) + at, slot + kOutput);
  };
  stream_rows(stream, start, [&](const RowGroup& group, int slot) {
    Row<T, kChunks> grad;
    Row<T, kChunks> output;
    Ring::read(group, cols, slot + kGrad, grad);
    Ring::read(group, cols, slot + kOutput, output);
    C sum = C(0);
    with_rule(p, [&](auto rule) {
      Row<T, kChunks>::for_each_chunk(group, cols, [&](int chunk, int) {
#pragma unroll
        for (int i = 0; i < kRowGroup; ++i) {
          sum += rule.term(grad.values[chunk][i], output.values[chunk][i]);
        }
      });
    });
    sum = group_reduce(sum, group.lanes, scratch, Sum{});
    if (!group.active) return;
    with_rule(p, [&](auto rule) {
      Row<T, kChunks>::for_each_chunk(group, cols, [&](int chunk, int) {
#pragma unroll
        for (int i = 0; i < kRowGroup; ++i) {
          C& g = grad.values[chunk][i];
          g = rule.result(g, output.values[chunk][i], sum);
        }
      });
    });
    grad.store(group, cols, static_cast<T*>(p.target) + group.row * p.cols);
  });
}

template <class T>
__global__ void __launch_bounds__(kMaxRowThreads) rows_kernel(const BackwardParams p) {
  using C = compute_type<T>;
  __shared__ C scratch[kWarp];
  const RowGroup group(p.rows, p.lanes);
  const T* grad = static_cast<const T*>(p.grad) + group.row * p.cols;
  const T* output = static_cast<const T*>(p.output) + group.row * p.cols;
  C sum = C(0);
  with_rule(p, [&](auto rule) {
#pragma unroll 4
    for (std::int64_t i = group.lane; i < p.cols; i += p.lanes) {
      sum += rule.term(widen(grad[i]), widen(output[i]));
    }
  });
  sum = group_reduce(sum, p.lanes, scratch, Sum{});
  if (!group.active) return;
  T* target = static_cast<T*>(p.target) + group.row * p.cols;
  with_rule(p, [&](auto rule) {
#pragma unroll 4
    for (std::int64_t i = group.lane; i < p.cols; i += p.lanes) {
      target[i] = convert<T>(rule.result(widen(grad[i]), widen(output[i]), sum));
    }
  });
}

/// kColumnThreads columns a block, kColumnLanes threads each.
template <class T>
__global__ void __launch_bounds__(kColumnThreads* kColumnLanes)
    columns_kernel(const BackwardParams p) {
  using C = compute_type<T>;
  __shared__ C sums[kColumnLanes][kColumnThreads];
  const int x = static_cast<int>(threadIdx.x) % kColumnThreads;
  const int y = static_cast<int>(threadIdx.x) / kColumnThreads;
  const std::int64_t column = block_index() * kColumnThreads + x;
  const std::int64_t base =
      column < p.rows ? column / p.inner * p.cols * p.inner + column % p.inner : 0;
  const T* grad = static_cast<const T*>(p.grad) + base;
  const T* output = static_cast<const T*>(p.output) + base;
  C sum = C(0);
  if (column < p.rows) {
    with_rule(p, [&](auto rule) {
      for (std::int64_t i = y; i < p.cols; i += kColumnLanes) {
        sum += rule.term(widen(grad[i * p.inner]), widen(output[i * p.inner]));
      }
    });
  }
  sums[y][x] = sum;
  __syncthreads();
  if (column >= p.rows) return;
  sum = sums[0][x];
  for (int i = 1; i < kColumnLanes; ++i) sum += sums[i][x];
  T* target = static_cast<T*>(p.target) + base;
  with_rule(p, [&](auto rule) {
    for (std::int64_t i = y; i < p.cols; i += kColumnLanes) {
      const std::int64_t at = i * p.inner;
      target[at] = convert<T>(rule.result(widen(grad[at]), widen(output[at]), sum));
    }
  });
}

template <class T>
void run_typed(Stream stream, const char* name, BackwardParams p) {
  if (p.inner > 1) {
    return launch(stream, name, columns_kernel<T>, ceil_div(p.rows, kColumnThreads),
                  kColumnThreads * kColumnLanes, 0, p);
  }
  const RowStreamPlan held =
      plan_row_stream(p.rows, p.cols, needs<T>, device_limits(stream.device));
  if (held.fits && p.cols % kRowGroup == 0 && is_aligned(p.grad, kVectorBytes) &&
      is_aligned(p.output, kVectorBytes) && is_aligned(p.target, kVectorBytes)) {
    const auto kernel =
        for_chunks<T>(held.chunks, []<int kChunks>() { return held_rows_kernel<T, kChunks>; });
    return launch(stream, name, kernel, held.blocks, held.threads, held.shared_bytes, p,
                  RowStream(p.rows, held));
  }
  const RowPlan plan = plan_rows(p.rows, p.cols, row_chunks<T>);
  p.lanes = plan.lanes;
  launch(stream, name, rows_kernel<T>, plan.blocks, plan.threads, 0, p);
}

void run(const KernelArgs& args, bool log) {
  const TensorView& grad = args.inputs[0];
  if (grad.numel() == 0) return;
  BackwardParams p{grad.data, args.inputs[1].data, args.outputs[0].data};
  p.log = log;
  const std::int64_t dim = args.attributes<AxisAttrs>().dim;
  const int axis = static_cast<int>(dim < 0 ? dim + grad.rank() : dim);
  p.cols = grad.rank() == 0 ? 1 : grad.sizes[axis];
  for (int i = axis + 1; i < grad.rank(); ++i) p.inner *= grad.sizes[i];
  p.rows = grad.numel() / p.cols;
  dispatch_float(grad.dtype, [&]<typename T>() { run_typed<T>(stream_of(args), args.name(), p); });
}

void run_softmax_backward(const KernelArgs& args) { run(args, /*log=*/false); }
void run_log_softmax_backward(const KernelArgs& args) { run(args, /*log=*/true); }

}  // namespace

void register_softmax_backward_kernels() {
  register_kernel("softmax_backward", DeviceType::cuda,
                  {.name = "cuda.softmax_backward", .run = run_softmax_backward});
  register_kernel("log_softmax_backward", DeviceType::cuda,
                  {.name = "cuda.log_softmax_backward", .run = run_log_softmax_backward});
}

}  // namespace tenon::cuda
