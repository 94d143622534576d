// The one entry point of every op call. `apply` hands the call to the innermost interpreter of this
// thread: eager (run the kernel now) unless a tracer or another interpreter was pushed.
#pragma once

#include <atomic>
#include <memory>
#include <span>
#include <vector>

#include "tensor/op.h"
#include "tensor/op_options.h"
#include "tensor/tensor.h"

namespace tenon {

/// A module's mode, true in training, which may outlive the module.
using ModeCell = std::shared_ptr<std::atomic<bool>>;

/// One active module call, pushed by nn::Module when it is called.
struct ModuleFrame {
  const void* module = nullptr;       // identity of the module object
  const std::string* type = nullptr;  // its class name
  bool training = true;
  bool has_hooks = false;
  /// Where the module's mode stands, also later: what a recording keeps to notice a change. May be
  /// null; valid while the call lasts.
  const ModeCell* mode = nullptr;
};

/// What runs or records op calls. A pushed interpreter sees every call of its thread.
class Interpreter {
 public:
  virtual ~Interpreter() = default;
  virtual std::vector<Tensor> apply(const Op& op, std::span<const Tensor> inputs,
                                    const Attrs& attrs) = 0;
  virtual void enter_module(const ModuleFrame&, std::span<const Tensor> /*inputs*/) {}
  virtual void exit_module(const ModuleFrame&, std::span<const Tensor> /*outputs*/) {}
  /// Makes `target` hold the values of `source`, which has its dtype, shape and device.
  virtual void assign(const Tensor& target, const Tensor& source);
  /// Whether autograd records the calls that this interpreter sees.
  virtual bool records_gradients() const { return true; }
  /// A tensor that will stand for the value `tensor` has now, whatever is assigned to it later.
  virtual Tensor capture(const Tensor& tensor) { return tensor; }
  /// The recorded module call that ops belong to now (kNoCall: none), and a way back to it: backward
  /// emits each gradient op where its forward op was.
  static constexpr std::int32_t kNoCall = -1;
  virtual std::int32_t current_call() const { return kNoCall; }
  virtual void resume_call(std::int32_t /*call*/) {}
  virtual void leave_call() {}
  /// Shapes are unknown until a match: op front ends must not ask for ranks or sizes.
  virtual bool is_pattern() const { return false; }
  /// Calls are recorded to be run later, again and again: what they draw is not drawn now, and what is
  /// done to tensors beside op calls is not in the recording.
  virtual bool is_recording() const { return is_pattern(); }
  /// See tenon::current_mode().
  virtual DropoutMode current_mode() const;
  /// The attributes that the call has from here on, its gradient's included: a recording pins a
  /// mode that follows a module to what that module does alone.
  virtual Attrs settled(const Op& /*op*/, const Attrs& attrs) { return attrs; }
  /// Code outside of ops asked for a module's mode, or for a grad mode that it did not set itself:
  /// what it did with the answer is all that a recording sees.
  virtual void on_mode_read(const ModuleFrame& /*module*/) {}
  virtual void on_grad_mode_read() {}
};

/// Makes an interpreter the innermost one of this thread for the guard's lifetime. What is recorded
/// numbers its random calls from 0; a call around it goes on with its own.
class InterpreterGuard {
 public:
  explicit InterpreterGuard(Interpreter& interpreter);
  ~InterpreterGuard();
  InterpreterGuard(const InterpreterGuard&) = delete;
  InterpreterGuard& operator=(const InterpreterGuard&) = delete;
};

/// Marks a module call for the guard's lifetime. The outermost one starts a new forward: the sites
/// of random calls count from 0 again, and the generator's forward number advances, in training
/// mode at once, in evaluation with the first call that draws: what draws nothing leaves the
/// generator alone.
class ModuleScope {
 public:
  ModuleScope(const ModuleFrame& frame, std::span<const Tensor> inputs);
  ~ModuleScope();
  ModuleScope(const ModuleScope&) = delete;
  ModuleScope& operator=(const ModuleScope&) = delete;
  /// Reports the outputs of the call; call it once, before the scope ends normally.
  void finish(std::span<const Tensor> outputs);

 private:
  ModuleFrame frame_;
};

/// Where an op was called: what its masks and its mode depend on.
struct CallSite {
  bool in_module = false;
  ModuleFrame frame;
  RandomState random;
  std::int32_t call = Interpreter::kNoCall;
};
CallSite current_call_site();

/// Ops called during the guard's lifetime act as if called at `site`: the same mode, the same dropout
/// masks, the same place in a recording. The site must outlive the guard.
class CallSiteScope {
 public:
  explicit CallSiteScope(const CallSite& site);
  ~CallSiteScope();
  CallSiteScope(const CallSiteScope&) = delete;
  CallSiteScope& operator=(const CallSiteScope&) = delete;

 private:
  const CallSite* outer_;
};

/// What a call that follows its module's mode does now: train or eval, or follow where calls are
/// recorded to be run in either mode.
DropoutMode current_mode();
/// A call's mode, with `follow` replaced by that.
inline DropoutMode resolved(DropoutMode mode) {
  return mode == DropoutMode::follow ? current_mode() : mode;
}

/// Whether calls are recorded for backward on this thread; on unless a NoGradGuard is alive. Asked
/// while a model is traced, outside of guards of its own, the Graph holds where grad mode is on.
bool grad_enabled();
namespace detail {
/// The same for the library, whose question is no fact of a model.
bool grad_mode();
}  // namespace detail
/// Sets grad mode for its lifetime.
class GradModeGuard {
 public:
  explicit GradModeGuard(bool enabled);
  ~GradModeGuard();
  GradModeGuard(const GradModeGuard&) = delete;
  GradModeGuard& operator=(const GradModeGuard&) = delete;

 private:
  bool outer_;
};
class NoGradGuard : public GradModeGuard {
 public:
  NoGradGuard() : GradModeGuard(false) {}
};

/// The innermost interpreter of this thread.
Interpreter& current_interpreter();
/// The innermost module call of this thread, or null.
const ModuleFrame* current_module();
/// Whether random calls are numbered by a module call or a recording; else a generator numbers
/// them.
bool counts_random_sites();
/// The site of the next random call, dropout or random tensor, in call order: of the module call or
/// the recording; outside of both, of the default generator. `draws`: false for a dropout in
/// evaluation.
std::int64_t next_dropout_site(bool draws = true);

/// During its lifetime random calls of this thread are numbered from `first`; then as before. For
/// what is recorded beside, or after, a module call.
class RandomSiteScope {
 public:
  explicit RandomSiteScope(std::int64_t first);
  ~RandomSiteScope();
  RandomSiteScope(const RandomSiteScope&) = delete;
  RandomSiteScope& operator=(const RandomSiteScope&) = delete;

 private:
  std::int64_t outer_;
};

/// Calls an op. Checks the number of operands, then asks the innermost interpreter; autograd records
/// the call when an operand requires a gradient and grad mode is on.
std::vector<Tensor> apply(const Op& op, std::span<const Tensor> inputs, const Attrs& attrs = {});
/// The same for an op with one output.
Tensor apply1(const Op& op, std::initializer_list<Tensor> inputs, const Attrs& attrs = {});

/// Runs a call on the CPU or GPU now, whatever interpreter is innermost.
std::vector<Tensor> apply_eager(const Op& op, std::span<const Tensor> inputs, const Attrs& attrs);

/// Output specs of `decompose` without running anything: inference of every op in it.
std::vector<TensorSpec> infer_by_decomposition(const Op& op,
                                               std::span<const TensorSpec* const> inputs,
                                               const Attrs& attrs);

}  // namespace tenon
