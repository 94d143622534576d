// SearchPlan: the order in which a search goes through a pattern's calls, worked out once. It starts at
// the first result, goes down to what each call reads, and from there up to the other results:
//
//     x ─▶ linear ─▶ gelu ─▶ (result 0)        0: gelu   1: linear (down)
//      └─▶ sum ─▶ (result 1)                   2: sum (up from x)
//
// Each check stands at the first step at which all that it asks about is bound.
#pragma once

#include <vector>

#include "schedule/matching/attribute_match.h"
#include "schedule/pattern.h"

namespace tenon::detail {

/// An intermediate, to be checked for users outside, and the first step that makes or uses it.
struct ClosedValue {
  int value = 0;
  int first_step = 0;
};

struct SearchStep {
  int call = 0;
  /// The value that the call makes and by which it is reached; -1: it is reached from what it reads.
  int from = -1;
  /// The operands may be swapped, and that makes a difference.
  bool swaps = false;
  /// Attributes of the call itself, and of any call, the sizes in which are known from here on.
  std::vector<PatternField> fields = {};
  std::vector<std::pair<int, PatternField>> sized_fields = {};
  /// Intermediates all of whose users in the pattern are bound from here on.
  std::vector<ClosedValue> closed = {};
  /// It can be reached in many ways with the same values bound: failures are remembered by these, the
  /// values bound before on which it and later steps depend.
  bool remembers = false;
  std::vector<int> depends_on = {};
};

std::vector<SearchStep> plan_search(const Pattern& pattern);

}  // namespace tenon::detail
