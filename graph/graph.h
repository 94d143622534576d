// Graph: a recorded computation as data. Nodes call ops on values; values know their uses; module
// calls annotate nodes with where in the model they come from. A Graph holds no results (a Program
// does) and is functional: a node never changes its operands.
//
// Ids are stable: they survive copies and rewrites, and are never reused within one Graph.
#pragma once

#include <cstdint>
#include <iosfwd>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "graph/recorded_facts.h"
#include "tensor/op.h"
#include "tensor/tensor.h"

namespace tenon {

using NodeId = std::int32_t;
using ValueId = std::int32_t;
using CallId = std::int32_t;
/// An absent optional operand, or no node.
inline constexpr std::int32_t kNone = -1;

/// What a node is bound to that runs as the plainer ops it consists of, whatever kernels there are.
inline constexpr const char* kDecomposition = "decomposition";

enum class ValueKind : std::uint8_t {
  input,      ///< given at each run
  parameter,  ///< state: a module's parameter
  buffer,     ///< state: a module's buffer
  constant,   ///< state: a tensor that the model made or captured while it was traced
  result,     ///< an output of a node
};

struct Use {
  NodeId node = kNone;
  int operand = 0;
  friend bool operator==(const Use&, const Use&) = default;
};

struct Value {
  ValueId id = kNone;
  ValueKind kind = ValueKind::result;
  TensorSpec spec;
  std::string name;         // inputs and state; a result is named after its node
  Tensor tensor;            // state: the handle it shares with the module
  NodeId producer = kNone;  // results
  int output_index = 0;
  std::vector<Use> uses;
};

struct Node {
  NodeId id = kNone;
  const Op* op = nullptr;
  Attrs attrs;
  std::vector<ValueId> inputs;
  std::vector<ValueId> outputs;
  std::string name;  // unique within its visible call
  CallId call = kNone;
  bool gradient = false;  // emitted by backward; replays the mask of its forward node
  std::string kernel;     // the implementation bound to it; "" for the heuristic's choice
  /// Nodes of one region are run again in backward instead of being kept for it; kNone: kept.
  std::int32_t region = kNone;
  bool recomputed = false;  // such a second run: replays the mask of its forward node
};

/// A state that holds another value after a run: what changed it in place, made functional.
struct StateWrite {
  ValueId state = kNone;
  ValueId value = kNone;
};

/// What a random node draws in training: a dropout mask, or a whole tensor (probability 1).
struct Mask {
  std::int64_t site = kNone;
  double probability = 0;
};
/// Nothing for a node that draws nothing: no random op, or its probability is 0.
std::optional<Mask> mask_of(const Node& node);
inline bool draws_mask(const Node& node) { return mask_of(node).has_value(); }

/// One call of a module while the model was traced. Call 0 is the root's.
struct ModuleCall {
  CallId id = 0;
  CallId parent = kNone;
  std::string path;   // "self_attn.q_proj"; "" for the root
  std::string type;   // "Linear"
  std::string repr;   // how the module prints itself, children excluded: "in_features=…"
  bool leaf = false;  // a library layer: matched and shown as one node of its parent
  bool has_hooks = false;
  /// How calls that follow the module's mode act: as the root does, or as this module does alone.
  DropoutMode mode = DropoutMode::follow;
  bool flattened = false;  // its descendants are seen as its own nodes
  bool closed = false;     // not opened by a flattened ancestor
  std::vector<ValueId> inputs;
  std::vector<ValueId> outputs;

  /// The last component of the path.
  std::string name() const { return path.substr(path.rfind('.') + 1); }
};

class Graph {
 public:
  Graph();

