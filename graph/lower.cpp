// Lowering: Graph -> Program. Each node is handed, in order, to an interpreter that emits
// instructions; an op without a kernel is expanded by running its decomposition under the same
// interpreter.
#include <algorithm>
#include <map>
#include <unordered_map>

#include "graph/detail/program_impl.h"
#include "graph/memory_plan.h"
#include "tensor/detail/check.h"
#include "tensor/device_backend.h"
#include "tensor/interpreter.h"

namespace tenon {
namespace {

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

Extents numbers(const Shape& shape) {
  Extents sizes;
  for (const Dim& dim : shape) sizes.push_back(dim.value());
  return sizes;
}

class Lowering final : public Interpreter {
 public:
  Lowering(const Graph& graph, const LowerOptions& options)
      : graph_(graph), options_(options), program_(std::make_unique<Program::Impl>()) {
    program_->training = options.training;
  }

  std::unique_ptr<Program::Impl> run(const std::vector<TensorSpec>& inputs) {
    find_device(inputs);
    bind_inputs(inputs);
    for (NodeId id : graph_.order()) lower_node(graph_.node(id));
    place_outputs();
    place_writes();
    plan();
    return std::move(program_);
  }

  std::vector<Tensor> apply(const Op& op, std::span<const Tensor> inputs,
                            const Attrs& attrs) override;

 private:
  DType converted(DType dtype) const {
    return options_.float_dtype && is_floating(dtype) ? *options_.float_dtype : dtype;
  }

  void find_device(const std::vector<TensorSpec>& inputs);
  void bind_inputs(const std::vector<TensorSpec>& inputs);
  void lower_node(const Node& node);
  Tensor state_tensor(ValueId id);
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
  void emit_copy_to(const Location& source, const Location& target);
  Layout output_layout(const Kernel& kernel, const TensorSpec& spec, std::size_t index) const;
  std::optional<Layout> layout_for_views(ValueId id, const Extents& sizes) const;
  TensorView view_of(const Location& location) const;
  void emit(Instruction instruction);
  void place_outputs();
  void place_writes();
  bool write_in_place(const Location& value, const Location& state);
  void plan();
  void allocate_arena(const MemoryPlan& plan);

