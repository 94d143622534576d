#include "schedule/facts/recorded_values.h"

#include "graph/evaluate_attrs.h"
#include "tensor/interpreter.h"

namespace tenon::detail {

std::unordered_map<ValueId, Tensor> record_values(const Graph& graph, const DimBindings& sizes,
                                                  const std::vector<Tensor>& inputs,
                                                  const std::set<ValueId>& wanted, bool training) {
  std::unordered_map<ValueId, Tensor> found;
  std::unordered_map<ValueId, Tensor> tensors;
  std::unordered_map<ValueId, std::size_t> left;  // reads to come
  for (const NodeId id : graph.order()) {
    for (const ValueId operand : graph.node(id).inputs) ++left[operand];
  }
  const auto keep = [&](ValueId id, const Tensor& tensor) {
    if (wanted.contains(id)) found.emplace(id, tensor);
    if (left.contains(id)) tensors.emplace(id, tensor);
  };
  for (std::size_t i = 0; i < inputs.size(); ++i) keep(graph.inputs()[i], inputs[i]);
  CallSite site;
  site.in_module = true;
  site.frame.training = training;
  const CallSiteScope scope(site);
  const NoGradGuard no_grad;
  for (const NodeId id : graph.order()) {
    if (found.size() == wanted.size()) break;
    const Node& node = graph.node(id);
    std::vector<Tensor> operands;
    for (const ValueId operand : node.inputs) {
      if (operand == kNone) {
        operands.emplace_back();
      } else {
        const Tensor& state = graph.value(operand).tensor;
        operands.push_back(state ? state : tensors.at(operand));
      }
    }
    const std::vector<Tensor> outputs =
        apply_eager(*node.op, operands, evaluated(node.attrs, sizes));
    for (std::size_t k = 0; k < node.outputs.size(); ++k) keep(node.outputs[k], outputs[k]);
    for (const ValueId operand : node.inputs) {
      if (operand != kNone && --left[operand] == 0) tensors.erase(operand);
    }
  }
  return found;
}

}  // namespace tenon::detail
