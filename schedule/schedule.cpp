#include "schedule/schedule.h"

#include <algorithm>
#include <iostream>
#include <ostream>
#include <unordered_set>
#include <utility>

#include "graph/dot.h"
#include "graph/verify.h"
#include "schedule/primitives/annotate.h"
#include "schedule/primitives/bind.h"
#include "schedule/primitives/checkpoint.h"
#include "schedule/primitives/decompose.h"
#include "schedule/primitives/fold.h"
#include "schedule/primitives/fuse.h"
#include "schedule/primitives/fuse_parallel.h"
#include "schedule/primitives/print.h"
#include "schedule/primitives/replace.h"
#include "schedule/primitives/trace.h"
#include "schedule/primitives/undo.h"
#include "schedule/rewriting/state.h"
#include "schedule/schedule_json.h"
#include "schedule/tree.h"
#include "schedule/trials/trial_sizes.h"
#include "schedule/verification.h"
#include "tensor/support/check.h"
#include "tensor/support/text.h"

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
  try {
    model.submodule(path);
    return true;
  } catch (const ModuleError&) {
    return !detail::live_calls(graph, path).empty();  // one that a primitive added
  }
}

/// Positions that values are recorded at.
constexpr std::int64_t kShortExample = 32;

/// The examples' first row, cut, as a copy: the user may change the tensors.
std::vector<Tensor> short_examples(const Graph& graph, const std::vector<ExampleInput>& examples) {
  const detail::TrialSizes sizes(graph, {});
  const auto shapes = sizes.shapes(sizes.shortened(kShortExample));
  std::vector<Tensor> kept;
  for (std::size_t i = 0; i < examples.size(); ++i) {
    Tensor example = examples[i].tensor;
    if (example && !example.is_eager()) example = Tensor();
    for (std::size_t axis = 0; example && axis < shapes[i].size(); ++axis) {
      example = narrow(example, static_cast<std::int64_t>(axis), 0, shapes[i][axis]);
    }
    kept.push_back(example ? example.detach().clone() : Tensor());
  }
  return kept;
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
  std::vector<Tensor> kept = short_examples(graph, examples);
  return Schedule(
      std::make_shared<detail::ScheduleState>(std::move(model), std::move(graph), std::move(kept)));
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

std::string Schedule::to_string() const { return scheduled_tree(*this); }

std::ostream& operator<<(std::ostream& stream, const Schedule& schedule) {
  if (schedule.applied().empty()) return stream << schedule.to_string();
  std::string steps = list_steps(schedule);
  steps.pop_back();  // its last line end is the caller's to write
  return stream << changed_tree(schedule) << "\n\n" << steps;
}

std::string to_dot(const Schedule& schedule) {
  return to_dot(schedule.graph(), diff(schedule.original(), schedule.graph()));
}

ExclusiveUse::Scope Schedule::use(std::string_view what) const { return {state_->in_use, what}; }

Matches Schedule::find_pattern(const Pattern& pattern) const {
  state_->in_use.require_free("[find] the schedule");
  return find_matches(state_->graph, pattern, path_);
}

Matches Schedule::find(const std::string& regex) const {
  state_->in_use.require_free("[find] the schedule");
  return find_modules(state_->graph, regex, path_);
}

Matches Schedule::find_type(const std::string& type) const {
  state_->in_use.require_free("[find] the schedule");
  return find_modules_of_type(state_->graph, type, path_);
}

Matches Schedule::find_nodes(const std::function<bool(const Node&)>& predicate) const {
  state_->in_use.require_free("[find] the schedule");
  return tenon::find_nodes(state_->graph, predicate, path_);
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

void Schedule::decompose(const Matches& matches) {
  state_->transact({"decompose", path_, matches.to_string()},
                   [&](Graph& graph) { decompose_matches(graph, matches); });
}

void Schedule::trace(const TraceOptions& options) {
  state_->transact({"trace", path_, options.flatten ? "flatten" : "hierarchy"},
                   [&](Graph& graph) { retrace_module(graph, path_, options); });
}

void Schedule::fuse(const Matches& matches, const FuseOptions& options) {
  state_->transact({"fuse", path_, fmt::format("{} as {}", matches.to_string(), options.name)},
                   [&](Graph& graph) { fuse_matches(graph, matches, options.name); });
}

void Schedule::fold(const Matches& matches, const FuseOptions& options) {
  const bool training = state_->model->training();
  state_->transact({"fold", path_, fmt::format("{} as {}", matches.to_string(), options.name)},
                   [&](Graph& graph) { fold_matches(graph, matches, options.name, training); });
}

void Schedule::apply_replace_module(const Replacement& replacement, const ReplaceOptions& options) {
  state_->transact({"replace", path_, "the module by " + replacement.name}, [&](Graph& graph) {
    replace_module(graph, state_->model->submodule(path_), path_, replacement, options);
  });
}

std::size_t Schedule::apply_replace_all(
    const char* mangled_type, const std::function<bool(nn::Module&)>& matches,
    const std::function<Replacement(const std::string&, nn::Module&)>& make,
    const ReplaceOptions& options) {
  const std::string type = text::class_name(mangled_type);
  std::vector<std::pair<std::string, nn::Module*>> found;
  for (const auto& [path, module] : state_->model->named_modules()) {
    if (!is_below(path, path_) || !matches(*module)) continue;
    if (!detail::live_calls(state_->graph, path).empty()) found.emplace_back(path, module);
  }
  state_->transact({"replace_all", path_, type}, [&](Graph& graph) {
    TENON_CHECK(!found.empty(), ScheduleError, "no module of class {} is called below '{}'", type,
                path_);
    for (const auto& [path, module] : found) {
      replace_module(graph, *module, path, make(path, *module), options);
    }
  });
  return found.size();
}

void Schedule::fuse_parallel(const Matches& matches, const FuseOptions& options) {
  state_->transact(
      {"fuse_parallel", path_, fmt::format("{} as {}", matches.to_string(), options.name)},
      [&](Graph& graph) { fuse_parallel_matches(graph, matches, options.name); });
}

void Schedule::checkpoint(const CheckpointOptions& options) {
  state_->transact({"checkpoint", path_, "the module"},
                   [&](Graph& graph) { checkpoint_module(graph, path_, options.keep_results); });
}

void Schedule::checkpoint(const Matches& matches, const CheckpointOptions& options) {
  state_->transact({"checkpoint", path_, matches.to_string()},
                   [&](Graph& graph) { checkpoint_matches(graph, matches, options.keep_results); });
}

void Schedule::bind(const Matches& matches, const std::string& kernel) {
  state_->transact({"bind", path_, fmt::format("{} to {}", matches.to_string(), kernel)},
                   [&](Graph& graph) { bind_matches(graph, matches, kernel); });
}

void Schedule::annotate(const std::string& name, const std::string& key, const std::string& value) {
  const std::string whole = join_path(path_, name);
  state_->transact({"annotate", path_, fmt::format("'{}': {} = {}", whole, key, value)},
                   [&](Graph& graph) { annotate_name(graph, *state_->model, whole, key, value); });
}

std::optional<std::string> Schedule::annotation(const std::string& name,
                                                const std::string& key) const {
  const auto& annotations = state_->graph.annotations();
  const auto notes = annotations.find(join_path(path_, name));
  if (notes == annotations.end()) return std::nullopt;
  const auto found = notes->second.find(key);
  return found == notes->second.end() ? std::nullopt : std::optional(found->second);
}

void Schedule::print(const std::string& label) {
  state_->transact({"print", path_, "the module's results"}, [&](Graph& graph) {
    const std::vector<CallId> calls = detail::live_calls(graph, path_);
    TENON_CHECK(!calls.empty(), ScheduleError,
                "module '{}' is not called in the recorded forward pass", path_);
    std::vector<Subgraph> results;
    for (CallId call : calls) results.push_back(detail::subgraph_of_call(graph, call));
    print_matches(graph, {std::move(results), {}}, label);
  });
}

void Schedule::print(const Matches& matches, const std::string& label) {
  state_->transact({"print", path_, matches.to_string()},
                   [&](Graph& graph) { print_matches(graph, matches, label); });
}

void Schedule::apply_edit(const AppliedPrimitive& step, const std::function<void(Graph&)>& edit) {
  state_->transact(step, edit);
}

void Schedule::undo() { undo_last(*state_); }

const Graph& Schedule::graph_before(std::size_t i) const {
  return i < state_->history.size() ? state_->history[i] : state_->graph;
}

nn::Module::NamedTensors Schedule::added_parameters() const {
  std::unordered_set<const TensorImpl*> own;
  for (const auto& [name, tensor] : state_->model->named_parameters())
    own.insert(tensor.impl().get());
  nn::Module::NamedTensors added;
  for (ValueId id : state_->graph.values()) {
    const Value& value = state_->graph.value(id);
    if (value.kind == ValueKind::parameter && !own.contains(value.tensor.impl().get())) {
      added.emplace_back(value.name, value.tensor);
    }
  }
  return added;
}

const Graph& Schedule::graph() const { return state_->graph; }
const std::vector<Tensor>& Schedule::examples() const { return state_->examples; }
const Graph& Schedule::original() const { return state_->original; }
const std::vector<AppliedPrimitive>& Schedule::applied() const { return state_->applied; }
nn::Module& Schedule::model() const { return *state_->model; }
const std::shared_ptr<nn::Module>& Schedule::shared_model() const { return state_->model; }

std::ostream* standard_log() { return &std::cerr; }

Executor build(const Schedule& schedule, const BuildOptions& options) {
  const auto used = schedule.use("[build] the schedule");
  Graph graph = schedule.graph();
  if (!options.verify) graph.mutable_facts().accept_hooks();
  require_current(graph);
  if (options.verify) {
    detail::require_verified(schedule, "build", options.accept_uncompared, options.log);
  }
  pack_parameters(graph);
  return Executor(std::move(graph));
}

}  // namespace tenon
