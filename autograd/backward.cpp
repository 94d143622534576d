// The walk from roots to leaves. A node runs once all gradients of its outputs are summed: nodes are
// taken in descending order of recording, and every user of an output was recorded after it.
#include <algorithm>
#include <map>
#include <unordered_map>
#include <unordered_set>

#include "autograd/detail/tape.h"
#include "tensor/functional.h"
#include "tensor/support/check.h"

namespace tenon {
namespace autograd {
namespace {

/// What a vjp reads of a recorded call; checks that saved values are still what they were.
class RecordedCall final : public VjpContext {
 public:
  RecordedCall(const std::shared_ptr<TapeNode>& node, std::vector<Tensor>& cotangents,
               std::vector<bool> needed)
      : node_(*node), shared_(node), cotangents_(cotangents), needed_(std::move(needed)) {}

  const Op& op() const override { return *node_.op; }
  const Attrs& attrs() const override { return node_.attrs; }
  int num_inputs() const override { return static_cast<int>(node_.inputs.size()); }
  bool has(int i) const override { return i < num_inputs() && node_.inputs[at(i)].has_value(); }
  bool needs(int i) const override { return i < num_inputs() && needed_[at(i)]; }
  const TensorSpec& input_spec(int i) const override { return *node_.inputs.at(at(i)); }
  const TensorSpec& output_spec(int i) const override { return node_.outputs.at(at(i)); }

  Tensor input(int i) const override {
    if (!has(i)) return {};
    const SavedTensor& saved = node_.saved_inputs.at(at(i));
    TENON_INTERNAL(saved.tensor, "[{}] its vjp reads operand {}, which it does not save",
                   node_.op->name, i);
    const std::string& name = node_.op->operands[std::min(at(i), last_operand())].name;
    require_unchanged(saved, "operand", name);
    const std::shared_ptr<TensorImpl>& leaf = node_.edges[at(i)].leaf;
    if (!leaf || !saved.tensor.is_eager()) return saved.tensor;
    // Gradients of gradients know a leaf by its identity.
    if (holds_the_data_of(*leaf, saved.tensor)) return Tensor(leaf);
    TENON_CHECK(
        !detail::grad_mode(), ValueError,
        "backward of [{}] with create_graph needs its operand '{}', whose data was replaced "
        "since forward (by to(), set_data_() or packing); run forward again",
        node_.op->name, name);
    return saved.tensor;
  }
  Tensor output(int i) const override {
    const SavedTensor& saved = node_.saved_outputs.at(at(i));
    TENON_INTERNAL(saved.tensor, "[{}] its vjp reads output {}, which it does not save",
                   node_.op->name, i);
    require_unchanged(saved, "output", std::to_string(i));
    if (!detail::grad_mode()) return saved.tensor;
    auto impl = std::make_shared<TensorImpl>(*saved.tensor.impl());
    impl->requires_grad = true;
    impl->producer = shared_;
    impl->output_index = i;
    impl->version = saved.version;
    return Tensor(std::move(impl));
  }
  Tensor cotangent(int i) const override { return cotangents_.at(at(i)); }
  Tensor cotangent_or_zeros(int i) const override {
    Tensor& cotangent = cotangents_.at(at(i));
    if (!cotangent) {
      const TensorSpec& spec = output_spec(i);
      cotangent = expand(full({}, 0, {spec.dtype, spec.device}), spec.shape);
    }
    return cotangent;
  }

 private:
  static std::size_t at(int i) { return static_cast<std::size_t>(i); }
  std::size_t last_operand() const { return node_.op->operands.size() - 1; }
  static bool holds_the_data_of(const TensorImpl& leaf, const Tensor& saved) {
    return leaf.storage == saved.storage() && leaf.layout == saved.layout() &&
           leaf.spec.dtype == saved.dtype();
  }
  void require_unchanged(const SavedTensor& saved, const char* what,
                         const std::string& which) const {
    if (!saved.tensor.is_eager()) return;
    TENON_CHECK(saved.tensor.storage()->version() == saved.version, ValueError,
                "backward of [{}] needs its {} '{}', which was changed in place since forward; "
                "change a clone() instead",
                node_.op->name, what, which);
  }

