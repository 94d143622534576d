#include "tests/fuzz/pair.h"

#include <fmt/format.h>

#include "schedule/schedule_json.h"
#include "schedule/verification.h"
#include "tests/fuzz/graph_edit.h"
#include "tests/fuzz/oracle.h"
#include "tests/fuzz/random_schedule.h"

namespace tenon::fuzz {
namespace {

constexpr double kFloat64Tolerance = 1e-9;
/// A scheduled float32 model may be this much worse than the plain one, or this bad at all.
constexpr double kFloat32Factor = 64;
constexpr double kFloat32Floor = 1e-2;

Schedule schedule_of(const nn::Child<RandomModel>& model, const std::vector<Tensor>& inputs) {
  std::vector<ExampleInput> examples;
  for (const Tensor& input : inputs) examples.emplace_back(input);
  return create_schedule(
      model.shared(),
      [model](std::span<const Tensor> tensors) {
        return model(std::vector<Tensor>(tensors.begin(), tensors.end()));
      },
      examples);
}

class Pair {
 public:
  Pair(RandomSource& source, const PairOptions& options)
      : source_(source),
        options_(options),
        program_(draw_model(source, options.float32)),
        steps_(draw_schedule(source, program_)) {
    result_.program = program_.to_string();
    for (const Step& step : steps_) result_.steps.push_back(step.text);
  }

  PairResult run() {
    try {
      compare();
    } catch (const std::exception& error) {
      result_.mismatch = fmt::format("{}: {}", doing_, error.what());
    }
    return std::move(result_);
  }

 private:
  /// The model's schedule with every step applied.
  Schedule scheduled(const nn::Child<RandomModel>& model, const std::vector<Tensor>& inputs) {
    doing_ = "trace";
    Schedule sch = schedule_of(model, inputs);
    for (const Step& step : steps_) {
      doing_ = step.text;
      step.apply(sch);
    }
    return sch;
  }

  /// The schedule as JSON and applied to another instance, which must make the same Graph.
  Schedule replayed(const Schedule& sch, const std::vector<Tensor>& inputs) {
    doing_ = "save and load";
    const std::string text = save_schedule(sch);
    Schedule other = schedule_of(make_model(program_, DType::float64), inputs);
    load_schedule(other, text);
    ++result_.applied["save and load"];
    if (to_text(other.graph()) != to_text(sch.graph())) {
      throw ScheduleError("the loaded schedule makes another Graph:\n" + to_text(other.graph()) +
                          "\ninstead of\n" + to_text(sch.graph()));
    }
    return other;
  }

  void compare() {
    const auto inputs = make_inputs(program_, DType::float64);
    const auto model = make_model(program_, DType::float64);
    Schedule sch = scheduled(model, inputs);
    for (const AppliedPrimitive& primitive : sch.applied()) ++result_.applied[primitive.primitive];
    for (const Step& step : steps_) {
      if (!step.also.empty()) ++result_.applied[step.also];
    }
    result_.num_applied = static_cast<int>(sch.applied().size());
    if (options_.verify) check_verification(sch);
    if (options_.plant) plant_fault(sch);
    if (options_.replay) sch = replayed(sch, inputs);
    doing_ = "run";
    const Results plain =
        run_plain(make_model(program_, DType::float64), inputs, program_.weight_seed);
    const Results by_schedule = run_scheduled(sch, inputs, program_.weight_seed);
    std::string difference = first_difference(plain, by_schedule, kFloat64Tolerance);
    if (!difference.empty()) {
      difference = first_difference(plain, by_schedule, kFloat64Tolerance, run_nudged(inputs));
    }
    if (!difference.empty()) result_.mismatch = difference;
    if (options_.float32) compare_float32(plain);
  }

  Results run_nudged(const std::vector<Tensor>& inputs) {
    const auto model = make_model(program_, DType::float64);
    const NoGradGuard no_grad;
    for (auto& [name, parameter] : model->named_parameters()) parameter.copy_(nudged(parameter));
    std::vector<Tensor> moved;
    for (const Tensor& input : inputs) moved.push_back(nudged(input));
    const GradModeGuard with_gradients(true);
    return run_plain(model, moved, program_.weight_seed);
  }

  void check_verification(const Schedule& sch) {
    doing_ = "verify";
    const VerifyReport report = verify(sch);
    if (!report.ok()) result_.mismatch = "verification's false alarm\n" + report.to_string();
    if (!options_.whole) return;
    doing_ = "verify the whole model";
    const VerifyReport whole = verify(sch, {.whole = true});
    ++result_.applied["verify the whole model"];
    if (whole.ok() != report.ok()) {
      result_.mismatch = "verification of regions and of the whole model differ\nregions:\n" +
                         report.to_string() + "whole:\n" + whole.to_string();
    }
  }

  /// One result of the scheduled Graph, 1% too large. A region may see more than the whole model
  /// shows, never less.
  void plant_fault(const Schedule& sch) {
    doing_ = "plant a fault";
    Graph graph = sch.graph();
    std::vector<NodeId> candidates;
    for (const NodeId id : graph.order()) {
      const Node& node = graph.node(id);
      const bool wraps = node.outputs.size() == 1 && !node.op->has(Trait::effect) &&
                         is_floating(graph.value(node.outputs[0]).spec.dtype);
      if (wraps) candidates.push_back(id);
    }
    if (candidates.empty()) return;
    const NodeId chosen = candidates[source_.below(candidates.size())];
    const std::string name = graph.node(chosen).name;
    GraphEdit(graph).wrap(chosen, [](const Tensor& y) { return y * 1.01; });
    graph.eliminate_dead_code();
    const Schedule wrong = with_graph(sch, std::move(graph));
    const VerifyReport whole = verify(wrong, {.whole = true});
    ++result_.applied["planted fault"];
    result_.applied["planted fault found"] += !whole.ok();
    const VerifyReport report = verify(wrong);
    if (report.ok() && !whole.ok()) {
      result_.mismatch = "verification of regions misses a fault behind %" + name + "\nregions:\n" +
                         report.to_string() + "whole:\n" + whole.to_string();
    }
  }

  void compare_float32(const Results& reference) {
    const auto inputs = make_inputs(program_, DType::float32);
    const auto model = make_model(program_, DType::float32);
    const Schedule sch = scheduled(model, inputs);
    doing_ = "run in float32";
    const Results plain =
        run_plain(make_model(program_, DType::float32), inputs, program_.weight_seed);
    const Results by_schedule = run_scheduled(sch, inputs, program_.weight_seed);
    const double allowed =
        std::max(kFloat32Factor * largest_error(plain, reference), kFloat32Floor);
    const std::string difference = first_difference(reference, by_schedule, allowed);
    if (!difference.empty()) result_.mismatch = "in float32, " + difference;
  }

  RandomSource& source_;
  PairOptions options_;
  ModelProgram program_;
  std::vector<Step> steps_;
  PairResult result_;
  std::string doing_;
};

}  // namespace

PairOptions options_of_pair(std::uint64_t index) {
  return {.float32 = index % 8 == 3,
          .replay = index % 4 == 2,
          .verify = index % 2 == 1,
          .whole = index % 2 == 1,
          .plant = index % 8 == 4};
}

PairResult run_pair(RandomSource& source, const PairOptions& options) {
  return Pair(source, options).run();
}

}  // namespace tenon::fuzz
