// The CPU's worker threads. Work is cut into tasks by size alone, never by the number of threads,
// and each task is computed by one thread: so results do not depend on how many threads there are.
//
// Any number of threads may compute at once. Each works on its own job and waits for nobody else's;
// the workers, which all share, help while the hardware has a core that no caller needs.
#pragma once

#include <cstdint>
#include <functional>

namespace tenon {

/// The most threads that this thread's kernels run on, itself among them. A thread begins with
/// TENON_NUM_THREADS or, without that, the hardware's number.
int num_threads();
/// Sets it for the calling thread, 1 <= threads <= 1024; ValueError otherwise. More than the
/// hardware has are used too, as far as there is work: only the speed changes.
void set_num_threads(int threads);

/// Calls task(i) once for every i in [0, tasks), on the calling thread and on workers, and returns
/// when all are done. The first exception is rethrown; tasks that had not begun are then left out.
/// Nested calls run on the calling thread. A child of fork() has workers of its own; fork outside
/// of tasks, and while no other thread computes.
void parallel_for(std::int64_t tasks, const std::function<void(std::int64_t)>& task);

/// Cuts [0, n) into ranges of `grain` (the last one shorter) and calls task(begin, end) for each.
void parallel_ranges(std::int64_t n, std::int64_t grain,
                     const std::function<void(std::int64_t, std::int64_t)>& task);

}  // namespace tenon
