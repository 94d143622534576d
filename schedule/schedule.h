// Schedule: progressive optimization of a model that stays as it is. A schedule records the model's
// Graph and rewrites it by primitives; each is refused, the Graph byte-equal to before, when the
// result could differ.
//
//   auto sch = create_schedule(model, {{"hidden_states", x}});
//   auto qkv = sch.find(pattern);                          // three matches
//   sch.replace(nn::make<FusedQKV>(1024, 16), qkv);        // one module
//   sch["proj"]["dense"].decompose();
//   Executor run = build(sch);                             // verified
//   Tensor y = run(x);
//
// Threads may schedule and build different models at once, and run what was built of one meanwhile.
// One schedule is changed or built by one thread at a time, while no other searches it: threads
// that meet in it get a ConcurrencyError. build changes the model too where it joins parameters.
#pragma once

#include <concepts>
#include <functional>
#include <iosfwd>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <typeinfo>
#include <vector>

#include "graph/executor.h"
#include "graph/graph.h"
#include "graph/tracer.h"
#include "nn/module.h"
#include "schedule/matcher.h"
#include "schedule/pattern.h"
#include "schedule/replacement.h"
#include "tensor/exclusive_use.h"

namespace tenon {

namespace detail {
class ScheduleState;
}  // namespace detail

struct TraceOptions {
  /// Modules below are seen as nodes of this one, so that patterns cross their borders.
  bool flatten = false;
  /// Class names or paths of modules that stay closed when flattening.
  std::vector<std::string> leaf_modules = {};
};

struct FuseOptions {
  /// The name of the new node's call; default "Fused".
  std::string name = "Fused";
};

/// One applied primitive, as data.
struct AppliedPrimitive {
  std::string primitive;  // "replace"
  std::string path;       // the schedule it was called on
  std::string detail;     // what it was applied to
};

/// A primitive and what it does, in a line.
struct PrimitiveInfo {
  std::string_view name;
  std::string_view description;
};
/// Every primitive, in alphabetical order.
std::span<const PrimitiveInfo> list_primitives();

struct CheckpointOptions {
  /// False: backward also computes again what leaves the module or match and is read elsewhere in the
  /// forward pass. Worth it for what is large and cheap: norms and activations.
  bool keep_results = true;
};

/// A handle on one module of a scheduled model; copies refer to the same schedule.
class Schedule {
 public:
  explicit Schedule(std::shared_ptr<detail::ScheduleState> state, std::string path = "")
      : state_(std::move(state)), path_(std::move(path)) {}

  /// The schedule of a module below: sch["self_attn"], sch["layer.0.proj"]. ScheduleError that names
  /// the path and what there is when there is no such module.
  Schedule operator[](std::string_view path) const;
  const std::string& path() const { return path_; }
  /// The module tree as it stands: replaced modules gone, new ones in place, in PyTorch's notation.
  std::string to_string() const;

  /// Matches of a pattern, a callable on Tensors, among the nodes of this module and those below; or
  /// of a predicate, bool(const Node&), each a node for which it holds.
  template <class F>
  requires(!std::convertible_to<F, std::string>) Matches find(F&& what)
  const {
    if constexpr (detail::tensor_arity<std::remove_reference_t<F>>() > 0) {
      return find_pattern(record_pattern(what));
    } else {
      static_assert(std::predicate<F&, const Node&>,
                    "find takes a name, a callable on 1 to 10 Tensors or a bool(const Node&)");
      return find_nodes(what);
    }
  }
  /// Module calls whose whole name, or path below this module, matches a regular expression.
  Matches find(const std::string& regex) const;
  /// Calls of modules whose class is M.
  template <std::derived_from<nn::Module> M>
  Matches find() const {
    return find_type(detail::module_type_name(typeid(M)));
  }

