// Invariants that a rewrite keeps; those of one Graph are in verify.cpp.
//   V8  inputs and outputs are as many as before, in their order, with their shapes
//   V13 sizes are made of the symbols that the original's inputs have, and no guard is new
//   V15 outputs and written values keep their dtype
//   V19 two outputs are one value, and an output is an input or a state, exactly where it was so
//   V20 the same state is written
//   V23 the same masks are drawn: sites and probabilities
//   V27 a parameter that requires a gradient goes on requiring one, a frozen one stays frozen
//   V28 state keeps its name and its tensor: a gradient is found by the parameter's original name
//   V29 an output is differentiable by the parameters and inputs that it was differentiable by, and no
//       output by others: a gradient that was defined stays so, and one that was undefined as well
//   V31 the parameters are the same ones, except fresh ones and what these stand for
//   V32 state that shares no storage with other state does not begin to: nothing is tied or untied
#include "graph/verify_rewrite.h"

#include <algorithm>
#include <bit>
#include <iterator>
#include <unordered_set>

#include "tensor/support/check.h"

namespace tenon {
namespace {

std::size_t index(std::int32_t id) { return static_cast<std::size_t>(id); }

using DrawnMask = std::pair<std::int64_t, double>;

/// The masks that forward nodes draw, sorted.
std::vector<DrawnMask> drawn_masks(const Graph& graph) {
  std::vector<DrawnMask> masks;
  for (NodeId id : graph.order()) {
    const Node& node = graph.node(id);
    if (!node.op->has(Trait::random) || node.gradient || node.recomputed) continue;
    if (const auto mask = mask_of(node)) masks.emplace_back(mask->site, mask->probability);
  }
  std::sort(masks.begin(), masks.end());
  return masks;
}

/// By value: bit k is set where a differentiable path leads to output first + k.
std::vector<std::uint64_t> differentiable_paths(const Graph& graph, std::size_t first) {
  std::vector<std::uint64_t> paths(graph.values().back() + std::size_t{1});
  const std::size_t end = std::min(graph.outputs().size(), first + 64);
  for (std::size_t i = first; i < end; ++i) {
    paths[index(graph.outputs()[i])] |= std::uint64_t{1} << (i - first);
  }
  for (std::size_t i = graph.order().size(); i-- > 0;) {
    const Node& node = graph.node(graph.order()[i]);
    if (node.op->not_differentiable) continue;
    std::uint64_t reached = 0;
    for (ValueId id : node.outputs) {
      if (is_floating(graph.value(id).spec.dtype)) reached |= paths[index(id)];
    }
    if (reached == 0) continue;
    for (ValueId id : node.inputs) {
      if (id != kNone && is_floating(graph.value(id).spec.dtype)) paths[index(id)] |= reached;
    }
  }
  return paths;
}

class RewriteVerifier {
 public:
  RewriteVerifier(const Graph& original, const Graph& rewritten, std::span<const std::string> fresh)
      : original_(original), rewritten_(rewritten), fresh_(fresh) {}

  void run() {
    check_interface();
    check_guards();
    check_aliases();
    check_states();
    check_parameters();
    check_writes();
    check_masks();
    check_paths();
  }

 private:
  template <class... A>
  [[noreturn]] static void broken(int invariant, fmt::format_string<A...> format, A&&... args) {
    throw GraphError(fmt::format("invariant V{} is broken: {}", invariant,
                                 fmt::format(format, std::forward<A>(args)...)));
  }

  bool is_fresh(const Value& value) const {
    return std::find(fresh_.begin(), fresh_.end(), value.name) != fresh_.end();
  }

  // --- inputs and outputs ------------------------------------------------------------------------

  void check_interface() const {
    const auto& inputs = original_.inputs();
    if (rewritten_.inputs().size() != inputs.size()) {
      broken(8, "the graph has {} inputs; it had {}", rewritten_.inputs().size(), inputs.size());
    }
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      const Value& before = original_.value(inputs[i]);
      const Value& now = rewritten_.value(rewritten_.inputs()[i]);
      if (now.name == before.name && now.spec == before.spec) continue;
      broken(8, "input {} is %{}, {}; it was %{}, {}", i, now.name, now.spec.to_string(),
             before.name, before.spec.to_string());
    }
    const auto& outputs = original_.outputs();
    if (rewritten_.outputs().size() != outputs.size()) {
      broken(8, "the graph has {} outputs; it had {}", rewritten_.outputs().size(), outputs.size());
    }
    for (std::size_t i = 0; i < outputs.size(); ++i) {
      const ValueId output = rewritten_.outputs()[i];
      const TensorSpec& before = original_.value(outputs[i]).spec;
      const TensorSpec& now = rewritten_.value(output).spec;
      if (now == before) continue;
      broken(now.dtype != before.dtype ? 15 : 8, "output {}, {}, is {}; it was {}", i,
             rewritten_.value_name(output), now.to_string(), before.to_string());
    }
  }

