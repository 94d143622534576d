// Launches of thread block clusters (compute capability 9.0): blocks that run at the same time and read
// each other's shared memory.
#pragma once

#include "cuda/launch.h"

namespace tenon::cuda {

/// launch_kernel for clusters of `cluster` neighbouring blocks, 1 to 8, which divides their number.
void launch_cluster_kernel(Stream stream, const char* name, const void* kernel,
                           const LaunchShape& shape, int cluster, void** arguments);

template <class... P>
void launch_cluster(Stream stream, const char* name, void (*kernel)(P...), const LaunchShape& shape,
                    int cluster, const std::type_identity_t<P>&... parameters) {
  void* arguments[] = {const_cast<void*>(static_cast<const void*>(&parameters))...};
  launch_cluster_kernel(stream, name, reinterpret_cast<const void*>(kernel), shape, cluster,
                        arguments);
}

}  // namespace tenon::cuda
