// where and masked_fill: elements are moved, not computed with, so one kernel serves all dtypes of a
// size. Any strides; see device/pointwise.cuh.
#include "cuda/device/pointwise.cuh"
#include "cuda/kernels/element_size.h"
#include "cuda/kernels/register.h"
#include "tensor/ops/attributes.h"

namespace tenon::cuda {
namespace {

struct Select {
  template <class T>
  __device__ T operator()(bool condition, T a, T b) const {
    return condition ? a : b;
  }
};

void run_where(const KernelArgs& args) {
  dispatch_size(size_of(args.outputs[0].dtype), [&]<typename T>() {
    run_pointwise<T, bool, T, T>(stream_of(args), "where", args.outputs[0],
                                 {args.inputs[0], args.inputs[1], args.inputs[2]}, Select{});
  });
}

void run_masked_fill(const KernelArgs& args) {
  const DType dtype = args.outputs[0].dtype;
  const std::int64_t bits = element_bits(args.attributes<FillAttrs>().value.number(), dtype);
  dispatch_size(size_of(dtype), [&]<typename T>() {
    run_pointwise<T, bool, T, T>(stream_of(args), "masked_fill", args.outputs[0],
                                 {args.inputs[1], absent_operand(), args.inputs[0]}, Select{},
                                 {0, bits, 0});
  });
}

}  // namespace

void register_select_kernels() {
  register_kernel(
      "where", DeviceType::cuda,
      {.name = "cuda.where", .run = run_where, .accepts = any_layout, .strided_output = true});
  register_kernel("masked_fill", DeviceType::cuda,
                  {.name = "cuda.masked_fill",
                   .run = run_masked_fill,
                   .accepts = any_layout,
                   .strided_output = true});
}

}  // namespace tenon::cuda
