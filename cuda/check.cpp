#include "cuda/check.h"

#include <atomic>
#include <mutex>
#include <string_view>

#include "tensor/detail/check.h"

namespace tenon::cuda {
namespace {

std::atomic<bool> lost{false};
std::mutex reason_mutex;
// Never destroyed: checks may run while static objects are torn down.
std::string& lost_reason() {
  static auto* reason = new std::string;
  return *reason;
}

void mark_lost(cudaError_t status, std::string_view call) {
  const std::lock_guard lock(reason_mutex);
  if (lost.load()) return;
  lost_reason() = fmt::format("{} reported {} ({})", call, cudaGetErrorName(status),
                              cudaGetErrorString(status));
  lost.store(true);
}

/// "cudaMalloc" of "cudaMalloc(&data, bytes)".
std::string_view function_name(const char* call) {
  const std::string_view text = call;
  return text.substr(0, text.find('('));
}

}  // namespace

bool is_sticky(cudaError_t status) noexcept {
  switch (status) {
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorLaunchFailure:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorAssert:
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorContextIsDestroyed:
    case cudaErrorExternalDevice:
    case cudaErrorUnknown: return true;
    default: return false;
  }
}

bool is_lost() noexcept { return lost.load(std::memory_order_relaxed); }

void require_alive() {
  if (!is_lost()) [[likely]]
    return;
  const std::lock_guard lock(reason_mutex);
  throw DeviceLost(
      fmt::format("the GPU cannot be used any more: {}; only a new process helps", lost_reason()));
}

void throw_cuda_error(cudaError_t status, const char* call) {
  const std::string_view function = function_name(call);
  static_cast<void>(cudaGetLastError());  // else the next, unrelated check would report it again
  if (is_sticky(status)) {
    mark_lost(status, function);
    require_alive();
  }
  const std::string text = fmt::format("{} failed: {} ({})", function, cudaGetErrorName(status),
                                       cudaGetErrorString(status));
  switch (status) {
    case cudaErrorMemoryAllocation: throw OutOfMemory("out of memory on cuda: " + text, 0, 0, 0);
    case cudaErrorInvalidValue:
    case cudaErrorInvalidConfiguration:
    case cudaErrorInvalidResourceHandle:
    case cudaErrorInvalidDeviceFunction:
    case cudaErrorLaunchOutOfResources: throw InternalError("internal error: " + text);
    case cudaErrorNoKernelImageForDevice:
      throw DeviceError(text + "; this build of Tenon has no kernels for this GPU");
    default: throw DeviceError(text);
  }
}

void note_quietly(cudaError_t status) noexcept {
  if (status == cudaSuccess) return;
  static_cast<void>(cudaGetLastError());
  if (!is_sticky(status)) return;
  try {
    mark_lost(status, "a release of a CUDA resource");
  } catch (...) {  // no memory for the text: the flag alone must do
    lost.store(true);
  }
}

void use_device(int index) {
  int current = -1;
  TENON_CUDA_CHECK(cudaGetDevice(&current));
  if (current != index) TENON_CUDA_CHECK(cudaSetDevice(index));
}

}  // namespace tenon::cuda