  void check_guards() const {
    if (rewritten_.guards() == original_.guards()) return;  // transactions see to it
    std::unordered_set<std::string> known;
    for (const DimGuard& guard : original_.guards()->guards) known.insert(guard.to_string());
    for (const DimGuard& guard : rewritten_.guards()->guards) {
      if (!known.contains(guard.to_string())) broken(13, "{} is a new guard", guard.to_string());
    }
  }

  void check_aliases() const {
    const auto& before = original_.outputs();
    const auto& now = rewritten_.outputs();
    for (std::size_t i = 0; i < now.size(); ++i) {
      const auto place = std::find(now.begin(), now.end(), now[i]) - now.begin();
      const auto place_before = std::find(before.begin(), before.end(), before[i]) - before.begin();
      if (place != place_before) {
        broken(19, "output {}, {}, {} output {}", i, rewritten_.value_name(now[i]),
               place < place_before ? "has become" : "is no longer", std::min(place, place_before));
      }
      const Value& value = rewritten_.value(now[i]);
      const Value& value_before = original_.value(before[i]);
      const bool is_source = value.kind != ValueKind::result;
      const bool was_source = value_before.kind != ValueKind::result;
      if (is_source != was_source || (is_source && value.name != value_before.name)) {
        broken(19, "output {} is {}; it was {}", i, rewritten_.value_name(now[i]),
               original_.value_name(before[i]));
      }
    }
  }

  // --- state ---------------------------------------------------------------------------------------

  static bool is_state(const Value& value) {
    return value.kind != ValueKind::input && value.kind != ValueKind::result;
  }

  void check_states() const {
    for (ValueId id : rewritten_.values()) {
      const Value& now = rewritten_.value(id);
      if (!is_state(now) || rewritten_.shares_value(original_, id)) continue;
      if (!original_.has_value(id)) {  // ids are never reused
        check_new_state(now);
        continue;
      }
      const Value& before = original_.value(id);
      const bool requires_grad = now.tensor.requires_grad();
      if (requires_grad != before.tensor.requires_grad()) {
        broken(27, "%{} {} a gradient, unlike before", now.name,
               requires_grad ? "requires" : "does not require");
      }
      if (now.name != before.name) broken(28, "%{} was %{}", now.name, before.name);
      if (now.tensor.impl() != before.tensor.impl()) {
        broken(28, "%{} holds another tensor than before", now.name);
      }
    }
  }

  void check_new_state(const Value& now) const {
    for (ValueId id : original_.values()) {
      const Value& before = original_.value(id);
      if (!is_state(before)) continue;
      const bool same_tensor = before.tensor.impl() == now.tensor.impl();
      if (before.name == now.name && !same_tensor) {
        broken(28, "%{} holds another tensor than before", now.name);
      }
      if (same_tensor && before.name != now.name) broken(28, "%{} was %{}", now.name, before.name);
      const bool same_storage = before.tensor.storage() == now.tensor.storage();
      if (!same_tensor && same_storage && before.tensor.numel() > 0) {
        broken(32, "%{} shares the storage of %{}", now.name, before.name);
      }
      if (same_tensor) return;
    }
    if (now.kind == ValueKind::parameter && !is_fresh(now)) {
      broken(31, "%{} is a new parameter", now.name);
    }
  }

  /// Where the rewritten Graph has this input or state, or kNone.
  ValueId counterpart(ValueId id) const {
    if (rewritten_.has_value(id)) return id;
    for (ValueId other : rewritten_.values()) {
      const Tensor& tensor = rewritten_.value(other).tensor;
      if (tensor && tensor.impl() == original_.value(id).tensor.impl()) return other;
    }
    return kNone;
  }

