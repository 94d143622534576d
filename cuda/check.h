// Checks of CUDA and cuBLAS calls by name, and the one flag that says whether the device is lost.
//
//   TENON_CUDA_CHECK(cudaEventRecord(event, stream));
//
// OutOfMemory and bad arguments leave the context usable. A sticky error (illegal address, failed
// launch, …) does not: from then on everything throws DeviceLost, and destructors stay quiet.
#pragma once

#include <cuda_runtime_api.h>

#include <string>

namespace tenon::cuda {

/// Throws what went wrong with `call`, whose status is not cudaSuccess, and clears the error.
[[noreturn]] void throw_cuda_error(cudaError_t status, const char* call);

inline void check(cudaError_t status, const char* call) {
  if (status != cudaSuccess) [[unlikely]]
    throw_cuda_error(status, call);
}

/// For errors after which only a new process helps.
bool is_sticky(cudaError_t status) noexcept;
/// True once a sticky error was seen, in a forked child, and when the process ends: nothing need be
/// released any more.
bool is_lost() noexcept;
/// Throws DeviceLost with the first sticky error if there was one, or in a forked child. When the
/// process ends, returns in the thread that ends it only.
void require_alive();
/// From here on the children of fork() are refused: the driver does not work in them.
void refuse_after_fork();
/// The calling thread ends the process: the others stop at require_alive() or at a failed call.
void begin_exit() noexcept;
/// Records a failure that could not be thrown, as in a destructor; a sticky one marks the device.
void note_quietly(cudaError_t status) noexcept;

/// Makes device `index` the calling thread's; kernels and copies go to the current device.
void use_device(int index);

}  // namespace tenon::cuda

#define TENON_CUDA_CHECK(call) ::tenon::cuda::check((call), #call)
