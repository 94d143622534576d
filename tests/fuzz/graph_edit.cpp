#include "tests/fuzz/graph_edit.h"

#include <fmt/format.h>

#include "schedule/rewriting/state.h"
#include "tensor/error.h"
#include "tensor/interpreter.h"

namespace tenon::fuzz {

NodeId GraphEdit::nth(const std::string& op, std::size_t n) const {
  for (const NodeId id : graph_.order()) {
    if (graph_.node(id).op->name == op && n-- == 0) return id;
  }
  throw GraphError(fmt::format("no node of op '{}' is left to edit", op));
}

void GraphEdit::replace(NodeId id, const std::function<Tensor(const Operands&)>& make) {
  const Node node = graph_.node(id);
  GraphBuilder builder(graph_, graph_.position(id), node.call);
  Operands operands;
  for (const ValueId operand : node.inputs) {
    operands.push_back(operand == kNone ? Tensor() : builder.tensor(operand));
  }
  builder_ = &builder;
  ValueId made = kNone;
  {
    const InterpreterGuard guard(builder);
    made = builder.value_of(make(operands), node.op->name);
  }
  builder_ = nullptr;
  graph_.replace_all_uses(node.outputs[0], made);
  if (node.outputs.size() == 1) graph_.erase_node(id);
  graph_.rename_apart(builder.added());
}

void GraphEdit::wrap(NodeId id, const std::function<Tensor(const Tensor&)>& f) {
  const Node node = graph_.node(id);
  replace(id, [&](const Operands& x) { return f(tenon::apply(*node.op, x, node.attrs)[0]); });
}

void GraphEdit::feed(NodeId id, std::size_t i, const std::function<Tensor(const Tensor&)>& f) {
  const Node node = graph_.node(id);
  replace(id, [&](Operands x) {
    x[i] = f(x[i]);
    return tenon::apply(*node.op, x, node.attrs)[0];
  });
}

void GraphEdit::set(NodeId id, const std::string& attribute, const AttrValue& value) {
  graph_.set_attribute(id, graph_.node(id).attrs.find(attribute), value);
}

Tensor GraphEdit::result(NodeId id, std::size_t output) const {
  return builder_->tensor(graph_.node(id).outputs.at(output));
}

Tensor GraphEdit::input(std::size_t i) const { return builder_->tensor(graph_.inputs().at(i)); }

Tensor GraphEdit::state(const std::string& name) const {
  for (const ValueId id : graph_.values()) {
    const Value& value = graph_.value(id);
    if (value.tensor && value.name == name) return value.tensor;
  }
  throw GraphError(fmt::format("no state is called '{}'", name));
}

Schedule with_graph(const Schedule& schedule, Graph graph) {
  auto state =
      std::make_shared<detail::ScheduleState>(schedule.shared_model(), schedule.original());
  state->graph = std::move(graph);
  return Schedule(std::move(state));
}

}  // namespace tenon::fuzz
