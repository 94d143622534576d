// The record of one call: which op, where its operands came from, and what its vjp will read.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "autograd/autograd.h"
#include "tensor/hook_set.h"

namespace tenon::autograd {

class TapeNode;

/// Hooks on the gradient of one tensor, by number.
struct HookList final : AutogradRecord {
  std::vector<std::pair<std::int64_t, GradientHook>> hooks;
  HookSet numbers;
};

/// A value kept for backward: a handle of the tape's own, so that set_data_ on the tensor does not
/// reach it, and the version its storage had. An output of the node itself is kept without its link
/// back to the node, which would be a cycle.
struct SavedTensor {
  Tensor tensor;
  std::uint64_t version = 0;
};

/// Where a gradient flows to: an output of an earlier node, or a leaf.
struct Edge {
  std::shared_ptr<TapeNode> node;
  int output = 0;
  std::shared_ptr<TensorImpl> leaf;
  bool needed() const { return node || leaf; }
};

class TapeNode final : public AutogradRecord, public std::enable_shared_from_this<TapeNode> {
 public:
  ~TapeNode() override;

  std::uint64_t sequence = 0;  // later calls have larger numbers
  const Op* op = nullptr;
  Attrs attrs;
  CallSite site;
  std::vector<Edge> edges;                        // per operand
  std::vector<std::optional<TensorSpec>> inputs;  // absent operands have none
  std::vector<TensorSpec> outputs;
  std::vector<SavedTensor> saved_inputs;  // undefined where not saved
  std::vector<SavedTensor> saved_outputs;
  std::vector<std::shared_ptr<HookList>> hooks;  // per output; null: none
  bool released = false;

  /// Forgets the saved values.
  void release();
};

/// What the hooks make of a gradient of this spec. ShapeError when one returns a misfit.
Tensor run_hooks(const AutogradRecord* record, Tensor gradient, const TensorSpec& spec);

/// The hooks of a leaf, or null.
std::shared_ptr<AutogradRecord> hooks_if_any(const TensorImpl& leaf);

/// The edge that the gradient of `tensor` flows along; not needed() when it requires none.
Edge edge_of(const Tensor& tensor);

}  // namespace tenon::autograd