  const Graph& graph_;
  const LowerOptions& options_;
  std::unique_ptr<Program::Impl> program_;
  DimBindings bindings_;
  std::unordered_map<ValueId, Tensor> tensors_;
  const Node* current_ = nullptr;  // the graph node being lowered
  bool in_decomposition_ = false;  // its results are not the node's own
};

const Location& location_of(const Tensor& tensor) {
  const auto* lowered = dynamic_cast<const LoweredValue*>(tensor.impl()->payload.get());
  TENON_INTERNAL(lowered != nullptr, "an operand was not lowered");
  return lowered->location;
}

void Lowering::find_device(const std::vector<TensorSpec>& inputs) {
  if (options_.device) {
    program_->device = *options_.device;
    require_available(program_->device);
    return;
  }
  for (ValueId id : graph_.values()) {
    const Value& value = graph_.value(id);
    if (!value.tensor) continue;
    program_->device = value.tensor.device();
    return;
  }
  if (!inputs.empty()) program_->device = inputs[0].device;
}

void Lowering::bind_inputs(const std::vector<TensorSpec>& inputs) {
  TENON_CHECK(inputs.size() == graph_.inputs().size(), ShapeError,
              "[lower] {} inputs were given; the graph has {}", inputs.size(),
              graph_.inputs().size());
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    const Value& value = graph_.value(graph_.inputs()[i]);
    const Shape& given = inputs[i].shape;
    TENON_CHECK(given.rank() == value.spec.shape.rank(), ShapeError,
                "[lower] input '{}' has shape {}; traced with {}", value.name, given.to_string(),
                value.spec.shape.to_string());
    TENON_CHECK(inputs[i].dtype == converted(value.spec.dtype), DTypeError,
                "[lower] input '{}' is {}; traced with {}", value.name, name(inputs[i].dtype),
                name(value.spec.dtype));
    TENON_CHECK(inputs[i].device == program_->device, DeviceError,
                "[lower] input '{}' is on {}; the model is on {}", value.name,
                inputs[i].device.to_string(), program_->device.to_string());
    for (int axis = 0; axis < given.rank(); ++axis) {
      std::vector<std::int64_t> symbol;
      value.spec.shape[axis].collect_symbols(symbol);
      if (symbol.size() == 1) bindings_[symbol[0]] = given[axis].value();
    }
    const Extents sizes = numbers(given);
    Location location;
    location.dtype = inputs[i].dtype;
    location.layout = Layout::contiguous(sizes);
    const auto bytes = static_cast<std::size_t>(sizes.product()) * size_of(location.dtype);
    location.buffer = new_buffer(bytes, BufferKind::input);
    program_->buffers.back().index = static_cast<int>(i);
    program_->inputs.push_back({inputs[i].dtype, sizes, value.name});
    tensors_[value.id] = make_tensor(location, sizes);
  }
  for (const DimGuard& guard : graph_.guards()->guards) {
    TENON_CHECK(guard.holds(bindings_), TraceError,
                "[lower] these input sizes break a guard of the trace: {} (the model fixed that "
                "size, or took a branch on it; trace it again for other sizes)",
                guard.to_string());
  }
}

Attrs Lowering::concrete(const Attrs& attrs) const {
  Attrs result = attrs;
  for (std::size_t i = 0; i < attrs.size(); ++i) {
    const AttrValue value = attrs.value(i);
    if (const auto* dim = std::get_if<Dim>(&value)) {
      result = result.with(i, Dim(dim->evaluate(bindings_)));
    } else if (const auto* scalar = std::get_if<Scalar>(&value)) {
      result = result.with(i, Scalar(scalar->evaluate(bindings_)));
    } else if (const auto* shape = std::get_if<Shape>(&value)) {
      Shape sizes;
      for (const Dim& size : *shape) sizes.push_back(size.evaluate(bindings_));
      result = result.with(i, sizes);
    } else if (const auto* dtype = std::get_if<DType>(&value)) {
      result = result.with(i, converted(*dtype));
    }
  }
  return result;
}

Tensor Lowering::make_tensor(Location location, const Extents& sizes) const {
  Shape shape(std::vector<Dim>(sizes.begin(), sizes.end()));
  TensorSpec spec{location.dtype, shape, program_->device};
  return Tensor::symbolic(std::move(spec),
                          std::make_shared<LoweredValue>(std::move(location), std::move(shape)));
}

int Lowering::new_buffer(std::size_t bytes, BufferKind kind) {
  Buffer buffer;
  buffer.bytes = bytes;
  buffer.kind = kind;
  program_->buffers.push_back(buffer);
  return static_cast<int>(program_->buffers.size()) - 1;
}

Tensor Lowering::state_tensor(ValueId id) {
  if (const auto known = tensors_.find(id); known != tensors_.end()) return known->second;
  const Value& value = graph_.value(id);
  const DType dtype = converted(value.spec.dtype);
  Tensor tensor = value.tensor;
  if (options_.states != nullptr) {
    const auto other = options_.states->find(tensor.impl().get());
    if (other != options_.states->end()) tensor = other->second;
  }
  if (dtype != tensor.dtype()) tensor = cast(tensor, dtype);
  if (tensor.device() != program_->device) tensor = tensor.to(program_->device);
  Location location;
  location.dtype = dtype;
  location.layout = tensor.layout();
  // Tensors over one storage share a buffer, so that adjacent ones can be recognized.
  const auto& storage = tensor.storage();
  auto& states = program_->states;
  auto known = std::find_if(states.begin(), states.end(),
                            [&](const StateSlot& s) { return s.storage == storage; });
  if (known == states.end()) {
    location.buffer = new_buffer(storage->bytes(), BufferKind::state);
    program_->buffers.back().data = storage->data();
    states.push_back({storage, location.buffer});
  } else {
    location.buffer = known->buffer;
  }
  program_->parameters.push_back(
      {value.name, value.tensor, value.tensor.storage(), value.tensor.layout()});
  return tensors_[id] = make_tensor(location, location.layout.sizes);
}

void Lowering::lower_node(const Node& node) {
  current_ = &node;
  in_decomposition_ = false;
  std::vector<Tensor> inputs;
  for (ValueId id : node.inputs) {
    if (id == kNone) {
      inputs.emplace_back();
    } else if (graph_.value(id).tensor) {
      inputs.push_back(state_tensor(id));
    } else {
      inputs.push_back(tensors_.at(id));
    }
  }
  const std::vector<Tensor> outputs = apply(*node.op, inputs, concrete(node.attrs));
  for (std::size_t i = 0; i < node.outputs.size(); ++i) tensors_[node.outputs[i]] = outputs[i];
}

std::vector<Tensor> Lowering::apply(const Op& op, std::span<const Tensor> inputs,
                                    const Attrs& attrs) {
  if (op.identity && op.identity(attrs, options_.training)) return {inputs[0]};
  std::vector<const TensorSpec*> specs;
  for (const Tensor& input : inputs) specs.push_back(input ? &input.spec() : nullptr);
  const std::vector<TensorSpec> outputs = infer(op, specs, attrs);
  if (op.view) return {emit_view(op, inputs[0], outputs[0], attrs)};
  if (const auto joined = join_adjacent(op, inputs, attrs)) {
    return {make_tensor(*joined, joined->layout.sizes)};
  }
  if (const auto joined = write_pieces(op, inputs, attrs, outputs[0])) {
    return {make_tensor(*joined, joined->layout.sizes)};
  }
  return emit_kernel(op, inputs, attrs, outputs);
}

Tensor Lowering::emit_view(const Op& op, const Tensor& input, const TensorSpec& output,
                           const Attrs& attrs) {
  const Extents sizes = numbers(output.shape);
  Location location = location_of(input);
  auto layout = op.view(location.layout, sizes, attrs);
  if (!layout) {
    location = emit_copy(location);
    layout = op.view(location.layout, sizes, attrs);
    TENON_INTERNAL(layout.has_value(), "[{}] no view of a contiguous value", op.name);
  }
  location.layout = *layout;
  return make_tensor(location, sizes);
}

/// Parameters packed next to each other: their concatenation is there already.
std::optional<Location> Lowering::join_adjacent(const Op& op, std::span<const Tensor> inputs,
                                                const Attrs& attrs) const {
  if (!op.has(Trait::concatenation)) return std::nullopt;
  const AttrValue dim = attrs.value(attrs.find("dim"));
  const auto axis = static_cast<int>(std::get<std::int64_t>(dim));
  Location joined = location_of(inputs[0]);
  const BufferKind kind = program_->buffers[static_cast<std::size_t>(joined.buffer)].kind;
  if (kind != BufferKind::state || joined.layout.rank() <= axis) return std::nullopt;
  // Along an axis of size 1 a stride says nothing; where the second piece lies does.
  if (joined.layout.sizes[axis] == 1 && inputs.size() > 1) {
    joined.layout.strides[axis] = location_of(inputs[1]).layout.offset - joined.layout.offset;
  }
  const Extents strides = joined.layout.strides;
  if (strides[axis] <= 0) return std::nullopt;
  for (std::size_t i = 1; i < inputs.size(); ++i) {
    const Location& next = location_of(inputs[i]);
    if (next.buffer != joined.buffer ||
        next.layout.offset != joined.layout.offset + joined.layout.sizes[axis] * strides[axis]) {
      return std::nullopt;
    }
    for (int a = 0; a < next.layout.rank(); ++a) {
      if (next.layout.sizes[a] != 1 && next.layout.strides[a] != strides[a]) return std::nullopt;
    }
    joined.layout.sizes[axis] += next.layout.sizes[axis];
  }
  return joined;
}

/// The layout that puts the elements of `view` where those of `source` go in `target`, when each axis
/// of the view runs within one axis of the source. View and source cover the same dense memory.
std::optional<Layout> moved(const Layout& view, const Layout& source, const Layout& target) {
  Layout result = view;
  result.offset = target.offset;
  // Of each axis of the source, in its elements.
  Extents covered = Extents::filled(source.rank(), 0);
  for (int axis = 0; axis < view.rank(); ++axis) {
    if (view.sizes[axis] == 1) continue;
    const std::int64_t stride = view.strides[axis];
    int within = kNone;
    for (int i = 0; i < source.rank(); ++i) {
      const std::int64_t step = source.strides[i];
      const bool covers =
          source.sizes[i] > 1 && step > 0 && stride % step == 0 && stride < step * source.sizes[i];
      if (covers && (within == kNone || step > source.strides[within])) within = i;
    }
    if (within == kNone) return std::nullopt;
    const std::int64_t steps = stride / source.strides[within];
    covered[within] += steps * (view.sizes[axis] - 1);
    if (covered[within] >= source.sizes[within]) return std::nullopt;
    result.strides[axis] = steps * target.strides[within];
  }
  return result;
}

/// Nothing but the node being lowered reads the value, or a view that it is of, from that buffer.
bool Lowering::is_read_once(ValueId id, int buffer) const {
  while (true) {
    const Value& value = graph_.value(id);
    const auto& outputs = graph_.outputs();
    const auto& writes = graph_.writes();
    const bool leaves =
        std::find(outputs.begin(), outputs.end(), id) != outputs.end() ||
        std::any_of(writes.begin(), writes.end(), [&](const auto& w) { return w.value == id; });
    if (leaves || value.uses.size() != 1 || value.producer == kNone) return false;
    const Node& maker = graph_.node(value.producer);
    if (!maker.op->view) return true;
    id = maker.inputs[0];
    if (graph_.value(id).tensor || location_of(tensors_.at(id)).buffer != buffer) return false;
  }
}

/// Pieces that a kernel can write as parts of a larger tensor are written where the concatenation
/// wants them: three gradients straight into that of a joined product.
std::optional<Location> Lowering::write_pieces(const Op& op, std::span<const Tensor> inputs,
                                               const Attrs& attrs, const TensorSpec& output) {
  if (!op.has(Trait::concatenation) || !current_ || current_->op != &op) return std::nullopt;
  const auto axis = static_cast<int>(std::get<std::int64_t>(attrs.value(attrs.find("dim"))));
  Location whole{kNone, Layout::contiguous(numbers(output.shape)), output.dtype};
  whole.buffer = static_cast<int>(program_->buffers.size());  // made when all is known to fit
  std::map<std::size_t, Instruction> changed;
  std::int64_t start = 0;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    const Location& piece = location_of(inputs[i]);
    Layout target = whole.layout;
    target.sizes = piece.layout.sizes;
    target.offset = start * whole.layout.strides[axis];
    start += target.sizes[axis];
    if (!fills_its_buffer(piece) || !is_read_once(current_->inputs[i], piece.buffer) ||
        !move_piece(piece, {whole.buffer, target, whole.dtype}, changed)) {
      return std::nullopt;
    }
  }
  for (const auto& [index, instruction] : changed) {
    const auto supports = instruction.kernel->supports;
    if (supports != nullptr && !supports(instruction.args())) return std::nullopt;
  }
  new_buffer(static_cast<std::size_t>(whole.layout.numel()) * size_of(whole.dtype),
             BufferKind::arena);
  for (auto& [index, instruction] : changed) {
    program_->instructions[index] = std::move(instruction);
    plan_workspace(program_->instructions[index]);
  }
  return whole;
}

