// Invariants of one Graph; V8, V13 and V32 have a second half in verify_rewrite.cpp, with V15, V19, V20,
// V23, V27-V29 and V31, and V18, V30 and V40 are the matcher's.
//   V1  a node's op is registered and has a fitting number of operands
//   V2  every operand is defined before its use: state and inputs, or an earlier node
//   V3  every result is defined by exactly one node, at the output index it says
//   V4  uses and operands agree: each operand is listed once as a use, and no other use is listed
//   V5  every id refers to something of this Graph that exists
//   V6  node names are unique among the nodes seen together; input and state names are unique
//   V7  the order holds every node once, at its position; with V2, the Graph has no cycle
//   V8  every graph output exists, and there is at least one
//   V9  every node belongs to a module call, and calls form a tree rooted at call 0
//   V10 no state is without a use
//   V11 inferring a node again gives the specs it has
//   V12 ranks are within the limit, and byte sizes within 64 bits
//   V13 sizes are made of the symbols that the inputs have
//   V14 sizes are not negative
//   V16 a node with an effect runs once, forward; only random ops have a mask's site
//   V17 only state is written, each once, with a value of its dtype and shape; reads come before
//   V21 a node that draws a mask has a site, not negative, and a probability from 0 to 1
//   V22 masks have distinct sites; gradient and recomputed nodes replay a forward node's mask, with its
//       probability, where the forward node is needed at all
//   V24 a recomputed node is in a region, and runs a forward node of it again, where that is needed at
//       all: of an op that the region has it has the attributes
//   V25 what a gradient node reads exists, and is made before it
//   V26 an op's saved operands and outputs exist, and it has a gradient or says that it has none
//   V32 no tensor is two states
#include "graph/verify.h"

#include <algorithm>
#include <bit>
#include <map>
#include <tuple>

#include "tensor/support/check.h"

namespace tenon {
namespace {

std::size_t index(std::int32_t id) { return static_cast<std::size_t>(id); }

/// A name and what it must be unique in: a call for nodes, kNone for inputs and state.
struct Named {
  std::size_t hash = 0;
  CallId scope = kNone;
  const std::string* name = nullptr;

  Named(CallId in, const std::string& text)
      : hash(std::hash<std::string>()(text) ^ static_cast<std::size_t>(in)),
        scope(in),
        name(&text) {}
  bool operator<(const Named& other) const {
    if (hash != other.hash || scope != other.scope) {
      return std::tie(hash, scope) < std::tie(other.hash, other.scope);
    }
    return *name < *other.name;
  }
  bool operator==(const Named& other) const {
    return hash == other.hash && scope == other.scope && *name == *other.name;
  }
};

class Verifier {
 public:
  Verifier(const Graph& graph, const Graph* known) : graph_(graph), known_(known) {}

  void run() {
    values_ = graph_.values();
    const std::size_t bound = values_.empty() ? 0 : index(values_.back()) + 1;
    needed_.resize(bound);
    defined_.resize(bound);
    known_values_.resize(bound);
    check_calls();
    check_outputs();
    check_values();
    for (NodeId id : graph_.order()) check_node(id);
    check_uses();
    check_names();
    check_masks();
    check_recomputed();
  }

 private:
  template <class... A>
  [[noreturn]] static void broken(int invariant, fmt::format_string<A...> format, A&&... args) {
    throw GraphError(fmt::format("invariant V{} is broken: {}", invariant,
                                 fmt::format(format, std::forward<A>(args)...)));
  }

  void check_calls() const {
    if (graph_.calls().empty()) broken(9, "there is no root call");
    CallId next = 0;
    for (const ModuleCall& call : graph_.calls()) {
      if (call.id != next++) broken(9, "call '{}' has another call's id", call.path);
      const bool root = call.id == 0;
      if (root != (call.parent == kNone)) broken(9, "call '{}' is not under the root", call.path);
      if (call.parent >= call.id) broken(9, "call '{}' precedes its parent", call.path);
      for (const auto* ids : {&call.inputs, &call.outputs}) {
        for (ValueId id : *ids) {
          if (id != kNone && !graph_.has_value(id)) {
            broken(5, "call '{}' takes or returns value {}, which does not exist", call.path, id);
          }
        }
      }
    }
  }

