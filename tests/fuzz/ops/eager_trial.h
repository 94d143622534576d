// One program run eagerly, step by step beside the reference: what trial.cpp compares Programs with.
#pragma once

#include <cstddef>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "nn/module.h"
#include "tests/fuzz/ops/trial.h"

namespace tenon::op_fuzz {

struct Mismatch {
  std::string text;
};
[[noreturn]] void fail(const std::string& text);
/// Fails unless `difference` is "".
void require(const std::string& difference, const std::string& where);
/// "ShapeError or ValueError"
std::string names_of(unsigned refusals);

using Registers = std::map<int, Tensor>;

/// What came of a call: the tensor, or how it was refused.
struct Attempt {
  Tensor result;
  unsigned refusal = kNothing;
  std::string message;
};
Attempt attempt(const Step& step, const Registers& registers, const TrialOptions& options,
                bool traced);

/// A module whose forward is a program's body.
class Body : public nn::Module {
 public:
  using Forward = std::function<std::vector<Tensor>(const std::vector<Tensor>&)>;
  std::vector<Tensor> forward(const std::vector<Tensor>& inputs) { return function(inputs); }
  void adopt(const std::string& name, Role role, const Tensor& tensor) {
    if (role == Role::buffer) register_buffer(name, tensor);
    if (role == Role::parameter) register_parameter(name, tensor);
  }
  Forward function;
};

/// Values, and what another execution's may differ by where errors are followed.
struct Seen {
  Numbers values;
  Numbers errors;
};

/// What a run of the module gave, and how its state was afterwards.
struct Observation {
  std::vector<Seen> outputs;
  std::vector<Seen> state;  // of the registers from before the call
  std::vector<Check> gradients;
};

/// Runs of the module in training mode, then as many in evaluation.
inline constexpr int kRunsOfMode = 2;

class EagerTrial {
 public:
  EagerTrial(const Program& program, const TrialOptions& options, bool follows_errors = false);
  void run_eagerly();
  const std::vector<Observation>& seen() const { return seen_; }

 protected:
  void seed();
  void check_step(const Step& step);
  /// False behind a call that was refused though it need not be.
  static bool has_operands(const Step& step, const Registers& registers);
  void compare(const Step& step, const Outcome& outcome, const Tensor& result);
  /// The tensor that the check is about.
  Tensor tensor_of(const Check& check, const Outcome& outcome, const Tensor& result) const;
  /// Whether the result shares memory with an operand is part of what a call means.
  void check_memory(const Step& step, const Outcome& outcome, const Tensor& result) const;
  /// Every register holds what it should: nothing changed that no call was to change.
  void check_all(const std::string& when) const;
  std::vector<Tensor> check_body();
  Seen seen_of(int reg) const;
  void observe(const std::vector<Tensor>& outputs);
  void ask_for_gradients(Registers& registers) const;
  /// Registers whose gradients are asked for, each tensor once.
  std::vector<int> leaves(const Registers& registers) const;
  /// Small numbers, exact in every dtype.
  static Numbers cotangent_values(std::size_t output, std::int64_t count);
  Tensor cotangent(std::size_t output, const Array& array) const;
  void check_gradients(Observation& seen);
  /// Without values where no gradient flows.
  static Check gradient_check(const HandlePtr& leaf, const Gradients& wanted);
  static void compare_gradient(const Tensor& found, const Check& wanted, const std::string& where);
  /// The first register that has the same tensor.
  static int canonical(const Registers& registers, int reg);
  Role role_of(const Registers& registers, int reg) const;
  /// Registers that the module gets as inputs: each tensor once.
  std::vector<int> input_registers(const Registers& registers) const;
  std::vector<Tensor> inputs_of(const Registers& registers) const;
  nn::Child<Body> make_module(const Registers& registers) const;
  /// The registers from before the module, made again.
  Registers prepare() const;

  const Program& program_;
  const TrialOptions& options_;
  TrialResult result_;
  Reference reference_;
  Registers tensors_;
  std::map<const Step*, unsigned> refusals_;  // how each call came out eagerly
  std::vector<Observation> seen_;             // training runs, then those in evaluation
  std::vector<std::size_t> differentiated_;   // outputs that gradients flow from
  bool ambiguous_ = false;  // a refusal was permitted: eager and traced calls may differ in it
  std::string doing_;
};

}  // namespace tenon::op_fuzz