/// Makes the one instruction that writes `piece` write it to `target`, in `changed`. False when it
/// cannot, or when another instruction reads it.
bool Lowering::move_piece(const Location& piece, const Location& target,
                          std::map<std::size_t, Instruction>& changed) const {
  bool moves = false;
  for (std::size_t n = 0; n < program_->instructions.size(); ++n) {
    const Instruction& instruction = program_->instructions[n];
    const auto is_piece = [&](const Place& place) { return place.buffer == piece.buffer; };
    const auto& reads = instruction.input_places;
    if (std::any_of(reads.begin(), reads.end(), is_piece)) return false;
    for (std::size_t k = 0; k < instruction.outputs.size(); ++k) {
      if (!is_piece(instruction.output_places[k])) continue;
      const TensorView& view = instruction.outputs[k];
      const auto layout = moved({view.sizes, view.strides, 0}, piece.layout, target.layout);
      if (moves || !instruction.kernel->sliced_output || !layout) return false;
      Instruction& copy = changed.try_emplace(n, instruction).first->second;
      copy.outputs[k].strides = layout->strides;
      copy.output_places[k] = {target.buffer, layout->offset};
      moves = true;
    }
  }
  return moves;
}

/// The location is all of an arena buffer.
bool Lowering::fills_its_buffer(const Location& location) const {
  const Buffer& buffer = program_->buffers[static_cast<std::size_t>(location.buffer)];
  return buffer.kind == BufferKind::arena && location.layout.offset == 0 &&
         static_cast<std::size_t>(location.layout.numel()) * size_of(location.dtype) ==
             buffer.bytes;
}

