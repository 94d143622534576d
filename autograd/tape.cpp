// Recording: an op call runs under the innermost interpreter and leaves a TapeNode on its outputs.
#include <algorithm>
#include <atomic>
#include <mutex>

#include "autograd/detail/tape.h"
#include "tensor/support/check.h"
#include "tensor/support/new_handle.h"
#include "tensor/support/seams.h"

namespace tenon::autograd {
namespace {

std::atomic<std::uint64_t> next_sequence{1};

std::uint64_t version_of(const Tensor& tensor) {
  return tensor.is_eager() ? tensor.storage()->version() : 0;
}

/// A handle on the same value that knows nothing of the tape.
Tensor without_record(const Tensor& tensor) {
  auto impl = detail::new_handle(*tensor.impl());
  impl->requires_grad = false;
  impl->producer = nullptr;
  return Tensor(std::move(impl));
}

void require_current(const Op& op, const Tensor& input) {
  const TensorImpl& impl = *input.impl();
  TENON_CHECK(
      !impl.producer || !impl.storage || impl.storage->version() == impl.version, ValueError,
      "[{}] an operand was changed in place through another tensor that shares its storage, "
      "so its gradient is no longer known",
      op.name);
}

/// A handle of the tape's own: the operand itself may be changed in place and then lead back to the
/// node that keeps it, a cycle, or be given other data.
Tensor kept(const Tensor& operand) { return Tensor(detail::new_handle(*operand.impl())); }

std::shared_ptr<TapeNode> make_node(const Op& op, std::span<const Tensor> inputs,
                                    const Attrs& attrs, Interpreter& inner) {
  auto node = std::make_shared<TapeNode>();
  node->sequence = next_sequence.fetch_add(1, std::memory_order_relaxed);
  node->op = &op;
  node->attrs = attrs;
  node->site = current_call_site();
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    node->edges.push_back(edge_of(inputs[i]));
    node->inputs.push_back(inputs[i] ? std::optional(inputs[i].spec()) : std::nullopt);
    node->saved_inputs.emplace_back();
    if (inputs[i] && ((op.saved_inputs >> std::min<std::size_t>(i, 31)) & 1U) != 0) {
      node->saved_inputs.back() = {kept(inner.capture(inputs[i])), version_of(inputs[i])};
    }
  }
  return node;
}

/// Held while a leaf gets its list; what is in it only a thread that changes the leaf may touch.
std::mutex hook_lists;

/// A leaf's own; made when first asked for.
std::shared_ptr<HookList> hook_list(const Tensor& leaf) {
  const std::lock_guard lock(hook_lists);
  auto& slot = leaf.impl()->hooks;
  if (!slot) slot = std::make_shared<HookList>();
  return std::static_pointer_cast<HookList>(slot);
}

}  // namespace

Edge edge_of(const Tensor& tensor) {
  Edge edge;
  if (!tensor.requires_grad()) return edge;
  const TensorImpl& impl = *tensor.impl();
  if (impl.producer) {
    edge.node = std::static_pointer_cast<TapeNode>(impl.producer);
    edge.output = impl.output_index;
  } else {
    edge.leaf = tensor.impl();
  }
  return edge;
}

std::shared_ptr<AutogradRecord> hooks_if_any(const TensorImpl& leaf) {
  const std::lock_guard lock(hook_lists);
  return leaf.hooks;
}

void TapeNode::release() {
  released = true;
  saved_inputs.clear();
  saved_outputs.clear();
}