  const TapeNode& node_;
  const std::shared_ptr<TapeNode>& shared_;
  std::vector<Tensor>& cotangents_;
  const std::vector<bool> needed_;  // per operand
};

class Walk {
 public:
  Walk(const GradOptions& options, std::span<const Tensor> inputs)
      : options_(options), accumulates_(inputs.empty()) {
    for (const Tensor& input : inputs) {
      wanted_.push_back(edge_of(input));
      ends_.insert(end_of(wanted_.back()));
    }
    results_.resize(inputs.size());
  }

  void seed(const Tensor& root, const Tensor& cotangent) { add(edge_of(root), cotangent); }

  void run() {
    const GradModeGuard mode(options_.create_graph);
    if (!accumulates_) find_paths();
    while (!pending_.empty()) {
      const auto last = std::prev(pending_.end());
      const std::shared_ptr<TapeNode> node = last->second.node;
      std::vector<Tensor> cotangents = std::move(last->second.cotangents);
      pending_.erase(last);
      visit(node, cotangents);
    }
    finish_leaves();
  }

  std::vector<Tensor> take_results() { return std::move(results_); }

 private:
  struct Pending {
    std::shared_ptr<TapeNode> node;
    std::vector<Tensor> cotangents;
  };

  static const void* end_of(const Edge& edge) {
    return edge.node ? static_cast<const void*>(edge.node.get()) : edge.leaf.get();
  }

  /// Whether a gradient that flows along `edge` reaches something wanted.
  bool leads(const Edge& edge) const {
    if (accumulates_ || !edge.needed()) return edge.needed();
    return ends_.contains(end_of(edge)) || on_path_.contains(edge.node.get());
  }

  /// Finds the calls between the roots and the wanted tensors: no other vjp runs.
  void find_paths() {
    std::map<std::uint64_t, const TapeNode*> reached;  // in the order of recording
    std::vector<const TapeNode*> open;
    const auto reach = [&](const TapeNode* node) {
      if (node && reached.emplace(node->sequence, node).second) open.push_back(node);
    };
    for (const auto& [sequence, entry] : pending_) reach(entry.node.get());
    while (!open.empty()) {
      const TapeNode* node = open.back();
      open.pop_back();
      for (const Edge& edge : node->edges) reach(edge.node.get());
    }
    for (const auto& [sequence, node] : reached) {
      if (std::any_of(node->edges.begin(), node->edges.end(),
                      [&](const Edge& edge) { return leads(edge); })) {
        on_path_.insert(node);
      }
    }
  }

  void add(const Edge& edge, const Tensor& gradient) {
    if (edge.leaf) {
      auto [found, inserted] = leaves_.try_emplace(edge.leaf.get(), leaf_order_.size());
      if (inserted) {
        leaf_order_.push_back({edge.leaf, {}});
        if (accumulates_)
          uses_.emplace_back(edge.leaf->grad_in_use, "[backward] a leaf's gradient");
      }
      accumulate(leaf_order_[found->second].second, as_now(*edge.leaf, gradient));
      return;
    }
    Pending& entry = pending_[edge.node->sequence];
    entry.node = edge.node;
    entry.cotangents.resize(edge.node->outputs.size());
    accumulate(entry.cotangents[static_cast<std::size_t>(edge.output)], gradient);
  }

  /// The gradient in the leaf's dtype and on its device, which to() may have changed since forward.
  static Tensor as_now(const TensorImpl& leaf, const Tensor& gradient) {
    if (!leaf.storage || !gradient.is_eager()) return gradient;
    TENON_CHECK(gradient.layout().sizes == leaf.layout.sizes, ValueError,
                "backward: a gradient {} for a leaf that is {} now: its data was replaced since "
                "forward; run forward again",
                gradient.spec().to_string(), leaf.spec.to_string());
    return gradient.to(leaf.spec.dtype).to(leaf.spec.device);
  }

