#include "graph/passes/fuse_gelu_gradient.h"

#include <algorithm>

namespace tenon {
namespace {

/// The ops of an activation that a product ends in, and which result of it the slope reads.
struct ActivationOps {
  const Op& slope;
  const Op& activated;
  const Op& fused;
  std::size_t kept;
};

class ActivationGradientFuser {
 public:
  ActivationGradientFuser(Graph& graph, const ActivationOps& ops)
      : graph_(graph), matmul_(get_op("matmul")), ops_(ops) {}

  int run() {
    int count = 0;
    for (NodeId id : std::vector<NodeId>(graph_.order())) {
      if (!graph_.has_node(id) || !fits(graph_.node(id))) continue;
      replace(id);
      ++count;
    }
    return count;
  }

 private:
  const Node* producer_of(ValueId id) const {
    const NodeId producer = id == kNone ? kNone : graph_.value(id).producer;
    return producer == kNone ? nullptr : &graph_.node(producer);
  }

  bool fits(const Node& slope) const {
    if (slope.op != &ops_.slope || !slope.kernel.empty()) return false;
    const Node* product = producer_of(slope.inputs[0]);
    const Node* activation = producer_of(slope.inputs[1]);
    if (product == nullptr || activation == nullptr) return false;
    const Value& gradient = graph_.value(slope.inputs[0]);
    return product->op == &matmul_ && product->gradient && product->kernel.empty() &&
           product->recomputed == slope.recomputed && activation->op == &ops_.activated &&
           activation->outputs[ops_.kept] == slope.inputs[1] && gradient.uses.size() == 1 &&
           !leaves_the_graph(slope.inputs[0]) &&
           gradient.spec.shape.same_as(graph_.value(slope.inputs[1]).spec.shape);
  }

  /// Returned or written by a run.
  bool leaves_the_graph(ValueId id) const {
    const auto& outputs = graph_.outputs();
    const auto& writes = graph_.writes();
    return std::find(outputs.begin(), outputs.end(), id) != outputs.end() ||
           std::any_of(writes.begin(), writes.end(),
                       [&](const StateWrite& write) { return write.value == id; });
  }

  void replace(NodeId id) {
    const Node slope = graph_.node(id);
    const Node product = *producer_of(slope.inputs[0]);
    const NodeId made =
        graph_.add_node(ops_.fused, {product.inputs[0], product.inputs[1], slope.inputs[1]},
                        slope.attrs, slope.call, graph_.position(id));
    if (slope.gradient) graph_.mark_gradient(made);
    if (slope.recomputed) graph_.mark_recomputed(made);
    graph_.replace_all_uses(slope.outputs[0], graph_.node(made).outputs[0]);
    graph_.erase_node(id);
    graph_.erase_node(product.id);
    graph_.rename(made, slope.name);
  }

  Graph& graph_;
  const Op& matmul_;
  const ActivationOps& ops_;
};

}  // namespace

int fuse_gelu_gradients(Graph& graph) {
  const ActivationOps activations[] = {
      {get_op("gelu_backward"), get_op("linear_gelu_aux"), get_op("matmul_gelu_backward"), 1},
      {get_op("silu_backward"), get_op("linear_silu_aux"), get_op("matmul_silu_backward"), 1},
      {get_op("relu_backward"), get_op("linear_relu"), get_op("matmul_relu_backward"), 0}};
  int count = 0;
  for (const ActivationOps& ops : activations) count += ActivationGradientFuser(graph, ops).run();
  return count;
}

int fuse_gelus_again(Graph& graph) {
  const Op& fused = get_op("matmul_gelu_backward_again");
  const auto has_op = [&](NodeId id, const char* name) {
    return graph.has_node(id) && graph.node(id).op->name == name && graph.node(id).kernel.empty();
  };
  int count = 0;
  for (NodeId id : std::vector<NodeId>(graph.order())) {
    if (!has_op(id, "gelu") || !graph.node(id).recomputed) continue;
    const Node again = graph.node(id);
    for (const Use& use : std::vector<Use>(graph.value(again.inputs[0]).uses)) {
      if (!has_op(use.node, "matmul_gelu_backward") || use.operand != 2) continue;
      const Node slope = graph.node(use.node);
      const bool comes_first =
          std::all_of(slope.inputs.begin(), slope.inputs.end(), [&](ValueId input) {
            const NodeId producer = graph.value(input).producer;
            return producer == kNone || graph.position(producer) < graph.position(id);
          });
      if (!comes_first || slope.attrs != again.attrs) continue;
      const NodeId made =
          graph.add_node(fused, slope.inputs, slope.attrs, slope.call, graph.position(id));
      graph.mark_gradient(made);
      graph.replace_all_uses(slope.outputs[0], graph.node(made).outputs[0]);
      graph.replace_all_uses(again.outputs[0], graph.node(made).outputs[1]);
      graph.erase_node(slope.id);
      graph.erase_node(id);
      graph.rename(made, slope.name);
      ++count;
      break;
    }
  }
  return count;
}

}  // namespace tenon
