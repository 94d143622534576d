// The interpreter behind lower(): what it knows while a Graph becomes a Program. lower.cpp walks the
// nodes and emits kernels, lower_layouts.cpp decides where results lie so that views and concatenations
// need no copy, lower_state.cpp places outputs, state writes and the arena.
#pragma once

#include <map>
#include <unordered_map>

#include "graph/detail/program_impl.h"
#include "graph/memory_plan.h"
#include "tensor/interpreter.h"

namespace tenon {

/// A lowered value: which buffer, and how it is laid out there.
struct Location {
  int buffer = kNone;
  Layout layout;
  DType dtype = DType::float32;
};

class LoweredValue final : public TracedPayload {
 public:
  LoweredValue(Location place, Shape shape)
      : location(std::move(place)), shape_(std::move(shape)) {}
  Dim size(int axis) const override { return shape_[axis]; }
  bool is_pattern() const override { return false; }
  Location location;

 private:
  Shape shape_;
};

inline Extents numbers(const Shape& shape) {
  Extents sizes;
  for (const Dim& dim : shape) sizes.push_back(dim.value());
  return sizes;
}

class Lowering final : public Interpreter {
 public:
  Lowering(const Graph& graph, const LowerOptions& options)
      : graph_(graph), options_(options), program_(std::make_unique<Program::Impl>()) {
    program_->facts = graph.facts();
    program_->training = options.training;
  }

  std::unique_ptr<Program::Impl> run(const std::vector<TensorSpec>& inputs) {
    find_device(inputs);
    bind_inputs(inputs);
    for (NodeId id : graph_.order()) lower_node(graph_.node(id));
    place_outputs();
    place_writes();
    keep_what_state_makes();
    plan();
    return std::move(program_);
  }

  std::vector<Tensor> apply(const Op& op, std::span<const Tensor> given,
                            const Attrs& attrs) override;
  bool is_recording() const override { return true; }
  DropoutMode current_mode() const override {
    return options_.training ? DropoutMode::train : DropoutMode::eval;
  }

 private:
  DType converted(DType dtype) const {
    return options_.float_dtype && is_floating(dtype) ? *options_.float_dtype : dtype;
  }

  void find_device(const std::vector<TensorSpec>& inputs);
  void bind_inputs(const std::vector<TensorSpec>& inputs);
  void lower_node(const Node& node);
  Tensor state_tensor(ValueId id);
  Tensor held_tensor(const Tensor& tensor);
  Attrs concrete(const Attrs& attrs) const;
  Tensor make_tensor(Location location, const Extents& sizes) const;
  int new_buffer(std::size_t bytes, BufferKind kind);
  Tensor emit_view(const Op& op, const Tensor& input, const TensorSpec& output, const Attrs& attrs);
  std::optional<Location> join_adjacent(const Op& op, std::span<const Tensor> inputs,
                                        const Attrs& attrs) const;
  std::optional<Location> write_pieces(const Op& op, std::span<const Tensor> inputs,
                                       const Attrs& attrs, const TensorSpec& output);
  bool is_read_once(ValueId id, int buffer) const;
  bool move_piece(const Location& piece, const Location& target,
                  std::map<std::size_t, Instruction>& changed) const;
  bool fills_its_buffer(const Location& location) const;
  void plan_workspace(Instruction& instruction);
  std::vector<Tensor> emit_kernel(const Op& op, std::span<const Tensor> inputs, const Attrs& attrs,
                                  const std::vector<TensorSpec>& outputs);
  std::string bound_kernel(const Op& op) const;
  const Kernel* find_kernel(const std::string& wanted, const Op& op, const KernelArgs& args) const;
  Location emit_copy(const Location& source);
  Location emit_copy(const Location& source, const Extents& strides);
  Location operand_copy(const Location& source, const Extents& strides);
  bool lays_channels_last(const Instruction& instruction) const;
  void emit_copy_to(const Location& source, const Location& target);
  Layout output_layout(const Instruction& instruction, bool images_last, const TensorSpec& spec,
                       std::size_t index) const;
  std::optional<Layout> layout_for_views(ValueId id, const Extents& sizes) const;
  TensorView view_of(const Location& location) const;
  void emit(Instruction instruction);
  void place_outputs();
  bool tile_the_buffer(int index, std::span<const Location> results) const;
  void place_writes();
  bool write_in_place(const Location& value, const Location& state);
  void keep_what_state_makes();
  void plan();
  void allocate_arena(const MemoryPlan& plan);

  const Graph& graph_;
  const LowerOptions& options_;
  std::unique_ptr<Program::Impl> program_;
  DimBindings bindings_;
  std::unordered_map<ValueId, Tensor> tensors_;
  std::vector<std::pair<Location, Location>> copies_;  // of inputs and state, and where they are
  const Node* current_ = nullptr;  // the graph node being lowered
  bool in_decomposition_ = false;  // its results are not the node's own
};

/// Where the value of a tensor that lowering made lies.
const Location& location_of(const Tensor& tensor);

}  // namespace tenon
