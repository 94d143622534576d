#include "schedule/trials/reference_run.h"

#include <array>
#include <cmath>
#include <unordered_map>
#include <utility>

#include "autograd/autograd.h"
#include "graph/evaluate_attrs.h"
#include "tensor/interpreter.h"
#include "tensor/ops/attributes.h"
#include "tensor/parallel.h"
#include "tensor/support/check.h"

namespace tenon::detail {
namespace {

/// Of sensitivity(): far above float64's roundings, far below what changes a result's nature.
constexpr double kNoise = 0x1p-36;
constexpr int kNoisyRuns = 3;

bool is_whole(double number) { return std::rint(number) == number; }

bool all_whole(const Tensor& tensor) {
  const TensorView view = tensor.view_of_data();
  const auto* numbers = static_cast<const double*>(view.data);
  for (std::int64_t i = 0; i < view.numel(); ++i) {
    if (!is_whole(numbers[i])) return false;
  }
  return true;
}

/// Calls f(number, noise) for each number of a contiguous float64 tensor; noise is from -kNoise to
/// kNoise.
template <class F>
void with_noise(const Tensor& tensor, std::uint64_t stream, const F& f) {
  const TensorView view = tensor.view_of_data();
  auto* numbers = static_cast<double*>(view.data);
  constexpr std::int64_t kGrain = 1 << 16;
  parallel_ranges(view.numel(), kGrain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      std::uint64_t bits = (stream + static_cast<std::uint64_t>(i)) * 0x9e3779b97f4a7c15U;
      bits = (bits ^ (bits >> 30)) * 0xbf58476d1ce4e5b9U;
      bits ^= bits >> 27;
      f(numbers[i], (static_cast<double>(bits >> 11) * 0x1p-52 - 1) * kNoise);
    }
  });
}

/// Moves each number by noise relative to itself.
void add_noise(const Tensor& tensor, std::uint64_t stream, bool only_fractions) {
  with_noise(tensor, stream, [&](double& number, double noise) {
    const bool moves = std::isfinite(number) && (!only_fractions || !is_whole(number));
    if (moves) number += number * noise;
  });
}

void scale_by_noise(const Tensor& tensor, std::uint64_t stream) {
  with_noise(tensor, stream, [](double& number, double noise) {
    number = std::isfinite(number) ? number * noise : 0;
  });
}

}  // namespace

/// Runs calls in float64 now; noisy ones repeat the decisions of the run before.
class ReferenceRun::Evaluator final : public Interpreter {
 public:
  enum class Kind : std::uint8_t { plain, deciding, noisy };

  std::vector<Tensor> apply(const Op& op, std::span<const Tensor> inputs,
                            const Attrs& attrs) override {
    if (kind == Kind::plain) return apply_eager(op, inputs, attrs);
    if (op.decompose != nullptr && &op != decomposing_) {  // its own terms count too
      const Op* outer = std::exchange(decomposing_, &op);
      std::vector<Tensor> outputs = op.decompose(inputs, attrs);
      decomposing_ = outer;
      return outputs;
    }
    std::vector<Tensor> read(inputs.begin(), inputs.end());
    if (kind == Kind::noisy) {
      for (Tensor& input : read) input = read_again(input);
    }
    std::vector<Tensor> outputs = apply_eager(op, read, attrs);
    const bool moves = op.view != nullptr || op.has(Trait::storage_dtypes);
    for (Tensor& output : outputs) {
      if (!is_floating(output.dtype())) {
        if (kind == Kind::deciding) decisions.push_back(output);
        if (kind == Kind::noisy) output = decisions.at(next_decision++);
        continue;
      }
      if (kind == Kind::noisy) disturb(output, read, moves);
    }
    if (kind == Kind::noisy && op.flops != nullptr) note_terms(op, inputs, attrs, outputs);
    return outputs;
  }

  /// An input of the run.
  Tensor take(const Tensor& input) {
    if (kind != Kind::noisy || !is_floating(input.dtype())) return input;
    if (all_whole(input)) {
      exact_.push_back(input);
      return input;
    }
    Tensor moved = input.clone();
    add_noise(moved, next_stream(), true);
    return moved;
  }

