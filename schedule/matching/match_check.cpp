// Whether the nodes of a match can be replaced as one; see match_fault. Of the invariants that
// graph/verify.h numbers:
//   V18 no effect and no value that a state write needs is inside, unless it is a result
//   V30 no module with a hook is inside in part
//   V40 no value inside but a result is used outside or is an output, and nothing stands between
#include <algorithm>
#include <unordered_set>

#include "schedule/facts/between.h"
#include "schedule/facts/run_results.h"
#include "schedule/matcher.h"
#include "tensor/support/check.h"

namespace tenon {
namespace {

class MatchCheck {
 public:
  MatchCheck(const Graph& graph, const Subgraph& match)
      : graph_(graph),
        match_(match),
        run_results_(graph),
        inside_(match.nodes.begin(), match.nodes.end()) {}

  std::string fault() const {
    if (match_.nodes.empty()) return "the match has no nodes";
    for (NodeId id : match_.nodes) {
      if (!graph_.has_node(id)) return "the match is out of date: a node of it is gone";
    }
    for (const auto check : {&MatchCheck::border, &MatchCheck::effect, &MatchCheck::escape,
                             &MatchCheck::hook, &MatchCheck::between}) {
      if (std::string text = (this->*check)(); !text.empty()) return text;
    }
    return "";
  }

 private:
  bool made_inside(ValueId id) const { return inside_.contains(graph_.value(id).producer); }

  std::string border() const {
    for (ValueId input : match_.inputs) {
      if (input == kNone) continue;
      if (!graph_.has_value(input)) {
        return fmt::format("value {}, an input of the match, does not exist", input);
      }
      if (made_inside(input)) {
        return fmt::format("{} is an input of the match and computed inside of it",
                           graph_.value_name(input));
      }
    }
    for (ValueId output : match_.outputs) {
      if (!graph_.has_value(output)) {
        return fmt::format("value {}, a result of the match, does not exist", output);
      }
      if (!made_inside(output)) {
        return fmt::format("{} is a result of the match and not computed inside of it",
                           graph_.value_name(output));
      }
    }
    return "";
  }

  std::string effect() const {
    for (NodeId id : match_.nodes) {
      if (graph_.node(id).op->has(Trait::effect)) {
        return fmt::format("{} ({}) has an effect and would be swallowed", graph_.full_name(id),
                           graph_.node(id).op->name);
      }
    }
    return "";
  }

  std::string escape() const {
    for (NodeId id : match_.nodes) {
      for (ValueId value : graph_.node(id).outputs) {
        const auto& outputs = match_.outputs;
        if (std::find(outputs.begin(), outputs.end(), value) != outputs.end()) continue;
        if (const std::string user = user_outside(value); !user.empty()) {
          return fmt::format("{} is an intermediate of the match and is also used by {}",
                             graph_.value_name(value), user);
        }
      }
    }
    return "";
  }

  std::string user_outside(ValueId value) const {
    for (const Use& use : graph_.value(value).uses) {
      if (!inside_.contains(use.node)) return graph_.full_name(use.node);
    }
    return run_results_.describe(value);
  }

  std::string hook() const {
    CallId common = graph_.visible_call(match_.nodes[0]);
    for (NodeId id : match_.nodes) {
      while (!graph_.is_within(graph_.visible_call(id), common)) {
        common = graph_.call(common).parent;
      }
    }
    for (NodeId id : match_.nodes) {
      for (CallId c = graph_.node(id).call; c != kNone && c != common; c = graph_.call(c).parent) {
        if (graph_.call(c).has_hooks && !contains_call(c)) {
          return fmt::format("{} belongs to module '{}', which has a hook", graph_.full_name(id),
                             graph_.call(c).path);
        }
      }
    }
    return "";
  }

  bool contains_call(CallId id) const {
    const std::vector<NodeId> nodes = graph_.nodes_within(id);
    return std::all_of(nodes.begin(), nodes.end(),
                       [&](NodeId node) { return inside_.contains(node); });
  }

  std::string between() const {
    if (match_.outputs.size() < 2) return "";
    const auto found = detail::find_between(graph_, match_.nodes);
    if (!found) return "";
    return fmt::format("{} stands between: it reads {} and the match depends on it",
                       graph_.full_name(found->node), graph_.value_name(found->reads));
  }

  const Graph& graph_;
  const Subgraph& match_;
  detail::RunResults run_results_;
  std::unordered_set<NodeId> inside_;
};

}  // namespace

std::string match_fault(const Graph& graph, const Subgraph& match) {
  return MatchCheck(graph, match).fault();
}

void check_match(const Graph& graph, const Subgraph& match) {
  const std::string fault = match_fault(graph, match);
  TENON_CHECK(fault.empty(), ScheduleError, "{}", fault);
}

}  // namespace tenon
