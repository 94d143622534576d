// Invariants of a Graph:
//   V1  a node's op is registered and has a fitting number of operands
//   V2  every operand is defined before its use: state and inputs, or an earlier node
//   V3  every result is defined by exactly one node, at the output index it says
//   V4  uses and operands agree: each operand is listed once as a use, and no other use is listed
//   V5  every id refers to something of this Graph that exists
//   V6  node names are unique among the nodes seen together; input and state names are unique
//   V7  the order holds every node once
//   V8  every graph output exists, and there is at least one
//   V9  every node belongs to a module call, and calls form a tree rooted at call 0
//   V10 no state is without a use
//   V11 inferring a node again gives the specs it has
//   V12 sizes are not negative and ranks are within the limit
//   V13 nodes that draw masks have distinct call sites, gradients aside
//   V14 only state is written, each once, with a value of its dtype and shape
#include "graph/verify.h"

#include <algorithm>
#include <set>
#include <unordered_set>

#include "tensor/detail/check.h"

namespace tenon {
namespace {

class Verifier {
 public:
  explicit Verifier(const Graph& graph) : graph_(graph) {}

  void run() {
    check_calls();
    for (ValueId id : graph_.values()) values_.insert(id);
    check_sources();
    for (NodeId id : graph_.order()) check_node(id);
    check_uses();
    check_outputs();
  }

 private:
  template <class... A>
  [[noreturn]] void broken(int invariant, fmt::format_string<A...> format, A&&... args) const {
    throw GraphError(fmt::format("invariant V{} is broken: {}", invariant,
                                 fmt::format(format, std::forward<A>(args)...)));
  }

  void check_calls() {
    if (graph_.calls().empty()) broken(9, "there is no root call");
    for (const ModuleCall& call : graph_.calls()) {
      const bool root = call.id == 0;
      if (root != (call.parent == kNone)) broken(9, "call '{}' is not under the root", call.path);
      if (!root && call.parent >= call.id) broken(9, "call '{}' precedes its parent", call.path);
    }
  }

  void check_sources() {
    std::unordered_set<std::string> names;
    for (ValueId id : values_) {
      const Value& value = graph_.value(id);
      for (const Dim& dim : value.spec.shape) {
        if (dim.hint() < 0) broken(12, "{} has a negative size", graph_.value_name(id));
      }
      if (value.spec.shape.rank() > kMaxRank) {
        broken(12, "{} has rank {}", graph_.value_name(id), value.spec.shape.rank());
      }
      if (value.kind == ValueKind::result) continue;
      defined_.insert(id);
      if (!names.insert(value.name).second) broken(6, "two inputs are called %{}", value.name);
      if (value.kind == ValueKind::input) continue;
      if (!value.tensor.is_eager()) broken(5, "state %{} holds no tensor", value.name);
      if (value.uses.empty() && !is_output(id)) broken(10, "state %{} has no use", value.name);
    }
  }

  void check_node(NodeId id) {
    if (!graph_.has_node(id)) broken(5, "the order lists node {}, which does not exist", id);
    if (!seen_.insert(id).second) broken(7, "{} is twice in the order", graph_.full_name(id));
    const Node& node = graph_.node(id);
    if (node.call < 0 || static_cast<std::size_t>(node.call) >= graph_.calls().size()) {
      broken(9, "node {} belongs to no call", id);
    }
    const std::string name = graph_.full_name(id);
    if (!names_.insert({graph_.visible_call(id), node.name}).second) {
      broken(6, "two nodes are called {}", name);
    }
    if (node.op == nullptr || find_op(node.op->name) != node.op) broken(1, "{} has no op", name);
    const bool variadic = !node.op->operands.empty() && node.op->operands.back().variadic;
    if (variadic ? node.inputs.size() < node.op->operands.size()
                 : node.inputs.size() != node.op->operands.size()) {
      broken(1, "{} has {} operands", name, node.inputs.size());
    }
    for (std::size_t i = 0; i < node.inputs.size(); ++i) {
      const ValueId input = node.inputs[i];
      if (input == kNone) continue;
      if (!values_.contains(input)) broken(5, "operand {} of {} does not exist", i, name);
      if (!defined_.contains(input)) broken(2, "operand {} of {} is defined later", i, name);
      operands_.insert({input, id, static_cast<int>(i)});
    }
    check_specs(node, name);
    check_site(node, name);
    for (std::size_t i = 0; i < node.outputs.size(); ++i) {
      const Value& output = graph_.value(node.outputs[i]);
      if (output.kind != ValueKind::result || output.producer != id ||
          output.output_index != static_cast<int>(i) || !defined_.insert(output.id).second) {
        broken(3, "output {} of {} is not its own", i, name);
      }
    }
  }