  // --- reading ---------------------------------------------------------------------------------
  /// Node ids in program order: every operand is defined before its use.
  const std::vector<NodeId>& order() const { return order_; }
  bool has_node(NodeId id) const;
  bool has_value(ValueId id) const;
  const Node& node(NodeId id) const;
  const Value& value(ValueId id) const;
  /// Ids of the values that still exist.
  std::vector<ValueId> values() const;
  const std::vector<ValueId>& inputs() const { return inputs_; }
  const std::vector<ValueId>& outputs() const { return outputs_; }
  /// What a run writes back, after every read of the state.
  const std::vector<StateWrite>& writes() const { return writes_; }
  const std::vector<ModuleCall>& calls() const { return calls_; }
  const ModuleCall& call(CallId id) const { return calls_.at(static_cast<std::size_t>(id)); }
  /// A run returns the value or writes it to a state, or it is a state that a run writes to.
  bool is_output(ValueId id) const;
  /// The node's place in order().
  std::size_t position(NodeId id) const;
  /// Whether this entry is the very one of `other`, a copy of this Graph or its origin.
  bool shares_node(const Graph& other, NodeId id) const;
  bool shares_value(const Graph& other, ValueId id) const;
  const std::shared_ptr<GuardList>& guards() const { return guards_; }
  /// What this Graph rests on beside sizes.
  const RecordedFacts& facts() const { return facts_; }
  RecordedFacts& mutable_facts() { return facts_; }

  /// The call whose nodes patterns and listings see this node among: the innermost one, except that
  /// a leaf with one node shows it in its parent and a flattened call shows all below it.
  CallId visible_call(NodeId id) const;
  /// "self_attn.q_proj": the visible call's path and the node's name.
  std::string full_name(NodeId id) const;
  /// "%self_attn.q_proj", "%hidden_states", "%self_attn.q_proj.weight".
  std::string value_name(ValueId id) const;
  /// `ancestor` is `id` or encloses it.
  bool is_within(CallId id, CallId ancestor) const;
  /// Every node whose call is `id` or inside it, in program order.
  std::vector<NodeId> nodes_within(CallId id) const;

  // --- building --------------------------------------------------------------------------------
  ValueId add_input(std::string name, TensorSpec spec);
  ValueId add_state(ValueKind kind, std::string name, Tensor tensor);
  /// Adds a node at `position` of the order (default: the end) and infers its outputs. Throws what
  /// inference throws, leaving the Graph as it was.
  NodeId add_node(const Op& op, std::vector<ValueId> inputs, Attrs attrs, CallId call,
                  std::size_t position = SIZE_MAX);
  CallId add_call(ModuleCall call);
  ModuleCall& mutable_call(CallId id) { return calls_.at(static_cast<std::size_t>(id)); }
  void set_outputs(std::vector<ValueId> outputs) { outputs_ = std::move(outputs); }
  /// After a run `state` holds `value`; replaces an earlier write of the same state.
  void set_write(ValueId state, ValueId value);
  void drop_writes() { writes_.clear(); }
  /// `state` keeps its value.
  void drop_write(ValueId state);
  /// Notes on modules, parameters and buffers: by whole name, then by key. Nothing here reads them.
  using Annotations = std::map<std::string, std::map<std::string, std::string>>;
  const Annotations& annotations() const { return annotations_; }
  void annotate(const std::string& name, const std::string& key, std::string value) {
    annotations_[name][key] = std::move(value);
  }
  /// Gives this Graph a guard list of its own, with the guards that are there now.
  void own_guards() { guards_ = std::make_shared<GuardList>(*guards_); }
  void set_region(NodeId id, std::int32_t region) { mutable_node(id).region = region; }
  /// A number that no node has as its region.
  std::int32_t unused_region() const;
  /// Backward computes what leaves this region again too, though the forward pass reads it outside.
  void discard_results(std::int32_t region) { discarding_regions_.insert(region); }
  bool discards_results(std::int32_t region) const { return discarding_regions_.contains(region); }
  const std::set<std::int32_t>& discarding_regions() const { return discarding_regions_; }
  void bind_kernel(NodeId id, std::string kernel) { mutable_node(id).kernel = std::move(kernel); }
  void mark_recomputed(NodeId id) { mutable_node(id).recomputed = true; }
  /// Marks a node as emitted by backward.
  void mark_gradient(NodeId id) { mutable_node(id).gradient = true; }
  /// The inputs, module calls, facts and guards of this Graph, without nodes, state or outputs.
  Graph without_nodes() const;
  /// Names a node `base`, or `base_<n>` where that is taken among the nodes seen with it.
  void rename(NodeId id, const std::string& base);
  /// Names a node exactly so; the verifier reports a name that is taken.
  void set_name(NodeId id, std::string name) { mutable_node(id).name = std::move(name); }
  /// Makes the names of nodes that are now seen together unique, in the given order.
  void rename_apart(const std::vector<NodeId>& ids);
  /// Replaces one attribute field of a node; the field must not affect its outputs' specs.
  void set_attribute(NodeId id, std::size_t field, const AttrValue& value);
  /// Makes a path unique among calls and prefixes of states by a suffix "_<n>", counting from 0.
  std::string unique_call_path(const std::string& parent_path, const std::string& type) const;

