// Planted wrong rewrites: edits of a Graph that the IR verifier accepts and that change what the model
// means, which schedule verification must catch. They exist in test programs only.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "graph/tracer.h"
#include "schedule/schedule.h"

namespace tenon::fuzz {

/// Edits of one Graph. Functions that write nodes run under the tracer, in front of the node they
/// replace.
class GraphEdit {
 public:
  using Operands = std::vector<Tensor>;
  explicit GraphEdit(Graph& graph) : graph_(graph) {}

  Graph& graph() { return graph_; }
  /// The n-th node of that op in program order.
  NodeId nth(const std::string& op, std::size_t n = 0) const;
  /// Puts what `make` returns for the node's operands in place of its first result.
  void replace(NodeId id, const std::function<Tensor(const Operands&)>& make);
  /// The node's result goes through `f`.
  void wrap(NodeId id, const std::function<Tensor(const Tensor&)>& f);
  /// Operand `i` goes through `f`.
  void feed(NodeId id, std::size_t i, const std::function<Tensor(const Tensor&)>& f);
  void set(NodeId id, const std::string& attribute, const AttrValue& value);
  /// Inside of the functions above: a node's result, a graph input.
  Tensor result(NodeId id, std::size_t output = 0) const;
  Tensor input(std::size_t i) const;
  /// A parameter or buffer by name; the Graph knows it by identity.
  Tensor state(const std::string& name) const;

 private:
  Graph& graph_;
  GraphBuilder* builder_ = nullptr;
};

/// A model, maybe scheduled already, that edits are tried on.
using Scene = Schedule (*)();

struct Planted {
  const char* name;
  Scene scene;
  void (*edit)(GraphEdit&);
};

// One list a file of planted_*.cpp.
std::vector<Planted> planted_in_attention();
std::vector<Planted> planted_in_models();
std::vector<Planted> planted_in_values();
std::vector<Planted> planted_in_state();
std::vector<Planted> all_planted();

namespace scenes {
Schedule attention();        // the tutorial's block
Schedule zero_biases();      // the same with all biases zero
Schedule fused_attention();  // the same after the tutorial's schedule
Schedule mlp();              // test::ResidualMlp
Schedule cross_attention();  // test::CrossAttention
Schedule gpt();              // one block
Schedule vision();           // conv2d, batch_norm, relu
Schedule tied();             // token logits by the embedding's weight, a frozen weight on the way
Schedule masked();           // softmax of scores under a bool mask
Schedule kinks();            // relu(x), maximum(x, y), abs(y), as one output each
Schedule outputs();          // two outputs and an intermediate of both
}  // namespace scenes

}  // namespace tenon::fuzz
