// narrow_backward: a contiguous gradient laid into a range of one axis, zeros around it; each element
// of the output is written once, in units of up to 16 bytes, a thread a unit.
#include "cuda/device/memory.cuh"
#include "cuda/kernels/element_size.h"
#include "cuda/kernels/register.h"
#include "cuda/launch.h"
#include "tensor/ops/indexing_attributes.h"

namespace tenon::cuda {
namespace {

constexpr int kThreads = 256;

/// Rows of `row` units; those from `begin` to `end` are the gradient's.
struct PadParams {
  const void* gradient = nullptr;
  void* output = nullptr;
  std::int64_t units = 0;  // of the output
  std::int64_t row = 0;
  std::int64_t begin = 0;
  std::int64_t end = 0;
};

template <class U>
__global__ void __launch_bounds__(kThreads) pad_kernel(const PadParams p) {
  const std::int64_t number = block_index() * kThreads + threadIdx.x;
  if (number >= p.units) return;
  const std::int64_t row = number / p.row;
  const std::int64_t unit = number - row * p.row;
  U value{};
  if (unit >= p.begin && unit < p.end) {
    value = static_cast<const U*>(p.gradient)[row * (p.end - p.begin) + unit - p.begin];
  }
  static_cast<U*>(p.output)[number] = value;
}

template <class U>
void run_units(Stream stream, PadParams p) {
  constexpr auto kBytes = static_cast<std::int64_t>(sizeof(U));
  for (std::int64_t* bytes : {&p.units, &p.row, &p.begin, &p.end}) *bytes /= kBytes;
  launch(stream, "narrow_backward", pad_kernel<U>, ceil_div(p.units, kThreads), kThreads, 0, p);
}

void run_narrow_backward(const KernelArgs& args) {
  const TensorView& gradient = args.inputs[0];
  const TensorView& output = args.outputs[0];
  if (output.numel() == 0) return;
  const auto& attrs = args.attributes<NarrowBackwardAttrs>();
  const int axis = static_cast<int>(attrs.dim < 0 ? attrs.dim + output.rank() : attrs.dim);
  const auto element = static_cast<std::int64_t>(size_of(output.dtype));
  std::int64_t line = element;
  for (int i = axis + 1; i < output.rank(); ++i) line *= output.sizes[i];
  PadParams p{gradient.data, output.data, output.numel() * element, output.sizes[axis] * line};
  p.begin = attrs.start.value() * line;
  p.end = p.begin + gradient.sizes[axis] * line;
  if (line % kVectorBytes == 0 && is_aligned(p.gradient, kVectorBytes) &&
      is_aligned(p.output, kVectorBytes)) {
    return run_units<uint4>(stream_of(args), p);
  }
  dispatch_size(size_of(output.dtype), [&]<typename U>() { run_units<U>(stream_of(args), p); });
}

}  // namespace

void register_narrow_backward_kernels() {
  register_kernel("narrow_backward", DeviceType::cuda,
                  {.name = "cuda.narrow_backward", .run = run_narrow_backward});
}

}  // namespace tenon::cuda
