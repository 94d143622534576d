// undo: takes the last primitive back.
//
//     traced ─▶ replace ─▶ fuse    =>    traced ─▶ replace
//
// The Graph is byte-equal to before that primitive. Parameters that a build packed stay packed.
#pragma once

namespace tenon {

namespace detail {
class ScheduleState;
}  // namespace detail

/// ScheduleError when nothing was applied.
void undo_last(detail::ScheduleState& state);

}  // namespace tenon