/// What the kernel needs beside its operands, whose layouts are final now.
void Lowering::plan_workspace(Instruction& instruction) {
  const auto bytes = instruction.kernel->workspace_bytes;
  const std::size_t wanted = bytes != nullptr ? bytes(instruction.args()) : 0;
  instruction.workspace = {wanted > 0 ? new_buffer(wanted, BufferKind::arena) : kNone, 0};
}

TensorView Lowering::view_of(const Location& location) const {
  TensorView view;
  view.dtype = location.dtype;
  view.device = program_->device;
  view.sizes = location.layout.sizes;
  view.strides = location.layout.strides;
  view.present = true;
  return view;
}

/// What a view covers in memory.
double bytes_of(const TensorView& view) {
  if (!view.present) return 0;
  auto bytes = static_cast<double>(size_of(view.dtype));
  for (int axis = 0; axis < view.sizes.size(); ++axis) {
    if (view.strides[axis] != 0 || view.sizes[axis] == 0) {
      bytes *= static_cast<double>(view.sizes[axis]);
    }
  }
  return bytes;
}

void Lowering::emit(Instruction instruction) {
  InstructionInfo info;
  info.name = current_ ? graph_.full_name(current_->id) : "output";
  info.kernel = instruction.kernel->name;
  if (instruction.op->flops) info.flops = instruction.op->flops(instruction.args());
  for (const TensorView& view : instruction.inputs) info.bytes += bytes_of(view);
  for (const TensorView& view : instruction.outputs) info.bytes += bytes_of(view);
  if (instruction.op->has(Trait::effect)) program_->capturable = false;
  plan_workspace(instruction);
  program_->infos.push_back(std::move(info));
  program_->instructions.push_back(std::move(instruction));
}

