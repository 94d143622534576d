#include "schedule/schedule.h"

#include <algorithm>
#include <ostream>

#include "graph/verify.h"
#include "schedule/detail/state.h"
#include "schedule/primitives/decompose.h"
#include "schedule/primitives/flatten.h"
#include "schedule/primitives/fuse.h"
#include "schedule/primitives/replace.h"
#include "schedule/tree.h"
#include "schedule/verification.h"
#include "tensor/detail/check.h"

namespace tenon {
namespace {

std::string join_path(const std::string& base, std::string_view below) {
  if (base.empty() || below.empty()) return base + std::string(below);
  return base + "." + std::string(below);
}

/// The paths one step below `path`, of modules and of calls that primitives added.
std::vector<std::string> children_of(nn::Module& model, const Graph& graph,
                                     const std::string& path) {
  std::vector<std::string> names;
  const auto add = [&](const std::string& candidate) {
    if (candidate == path || !is_below(candidate, path)) return;
    const std::string rest = path.empty() ? candidate : candidate.substr(path.size() + 1);
    const std::string name = rest.substr(0, rest.find('.'));
    if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
  };
  for (const auto& [name, module] : model.named_modules()) add(name);
  for (const ModuleCall& call : graph.calls()) {
    if (!graph.nodes_within(call.id).empty()) add(call.path);
  }
  return names;
}

bool exists(nn::Module& model, const Graph& graph, const std::string& path) {
  if (path.empty()) return true;
  for (const auto& [name, module] : model.named_modules(true)) {
    if (name == path) return true;
  }
  for (const ModuleCall& call : graph.calls()) {
    if (call.path == path && !graph.nodes_within(call.id).empty()) return true;
  }
  return false;
}

}  // namespace

namespace detail {

void throw_missing_argument(const std::string& replacement, const std::string& name) {
  fail<ScheduleError>("{} needs a value for its parameter '{}'; give it in concrete_args",
                      replacement, name);
}

void throw_wrong_argument(const std::string& replacement, const std::string& name) {
  fail<ScheduleError>("the value given for parameter '{}' of {} has another type", name,
                      replacement);
}

void check_argument_names(const std::string& replacement, const Arguments& arguments,
                          const std::vector<std::string>& parameters) {
  for (const auto& [name, value] : arguments) {
    TENON_CHECK(std::find(parameters.begin(), parameters.end(), name) != parameters.end(),
                ScheduleError, "concrete_args: {} has no parameter '{}'; it has {}", replacement,
                name, fmt::join(parameters, ", "));
  }
}

}  // namespace detail

Schedule create_schedule(std::shared_ptr<nn::Module> model, const ForwardFunction& forward,
                         const std::vector<ExampleInput>& examples) {
  TENON_CHECK(model != nullptr, ScheduleError, "create_schedule: the model is null");
  Graph graph = trace(detail::module_tree(*model), examples, forward);
  verify(graph);
  return Schedule(std::make_shared<detail::ScheduleState>(std::move(model), std::move(graph)));
}

Schedule Schedule::operator[](std::string_view path) const {
  std::string whole = join_path(path_, path);
  if (!exists(*state_->model, state_->graph, whole)) {
    std::string known = path_;
    for (std::string step = whole; !step.empty();) {
      const std::size_t dot = step.rfind('.');
      step = dot == std::string::npos ? "" : step.substr(0, dot);
      if (exists(*state_->model, state_->graph, step)) {
        known = step;
        break;
      }
    }
    const auto names = children_of(*state_->model, state_->graph, known);
    detail::fail<ScheduleError>(
        "schedule path '{}' does not exist; below '{}' there {} {}", whole, known,
        names.size() == 1 ? "is" : "are",
        names.empty() ? "no modules" : fmt::format("{}", fmt::join(names, ", ")));
  }
  return Schedule(state_, std::move(whole));
}

std::string Schedule::to_string() const {
  return scheduled_tree(*state_->model, state_->original, state_->graph, path_);
}

std::ostream& operator<<(std::ostream& stream, const Schedule& schedule) {
  return stream << schedule.to_string();
}

Matches Schedule::find_pattern(const Pattern& pattern) const {
  return find_matches(state_->graph, pattern, path_);
}

Matches Schedule::find(const std::string& regex) const {
  return find_modules(state_->graph, regex, path_);
}

void Schedule::apply_replace(const Replacement& replacement, const Matches& matches,
                             const ReplaceOptions& options) {
  state_->transact(
      {"replace", path_, fmt::format("{} by {}", matches.to_string(), replacement.name)},
      [&](Graph& graph) { replace_matches(graph, replacement, matches, options); });
}

void Schedule::decompose() {
  state_->transact({"decompose", path_, ""}, [&](Graph& graph) { decompose_module(graph, path_); });
}

void Schedule::trace(const TraceOptions& options) {
  state_->transact({"trace", path_, options.flatten ? "flatten" : "hierarchy"},
                   [&](Graph& graph) { retrace_module(graph, path_, options); });
}

void Schedule::fuse(const Matches& matches, const FuseOptions& options) {
  state_->transact({"fuse", path_, fmt::format("{} as {}", matches.to_string(), options.name)},
                   [&](Graph& graph) { fuse_matches(graph, matches, options.name); });
}

const Graph& Schedule::graph() const { return state_->graph; }
const Graph& Schedule::original() const { return state_->original; }
const std::vector<AppliedPrimitive>& Schedule::applied() const { return state_->applied; }
nn::Module& Schedule::model() const { return *state_->model; }
const std::shared_ptr<nn::Module>& Schedule::shared_model() const { return state_->model; }

Executor build(const Schedule& schedule, const BuildOptions& options) {
  if (options.verify) {
    const VerifyReport report = verify(schedule);
    if (!report.ok()) {
      throw VerificationError("build refused: the scheduled model differs from the model\n" +
                              report.to_string());
    }
  }
  pack_parameters(schedule.graph());
  return Executor(schedule.graph());
}

}  // namespace tenon
