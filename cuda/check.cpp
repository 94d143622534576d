#include "cuda/check.h"

#include <pthread.h>

#include <atomic>
#include <chrono>
#include <mutex>
#include <string_view>
#include <thread>

#include "tensor/support/check.h"

namespace tenon::cuda {
namespace {

enum class State : std::uint8_t { alive, failed, forked, exiting };
std::atomic<State> state{State::alive};
std::thread::id exiting_thread;  // set before `state`
std::mutex reason_mutex;
// Never destroyed: checks may run while static objects are torn down.
std::string& lost_reason() {
  static auto* reason = new std::string;
  return *reason;
}

void mark_lost(cudaError_t status, std::string_view call) {
  const std::lock_guard lock(reason_mutex);
  if (state.load() != State::alive) return;
  lost_reason() = fmt::format("{} reported {} ({})", call, cudaGetErrorName(status),
                              cudaGetErrorString(status));
  state.store(State::failed);
}

/// What another thread does while the process ends: anything it called would fail, or crash.
void stop_unless_exiting() {
  while (std::this_thread::get_id() != exiting_thread) {
    std::this_thread::sleep_for(std::chrono::hours(1));
  }
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

bool is_lost() noexcept { return state.load(std::memory_order_relaxed) != State::alive; }

void require_alive() {
  if (!is_lost()) [[likely]]
    return;
  const State now = state.load();
  if (now == State::exiting) return stop_unless_exiting();
  if (now == State::forked) {
    throw DeviceLost(
        "the GPU cannot be used in this process: it was forked after its parent had used CUDA, "
        "which does not survive a fork; fork before the first use, or start a new program");
  }
  const std::lock_guard lock(reason_mutex);
  throw DeviceLost(
      fmt::format("the GPU cannot be used any more: {}; only a new process helps", lost_reason()));
}

void refuse_after_fork() {
  static const int registered =
      pthread_atfork(nullptr, nullptr, [] { state.store(State::forked); });
  TENON_INTERNAL(registered == 0, "pthread_atfork failed");
}

void begin_exit() noexcept {
  exiting_thread = std::this_thread::get_id();
  State expected = State::alive;
  state.compare_exchange_strong(expected, State::exiting);
}

void throw_cuda_error(cudaError_t status, const char* call) {
  if (state.load() == State::exiting) stop_unless_exiting();
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
    state.store(State::failed);
  }
}

void use_device(int index) {
  int current = -1;
  TENON_CUDA_CHECK(cudaGetDevice(&current));
  if (current != index) TENON_CUDA_CHECK(cudaSetDevice(index));
}

}  // namespace tenon::cuda