TapeNode::~TapeNode() {
  // A long chain would otherwise be destroyed by recursion, a stack frame per call: what leads to
  // earlier nodes is handed to the outermost destructor, which drops it piece by piece.
  thread_local std::vector<std::shared_ptr<void>>* outermost = nullptr;
  std::vector<std::shared_ptr<void>> own;
  std::vector<std::shared_ptr<void>>& pending = outermost != nullptr ? *outermost : own;
  for (Edge& edge : edges) {
    if (edge.node) pending.push_back(std::move(edge.node));
  }
  for (auto* saved : {&saved_inputs, &saved_outputs}) {
    for (SavedTensor& entry : *saved) {
      if (entry.tensor) pending.push_back(entry.tensor.impl());
    }
    saved->clear();
  }
  if (outermost != nullptr) return;
  outermost = &pending;
  while (!pending.empty()) {
    const std::shared_ptr<void> next = std::move(pending.back());
    pending.pop_back();
  }
  outermost = nullptr;
}

std::vector<Tensor> record(const Op& op, std::span<const Tensor> inputs, const Attrs& given,
                           Interpreter& inner) {
  const Attrs attrs = inner.settled(op, given);
  if (!op.recorded_as.empty()) {
    std::vector<Tensor> outputs = record(get_op(op.recorded_as), inputs, attrs, inner);
    outputs.resize(1);
    return outputs;
  }
  for (const Tensor& input : inputs) {
    if (input) require_current(op, input);
  }
  if (op.vjp == nullptr && op.decompose != nullptr) return op.decompose(inputs, attrs);
  // Operands are captured before the call: it may be the one that changes them.
  const std::shared_ptr<TapeNode> node = make_node(op, inputs, attrs, inner);
  std::vector<Tensor> outputs;
  {
    const NoGradGuard no_grad;
    outputs = inner.apply(op, inputs, attrs);
  }
  const bool is_identity = std::any_of(inputs.begin(), inputs.end(), [&](const Tensor& input) {
    return input && outputs.size() == 1 && outputs[0].is_same(input);
  });
  if (is_identity) return outputs;
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    node->outputs.push_back(outputs[i].spec());
    node->saved_outputs.emplace_back();
    if (((op.saved_outputs >> std::min<std::size_t>(i, 31)) & 1U) != 0) {
      node->saved_outputs.back() = {without_record(inner.capture(outputs[i])),
                                    version_of(outputs[i])};
    }
    if (!is_floating(outputs[i].dtype())) continue;
    TensorImpl& impl = *outputs[i].impl();
    impl.requires_grad = true;
    impl.producer = node;
    impl.output_index = static_cast<int>(i);
    impl.is_recorded_view = op.view != nullptr;
    impl.version = version_of(outputs[i]);
  }
  return outputs;
}

}  // namespace tenon::autograd

namespace tenon {

std::function<void()> register_hook(const Tensor& tensor, GradientHook hook) {
  TENON_CHECK(tensor.requires_grad(), ValueError,
              "register_hook on a tensor that requires no gradient");
  std::shared_ptr<autograd::HookList> list;
  if (const autograd::Edge edge = autograd::edge_of(tensor); edge.node) {
    auto& hooks = edge.node->hooks;
    hooks.resize(std::max(hooks.size(), static_cast<std::size_t>(edge.output) + 1));
    auto& slot = hooks[static_cast<std::size_t>(edge.output)];
    if (!slot) slot = std::make_shared<autograd::HookList>();
    list = slot;
  } else {
    list = autograd::hook_list(tensor);
  }
  const std::int64_t id = list->numbers.add();
  list->hooks.emplace_back(id, std::move(hook));
  return [weak = std::weak_ptr(list), id] {
    if (const auto alive = weak.lock()) {
      std::erase_if(alive->hooks, [id](const auto& entry) { return entry.first == id; });
      alive->numbers.remove(id);
    }
  };
}

Tensor apply_hooks(const Tensor& leaf, const Tensor& gradient) {
  return autograd::run_hooks(autograd::hooks_if_any(*leaf.impl()).get(), gradient, leaf.spec());
}

std::shared_ptr<const HookSet> hooks_of(const Tensor& leaf) {
  const std::shared_ptr<autograd::HookList> list = autograd::hook_list(leaf);
  return {list, &list->numbers};
}

}  // namespace tenon
