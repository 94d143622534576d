// What a schedule changed, module by module: the facts behind the printed tree of changes.
#pragma once

#include <map>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "schedule/schedule.h"
#include "schedule/showing/lineage.h"

namespace tenon::detail {

class ModuleChanges {
 public:
  explicit ModuleChanges(const Schedule& schedule);

  /// The model has a module at `path`, whatever stands there now.
  bool is_module(const std::string& path) const { return modules_.contains(path); }
  /// Nodes of the traced Graph were made there.
  bool was_live(const std::string& path) const { return before_.contains(path); }
  /// The first call of what stands at `path` that has nodes; null when there is none.
  const ModuleCall* live_call(const std::string& path) const;
  /// A primitive brought this call.
  bool is_new(const ModuleCall& call) const;
  /// One call of each module that primitives put directly below the one at `path`.
  std::vector<const ModuleCall*> new_calls_below(const std::string& path) const;
  /// The primitive that brought a new call: "replace".
  std::string primitive_of(const ModuleCall& call) const;
  /// "replaced by FusedQKV_0", for a module that has no nodes of its own any more.
  std::string replaced_by(const std::string& path);
  /// All nodes there are run again in backward, since the schedule asked for it.
  bool is_recomputed(const std::string& path) const;
  /// What else happened there, a phrase each. `recomputed`: that was said of a module around it.
  std::vector<std::string> notes(const std::string& path, bool recomputed);

 private:
  struct Nodes {
    std::vector<NodeId> own;     // of the calls at the path, not of calls below
    NodeId last = kNone;         // own or below
    std::size_t count = 0;       // own and below
    std::size_t recomputed = 0;  // of these
    CallId call = kNone;         // the first one
    bool flattened = false;
  };
  using ByPath = std::unordered_map<std::string, Nodes>;
  using Names = std::vector<std::string>;

  static ByPath index(const Graph& graph);
  const Nodes& nodes_before(const std::string& path) const { return at(before_, path); }
  const Nodes& nodes_now(const std::string& path) const { return at(now_, path); }
  static const Nodes& at(const ByPath& nodes, const std::string& path);
  void index_annotations();
  std::string successor(NodeId id, const std::string& path, const std::string& base);
  void note_replaced_nodes(const std::string& path, Names& notes);
  void note_new_nodes(const std::string& path, Names& notes) const;
  void note_marks(const std::string& path, bool recomputed, Names& notes) const;

  const Schedule& schedule_;
  const Graph& original_;
  const Graph& graph_;
  Lineage lineage_;
  ByPath before_;
  ByPath now_;
  std::unordered_set<std::string> modules_;
  std::unordered_map<std::string, Names> annotations_;
};

}  // namespace tenon::detail
