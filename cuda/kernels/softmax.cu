// softmax and log_softmax along one axis of a contiguous tensor (outer, axis, inner), in float32 (float64 for
// float64). Three kernels: rows (inner == 1) that are aligned and fit the registers of a warp or block
// are read once; other rows are read twice, with a running maximum and sum; columns (inner > 1)
// likewise, with neighbouring threads on neighbouring columns.
#include "cuda/device/row_stream.cuh"
#include "cuda/device/running_sum.cuh"
#include "cuda/kernels/register.h"
#include "cuda/launch.h"
#include "tensor/ops/plain_attributes.h"

namespace tenon::cuda {
namespace {

constexpr int kColumnThreads = 32;  // columns of a block
constexpr int kColumnLanes = 8;     // threads of a column

struct SoftmaxParams {
  const void* source = nullptr;
  void* target = nullptr;
  std::int64_t rows = 0;  // outer · inner
  std::int64_t cols = 0;  // along the axis
  std::int64_t inner = 1;
  int lanes = 1;
  bool log = false;  // log_softmax
};

/// One element of softmax: exp(x - maximum)/sum.
template <class C>
struct Probability {
  C maximum;
  C scale;  // 1/sum
  __device__ __forceinline__ Probability(C largest, C sum) : maximum(largest), scale(C(1) / sum) {}
  __device__ __forceinline__ C operator()(C x) const { return exp_of(x - maximum) * scale; }
};

/// One element of log_softmax.
template <class C>
struct LogProbability {
  C maximum;
  C log_sum;
  __device__ __forceinline__ LogProbability(C largest, C sum)
      : maximum(largest), log_sum(log_of(sum)) {}
  __device__ __forceinline__ C operator()(C x) const { return (x - maximum) - log_sum; }
};

/// A thread holds the row, which is all that is copied.
template <class T>
inline constexpr RowStreamNeeds needs = softmax_needs(sizeof(T));

/// The row becomes its softmax; all threads of the block must call it.
template <class T, int kChunks>
__device__ __forceinline__ void apply_softmax(const RowGroup& group, int cols,
                                              compute_type<T> maximum, compute_type<T>* scratch,
                                              Row<T, kChunks>& row) {
  using C = compute_type<T>;
  C sum = C(0);
  row.for_each(group, cols, [&](C& x) {
    x = exp_of(x - maximum);
    sum += x;
  });
  const C scale = C(1) / group_reduce(sum, group.lanes, scratch, Sum{});
  row.for_each(group, cols, [&](C& x) { x *= scale; });
}

template <class T, int kChunks>
__device__ __forceinline__ void apply_log_softmax(const RowGroup& group, int cols,
                                                  compute_type<T> maximum, compute_type<T>* scratch,
                                                  Row<T, kChunks>& row) {
  using C = compute_type<T>;
  row.for_each(group, cols, [&](C& x) { x -= maximum; });
  C sum = C(0);
  row.for_each(group, cols, [&](C& x) { sum += exp_of(x); });
  const C log_sum = log_of(group_reduce(sum, group.lanes, scratch, Sum{}));
  row.for_each(group, cols, [&](C& x) { x -= log_sum; });
}

template <class T, int kChunks, bool kLog>
__global__ void __launch_bounds__(largest_stream_block(needs<T>, kChunks),
                                  resident_stream_blocks(needs<T>, kChunks))
    softmax_held_rows_kernel(const SoftmaxParams p, const RowStream stream) {
  using C = compute_type<T>;
  __shared__ C scratch[kWarp];
  const int cols = static_cast<int>(p.cols);
  const auto start = [&](const RowGroup& group, int slot) {
    RowRing<T, kChunks>::copy(group, cols, static_cast<const T*>(p.source) + group.row * p.cols,
                              slot);
  };
  stream_rows(stream, start, [&](const RowGroup& group, int slot) {
    Row<T, kChunks> row;
    RowRing<T, kChunks>::read(group, cols, slot, row);
    C maximum = -std::numeric_limits<C>::infinity();
    row.for_each(group, cols, [&](C& x) { maximum = NumberMax{}(maximum, x); });
    maximum = group_reduce(maximum, group.lanes, scratch, NumberMax{});
    if constexpr (kLog) {
      apply_log_softmax(group, cols, maximum, scratch, row);
    } else {
      apply_softmax(group, cols, maximum, scratch, row);
    }
    if (group.active) row.store(group, cols, static_cast<T*>(p.target) + group.row * p.cols);
  });
}

template <class T>
__global__ void __launch_bounds__(kMaxRowThreads) softmax_rows_kernel(const SoftmaxParams p) {
  using C = compute_type<T>;
  __shared__ C scratch[kWarp];
  const RowGroup group(p.rows, p.lanes);
  const T* source = static_cast<const T*>(p.source) + group.row * p.cols;
  T* target = static_cast<T*>(p.target) + group.row * p.cols;
  RunningSum<C> own;
#pragma unroll 4
  for (std::int64_t i = group.lane; i < p.cols; i += p.lanes) own.add(widen(source[i]));
  const RunningSum<C> total = own.combined(p.lanes, scratch);
  if (!group.active) return;
  const auto write = [&](auto finish) {
#pragma unroll 4
    for (std::int64_t i = group.lane; i < p.cols; i += p.lanes) {
      target[i] = convert<T>(finish(widen(source[i])));
    }
  };
  if (p.log) return write(LogProbability<C>(total.maximum, total.sum));
  write(Probability<C>(total.maximum, total.sum));
}

/// kColumnThreads columns a block, kColumnLanes threads each.
template <class T>
__global__ void __launch_bounds__(kColumnThreads* kColumnLanes)
    softmax_columns_kernel(const SoftmaxParams p) {
  using C = compute_type<T>;
  __shared__ C maxima[kColumnLanes][kColumnThreads];
  __shared__ C sums[kColumnLanes][kColumnThreads];
  const int x = static_cast<int>(threadIdx.x) % kColumnThreads;
  const int y = static_cast<int>(threadIdx.x) / kColumnThreads;
  const std::int64_t column = block_index() * kColumnThreads + x;
  const std::int64_t base =
      column < p.rows ? column / p.inner * p.cols * p.inner + column % p.inner : 0;
  const T* source = static_cast<const T*>(p.source) + base;
  RunningSum<C> own;
  if (column < p.rows) {
    for (std::int64_t i = y; i < p.cols; i += kColumnLanes) own.add(widen(source[i * p.inner]));
  }
  maxima[y][x] = own.maximum;
  sums[y][x] = own.sum;
  __syncthreads();
  if (column >= p.rows) return;
  RunningSum<C> total;
  for (int i = 0; i < kColumnLanes; ++i) total.merge({maxima[i][x], sums[i][x]});
  T* target = static_cast<T*>(p.target) + base;
  const auto write = [&](auto finish) {
    for (std::int64_t i = y; i < p.cols; i += kColumnLanes) {
      target[i * p.inner] = convert<T>(finish(widen(source[i * p.inner])));
    }
  };
  if (p.log) return write(LogProbability<C>(total.maximum, total.sum));
  write(Probability<C>(total.maximum, total.sum));
}

template <class T>
void run_typed(Stream stream, const char* name, SoftmaxParams p) {
  if (p.inner > 1) {
    return launch(stream, name, softmax_columns_kernel<T>, ceil_div(p.rows, kColumnThreads),
                  kColumnThreads * kColumnLanes, 0, p);
  }
  const RowStreamPlan held =
      plan_row_stream(p.rows, p.cols, needs<T>, device_limits(stream.device));
  if (held.fits && p.cols % kRowGroup == 0 && is_aligned(p.source, kVectorBytes) &&
      is_aligned(p.target, kVectorBytes)) {
    const auto kernel = for_chunks<T>(held.chunks, [&]<int kChunks>() {
      return p.log ? softmax_held_rows_kernel<T, kChunks, true>
                   : softmax_held_rows_kernel<T, kChunks, false>;
    });
    return launch(stream, name, kernel, held.blocks, held.threads, held.shared_bytes, p,
                  RowStream(p.rows, held));
  }
  const RowPlan plan = plan_rows(p.rows, p.cols, row_chunks<T>);
  p.lanes = plan.lanes;
  launch(stream, name, softmax_rows_kernel<T>, plan.blocks, plan.threads, 0, p);
}

void run(const KernelArgs& args, bool log) {
  const TensorView& input = args.inputs[0];
  SoftmaxParams p{input.data, args.outputs[0].data};
  p.log = log;
  if (input.numel() == 0) return;
  const std::int64_t dim = args.attributes<AxisAttrs>().dim;
  const int axis = static_cast<int>(dim < 0 ? dim + input.rank() : dim);
  p.cols = input.rank() == 0 ? 1 : input.sizes[axis];
  for (int i = axis + 1; i < input.rank(); ++i) p.inner *= input.sizes[i];
  p.rows = input.numel() / p.cols;
  const char* name = args.name();
  dispatch_float(input.dtype, [&]<typename T>() { run_typed<T>(stream_of(args), name, p); });
}

void run_softmax(const KernelArgs& args) { run(args, /*log=*/false); }
void run_log_softmax(const KernelArgs& args) { run(args, /*log=*/true); }

}  // namespace

void register_softmax_kernels() {
  register_kernel("softmax", DeviceType::cuda, {.name = "cuda.softmax", .run = run_softmax});
  register_kernel("log_softmax", DeviceType::cuda,
                  {.name = "cuda.log_softmax", .run = run_log_softmax});
}

}  // namespace tenon::cuda
