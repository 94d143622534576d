// cat: each tensor is copied to its slice of the output; one launch a tensor.
#include "cuda/kernels/copy.h"
#include "cuda/kernels/register.h"
#include "tensor/ops/attributes.h"

namespace tenon::cuda {
namespace {

void run_cat(const KernelArgs& args) {
  const TensorView& output = args.outputs[0];
  const std::int64_t dim = args.attributes<AxisAttrs>().dim;
  const int axis = static_cast<int>(dim < 0 ? dim + output.rank() : dim);
  const std::int64_t step = output.strides[axis] * static_cast<std::int64_t>(size_of(output.dtype));
  TensorView slice = output;
  auto* begin = static_cast<char*>(output.data);
  for (const TensorView& input : args.inputs) {
    slice.data = begin;
    slice.sizes[axis] = input.sizes[axis];
    copy_strided(stream_of(args), "cat", input, slice);
    begin += input.sizes[axis] * step;
  }
}

}  // namespace

void register_cat_kernels() {
  register_kernel(
      "cat", DeviceType::cuda,
      {.name = "cuda.cat", .run = run_cat, .accepts = any_layout, .strided_output = true});
}

}  // namespace tenon::cuda
