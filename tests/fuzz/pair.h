// One pair: a random model and a random schedule of it, compared.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "tests/fuzz/random_source.h"

namespace tenon::fuzz {

struct PairOptions {
  bool float32 = false;  ///< also the kernels of float32, against float64
  bool replay = false;   ///< through JSON, on another instance of the model
  bool verify = false;   ///< also verify(schedule) in float64, which must not raise a false alarm
  bool whole = false;    ///< and say of the whole model what it says of the regions
  bool plant = false;  ///< a result a little off, which regions must see where the whole model does
};

struct PairResult {
  std::map<std::string, int> applied;  ///< primitive -> times
  int num_applied = 0;
  std::string program;             ///< the model
  std::vector<std::string> steps;  ///< the schedule
  std::string mismatch;            ///< "" when all agree
};

/// What a run of pairs compares beside float64, by pair number.
PairOptions options_of_pair(std::uint64_t index);
PairResult run_pair(RandomSource& source, const PairOptions& options);

}  // namespace tenon::fuzz
