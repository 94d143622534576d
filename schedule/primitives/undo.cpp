#include "schedule/primitives/undo.h"

#include "schedule/rewriting/state.h"
#include "tensor/support/check.h"

namespace tenon {

void undo_last(detail::ScheduleState& state) {
  const ExclusiveUse::Scope use(state.in_use, "[undo] the schedule");
  TENON_CHECK(!state.applied.empty(), ScheduleError,
              "undo: nothing to undo, no primitive was applied");
  state.graph = std::move(state.history.back());
  state.history.pop_back();
  state.applied.pop_back();
}

}  // namespace tenon
