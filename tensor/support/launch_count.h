// How many kernels this thread has run; the CPU backend's count_kernels reads it.
#pragma once

#include <cstdint>

#include "tensor/op.h"

namespace tenon::detail {

inline thread_local std::int64_t kernel_launches = 0;

/// The only way a kernel is run, eagerly or by a Program.
inline void run_kernel(const Kernel& kernel, const KernelArgs& args) {
  ++kernel_launches;
  kernel.run(args);
}

}  // namespace tenon::detail