  Kind kind = Kind::plain;
  std::vector<Tensor> decisions;  // bools and integers, in the order of the calls
  std::size_t next_decision = 0;
  std::uint64_t run = 0;

 private:
  bool is_exact(const Tensor& tensor) const {
    if (!tensor || !is_floating(tensor.dtype())) return true;
    for (const Tensor& exact : exact_) {
      if (exact.storage() == tensor.storage()) return true;
    }
    return false;
  }

  void disturb(Tensor& output, std::span<const Tensor> inputs, bool moves) {
    bool exact = true;
    for (const Tensor& input : inputs) exact = exact && is_exact(input);
    const bool aliases = !inputs.empty() && inputs[0] && output.storage() == inputs[0].storage();
    if (aliases) return;
    if (output.dtype() != DType::float64 || !output.is_contiguous()) return;
    if (exact && all_whole(output)) {
      exact_.push_back(output);
    } else if (!moves) {
      add_noise(output, next_stream(), false);
    }
  }

  /// A product as another kernel may sum it up: each read of it is off by the size of its terms.
  Tensor read_again(const Tensor& input) {
    if (!input || input.dtype() != DType::float64) return input;
    const auto terms = terms_.find(input.storage().get());
    if (terms == terms_.end()) return input;
    Tensor moved = Tensor(terms->second.storage(), DType::float64, input.layout()).clone();
    scale_by_noise(moved, next_stream());
    return apply_eager(get_op("add"), std::array{input, moved}, BinaryAttrs{}).at(0);
  }

  /// Σ|terms| of the elements of a product's results.
  void note_terms(const Op& op, std::span<const Tensor> inputs, const Attrs& attrs,
                  const std::vector<Tensor>& outputs) {
    std::vector<Tensor> sizes;
    for (const Tensor& input : inputs) {
      const bool is_number = input && is_floating(input.dtype());
      sizes.push_back(is_number ? apply_eager(get_op("abs"), std::array{input}, {}).at(0) : input);
    }
    const std::vector<Tensor> terms = apply_eager(op, sizes, attrs);
    for (std::size_t i = 0; i < outputs.size(); ++i) {
      const bool fits = outputs[i].dtype() == DType::float64 && outputs[i].is_contiguous() &&
                        outputs[i].layout() == terms[i].layout() &&
                        outputs[i].storage()->bytes() == terms[i].storage()->bytes();
      if (!fits) continue;
      terms_.insert_or_assign(outputs[i].storage().get(), terms[i]);
      products_.push_back(outputs[i]);  // its storage is not another's meanwhile
    }
  }

  std::uint64_t next_stream() { return (run << 56) + (++streams_ << 36); }

  const Op* decomposing_ = nullptr;
  std::vector<Tensor> exact_;
  std::unordered_map<const Storage*, Tensor> terms_;
  std::vector<Tensor> products_;
  std::uint64_t streams_ = 0;
};

ReferenceRun::ReferenceRun(const Graph& graph, std::vector<bool> differentiable)
    : graph_(graph), differentiable_(std::move(differentiable)) {
  for (const NodeId id : graph.order()) {
    attrs_.push_back(converted(graph.node(id).attrs, DType::float64, kCpu));
  }
}

RunResults64 ReferenceRun::run(const std::vector<Tensor>& inputs,
                               const std::vector<Tensor>& cotangents, const RunMode& mode) const {
  Evaluator evaluator;
  return run(inputs, cotangents, mode, evaluator);
}