  void check_outputs() {
    if (graph_.outputs().empty()) broken(8, "the graph has no output");
    for (ValueId id : graph_.outputs()) {
      if (!graph_.has_value(id)) broken(8, "output {} of the graph does not exist", id);
      needed_[index(id)] = true;
    }
    std::vector<bool> written(needed_.size());
    for (const StateWrite& write : graph_.writes()) {
      if (!graph_.has_value(write.state) || !graph_.has_value(write.value)) {
        broken(17, "a write of value {} into {} names what does not exist", write.value,
               write.state);
      }
      const Value& state = graph_.value(write.state);
      const TensorSpec& value = graph_.value(write.value).spec;
      if (!state.tensor) {
        broken(17, "{} is written, but is no state", graph_.value_name(write.state));
      }
      if (written[index(write.state)]) {
        broken(17, "{} is written twice", graph_.value_name(write.state));
      }
      if (!(state.spec == value)) {
        broken(17, "{} is {}, written with {}", graph_.value_name(write.state),
               state.spec.to_string(), value.to_string());
      }
      written[index(write.state)] = true;
      needed_[index(write.state)] = needed_[index(write.value)] = true;
    }
  }

  void check_values() {
    for (ValueId id : graph_.inputs()) {
      if (!graph_.has_value(id)) broken(5, "input {} of the graph does not exist", id);
      for (const Dim& size : graph_.value(id).spec.shape) size.collect_symbols(symbols_);
    }
    std::sort(symbols_.begin(), symbols_.end());
    std::vector<std::pair<const TensorImpl*, ValueId>> tensors;
    for (ValueId id : values_) {
      const Value& value = graph_.value(id);
      known_values_[index(id)] = is_known_value(value);
      if (!known_values_[index(id)]) check_sizes(value);
      if (value.kind == ValueKind::result) continue;
      defined_[index(id)] = true;
      names_.emplace_back(kNone, value.name);
      if (value.kind == ValueKind::input) continue;
      if (!value.tensor.is_eager()) broken(5, "state %{} holds no tensor", value.name);
      if (value.uses.empty() && !needed_[index(id)]) broken(10, "state %{} has no use", value.name);
      tensors.emplace_back(value.tensor.impl().get(), id);
    }
    std::sort(tensors.begin(), tensors.end());
    for (std::size_t i = 1; i < tensors.size(); ++i) {
      if (tensors[i].first != tensors[i - 1].first) continue;
      broken(32, "{} and {} are one tensor", graph_.value_name(tensors[i - 1].second),
             graph_.value_name(tensors[i].second));
    }
  }

  void check_sizes(const Value& value) const {
    const auto name = [&] {
      return value.kind == ValueKind::result ? fmt::format("value {}", value.id) : "%" + value.name;
    };
    const Shape& shape = value.spec.shape;
    if (shape.rank() > kMaxRank) broken(12, "{} has rank {}", name(), shape.rank());
    auto bytes = static_cast<std::int64_t>(size_of(value.spec.dtype));
    bool overflow = false;
    bool empty = false;
    std::vector<std::int64_t> symbols;
    for (const Dim& size : shape) {
      const std::int64_t number = detail::hint_of(size);
      if (number < 0) broken(14, "{} has a negative size, {}", name(), value.spec.to_string());
      empty |= number == 0;
      overflow |= __builtin_mul_overflow(bytes, std::max<std::int64_t>(number, 1), &bytes);
      size.collect_symbols(symbols);
    }
    if (overflow && !empty) broken(12, "{} has too many bytes, {}", name(), value.spec.to_string());
    for (std::int64_t symbol : symbols) {
      if (std::binary_search(symbols_.begin(), symbols_.end(), symbol)) continue;
      broken(13, "{} has a size that no input has, {}", name(), value.spec.to_string());
    }
  }

  void check_node(NodeId id) {
    if (!graph_.has_node(id)) broken(5, "the order lists node {}, which does not exist", id);
    if (graph_.position(id) != first_slot_.size()) {
      broken(7, "the order lists {} where it is not", graph_.node(id).name);
    }
    const Node& node = graph_.node(id);
    if (node.call < 0 || index(node.call) >= graph_.calls().size()) {
      broken(9, "node {} belongs to no call", node.name);
    }
    names_.emplace_back(graph_.visible_call(id), node.name);
    const bool known = is_known_node(node);
    if (!known) check_op(node);
    first_slot_.push_back(slots_);
    slots_ += node.inputs.size();
    for (std::size_t i = 0; i < node.inputs.size(); ++i) {
      const ValueId input = node.inputs[i];
      if (input == kNone) continue;
      ++operands_;
      if (is_defined(input)) continue;
      if (!graph_.has_value(input)) {
        broken(node.gradient ? 25 : 5, "operand {} of {} does not exist", i, graph_.full_name(id));
      }
      broken(node.gradient ? 25 : 2, "operand {} of {} is defined later", i, graph_.full_name(id));
    }
    if (!known) check_specs(node);
    for (std::size_t i = 0; i < node.outputs.size(); ++i) {
      const ValueId output = node.outputs[i];
      if (!graph_.has_value(output)) {
        broken(5, "output {} of {} does not exist", i, graph_.full_name(id));
      }
      const Value& value = graph_.value(output);
      if (value.kind != ValueKind::result || value.producer != id ||
          value.output_index != static_cast<int>(i) || defined_[index(output)]) {
        broken(3, "output {} of {} is not its own", i, graph_.full_name(id));
      }
      defined_[index(output)] = true;
    }
  }

