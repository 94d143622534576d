// dropout of a contiguous tensor, seen as (rows, cols) with the last axis as columns. A thread serves
// 8 neighbouring columns, which share one Philox call, by 16-byte accesses where aligned.
#include "cuda/device/memory.cuh"
#include "cuda/kernels/dropout.h"
#include "cuda/kernels/register.h"
#include "cuda/kernels/row_plan.h"
#include "cuda/launch.h"

namespace tenon::cuda {
namespace {

constexpr int kThreads = 256;

template <class T>
__global__ void __launch_bounds__(kThreads)
    dropout_kernel(const T* source, T* target, std::int64_t rows, std::int64_t cols,
                   std::int64_t groups_of_row, bool vectors, const DropoutParams dropout) {
  using C = compute_type<T>;
  const std::int64_t number = block_index() * kThreads + threadIdx.x;
  if (number >= rows * groups_of_row) return;
  const std::int64_t row = number / groups_of_row;
  const std::int64_t group = number - row * groups_of_row;
  const std::int64_t first = row * cols + group * kRowGroup;
  const std::uint32_t keep = kept_bits(dropout, row, group);
  const C scale = static_cast<C>(dropout.scale);
  if (vectors) {
    C values[kRowGroup];
    load_widened(source + first, values);
#pragma unroll
    for (int i = 0; i < kRowGroup; ++i) {
      values[i] = (keep >> i & 1U) != 0 ? values[i] * scale : C(0);
    }
    store_narrowed(target + first, values);
  } else {
    for (int i = 0; i < kRowGroup && group * kRowGroup + i < cols; ++i) {
      const C value = (keep >> i & 1U) != 0 ? widen(source[first + i]) * scale : C(0);
      target[first + i] = convert<T>(value);
    }
  }
}

void run_dropout(const KernelArgs& args) {
  const auto& attrs = args.attributes<DropoutAttrs>();
  const TensorView& input = args.inputs[0];
  const std::int64_t numel = input.numel();
  if (numel == 0) return;
  const std::int64_t cols = input.rank() == 0 ? 1 : input.size(-1);
  const std::int64_t groups = ceil_div(cols, kRowGroup);
  const bool vectors = cols % kRowGroup == 0 && is_aligned(input.data, kVectorBytes) &&
                       is_aligned(args.outputs[0].data, kVectorBytes);
  const DropoutParams dropout = dropout_params(attrs.p, attrs.mode, attrs.site, args);
  dispatch_float(input.dtype, [&]<typename T>() {
    launch(stream_of(args), "dropout", dropout_kernel<T>, ceil_div(numel / cols * groups, kThreads),
           kThreads, 0, input.as<const T>(), args.outputs[0].as<T>(), numel / cols, cols, groups,
           vectors, dropout);
  });
}

}  // namespace

void register_dropout_kernels() {
  register_kernel("dropout", DeviceType::cuda, {.name = "cuda.dropout", .run = run_dropout});
}

}  // namespace tenon::cuda
