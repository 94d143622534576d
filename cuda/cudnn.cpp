#include "cuda/cudnn.h"

#include <array>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>

#include "cuda/context.h"
#include "tensor/support/check.h"

namespace tenon::cuda {

void check_cudnn(cudnnStatus_t status, const char* call) {
  if (status == CUDNN_STATUS_SUCCESS) return;
  require_alive();
  if (const cudaError_t pending = cudaPeekAtLastError(); pending != cudaSuccess) {
    throw_cuda_error(pending, call);
  }
  std::array<char, 1024> reason{};
  cudnnGetLastErrorString(reason.data(), reason.size());
  const std::string_view text = call;
  detail::fail<DeviceError>("{} failed: {} ({})", text.substr(0, text.find('(')),
                            cudnnGetErrorString(status), reason.data());
}

bool is_unsupported(cudnnStatus_t status) {
  return status / 1000 * 1000 == static_cast<int>(CUDNN_STATUS_NOT_SUPPORTED);
}

// Never destroyed: cuDNN may be unloaded before static objects are torn down.
CudnnLibrary& cudnn_library(int device) {
  static std::mutex mutex;
  static auto* libraries = new std::unordered_map<int, std::unique_ptr<CudnnLibrary>>;
  const std::lock_guard lock(mutex);
  std::unique_ptr<CudnnLibrary>& library = (*libraries)[device];
  if (library == nullptr) library = std::make_unique<CudnnLibrary>(device);
  return *library;
}

cudnnHandle_t CudnnLibrary::handle() {
  const int stream = device_context(device_).work_stream().number();
  CudnnHandle& mine = handles_[static_cast<std::size_t>(stream)];
  if (!mine) {
    cudnnHandle_t handle = nullptr;
    TENON_CUDNN_CHECK(cudnnCreate(&handle));
    mine = CudnnHandle(handle);
  }
  return mine.get();
}

cudnnDataType_t cudnn_type(DType dtype) {
  switch (dtype) {
    case DType::float64: return CUDNN_DATA_DOUBLE;
    case DType::float16: return CUDNN_DATA_HALF;
    case DType::bfloat16: return CUDNN_DATA_BFLOAT16;
    default: return CUDNN_DATA_FLOAT;
  }
}

}  // namespace tenon::cuda
