// cuDNN: one handle for each device, and checked calls. Only sources that CMake compiles where cuDNN
// was found include this.
#pragma once

#include <cudnn.h>

#include <mutex>

#include "cuda/handle.h"
#include "tensor/tensor_view.h"

namespace tenon::cuda {

using CudnnHandle = Handle<cudnnHandle_t, cudnnDestroy>;

/// Throws DeviceError, with what cuDNN says about it, when `status` is not success.
void check_cudnn(cudnnStatus_t status, const char* call);

#define TENON_CUDNN_CHECK(call) ::tenon::cuda::check_cudnn((call), #call)

/// cuDNN 9 has many ways to say so, with the same thousands.
bool is_unsupported(cudnnStatus_t status);

/// The library's state on one device. A handle serves one call at a time.
struct CudnnLibrary {
  std::mutex mutex;
  CudnnHandle handle;
};

/// The state of `device`, made at the first call.
CudnnLibrary& cudnn_library(int device);

cudnnDataType_t cudnn_type(DType dtype);

}  // namespace tenon::cuda
