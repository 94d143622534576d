// RecordedFacts: what the host had while a Graph was recorded, and the recording rests on: the
// hooks of modules and parameters, the modes of modules, and what traced code asked beside sizes,
// which are guards. A Graph carries them through every rewrite; what is lowered of it checks them
// at each run.
//
// No tracer can see a host variable of the model's own, a counter that picks a branch say: what the
// code did during the trace is what every run does.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tensor/hook_set.h"
#include "tensor/op_options.h"

namespace tenon {

/// Hooks that ran: what they did is part of the Graph.
struct RecordedHooks {
  std::string owner;  // "module 'up'", "parameter 'up.weight'"
  std::shared_ptr<const HookSet> hooks;
  std::vector<std::int64_t> numbers;  // that it had
};

/// The mode of a module that calls of the Graph follow, or that its code asked for.
struct RecordedMode {
  std::string owner;                                  // "module 'norm'"
  std::shared_ptr<const std::atomic<bool>> training;  // null: of no module of the model
  /// Whose mode it shares, the root's; null for a module with another one, which it must keep.
  std::shared_ptr<const std::atomic<bool>> root = {};
  /// What its calls were recorded with: follow is resolved when the Graph is lowered.
  DropoutMode mode = DropoutMode::follow;
  /// What its code was told, so that the Graph holds for that mode.
  std::optional<bool> read = {};
};

class RecordedFacts {
 public:
  /// Once for a set of hooks.
  void add(RecordedHooks hooks);
  /// Once for a module; what was read is added to what is known. TraceError when its code was told
  /// another mode than the Graph holds for already.
  void add(RecordedMode mode);
  /// Traced code asked for grad mode, which a trace has on.
  void add_grad_mode() { reads_grad_mode_ = true; }
  bool reads_grad_mode() const { return reads_grad_mode_; }

  /// The one mode that the Graph holds for, where code asked for it; nothing: both.
  std::optional<bool> held_mode() const;
  /// The Graph holds for that mode, because of code that is not there any more: a saved schedule's.
  void hold_mode(bool training);
  /// Takes what hooks there are now for those that were recorded.
  void accept_hooks();

  /// StaleProgram naming a hook that came or went, or a module whose mode left its root's.
  void require_current() const;
  /// StaleProgram where code asked for its mode and was told another one.
  void require_mode(bool training) const;
  /// Both, and StaleProgram where code asked for grad mode and it is off on this thread.
  void require_run(bool training) const;

 private:
  std::vector<RecordedHooks> hooks_;
  std::vector<RecordedMode> modes_;
  bool reads_grad_mode_ = false;
};

}  // namespace tenon