Location Lowering::emit_copy(const Location& source) {
  Location target = source;
  target.layout = Layout::contiguous(source.layout.sizes);
  target.buffer = new_buffer(
      static_cast<std::size_t>(source.layout.numel()) * size_of(source.dtype), BufferKind::arena);
  emit_copy_to(source, target);
  return target;
}

void Lowering::emit_copy_to(const Location& source, const Location& target) {
  Instruction copy;
  copy.op = &get_op("contiguous");
  copy.inputs = {view_of(source)};
  copy.outputs = {view_of(target)};
  copy.input_places = {{source.buffer, source.layout.offset}};
  copy.output_places = {{target.buffer, target.layout.offset}};
  copy.kernel = select_kernel(*copy.op, program_->device.type, copy.args());
  TENON_INTERNAL(copy.kernel != nullptr, "no copy kernel on {}", program_->device.to_string());
  if (target.layout.numel() > 0) emit(std::move(copy));
}

/// What the node being lowered is bound to on this device; the float64 reference has no choice.
std::string Lowering::bound_kernel(const Op& op) const {
  if (!current_ || in_decomposition_ || current_->op != &op || options_.float_dtype) return "";
  const std::string& name = current_->kernel;
  if (name == kDecomposition) return name;
  for (const Kernel& kernel : op.kernels(program_->device.type)) {
    if (kernel.name == name) return name;
  }
  return "";
}

