// Lowering's last part: which results leave the arena, how state is written back, and the arena.
#include <algorithm>
#include <set>
#include <cstddef>

#include "graph/detail/lowering.h"
#include "tensor/detail/check.h"

namespace tenon {

namespace {

/// Whether an instruction's operand or result may lie where `state` does, in one buffer.
bool overlaps(TensorView view, const Place& place, const Location& state) {
  if (!view.present || place.buffer != state.buffer) return false;
  const auto element = static_cast<std::ptrdiff_t>(size_of(view.dtype));
  const auto state_element = static_cast<std::ptrdiff_t>(size_of(state.dtype));
  TensorView other;
  other.dtype = state.dtype;
  other.device = view.device;
  other.sizes = state.layout.sizes;
  other.strides = state.layout.strides;
  // Only their distance counts.
  view.data = reinterpret_cast<void*>(place.offset * element);
  other.data = reinterpret_cast<void*>(state.layout.offset * state_element);
  return overlap(view, other);
}

}  // namespace

void Lowering::place_outputs() {
  current_ = nullptr;
  std::vector<Location> locations;
  for (ValueId id : graph_.outputs()) {
    const bool state = graph_.value(id).tensor.defined();
    locations.push_back(location_of(state ? state_tensor(id) : tensors_.at(id)));
  }
  std::vector<bool> tiles;
  for (const Location& location : locations) {
    tiles.push_back(tile_the_buffer(location.buffer, locations));
  }
  for (std::size_t i = 0; i < locations.size(); ++i) {
    Location& location = locations[i];
    const bool is_image = is_channels_last(location.layout.sizes, location.layout.strides);
    if (is_image || (!tiles[i] && !fills_its_buffer(location))) location = emit_copy(location);
    // The buffer leaves the arena: a run binds it to fresh memory, which the caller then owns.
    Buffer& buffer = program_->buffers[static_cast<std::size_t>(location.buffer)];
    if (buffer.kind != BufferKind::output) buffer.index = static_cast<int>(i);
    buffer.kind = BufferKind::output;
    program_->outputs.push_back({location.dtype, location.layout, location.buffer});
  }
}

/// Whether the results in an arena buffer are all of it, each byte once, as the parts of a joined
/// gradient are: then they leave the arena together.
bool Lowering::tile_the_buffer(int index, std::span<const Location> results) const {
  const Buffer& buffer = program_->buffers[static_cast<std::size_t>(index)];
  std::vector<std::pair<std::size_t, std::size_t>> pieces;  // [begin, end) in bytes
  for (const Location& result : results) {
    if (result.buffer != index) continue;
    const auto begin = static_cast<std::size_t>(result.layout.offset) * size_of(result.dtype);
    const auto bytes = static_cast<std::size_t>(result.layout.numel()) * size_of(result.dtype);
    if (!result.layout.is_contiguous()) return false;
    pieces.emplace_back(begin, begin + bytes);
  }
  std::sort(pieces.begin(), pieces.end());
  std::size_t end = 0;
  for (const auto& piece : pieces) {
    if (piece.first != end) return false;
    end = piece.second;
  }
  return buffer.kind == BufferKind::arena && end == buffer.bytes;
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
    int readers = 0;
    for (std::size_t k = 0; k < at->inputs.size(); ++k) {
      if (!overlaps(at->inputs[k], at->input_places[k], state)) continue;
      // A pointwise kernel reads an element before it writes the same one.
      const bool updates = at->op->has(Trait::update) && ++readers == 1;
      const bool same_elements = at == maker && (at->op->has(Trait::elementwise) || updates) &&
                                 at->input_places[k].offset == state.layout.offset &&
                                 at->inputs[k].sizes == state.layout.sizes &&
                                 at->inputs[k].strides == state.layout.strides;
      if (!same_elements) return false;
    }
    for (std::size_t k = 0; k < at->outputs.size(); ++k) {
      if (overlaps(at->outputs[k], at->output_places[k], state)) return false;
    }
  }
  const int moved = value.buffer;
  const auto move = [&](std::vector<Place>& places) {
    for (Place& place : places) {
      if (place.buffer == moved) place = {state.buffer, place.offset + state.layout.offset};
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
    std::shared_ptr<Storage> storage;
    bool keeps;  // the state is its own new value
  };
  std::vector<Pending> pending;
  std::set<int> changed;  // buffers
  for (const StateWrite& write : graph_.writes()) {
    const Value& state = graph_.value(write.state);
    TENON_CHECK(!options_.float_dtype || converted(state.spec.dtype) == state.spec.dtype,
                GraphError, "[lower] %{} is written, which another dtype does not allow",
                state.name);
    Location target = location_of(state_tensor(write.state));
    Location value = location_of(graph_.value(write.value).tensor ? state_tensor(write.value)
                                                                  : tensors_.at(write.value));
    const bool keeps = value.buffer == target.buffer && value.layout == target.layout;
    pending.push_back({value, target, state.tensor.storage(), keeps});
    if (!keeps) changed.insert(target.buffer);
  }
  // What keeps its value is no write, unless another one may change the same memory.
  std::erase_if(pending, [&](const Pending& write) {
    return write.keeps && !changed.contains(write.state.buffer);
  });
  for (Pending& write : pending) {
    const bool is_state =
        program_->buffers[static_cast<std::size_t>(write.value.buffer)].kind == BufferKind::state;
    if (is_state) write.value = emit_copy(write.value);  // another may come before it is read
    program_->written.push_back(write.storage);
  }
  std::sort(program_->written.begin(), program_->written.end());
  const auto same = std::unique(program_->written.begin(), program_->written.end());
  program_->written.erase(same, program_->written.end());
  for (std::size_t i = 0; i < pending.size(); ++i) {
    const Location& value = pending[i].value;
    const Location& state = pending[i].state;
    if (!write_in_place(value, state)) {
      emit_copy_to(value, state);
      continue;
    }
    for (std::size_t k = i + 1; k < pending.size(); ++k) {  // the same value, or a view of it
      Location& other = pending[k].value;
      if (other.buffer != value.buffer) continue;
      other.buffer = state.buffer;
      other.layout.offset += state.layout.offset;
    }
  }
}

/// Copies of state that no run of this Program writes, such as filters for channels-last images, come
/// first and stay from run to run.
void Lowering::keep_copies_of_state() {
  auto& instructions = program_->instructions;
  std::set<int> copies;
  for (const auto& [original, copy] : copies_) {
    const auto state = std::ranges::find(program_->states, original.buffer, &StateSlot::buffer);
    if (state == program_->states.end()) continue;  // of an input
    if (std::ranges::binary_search(program_->written, state->storage)) continue;
    copies.insert(copy.buffer);
    program_->kept_state.push_back(state->storage);
  }
  const auto is_kept = [&](std::size_t i) {
    const Instruction& instruction = instructions[i];
    return instruction.op->name == "clone" && copies.contains(instruction.output_places[0].buffer);
  };
  std::vector<Instruction> ordered;
  std::vector<InstructionInfo> infos;
  for (const bool first : {true, false}) {
    for (std::size_t i = 0; i < instructions.size(); ++i) {
      if (is_kept(i) != first) continue;
      ordered.push_back(instructions[i]);
      infos.push_back(program_->infos[i]);
    }
    if (first) program_->kept = ordered.size();
  }
  instructions = std::move(ordered);
  program_->infos = std::move(infos);
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
  for (std::size_t i = 0; i < program_->kept; ++i) {
    const int kept = program_->instructions[i].output_places[0].buffer;
    touch(kept, static_cast<int>(program_->instructions.size()) - 1);
    lifetimes[static_cast<std::size_t>(kept)].first = 0;
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
  if (program_->device.is_cpu()) return;
  for (const StateSlot& state : program_->states) {
    const bool is_written = std::ranges::binary_search(program_->written, state.storage);
    program_->memory.push_back({state.storage.get(), is_written});
  }
  program_->memory.push_back({program_->arena.get(), true});
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

}  // namespace tenon
