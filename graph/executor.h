// Executor: a Graph that runs on inputs of any sizes its guards allow, lowering it once for each
// signature (sizes, dtypes, device, mode) and keeping those Programs.
#pragma once

#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "graph/program.h"

namespace tenon {

class Executor {
 public:
  explicit Executor(Graph graph);

  /// Runs one forward pass. `training` resolves the Graph's mode symbol.
  std::vector<Tensor> run(std::span<const Tensor> inputs, bool training = false);
  /// The same for a graph with one output.
  template <class... T>
  Tensor operator()(const T&... inputs) {
    const Tensor list[] = {inputs...};
    return run(list).at(0);
  }
  /// The Program for these inputs, lowered now if it was not.
  Program& program(std::span<const Tensor> inputs, bool training = false);
  const Graph& graph() const { return graph_; }
  std::size_t num_programs() const { return programs_.size(); }

  /// At most this many Programs are kept; the least recently used one goes first.
  static constexpr std::size_t kMaxPrograms = 32;

 private:
  struct Entry {
    std::shared_ptr<Program> program;
    std::uint64_t last_use = 0;
  };
  std::shared_ptr<Program> lower_or_make_room(const std::vector<TensorSpec>& specs, bool training);

  Graph graph_;
  std::unordered_map<std::string, Entry> programs_;
  std::uint64_t clock_ = 0;
};

}  // namespace tenon