/// The implementation of that name, null for the decomposition.
const Kernel* Lowering::find_kernel(const std::string& wanted, const Op& op,
                                    const KernelArgs& args) const {
  for (const Kernel& kernel : op.kernels(program_->device.type)) {
    if (kernel.name != wanted) continue;
    TENON_CHECK(kernel.supports == nullptr || kernel.supports(args), DeviceError,
                "[{}] {} is bound to {}, which does not take {}", op.name,
                graph_.full_name(current_->id), wanted,
                graph_.value(current_->inputs[0]).spec.to_string());
    return &kernel;
  }
  return nullptr;
}

std::vector<Tensor> Lowering::emit_kernel(const Op& op, std::span<const Tensor> inputs,
                                          const Attrs& attrs,
                                          const std::vector<TensorSpec>& outputs) {
  Instruction instruction;
  instruction.op = &op;
  instruction.attrs = attrs;
  instruction.training = options_.training;
  instruction.inputs.resize(std::max(inputs.size(), op.operands.size()));
  instruction.input_places.resize(instruction.inputs.size());
  std::vector<Location> locations(inputs.size());
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    if (!inputs[i]) continue;
    locations[i] = location_of(inputs[i]);
    instruction.inputs[i] = view_of(locations[i]);
  }
  for (const TensorSpec& spec : outputs) {
    Location location;
    location.dtype = spec.dtype;
    location.layout = Layout::contiguous(numbers(spec.shape));
    instruction.outputs.push_back(view_of(location));
  }
  const std::string bound = bound_kernel(op);
  instruction.kernel = bound.empty() ? select_kernel(op, program_->device.type, instruction.args())
                                     : find_kernel(bound, op, instruction.args());
  if (instruction.kernel == nullptr) {
    TENON_CHECK(op.decompose != nullptr, DeviceError, "[{}] has no implementation on {} for {}",
                op.name, program_->device.to_string(),
                inputs.empty() ? "no operands" : inputs[0].spec().to_string());
    const InterpreterGuard guard(*this);
    in_decomposition_ = true;
    return op.decompose(inputs, attrs);
  }
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    if (!inputs[i]) continue;
    const auto accepts = instruction.kernel->accepts;
    const bool accepted = accepts ? accepts(static_cast<int>(i), instruction.inputs[i])
                                  : locations[i].layout.is_contiguous();
    if (!accepted) {
      locations[i] = emit_copy(locations[i]);
      instruction.inputs[i] = view_of(locations[i]);
    }
    instruction.input_places[i] = {locations[i].buffer, locations[i].layout.offset};
  }
  std::vector<Tensor> results;
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    Location location;
    location.dtype = outputs[i].dtype;
    location.layout = output_layout(*instruction.kernel, outputs[i], i);
    location.buffer =
        new_buffer(static_cast<std::size_t>(location.layout.numel()) * size_of(location.dtype),
                   BufferKind::arena);
    instruction.outputs[i] = view_of(location);
    instruction.output_places.push_back({location.buffer, 0});
    results.push_back(make_tensor(location, location.layout.sizes));
  }
  emit(std::move(instruction));
  return results;
}

Layout Lowering::output_layout(const Kernel& kernel, const TensorSpec& spec,
                               std::size_t index) const {
  const Extents sizes = numbers(spec.shape);
  if (kernel.strided_output && current_ && !in_decomposition_) {
    if (const auto layout = layout_for_views(current_->outputs.at(index), sizes)) return *layout;
  }
  return Layout::contiguous(sizes);
}

/// If the value's only use permutes its axes for a reshape that wants row-major order, the dense
/// strides that make the permuted value row-major, so that both become aliases.
std::optional<Layout> Lowering::layout_for_views(ValueId id, const Extents& sizes) const {
  const Value& value = graph_.value(id);
  if (value.uses.size() != 1) return std::nullopt;
  const Node& user = graph_.node(value.uses[0].node);
  if (!user.op->view || user.outputs.size() != 1) return std::nullopt;
  const Value& permuted = graph_.value(user.outputs[0]);
  if (permuted.spec.shape.rank() != sizes.size()) return std::nullopt;
  const bool reshaped = std::any_of(permuted.uses.begin(), permuted.uses.end(), [&](const Use& u) {
    return graph_.node(u.node).op->view != nullptr;
  });
  if (!reshaped) return std::nullopt;
  Extents view_sizes;
  for (const Dim& dim : permuted.spec.shape) view_sizes.push_back(dim.evaluate(bindings_));
  const Layout plain = Layout::contiguous(sizes);
  const auto view = user.op->view(plain, view_sizes, concrete(user.attrs));
  if (!view || view->numel() != plain.numel()) return std::nullopt;
  const Extents wanted = contiguous_strides(view_sizes);
  Layout layout = plain;
  for (int axis = 0; axis < sizes.size(); ++axis) {
    if (sizes[axis] == 1) continue;
    int target = kNone;
    for (int i = 0; i < view->rank(); ++i) {
      if (view->sizes[i] == sizes[axis] && view->strides[i] == plain.strides[axis]) target = i;
    }
    if (target == kNone) return std::nullopt;
    layout.strides[axis] = wanted[target];
  }
  return layout;
}

