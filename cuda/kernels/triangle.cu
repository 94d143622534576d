// tril and triu of a contiguous input, a thread an element; compiled by element size.

#include "cuda/kernels/element_size.h"
#include "cuda/kernels/register.h"
#include "cuda/launch.h"
#include "tensor/ops/plain_attributes.h"

namespace tenon::cuda {
namespace {

constexpr int kThreads = 256;

struct TriangleParams {
  const void* input = nullptr;
  void* output = nullptr;
  std::int64_t numel = 0;
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  std::int64_t diagonal = 0;
};

template <class U, bool kLower>
__global__ void __launch_bounds__(kThreads) triangle_kernel(const TriangleParams p) {
  const std::int64_t number = block_index() * kThreads + threadIdx.x;
  if (number >= p.numel) return;
  const std::int64_t row = number / p.columns;
  const std::int64_t above = number - row * p.columns - row % p.rows;  // column - row
  const bool kept = kLower ? above <= p.diagonal : above >= p.diagonal;
  static_cast<U*>(p.output)[number] = kept ? static_cast<const U*>(p.input)[number] : U(0);
}

template <bool kLower>
void run_triangle(const KernelArgs& args) {
  const TensorView& input = args.inputs[0];
  const TriangleParams p{input.data,     args.outputs[0].data,
                         input.numel(),  input.size(-2),
                         input.size(-1), args.attributes<DiagonalAttrs>().diagonal};
  if (p.numel == 0) return;
  dispatch_size(size_of(input.dtype), [&]<typename U>() {
    launch(stream_of(args), args.name(), triangle_kernel<U, kLower>, ceil_div(p.numel, kThreads),
           kThreads, 0, p);
  });
}

}  // namespace

void register_triangle_kernels() {
  register_kernel("tril", DeviceType::cuda, {.name = "cuda.tril", .run = run_triangle<true>});
  register_kernel("triu", DeviceType::cuda, {.name = "cuda.triu", .run = run_triangle<false>});
}

}  // namespace tenon::cuda
