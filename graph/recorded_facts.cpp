#include "graph/recorded_facts.h"

#include <algorithm>

#include "tensor/interpreter.h"
#include "tensor/support/check.h"

namespace tenon {
namespace {

const char* name_of(bool training) { return training ? "training" : "eval"; }

/// The mode that the Graph must be lowered in for what the code was told; nothing: either.
std::optional<bool> needed_mode(const RecordedMode& mode) {
  return mode.mode == DropoutMode::follow ? mode.read : std::nullopt;
}

void require_mode_kept(const RecordedMode& recorded) {
  if (!recorded.training) return;
  const bool training = recorded.training->load(std::memory_order_relaxed);
  if (recorded.root) {
    const bool root = recorded.root->load(std::memory_order_relaxed);
    TENON_CHECK(training == root, StaleProgram,
                "{} is in {} mode and its root in {} mode; they were in one mode when the model "
                "was traced: put it back, or trace and build again",
                recorded.owner, name_of(training), name_of(root));
    return;
  }
  const bool then = recorded.mode == DropoutMode::train;
  TENON_CHECK(
      training == then, StaleProgram,
      "{} is in {} mode; it was in {} mode, unlike its root, when the model was traced: put "
      "it back, or trace and build again",
      recorded.owner, name_of(training), name_of(then));
}

}  // namespace

void RecordedFacts::add(RecordedHooks hooks) {
  const bool known = std::any_of(hooks_.begin(), hooks_.end(),
                                 [&](const RecordedHooks& r) { return r.hooks == hooks.hooks; });
  if (!known) hooks_.push_back(std::move(hooks));
}

void RecordedFacts::add(RecordedMode mode) {
  const auto needed = needed_mode(mode);
  const auto held = held_mode();
  const bool was_pinned = mode.read && mode.mode != DropoutMode::follow;
  const bool acts_otherwise = was_pinned && *mode.read != (mode.mode == DropoutMode::train);
  TENON_CHECK(!acts_otherwise && (!needed || !held || *needed == *held), TraceError,
              "{} asked training() and is in {} mode; what is recorded holds for {} mode: call {} "
              "on it first",
              mode.owner, name_of(*mode.read), name_of(!*mode.read),
              *mode.read ? "eval()" : "train()");
  const auto known = std::find_if(modes_.begin(), modes_.end(), [&](const RecordedMode& r) {
    return r.training == mode.training && r.root == mode.root && r.mode == mode.mode;
  });
  if (known == modes_.end()) {
    modes_.push_back(std::move(mode));
  } else if (mode.read) {
    known->read = mode.read;
  }
}

void RecordedFacts::hold_mode(bool training) {
  if (held_mode() == training) return;
  add(RecordedMode{"code that a primitive recorded", nullptr, nullptr, DropoutMode::follow,
                   training});
}

std::optional<bool> RecordedFacts::held_mode() const {
  for (const RecordedMode& mode : modes_) {
    if (const auto needed = needed_mode(mode)) return needed;
  }
  return std::nullopt;
}

void RecordedFacts::accept_hooks() {
  for (RecordedHooks& recorded : hooks_) recorded.numbers = recorded.hooks->numbers();
}

void RecordedFacts::require_current() const {
  for (const RecordedHooks& recorded : hooks_) {
    TENON_CHECK(recorded.hooks->numbers() == recorded.numbers, StaleProgram,
                "a hook of {} was added or taken off since the model was traced; trace and build "
                "again",
                recorded.owner);
  }
  for (const RecordedMode& recorded : modes_) require_mode_kept(recorded);
}

void RecordedFacts::require_mode(bool training) const {
  for (const RecordedMode& recorded : modes_) {
    const bool needed = needed_mode(recorded).value_or(training);
    TENON_CHECK(
        needed == training, StaleProgram,
        "{} asked training() while the model was traced in {} mode, and its code may do "
        "something else in {} mode: trace it again after {}, or let it call ops that follow "
        "the mode, as dropout and batch_norm do",
        recorded.owner, name_of(needed), name_of(training), training ? "train()" : "eval()");
  }
}

void RecordedFacts::require_run(bool training) const {
  require_current();
  require_mode(training);
  TENON_CHECK(!reads_grad_mode_ || detail::grad_mode(), StaleProgram,
              "the model asked grad_enabled() while it was traced, where grad mode is on, and its "
              "code may do something else under a NoGradGuard: run it with grad mode on, or call "
              "the model itself");
}

}  // namespace tenon