void Lowering::place_outputs() {
  current_ = nullptr;
  for (ValueId id : graph_.outputs()) {
    const bool state = graph_.value(id).tensor.defined();
    Location location = location_of(state ? state_tensor(id) : tensors_.at(id));
    if (!fills_its_buffer(location)) location = emit_copy(location);
    // The buffer leaves the arena: a run binds it to fresh memory, which the caller then owns.
    Buffer& buffer = program_->buffers[static_cast<std::size_t>(location.buffer)];
    buffer.kind = BufferKind::output;
    buffer.index = static_cast<int>(program_->outputs.size());
    program_->outputs.push_back({location.dtype, location.layout, location.buffer});
  }
}

/// Whether an instruction's operand or result may lie where `state` does.
bool overlaps(const TensorView& view, const Place& place, const Location& state) {
  if (!view.present || place.buffer != state.buffer) return false;
  const auto begin = [](std::int64_t offset, DType dtype) {
    return offset * static_cast<std::int64_t>(size_of(dtype));
  };
  const auto end = [&](std::int64_t offset, DType dtype, const Extents& sizes,
                       const Extents& strides) {
    std::int64_t last = offset;
    for (int axis = 0; axis < sizes.size(); ++axis) {
      if (sizes[axis] == 0) return begin(offset, dtype);
      last += (sizes[axis] - 1) * strides[axis];
    }
    return begin(last + 1, dtype);
  };
  return begin(place.offset, view.dtype) <
             end(state.layout.offset, state.dtype, state.layout.sizes, state.layout.strides) &&
         begin(state.layout.offset, state.dtype) <
             end(place.offset, view.dtype, view.sizes, view.strides);
}

/// Lets the instruction that makes `value` write it straight into the state's storage, where nothing
/// reads the old contents afterwards. False when that cannot be.
bool Lowering::write_in_place(const Location& value, const Location& state) {
  if (!fills_its_buffer(value) || !value.layout.is_contiguous() || !state.layout.is_contiguous() ||
      value.dtype != state.dtype) {
    return false;
  }
  auto& instructions = program_->instructions;
  const auto makes_value = [&](const Instruction& instruction) {
    return std::any_of(instruction.output_places.begin(), instruction.output_places.end(),
                       [&](const Place& place) { return place.buffer == value.buffer; });
  };
  const auto maker = std::find_if(instructions.begin(), instructions.end(), makes_value);
  if (maker == instructions.end()) return false;
  for (auto at = maker; at != instructions.end(); ++at) {
    for (std::size_t k = 0; k < at->inputs.size(); ++k) {
      if (!overlaps(at->inputs[k], at->input_places[k], state)) continue;
      // A pointwise kernel reads an element before it writes the same one.
      const bool same_elements = at == maker &&
                                 (at->op->has(Trait::elementwise) || at->op->has(Trait::update)) &&
                                 at->input_places[k].offset == state.layout.offset &&
                                 at->inputs[k].sizes == state.layout.sizes &&
                                 at->inputs[k].strides == state.layout.strides;
      if (!same_elements) return false;
    }
    for (std::size_t k = 0; k < at->outputs.size(); ++k) {
      if (overlaps(at->outputs[k], at->output_places[k], state)) return false;
    }
  }
  const auto move = [&](std::vector<Place>& places) {
    for (Place& place : places) {
      if (place.buffer == value.buffer) {
        place = {state.buffer, place.offset + state.layout.offset};
      }
    }
  };
  for (auto at = maker; at != instructions.end(); ++at) {
    move(at->input_places);
    move(at->output_places);
  }
  return true;
}

