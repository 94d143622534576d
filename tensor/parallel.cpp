#include "tensor/parallel.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "tensor/detail/check.h"

namespace tenon {
namespace {

thread_local bool inside_task = false;

/// Workers that sleep between jobs; the caller works too, so `threads` - 1 of them are started. A job
/// ends when its tasks have: a worker that wakes too late for it is not waited for.
class ThreadPool {
 public:
  explicit ThreadPool(int threads) {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { work(); });
  }

  ~ThreadPool() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
  }

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  void run(std::int64_t tasks, const std::function<void(std::int64_t)>& task) {
    const std::lock_guard one_job_at_a_time(submit_);
    {
      const std::lock_guard lock(mutex_);
      task_ = &task;
      tasks_ = tasks;
      next_ = 0;
      error_ = nullptr;
      ++job_;
      open_ = true;
    }
    wake_workers(tasks - 1);
    take_tasks();
    std::unique_lock lock(mutex_);
    open_ = false;
    done_.wait(lock, [this] { return joined_ == 0; });
    task_ = nullptr;
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
  }

 private:
  void work() {
    std::int64_t seen = 0;
    for (;;) {
      {
        std::unique_lock lock(mutex_);
        wake_.wait(lock, [&] { return stopping_ || (open_ && job_ != seen); });
        if (stopping_) return;
        seen = job_;
        ++joined_;
      }
      take_tasks();
      const std::lock_guard lock(mutex_);
      if (--joined_ == 0 && !open_) done_.notify_one();
    }
  }

  void wake_workers(std::int64_t wanted) {
    if (wanted >= static_cast<std::int64_t>(workers_.size())) return wake_.notify_all();
    for (std::int64_t i = 0; i < wanted; ++i) wake_.notify_one();
  }

  void take_tasks() {
    inside_task = true;
    for (std::int64_t i = next_++; i < tasks_; i = next_++) {
      try {
        (*task_)(i);
      } catch (...) {
        const std::lock_guard lock(mutex_);
        if (!error_) error_ = std::current_exception();
        next_ = tasks_;
      }
    }
    inside_task = false;
  }

  std::mutex submit_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::condition_variable done_;
  std::vector<std::thread> workers_;
  const std::function<void(std::int64_t)>* task_ = nullptr;
  std::int64_t tasks_ = 0;
  std::atomic<std::int64_t> next_{0};
  std::int64_t job_ = 0;
  bool open_ = false;  // workers may still join the job
  int joined_ = 0;     // workers that have and are not done
  bool stopping_ = false;
  std::exception_ptr error_;
};

int default_threads() {
  if (const char* text = std::getenv("TENON_NUM_THREADS")) {
    const int threads = std::atoi(text);
    if (threads >= 1) return std::min(threads, 1024);
  }
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

std::mutex pool_mutex;

std::shared_ptr<ThreadPool>& pool_slot() {
  static std::shared_ptr<ThreadPool> pool = std::make_shared<ThreadPool>(default_threads());
  return pool;
}

std::shared_ptr<ThreadPool> current_pool() {
  const std::lock_guard lock(pool_mutex);
  return pool_slot();
}

}  // namespace

int num_threads() { return current_pool()->threads(); }

void set_num_threads(int threads) {
  TENON_CHECK(threads >= 1 && threads <= 1024, ValueError,
              "{} threads were asked for; needed 1 to 1024", threads);
  auto pool = std::make_shared<ThreadPool>(threads);
  const std::lock_guard lock(pool_mutex);
  pool_slot() = std::move(pool);
}

void parallel_for(std::int64_t tasks, const std::function<void(std::int64_t)>& task) {
  if (tasks <= 1 || inside_task) {
    for (std::int64_t i = 0; i < tasks; ++i) task(i);
    return;
  }
  const auto pool = current_pool();
  if (pool->threads() == 1) {
    for (std::int64_t i = 0; i < tasks; ++i) task(i);
    return;
  }
  pool->run(tasks, task);
}

void parallel_ranges(std::int64_t n, std::int64_t grain,
                     const std::function<void(std::int64_t, std::int64_t)>& task) {
  if (n <= 0) return;
  const std::int64_t tasks = (n + grain - 1) / grain;
  parallel_for(tasks, [&](std::int64_t i) { task(i * grain, std::min(n, (i + 1) * grain)); });
}

}  // namespace tenon