  /// The node reads `value` in place of its operand `operand`.
  void set_operand(NodeId id, int operand, ValueId value);
  /// Every use of `from`, outputs and module calls included, becomes a use of `to`.
  void replace_all_uses(ValueId from, ValueId to);
  /// What replace_all_uses did, oldest first: rewritten Graphs know what stands for what.
  const std::vector<std::pair<ValueId, ValueId>>& replaced_values() const {
    return replaced_values_;
  }
  /// Puts a call of `op` in place of a node, with the node's module call, region, name and marks; not
  /// its kernel, which is another op's. Uses of its results become uses of as many results of the new
  /// node. That stands where the old one did, or at `position` of the order. Throws what inference
  /// throws, or GraphError where a result is used that `op` has not; the Graph is as it was then.
  NodeId replace_node(NodeId id, const Op& op, std::vector<ValueId> inputs, Attrs attrs,
                      std::size_t position = SIZE_MAX);
  /// Removes a node none of whose outputs is used; GraphError otherwise.
  void erase_node(NodeId id);
  /// Removes nodes and state that no output and no effect depends on.
  void eliminate_dead_code();

 private:
  friend struct GraphSurgeon;  // tests break invariants with it
  Node& mutable_node(NodeId id);
  Value& mutable_value(ValueId id);
  ValueId add_value(Value value);
  std::string unique_name(const std::string& base, CallId visible, NodeId except) const;
  /// Every node of call `id` and, to that depth, of the calls inside it; in no order.
  void collect_nodes(CallId id, int depth, std::vector<NodeId>& found) const;
  /// Takes out a node and its results; remove_dropped() then takes them from the lists.
  void drop_node(NodeId id);
  void remove_dropped();
  /// Sets position_ from the order, from this place on.
  void renumber(std::size_t first);

  // Indexed by id; null once erased. Copies of a Graph copy the entries they change.
  std::vector<std::shared_ptr<Node>> nodes_;
  std::vector<std::shared_ptr<Value>> values_;
  std::vector<NodeId> order_;
  std::vector<std::size_t> position_;  // by node
  std::vector<ValueId> inputs_;
  std::vector<ValueId> outputs_;
  std::vector<StateWrite> writes_;
  std::vector<ModuleCall> calls_;
  // Lists without a memory block each, so that a Graph is copied fast: a call's nodes (those whose
  // innermost call it is) and its child calls, chained by id.
  std::vector<NodeId> first_node_;  // by call
  std::vector<NodeId> next_node_;   // by node
  std::vector<CallId> first_child_;
  std::vector<CallId> next_sibling_;
  std::shared_ptr<GuardList> guards_;
  RecordedFacts facts_;
  Annotations annotations_;
  std::set<std::int32_t> discarding_regions_;
  std::vector<std::pair<ValueId, ValueId>> replaced_values_;
};

/// StaleProgram where what the Graph recorded is no longer so: a state has another dtype, shape or
/// device (Module::to), a module or parameter has got or lost a hook, or a module has left its
/// root's mode.
void require_current(const Graph& graph);

/// One line a node, names by module path; what "the Graph's text" means everywhere.
std::string to_text(const Graph& graph);
std::ostream& operator<<(std::ostream& stream, const Graph& graph);

}  // namespace tenon
