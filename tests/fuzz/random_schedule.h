// A random schedule for a ModelProgram: primitives that are legal by construction, applied through the
// public API. A refusal is a finding, as a wrong result is.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "schedule/schedule.h"
#include "tests/fuzz/model_program.h"

namespace tenon::fuzz {

struct Step {
  std::string text;  // "blocks.0.attn: replace attention"
  std::function<void(Schedule&)> apply;
  std::string also = {};  // a primitive that leaves no trace in applied(): "undo"
};

std::vector<Step> draw_schedule(RandomSource& source, const ModelProgram& program);

}  // namespace tenon::fuzz
