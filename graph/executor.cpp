#include "graph/executor.h"

#include <algorithm>

#include "tensor/detail/check.h"

namespace tenon {

Executor::Executor(Graph graph) : graph_(std::move(graph)) {}

/// Programs for other sizes give up their memory before this one is refused.
std::shared_ptr<Program> Executor::lower_or_make_room(const std::vector<TensorSpec>& specs,
                                                      bool training) {
  const LowerOptions options{.training = training};
  if (!programs_.empty()) {
    try {
      return lower(graph_, specs, options);
    } catch (const OutOfMemory&) {
      programs_.clear();
    }
  }
  return lower(graph_, specs, options);
}

Program& Executor::program(std::span<const Tensor> inputs, bool training) {
  std::string signature = training ? "train" : "eval";
  std::vector<TensorSpec> specs;
  for (const Tensor& input : inputs) {
    specs.push_back(input.spec());
    signature += fmt::format("|{}:{}:{}", input.device().to_string(), name(input.dtype()),
                             fmt::join(input.layout().sizes, ","));
  }
  auto found = programs_.find(signature);
  if (found == programs_.end()) {
    std::shared_ptr<Program> program = lower_or_make_room(specs, training);
    if (programs_.size() >= kMaxPrograms) {
      programs_.erase(std::min_element(
          programs_.begin(), programs_.end(),
          [](const auto& a, const auto& b) { return a.second.last_use < b.second.last_use; }));
    }
    found = programs_.emplace(std::move(signature), Entry{std::move(program), 0}).first;
  }
  found->second.last_use = ++clock_;
  return *found->second.program;
}

std::vector<Tensor> Executor::run(std::span<const Tensor> inputs, bool training) {
  return program(inputs, training).run(inputs);
}

}  // namespace tenon
