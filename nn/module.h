// Module: named parameters, buffers and child modules, and a forward function.
//
//   struct Mlp : nn::Module {
//     explicit Mlp(std::int64_t hidden)
//         : up(add<nn::Linear>("up", hidden, 4 * hidden)),
//           down(add<nn::Linear>("down", 4 * hidden, hidden)) {}
//     Tensor forward(const Tensor& x) { return down(gelu(up(x))) + x; }
//     nn::Child<nn::Linear> up, down;
//   };
//   auto model = nn::make<Mlp>(1024);
//   Tensor y = model(x);
//
// A module is called through its Child handle, never by forward(): the call is what a tracer
// records and what runs hooks.
//
// Any number of threads may call one module, trace it and take gradients of it by grad(). What
// changes it, registration, hooks, modes, gradients in parameters, to() and loading, is for one
// thread while no other uses the module.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <iosfwd>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nn/state_dict.h"
#include "tensor/error.h"
#include "tensor/exclusive_use.h"
#include "tensor/hook_set.h"
#include "tensor/tensor.h"

namespace tenon::nn {

class Module;
template <class T>
class Child;

/// Runs before forward and may replace elements of `inputs`, the call's tensor arguments in order.
using ForwardPreHook = std::function<void(Module& module, std::span<Tensor> inputs)>;
/// Runs after forward and may replace elements of `outputs`.
using ForwardHook =
    std::function<void(Module& module, std::span<const Tensor> inputs, std::span<Tensor> outputs)>;

namespace detail {
struct HookTable;
class ModuleCall;
}  // namespace detail

/// Takes a hook off again. Letting the handle go leaves the hook in place, as in PyTorch.
class HookHandle {
 public:
  HookHandle() = default;
  /// Removes the hook; a second call, or one after the module is gone, does nothing.
  void remove();

 private:
  friend class Module;
  HookHandle(std::weak_ptr<detail::HookTable> table, std::int64_t id)
      : table_(std::move(table)), id_(id) {}
  std::weak_ptr<detail::HookTable> table_;
  std::int64_t id_ = 0;
};

class Module {
 public:
  using NamedTensors = std::vector<std::pair<std::string, Tensor>>;
  using NamedModules = std::vector<std::pair<std::string, Module*>>;

  Module();
  virtual ~Module();
  Module(const Module&) = delete;
  Module& operator=(const Module&) = delete;

  /// What stands in the printed parentheses: "in_features=4, out_features=3, bias=True".
  virtual std::string extra_repr() const { return {}; }
  /// True when a tracer may take a call as one node; nn's own layers are leaves.
  virtual bool is_leaf() const { return false; }
  /// The class name without namespaces and template arguments: "Linear". Not for constructors,
  /// where C++ has it that the object is still of a base class.
  const std::string& type_name() const;

  /// Depth first in registration order, dotted: "self_attn.q_proj.weight". A tensor or module that
  /// is registered twice is listed under its first name only, unless `keep_duplicates`.
  NamedTensors named_parameters(bool keep_duplicates = false) const;
  NamedTensors named_buffers(bool keep_duplicates = false) const;
  /// Starts with ("", this).
  NamedModules named_modules(bool keep_duplicates = false);
  /// Direct children only.
  NamedModules named_children();

  /// By dotted path; ModuleError naming the path and the nearest names that exist.
  Tensor parameter(std::string_view path) const;
  Tensor buffer(std::string_view path) const;
  /// "" is this module.
  Module& submodule(std::string_view path);

  /// Sets the mode of this module and everything below it, which dropout and batch norm follow. A
  /// Graph resolves the root's mode at each run; a module below with another one keeps it there,
  /// and one that changes against its root after the trace makes what was built a StaleProgram.
  void train(bool on = true);
  void eval() { train(false); }
  /// Asked while it is traced, the Graph holds for the mode that was told: StaleProgram in the
  /// other.
  bool training() const;
  /// Where the mode stands, also when the module is gone; looking there is no question.
  const std::shared_ptr<std::atomic<bool>>& mode_cell() const { return training_; }

