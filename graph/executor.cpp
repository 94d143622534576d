#include "graph/executor.h"

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <unordered_map>
#include <unordered_set>

#include "tensor/support/check.h"

namespace tenon {

/// The Graph, which nobody changes any more, and its Programs.
class Executor::Cache {
 public:
  explicit Cache(Graph graph) : graph_(with_own_guards(std::move(graph))) {}

  std::shared_ptr<Program> program(std::span<const Tensor> inputs, bool training) {
    const std::string signature = signature_of(inputs, training);
    std::unique_lock lock(mutex_);
    lowered_.wait(lock, [&] { return !in_work_.contains(signature); });
    if (const auto found = programs_.find(signature); found != programs_.end()) {
      found->second.last_use = ++clock_;
      return found->second.program;
    }
    in_work_.insert(signature);
    lock.unlock();
    std::shared_ptr<Program> program;
    std::exception_ptr error;
    try {
      program = lower_or_make_room(inputs, {.training = training});
    } catch (...) {
      error = std::current_exception();
    }
    lock.lock();
    in_work_.erase(signature);
    lowered_.notify_all();
    if (error) std::rethrow_exception(error);
    if (programs_.size() >= kMaxPrograms) {
      programs_.erase(std::ranges::min_element(
          programs_, {}, [](const auto& known) { return known.second.last_use; }));
    }
    programs_.emplace(signature, Entry{program, ++clock_});
    return program;
  }

  const Graph& graph() const { return graph_; }

  std::size_t num_programs() const {
    const std::lock_guard lock(mutex_);
    return programs_.size();
  }

  std::size_t arena_bytes() const {
    const std::lock_guard lock(mutex_);
    std::size_t sum = 0;
    for (const auto& [signature, entry] : programs_) sum += entry.program->arena_bytes();
    return sum;
  }

 private:
  struct Entry {
    std::shared_ptr<Program> program;
    std::uint64_t last_use = 0;
  };

  /// The schedule that the Graph is of goes on with the other list, on another thread maybe.
  static Graph with_own_guards(Graph graph) {
    graph.own_guards();
    return graph;
  }

  static std::string signature_of(std::span<const Tensor> inputs, bool training) {
    std::string signature = training ? "train" : "eval";
    for (const Tensor& input : inputs) {
      signature += fmt::format("|{}:{}:{}", input.device().to_string(), name(input.dtype()),
                               fmt::join(input.layout().sizes, ","));
    }
    return signature;
  }

  /// Programs for other sizes give up their memory before this one is refused.
  std::shared_ptr<Program> lower_or_make_room(std::span<const Tensor> inputs,
                                              const LowerOptions& options) {
    std::vector<TensorSpec> specs;
    for (const Tensor& input : inputs) specs.push_back(input.spec());
    try {
      return lower(graph_, specs, options);
    } catch (const OutOfMemory&) {
      std::unordered_map<std::string, Entry> dropped;
      const std::lock_guard lock(mutex_);
      if (programs_.empty()) throw;
      dropped.swap(programs_);
    }
    return lower(graph_, specs, options);
  }

  const Graph graph_;
  mutable std::mutex mutex_;  // of what follows; not held while a Program is lowered or runs
  std::condition_variable lowered_;
  std::unordered_set<std::string> in_work_;  // signatures that a thread lowers now
  std::unordered_map<std::string, Entry> programs_;
  std::uint64_t clock_ = 0;
};

Executor::Executor(Graph graph) : cache_(std::make_shared<Cache>(std::move(graph))) {}

std::shared_ptr<Program> Executor::shared_program(std::span<const Tensor> inputs, bool training) {
  return cache_->program(inputs, training);
}

Program& Executor::program(std::span<const Tensor> inputs, bool training) {
  return *shared_program(inputs, training);
}

std::vector<Tensor> Executor::run(std::span<const Tensor> inputs, bool training) {
  return shared_program(inputs, training)->run(inputs);
}

const Graph& Executor::graph() const { return cache_->graph(); }
std::size_t Executor::num_programs() const { return cache_->num_programs(); }
std::size_t Executor::arena_bytes() const { return cache_->arena_bytes(); }

}  // namespace tenon
