// A table of what each primitive of a schedule bought: nodes, kernels, bytes moved, memory, time, and
// how far the results are from the unscheduled model's.
//
//   ScheduleReport r = report(sch, {.inputs = {x}});
//   std::cout << r.to_string();
//   nlohmann::ordered_json json = r;
#pragma once

#include <cstddef>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "schedule/schedule.h"

namespace tenon {

struct ReportOptions {
  /// What to run on; empty: random values of `sizes`.
  std::vector<Tensor> inputs = {};
  /// Sizes of the inputs; empty: those of the examples that the model was traced with.
  std::vector<std::vector<std::int64_t>> sizes = {};
  /// Measures forward and backward in training mode, which is where checkpoint() shows.
  bool training = false;
  /// Timed runs, of which the median is taken, after a few that are not timed.
  int runs = 20;
  std::uint64_t seed = 0;
};

/// The Graph as traced, or as one primitive left it.
struct ReportRow {
  std::string primitive;  // "traced", "replace"
  std::string path;
  std::size_t nodes = 0;
  std::int64_t kernels = 0;
  double bytes_moved = 0;  // see InstructionInfo::bytes
  std::size_t arena_bytes = 0;
  double milliseconds = 0;
  /// The largest |row - traced| of any output, and with `training` any gradient, in eval mode;
  /// infinite where only one of them is NaN.
  double max_error = 0;
  /// Why this Graph cannot run alone; the figures are then 0.
  std::string failure;
  /// Where this primitive may change results and does no harm by it, kernels that are expected to be
  /// slow (Program::slow_paths), and why runs are not launched as one CUDA graph where recording one
  /// failed; "": none of these.
  std::string note = {};
};

struct ScheduleReport {
  std::vector<ReportRow> rows;
  bool training = false;
  std::vector<std::vector<std::int64_t>> sizes;  // of the inputs

  /// An aligned table, one line a row, and one more where a row has a note.
  std::string to_string() const;
};

/// An array of objects with the fields of the rows; an error that is not finite is null.
void to_json(nlohmann::ordered_json& json, const ScheduleReport& report);

/// Lowers and runs the Graph before the first and after each primitive, its parameters packed as
/// build() does, with state left as it is. ShapeError or DTypeError when the inputs do not fit.
ScheduleReport report(const Schedule& schedule, const ReportOptions& options = {});

}  // namespace tenon
