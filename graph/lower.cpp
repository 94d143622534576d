// Lowering: Graph -> Program. Each node is handed, in order, to an interpreter that emits
// instructions; an op without a kernel is expanded by running its decomposition under the same
// interpreter.
#include <algorithm>

#include "graph/detail/lowering.h"
#include "graph/evaluate_attrs.h"
#include "tensor/device_backend.h"
#include "tensor/support/check.h"

namespace tenon {

const Location& location_of(const Tensor& tensor) {
  const auto* lowered = dynamic_cast<const LoweredValue*>(tensor.impl()->payload.get());
  TENON_INTERNAL(lowered != nullptr, "an operand was not lowered");
  return lowered->location;
}

namespace {

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

}  // namespace

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
  if (!inputs.empty()) {
    program_->device = inputs[0].device;
  } else if (!graph_.order().empty()) {
    program_->device = graph_.value(graph_.node(graph_.order()[0]).outputs.at(0)).spec.device;
  }
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
  return tenon::converted(evaluated(attrs, bindings_), options_.float_dtype, program_->device);
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
  program_->parameters.push_back(
      {value.name, value.tensor, value.tensor.storage(), value.tensor.layout()});
  return tensors_[id] = held_tensor(tensor);
}

/// Stands for memory that the Program keeps.
Tensor Lowering::held_tensor(const Tensor& tensor) {
  Location location;
  location.dtype = tensor.dtype();
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
  return make_tensor(location, location.layout.sizes);
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

std::vector<Tensor> Lowering::apply(const Op& op, std::span<const Tensor> given,
                                    const Attrs& attrs) {
  std::vector<Tensor> inputs(given.begin(), given.end());
  for (Tensor& input : inputs) {  // a decomposition makes constants
    if (input && input.is_eager()) input = held_tensor(input);
  }
  std::vector<const TensorSpec*> specs;
  for (const Tensor& input : inputs) specs.push_back(input ? &input.spec() : nullptr);
  const std::vector<TensorSpec> outputs = infer(op, specs, attrs);
  if (op.identity && op.identity(attrs, options_.training)) return {inputs[0]};
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

void Lowering::emit(Instruction instruction) {
  InstructionInfo info;
  info.name = current_ ? graph_.full_name(current_->id) : "output";
  if (current_) info.module = graph_.call(current_->call).path;
  info.kernel = instruction.kernel->name;
  if (instruction.op->flops) info.flops = instruction.op->flops(instruction.args());
  for (const TensorView& view : instruction.inputs) info.bytes += bytes_of(view);
  for (const TensorView& view : instruction.outputs) info.bytes += bytes_of(view);
  // Below that a launch costs more than the work.
  constexpr double kFewestBytes = 1 << 20;
  constexpr double kFewestFlops = 1e8;
  const auto slow = instruction.kernel->slow_because;
  if (slow != nullptr && (info.bytes >= kFewestBytes || info.flops >= kFewestFlops)) {
    info.slow_because = slow(instruction.args());
  }
  if (instruction.op->has(Trait::effect)) program_->capturable = false;
  program_->draws |= draws(*instruction.op, instruction.attrs, options_.training);
  plan_workspace(instruction);
  program_->infos.push_back(std::move(info));
  program_->instructions.push_back(std::move(instruction));
}

Location Lowering::emit_copy(const Location& source) {
  return emit_copy(source, contiguous_strides(source.layout.sizes));
}

Location Lowering::emit_copy(const Location& source, const Extents& strides) {
  Location target = source;
  target.layout = {source.layout.sizes, strides, 0};
  target.buffer = new_buffer(
      static_cast<std::size_t>(source.layout.numel()) * size_of(source.dtype), BufferKind::arena);
  emit_copy_to(source, target);
  return target;
}

/// Inputs and state stay as they are while operands are read: one copy serves all who want it, such as a
/// convolution and its gradients.
Location Lowering::operand_copy(const Location& source, const Extents& strides) {
  const BufferKind kind = program_->buffers[static_cast<std::size_t>(source.buffer)].kind;
  if (kind != BufferKind::state && kind != BufferKind::input) return emit_copy(source, strides);
  for (const auto& [original, copy] : copies_) {
    if (original.buffer == source.buffer && original.layout == source.layout &&
        original.dtype == source.dtype && copy.layout.strides == strides) {
      return copy;
    }
  }
  return copies_.emplace_back(source, emit_copy(source, strides)).second;
}

void Lowering::emit_copy_to(const Location& source, const Location& target) {
  Instruction copy;
  copy.op = &get_op("clone");
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
    if (kernel.supports == nullptr || kernel.supports(args)) return &kernel;
  }
  const auto& operands = current_->inputs.empty() ? current_->outputs : current_->inputs;
  TENON_CHECK(wanted == kDecomposition, DeviceError,
              "[{}] {} is bound to {}, which does not take {}", op.name,
              graph_.full_name(current_->id), wanted, graph_.value(operands[0]).spec.to_string());
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
  const bool images_last = lays_channels_last(instruction);
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    if (!inputs[i]) continue;
    const Layout& layout = locations[i].layout;
    const auto accepts = instruction.kernel->accepts;
    if (images_last && layout.rank() == 4) {
      const Extents wanted = channels_last_strides(layout.sizes);
      const bool either = layout.is_contiguous() &&
                          !is_channels_last(layout.sizes, wanted);  // the same memory
      if (!either && !is_channels_last(layout.sizes, layout.strides)) {
        locations[i] = operand_copy(locations[i], wanted);
      }
      locations[i].layout.strides = wanted;
      instruction.inputs[i] = view_of(locations[i]);
    } else if (accepts ? !accepts(static_cast<int>(i), instruction.inputs[i])
                       : !layout.is_contiguous()) {
      locations[i] = operand_copy(locations[i], contiguous_strides(layout.sizes));
      instruction.inputs[i] = view_of(locations[i]);
    }
    instruction.input_places[i] = {locations[i].buffer, locations[i].layout.offset};
  }
  std::vector<Tensor> results;
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    Location location;
    location.dtype = outputs[i].dtype;
    location.layout = output_layout(instruction, images_last, outputs[i], i);
    location.buffer =
        new_buffer(static_cast<std::size_t>(location.layout.numel()) * size_of(location.dtype),
                   BufferKind::arena);
    instruction.outputs[i] = view_of(location);
    instruction.output_places.push_back({location.buffer, 0});
    const int operand =
        op.repeats != nullptr ? op.repeats(attrs, options_.training, static_cast<int>(i)) : -1;
    const bool repeats = operand >= 0 && inputs[static_cast<std::size_t>(operand)];
    results.push_back(repeats ? inputs[static_cast<std::size_t>(operand)]
                              : make_tensor(location, location.layout.sizes));
  }
  emit(std::move(instruction));
  return results;
}

std::unique_ptr<Program> lower(const Graph& graph, const std::vector<TensorSpec>& inputs,
                               const LowerOptions& options) {
  require_current(graph);
  graph.facts().require_mode(options.training);
  return std::make_unique<Program>(Lowering(graph, options).run(inputs));
}

}  // namespace tenon
