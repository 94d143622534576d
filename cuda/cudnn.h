// cuDNN: a handle for each stream that threads work on, and checked calls. Only sources that CMake
// compiles where cuDNN was found include this.
#pragma once

#include <cudnn.h>

#include <array>
#include <mutex>

#include "cuda/handle.h"
#include "tensor/stream_uses.h"
#include "tensor/tensor_view.h"

namespace tenon::cuda {

using CudnnHandle = Handle<cudnnHandle_t, cudnnDestroy>;

/// Throws DeviceError, with what cuDNN says about it, when `status` is not success.
void check_cudnn(cudnnStatus_t status, const char* call);

#define TENON_CUDNN_CHECK(call) ::tenon::cuda::check_cudnn((call), #call)

/// cuDNN 9 has many ways to say so, with the same thousands.
bool is_unsupported(cudnnStatus_t status);

/// The library's state on one device. `mutex` is held during every call: plans may not serve two at
/// a time.
class CudnnLibrary {
 public:
  explicit CudnnLibrary(int device) : device_(device) {}
  std::mutex mutex;
  /// The handle of this thread's stream, made at the first call: what a handle queues on streams of
  /// its own must not become part of another thread's capture.
  cudnnHandle_t handle();

 private:
  const int device_;
  std::array<CudnnHandle, kMaxStreams> handles_;
};

/// The state of `device`, made at the first call.
CudnnLibrary& cudnn_library(int device);

cudnnDataType_t cudnn_type(DType dtype);

}  // namespace tenon::cuda
