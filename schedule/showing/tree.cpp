#include "schedule/tree.h"

#include <algorithm>
#include <charconv>

#include "schedule/showing/module_changes.h"
#include "tensor/support/check.h"

namespace tenon {
namespace {

using detail::ModuleChanges;

struct TreeNode {
  std::string name;  // "" for the module whose tree it is
  std::string type;
  std::string repr;
  char margin = ' ';
  std::vector<std::string> notes;
  std::vector<TreeNode> children;
};

/// Both trees, before and after, in one.
class TreeBuilder {
 public:
  explicit TreeBuilder(const Schedule& schedule) : schedule_(schedule), changes_(schedule) {}

  /// What stands and stood at `path`: one node, or that which is gone and that which replaced it.
  std::vector<TreeNode> build() {
    const std::string& path = schedule_.path();
    if (!changes_.is_module(path)) return {added(*changes_.live_call(path), "", false)};
    return at(schedule_.model().submodule(path), path, "", false);
  }

 private:
  std::vector<TreeNode> at(nn::Module& module, const std::string& path, const std::string& name,
                           bool recomputed) {
    const ModuleCall* now = changes_.live_call(path);
    if (!changes_.was_live(path)) return {kept(module, path, name, recomputed)};
    if (now == nullptr) return {removed(module, path, name, "")};
    if (!changes_.is_new(*now)) return {kept(module, path, name, recomputed)};
    return {removed(module, path, name, ""), added(*now, name, recomputed)};
  }

  TreeNode kept(nn::Module& module, const std::string& path, const std::string& name,
                bool recomputed) {
    const ModuleCall* call = changes_.live_call(path);
    TreeNode node{name, call ? call->type : module.type_name(), module.extra_repr(), ' ', {}, {}};
    node.notes = changes_.notes(path, recomputed);
    if (!node.notes.empty()) node.margin = '~';
    const bool all_recomputed = recomputed || changes_.is_recomputed(path);
    for (const auto& [child_name, child] : module.named_children()) {
      auto parts = at(*child, child_path(path, child_name), child_name, all_recomputed);
      std::move(parts.begin(), parts.end(), std::back_inserter(node.children));
    }
    for (const ModuleCall* child : changes_.new_calls_below(path)) {
      if (!changes_.was_live(child->path))
        node.children.push_back(added(*child, child->name(), all_recomputed));
    }
    order_runs(node.children);
    return node;
  }

  TreeNode removed(nn::Module& module, const std::string& path, const std::string& name,
                   const std::string& parents_note) {
    TreeNode node{name, module.type_name(), module.extra_repr(), '-', {}, {}};
    const std::string note = changes_.was_live(path) ? changes_.replaced_by(path) : "";
    if (!note.empty() && note != parents_note) node.notes.push_back(note);
    for (const auto& [child_name, child] : module.named_children()) {
      node.children.push_back(removed(*child, child_path(path, child_name), child_name,
                                      note.empty() ? parents_note : note));
    }
    return node;
  }

  TreeNode added(const ModuleCall& call, const std::string& name, bool recomputed,
                 bool below_new = false) {
    TreeNode node{name, call.type, call.repr, '+', {}, {}};
    if (!below_new) node.notes.push_back("by " + changes_.primitive_of(call));
    const auto notes = changes_.notes(call.path, recomputed);
    node.notes.insert(node.notes.end(), notes.begin(), notes.end());
    const bool all_recomputed = recomputed || changes_.is_recomputed(call.path);
    for (const ModuleCall* child : changes_.new_calls_below(call.path)) {
      node.children.push_back(added(*child, child->name(), all_recomputed, true));
    }
    return node;
  }

  static std::string child_path(const std::string& path, const std::string& name) {
    return path.empty() ? name : path + "." + name;
  }

  /// Among neighbours that changed, what is gone comes first, as in a diff.
  static void order_runs(std::vector<TreeNode>& nodes) {
    const auto exchanged = [](const TreeNode& n) { return n.margin == '-' || n.margin == '+'; };
    for (auto run = nodes.begin(); run != nodes.end();) {
      run = std::find_if(run, nodes.end(), exchanged);
      const auto end = std::find_if_not(run, nodes.end(), exchanged);
      std::stable_partition(run, end, [](const TreeNode& n) { return n.margin == '-'; });
      run = end;
    }
  }

