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
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "nn/module.h"
#include "nn/state_dict.h"
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
  /// otherwise returns an undefined tensor.
  Tensor update(std::span<const Tensor> gradients);
  /// Clears the gradients of all parameters.
  void zero_grad();

  /// All parameters, group by group.
  NamedTensors parameters() const;
  std::size_t num_groups() const { return lr_.size(); }
  /// The learning rate of a group, a float32 tensor of shape (). ValueError for a group out of range.
  Tensor lr(std::size_t group = 0) const;
  /// Sets the learning rate of all groups, or of one.
  void set_lr(double lr);
  void set_lr(std::size_t group, double lr);

  /// The tensors that steps change: "step" (P), one count a parameter, "exp_avg.<parameter>" and so
  /// on, "master.<parameter>"; then "lr.<group>", which steps read.
  NamedTensors state_tensors() const;
  /// The same for checkpoints: "step.<parameter>" in place of "step". Shared, not copied.
  StateDict state_dict() const;
  /// As Module::load_state_dict: one ModuleError lists all that does not fit, and nothing changes.
  LoadReport load_state_dict(const StateDict& state, const LoadOptions& options = {});
  /// Copies the parameters into their master weights: call it after loading the model alone.
  void refresh_master_weights();

 protected:
  /// A group as the base class sees it.
  struct Group {
    NamedTensors parameters;
    double lr = 0;
    std::vector<std::string> state_names;  // one tensor of each for every parameter, zeros at first
  };
  /// The operands of one parameter's update; `param` is its master weight where it has one.
  struct Update {
    Tensor param;
    Tensor gradient;
    std::span<const Tensor> state;
    Tensor step;
    Tensor lr;
    Tensor grad_scale;  // undefined without clipping
    const std::string& name;
    std::size_t group;
  };

  /// ValueError without parameters, for one that is given twice or on another device than the first.
  Optimizer(std::string type, std::vector<Group> groups, const OptimizerOptions& options);
  /// Emits the op of one update: the new parameter, then the new state in the order of `state`.
  virtual std::vector<Tensor> apply_update(const Update& update) const = 0;

 private:
  struct Slot {
    std::string name;
    Tensor param;
    Tensor master;  // undefined where `param` itself is updated
    std::size_t group = 0;
    std::vector<std::string> state_names;
    std::vector<Tensor> state;
  };
  void add_slot(const std::string& name, const Tensor& param, std::size_t group,
                const std::vector<std::string>& state_names);
  void count_steps(std::span<const Tensor> gradients);
  NamedTensors slot_tensors() const;

  std::string type_;
  OptimizerOptions options_;
  std::vector<Slot> slots_;
  std::vector<Tensor> lr_;  // one a group
  Tensor steps_;            // float32 (P)
};

namespace detail {
/// `weight_decay`, or 0 for a name that one of the globs matches.
double decay_of(const std::string& name, double weight_decay,
                const std::vector<std::string>& no_decay);
/// ValueError unless `value` is finite and at least 0.
void check_rate(const char* optimizer, const char* option, double value);
}  // namespace detail

}  // namespace tenon::nn