  /// What a node and its op must have by themselves.
  void check_op(const Node& node) const {
    const auto name = [&] { return graph_.full_name(node.id); };
    if (node.op == nullptr) broken(1, "{} has no op", name());
    const Op& op = *node.op;
    const std::size_t fixed = op.operands.size();
    const bool variadic = fixed > 0 && op.operands.back().variadic;
    if (variadic ? node.inputs.size() < fixed : node.inputs.size() != fixed) {
      broken(1, "{} has {} operands", name(), node.inputs.size());
    }
    if (std::bit_width(op.saved_inputs) > node.inputs.size() ||
        std::bit_width(op.saved_outputs) > node.outputs.size()) {
      broken(26, "{} saves for its gradient what '{}' does not have", name(), op.name);
    }
    if (op.vjp == nullptr && op.decompose == nullptr && !op.not_differentiable) {
      broken(26, "{} has no gradient, and '{}' does not say so", name(), op.name);
    }
    if (op.has(Trait::effect) && (node.gradient || node.recomputed || node.region != kNone)) {
      broken(16, "{} has an effect and would run in backward", name());
    }
    for (std::size_t i = 0; i < node.attrs.size(); ++i) {
      if (node.attrs.kind(i) != FieldKind::site) continue;
      if (!op.has(Trait::random)) broken(16, "{} has a site, but draws nothing", name());
    }
    if (find_op(op.name) != &op) broken(1, "{} calls '{}', which is no op", name(), op.name);
    const auto mask = mask_of(node);
    if (!mask) return;
    if (mask->site < 0) broken(21, "{} draws a mask without a site", name());
    if (!(mask->probability >= 0 && mask->probability <= 1)) {
      broken(21, "{} drops with probability {}", name(), mask->probability);
    }
  }

  void check_specs(const Node& node) const {
    std::vector<const TensorSpec*> specs;
    for (ValueId id : node.inputs) specs.push_back(id == kNone ? nullptr : &graph_.value(id).spec);
    const std::size_t guards = graph_.guards()->guards.size();
    const std::vector<TensorSpec> inferred = infer(*node.op, specs, node.attrs);
    const auto name = [&] { return graph_.full_name(node.id); };
    if (graph_.guards()->guards.size() != guards) {
      broken(11, "{} needs a new guard, {}", name(), graph_.guards()->guards.back().to_string());
    }
    if (inferred.size() != node.outputs.size()) {
      broken(11, "{} has {} outputs, inferred {}", name(), node.outputs.size(), inferred.size());
    }
    for (std::size_t i = 0; i < inferred.size(); ++i) {
      if (!graph_.has_value(node.outputs[i])) continue;  // V5
      const TensorSpec& stored = graph_.value(node.outputs[i]).spec;
      if (!(inferred[i] == stored) && !known_equal(inferred[i], stored)) {
        broken(11, "{} is {}, inferred {}", name(), stored.to_string(), inferred[i].to_string());
      }
    }
  }

  /// The guards of the trace say that the sizes are the same, though written otherwise.
  bool known_equal(const TensorSpec& a, const TensorSpec& b) const {
    const bool alike =
        a.dtype == b.dtype && a.device == b.device && a.shape.hints() == b.shape.hints();
    const std::size_t guards = graph_.guards()->guards.size();
    for (int axis = 0; alike && axis < a.shape.rank(); ++axis) unify(a.shape[axis], b.shape[axis]);
    return alike && graph_.guards()->guards.size() == guards;
  }

  void check_uses() const {
    std::vector<bool> listed(slots_);
    std::size_t uses = 0;
    for (ValueId id : values_) {
      const Value& value = graph_.value(id);
      if (!defined_[index(id)]) broken(3, "value {} is defined by no node", id);
      for (const Use& use : value.uses) {
        if (!reads(use, id)) broken(4, "{} lists a use that is not there", graph_.value_name(id));
        const std::size_t slot = first_slot_[graph_.position(use.node)] + index(use.operand);
        if (listed[slot]) {
          broken(4, "{} lists its use by {} twice", graph_.value_name(id),
                 graph_.full_name(use.node));
        }
        listed[slot] = true;
      }
      uses += value.uses.size();
    }
    if (uses != operands_) broken(4, "{} operands are not listed as uses", operands_ - uses);
  }

