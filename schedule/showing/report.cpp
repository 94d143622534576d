#include "schedule/report.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "graph/program.h"
#include "schedule/facts/hidden_rows.h"
#include "schedule/joint_graph.h"
#include "schedule/rewriting/state.h"
#include "schedule/trials/trial.h"
#include "schedule/trials/trial_sizes.h"
#include "tensor/device_backend.h"
#include "tensor/support/check.h"

namespace tenon {
namespace {

constexpr int kWarmUpRuns = 2;

/// Results by name, so that Graphs with other sets of gradients compare.
using Results = std::unordered_map<std::string, std::vector<double>>;

std::vector<Tensor> choose_inputs(const Graph& graph, const ReportOptions& options,
                                  Generator& generator) {
  if (!options.inputs.empty()) return options.inputs;
  TENON_CHECK(options.sizes.empty() || options.sizes.size() == graph.inputs().size(), ShapeError,
              "[report] sizes of {} inputs were given; the model takes {}", options.sizes.size(),
              graph.inputs().size());
  std::vector<std::vector<std::int64_t>> sizes = options.sizes;
  for (const ValueId id : graph.inputs()) {
    if (options.sizes.empty()) sizes.push_back(graph.value(id).spec.shape.hints());
  }
  const Graph silent = detail::without_effects(graph);
  std::vector<Tensor> inputs =
      detail::draw_inputs(silent, detail::TrialSizes(graph, sizes).small(), generator.seed());
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    const TensorSpec& spec = graph.value(graph.inputs()[i]).spec;
    inputs[i] = inputs[i].to(spec.dtype).to(spec.device);
  }
  return inputs;
}

double largest_difference(const Results& results, const Results& reference) {
  double largest = 0;
  for (const auto& [name, values] : results) {
    const auto found = reference.find(name);
    if (found == reference.end()) continue;
    for (std::size_t i = 0; i < values.size(); ++i) {
      const double a = values[i];
      const double b = found->second.at(i);
      if (a == b || (std::isnan(a) && std::isnan(b))) continue;
      const double apart = std::abs(a - b);
      largest = std::max(largest, std::isnan(apart) ? HUGE_VAL : apart);
    }
  }
  return largest;
}

/// One version of the Graph, ready to be lowered in either mode.
struct Measured {
  Graph graph;
  std::vector<std::string> outputs;
};

class Reporter {
 public:
  Reporter(const Schedule& schedule, const ReportOptions& options)
      : schedule_(schedule), options_(options), tree_(detail::state_tree(schedule)) {
    Generator generator(options.seed);
    const Graph& original = schedule.original();
    inputs_ = choose_inputs(original, options, generator);
    for (const Tensor& input : inputs_) report_.sizes.push_back(input.shape().hints());
    report_.training = options.training;
    if (options.training) add_cotangents(original, generator);
  }

  ScheduleReport run() {
    add_row("traced", "", schedule_.graph_before(0));
    for (std::size_t i = 0; i < schedule_.applied().size(); ++i) {
      const AppliedPrimitive& step = schedule_.applied()[i];
      const Graph& graph = schedule_.graph_before(i + 1);
      add_row(step.primitive, step.path, graph);
      if (detail::turns_hidden_rows_to_zeros(schedule_.graph_before(i), graph)) {
        add_note(report_.rows.back(), detail::kHiddenRowsNote);
      }
    }
    return std::move(report_);
  }

 private:
  static void add_note(ReportRow& row, std::string_view note) {
    row.note += fmt::format("{}{}", row.note.empty() ? "" : "; ", note);
  }

  /// Backward starts from values of the outputs' sizes, which a run tells.
  void add_cotangents(const Graph& original, Generator& generator) {
    const std::vector<Tensor> outputs = compared_program(forward(original).graph)->run(inputs_);
    for (std::size_t output : differentiate(original, tree_).cotangents) {
      const TensorSpec spec = outputs.at(output).spec();
      inputs_.push_back(randn(spec.shape, {}, &generator).to(spec.dtype).to(spec.device));
    }
  }

  static Measured forward(const Graph& graph) {
    Measured measured{graph, {}};
    measured.graph.drop_writes();  // a measurement changes no state
    measured.graph.eliminate_dead_code();
    for (std::size_t i = 0; i < graph.outputs().size(); ++i) {
      measured.outputs.push_back(fmt::format("output {}", i));
    }
    return measured;
  }

  Measured measured(const Graph& graph) const {
    if (!options_.training) return forward(graph);
    GradientGraph gradients = differentiate(graph, tree_);
    return {std::move(gradients.graph), std::move(gradients.outputs)};
  }

  std::unique_ptr<Program> program(const Graph& graph, bool training) const {
    std::vector<TensorSpec> specs;
    for (const Tensor& input : inputs_) specs.push_back(input.spec());
    return lower(graph, specs, {.training = training});
  }

  /// Without masks, where the Graph holds for that.
  std::unique_ptr<Program> compared_program(const Graph& graph) const {
    return program(graph, graph.facts().held_mode().value_or(false));
  }