  void check_specs(const Node& node, const std::string& name) {
    std::vector<const TensorSpec*> specs;
    for (ValueId id : node.inputs) specs.push_back(id == kNone ? nullptr : &graph_.value(id).spec);
    const std::size_t guards = graph_.guards()->guards.size();
    const std::vector<TensorSpec> inferred = infer(*node.op, specs, node.attrs);
    if (graph_.guards()->guards.size() != guards) broken(11, "{} needs a new guard", name);
    if (inferred.size() != node.outputs.size()) broken(11, "{} has too few outputs", name);
    for (std::size_t i = 0; i < inferred.size(); ++i) {
      const TensorSpec& stored = graph_.value(node.outputs[i]).spec;
      if (!(inferred[i] == stored)) {
        broken(11, "{} is {}, inferred {}", name, stored.to_string(), inferred[i].to_string());
      }
    }
  }

  void check_site(const Node& node, const std::string& name) {
    const std::size_t field = node.attrs.find("site");
    if (field == node.attrs.size() || !draws_mask(node)) return;
    if (node.gradient || node.recomputed) return;  // it replays its forward node's mask
    if (!sites_.insert(to_string(node.attrs.value(field))).second) {
      broken(13, "{} draws the mask of another node", name);
    }
  }

  void check_uses() {
    std::size_t listed = 0;
    for (ValueId id : values_) {
      const Value& value = graph_.value(id);
      if (!defined_.contains(id)) broken(3, "value {} is defined by no node", id);
      for (const Use& use : value.uses) {
        if (!operands_.contains({id, use.node, use.operand})) {
          broken(4, "{} lists a use that is not there", graph_.value_name(id));
        }
      }
      listed += value.uses.size();
    }
    if (listed != operands_.size()) broken(4, "an operand is not listed as a use");
  }

  void check_outputs() {
    if (graph_.outputs().empty()) broken(8, "the graph has no output");
    for (ValueId id : graph_.outputs()) {
      if (!values_.contains(id)) broken(8, "an output of the graph does not exist");
    }
    for (const StateWrite& write : graph_.writes()) check_write(write);
  }

  void check_write(const StateWrite& write) {
    if (!values_.contains(write.state) || !values_.contains(write.value)) {
      broken(14, "a state write names a value that does not exist");
    }
    const Value& state = graph_.value(write.state);
    const std::string name = graph_.value_name(write.state);
    if (!state.tensor) broken(14, "{} is written, but is no state", name);
    if (!written_.insert(write.state).second) broken(14, "{} is written twice", name);
    const TensorSpec& value = graph_.value(write.value).spec;
    if (!(state.spec == value)) {
      broken(14, "{} is {}, written with {}", name, state.spec.to_string(), value.to_string());
    }
  }

  bool is_output(ValueId id) const {
    const auto& writes = graph_.writes();
    return std::find(graph_.outputs().begin(), graph_.outputs().end(), id) !=
               graph_.outputs().end() ||
           std::any_of(writes.begin(), writes.end(),
                       [&](const StateWrite& w) { return w.state == id || w.value == id; });
  }

  const Graph& graph_;
  std::unordered_set<ValueId> values_;
  std::unordered_set<ValueId> defined_;
  std::unordered_set<NodeId> seen_;
  std::set<std::pair<CallId, std::string>> names_;
  std::set<std::tuple<ValueId, NodeId, int>> operands_;
  std::set<std::string> sites_;
  std::unordered_set<ValueId> written_;
};

}  // namespace

void verify(const Graph& graph) { Verifier(graph).run(); }

}  // namespace tenon
