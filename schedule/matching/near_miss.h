// NearMissLog: why attempts failed. Attempts fail all the time, so a reason is kept as numbers and put
// into words for the few that are reported.
#pragma once

#include <string>
#include <vector>

#include "schedule/matcher.h"
#include "schedule/matching/module_selector.h"

namespace tenon::detail {

/// What did not fit: a node, value or module call (`subject`), and against what (`other`).
struct Mismatch {
  enum class Kind {
    bound_value,     // value, the value that it should be
    no_state,        // value
    no_result,       // value; call
    other_op,        // node; call
    other_result,    // value
    other_module,    // node: in another module
    hooked_node,     // node
    hooked_module,   // module
    matched,         // node
    effect,          // node
    operand_count,   // node; call
    operand,         // node; its operand `index`, which only one of the two has
    result_count,    // node; result `index`
    attribute,       // node; call, field `index`
    module_name,     // module; call
    no_module,       // value; call
    no_user,         // value; call
    inner_module,    // module
    module_inputs,   // module; call
    module_outputs,  // module
    escape,          // value, the node that uses it (kNone: the run)
    module_fault,    // module: `text`
    inside_input,    // value
    between,         // node, the value that it reads
  } kind = Kind::matched;
  std::int32_t subject = kNone;
  std::int32_t other = kNone;
  int call = -1;  // of the pattern
  std::size_t index = 0;
  const std::string* text = nullptr;  // kept by the search
};

class NearMissLog {
 public:
  struct Attempt {
    NodeId anchor = kNone;
    int matched = -1;  // calls of the pattern that fitted; -1: nothing noted
    Mismatch mismatch = {};
  };

  void begin() { current_.matched = -1; }
  /// Whether an attempt that got this far would be kept.
  bool is_furthest(int matched) const { return matched > current_.matched; }
  void note(int matched, Mismatch mismatch) {
    if (!is_furthest(matched)) return;
    current_.matched = matched;
    current_.mismatch = std::move(mismatch);
  }
  const Attempt& current() const { return current_; }
  void note(const Attempt& attempt) { note(attempt.matched, attempt.mismatch); }
  /// The attempt at this node failed; it is one to report if any call had fitted.
  void end(NodeId anchor);

  /// The closest ones in words, the closest first.
  std::vector<NearMiss> report(const Graph& graph, const Pattern& pattern,
                               const std::vector<ModuleSelector>& selectors) const;

 private:
  Attempt current_;
  std::vector<Attempt> attempts_;
};

}  // namespace tenon::detail
