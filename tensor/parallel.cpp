#include "tensor/parallel.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "tensor/support/check.h"

namespace tenon {
namespace {

thread_local bool inside_task = false;
thread_local int own_limit = 0;  // by set_num_threads; 0: the default

int hardware_threads() {
  static const int threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  return threads;
}

int default_threads() {
  static const int threads = [] {
    const char* text = std::getenv("TENON_NUM_THREADS");
    const int wanted = text != nullptr ? std::atoi(text) : 0;
    return wanted >= 1 ? std::min(wanted, 1024) : hardware_threads();
  }();
  return threads;
}

/// One parallel_for. It lies on its caller's stack, and workers are out of it before that returns.
struct Job {
  const std::function<void(std::int64_t)>& task;
  const std::int64_t tasks;
  const int threads;  // at most, the caller among them
  std::atomic<std::int64_t> next{0};
  // Under the pool's mutex:
  int workers = 0;  // inside
  std::exception_ptr error;
  std::condition_variable left;  // the last worker
};

/// Workers that sleep until a job has tasks and the hardware a free core. A job ends when its tasks
/// have: a worker that wakes too late for it is not waited for. The pool is never destroyed, since
/// threads may compute while the process ends.
class ThreadPool {
 public:
  /// `before` is what a fork left behind: its threads are gone, and its mutex may be locked.
  explicit ThreadPool(const ThreadPool* before) : before_(before) {}

  void run(Job& job) {
    const int room = capacity(job) - ++computing_;
    const auto wanted = std::min<std::int64_t>({job.tasks - 1, job.threads - 1, room});
    bool all = false;
    {
      const std::lock_guard lock(mutex_);
      start_workers(job.threads - 1);
      jobs_.push_back(&job);
      all = wanted >= workers_;
    }
    if (all) wake_.notify_all();  // one call of the system, not one for each
    for (std::int64_t i = 0; i < wanted && !all; ++i) wake_.notify_one();
    take_tasks(job, [] { return false; });
    std::unique_lock lock(mutex_);
    std::erase(jobs_, &job);
    --computing_;
    if (!jobs_.empty()) wake_.notify_one();  // this core is free for another's job
    job.left.wait(lock, [&] { return job.workers == 0; });
    if (job.error) std::rethrow_exception(std::exchange(job.error, nullptr));
  }

  /// The same on the calling thread alone; workers make room for it all the same.
  void run_alone(std::int64_t tasks, const std::function<void(std::int64_t)>& task) {
    struct Counted {
      explicit Counted(std::atomic<int>& counter) : count(counter) {
        ++count;
        inside_task = true;
      }
      ~Counted() {
        --count;
        inside_task = false;
      }
      std::atomic<int>& count;
    } const counted(computing_);
    for (std::int64_t i = 0; i < tasks; ++i) task(i);
  }

 private:
  /// Threads that may compute at once, of whatever jobs, while `job` gets one more.
  static int capacity(const Job& job) { return std::max(hardware_threads(), job.threads); }

  void start_workers(int wanted) {
    for (; workers_ < wanted; ++workers_) {
      try {
        std::thread([this] { work(); }).detach();
      } catch (const std::system_error&) {
        return;  // the system has no more; fewer do as well
      }
    }
  }

  void work() {
    std::unique_lock lock(mutex_);
    for (;;) {
      Job* job = nullptr;
      wake_.wait(lock, [&] { return (job = job_to_join()) != nullptr; });
      ++job->workers;
      ++computing_;
      lock.unlock();
      const bool made_room = take_tasks(*job, [&] { return make_room(capacity(*job)); });
      if (!made_room) --computing_;
      lock.lock();
      if (--job->workers == 0) job->left.notify_one();
    }
  }

  /// The open job with the fewest workers among those that may have one more, or null.
  Job* job_to_join() const {
    Job* found = nullptr;
    for (Job* job : jobs_) {
      if (job->next >= job->tasks || job->workers + 1 >= job->threads) continue;
      if (computing_ >= capacity(*job)) continue;
      if (found == nullptr || job->workers < found->workers) found = job;
    }
    return found;
  }

  /// True when more compute than may: this worker then counts no longer.
  bool make_room(int most) {
    int computing = computing_.load(std::memory_order_relaxed);
    while (computing > most) {
      if (computing_.compare_exchange_weak(computing, computing - 1)) return true;
    }
    return false;
  }

  /// Runs tasks until there are no more, or `leaves` says so, which it then returns.
  template <class Leaves>
  bool take_tasks(Job& job, const Leaves& leaves) {
    inside_task = true;
    bool left = false;
    while (!(left = leaves())) {
      const std::int64_t i = job.next++;
      if (i >= job.tasks) break;
      try {
        job.task(i);
      } catch (...) {
        const std::lock_guard lock(mutex_);
        if (!job.error) job.error = std::current_exception();
        job.next = job.tasks;
      }
    }
    inside_task = false;
    return left;
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<Job*> jobs_;  // whose callers still take tasks
  int workers_ = 0;
  std::atomic<int> computing_{0};   // callers and workers
  const ThreadPool* const before_;  // reachable, so that it is no leak
};

std::atomic<ThreadPool*> current_pool{nullptr};

ThreadPool& pool() {
  static const bool made = [] {
    current_pool = new ThreadPool(nullptr);
    pthread_atfork(nullptr, nullptr, [] { current_pool = new ThreadPool(current_pool); });
    return true;
  }();
  static_cast<void>(made);
  return *current_pool.load(std::memory_order_acquire);
}

}  // namespace

int num_threads() { return own_limit > 0 ? own_limit : default_threads(); }

void set_num_threads(int threads) {
  TENON_CHECK(threads >= 1 && threads <= 1024, ValueError,
              "{} threads were asked for; needed 1 to 1024", threads);
  own_limit = threads;
}

void parallel_for(std::int64_t tasks, const std::function<void(std::int64_t)>& task) {
  if (tasks <= 1 || inside_task) {
    for (std::int64_t i = 0; i < tasks; ++i) task(i);
    return;
  }
  const int threads = num_threads();
  if (threads == 1) return pool().run_alone(tasks, task);
  Job job{task, tasks, threads, {}, {}, {}, {}};
  pool().run(job);
}

void parallel_ranges(std::int64_t n, std::int64_t grain,
                     const std::function<void(std::int64_t, std::int64_t)>& task) {
  if (n <= 0) return;
  const std::int64_t tasks = (n + grain - 1) / grain;
  parallel_for(tasks, [&](std::int64_t i) { task(i * grain, std::min(n, (i + 1) * grain)); });
}

}  // namespace tenon
