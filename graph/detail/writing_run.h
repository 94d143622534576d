// A run of a Program that writes state: two that write one storage at the same time would leave a
// mixture.
#pragma once

#include "graph/detail/program_impl.h"

namespace tenon {

/// Lives while the Program runs. ConcurrencyError, naming the state, where another thread's run of
/// some Program writes one of the same storages. Costs a lock, and only beside other such runs a
/// comparison.
class WritingRun {
 public:
  explicit WritingRun(const Program::Impl& program);
  ~WritingRun();
  WritingRun(const WritingRun&) = delete;
  WritingRun& operator=(const WritingRun&) = delete;

 private:
  const Program::Impl& program_;
};

}  // namespace tenon
