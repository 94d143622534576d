#include "schedule/showing/module_changes.h"

#include <algorithm>

#include "tensor/support/check.h"

namespace tenon::detail {
namespace {

/// "a, b, c, … (9 nodes)".
std::string list_names(const std::vector<std::string>& names) {
  constexpr std::size_t kShown = 3;
  if (names.size() <= kShown + 1) return fmt::format("{}", fmt::join(names, ", "));
  return fmt::format("{}, … ({} nodes)", fmt::join(names.begin(), names.begin() + kShown, ", "),
                     names.size());
}

std::string parent_path(const std::string& path) {
  const std::size_t dot = path.rfind('.');
  return dot == std::string::npos ? "" : path.substr(0, dot);
}

bool is_print(const Node& node) { return node.op->name == "print"; }

/// Names in the order in which they came, by what is said of them.
class Groups {
 public:
  void add(const std::string& said, const std::string& name) {
    for (auto& [known, names] : groups_) {
      if (known == said) return names.push_back(name);
    }
    groups_.push_back({said, {name}});
  }
  auto begin() const { return groups_.begin(); }
  auto end() const { return groups_.end(); }

 private:
  std::vector<std::pair<std::string, std::vector<std::string>>> groups_;
};

}  // namespace

ModuleChanges::ModuleChanges(const Schedule& schedule)
    : schedule_(schedule),
      original_(schedule.original()),
      graph_(schedule.graph()),
      lineage_(schedule),
      before_(index(original_)),
      now_(index(graph_)) {
  for (const auto& [path, module] : schedule.model().named_modules(true)) modules_.insert(path);
  index_annotations();
}

ModuleChanges::ByPath ModuleChanges::index(const Graph& graph) {
  ByPath nodes;
  for (NodeId id : graph.order()) {
    const Node& node = graph.node(id);
    nodes[graph.call(node.call).path].own.push_back(id);
    std::string counted;  // a call and one around it may have the same path
    for (CallId c = node.call; c != kNone; c = graph.call(c).parent) {
      const ModuleCall& call = graph.call(c);
      Nodes& entry = nodes[call.path];
      if (c != node.call && call.path == counted) continue;
      counted = call.path;
      if (entry.call == kNone) entry.call = c;
      entry.last = id;
      entry.count += 1;
      entry.recomputed += node.region != kNone ? 1 : 0;
      entry.flattened |= call.flattened;
    }
  }
  return nodes;
}

const ModuleChanges::Nodes& ModuleChanges::at(const ByPath& nodes, const std::string& path) {
  static const Nodes& kNothing = *new Nodes;  // never destroyed: threads may outlive main
  const auto found = nodes.find(path);
  return found == nodes.end() ? kNothing : found->second;
}

void ModuleChanges::index_annotations() {
  for (const auto& [name, entries] : graph_.annotations()) {
    const bool module = modules_.contains(name) || now_.contains(name);
    const std::string& owner = module ? name : parent_path(name);
    const std::string state =
        module ? "" : name.substr(owner.empty() ? 0 : owner.size() + 1) + ": ";
    for (const auto& [key, value] : entries) {
      annotations_[owner].push_back(fmt::format("{}{} = {}", state, key, value));
    }
  }
}

const ModuleCall* ModuleChanges::live_call(const std::string& path) const {
  const CallId call = nodes_now(path).call;
  return call == kNone ? nullptr : &graph_.call(call);
}

bool ModuleChanges::is_new(const ModuleCall& call) const {
  return static_cast<std::size_t>(call.id) >= original_.calls().size();
}

std::vector<const ModuleCall*> ModuleChanges::new_calls_below(const std::string& path) const {
  std::vector<const ModuleCall*> calls;
  for (const ModuleCall& call : graph_.calls()) {
    if (!is_new(call) || call.path == path || call.parent == kNone) continue;
    if (graph_.call(call.parent).path == path && nodes_now(call.path).call == call.id) {
      calls.push_back(&call);
    }
  }
  return calls;
}

std::string ModuleChanges::primitive_of(const ModuleCall& call) const {
  const auto& applied = schedule_.applied();
  for (std::size_t i = 0; i < applied.size(); ++i) {
    const auto known = schedule_.graph_before(i + 1).calls().size();
    if (static_cast<std::size_t>(call.id) < known) return applied[i].primitive;
  }
  return "";
}

/// What node `id`, which was made at `path`, went into, as it is called from `base`.
std::string ModuleChanges::successor(NodeId id, const std::string& path, const std::string& base) {
  const NodeId now = lineage_.stand_in(id);
  if (now == kNone) return "no longer computed";
  CallId outermost = kNone;
  for (CallId c = graph_.node(now).call; c != kNone; c = graph_.call(c).parent) {
    if (is_new(graph_.call(c))) outermost = c;
  }
  if (outermost == kNone) {
    const Node& node = graph_.node(now);
    const bool near = graph_.call(graph_.visible_call(now)).path == base;
    return "replaced by " + (near ? node.name : node.op->name);
  }
  const ModuleCall& call = graph_.call(outermost);
  // By name beside it, by class farther away: names there are numbered on from layer to layer.
  const bool beside = !is_below(path, call.path) && parent_path(call.path) == base;
  return "replaced by " + (beside ? call.name() : call.type);
}

std::string ModuleChanges::replaced_by(const std::string& path) {
  return successor(nodes_before(path).last, path, parent_path(path));
}

bool ModuleChanges::is_recomputed(const std::string& path) const {
  const Nodes& now = nodes_now(path);
  return now.count > 0 && now.recomputed == now.count && nodes_before(path).recomputed == 0;
}

std::vector<std::string> ModuleChanges::notes(const std::string& path, bool recomputed) {
  Names notes;
  const ModuleCall* call = live_call(path);
  if (call != nullptr) {
    const bool decomposed = call->type.starts_with("Decomposed") && !is_new(*call);
    if (decomposed) notes.emplace_back("decomposed");
    if (nodes_now(path).flattened && !nodes_before(path).flattened) {
      notes.emplace_back("flattened");
    }
    if (!is_new(*call) && !decomposed) note_replaced_nodes(path, notes);
    if (!is_new(*call) && !decomposed) note_new_nodes(path, notes);
    note_marks(path, recomputed, notes);
  }
  if (const auto found = annotations_.find(path); found != annotations_.end()) {
    notes.insert(notes.end(), found->second.begin(), found->second.end());
  }
  return notes;
}

void ModuleChanges::note_replaced_nodes(const std::string& path, Names& notes) {
  Groups replaced;
  for (NodeId id : nodes_before(path).own) {
    if (!graph_.has_node(id)) replaced.add(successor(id, path, path), original_.node(id).name);
  }
  for (const auto& [how, names] : replaced) notes.push_back(list_names(names) + " " + how);
}

void ModuleChanges::note_new_nodes(const std::string& path, Names& notes) const {
  Names names;
  for (NodeId id : nodes_now(path).own) {
    if (!original_.has_node(id) && !is_print(graph_.node(id))) {
      names.push_back(graph_.node(id).name);
    }
  }
  if (!names.empty()) notes.push_back("new: " + list_names(names));
}

/// Kernels, recomputation, prints and changed attributes.
void ModuleChanges::note_marks(const std::string& path, bool recomputed, Names& notes) const {
  const Nodes& now = nodes_now(path);
  Groups marks;
  for (NodeId id : now.own) {
    const Node& node = graph_.node(id);
    const Node* old = original_.has_node(id) ? &original_.node(id) : nullptr;
    const std::string kernel = old != nullptr ? old->kernel : "";
    if (node.kernel != kernel) marks.add("bound to " + node.kernel, node.name);
    const bool was_kept = old == nullptr || old->region == kNone;
    if (node.region != kNone && was_kept && !recomputed && !is_recomputed(path)) {
      marks.add("recomputed in backward", node.name);
    }
    if (old != nullptr && !(old->attrs == node.attrs)) marks.add("changed", node.name);
    if (old == nullptr && is_print(node)) {
      const NodeId printed = graph_.value(node.inputs.at(0)).producer;
      notes.push_back("prints " + (printed == kNone ? graph_.value(node.inputs[0]).name
                                                    : graph_.node(printed).name));
    }
  }
  for (const auto& [how, names] : marks) {
    const bool whole = names.size() == now.own.size() && now.own.size() == now.count;
    notes.push_back(whole ? how : list_names(names) + " " + how);
  }
  if (is_recomputed(path) && !recomputed) notes.emplace_back("recomputed in backward");
}

}  // namespace tenon::detail
