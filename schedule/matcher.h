// Finding a pattern in a Graph, by dataflow: edges, ops, attributes and constants; never by order in
// the listing. A match is refused, with the reason, when a value inside it is needed outside. For a
// fixed pattern the search is linear in the Graph, near misses included.
#pragma once

#include <cstdint>
#include <functional>
#include <iosfwd>
#include <map>
#include <string>
#include <vector>

#include "graph/graph.h"
#include "schedule/pattern.h"

namespace tenon {

/// One match: nodes in program order, the values its parameters are bound to, its results. Primitives
/// refuse one that is not complete, or whose nodes are no longer what they were when it was found.
struct Subgraph {
  std::vector<NodeId> nodes;
  std::vector<ValueId> inputs;                             // by pattern parameter
  std::vector<ValueId> outputs;                            // by what the pattern returns
  std::map<int, AttrValue> captures;                       // what any(k) stood for
  std::vector<std::pair<std::string, std::string>> names;  // (module path, node), for printing
  std::vector<std::vector<ValueId>> operands;              // of each node, to notice later changes
  std::map<NodeId, std::pair<const Op*, Attrs>> ops;       // likewise; of other nodes any will do
};

/// A place where the pattern began to match and did not; `matched` calls of it fitted.
struct NearMiss {
  std::string node;
  int matched = 0;
  std::string reason;
};

/// What a find returned: every match, none overlapping, in program order, and the closest near misses.
class Matches {
 public:
  Matches() = default;
  Matches(Subgraph subgraph) : subgraphs_{std::move(subgraph)} {}
  Matches(std::vector<Subgraph> subgraphs, std::vector<NearMiss> near_misses = {},
          std::int64_t comparisons = 0)
      : subgraphs_(std::move(subgraphs)),
        near_misses_(std::move(near_misses)),
        comparisons_(comparisons) {}

  std::size_t size() const { return subgraphs_.size(); }
  bool empty() const { return subgraphs_.empty(); }
  const Subgraph& operator[](std::size_t i) const { return subgraphs_.at(i); }
  auto begin() const { return subgraphs_.begin(); }
  auto end() const { return subgraphs_.end(); }
  const std::vector<NearMiss>& near_misses() const { return near_misses_; }
  /// How often a node, value or module call was compared with a part of the pattern.
  std::int64_t comparisons() const { return comparisons_; }

  /// "[[('self_attn', q_proj), ('self_attn', view)], …]".
  std::string to_string() const;
  /// Why nothing, or not more, matched: one line a near miss, the closest first.
  std::string explain() const;

 private:
  std::vector<Subgraph> subgraphs_;
  std::vector<NearMiss> near_misses_;
  std::int64_t comparisons_ = 0;
};

std::ostream& operator<<(std::ostream& stream, const Matches& matches);

/// Matches among the nodes seen below the module `path` ("" for the whole graph).
Matches find_matches(const Graph& graph, const Pattern& pattern, const std::string& path);
/// The module calls below `path` whose whole name or whole relative path matches `regex`. Of calls
/// that lie inside each other, the outermost.
Matches find_modules(const Graph& graph, const std::string& regex, const std::string& path);
/// The same for those whose class has this name.
Matches find_modules_of_type(const Graph& graph, const std::string& type, const std::string& path);
/// Each node seen below `path` for which `predicate` holds, with all that it reads and all its results.
Matches find_nodes(const Graph& graph, const std::function<bool(const Node&)>& predicate,
                   const std::string& path);

/// Why other nodes cannot stand for those of `match`, which may be made by hand; "" if they can. No
/// value inside but its results may be used by other nodes, be an output of the graph or be written to
/// a state; no node inside may have an effect or a hook, unless the hooked module is inside as a whole;
/// nothing outside may stand between its nodes.
std::string match_fault(const Graph& graph, const Subgraph& match);
/// ScheduleError with that reason.
void check_match(const Graph& graph, const Subgraph& match);

/// `path` is `ancestor` or below it.
bool is_below(const std::string& path, const std::string& ancestor);

}  // namespace tenon
