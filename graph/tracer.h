// The tracer records a model's forward pass as a Graph: it is an interpreter, so ordinary model code
// runs and every op call becomes a node, annotated with the module call that made it.
//
// Input sizes become symbols with the given sizes as examples, so one trace serves all sizes that
// keep its guards. Parameters and buffers are recognized by identity and become state.
//
// What the code asks of the host while it is traced, it asks once, and the Graph holds for the
// answer: a size taken as a number is a guard; training(), grad_enabled(), hooks and the modes of
// modules are facts (graph/recorded_facts.h), and a run for which they changed is a StaleProgram. A
// variable of the model's own, say a counter that forward() increments and that picks a branch, no
// tracer can see: the branch taken is part of the Graph. Make it an input or a buffer, or trace
// each branch.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "graph/graph.h"
#include "tensor/interpreter.h"

namespace tenon {

/// What the tracer is told of the module tree; filled by the layer that knows modules.
struct ModuleTree {
  struct Module {
    std::string path;
    std::string type;
    std::string repr;
    bool leaf = false;
    std::shared_ptr<const HookSet> hooks = {};  // may be null
    std::vector<std::int64_t> hook_numbers = {};
    ModeCell training = {};  // may be null
  };
  struct State {
    std::string name;
    ValueKind kind = ValueKind::parameter;
    Tensor tensor;     // recognized by identity
    Tensor held = {};  // what the Graph holds instead, if defined: a copy on another device, say
  };
  std::unordered_map<const void*, Module> modules;
  std::vector<State> states;
};

/// An example input: a name ("" for "input", "input_1", …) and a spec with sizes as numbers, or a
/// tensor to take the spec from. Every size becomes a symbol; a trace reads no values.
struct ExampleInput {
  ExampleInput(std::string input_name, TensorSpec input_spec)
      : name(std::move(input_name)), spec(std::move(input_spec)) {}
  ExampleInput(std::string input_name, const Tensor& example)
      : name(std::move(input_name)), spec(example.spec()), tensor(example) {}
  ExampleInput(TensorSpec input_spec) : ExampleInput("", std::move(input_spec)) {}
  ExampleInput(const Tensor& example) : ExampleInput("", example) {}
  std::string name;
  TensorSpec spec;
  Tensor tensor = {};  // if one was given
};

using ForwardFunction = std::function<std::vector<Tensor>(std::span<const Tensor>)>;

/// Runs `forward` once on symbolic inputs and returns what it did. TraceError where the model asks
/// for numbers that a trace does not have.
Graph trace(const ModuleTree& tree, const std::vector<ExampleInput>& inputs,
            const ForwardFunction& forward);

/// A fresh symbol for every size of `spec`, in `graph`'s guard list; names continue at `next_symbol`.
Shape symbolic_shape(const Shape& sizes, const Graph& graph, int& next_symbol);

/// Adds op calls to an existing Graph at a position, advancing it: how primitives write new nodes.
class GraphBuilder final : public Interpreter {
 public:
  /// New nodes go to `position` of the order and belong to `call`.
  GraphBuilder(Graph& graph, std::size_t position, CallId call);

  /// A tensor that stands for a value while this builder is the innermost interpreter. It cannot be
  /// changed in place: the value is an input of the Graph or of the code that is traced now. Of kNone,
  /// an undefined tensor.
  Tensor tensor(ValueId id);
  /// The value behind a tensor: traced by this builder, or state that is added when first seen.
  /// TraceError when eager code might see another value there, changed in place since.
  ValueId value_of(const Tensor& tensor, std::string_view op_name);
  /// Modules and state that calls and tensors may refer to, beside what the Graph has already.
  void add_tree(const ModuleTree& tree, const std::string& path_prefix);
  std::size_t position() const { return position_; }
  /// Calls every node of `source`, in order, under this builder and returns its outputs: with
  /// autograd recording, the forward half of a training Graph. `inputs` stand for source's inputs;
  /// calls keep their ids, so this Graph starts as source.without_nodes(). State writes are repeated.
  std::vector<Tensor> replay(const Graph& source, std::span<const Tensor> inputs);
  /// Ends the trace of code that makes a Graph of its own: a tensor that the code made, changed in
  /// place and let go is made anew by each eager call, so no run writes it back.
  void forget_temporaries();
  /// What is called from here on stands for what `call` did: it follows that call's mode.
  void act_as(CallId call);
  /// For the code of a training step: modules outside of the tree follow the mode that it runs in.
  void run_in_training();
  /// Lets autograd record the calls: for a training Graph. A forward Graph only notes where grad mode
  /// is off, by a `detach` behind each node.
  void record_gradients() { records_gradients_ = true; }
  /// Nodes added so far.
  const std::vector<NodeId>& added() const { return added_; }

