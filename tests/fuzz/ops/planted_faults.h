// Wrong ways to make one call of fuzz_ops, for planted_ops. They exist in that program only.
#pragma once

#include <vector>

#include "tests/fuzz/ops/call.h"

namespace tenon::op_fuzz {

struct PlantedFault {
  const char* name;
  const char* call;  // Call::name of what it takes the place of
  Run run;
  bool on_host_only = false;  // right on a GPU, which does not check indices
};
std::vector<PlantedFault> planted_faults();

}  // namespace tenon::op_fuzz