  static void accumulate(Tensor& sum, const Tensor& gradient) {
    sum = sum ? tenon::add(sum, gradient) : gradient;
  }

  void visit(const std::shared_ptr<TapeNode>& node, std::vector<Tensor>& cotangents) {
    const CallSiteScope site(node->site);
    for (std::size_t i = 0; i < cotangents.size(); ++i) {
      if (!cotangents[i]) continue;
      const AutogradRecord* hooks = i < node->hooks.size() ? node->hooks[i].get() : nullptr;
      cotangents[i] = run_hooks(hooks, cotangents[i], node->outputs[i]);
    }
    collect(node, cotangents);
    if (accumulates_ || on_path_.contains(node.get())) pull_back(node, cotangents);
  }

  /// Runs the vjp of a call and hands its results on.
  void pull_back(const std::shared_ptr<TapeNode>& node, std::vector<Tensor>& cotangents) {
    TENON_CHECK(!node->released, ValueError,
                "backward through [{}] a second time, after its saved values were released; give "
                "the first backward retain_graph",
                node->op->name);
    TENON_CHECK(node->op->vjp != nullptr, ValueError, "[{}] has no gradient", node->op->name);
    std::vector<bool> needed;
    for (const Edge& edge : node->edges) needed.push_back(leads(edge));
    const RecordedCall call(node, cotangents, needed);
    const std::vector<Tensor> gradients = node->op->vjp(call);
    for (std::size_t i = 0; i < node->edges.size() && i < gradients.size(); ++i) {
      if (!gradients[i] || !needed[i]) continue;
      const TensorSpec& spec = *node->inputs[i];
      const bool fits =
          gradients[i].dtype() == spec.dtype &&
          (gradients[i].is_eager() ? gradients[i].shape() == spec.shape
                                   : gradients[i].shape().rank() == spec.shape.rank());
      TENON_INTERNAL(fits, "[{}] gave a gradient {} for operand {}, which is {}", node->op->name,
                     gradients[i].spec().to_string(), i, spec.to_string());
      add(node->edges[i], gradients[i]);
    }
    if (!options_.retain_graph && !options_.create_graph) node->release();
  }

  /// Gradients of computed tensors that the caller asked for.
  void collect(const std::shared_ptr<TapeNode>& node, const std::vector<Tensor>& cotangents) {
    for (std::size_t i = 0; i < wanted_.size(); ++i) {
      if (wanted_[i].node == node) {
        results_[i] = cotangents[static_cast<std::size_t>(wanted_[i].output)];
      }
    }
  }

  /// A gradient that can be changed in place: nobody else holds it, and it is contiguous, so that
  /// optimizers read it linearly.
  static Tensor own(Tensor& gradient) {
    if (!gradient.is_eager()) {
      return gradient.impl().use_count() == 1
                 ? gradient
                 : Tensor(std::make_shared<TensorImpl>(*gradient.impl()));
    }
    const bool alone = gradient.impl().use_count() == 1 && gradient.storage().use_count() == 1;
    return alone && gradient.is_contiguous() ? gradient : gradient.clone();
  }

  void finish_leaves() {
    for (auto& [leaf, gradient] : leaf_order_) {
      if (options_.leaf_hooks)
        gradient = run_hooks(hooks_if_any(*leaf).get(), gradient, leaf->spec);
      if (!accumulates_) continue;
      gradient = leaf->grad ? tenon::add(Tensor(leaf->grad), gradient) : own(gradient);
    }
    // Only now, when nothing throws any more: a hook that does leaves every grad() as it was.
    for (auto& [leaf, gradient] : leaf_order_) {
      if (accumulates_) leaf->grad = gradient.impl();
      for (std::size_t i = 0; i < wanted_.size(); ++i) {
        if (wanted_[i].leaf == leaf) results_[i] = gradient;
      }
    }
  }