  /// Puts a module or function in place of matches; see schedule/primitives/replace.h.
  template <class T>
  void replace(const nn::Child<T>& module, const Matches& matches, ReplaceOptions options = {}) {
    apply_replace(make_replacement(module, options), matches, options);
  }
  template <class F>
  requires requires { typename detail::Signature<F>::Parameters; }
  void replace(F function, const Matches& matches, ReplaceOptions options = {}) {
    apply_replace(make_replacement(function, options), matches, options);
  }
  /// Puts a module in place of this one, wherever it is called.
  template <class T>
  void replace(const nn::Child<T>& module, ReplaceOptions options = {}) {
    apply_replace_module(make_replacement(module, options), options);
  }
  /// Replaces every module of class M below by what `make(path, module)` returns; modules that this
  /// brings in are left alone. Returns how many were replaced.
  template <class M, class Make>
  std::size_t replace_all(Make make, ReplaceOptions options = {}) {
    return apply_replace_all(
        typeid(M).name(), [](nn::Module& module) { return dynamic_cast<M*>(&module) != nullptr; },
        [&](const std::string& path, nn::Module& module) {
          return make_replacement(make(path, dynamic_cast<M&>(module)), options);
        },
        options);
  }
  /// Splits the ops of this module, or of the matches, into plainer ones (a Linear into product and
  /// bias).
  void decompose();
  void decompose(const Matches& matches);
  /// How the modules below are seen; see TraceOptions. The recorded computation stays.
  void trace(const TraceOptions& options);
  /// Replaces each match by the one fused op that is registered for that composition.
  void fuse(const Matches& matches, const FuseOptions& options = {});
  /// Folds each batch norm among the matches into the convolution or Linear in front of it; the model
  /// must be in eval mode, and what is built runs in that mode only.
  void fold(const Matches& matches, const FuseOptions& options = {.name = "Folded"});
  /// Joins Linears of one input into one; default name "FusedLinear".
  void fuse_parallel(const Matches& matches, const FuseOptions& options = {.name = "FusedLinear"});
  /// Runs this module, or each match, again in backward instead of keeping what it computes.
  void checkpoint(const CheckpointOptions& options = {});
  void checkpoint(const Matches& matches, const CheckpointOptions& options = {});
  /// Chooses the implementation ("cuda.flash_mma", "decomposition") of the matched nodes.
  void bind(const Matches& matches, const std::string& kernel);
  /// Notes something on a module ("" for this one), parameter or buffer below.
  void annotate(const std::string& name, const std::string& key, const std::string& value);
  /// What was noted, or nothing.
  std::optional<std::string> annotation(const std::string& name, const std::string& key) const;
  /// Prints the results of this module, or of the matches, whenever the Graph runs.
  void print(const std::string& label = "");
  void print(const Matches& matches, const std::string& label = "");
  /// Applies what a saved step did: a transaction like any primitive. See schedule/schedule_json.h.
  void apply_edit(const AppliedPrimitive& step, const std::function<void(Graph&)>& edit);
  /// Takes the last primitive back; ScheduleError when there is none.
  void undo();

  /// The Graph as it stands, and as it was traced.
  const Graph& graph() const;
  const Graph& original() const;
  const std::vector<AppliedPrimitive>& applied() const;
  /// The Graph before the i-th applied primitive; for i == applied().size(), as it stands.
  const Graph& graph_before(std::size_t i) const;
  /// One short row of each example input that was given as a tensor, undefined for others: what
  /// verification records values of.
  const std::vector<Tensor>& examples() const;
  /// Parameters that replacements brought as fresh(): by name, beside the model's.
  nn::Module::NamedTensors added_parameters() const;
  /// While it lives, another thread that changes, builds or searches the schedule gets a
  /// ConcurrencyError, as this one does now where another is at it. `what` begins the message.
  ExclusiveUse::Scope use(std::string_view what) const;
  nn::Module& model() const;
  const std::shared_ptr<nn::Module>& shared_model() const;

 private:
  Matches find_pattern(const Pattern& pattern) const;
  Matches find_nodes(const std::function<bool(const Node&)>& predicate) const;
  Matches find_type(const std::string& type) const;
  void apply_replace(const Replacement& replacement, const Matches& matches,
                     const ReplaceOptions& options);
  void apply_replace_module(const Replacement& replacement, const ReplaceOptions& options);
  std::size_t apply_replace_all(
      const char* mangled_type, const std::function<bool(nn::Module&)>& matches,
      const std::function<Replacement(const std::string&, nn::Module&)>& make,
      const ReplaceOptions& options);
  std::shared_ptr<detail::ScheduleState> state_;
  std::string path_;
};

/// The module tree with what the schedule changed (schedule/tree.h), then what was applied to what.
std::ostream& operator<<(std::ostream& stream, const Schedule& schedule);

/// The Graph as it stands in Graphviz' language, with what the schedule added or changed marked; for a
/// picture of before and after, and for SVG, see graph/dot.h and graph/svg.h.
std::string to_dot(const Schedule& schedule);

/// Traces `model` once on inputs like the examples and returns its schedule. The model's code runs
/// as it is; its parameters stay its own. What the code reads on the host, it reads once: see
/// graph/tracer.h on modes, grad mode, sizes and variables of its own.
Schedule create_schedule(std::shared_ptr<nn::Module> model, const ForwardFunction& forward,
                         const std::vector<ExampleInput>& examples);
template <class T>
Schedule create_schedule(const nn::Child<T>& model, const std::vector<ExampleInput>& examples) {
  return create_schedule(
      model.shared(), [model](std::span<const Tensor> inputs) { return model.call(inputs); },
      examples);
}

/// std::cerr.
std::ostream* standard_log();

struct BuildOptions {
  /// Compare the scheduled with the unscheduled model first; see schedule/verification.h. Off: modules'
  /// hooks are taken to be those that were there when the model was traced, too.
  bool verify = true;
  /// Build although some result was compared on no finite value: where all that can be drawn, and what
  /// the examples give, makes the model NaN.
  bool accept_uncompared = false;
  /// Gets a line on what was verified and what that cost, and progress of what takes longer than a
  /// second: std::cerr. Null: nobody.
  std::ostream* log = standard_log();
};

/// Verifies the schedule, packs the parameters that it joins, and returns what runs it. Throws
/// VerificationError when a result differs; the model keeps its parameters either way.
/// StaleProgram, now and at a run, when the model was converted or moved since it was traced, or a
/// module has got or lost a hook, or one that acts differently in training has left its root's
/// mode; at a run, also when code asked training() or grad_enabled() in the trace and is run in the
/// other mode. Gradient hooks concern no forward pass: none runs, and they may come and go.
Executor build(const Schedule& schedule, const BuildOptions& options = {});

}  // namespace tenon
