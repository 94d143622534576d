// Executor: a Graph that runs on inputs of any sizes its guards allow, lowering it once for each
// signature (sizes, dtypes, device, mode) and keeping those Programs.
//
// Any number of threads may call one Executor at once, and each gets what one thread would get: a
// signature is lowered once, by the thread that needs it first, while others run what is there.
// Runs of one Program exclude each other; where runs shall overlap, each thread builds an Executor
// of its own, which shares the model's weights. Copies of an Executor share their Programs. A
// forward that writes state, a batch norm's in training say, is for one thread at a time: runs for
// two sizes at once are a ConcurrencyError.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "graph/program.h"

namespace tenon {

class Executor {
 public:
  explicit Executor(Graph graph);

  /// Runs one forward pass. `training` resolves the Graph's mode symbol, whatever modes the modules
  /// are in now. StaleProgram as Program::run and lower.
  std::vector<Tensor> run(std::span<const Tensor> inputs, bool training = false);
  /// The same for a graph with one output.
  template <class... T>
  Tensor operator()(const T&... inputs) {
    const Tensor list[] = {inputs...};
    return run(list).at(0);
  }
  /// The Program for these inputs, lowered now if it was not. It lives as long as it is kept:
  /// another thread's call for other sizes may end that, unless the caller holds shared_program's.
  Program& program(std::span<const Tensor> inputs, bool training = false);
  /// The same, alive as long as the caller wants.
  std::shared_ptr<Program> shared_program(std::span<const Tensor> inputs, bool training = false);
  const Graph& graph() const;
  /// Programs that are kept.
  std::size_t num_programs() const;
  /// Bytes of device memory that these hold for intermediate results. Weights are the model's, and
  /// shared by all that was built from it.
  std::size_t arena_bytes() const;

  /// At most this many Programs are kept; the least recently used one goes first.
  static constexpr std::size_t kMaxPrograms = 32;

 private:
  class Cache;
  std::shared_ptr<Cache> cache_;
};

}  // namespace tenon