  void check_parameters() const {
    // What fresh parameters were asked for in place of is gone on purpose.
    if (brings_fresh()) return;
    for (ValueId id : original_.values()) {
      const Value& before = original_.value(id);
      if (before.kind != ValueKind::parameter || counterpart(id) != kNone) continue;
      broken(31, "%{} is gone: nothing reads it any more", before.name);
    }
  }

  bool brings_fresh() const {
    const auto values = rewritten_.values();
    return std::any_of(values.begin(), values.end(), [&](ValueId id) {
      return !original_.has_value(id) && rewritten_.value(id).kind == ValueKind::parameter &&
             is_fresh(rewritten_.value(id));
    });
  }

  void check_writes() const {
    const auto written = [](const Graph& graph) {
      std::vector<std::pair<std::string, DType>> names;
      for (const StateWrite& write : graph.writes()) {
        names.emplace_back(graph.value(write.state).name, graph.value(write.value).spec.dtype);
      }
      std::sort(names.begin(), names.end());
      return names;
    };
    const auto before = written(original_);
    const auto now = written(rewritten_);
    const auto missing = [](const auto& all, const std::string& state) {
      return std::none_of(all.begin(), all.end(), [&](const auto& e) { return e.first == state; });
    };
    for (const auto& [state, dtype] : before) {
      if (missing(now, state)) broken(20, "%{} is no longer written", state);
    }
    for (const auto& [state, dtype] : now) {
      if (missing(before, state)) broken(20, "%{} is written, unlike before", state);
    }
    for (std::size_t i = 0; i < now.size(); ++i) {
      if (now[i].second == before[i].second) continue;
      broken(15, "%{} is written as {}; it was as {}", now[i].first, tenon::name(now[i].second),
             tenon::name(before[i].second));
    }
  }

  // --- randomness and gradients ----------------------------------------------------------------------

  void check_masks() const {
    const std::vector<DrawnMask> before = drawn_masks(original_);
    const std::vector<DrawnMask> now = drawn_masks(rewritten_);
    std::vector<DrawnMask> missing;
    std::set_difference(before.begin(), before.end(), now.begin(), now.end(),
                        std::back_inserter(missing));
    if (!missing.empty()) {
      broken(23, "the mask of site {} with probability {} is no longer drawn", missing[0].first,
             missing[0].second);
    }
    std::set_difference(now.begin(), now.end(), before.begin(), before.end(),
                        std::back_inserter(missing));
    if (!missing.empty()) {
      broken(23, "a mask of site {} with probability {} is drawn, unlike before", missing[0].first,
             missing[0].second);
    }
  }

  /// What the original may be differentiated by.
  std::vector<ValueId> differentiable_sources() const {
    std::vector<ValueId> sources = original_.inputs();
    for (ValueId id : original_.values()) {
      if (original_.value(id).kind == ValueKind::parameter) sources.push_back(id);
    }
    return sources;
  }

  void check_paths() const {
    // A rewrite may join what leads to different outputs, so a new path counts only where there was
    // none to any output.
    const std::vector<ValueId> sources = differentiable_sources();
    std::vector<bool> had_path(sources.size());
    std::vector<bool> has_path(sources.size());
    for (std::size_t first = 0; first < original_.outputs().size(); first += 64) {
      const auto before = differentiable_paths(original_, first);
      const auto now = differentiable_paths(rewritten_, first);
      for (std::size_t i = 0; i < sources.size(); ++i) {
        const ValueId id = sources[i];
        const ValueId same = counterpart(id);
        if (same == kNone) continue;  // V31
        if (before[index(id)] != 0) had_path[i] = true;
        if (now[index(same)] != 0) has_path[i] = true;
        const std::uint64_t lost = before[index(id)] & ~now[index(same)];
        if (lost == 0) continue;
        broken(29, "output {} is no longer differentiable by {}",
               first + static_cast<std::size_t>(std::countr_zero(lost)), original_.value_name(id));
      }
    }
    for (std::size_t i = 0; i < sources.size(); ++i) {
      if (!has_path[i] || had_path[i]) continue;
      broken(29, "the results have become differentiable by {}", original_.value_name(sources[i]));
    }
  }

  const Graph& original_;
  const Graph& rewritten_;
  std::span<const std::string> fresh_;
};

}  // namespace

void verify_rewrite(const Graph& original, const Graph& rewritten,
                    std::span<const std::string> fresh) {
  RewriteVerifier(original, rewritten, fresh).run();
}

}  // namespace tenon
