#include "schedule/tree.h"

#include <algorithm>
#include <unordered_map>
#include <unordered_set>

#include "schedule/matcher.h"
#include "tensor/detail/check.h"

namespace tenon {
namespace {

struct TreeNode {
  std::string name;
  std::string type;
  std::string repr;
  std::vector<TreeNode> children;
};

std::string render(const TreeNode& node, int depth) {
  if (node.children.empty()) return fmt::format("{}({})", node.type, node.repr);
  const std::string indent(static_cast<std::size_t>(2 * (depth + 1)), ' ');
  std::string text = node.type + "(";
  if (!node.repr.empty()) text += "\n" + indent + node.repr;
  for (const TreeNode& child : node.children) {
    text += fmt::format("\n{}({}): {}", indent, child.name, render(child, depth + 1));
  }
  return text + "\n" + std::string(static_cast<std::size_t>(2 * depth), ' ') + ")";
}

class TreeBuilder {
 public:
  TreeBuilder(const Graph& original, const Graph& graph) : graph_(graph) {
    collect_live(original, was_live_);
    collect_live(graph, live_);
    for (const ModuleCall& call : original.calls()) known_.insert(call.path);
  }

  TreeNode build(nn::Module& module, const std::string& path, const std::string& name) {
    TreeNode node{name, module.type_name(), module.extra_repr(), {}};
    if (const ModuleCall* call = call_of(path)) node.type = call->type;
    for (const auto& [child_name, child] : module.named_children()) {
      const std::string child_path = path.empty() ? child_name : path + "." + child_name;
      const bool replaced = was_live_.contains(child_path) && !live_.contains(child_path);
      if (!replaced) node.children.push_back(build(*child, child_path, child_name));
    }
    add_new_children(path, node);
    return node;
  }

  /// What stands at `path`, the root's path being "".
  TreeNode build_at(nn::Module& root, const std::string& path) {
    if (!path.empty() && !known_.contains(path)) {
      if (const ModuleCall* call = call_of(path)) return build_new(*call);
    }
    return build(root.submodule(path), path, "");
  }

 private:
  static void collect_live(const Graph& graph, std::unordered_set<std::string>& live) {
    for (NodeId id : graph.order()) {
      for (CallId c = graph.node(id).call; c != kNone; c = graph.call(c).parent) {
        live.insert(graph.call(c).path);
      }
    }
  }

  const ModuleCall* call_of(const std::string& path) const {
    for (const ModuleCall& call : graph_.calls()) {
      if (call.path == path) return &call;
    }
    return nullptr;
  }

  TreeNode build_new(const ModuleCall& call) {
    TreeNode node{call.name(), call.type, call.repr, {}};
    add_new_children(call.path, node);
    return node;
  }

  void add_new_children(const std::string& path, TreeNode& node) {
    for (const ModuleCall& call : graph_.calls()) {
      if (call.parent == kNone || graph_.call(call.parent).path != path) continue;
      if (known_.contains(call.path) || !live_.contains(call.path)) continue;
      const bool shown = std::any_of(node.children.begin(), node.children.end(),
                                     [&](const TreeNode& c) { return c.name == call.name(); });
      if (!shown) node.children.push_back(build_new(call));
    }
  }

  const Graph& graph_;
  std::unordered_set<std::string> was_live_;
  std::unordered_set<std::string> live_;
  std::unordered_set<std::string> known_;
};

}  // namespace

std::string scheduled_tree(const nn::Module& root, const Graph& original, const Graph& graph,
                           const std::string& path) {
  TreeBuilder builder(original, graph);
  return render(builder.build_at(const_cast<nn::Module&>(root), path), 0);
}

}  // namespace tenon
