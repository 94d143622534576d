#include "graph/passes/accumulate.h"

#include <algorithm>

namespace tenon {
namespace {

class Accumulator {
 public:
  explicit Accumulator(Graph& graph) : graph_(graph), add_(get_op("add")) {}

  int run() {
    int taken = 0;
    for (NodeId id : std::vector<NodeId>(graph_.order())) {
      const Node& sum = graph_.node(id);
      const bool is_sum = sum.op == &add_ && sum.gradient && sum.inputs[1] != kNone;
      if (is_sum && take(sum)) ++taken;
    }
    return taken;
  }

 private:
  /// The place in program order from which a value can be read.
  std::size_t defined_at(ValueId id) const {
    const NodeId producer = graph_.value(id).producer;
    return producer == kNone ? 0 : graph_.position(producer) + 1;
  }

  bool take(const Node& sum) {
    // The later term takes in the earlier one: then that is there when the op runs.
    const bool second_is_later = defined_at(sum.inputs[1]) > defined_at(sum.inputs[0]);
    const std::size_t later = second_is_later ? 1 : 0;
    return take(sum, sum.inputs[later], sum.inputs[1 - later]) ||
           take(sum, sum.inputs[1 - later], sum.inputs[later]);
  }

  bool take(const Node& sum, ValueId term, ValueId addend) {
    const NodeId producer = graph_.value(term).producer;
    if (producer == kNone || term == addend) return false;
    const Node maker = graph_.node(producer);
    const Value& total = graph_.value(sum.outputs[0]);
    const bool fits = maker.gradient && !maker.op->accumulates_as.empty() && maker.kernel.empty() &&
                      maker.outputs[0] == term && graph_.value(term).uses.size() == 1 &&
                      has_spec_of(term, total) && has_spec_of(addend, total) &&
                      !graph_.is_output(term);
    if (!fits) return false;
    std::size_t place = graph_.position(producer);
    if (defined_at(addend) > place) {
      place = graph_.position(sum.id);
      if (!only_used_from(maker, place)) return false;
    }
    replace(sum.id, maker, addend, place);
    return true;
  }

  bool has_spec_of(ValueId id, const Value& other) const {
    const TensorSpec& spec = graph_.value(id).spec;
    return spec.dtype == other.spec.dtype && spec.shape.same_as(other.spec.shape);
  }

  bool only_used_from(const Node& maker, std::size_t place) const {
    return std::all_of(maker.outputs.begin(), maker.outputs.end(), [&](ValueId output) {
      const auto& uses = graph_.value(output).uses;
      return std::all_of(uses.begin(), uses.end(),
                         [&](const Use& use) { return graph_.position(use.node) >= place; });
    });
  }

  void replace(NodeId sum, const Node& maker, ValueId addend, std::size_t place) {
    const Op& op = get_op(maker.op->accumulates_as);
    std::vector<ValueId> inputs = maker.inputs;
    inputs.resize(op.operands.size() - 1, kNone);
    inputs.push_back(addend);
    graph_.replace_all_uses(graph_.node(sum).outputs[0], maker.outputs[0]);
    graph_.erase_node(sum);
    graph_.replace_node(maker.id, op, std::move(inputs), maker.attrs, place);
  }

  Graph& graph_;
  const Op& add_;
};

}  // namespace

int accumulate_gradients(Graph& graph) { return Accumulator(graph).run(); }

}  // namespace tenon
