#include "graph/dot.h"

#include <algorithm>
#include <unordered_map>

#include "tensor/support/check.h"

namespace tenon {
namespace {

/// How a kind of node is drawn, and what the legend says of it.
struct Mark {
  const char* name;
  const char* meaning;
  const char* style;
};
constexpr Mark kRemoved = {"removed", "removed by the schedule",
                           "fillcolor=\"#f6c6c0\", color=\"#b3402f\""};
constexpr Mark kAdded = {"added", "new", "fillcolor=\"#ffd9a0\", color=\"#b36b00\""};
constexpr Mark kChanged = {"changed", "changed: operands, attributes, kernel or recomputation",
                           "fillcolor=\"#fff6b8\", color=\"#8f8400\""};

constexpr const char* kInputColor = "#e4f4e4";
constexpr const char* kOutputColor = "#f9e7d2";
constexpr const char* kWrittenColor = "#f3e4f4";

std::string escape(const std::string& text) {
  std::string result;
  for (char c : text) {
    if (c == '\n') {
      result += "\\n";
      continue;
    }
    if (c == '"' || c == '\\') result += '\\';
    result += c;
  }
  return result;
}

/// Nested clusters: a call's own nodes, then its child calls.
class DotWriter {
 public:
  DotWriter(const Graph& graph, const GraphDiff& changes)
      : graph_(graph), own_nodes_(graph.calls().size()), children_(graph.calls().size()) {
    mark(changes.removed, kRemoved);
    mark(changes.added, kAdded);
    mark(changes.changed, kChanged);
    std::vector<bool> shown(graph.calls().size(), false);
    for (NodeId id : graph.order()) {
      const CallId call = graph.visible_call(id);
      own_nodes_.at(static_cast<std::size_t>(call)).push_back(id);
      for (CallId c = call; c != kNone && !shown[static_cast<std::size_t>(c)];
           c = graph.call(c).parent) {
        shown[static_cast<std::size_t>(c)] = true;
      }
    }
    for (const ModuleCall& call : graph.calls()) {
      if (call.parent == kNone || !shown[static_cast<std::size_t>(call.id)]) continue;
      children_[static_cast<std::size_t>(call.parent)].push_back(call.id);
    }
  }

  std::string write() {
    out_ =
        "digraph tenon {\n"
        "  rankdir=TB; fontname=\"Helvetica\"; compound=true;\n"
        "  node [shape=box, style=\"rounded,filled\", fillcolor=\"#eef3fb\", color=\"#5b6b82\", "
        "fontname=\"Helvetica\", fontsize=11];\n"
        "  edge [color=\"#5b6b82\"];\n";
    write_legend();
    for (ValueId id : graph_.inputs()) {
      write_ellipse(fmt::format("v{}", id), kInputColor,
                    escape(graph_.value(id).name) + "\\n" + graph_.value(id).spec.to_string());
    }
    if (!graph_.calls().empty()) write_call(graph_.call(0), 1);
    for (NodeId id : graph_.order()) write_edges(graph_.node(id));
    for (std::size_t i = 0; i < graph_.outputs().size(); ++i) {
      write_sink(fmt::format("out{}", i), kOutputColor, fmt::format("output {}", i),
                 graph_.outputs()[i]);
    }
    for (const StateWrite& write : graph_.writes()) {
      write_sink(fmt::format("w{}", write.state), kWrittenColor,
                 escape(graph_.value(write.state).name), write.value);
    }
    return out_ + "}\n";
  }

 private:
  void mark(const std::vector<NodeId>& nodes, const Mark& mark) {
    for (NodeId id : nodes) {
      if (graph_.has_node(id)) marks_.emplace(id, &mark);
    }
  }

  void write_legend() {
    std::string entries;
    for (const Mark* mark : {&kRemoved, &kAdded, &kChanged}) {
      const bool occurs = std::any_of(marks_.begin(), marks_.end(),
                                      [&](const auto& entry) { return entry.second == mark; });
      if (!occurs) continue;
      entries += fmt::format("    legend_{} [label=\"{}\", {}];\n", mark->name, mark->meaning,
                             mark->style);
    }
    if (entries.empty()) return;
    out_ += "  subgraph cluster_legend {\n    label=\"legend\"; color=\"#c8c8c8\";\n" + entries +
            "  }\n";
  }

  void write_ellipse(const std::string& id, const char* color, const std::string& label) {
    out_ +=
        fmt::format("  {} [shape=ellipse, fillcolor=\"{}\", label=\"{}\"];\n", id, color, label);
  }

  void write_sink(const std::string& id, const char* color, const std::string& label,
                  ValueId value) {
    write_ellipse(id, color, label);
    if (is_drawn(value)) out_ += fmt::format("  {} -> {};\n", source(value), id);
  }

  void write_call(const ModuleCall& call, int depth) {
    const std::string indent(static_cast<std::size_t>(2 * depth), ' ');
    const bool cluster = call.id != 0;
    if (cluster) {
      out_ += fmt::format(
          "{}subgraph cluster_{} {{\n{}  label=\"{}: {}\"; color=\"#9aa9be\"; style=rounded;\n",
          indent, call.id, indent, escape(call.path), escape(call.type));
    }
    const auto index = static_cast<std::size_t>(call.id);
    for (NodeId id : own_nodes_[index]) {
      write_node(graph_.node(id), cluster ? indent + "  " : indent);
    }
    for (CallId child : children_[index]) write_call(graph_.call(child), depth + 1);
    if (cluster) out_ += indent + "}\n";
  }

  void write_node(const Node& node, const std::string& indent) {
    std::string label =
        escape(node.name == node.op->name ? node.name : node.name + ": " + node.op->name);
    if (!node.outputs.empty()) {
      label += "\\n" + escape(graph_.value(node.outputs[0]).spec.to_string());
    }
    if (!node.kernel.empty()) label += "\\nby " + escape(node.kernel);
    if (node.region != kNone) label += "\\nrecomputed in backward";
    const auto mark = marks_.find(node.id);
    out_ += fmt::format("{}n{} [label=\"{}\"{}];\n", indent, node.id, label,
                        mark == marks_.end() ? "" : fmt::format(", {}", mark->second->style));
  }

  void write_edges(const Node& node) {
    for (ValueId id : node.inputs) {
      if (is_drawn(id)) out_ += fmt::format("  {} -> n{};\n", source(id), node.id);
    }
  }

  /// State is left out: a model has more parameters than nodes.
  bool is_drawn(ValueId id) const {
    if (id == kNone) return false;
    const ValueKind kind = graph_.value(id).kind;
    return kind == ValueKind::input || kind == ValueKind::result;
  }

  std::string source(ValueId id) const {
    const Value& value = graph_.value(id);
    return value.kind == ValueKind::result ? fmt::format("n{}", value.producer)
                                           : fmt::format("v{}", id);
  }

  const Graph& graph_;
  std::unordered_map<NodeId, const Mark*> marks_;
  std::vector<std::vector<NodeId>> own_nodes_;  // by call, as nodes are seen
  std::vector<std::vector<CallId>> children_;   // by call, those that show a node
  std::string out_;
};

}  // namespace

std::string to_dot(const Graph& graph, const GraphDiff& changes) {
  return DotWriter(graph, changes).write();
}

}  // namespace tenon
