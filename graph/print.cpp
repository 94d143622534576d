// A Graph as text and as Graphviz DOT.
#include <algorithm>
#include <map>
#include <ostream>

#include "graph/graph.h"
#include "tensor/detail/check.h"

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
  if (node.region != kNone) notes += fmt::format(" in region {}", node.region);
  if (node.recomputed) notes += ", second run";
  return fmt::format("{} = {}({}) : {}{}", outputs, node.op->name, arguments, specs, notes);
}

std::string escape(const std::string& text) {
  std::string result;
  for (char c : text) {
    if (c == '"' || c == '\\') result += '\\';
    result += c;
  }
  return result;
}

/// Nested clusters: a call's own nodes, then its child calls.
class DotWriter {
 public:
  DotWriter(const Graph& graph, std::span<const NodeId> marked) : graph_(graph), marked_(marked) {
    for (NodeId id : graph.order()) by_call_[graph.visible_call(id)].push_back(id);
  }

  std::string write() {
    out_ =
        "digraph tenon {\n  rankdir=TB; fontname=\"Helvetica\"; compound=true;\n"
        "  node [shape=box, style=\"rounded,filled\", fillcolor=\"#eef3fb\", "
        "fontname=\"Helvetica\", fontsize=11];\n  edge [color=\"#5b6b82\"];\n";
    for (ValueId id : graph_.inputs()) {
      out_ += fmt::format("  v{} [shape=ellipse, fillcolor=\"#e4f4e4\", label=\"{}\\n{}\"];\n", id,
                          escape(graph_.value(id).name), graph_.value(id).spec.to_string());
    }
    if (!graph_.calls().empty()) write_call(graph_.call(0), 1);
    for (NodeId id : graph_.order()) write_edges(graph_.node(id));
    for (std::size_t i = 0; i < graph_.outputs().size(); ++i) {
      out_ += fmt::format("  out{} [shape=ellipse, fillcolor=\"#f9e7d2\", label=\"output {}\"];\n",
                          i, i);
      out_ += fmt::format("  {} -> out{};\n", source(graph_.outputs()[i]), i);
    }
    for (const StateWrite& write : graph_.writes()) {
      out_ += fmt::format("  w{} [shape=ellipse, fillcolor=\"#f3e4f4\", label=\"{}\"];\n",
                          write.state, escape(graph_.value(write.state).name));
      out_ += fmt::format("  {} -> w{};\n", source(write.value), write.state);
    }
    return out_ + "}\n";
  }

 private:
  bool has_nodes(const ModuleCall& call) const {
    return std::any_of(by_call_.begin(), by_call_.end(),
                       [&](const auto& entry) { return graph_.is_within(entry.first, call.id); });
  }

  void write_call(const ModuleCall& call, int depth) {
    const std::string indent(static_cast<std::size_t>(2 * depth), ' ');
    const bool cluster = call.id != 0;
    if (cluster) {
      out_ += fmt::format(
          "{}subgraph cluster_{} {{\n{}  label=\"{}: {}\"; color=\"#9aa9be\"; style=rounded;\n",
          indent, call.id, indent, escape(call.path), escape(call.type));
    }
    if (const auto own = by_call_.find(call.id); own != by_call_.end()) {
      for (NodeId id : own->second) write_node(graph_.node(id), indent);
    }
    for (const ModuleCall& child : graph_.calls()) {
      if (child.parent == call.id && has_nodes(child)) write_call(child, depth + 1);
    }
    if (cluster) out_ += indent + "}\n";
  }

  void write_node(const Node& node, const std::string& indent) {
    const bool mark = std::find(marked_.begin(), marked_.end(), node.id) != marked_.end();
    const std::string title =
        node.name == node.op->name ? node.name : node.name + ": " + node.op->name;
    out_ += fmt::format("{}  n{} [label=\"{}\\n{}\"{}];\n", indent, node.id, escape(title),
                        escape(graph_.value(node.outputs.at(0)).spec.to_string()),
                        mark ? ", fillcolor=\"#ffd9a0\"" : "");
  }

  void write_edges(const Node& node) {
    for (ValueId id : node.inputs) {
      if (id == kNone) continue;
      const ValueKind kind = graph_.value(id).kind;
      if (kind != ValueKind::input && kind != ValueKind::result) continue;  // state is left out
      out_ += fmt::format("  {} -> n{};\n", source(id), node.id);
    }
  }

  std::string source(ValueId id) const {
    const Value& value = graph_.value(id);
    return value.kind == ValueKind::result ? fmt::format("n{}", value.producer)
                                           : fmt::format("v{}", id);
  }

  const Graph& graph_;
  std::span<const NodeId> marked_;
  std::map<CallId, std::vector<NodeId>> by_call_;
  std::string out_;
};

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

std::string to_dot(const Graph& graph, std::span<const NodeId> marked) {
  return DotWriter(graph, marked).write();
}

}  // namespace tenon
