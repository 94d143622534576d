// The CPU's worker threads. Work is cut into tasks by size alone, never by the number of threads,
// and each task is computed by one thread: so results do not depend on how many threads there are.
#pragma once

#include <cstdint>
#include <functional>

namespace tenon {

/// Threads that kernels run on; default: the hardware's, or TENON_NUM_THREADS.
int num_threads();
/// Sets it, 1 <= threads; ValueError otherwise.
void set_num_threads(int threads);

/// Calls task(i) once for every i in [0, tasks), on all threads, and returns when all are done. The
/// first exception is rethrown. Nested calls run on the calling thread.
void parallel_for(std::int64_t tasks, const std::function<void(std::int64_t)>& task);

/// Cuts [0, n) into ranges of `grain` (the last one shorter) and calls task(begin, end) for each.
void parallel_ranges(std::int64_t n, std::int64_t grain,
                     const std::function<void(std::int64_t, std::int64_t)>& task);

}  // namespace tenon
