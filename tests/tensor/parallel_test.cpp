// parallel_for: every task runs once, exceptions come back, nested and concurrent calls work, on any
// number of threads.
#include "tensor/parallel.h"

#include <gtest/gtest.h>

#include <atomic>
#include <stdexcept>
#include <thread>
#include <vector>

namespace tenon {
namespace {

class Parallel : public ::testing::TestWithParam<int> {
 protected:
  Parallel() : before_(num_threads()) { set_num_threads(GetParam()); }
  ~Parallel() override { set_num_threads(before_); }

 private:
  int before_;
};

TEST_P(Parallel, EveryTaskRunsOnce) {
  for (const std::int64_t tasks : {0, 1, 2, 3, 7, 1000}) {
    for (int round = 0; round < 50; ++round) {
      std::vector<int> runs(static_cast<std::size_t>(tasks));
      parallel_for(tasks, [&](std::int64_t i) { ++runs[static_cast<std::size_t>(i)]; });
      for (const int count : runs) ASSERT_EQ(count, 1);
    }
  }
}

TEST_P(Parallel, RangesCoverAll) {
  std::vector<int> runs(1003);
  parallel_ranges(1003, 10, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) ++runs[static_cast<std::size_t>(i)];
  });
  for (const int count : runs) EXPECT_EQ(count, 1);
}

TEST_P(Parallel, AnExceptionComesBackAndTheNextJobRuns) {
  for (int round = 0; round < 50; ++round) {
    EXPECT_THROW(parallel_for(100,
                              [](std::int64_t i) {
                                if (i == 17) throw std::runtime_error("task 17");
                              }),
                 std::runtime_error);
    std::atomic<int> count = 0;
    parallel_for(10, [&](std::int64_t) { ++count; });
    EXPECT_EQ(count, 10);
  }
}

TEST_P(Parallel, NestedAndConcurrentCalls) {
  std::atomic<int> count = 0;
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 3; ++caller) {
    callers.emplace_back([&] {
      for (int round = 0; round < 20; ++round) {
        parallel_for(8, [&](std::int64_t) { parallel_for(4, [&](std::int64_t) { ++count; }); });
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(count, 3 * 20 * 8 * 4);
}

INSTANTIATE_TEST_SUITE_P(Threads, Parallel, ::testing::Values(1, 2, 3, 8));

}  // namespace
}  // namespace tenon