  bool reads(const Use& use, ValueId id) const {
    if (!graph_.has_node(use.node) || use.operand < 0) return false;
    const std::size_t position = graph_.position(use.node);
    if (position >= first_slot_.size() || graph_.order()[position] != use.node) return false;
    const Node& node = graph_.node(use.node);
    return index(use.operand) < node.inputs.size() && node.inputs[index(use.operand)] == id;
  }

  void check_names() {
    std::sort(names_.begin(), names_.end());
    const auto same = std::adjacent_find(names_.begin(), names_.end());
    if (same == names_.end()) return;
    if (same->scope == kNone) broken(6, "two inputs or states are called %{}", *same->name);
    const std::string& path = graph_.call(same->scope).path;
    broken(6, "two nodes are called {}{}{}", path, path.empty() ? "" : ".", *same->name);
  }

  void check_masks() const {
    std::vector<std::pair<std::int64_t, NodeId>> drawn;
    std::vector<std::pair<std::int64_t, NodeId>> replayed;
    for (NodeId id : graph_.order()) {
      const Node& node = graph_.node(id);
      const auto mask = mask_of(node);
      if (!mask) continue;
      (node.gradient || node.recomputed ? replayed : drawn).emplace_back(mask->site, id);
    }
    std::sort(drawn.begin(), drawn.end());
    for (std::size_t i = 1; i < drawn.size(); ++i) {
      if (drawn[i].first != drawn[i - 1].first) continue;
      broken(22, "{} draws the mask of {}", graph_.full_name(drawn[i].second),
             graph_.full_name(drawn[i - 1].second));
    }
    for (const auto& [site, id] : replayed) {
      const auto forward = std::lower_bound(drawn.begin(), drawn.end(), std::pair{site, NodeId{}});
      if (forward == drawn.end() || forward->first != site) continue;
      const double probability = mask_of(graph_.node(forward->second))->probability;
      if (mask_of(graph_.node(id))->probability == probability) continue;
      broken(22, "{} replays the mask of {} with another probability", graph_.full_name(id),
             graph_.full_name(forward->second));
    }
  }

  void check_recomputed() const {
    std::map<std::int32_t, std::vector<const Node*>> regions;
    std::vector<const Node*> recomputed;
    for (NodeId id : graph_.order()) {
      const Node& node = graph_.node(id);
      if (node.recomputed) {
        recomputed.push_back(&node);
      } else if (node.region != kNone && !node.gradient) {
        regions[node.region].push_back(&node);
      }
    }
    for (const Node* again : recomputed) {
      if (again->region == kNone) {
        broken(24, "{} runs again, but is in no region", graph_.full_name(again->id));
      }
      bool same_op = false;
      bool same_call = false;
      for (const Node* first : regions[again->region]) {
        if (first->op != again->op || first->call != again->call) continue;
        same_op = true;
        same_call = same_call || first->attrs == again->attrs;
      }
      if (same_op && !same_call) {
        broken(24, "{} runs no node of region {} again", graph_.full_name(again->id),
               again->region);
      }
    }
  }

  bool is_defined(ValueId id) const {
    return id >= 0 && index(id) < defined_.size() && defined_[index(id)];
  }

  /// It has the spec that it had when `known` was verified.
  bool is_known_value(const Value& value) const {
    if (known_ == nullptr) return false;
    return graph_.shares_value(*known_, value.id) ||
           (known_->has_value(value.id) && known_->value(value.id).spec == value.spec);
  }

  bool is_known_node(const Node& node) const {
    if (known_ == nullptr || !graph_.shares_node(*known_, node.id)) return false;
    const auto is_known = [&](ValueId id) {
      return id == kNone ||
             (id >= 0 && index(id) < known_values_.size() && known_values_[index(id)]);
    };
    return std::all_of(node.inputs.begin(), node.inputs.end(), is_known) &&
           std::all_of(node.outputs.begin(), node.outputs.end(), is_known);
  }

  const Graph& graph_;
  const Graph* known_;
  std::vector<ValueId> values_;
  std::vector<bool> needed_;             // returned or written; by value
  std::vector<bool> defined_;            // so far; by value
  std::vector<bool> known_values_;       // of the spec that `known` has; by value
  std::vector<std::int64_t> symbols_;    // of the inputs' sizes, sorted
  std::vector<std::size_t> first_slot_;  // by position: the node's first operand among all
  std::size_t slots_ = 0;
  std::size_t operands_ = 0;
  std::vector<Named> names_;
};

}  // namespace

void verify(const Graph& graph) { Verifier(graph, nullptr).run(); }

void verify(const Graph& graph, const Graph& known) { Verifier(graph, &known).run(); }

}  // namespace tenon
