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
  for (std::size_t i = 0; i < node.children.size();) {
    const std::string child = render(node.children[i], depth + 1);
    std::size_t end = i + 1;
    // As nn::ModuleList prints itself.
    while (node.type == "ModuleList" && end < node.children.size() &&
           render(node.children[end], depth + 1) == child) {
      ++end;
    }
    const std::string& name = node.children[i].name;
    text += end - i == 1 ? fmt::format("\n{}({}): {}", indent, name, child)
                         : fmt::format("\n{}({}-{}): {} x {}", indent, name,
                                       node.children[end - 1].name, end - i, child);
    i = end;
  }
  return text + "\n" + std::string(static_cast<std::size_t>(2 * depth), ' ') + ")";
}

class TreeBuilder {
 public:
  TreeBuilder(const Graph& original, const Graph& graph)
      : graph_(graph),
        traced_calls_(original.calls().size()),
        live_calls_(calls_with_nodes(graph)),
        live_(paths_of(graph, live_calls_)),
        was_live_(paths_of(original, calls_with_nodes(original))) {
    for (const ModuleCall& call : original.calls()) traced_.insert(call.path);
  }

  TreeNode build(nn::Module& module, const std::string& path, const std::string& name) {
    const ModuleCall* call = call_of(path);
    if (call != nullptr && is_new(*call)) return build_new(*call);
    TreeNode node{name, module.type_name(), module.extra_repr(), {}};
    if (call != nullptr) node.type = call->type;
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
    const ModuleCall* call = call_of(path);
    return call != nullptr && is_new(*call) ? build_new(*call)
                                            : build(root.submodule(path), path, "");
  }

 private:
  /// The calls that have nodes, those that enclose such calls included.
  static std::unordered_set<CallId> calls_with_nodes(const Graph& graph) {
    std::unordered_set<CallId> calls;
    for (NodeId id : graph.order()) {
      for (CallId c = graph.node(id).call; c != kNone && calls.insert(c).second;) {
        c = graph.call(c).parent;
      }
    }
    return calls;
  }

  static std::unordered_set<std::string> paths_of(const Graph& graph,
                                                  const std::unordered_set<CallId>& calls) {
    std::unordered_set<std::string> paths;
    for (CallId call : calls) paths.insert(graph.call(call).path);
    return paths;
  }

  /// Made by a primitive, not by the trace.
  bool is_new(const ModuleCall& call) const {
    return static_cast<std::size_t>(call.id) >= traced_calls_;
  }

  /// The call that stands at `path`: one that has nodes before one that was replaced, a new one before
  /// the root's, which encloses what replaced it.
  const ModuleCall* call_of(const std::string& path) const {
    const auto rank = [&](const ModuleCall& call) {
      return (live_calls_.contains(call.id) ? 2 : 0) + (is_new(call) ? 1 : 0);
    };
    const ModuleCall* found = nullptr;
    for (const ModuleCall& call : graph_.calls()) {
      if (call.path != path) continue;
      if (found == nullptr || rank(call) > rank(*found)) found = &call;
    }
    return found;
  }

  TreeNode build_new(const ModuleCall& call) {
    TreeNode node{call.name(), call.type, call.repr, {}};
    add_new_children(call.path, node);
    return node;
  }

  void add_new_children(const std::string& path, TreeNode& node) {
    for (const ModuleCall& call : graph_.calls()) {
      if (call.parent == kNone || graph_.call(call.parent).path != path) continue;
      if (!is_new(call) || !live_calls_.contains(call.id)) continue;
      // One in the place of a module is shown there.
      if (traced_.contains(call.path) && !is_new(graph_.call(call.parent))) continue;
      const bool shown = std::any_of(node.children.begin(), node.children.end(),
                                     [&](const TreeNode& c) { return c.name == call.name(); });
      if (!shown) node.children.push_back(build_new(call));
    }
  }

  const Graph& graph_;
  const std::size_t traced_calls_;
  const std::unordered_set<CallId> live_calls_;
  const std::unordered_set<std::string> live_;
  const std::unordered_set<std::string> was_live_;
  std::unordered_set<std::string> traced_;
};

}  // namespace

std::string scheduled_tree(const nn::Module& root, const Graph& original, const Graph& graph,
                           const std::string& path) {
  TreeBuilder builder(original, graph);
  return render(builder.build_at(const_cast<nn::Module&>(root), path), 0);
}

}  // namespace tenon
