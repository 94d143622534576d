#include "graph/passes/fuse_gelu_gradient.h"

#include <algorithm>

namespace tenon {
namespace {

class GeluGradientFuser {
 public:
  explicit GeluGradientFuser(Graph& graph)
      : graph_(graph),
        matmul_(get_op("matmul")),
        slope_(get_op("gelu_backward")),
        activation_(get_op("linear_gelu_aux")),
        fused_(get_op("matmul_gelu_backward")) {}

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
    if (slope.op != &slope_ || !slope.kernel.empty()) return false;
    const Node* product = producer_of(slope.inputs[0]);
    const Node* activation = producer_of(slope.inputs[1]);
    if (product == nullptr || activation == nullptr) return false;
    const Value& gradient = graph_.value(slope.inputs[0]);
    return product->op == &matmul_ && product->gradient && product->kernel.empty() &&
           product->recomputed == slope.recomputed && activation->op == &activation_ &&
           activation->outputs[1] == slope.inputs[1] && gradient.uses.size() == 1 &&
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
        graph_.add_node(fused_, {product.inputs[0], product.inputs[1], slope.inputs[1]},
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
  const Op& slope_;
  const Op& activation_;
  const Op& fused_;
};

}  // namespace

int fuse_gelu_gradients(Graph& graph) { return GeluGradientFuser(graph).run(); }

}  // namespace tenon
