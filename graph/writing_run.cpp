#include "graph/detail/writing_run.h"

#include <algorithm>
#include <mutex>
#include <thread>

#include "tensor/support/check.h"

namespace tenon {
namespace {

struct Running {
  const Program::Impl* program;
  std::thread::id thread;
};

std::mutex mutex;

/// Never destroyed: threads may outlive main.
std::vector<Running>& running() {
  static auto& runs = *new std::vector<Running>;
  return runs;
}

/// A storage that both write, or null. Both lists are in order of address.
const Storage* written_by_both(const Program::Impl& a, const Program::Impl& b) {
  auto x = a.written.begin();
  auto y = b.written.begin();
  while (x != a.written.end() && y != b.written.end()) {
    if (*x == *y) return x->get();
    *x < *y ? ++x : ++y;
  }
  return nullptr;
}

}  // namespace

WritingRun::WritingRun(const Program::Impl& program) : program_(program) {
  if (program.written.empty()) return;
  const std::lock_guard lock(mutex);
  for (const Running& other : running()) {
    if (other.thread == std::this_thread::get_id()) continue;
    const Storage* const both = written_by_both(program, *other.program);
    if (both == nullptr) continue;
    const auto slot =
        std::find_if(program.parameters.begin(), program.parameters.end(),
                     [&](const ParameterSlot& state) { return state.storage.get() == both; });
    detail::fail<ConcurrencyError>(
        "[run] the program writes '{}', and so does one that another thread runs now; needed one "
        "after the other (under a mutex, say), or a model for each thread",
        slot == program.parameters.end() ? "its state" : slot->name);
  }
  running().push_back({&program, std::this_thread::get_id()});
}

WritingRun::~WritingRun() {
  if (program_.written.empty()) return;
  const std::lock_guard lock(mutex);
  std::erase_if(running(), [&](const Running& run) { return run.program == &program_; });
}

}  // namespace tenon