  std::vector<Tensor> apply(const Op& op, std::span<const Tensor> inputs,
                            const Attrs& attrs) override;
  void assign(const Tensor& target, const Tensor& source) override;
  Tensor capture(const Tensor& tensor) override;
  bool records_gradients() const override { return records_gradients_; }
  bool is_recording() const override { return true; }
  std::int32_t current_call() const override { return calls_.empty() ? kNoCall : calls_.back().id; }
  DropoutMode current_mode() const override;
  Attrs settled(const Op& op, const Attrs& attrs) override;
  void on_mode_read(const ModuleFrame& module) override;
  void on_grad_mode_read() override { graph_.mutable_facts().add_grad_mode(); }
  void resume_call(std::int32_t call) override;
  void leave_call() override;
  void enter_module(const ModuleFrame& frame, std::span<const Tensor> inputs) override;
  void exit_module(const ModuleFrame& frame, std::span<const Tensor> outputs) override;

 private:
  /// Memory as eager code would have it. Values that may lie in one piece of it in some mode (an
  /// operand, its views, what dropout makes of it) share a Memory, which counts changes in place.
  struct Memory {
    ValueId owner = kNone;    // the input or state that lies there; kNone: made by the traced code
    ValueId changed = kNone;  // what was changed last
    ValueId viewed = kNone;   // what a view was taken of last
    std::uint64_t changes = 0;
  };
  /// What a tensor stands for.
  struct Handle {
    ValueId value = kNone;
    std::size_t memory = 0;
    std::uint64_t seen = 0;  // changes of that memory that `value` includes
    bool is_view = false;    // made by a view op
  };
  /// A tensor with data that the Graph knows, and what it stands for now.
  struct KnownTensor {
    Tensor tensor;          // kept alive: tensors are known by address
    ValueId state = kNone;  // its value before the first change
    Handle handle;
  };
  /// A call that ops are recorded in.
  struct OpenCall {
    CallId id = kNone;
    /// What pins ops that follow it; follow for nodes that are replayed and for gradients, whose
    /// modes are final.
    DropoutMode mode = DropoutMode::follow;
    const void* module = nullptr;  // entered here, or null
    ModeCell training = {};        // that module's mode
    bool is_noted = false;         // as a fact
  };
  class TracedValue;

  NodeId add(const Op& op, std::vector<ValueId> operands, Attrs attrs);
  void know_states();
  Tensor traced(const Handle& handle) const;
  Handle handle_of(const Tensor& tensor, std::string_view op_name);
  std::size_t new_memory(ValueId owner = kNone);
  KnownTensor& know(const Tensor& tensor, ValueId state);
  void note_storage(const Tensor& tensor);
  void change_state(const Tensor& target, ValueId value);
  std::string reader(std::string_view op_name) const;
  void require_current(const Handle& handle, std::string_view op_name) const;
  void require_changeable(const Handle& handle) const;
  Tensor moved_source(const Op& op, const Tensor& tensor, const Attrs& attrs);
  Tensor drawn_on(Device device, const Tensor& tensor);
  /// Nodes added from `first` on stand for `node`: its name, region and bound kernel are theirs.
  void carry_marks(const Node& node, std::size_t first);
  RecordedMode mode_fact(const void* module, const std::string& type, const ModeCell& mode) const;
  std::string owner_of(const void* module, const std::string& type) const;

  Graph& graph_;
  std::size_t position_;
  std::uint64_t number_;  // of all builders
  std::vector<OpenCall> calls_;
  std::vector<NodeId> added_;
  std::unordered_map<const void*, ModuleTree::Module> modules_;
  std::unordered_map<const TensorImpl*, ModuleTree::State> states_;
  std::vector<Memory> memories_;
  std::unordered_map<const TensorImpl*, KnownTensor> known_states_;
  // The tensors of known_states_ by storage; gathered when the first is changed.
  std::unordered_map<const Storage*, std::vector<Tensor>> on_storage_;
  bool states_known_ =
      false;               // gathered when first asked for: most rewrites add views and products
  int resumed_calls_ = 0;  // depth of gradient emission
  bool records_gradients_ = false;
  DropoutMode root_mode_ = DropoutMode::follow;  // of what this builder's root stands for
  ModeCell root_;                                // the root's mode, once known
  ModeCell outside_;                             // the same for modules outside of the tree
  int constants_ = 0;
};

}  // namespace tenon