  void add_row(const std::string& primitive, const std::string& path, const Graph& graph) {
    ReportRow row{primitive, path, graph.order().size(), 0, 0, 0, 0, 0, ""};
    try {
      pack_parameters(graph);
      const Measured version = measured(graph);
      compare(version, row);
      measure(version, row);
    } catch (const InternalError&) {
      throw;
    } catch (const Error& error) {
      if (report_.rows.empty()) throw;  // the model itself does not run on these inputs
      row = {primitive, path, graph.order().size(), 0, 0, 0, 0, 0, error.what()};
    }
    report_.rows.push_back(std::move(row));
  }

  void compare(const Measured& version, ReportRow& row) {
    Generator generator(options_.seed);
    const std::vector<Tensor> tensors = compared_program(version.graph)->run(inputs_, generator);
    Results results;
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      results.emplace(version.outputs.at(i), tensors[i].to_doubles());
    }
    if (report_.rows.empty()) reference_ = results;
    row.max_error = largest_difference(results, reference_);
  }

  void measure(const Measured& version, ReportRow& row) const {
    const auto lowered = program(version.graph, options_.training);
    Generator generator(options_.seed);
    row.nodes = version.graph.order().size();
    row.kernels = lowered->count_kernels(inputs_, generator);
    row.arena_bytes = lowered->arena_bytes();
    for (const InstructionInfo& info : lowered->instructions()) row.bytes_moved += info.bytes;
    DeviceBackend& backend = device_backend(lowered->device().type);
    const auto run = [&] { lowered->run(inputs_, generator); };
    for (int i = 0; i < kWarmUpRuns; ++i) run();
    std::vector<double> times;
    for (int i = 0; i < std::max(options_.runs, 1); ++i) {
      times.push_back(backend.time_ms(lowered->device().index, run));
    }
    const auto middle = times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2);
    std::nth_element(times.begin(), middle, times.end());
    row.milliseconds = *middle;
    for (const std::string& line : lowered->slow_paths()) add_note(row, "slow: " + line);
    if (const std::string reason = lowered->capture_failure(); !reason.empty()) {
      add_note(row, "kernels are launched one by one: " + reason);
    }
  }

  const Schedule& schedule_;
  const ReportOptions& options_;
  const ModuleTree tree_;
  std::vector<Tensor> inputs_;
  Results reference_;
  ScheduleReport report_;
};

}  // namespace

ScheduleReport report(const Schedule& schedule, const ReportOptions& options) {
  const GradModeGuard grad_mode(true);  // for models that ask for it
  return Reporter(schedule, options).run();
}

std::string ScheduleReport::to_string() const {
  constexpr double kMegabyte = 1e6;
  const auto where = [](const ReportRow& row) {
    return row.path.empty() ? row.primitive : fmt::format("{} on '{}'", row.primitive, row.path);
  };
  std::size_t width = 9;
  for (const ReportRow& row : rows) width = std::max(width, where(row).size());
  std::string shapes;
  for (const auto& size : sizes) {
    shapes += fmt::format("{}({})", shapes.empty() ? "" : ", ", fmt::join(size, ", "));
  }
  std::string text = fmt::format(
      "{} on inputs {}\n    {:{}} {:>6} {:>8} {:>10} {:>10} {:>10} {:>11}\n",
      training ? "forward and backward in training mode" : "forward in eval mode", shapes,
      "primitive", width, "nodes", "kernels", "MB moved", "MB arena", "ms", "max error");
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const ReportRow& row = rows[i];
    text += fmt::format("{:2}. {:{}} {:6} ", i, where(row), width, row.nodes);
    if (!row.failure.empty()) {
      text += fmt::format("cannot run alone: {}\n", row.failure);
      continue;
    }
    text += fmt::format(
        "{:8} {:10.2f} {:10.2f} {:10.4f} {:11.3g}\n", row.kernels, row.bytes_moved / kMegabyte,
        static_cast<double>(row.arena_bytes) / kMegabyte, row.milliseconds, row.max_error);
    if (!row.note.empty()) text += fmt::format("    note: {}\n", row.note);
  }
  return text;
}

void to_json(nlohmann::ordered_json& json, const ScheduleReport& report) {
  json = nlohmann::ordered_json::array();
  for (const ReportRow& row : report.rows) {
    nlohmann::ordered_json fields = {{"primitive", row.primitive},
                                     {"path", row.path},
                                     {"nodes", row.nodes},
                                     {"kernels", row.kernels},
                                     {"bytes_moved", row.bytes_moved},
                                     {"arena_bytes", row.arena_bytes},
                                     {"ms", row.milliseconds},
                                     {"max_error", row.max_error}};
    if (!row.failure.empty()) fields["failure"] = row.failure;
    if (!row.note.empty()) fields["note"] = row.note;
    json.push_back(std::move(fields));
  }
}

}  // namespace tenon
