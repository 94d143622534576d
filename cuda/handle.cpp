#include "cuda/handle.h"

#include <string_view>

#include "tensor/support/check.h"

namespace tenon::cuda {

void throw_cublas_error(cublasStatus_t status, const char* call) {
  require_alive();
  // A failed launch inside cuBLAS may be the first sign of an earlier kernel's fault.
  if (const cudaError_t pending = cudaPeekAtLastError(); pending != cudaSuccess) {
    throw_cuda_error(pending, call);
  }
  const std::string_view text = call;
  const std::string message =
      fmt::format("{} failed: {}", text.substr(0, text.find('(')), cublasLtGetStatusString(status));
  switch (status) {
    case CUBLAS_STATUS_ALLOC_FAILED:
      throw OutOfMemory("out of memory on cuda: " + message, 0, 0, 0);
    case CUBLAS_STATUS_INVALID_VALUE: throw InternalError("internal error: " + message);
    default: throw DeviceError(message);
  }
}

StreamHandle make_stream() {
  cudaStream_t stream = nullptr;
  TENON_CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  return StreamHandle(stream);
}

EventHandle make_event(bool timing) {
  cudaEvent_t event = nullptr;
  TENON_CUDA_CHECK(
      cudaEventCreateWithFlags(&event, timing ? cudaEventDefault : cudaEventDisableTiming));
  return EventHandle(event);
}

}  // namespace tenon::cuda
