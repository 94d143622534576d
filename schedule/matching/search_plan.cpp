#include "schedule/matching/search_plan.h"

#include <algorithm>

#include "tensor/support/check.h"

namespace tenon::detail {
namespace {

/// So many commutative calls are tried both ways round without remembering what failed: that costs
/// more than it saves in small patterns.
constexpr int kSwapsTriedAnew = 5;

class Planner {
 public:
  explicit Planner(const Pattern& pattern)
      : pattern_(pattern),
        bound_at_(pattern.values.size(), -1),
        step_of_(pattern.calls.size(), -1) {}

  std::vector<SearchStep> run() {
    cover(value(pattern_.outputs[0]).call, pattern_.outputs[0]);
    for (int call = next_call(); call >= 0; call = next_call()) cover(call, -1);
    place_fields();
    place_closed_values();
    int swaps = 0;
    for (int s = 0; s < static_cast<int>(steps_.size()); ++s) {
      step(s).remembers = step(s).from < 0 || (s > 0 && swaps >= kSwapsTriedAnew);
      if (step(s).remembers) find_dependencies(s);
      swaps += step(s).swaps ? 1 : 0;
    }
    return std::move(steps_);
  }

 private:
  const Pattern::Value& value(int id) const {
    return pattern_.values[static_cast<std::size_t>(id)];
  }
  const Pattern::Call& call(int id) const { return pattern_.calls[static_cast<std::size_t>(id)]; }
  int& step_of(int id) { return step_of_[static_cast<std::size_t>(id)]; }
  int& bound_at(int id) { return bound_at_[static_cast<std::size_t>(id)]; }
  SearchStep& step(int id) { return steps_[static_cast<std::size_t>(id)]; }

  /// Adds the call, then those that make what it reads.
  void cover(int id, int from) {
    const int s = static_cast<int>(steps_.size());
    steps_.push_back({id, from});
    step_of(id) = s;
    const auto bind = [&](int v) {
      if (v >= 0 && bound_at(v) < 0) bound_at(v) = s;
    };
    for (int i = 0; i < call(id).num_outputs; ++i) bind(call(id).output + i);
    std::for_each(call(id).inputs.begin(), call(id).inputs.end(), bind);
    for (int input : call(id).inputs) {
      const int maker = input < 0 ? -1 : value(input).call;
      if (maker >= 0 && step_of(maker) < 0) cover(maker, input);
    }
  }

  /// A call that is not covered and reads a bound value, or -1 when all are.
  int next_call() {
    bool all = true;
    for (int id = 0; id < static_cast<int>(pattern_.calls.size()); ++id) {
      if (step_of(id) >= 0) continue;
      all = false;
      for (int input : call(id).inputs) {
        if (input >= 0 && bound_at(input) >= 0) return id;
      }
    }
    TENON_INTERNAL(all, "the pattern is not connected");
    return -1;
  }

  void place_fields() {
    std::vector<bool> sized(pattern_.values.size(), false);
    for (SearchStep& own : steps_) {
      for (PatternField& field : pattern_fields(call(own.call).attrs)) {
        int ready = step_of(own.call);
        for (int v : field.sized_values) {
          ready = std::max(ready, bound_at(v));
          sized[static_cast<std::size_t>(v)] = true;
        }
        if (field.sized_values.empty()) {
          own.fields.push_back(std::move(field));
        } else {
          step(ready).sized_fields.emplace_back(own.call, std::move(field));
        }
      }
    }
    const auto interchangeable = [&](int v) {
      return value(v).kind == Pattern::Value::Kind::parameter && value(v).uses == 1 &&
             !sized[static_cast<std::size_t>(v)];
    };
    for (SearchStep& own : steps_) {
      const Pattern::Call& c = call(own.call);
      own.swaps = c.op != nullptr && c.op->has(Trait::commutative) && c.inputs.size() == 2 &&
                  c.inputs[0] >= 0 && c.inputs[1] >= 0 && c.inputs[0] != c.inputs[1] &&
                  !(interchangeable(c.inputs[0]) && interchangeable(c.inputs[1]));
    }
  }

  void place_closed_values() {
    std::vector<ClosedValue> closed(pattern_.values.size(), {-1, 0});
    std::vector<int> closes_at(pattern_.values.size(), -1);
    for (const SearchStep& own : steps_) {
      for (int input : call(own.call).inputs) {
        if (input < 0 || value(input).call < 0) continue;
        const auto [first, last] = std::minmax(step_of(own.call), step_of(value(input).call));
        ClosedValue& known = closed[static_cast<std::size_t>(input)];
        known = {input, known.value < 0 ? first : std::min(first, known.first_step)};
        int& at = closes_at[static_cast<std::size_t>(input)];
        at = std::max(at, last);
      }
    }
    for (int output : pattern_.outputs) closes_at[static_cast<std::size_t>(output)] = -1;
    for (std::size_t v = 0; v < closes_at.size(); ++v) {
      if (closes_at[v] >= 0) step(closes_at[v]).closed.push_back(closed[v]);
    }
  }

  void find_dependencies(int first) {
    std::vector<int>& values = step(first).depends_on;
    const auto add = [&](int v) {
      if (v >= 0 && bound_at(v) >= 0 && bound_at(v) < first) values.push_back(v);
    };
    for (auto s = static_cast<std::size_t>(first); s < steps_.size(); ++s) {
      const SearchStep& own = steps_[s];
      std::for_each(call(own.call).inputs.begin(), call(own.call).inputs.end(), add);
      for (int i = 0; i < call(own.call).num_outputs; ++i) add(call(own.call).output + i);
      for (const auto& [id, field] : own.sized_fields) {
        std::for_each(field.sized_values.begin(), field.sized_values.end(), add);
        for (int i = 0; i < call(id).num_outputs; ++i) add(call(id).output + i);
      }
    }
    std::sort(values.begin(), values.end());
    values.erase(std::unique(values.begin(), values.end()), values.end());
  }

  const Pattern& pattern_;
  std::vector<int> bound_at_;  // by value: the step that binds it
  std::vector<int> step_of_;   // by call
  std::vector<SearchStep> steps_;
};

}  // namespace

std::vector<SearchStep> plan_search(const Pattern& pattern) { return Planner(pattern).run(); }

}  // namespace tenon::detail