  const Schedule& schedule_;
  ModuleChanges changes_;
};

struct Line {
  char margin = ' ';
  std::string text;
  std::string note;
  friend bool operator==(const Line&, const Line&) = default;
};

/// "FusedLayerNorm_12" -> "FusedLayerNorm_", 12; the number is -1 where there is none.
std::pair<std::string, int> split_number(const std::string& name) {
  const std::size_t last = name.find_last_not_of("0123456789");
  const std::size_t digits = last == std::string::npos ? 0 : last + 1;
  int number = -1;
  std::from_chars(name.data() + digits, name.data() + name.size(), number);
  return {name.substr(0, digits), number};
}

/// A dropout site tells masks apart, not modules.
std::string without_site(std::string repr) {
  const std::size_t begin = repr.find(", site=");
  if (begin == std::string::npos) return repr;
  const std::size_t end = repr.find_first_not_of("0123456789", begin + 7);
  return repr.erase(begin, (end == std::string::npos ? repr.size() : end) - begin);
}

class Renderer {
 public:
  /// Plain: only what stands, without margin and notes.
  explicit Renderer(bool plain) : plain_(plain) {}

  std::vector<Line> lines(const TreeNode& node, const std::string& label, int depth) const {
    const std::string indent(static_cast<std::size_t>(2 * depth), ' ');
    const std::string repr = plain_ ? node.repr : without_site(node.repr);
    const std::string note = fmt::format("{}", fmt::join(node.notes, "; "));
    const char mark = node.margin == '~' ? ' ' : node.margin;  // of the lines that follow the first
    const std::vector<Line> below = children(node, depth + 1);
    if (below.empty()) {
      return {{node.margin, fmt::format("{}{}{}({})", indent, label, node.type, repr), note}};
    }
    std::vector<Line> result = {{node.margin, indent + label + node.type + "(", note}};
    if (!repr.empty()) result.push_back({mark, indent + "  " + repr, ""});
    result.insert(result.end(), below.begin(), below.end());
    result.push_back({mark, indent + ")", ""});
    return result;
  }

 private:
  std::vector<Line> children(const TreeNode& node, int depth) const {
    std::vector<Line> result;
    std::vector<TreeNode> shown = node.children;
    if (plain_) std::erase_if(shown, [](const TreeNode& child) { return child.margin == '-'; });
    for (std::size_t i = 0; i < shown.size();) {
      const TreeNode& child = shown[i];
      // Plain, only what nn folds too is folded.
      const bool folds = !plain_ || node.type == "ModuleList";
      const std::size_t end = folds ? end_of_fold(shown, i) : i + 1;
      const std::string label =
          end - i == 1 ? fmt::format("({}): ", child.name)
                       : fmt::format("({}-{}): {} x ", child.name,
                                     split_number(shown[end - 1].name).second, end - i);
      const auto child_lines = lines(child, label, depth);
      result.insert(result.end(), child_lines.begin(), child_lines.end());
      i = end;
    }
    return result;
  }

  /// Past the last neighbour that is numbered on and printed alike.
  std::size_t end_of_fold(const std::vector<TreeNode>& nodes, std::size_t first) const {
    const auto [stem, number] = split_number(nodes[first].name);
    if (number < 0) return first + 1;
    const auto alike = lines(nodes[first], "", 0);
    std::size_t end = first + 1;
    while (end < nodes.size() &&
           split_number(nodes[end].name) ==
               std::pair(stem, number + static_cast<int>(end - first)) &&
           printed_alike(lines(nodes[end], "", 0), alike)) {
      ++end;
    }
    return end;
  }

  bool printed_alike(const std::vector<Line>& a, const std::vector<Line>& b) const {
    return std::equal(a.begin(), a.end(), b.begin(), b.end(), [this](const Line& x, const Line& y) {
      return x.text == y.text && (plain_ || x == y);
    });
  }

  bool plain_;
};

}  // namespace

std::string scheduled_tree(const Schedule& schedule) {
  std::string text;
  for (const TreeNode& node : TreeBuilder(schedule).build()) {
    if (node.margin == '-') continue;
    for (const Line& line : Renderer(true).lines(node, "", 0)) {
      text += (text.empty() ? "" : "\n") + line.text;
    }
  }
  return text;
}

std::string changed_tree(const Schedule& schedule) {
  constexpr std::size_t kLongestAligned = 76;
  std::vector<Line> lines;
  for (const TreeNode& node : TreeBuilder(schedule).build()) {
    const auto part = Renderer(false).lines(node, "", 0);
    lines.insert(lines.end(), part.begin(), part.end());
  }
  std::size_t column = 0;
  for (const Line& line : lines) {
    if (!line.note.empty()) column = std::max(column, std::min(line.text.size(), kLongestAligned));
  }
  std::string text;
  for (const Line& line : lines) {
    text += fmt::format("{}{} {}", text.empty() ? "" : "\n", line.margin, line.text);
    if (line.note.empty()) continue;
    const std::size_t gap = line.text.size() < column ? column - line.text.size() : 0;
    text += std::string(gap + 2, ' ') + "# " + line.note;
  }
  return text;
}

}  // namespace tenon
