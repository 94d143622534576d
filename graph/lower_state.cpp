// Lowering's last part: which results leave the arena, how state is written back, and the arena.
#include <algorithm>
#include <cstddef>
#include <iterator>
#include <map>
#include <set>

#include "graph/detail/lowering.h"
#include "tensor/support/check.h"

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

/// What is made of state alone that no run of this Program writes, such as filters for channels-last
/// images, or folded ones, comes first and stays from run to run.
void Lowering::keep_what_state_makes() {
  auto& instructions = program_->instructions;
  std::map<int, StateSlot> states;
  for (const StateSlot& state : program_->states) states.emplace(state.buffer, state);
  std::map<int, int> writers;  // of a buffer
  for (const Instruction& instruction : instructions) {
    for (const Place& place : instruction.output_places) ++writers[place.buffer];
  }
  std::set<int> kept;
  std::set<std::shared_ptr<Storage>> sources;
  const auto stays = [&](int buffer) {
    if (kept.contains(buffer)) return true;
    const auto state = states.find(buffer);
    return state != states.end() &&
           !std::ranges::binary_search(program_->written, state->second.storage);
  };
  const auto is_kept = [&](const Instruction& instruction) {
    if (instruction.op->has(Trait::random) || instruction.op->has(Trait::effect)) return false;
    bool reads = false;
    for (std::size_t k = 0; k < instruction.inputs.size(); ++k) {
      if (!instruction.inputs[k].present) continue;
      if (!stays(instruction.input_places[k].buffer)) return false;
      reads = true;
    }
    return reads && std::ranges::all_of(instruction.output_places, [&](const Place& place) {
             const auto kind = program_->buffers[static_cast<std::size_t>(place.buffer)].kind;
             return kind == BufferKind::arena && writers[place.buffer] == 1;
           });
  };
  std::vector<Instruction> first, rest;
  std::vector<InstructionInfo> first_infos, rest_infos;
  for (std::size_t i = 0; i < instructions.size(); ++i) {
    const bool is_first = is_kept(instructions[i]);
    (is_first ? first_infos : rest_infos).push_back(std::move(program_->infos[i]));
    if (is_first) {
      for (const Place& place : instructions[i].output_places) kept.insert(place.buffer);
      for (std::size_t k = 0; k < instructions[i].inputs.size(); ++k) {
        const auto state = states.find(instructions[i].input_places[k].buffer);
        if (state != states.end()) sources.insert(state->second.storage);
      }
    }
    (is_first ? first : rest).push_back(std::move(instructions[i]));
  }
  program_->kept = first.size();
  program_->kept_state.assign(sources.begin(), sources.end());
  std::ranges::move(rest, std::back_inserter(first));
  std::ranges::move(rest_infos, std::back_inserter(first_infos));
  instructions = std::move(first);
  program_->infos = std::move(first_infos);
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
  const auto kept = static_cast<int>(program_->kept);
  for (int i = 0; i < kept; ++i) {  // what the others read stays; the rest is made again with it
    for (const Place& place : program_->instructions[static_cast<std::size_t>(i)].output_places) {
      BufferLifetime& lifetime = lifetimes[static_cast<std::size_t>(place.buffer)];
      if (lifetime.last < kept) continue;
      lifetime.first = 0;
      lifetime.last = static_cast<int>(program_->instructions.size()) - 1;
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