  /// Moves parameters, their gradients and buffers; handles and names stay. All are copied before
  /// any is changed. Programs built before throw StaleProgram; a backward that is still to come
  /// reads what forward saw; optimizers follow at their next step. ConcurrencyError when another
  /// thread converts, moves or loads a module of the tree; so for a call of one meanwhile.
  void to(Device device);
  /// Converts floating-point parameters, gradients and buffers; DTypeError unless `dtype` is one.
  void to(DType dtype);
  void to(Device device, DType dtype);

  /// Freezes (false) or thaws every parameter; tied names share the mark.
  void requires_grad_(bool requires_grad = true);

  /// Parameters and persistent buffers under all their names, module by module; shared, not copied.
  StateDict state_dict() const;
  /// What load_state_dict would do with `state`; changes nothing and does not throw.
  LoadReport check_state_dict(const StateDict& state, const LoadOptions& options = {}) const;
  /// Copies values into the existing storage. One ModuleError lists every missing, unexpected,
  /// mismatched or conflicting name, and then nothing was changed. Floating dtypes are converted,
  /// others are not. A tied tensor needs one of its names; given several, their bits must be equal.
  /// ConcurrencyError as for to().
  LoadReport load_state_dict(const StateDict& state, const LoadOptions& options = {});

  HookHandle register_forward_pre_hook(ForwardPreHook hook);
  HookHandle register_forward_hook(ForwardHook hook);
  bool has_hooks() const;
  /// Which hooks it has; it stays the module's when hooks come and go, and may outlive it.
  std::shared_ptr<const HookSet> hooks();
  /// Calls `forward` on the inputs with this module's hooks around it: what stands in for the module
  /// keeps them.
  std::vector<Tensor> call_with_hooks(
      std::vector<Tensor> inputs,
      const std::function<std::vector<Tensor>(std::span<const Tensor>)>& forward);

  /// The module tree, as PyTorch prints it.
  std::string to_string() const;

 protected:
  /// Names are unique within a module, not empty and without dots; ModuleError otherwise, as for an
  /// undefined tensor, a tensor without data, a parameter that is not floating, a null module and a
  /// module that would contain itself. Returns what was registered.
  Tensor register_parameter(std::string name, Tensor tensor);
  /// A buffer that is not persistent stays out of state_dict.
  Tensor register_buffer(std::string name, Tensor tensor, bool persistent = true);
  template <class T>
  Child<T> register_module(std::string name, std::shared_ptr<T> module);
  template <class T>
  Child<T> register_module(std::string name, const Child<T>& module);
  /// register_module(name, std::make_shared<T>(args...)).
  template <class T, class... A>
  Child<T> add(std::string name, A&&... args);

  /// Whether printing folds equal neighbours: "(0-2): 3 x Block(...)".
  virtual bool folds_equal_children() const { return false; }

 private:
  friend class detail::ModuleCall;
  struct Named {
    std::string name;
    Tensor tensor;
    bool persistent = true;
  };
  void check_name(std::string_view kind, std::string_view name) const;
  void check_tensor(std::string_view kind, std::string_view name, const Tensor& tensor) const;
  void add_child(std::string name, std::shared_ptr<Module> module);
  template <class Visit>
  void visit_modules(const std::string& prefix, const Visit& visit) const;
  NamedTensors collect(std::vector<Named> Module::*list, bool keep_duplicates) const;
  void collect_state(const std::string& prefix, StateDict& state) const;
  Tensor find_tensor(std::vector<Named> Module::*list, std::string_view kind,
                     std::string_view path) const;
  const Module* find_module(std::string_view path) const;
  std::vector<Tensor> unique_tensors() const;
  void convert(const std::function<TensorOptions(const Tensor&)>& target);
  std::vector<ExclusiveUse::Scope> use_all(std::string_view what) const;
  void run_pre_hooks(std::span<Tensor> inputs);
  void run_hooks(std::span<const Tensor> inputs, std::span<Tensor> outputs);

  std::vector<Named> parameters_;
  std::vector<Named> buffers_;
  std::vector<std::pair<std::string, std::shared_ptr<Module>>> children_;
  const std::shared_ptr<detail::HookTable> hooks_;
  mutable ExclusiveUse in_use_;  // by what replaces or writes the module's tensors
  const std::shared_ptr<std::atomic<bool>> training_ = std::make_shared<std::atomic<bool>>(true);
};

std::ostream& operator<<(std::ostream& stream, const Module& module);

}  // namespace tenon::nn

#include "nn/child.h"
