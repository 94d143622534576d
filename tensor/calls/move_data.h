// Moving data between devices: the kernel of to_device, and moves that are no op calls.
#pragma once

#include "tensor/kernel.h"

namespace tenon {
class Tensor;
}

namespace tenon::detail {

/// Copies operand 0, which is contiguous, into the output on another device or the same.
void run_to_device(const KernelArgs& args);

/// The data of an eager tensor on `device`, itself if it is there. Moved now, whatever interpreter is
/// innermost, and nothing is recorded: for factories, which make their data on the host.
Tensor moved_to(const Tensor& tensor, Device device);

/// The data of an eager tensor, contiguous on the host; read now and not recorded, as by moved_to.
Tensor host_data_of(const Tensor& tensor);

}  // namespace tenon::detail
