#include "schedule/matching/near_miss.h"

#include <algorithm>

#include "schedule/facts/run_results.h"
#include "tensor/support/check.h"

namespace tenon::detail {
namespace {

constexpr std::size_t kReported = 8;

class Wording {
 public:
  Wording(const Graph& graph, const Pattern& pattern, const std::vector<ModuleSelector>& selectors)
      : graph_(graph), pattern_(pattern), selectors_(selectors) {}

  std::string of(const Mismatch& m) const {
    using Kind = Mismatch::Kind;
    switch (m.kind) {
      case Kind::bound_value:
        return fmt::format("{} is used where the pattern has {}", value(m.subject), value(m.other));
      case Kind::no_state:
        return fmt::format("{} is no state of the model, as the pattern's module has",
                           value(m.subject));
      case Kind::no_result:
        return fmt::format("{} is not a result of {}", value(m.subject), call(m).name());
      case Kind::other_op:
        return fmt::format("{} is {}; the pattern has {}", node(m.subject), op(m), call(m).name());
      case Kind::other_result:
        return fmt::format("{} is another result than the pattern's", value(m.subject));
      case Kind::other_module:
        return fmt::format(
            "{} lies inside another module than the rest; trace({{.flatten = true}}) shows them as "
            "one",
            node(m.subject));
      case Kind::hooked_node:
        return fmt::format("{} belongs to a module with a hook", node(m.subject));
      case Kind::matched: return fmt::format("{} is matched already", node(m.subject));
      case Kind::effect:
        return fmt::format("{} ({}) has an effect and would be swallowed", node(m.subject), op(m));
      case Kind::operand_count:
        return fmt::format("{} has {} operands; the pattern has {}", node(m.subject),
                           graph_.node(m.subject).inputs.size(), call(m).inputs.size());
      case Kind::operand: return of_operand(m);
      case Kind::result_count:
        return fmt::format("{} has {} results; the pattern uses result {}", node(m.subject),
                           graph_.node(m.subject).outputs.size(), m.index);
      case Kind::attribute: return of_attribute(m);
      case Kind::escape:
        return fmt::format(
            "{} is an intermediate of the match and is also used by {}", value(m.subject),
            m.other == kNone ? RunResults(graph_).describe(m.subject) : node(m.other));
      case Kind::inside_input:
        return fmt::format("{} is an input of the match and computed inside of it",
                           value(m.subject));
      case Kind::between:
        return fmt::format("{} stands between: it reads {} and the match depends on it",
                           node(m.subject), value(m.other));
      default: return of_module(m);
    }
  }

 private:
  std::string of_operand(const Mismatch& m) const {
    const Node& n = graph_.node(m.subject);
    return fmt::format("{} {} operand '{}', unlike the pattern", node(m.subject),
                       n.inputs[m.index] == kNone ? "lacks" : "has",
                       n.op->operands[std::min(m.index, n.op->operands.size() - 1)].name);
  }

  std::string of_attribute(const Mismatch& m) const {
    const Attrs& attrs = graph_.node(m.subject).attrs;
    return fmt::format("{} has {}={}; the pattern has {}", node(m.subject), attrs.name(m.index),
                       tenon::to_string(attrs.value(m.index)),
                       tenon::to_string(call(m).attrs.value(m.index)));
  }

  std::string of_module(const Mismatch& m) const {
    using Kind = Mismatch::Kind;
    if (m.kind == Kind::no_module) {
      return fmt::format("{} is not the result of a module call {}", value(m.subject),
                         selector(m).to_string());
    }
    if (m.kind == Kind::no_user) {
      return call(m).op
                 ? fmt::format("{} is used by no {} that is free", value(m.subject), call(m).name())
                 : fmt::format("{} is given to no module {}", value(m.subject),
                               selector(m).to_string());
    }
    const ModuleCall& module = graph_.call(m.subject);
    switch (m.kind) {
      case Kind::module_name: return selector(m).describe_mismatch(module);
      case Kind::hooked_module: return fmt::format("module '{}' has a hook", module.path);
      case Kind::inner_module:
        return fmt::format("module '{}' belongs to '{}', another module's inside", module.path,
                           module.parent == kNone ? "" : graph_.call(module.parent).path);
      case Kind::module_inputs:
        return fmt::format("module '{}' takes {} tensors; the pattern gives {}", module.path,
                           module.inputs.size(), call(m).inputs.size());
      case Kind::module_outputs:
        return fmt::format("module '{}' returns {} tensors; call_module stands for one",
                           module.path, module.outputs.size());
      default: return fmt::format("module '{}': {}", module.path, *m.text);
    }
  }

  const Pattern::Call& call(const Mismatch& m) const {
    return pattern_.calls[static_cast<std::size_t>(m.call)];
  }
  const ModuleSelector& selector(const Mismatch& m) const {
    return selectors_[static_cast<std::size_t>(m.call)];
  }
  std::string node(NodeId id) const { return graph_.full_name(id); }
  std::string value(ValueId id) const { return graph_.value_name(id); }
  const std::string& op(const Mismatch& m) const { return graph_.node(m.subject).op->name; }

  const Graph& graph_;
  const Pattern& pattern_;
  const std::vector<ModuleSelector>& selectors_;
};

}  // namespace

void NearMissLog::end(NodeId anchor) {
  if (current_.matched <= 0) return;
  current_.anchor = anchor;
  attempts_.push_back(current_);
}

std::vector<NearMiss> NearMissLog::report(const Graph& graph, const Pattern& pattern,
                                          const std::vector<ModuleSelector>& selectors) const {
  std::vector<const Attempt*> closest;
  for (const Attempt& attempt : attempts_) closest.push_back(&attempt);
  std::stable_sort(closest.begin(), closest.end(),
                   [](const Attempt* a, const Attempt* b) { return a->matched > b->matched; });
  closest.resize(std::min(closest.size(), kReported));
  const Wording wording(graph, pattern, selectors);
  std::vector<NearMiss> report;
  for (const Attempt* attempt : closest) {
    report.push_back(
        {graph.full_name(attempt->anchor), attempt->matched, wording.of(attempt->mismatch)});
  }
  return report;
}

}  // namespace tenon::detail
