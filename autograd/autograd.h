// Reverse-mode differentiation. Calls on tensors that require a gradient are recorded as they run;
// backward walks the record from the roots to the leaves, calling each op's vjp. A vjp emits ordinary
// ops, so backward runs eagerly or under the tracer, and can be differentiated itself.
//
//   Tensor loss = mse_loss(model(x), y);
//   backward(loss);                        // accumulates into parameter.grad()
//   NoGradGuard no_grad;                   // nothing is recorded while it lives
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "tensor/hook_set.h"
#include "tensor/interpreter.h"
#include "tensor/tensor.h"

namespace tenon {

struct BackwardOptions {
  /// Keeps what was saved, so that backward can run through the same record again.
  bool retain_graph = false;
  /// Records backward itself, for gradients of gradients; implies retain_graph.
  bool create_graph = false;
};

/// Adds the gradient of `root` to grad() of every leaf it was computed from. `cotangent` has root's
/// shape and dtype; without it root must have one element (ValueError) and the seed is 1.
/// ValueError when root does not require a gradient, when its record was released by an earlier
/// backward, and when a saved value was changed in place since. Where a leaf's data was replaced
/// since (Module::to, set_data_), backward reads the data that forward saw, and the gradient gets
/// the leaf's dtype and device; ValueError when its shape is another one, and under create_graph.
/// ConcurrencyError when another thread's backward is adding to a leaf that this one reaches:
/// threads that share leaves use grad().
void backward(const Tensor& root, const Tensor& cotangent = {},
              const BackwardOptions& options = {});
/// The same for several roots at once; `cotangents` is empty or has one entry (maybe undefined) each.
void backward(std::span<const Tensor> roots, std::span<const Tensor> cotangents,
              const BackwardOptions& options = {});

struct GradOptions {
  bool retain_graph = false;
  bool create_graph = false;
  /// An input that no output depends on gives an undefined tensor instead of ValueError.
  bool allow_unused = false;
  /// Off: hooks of leaves do not run; for gradients of which the user is not to know.
  bool leaf_hooks = true;
};

/// The gradients of `outputs` with respect to `inputs` (leaves or computed); no grad() changes, and
/// only what lies between the two is walked.
std::vector<Tensor> grad(std::span<const Tensor> outputs, std::span<const Tensor> inputs,
                         std::span<const Tensor> cotangents = {}, const GradOptions& options = {});

/// Called with a gradient when it is complete; a defined result replaces it.
using GradientHook = std::function<Tensor(const Tensor& gradient)>;

/// Calls `hook` with the gradient of `tensor` in each later backward: of a leaf before it is added to
/// grad(), of a computed tensor before it flows on. Hooks run in the order they were added. The
/// returned function takes the hook off. A hook that throws leaves every grad() as it was.
/// Verification runs no hooks; for training Programs see build_training.
std::function<void()> register_hook(const Tensor& tensor, GradientHook hook);
/// What the hooks of a leaf make of its gradient, as backward calls them.
Tensor apply_hooks(const Tensor& leaf, const Tensor& gradient);
/// Which hooks a leaf has; it stays the leaf's when hooks come and go.
std::shared_ptr<const HookSet> hooks_of(const Tensor& leaf);

}  // namespace tenon
