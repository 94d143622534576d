// print: the elements are copied to the host, in stream order, and summed up there.
#include "tensor/cpu/print.h"
#include "cuda/check.h"
#include "cuda/kernels/register.h"
#include "cuda/launch.h"
#include "tensor/device_backend.h"
#include "tensor/dtype.h"
#include "tensor/storage.h"

namespace tenon::cuda {
namespace {

void run_print(const KernelArgs& args) {
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  TENON_CUDA_CHECK(cudaStreamIsCapturing(stream_of(args).handle, &capture));
  if (capture != cudaStreamCaptureStatusNone) return;  // nothing is run, so there are no values
  TensorView values = args.inputs[0];
  const auto host =
      Storage::allocate(static_cast<std::size_t>(values.numel()) * size_of(values.dtype), kCpu);
  device_backend(DeviceType::cuda)
      .copy(host->data(), kCpu, values.data, values.device, host->bytes());
  values.data = host->data();
  values.device = kCpu;
  cpu::print_values(args, values);
}

}  // namespace

void register_print_kernel() {
  register_kernel("print", DeviceType::cuda, {.name = "cuda.print", .run = run_print});
}

}  // namespace tenon::cuda
