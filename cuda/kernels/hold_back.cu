// A kernel that only waits, so that what is queued behind it runs without gaps and can be timed.
#include "cuda/kernels/hold_back.h"

#include <algorithm>

namespace tenon::cuda {
namespace {

__global__ void hold_back_kernel(std::uint64_t nanoseconds) {
  std::uint64_t start, now;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(start));
  do {
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
  } while (now - start < nanoseconds);
}

}  // namespace

void hold_back(Stream stream, std::chrono::microseconds time) {
  const auto limited = std::min<std::int64_t>(time.count(), 100000);
  launch(stream, "hold_back", hold_back_kernel, 1, 1, 0,
         static_cast<std::uint64_t>(limited) * 1000);
}

}  // namespace tenon::cuda
