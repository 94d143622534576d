// Move-only owners of CUDA and cuBLASLt resources. Their destructors never throw: once the device
// is lost, or the process is ending, releasing a resource fails and there is nobody to tell.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <utility>

#include "cuda/check.h"

namespace tenon::cuda {

/// Throws for a failed cuBLAS call: OutOfMemory, DeviceLost, DeviceError or InternalError.
[[noreturn]] void throw_cublas_error(cublasStatus_t status, const char* call);

inline void check(cublasStatus_t status, const char* call) {
  if (status != CUBLAS_STATUS_SUCCESS) [[unlikely]]
    throw_cublas_error(status, call);
}

/// Owns `T`, a pointer-like resource that `kRelease` gives back.
template <class T, auto kRelease>
class Handle {
 public:
  Handle() = default;
  explicit Handle(T value) : value_(value) {}
  Handle(Handle&& other) noexcept : value_(std::exchange(other.value_, nullptr)) {}
  Handle& operator=(Handle&& other) noexcept {
    std::swap(value_, other.value_);
    return *this;
  }
  ~Handle() {
    if (value_ == nullptr || is_lost()) return;
    const auto status = kRelease(value_);
    if constexpr (std::is_same_v<decltype(status), const cudaError_t>) note_quietly(status);
  }

  T get() const { return value_; }
  explicit operator bool() const { return value_ != nullptr; }

 private:
  T value_ = nullptr;
};

using StreamHandle = Handle<cudaStream_t, cudaStreamDestroy>;
using EventHandle = Handle<cudaEvent_t, cudaEventDestroy>;
using GraphHandle = Handle<cudaGraph_t, cudaGraphDestroy>;
using GraphExecHandle = Handle<cudaGraphExec_t, cudaGraphExecDestroy>;
using LtHandle = Handle<cublasLtHandle_t, cublasLtDestroy>;
using LtMatmulDesc = Handle<cublasLtMatmulDesc_t, cublasLtMatmulDescDestroy>;
using LtMatrixLayout = Handle<cublasLtMatrixLayout_t, cublasLtMatrixLayoutDestroy>;
using LtPreference = Handle<cublasLtMatmulPreference_t, cublasLtMatmulPreferenceDestroy>;

/// A stream that does not wait for the legacy default stream.
StreamHandle make_stream();
/// An event; with timing, for elapsed times, which costs a little more.
EventHandle make_event(bool timing);

}  // namespace tenon::cuda