  const GradOptions options_;
  const bool accumulates_;                       // into all leaves; else only wanted_ counts
  std::unordered_set<const void*> ends_;         // nodes and leaves of wanted_
  std::unordered_set<const TapeNode*> on_path_;  // between the roots and wanted_
  std::map<std::uint64_t, Pending> pending_;
  std::unordered_map<const TensorImpl*, std::size_t> leaves_;
  std::vector<std::pair<std::shared_ptr<TensorImpl>, Tensor>> leaf_order_;
  std::vector<ExclusiveUse::Scope> uses_;  // of the gradients that it adds to
  std::vector<Edge> wanted_;
  std::vector<Tensor> results_;
};

void seed_all(Walk& walk, std::span<const Tensor> roots, std::span<const Tensor> cotangents) {
  TENON_CHECK(cotangents.empty() || cotangents.size() == roots.size(), ValueError,
              "backward: {} roots and {} cotangents", roots.size(), cotangents.size());
  for (std::size_t i = 0; i < roots.size(); ++i) {
    TENON_CHECK(
        roots[i].requires_grad(), ValueError,
        "backward from a tensor that requires no gradient: it was not computed from one that "
        "does, or grad mode was off");
    Tensor cotangent = cotangents.empty() ? Tensor() : cotangents[i];
    if (!cotangent) {
      TENON_CHECK(roots[i].numel() == 1, ValueError,
                  "backward from a tensor of shape {} needs a cotangent of that shape; without one "
                  "only a single element can be a root",
                  roots[i].shape().to_string());
      cotangent = full({}, 1, {roots[i].dtype(), roots[i].device()});
      // A constant where it can be one: an op that only scales by it may leave that out.
      if (roots[i].dim() > 0) cotangent = expand(cotangent, roots[i].shape());
    }
    TENON_CHECK(cotangent.shape().same_as(roots[i].shape()) &&
                    cotangent.dtype() == roots[i].dtype() &&
                    cotangent.device() == roots[i].device(),
                ShapeError, "backward: a cotangent {} for a root {}", cotangent.spec().to_string(),
                roots[i].spec().to_string());
    walk.seed(roots[i], cotangent);
  }
}

}  // namespace

Tensor run_hooks(const AutogradRecord* record, Tensor gradient, const TensorSpec& spec) {
  if (record == nullptr) return gradient;
  const auto hooks = static_cast<const HookList*>(record)->hooks;  // a hook may remove itself
  for (const auto& [id, hook] : hooks) {
    Tensor replaced = hook(gradient);
    if (!replaced) continue;
    TENON_CHECK(replaced.shape().same_as(spec.shape) && replaced.dtype() == spec.dtype, ShapeError,
                "a gradient hook returned {} for a gradient {}", replaced.spec().to_string(),
                spec.to_string());
    gradient = std::move(replaced);
  }
  return gradient;
}

}  // namespace autograd

void backward(const Tensor& root, const Tensor& cotangent, const BackwardOptions& options) {
  backward(std::span(&root, 1), std::span(&cotangent, 1), options);
}

void backward(std::span<const Tensor> roots, std::span<const Tensor> cotangents,
              const BackwardOptions& options) {
  autograd::Walk walk({options.retain_graph, options.create_graph}, {});
  autograd::seed_all(walk, roots, cotangents);
  walk.run();
}

std::vector<Tensor> grad(std::span<const Tensor> outputs, std::span<const Tensor> inputs,
                         std::span<const Tensor> cotangents, const GradOptions& options) {
  TENON_CHECK(!inputs.empty(), ValueError, "grad: no inputs to differentiate by");
  for (const Tensor& input : inputs) {
    TENON_CHECK(input.requires_grad(), ValueError, "grad: an input requires no gradient");
  }
  autograd::Walk walk(options, inputs);
  autograd::seed_all(walk, outputs, cotangents);
  walk.run();
  std::vector<Tensor> results = walk.take_results();
  for (std::size_t i = 0; i < results.size(); ++i) {
    TENON_CHECK(results[i] || options.allow_unused, ValueError,
                "grad: no output depends on input {}; allow_unused gives an undefined gradient", i);
  }
  return results;
}

}  // namespace tenon
