// CUDA as a DeviceBackend: one stream, one caching allocator and one set of kernels a GPU. Nothing
// of CUDA is touched before the first use, and a build with CUDA runs where there is no driver.
#pragma once

namespace tenon::cuda {

/// Registers the backend and every kernel; called once, by tensor/device.cpp.
void register_backend();

}  // namespace tenon::cuda
