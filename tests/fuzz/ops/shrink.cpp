// Leaves out steps and outputs, larger pieces first, as long as there is a mismatch.
#include <algorithm>
#include <set>

#include "tests/fuzz/ops/trial.h"

namespace tenon::op_fuzz {
namespace {

/// Without steps [first, first + count) and without what needs their results.
Program without(const Program& program, std::size_t first, std::size_t count) {
  Program result = program;
  result.steps.clear();
  std::set<int> known;
  for (std::size_t i = 0; i < program.steps.size(); ++i) {
    const Step& step = program.steps[i];
    const bool needs_all = std::all_of(step.operands.begin(), step.operands.end(),
                                       [&](int reg) { return known.contains(reg); });
    if ((i >= first && i < first + count) || !needs_all) continue;
    result.steps.push_back(step);
    if (step.result >= 0) known.insert(step.result);
  }
  std::erase_if(result.outputs, [&](int reg) { return !known.contains(reg); });
  if (result.in_module && result.outputs.empty() && !known.empty()) {
    result.outputs.push_back(*known.rbegin());
  }
  return result;
}

bool has_mismatch(const Program& program, const TrialOptions& options) {
  if (program.steps.empty() || (program.in_module && program.outputs.empty())) return false;
  return !run_trial(program, options).mismatch.empty();
}

/// Takes `candidate` where it has a mismatch too.
bool replace(Program& program, const Program& candidate, const TrialOptions& options) {
  if (!has_mismatch(candidate, options)) return false;
  program = candidate;
  return true;
}

}  // namespace

Program shrunk(const Program& program, const TrialOptions& options) {
  Program best = program;
  for (bool found = true; found;) {
    found = false;
    for (std::size_t count = std::max<std::size_t>(best.steps.size() / 2, 1); count > 0;
         count /= 2) {
      for (std::size_t i = best.steps.size(); i-- > 0;) {
        if (i < best.steps.size()) found |= replace(best, without(best, i, count), options);
      }
    }
    for (std::size_t i = best.outputs.size(); i-- > 0 && best.outputs.size() > 1;) {
      Program fewer = best;
      fewer.outputs.erase(fewer.outputs.begin() + static_cast<std::ptrdiff_t>(i));
      found |= replace(best, fewer, options);
    }
    if (best.wants_gradients) {
      Program plain = best;
      plain.wants_gradients = false;
      found |= replace(best, plain, options);
    }
  }
  return best;
}

}  // namespace tenon::op_fuzz
