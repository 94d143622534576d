// Optimizer: what SGD, Adam and AdamW share. A step is made of ops and of assignments to parameters
// and state, so it runs eagerly or, under the tracer, becomes part of one Graph with the gradients.
//
//   nn::AdamW optimizer(model->named_parameters(),
//                       {.weight_decay = 0.1, .no_decay = {"*.bias", "*norm*"}},
//                       {.max_grad_norm = 1.0});
//   optimizer.set_lr(schedule(i));
//   backward(loss);
//   Tensor norm = optimizer.step();
//   optimizer.zero_grad();
//
// Nothing here looks at numbers: step counts and learning rates are tensors, so a Graph made of a
// step stays valid when the host changes them.
//
// Parameters may be converted or moved (Module::to) at any time: the next step first brings master
// weights and state to the dtype and device that each parameter then has. A 16-bit parameter that had
// no master weight gets one with its value; that of a parameter which is no longer 16-bit is dropped.
// A step that is refused, for whatever reason, changes nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "nn/module.h"
#include "nn/state_dict.h"
#include "tensor/exclusive_use.h"
#include "tensor/ops/optimizer_steps.h"
#include "tensor/tensor.h"

namespace tenon::nn {

/// Parameters that share one set of options.
template <class Options>
struct ParameterGroup {
  Module::NamedTensors parameters;
  Options options;
};

/// What concerns all groups of an optimizer.
struct OptimizerOptions {
  /// Gradients are scaled down to this global norm; 0 leaves them as they are.
  double max_grad_norm = 0;
  /// float16 and bfloat16 parameters are updated as float32 copies, with float32 state.
  bool master_weights = true;
};

class Optimizer {
 public:
  using NamedTensors = Module::NamedTensors;

  virtual ~Optimizer() = default;
  Optimizer(const Optimizer&) = delete;
  Optimizer& operator=(const Optimizer&) = delete;

  /// update() with the gradients that backward accumulated.
  Tensor step();
  /// Updates every parameter by its gradient, given in the order of parameters(). One without a
  /// gradient keeps its value and state. With clipping, returns the global norm before it, a tensor
  /// of shape (), and refuses a missing gradient with ValueError unless the parameter is frozen;
  /// otherwise returns an undefined tensor. ShapeError, DTypeError or DeviceError for a gradient that
  /// does not fit, ValueError for a parameter whose shape changed or that is on another device than
  /// the first, ConcurrencyError while another thread changes this optimizer.
  Tensor update(std::span<const Tensor> gradients);
  /// Clears the gradients of all parameters.
  void zero_grad();

  /// All parameters, group by group.
  NamedTensors parameters() const;
  std::size_t num_groups() const { return state_.lr.size(); }
  /// The learning rate of a group, a float32 tensor of shape (). ValueError for a group out of range.
  Tensor lr(std::size_t group = 0) const;
  /// Sets the learning rate of all groups, or of one.
  void set_lr(double lr);
  void set_lr(std::size_t group, double lr);

  /// The tensors that steps change: "step" (P), one count a parameter, "exp_avg.<parameter>" and so
  /// on, "master.<parameter>"; then "lr.<group>", which steps read. As the next step will have them:
  /// where a parameter was converted since the last one, copies.
  NamedTensors state_tensors() const;
  /// The same for checkpoints: "step.<parameter>" in place of "step". Shared, not copied.
  StateDict state_dict() const;
  /// As Module::load_state_dict: one ModuleError lists all that does not fit, and nothing changes.
  LoadReport load_state_dict(const StateDict& state, const LoadOptions& options = {});
  /// Copies the parameters into their master weights: call it after loading the model alone.
  void refresh_master_weights();
  /// Brings master weights and state to the parameters' dtypes and devices now; what step() does
  /// first, and what must have been done before a step is traced. ValueError as update().
  void follow_parameters();

 protected:
  /// A group as the base class sees it.
  struct Group {
    NamedTensors parameters;
    double lr = 0;
    std::vector<std::string> state_names;  // one tensor of each for every parameter, zeros at first
  };
  /// Parameters of one group that one op updates; a `param` is the master weight where there is one.
  struct Updates {
    std::vector<ParameterUpdate> parameters = {};
    std::vector<std::string> names = {};
    Tensor lr = {};
    Tensor grad_scale = {};  // undefined without clipping
    std::size_t group = 0;
    RoundedCopy copies = RoundedCopy::none;  // what master weights are of
  };

  /// ValueError without parameters, for one that is given twice or on another device than the first.
  Optimizer(std::string type, std::vector<Group> groups, const OptimizerOptions& options);
  /// Emits the op, whose results are in the order of `updates.parameters`.
  virtual std::vector<UpdatedParameter> apply_updates(const Updates& updates) const = 0;

 private:
  struct Slot {
    std::string name;
    Tensor param;
    Tensor master;  // undefined where `param` itself is updated
    std::size_t group = 0;
    std::vector<std::string> state_names;
    std::vector<Tensor> state;

    const Tensor& updated() const { return master ? master : param; }
    RoundedCopy copies() const;
  };
  /// All that steps read and change.
  struct State {
    std::vector<Slot> slots;
    std::vector<Tensor> lr;  // one a group
    Tensor steps;            // float32 (P)

    NamedTensors tensors() const;  // without the steps
  };
  /// The results of one op, and whose they are.
  struct Updated {
    std::vector<const Slot*> slots;
    std::vector<UpdatedParameter> values;
  };

  void add_slot(const std::string& name, const Tensor& param, std::size_t group,
                const std::vector<std::string>& state_names);
  bool has_master(const Tensor& param) const;
  bool follows(const Slot& slot) const;
  bool follows_all() const;
  /// The state as the parameters need it now; shares what fits.
  State followed() const;
  void follow(Slot& slot) const;
  void adopt(const State& state);
  Tensor counted(const State& state, std::span<const Tensor> gradients) const;
  Updated updated(const State& state, const Tensor& steps, std::span<const Tensor> gradients,
                  Updates updates) const;

  std::string type_;
  OptimizerOptions options_;
  State state_;
  ExclusiveUse in_use_;
};

namespace detail {
/// The positions of the names that one of the globs matches.
std::vector<std::int64_t> matching_positions(const std::vector<std::string>& names,
                                             const std::vector<std::string>& globs);
/// ValueError unless `value` is finite and at least 0.
void check_rate(const char* optimizer, const char* option, double value);
}  // namespace detail

}  // namespace tenon::nn
