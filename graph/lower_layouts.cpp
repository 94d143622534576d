// Lowering's layouts: results are put where views of them, and concatenations, want them.
#include <algorithm>

#include "graph/detail/concatenation_axis.h"
#include "graph/detail/lowering.h"

namespace tenon {

namespace {

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

}  // namespace

/// Parameters packed next to each other: their concatenation is there already.
std::optional<Location> Lowering::join_adjacent(const Op& op, std::span<const Tensor> inputs,
                                                const Attrs& attrs) const {
  if (!op.has(Trait::concatenation)) return std::nullopt;
  Location joined = location_of(inputs[0]);
  const int axis = detail::concatenation_axis(attrs, joined.layout.rank());
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
  const int axis = detail::concatenation_axis(attrs, output.shape.rank());
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

/// Whether the kernel wants this call's images channels-last.
bool Lowering::lays_channels_last(const Instruction& instruction) const {
  const auto wanted = instruction.kernel->image_layout;
  switch (wanted != nullptr ? wanted(instruction.args()) : ImageLayout::row_major) {
    case ImageLayout::row_major: return false;
    case ImageLayout::channels_last: return true;
    case ImageLayout::as_operands: break;
  }
  return std::any_of(
      instruction.inputs.begin(), instruction.inputs.end(),
      [](const TensorView& view) { return is_channels_last(view.sizes, view.strides); });
}

/// Where the kernel lets lowering choose: what views of the result want, or else, so that regions stay
/// channels-last between ops that are bound to a layout, that of an operand of its sizes.
Layout Lowering::output_layout(const Instruction& instruction, bool images_last,
                               const TensorSpec& spec, std::size_t index) const {
  const Extents sizes = numbers(spec.shape);
  if (images_last && sizes.size() == 4) return {sizes, channels_last_strides(sizes), 0};
  if (!instruction.kernel->strided_output) return Layout::contiguous(sizes);
  if (current_ && !in_decomposition_) {
    if (const auto layout = layout_for_views(current_->outputs.at(index), sizes)) return *layout;
  }
  for (const TensorView& view : instruction.inputs) {
    if (view.present && view.sizes == sizes && is_channels_last(sizes, view.strides)) {
      return {sizes, view.strides, 0};
    }
  }
  return Layout::contiguous(sizes);
}

/// If the value's only view permutes its axes for a reshape that wants row-major order, the dense
/// strides that make the permuted value row-major, so that both become aliases. Other readers, such as
/// the value's own gradient op, take it as it lies.
std::optional<Layout> Lowering::layout_for_views(ValueId id, const Extents& sizes) const {
  const Value& value = graph_.value(id);
  const Node* viewer = nullptr;
  for (const Use& use : value.uses) {
    const Node& user = graph_.node(use.node);
    if (!user.op->view) continue;
    if (viewer != nullptr || user.outputs.size() != 1) return std::nullopt;
    viewer = &user;
  }
  if (viewer == nullptr) return std::nullopt;
  const Value& permuted = graph_.value(viewer->outputs[0]);
  if (permuted.spec.shape.rank() != sizes.size()) return std::nullopt;
  const bool reshaped = std::any_of(permuted.uses.begin(), permuted.uses.end(), [&](const Use& u) {
    return graph_.node(u.node).op->view != nullptr;
  });
  if (!reshaped) return std::nullopt;
  Extents view_sizes;
  for (const Dim& dim : permuted.spec.shape) view_sizes.push_back(dim.evaluate(bindings_));
  const Layout plain = Layout::contiguous(sizes);
  const auto view = viewer->op->view(plain, view_sizes, concrete(viewer->attrs));
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

}  // namespace tenon