/// State writes come last: nothing reads a state's old contents after them.
void Lowering::place_writes() {
  struct Pending {
    Location value;
    Location state;
    ValueId id = kNone;
  };
  std::vector<Pending> pending;
  for (const StateWrite& write : graph_.writes()) {
    const Value& state = graph_.value(write.state);
    TENON_CHECK(!options_.float_dtype || converted(state.spec.dtype) == state.spec.dtype,
                GraphError, "[lower] %{} is written, which another dtype does not allow",
                state.name);
    Location target = location_of(state_tensor(write.state));
    Location value = location_of(graph_.value(write.value).tensor ? state_tensor(write.value)
                                                                  : tensors_.at(write.value));
    const bool is_state =
        program_->buffers[static_cast<std::size_t>(value.buffer)].kind == BufferKind::state;
    if (is_state) value = emit_copy(value);  // another write may come before it is read
    pending.push_back({value, target, write.state});
  }
  for (const Pending& write : pending) {
    program_->written.push_back(graph_.value(write.id).tensor.storage());
    if (write_in_place(write.value, write.state)) continue;
    emit_copy_to(write.value, write.state);
  }
}

void Lowering::plan() {
  auto& buffers = program_->buffers;
  std::vector<BufferLifetime> lifetimes(buffers.size());
  std::vector<bool> seen(buffers.size(), false);
  const auto touch = [&](int buffer, int at) {
    const auto b = static_cast<std::size_t>(buffer);
    if (buffers[b].kind != BufferKind::arena) return;
    if (!seen[b]) lifetimes[b] = {buffers[b].bytes, at, at};
    seen[b] = true;
    lifetimes[b].last = at;
  };
  for (std::size_t i = 0; i < program_->instructions.size(); ++i) {
    const Instruction& instruction = program_->instructions[i];
    for (std::size_t k = 0; k < instruction.inputs.size(); ++k) {
      if (instruction.inputs[k].present) {
        touch(instruction.input_places[k].buffer, static_cast<int>(i));
      }
    }
    for (const Place& place : instruction.output_places) touch(place.buffer, static_cast<int>(i));
    if (instruction.workspace.buffer != kNone) {
      touch(instruction.workspace.buffer, static_cast<int>(i));
    }
  }
  std::vector<std::size_t> planned;
  std::vector<BufferLifetime> needed;
  for (std::size_t b = 0; b < buffers.size(); ++b) {
    if (!seen[b]) continue;
    planned.push_back(b);
    needed.push_back(lifetimes[b]);
  }
  const MemoryPlan plan = plan_memory(needed);
  program_->arena_bytes = plan.arena_bytes;
  program_->live_bound_bytes = plan.live_bound_bytes;
  allocate_arena(plan);
  for (std::size_t i = 0; i < planned.size(); ++i) {
    buffers[planned[i]].data = static_cast<std::byte*>(program_->arena->data()) + plan.offsets[i];
  }
  program_->resolve_fixed_places();
}

/// Names the node at which the most is live when the arena does not fit.
void Lowering::allocate_arena(const MemoryPlan& plan) {
  try {
    program_->arena = Storage::allocate(plan.arena_bytes, program_->device);
  } catch (const OutOfMemory& error) {
    const auto& infos = program_->infos;
    const auto peak = static_cast<std::size_t>(plan.peak);
    throw OutOfMemory(
        fmt::format(
            "[lower] the program needs {} bytes for its intermediate results, {} of them at "
            "{} ({}): {}",
            plan.arena_bytes, plan.live_bound_bytes, infos.at(peak).name, infos.at(peak).kernel,
            error.what()),
        error.requested, error.free_bytes, error.live_bytes);
  }
}

}  // namespace

std::unique_ptr<Program> lower(const Graph& graph, const std::vector<TensorSpec>& inputs,
                               const LowerOptions& options) {
  return std::make_unique<Program>(Lowering(graph, options).run(inputs));
}

}  // namespace tenon
