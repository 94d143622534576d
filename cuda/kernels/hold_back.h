// Keeps a stream busy while the host queues work behind it.
#pragma once

#include <chrono>

#include "cuda/launch.h"

namespace tenon::cuda {

/// Queues a kernel of one thread that runs for `time`, at most a tenth of a second.
void hold_back(Stream stream, std::chrono::microseconds time);

}  // namespace tenon::cuda
