#include "tests/fuzz/ops/call.h"

#include <algorithm>
#include <stdexcept>

namespace tenon::op_fuzz {

Scalar Invocation::scalar() const {
  return step.literal.is_integer ? Scalar(step.literal.integer) : Scalar(step.literal.real);
}

const std::vector<Call>& all_calls() {
  static const std::vector<Call> calls = [] {
    std::vector<Call> all;
    for (const auto& group :
         {calls_that_make(), calls_that_show(), calls_of_arithmetic(), calls_of_assignment(),
          calls_of_comparison(), calls_that_reduce(), calls_that_look_up(), calls_in_place(),
          calls_of_layers(), calls_of_state()}) {
      all.insert(all.end(), group.begin(), group.end());
    }
    return all;
  }();
  return calls;
}

const Call& call_named(const std::string& name) {
  const auto& calls = all_calls();
  const auto found =
      std::find_if(calls.begin(), calls.end(), [&](const Call& call) { return call.name == name; });
  if (found == calls.end()) throw std::invalid_argument("no call " + name);
  return *found;
}

}  // namespace tenon::op_fuzz
