// Schedules as data: what was applied to what, as JSON, and done again to another model of the same
// structure, for example the same network with other weights, dtype or device.
//
//   std::string text = save_schedule(sch);
//   Schedule other = create_schedule(model2, examples);
//   load_schedule(other, text);
//   Executor run = build(other);          // verified as any schedule is
//
// The JSON: {"format": "tenon.schedule", "version": 1, "model": class, "structure": [line, …],
// "steps": [{"primitive", "path", "detail", "edit"}, …]}. A step's edit is what it did to the Graph,
// so neither patterns nor replacing modules are needed to load it.
#pragma once

#include <string>

#include "schedule/schedule.h"

namespace tenon {

/// The whole schedule, whichever handle on it is given.
std::string save_schedule(const Schedule& schedule);

/// Applies the steps one by one, each a transaction as the primitive itself. `schedule` must have no
/// primitive applied. ScheduleError when the text is no such JSON, or the model's structure differs:
/// the first line that does is named. A failure leaves the schedule as it was.
void load_schedule(Schedule& schedule, const std::string& json);

/// "1. replace on 'self_attn': [...] by FusedQKV", one line a step; of many matches the first
/// and their number.
std::string list_steps(const Schedule& schedule);

}  // namespace tenon
