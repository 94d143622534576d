// argmax of a contiguous input along one axis or flattened: the first of equals, NaN largest. Lines
// of contiguous elements are searched by a block each, long ones in pieces first; otherwise a thread
// searches a line and its neighbours search the ones beside it.
#include <limits>

#include "cuda/device/convert.cuh"
#include "cuda/kernels/reduce_plan.h"
#include "cuda/kernels/register.h"
#include "cuda/launch.h"
#include "tensor/ops/plain_attributes.h"

namespace tenon::cuda {
namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kPiece = 1 << 15;  // elements that a block searches
constexpr std::int64_t kNone = std::numeric_limits<std::int64_t>::max();

template <class C>
__device__ __forceinline__ bool is_larger(C a, C b) {
  return a > b || (a != a && b == b);
}

/// The best element seen so far; the order in which candidates come does not matter.
template <class C>
struct Best {
  C value;
  std::int64_t index;

  __device__ __forceinline__ void consider(C other, std::int64_t at) {
    if (at == kNone) return;
    const bool first_of_equals = !is_larger(value, other) && at < index;
    if (index == kNone || is_larger(other, value) || first_of_equals) {
      value = other;
      index = at;
    }
  }
};

struct LineParams {
  const void* input = nullptr;               // [lines, length]
  const std::int64_t* candidates = nullptr;  // [lines, count] positions in a line; null: all
  std::int64_t* output = nullptr;            // [lines, pieces]
  std::int64_t lines = 0;
  std::int64_t length = 0;
  std::int64_t count = 0;  // candidates of a line
  std::int64_t pieces = 1;
};

template <class T>
__global__ void __launch_bounds__(kThreads) search_lines_kernel(const LineParams p) {
  using C = compute_type<T>;
  __shared__ C values[kThreads];
  __shared__ std::int64_t indices[kThreads];
  const std::int64_t line = block_index() / p.pieces;
  if (line >= p.lines) return;
  const std::int64_t begin = (block_index() - line * p.pieces) * kPiece;
  const std::int64_t end = p.pieces > 1 && begin + kPiece < p.count ? begin + kPiece : p.count;
  const T* source = static_cast<const T*>(p.input) + line * p.length;
  const int thread = static_cast<int>(threadIdx.x);
  Best<C> best{C(0), kNone};
  for (std::int64_t i = begin + thread; i < end; i += kThreads) {
    const std::int64_t at = p.candidates != nullptr ? p.candidates[line * p.count + i] : i;
    best.consider(widen(source[at]), at);
  }
  values[thread] = best.value;
  indices[thread] = best.index;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (thread >= half) continue;
    best.consider(values[thread + half], indices[thread + half]);
    values[thread] = best.value;
    indices[thread] = best.index;
  }
  if (thread == 0) p.output[block_index()] = best.index;
}

struct ColumnParams {
  const void* input = nullptr;  // [outer, length, inner]
  std::int64_t* output = nullptr;
  std::int64_t outputs = 0;
  std::int64_t length = 0;
  std::int64_t inner = 0;
};

template <class T>
__global__ void __launch_bounds__(kThreads) search_columns_kernel(const ColumnParams p) {
  const std::int64_t number = block_index() * kThreads + threadIdx.x;
  if (number >= p.outputs) return;
  const std::int64_t outer = number / p.inner;
  const T* source =
      static_cast<const T*>(p.input) + outer * p.length * p.inner + (number - outer * p.inner);
  Best<compute_type<T>> best{widen(source[0]), 0};
  for (std::int64_t i = 1; i < p.length; ++i) best.consider(widen(source[i * p.inner]), i);
  p.output[number] = best.index;
}

template <class T>
void search_lines(Stream stream, LineParams p, void* workspace) {
  p.pieces = ceil_div(p.length, kPiece);
  p.count = p.length;
  std::int64_t* output = p.output;
  if (p.pieces > 1) {
    p.output = static_cast<std::int64_t*>(workspace);
    launch(stream, "argmax", search_lines_kernel<T>, p.lines * p.pieces, kThreads, 0, p);
    p.candidates = p.output;
    p.output = output;
    p.count = p.pieces;
    p.pieces = 1;
  }
  launch(stream, "argmax", search_lines_kernel<T>, p.lines, kThreads, 0, p);
}

void run_argmax(const KernelArgs& args) {
  const TensorView& input = args.inputs[0];
  const auto& dim = args.attributes<ReduceAttrs>().dim;
  const std::int64_t outputs = args.outputs[0].numel();
  if (outputs == 0) return;
  require_elements(args);
  const std::int64_t length = input.numel() / outputs;
  std::int64_t inner = 1;
  if (!dim.empty() && input.rank() > 0) {
    const int axis = static_cast<int>(dim[0] < 0 ? dim[0] + input.rank() : dim[0]);
    for (int i = axis + 1; i < input.rank(); ++i) inner *= input.sizes[i];
  }
  auto* output = args.outputs[0].as<std::int64_t>();
  const Stream stream = stream_of(args);
  const auto run = [&]<typename T>() {
    if (inner == 1) {
      const LineParams p{input.data, nullptr, output, outputs, length};
      return search_lines<T>(stream, p, args.workspace);
    }
    const ColumnParams p{input.data, output, outputs, length, inner};
    launch(stream, "argmax", search_columns_kernel<T>, ceil_div(outputs, kThreads), kThreads, 0, p);
  };
  switch (input.dtype) {
    case DType::int64: return run.operator()<std::int64_t>();
    case DType::int32: return run.operator()<std::int32_t>();
    case DType::uint8:
    case DType::boolean: return run.operator()<std::uint8_t>();  // a byte of 0 or 1
    default: dispatch_float(input.dtype, run);
  }
}

/// A place for each piece of each line, where lines are cut.
std::size_t argmax_workspace(const KernelArgs& args) {
  const std::int64_t outputs = args.outputs[0].numel();
  const std::int64_t length = outputs == 0 ? 0 : args.inputs[0].numel() / outputs;
  const std::int64_t pieces = ceil_div(length, kPiece);
  return pieces > 1 ? static_cast<std::size_t>(outputs * pieces) * sizeof(std::int64_t) : 0;
}

}  // namespace

void register_argmax_kernels() {
  register_kernel("argmax", DeviceType::cuda,
                  {.name = "cuda.argmax", .run = run_argmax, .workspace_bytes = argmax_workspace});
}

}  // namespace tenon::cuda
