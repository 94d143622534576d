// A Graph as text.
#include <ostream>

#include "graph/graph.h"
#include "tensor/support/check.h"

namespace tenon {
namespace {

std::string node_line(const Graph& graph, const Node& node) {
  std::string outputs;
  std::string specs;
  for (ValueId id : node.outputs) {
    outputs += (outputs.empty() ? "" : ", ") + graph.value_name(id);
    specs += (specs.empty() ? "" : ", ") + graph.value(id).spec.to_string();
  }
  std::string arguments;
  for (ValueId id : node.inputs) {
    arguments += (arguments.empty() ? "" : ", ") + (id == kNone ? "none" : graph.value_name(id));
  }
  const std::string attrs = node.attrs.to_string();
  if (!attrs.empty()) arguments += (arguments.empty() ? "" : ", ") + attrs;
  std::string notes;
  if (!node.kernel.empty()) notes += " by " + node.kernel;
  if (node.region != kNone) {
    notes += fmt::format(" in region {}{}", node.region,
                         graph.discards_results(node.region) ? ", results discarded" : "");
  }
  if (node.recomputed) notes += ", second run";
  return fmt::format("{} = {}({}) : {}{}", outputs, node.op->name, arguments, specs, notes);
}

}  // namespace

std::string to_text(const Graph& graph) {
  std::string text = "graph(";
  for (ValueId id : graph.inputs()) {
    if (id != graph.inputs().front()) text += ", ";
    text += fmt::format("%{}: {}", graph.value(id).name, graph.value(id).spec.to_string());
  }
  text += ")\n";
  constexpr const char* kKinds[] = {"input", "parameter", "buffer", "constant"};
  for (ValueId id : graph.values()) {
    const Value& value = graph.value(id);
    if (value.kind == ValueKind::input || value.kind == ValueKind::result) continue;
    text += fmt::format("  {} %{}: {}\n", kKinds[static_cast<int>(value.kind)], value.name,
                        value.spec.to_string());
  }
  for (NodeId id : graph.order()) text += "  " + node_line(graph, graph.node(id)) + "\n";
  for (const StateWrite& write : graph.writes()) {
    text += fmt::format("  write {} <- {}\n", graph.value_name(write.state),
                        graph.value_name(write.value));
  }
  for (const auto& [name, notes] : graph.annotations()) {
    for (const auto& [key, value] : notes) {
      text += fmt::format("  note on '{}': {} = {}\n", name, key, value);
    }
  }
  for (const DimGuard& guard : graph.guards()->guards) {
    text += "  guard " + guard.to_string() + "\n";
  }
  text += "  return ";
  for (std::size_t i = 0; i < graph.outputs().size(); ++i) {
    text += (i > 0 ? ", " : "") + graph.value_name(graph.outputs()[i]);
  }
  return text + "\n";
}

std::ostream& operator<<(std::ostream& stream, const Graph& graph) {
  return stream << to_text(graph);
}

}  // namespace tenon