RunResults64 ReferenceRun::run(const std::vector<Tensor>& inputs,
                               const std::vector<Tensor>& cotangents, const RunMode& mode,
                               Evaluator& evaluator) const {
  std::unordered_map<ValueId, Tensor> tensors;
  std::vector<Tensor> wanted;
  std::vector<std::size_t> wanted_inputs;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    Tensor input = is_floating(inputs[i].dtype()) ? inputs[i].to(DType::float64) : inputs[i];
    input = evaluator.take(input.contiguous());
    if (mode.gradients && differentiable_[i]) {
      input = input.detach();
      input.requires_grad_();
      wanted.push_back(input);
      wanted_inputs.push_back(i);
    }
    tensors[graph_.inputs()[i]] = input;
  }
  CallSite site;
  site.in_module = true;
  site.frame.training = mode.training;
  site.random = mode.random;
  const CallSiteScope scope(site);
  const InterpreterGuard guard(evaluator);
  const GradModeGuard grad_mode(mode.gradients);
  std::unordered_map<ValueId, std::size_t> left;  // reads to come
  for (const NodeId id : graph_.order()) {
    for (const ValueId operand : graph_.node(id).inputs) ++left[operand];
  }
  for (const ValueId id : graph_.outputs()) ++left[id];
  for (std::size_t n = 0; n < graph_.order().size(); ++n) {
    const Node& node = graph_.node(graph_.order()[n]);
    std::vector<Tensor> operands;
    for (const ValueId id : node.inputs)
      operands.push_back(id == kNone ? Tensor() : tensors.at(id));
    const std::vector<Tensor> outputs = tenon::apply(*node.op, operands, attrs_[n]);
    for (const ValueId id : node.inputs) {
      if (id != kNone && --left[id] == 0) tensors.erase(id);
    }
    for (std::size_t k = 0; k < node.outputs.size(); ++k) {
      if (left.contains(node.outputs[k])) tensors[node.outputs[k]] = outputs[k];
    }
  }
  RunResults64 results;
  std::vector<Tensor> roots;
  std::vector<Tensor> weights;
  for (std::size_t i = 0; i < graph_.outputs().size(); ++i) {
    const Tensor& output = tensors.at(graph_.outputs()[i]);
    if (mode.gradients && cotangents[i] && output.requires_grad()) {
      roots.push_back(output);
      weights.push_back(cotangents[i].to(DType::float64));
    }
    results.outputs.push_back(output.detach().contiguous());
  }
  results.gradients.resize(inputs.size());
  if (roots.empty()) return results;
  const auto gradients = grad(roots, wanted, weights, {.allow_unused = true, .leaf_hooks = false});
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    if (gradients[i]) results.gradients[wanted_inputs[i]] = gradients[i].detach().contiguous();
  }
  return results;
}

std::vector<std::vector<double>> ReferenceRun::sensitivity(const std::vector<Tensor>& inputs,
                                                           const std::vector<Tensor>& cotangents,
                                                           const RunMode& mode) const {
  Evaluator deciding;
  deciding.kind = Evaluator::Kind::deciding;
  const RunResults64 exact = run(inputs, cotangents, mode, deciding);
  const auto tensors = [](const RunResults64& results) {
    std::vector<Tensor> all = results.outputs;
    all.insert(all.end(), results.gradients.begin(), results.gradients.end());
    return all;
  };
  std::vector<std::vector<double>> moved;
  for (std::uint64_t number = 1; number <= kNoisyRuns; ++number) {
    Evaluator noisy;
    noisy.kind = Evaluator::Kind::noisy;
    noisy.decisions = deciding.decisions;
    noisy.run = number;
    const std::vector<Tensor> shaken = tensors(run(inputs, cotangents, mode, noisy));
    const std::vector<Tensor> still = tensors(exact);
    moved.resize(still.size());
    for (std::size_t r = 0; r < still.size(); ++r) {
      if (!still[r] || !is_floating(still[r].dtype())) continue;
      const auto a = still[r].to_doubles();
      const auto b = shaken[r].to_doubles();
      moved[r].resize(a.size());
      for (std::size_t i = 0; i < a.size(); ++i) {
        const double by = std::abs(a[i] - b[i]) / kNoise;
        if (std::isfinite(by)) moved[r][i] = std::max(moved[r][i], by);
      }
    }
  }
  return moved;
}

}  // namespace tenon::detail
