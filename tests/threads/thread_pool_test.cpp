// The CPU's workers where several threads compute: whose limit holds, who waits for whom, how many
// work.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <latch>
#include <mutex>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

#include "tensor/parallel.h"
#include "tensor/tensor.h"

namespace tenon::test {
namespace thread_pool_test {

void on_threads(int count, const std::function<void(int)>& f) {
  std::vector<std::thread> threads;
  for (int i = 0; i < count; ++i) threads.emplace_back(f, i);
  for (std::thread& thread : threads) thread.join();
}

void pause() { std::this_thread::sleep_for(std::chrono::microseconds(200)); }

/// The threads that take part in a job of slow tasks.
std::size_t threads_of_a_job(std::int64_t tasks) {
  std::mutex mutex;
  std::set<std::thread::id> seen;
  parallel_for(tasks, [&](std::int64_t) {
    {
      const std::lock_guard lock(mutex);
      seen.insert(std::this_thread::get_id());
    }
    pause();
  });
  return seen.size();
}

TEST(ThreadPool, ALimitHoldsForItsThreadAlone) {
  const int before = num_threads();
  set_num_threads(before + 3);
  on_threads(2, [&](int i) {
    EXPECT_EQ(num_threads(), before) << "a new thread starts with the default";
    set_num_threads(i + 1);
    EXPECT_EQ(num_threads(), i + 1);
  });
  EXPECT_EQ(num_threads(), before + 3);
  set_num_threads(before);
}

TEST(ThreadPool, AJobUsesAtMostTheLimit) {
  for (const int limit : {1, 2, 3, 8}) {
    on_threads(1, [&](int) {
      set_num_threads(limit);
      std::size_t most = 0;
      for (int round = 0; round < 5; ++round) {
        const std::size_t used = threads_of_a_job(100);
        EXPECT_LE(used, static_cast<std::size_t>(limit));
        most = std::max(most, used);
      }
      EXPECT_EQ(most > 1, limit > 1) << limit << ", which may be more than the hardware has";
    });
  }
}

TEST(ThreadPool, NobodyWaitsForAnothersJob) {
  std::latch started(2);
  std::latch release(1);
  std::thread slow([&] {
    set_num_threads(2);
    parallel_for(2, [&](std::int64_t) {
      started.count_down();
      release.wait();
    });
  });
  started.wait();  // a caller and a worker hang in the first job
  std::atomic<int> count = 0;
  parallel_for(100, [&](std::int64_t) { ++count; });
  EXPECT_EQ(count, 100);
  release.count_down();
  slow.join();
}

TEST(ThreadPool, CallersThatFillTheCoresKeepTheWorkersOut) {
  const int cores = std::max(2, static_cast<int>(std::thread::hardware_concurrency()));
  std::latch all_in(cores);
  std::atomic<bool> full = false;
  std::atomic<int> helped = 0;
  std::atomic<int> left = cores;
  on_threads(cores, [&](int) {
    set_num_threads(cores);
    const std::thread::id caller = std::this_thread::get_id();
    std::atomic<bool> first = true;
    parallel_for(40, [&](std::int64_t) {
      if (std::this_thread::get_id() != caller) {
        helped += full;  // one that was about to begin may still do so
      } else if (first.exchange(false)) {
        all_in.arrive_and_wait();
        full = true;
      }
      pause();
    });
    if (--left == cores - 1) full = false;  // from now on a core is free
  });
  EXPECT_LE(helped, cores - 1);
}

TEST(ThreadPool, WorkersComeBackToAJobWhenACoreIsFree) {
  // The other caller is alone on its core at first; then one worker may take that core.
  const int cores = std::max(2, static_cast<int>(std::thread::hardware_concurrency()));
  std::atomic<bool> goes_on = true;
  std::vector<std::thread> others;
  for (int i = 1; i < cores; ++i) {
    others.emplace_back([&] {
      set_num_threads(1);
      parallel_for(2, [&](std::int64_t) {
        while (goes_on) pause();
      });
    });
  }
  std::atomic<int> helped = 0;
  const std::thread::id caller = std::this_thread::get_id();
  set_num_threads(cores);
  parallel_for(4000, [&](std::int64_t i) {
    if (i == 40) goes_on = false;
    if (std::this_thread::get_id() != caller) ++helped;
    pause();
    if (helped > 0 && i > 40) return;
  });
  for (std::thread& other : others) other.join();
  const std::size_t after = threads_of_a_job(200);
  EXPECT_GT(after, 1U);
}

TEST(ThreadPool, EachCallerGetsItsOwnError) {
  on_threads(6, [](int caller) {
    for (int round = 0; round < 30; ++round) {
      try {
        parallel_for(50, [&](std::int64_t i) {
          if (i == 7) throw std::runtime_error(std::to_string(caller));
        });
        ADD_FAILURE() << "nothing was thrown";
      } catch (const std::runtime_error& error) {
        EXPECT_EQ(error.what(), std::to_string(caller));
      }
    }
  });
}

TEST(ThreadPool, ManyCallersRunEveryTaskOnce) {
  on_threads(8, [](int caller) {
    set_num_threads(1 + caller % 4);
    for (const std::int64_t tasks : {1, 2, 3, 17, 400}) {
      for (int round = 0; round < 20; ++round) {
        std::vector<int> runs(static_cast<std::size_t>(tasks));
        parallel_for(tasks, [&](std::int64_t i) { ++runs[static_cast<std::size_t>(i)]; });
        EXPECT_EQ(std::count(runs.begin(), runs.end(), 1), tasks);
      }
    }
  });
}

TEST(ThreadPool, AForkedChildHasWorkersOfItsOwn) {
#if defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "ThreadSanitizer allows no threads in a forked child";
#endif
  set_num_threads(4);
  EXPECT_GT(threads_of_a_job(100), 1U);
  const pid_t child = fork();
  if (child == 0) {
    const bool computes = threads_of_a_job(400) > 1 && sum(ones({300, 300})).item() == 90000;
    _exit(computes ? 0 : 1);
  }
  int status = -1;
  waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
  EXPECT_GT(threads_of_a_job(100), 1U) << "the parent's are still there";
}

}  // namespace thread_pool_test
}  // namespace tenon::test
