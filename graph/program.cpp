#include "graph/program.h"

#include <algorithm>
#include <cstdlib>
#include <string_view>

#include "graph/detail/program_impl.h"
#include "graph/detail/writing_run.h"
#include "tensor/device_backend.h"
#include "tensor/support/check.h"
#include "tensor/support/launch_count.h"

namespace tenon {
namespace {

/// TENON_CUDA_GRAPHS: "never" launches kernel by kernel, "always" records at the first run.
enum class CaptureMode : std::uint8_t { automatic, never, always };

CaptureMode capture_mode() {
  const char* value = std::getenv("TENON_CUDA_GRAPHS");
  const std::string_view text = value == nullptr ? "" : value;
  return text == "never"    ? CaptureMode::never
         : text == "always" ? CaptureMode::always
                            : CaptureMode::automatic;
}

}  // namespace

Program::Program(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Program::~Program() = default;

void Program::Impl::resolve(const Patch& patch) {
  Instruction& instruction = instructions[patch.instruction];
  auto& views = patch.output ? instruction.outputs : instruction.inputs;
  const auto& places = patch.output ? instruction.output_places : instruction.input_places;
  TensorView& view = views[patch.operand];
  const Place& place = places[patch.operand];
  auto* base = static_cast<std::byte*>(buffers[static_cast<std::size_t>(place.buffer)].data);
  const auto bytes = place.offset * static_cast<std::int64_t>(size_of(view.dtype));
  view.data = base == nullptr ? nullptr : base + bytes;
}

void Program::Impl::resolve_fixed_places() {
  for (std::size_t i = 0; i < instructions.size(); ++i) {
    for (const bool output : {false, true}) {
      const auto& views = output ? instructions[i].outputs : instructions[i].inputs;
      const auto& places = output ? instructions[i].output_places : instructions[i].input_places;
      for (std::size_t k = 0; k < views.size(); ++k) {
        if (!views[k].present) continue;
        const BufferKind kind = buffers[static_cast<std::size_t>(places[k].buffer)].kind;
        const Patch patch{i, output, k};
        if (kind == BufferKind::input || kind == BufferKind::output) {
          patches.push_back(patch);
        } else {
          resolve(patch);
        }
      }
    }
  }
}

void Program::Impl::check_inputs(std::span<const Tensor> given) const {
  TENON_CHECK(given.size() == inputs.size(), ShapeError,
              "[run] {} inputs were given; the program takes {}", given.size(), inputs.size());
  for (const ParameterSlot& slot : parameters) {
    TENON_CHECK(slot.tensor.storage() == slot.storage && slot.tensor.layout() == slot.layout,
                StaleProgram,
                "parameter '{}' was moved (by to() or another packing) after this program was "
                "built; build again",
                slot.name);
  }
  facts.require_run(training);
  for (std::size_t i = 0; i < given.size(); ++i) {
    const InputSlot& slot = inputs[i];
    TENON_CHECK(given[i].layout().sizes == slot.sizes && given[i].dtype() == slot.dtype &&
                    given[i].device() == device,
                ShapeError,
                "[run] input '{}' is {} on {}; the program was lowered for {}({}) on {}", slot.name,
                given[i].spec().to_string(), given[i].device().to_string(), name(slot.dtype),
                fmt::join(slot.sizes, ", "), device.to_string());
  }
}

Program::Impl::Binding Program::Impl::bind(std::span<const Tensor> given) {
  check_inputs(given);
  Binding binding;
  for (const Tensor& input : given) {
    // A state may be given as an input too, which a run reads as it was before its writes.
    const bool is_written = std::binary_search(written.begin(), written.end(), input.storage());
    binding.inputs.push_back(is_written ? input.clone() : input.contiguous());
  }
  binding.lock = std::unique_lock(mutex);
  for (const OutputSlot& slot : outputs) {
    Buffer& buffer = buffers[static_cast<std::size_t>(slot.buffer)];
    const auto first = static_cast<std::size_t>(buffer.index);  // the output that it was made for
    auto storage = first < binding.outputs.size() ? binding.outputs[first].storage()
                                                  : Storage::allocate(buffer.bytes, device);
    buffer.data = storage->data();
    binding.outputs.emplace_back(std::move(storage), slot.dtype, slot.layout);
  }
  for (Buffer& buffer : buffers) {
    if (buffer.kind == BufferKind::input) {
      buffer.data = binding.inputs[static_cast<std::size_t>(buffer.index)].view_of_data().data;
    }
  }
  for (const Patch& patch : patches) resolve(patch);
  return binding;
}

void Program::Impl::in_order(const Binding& binding, const std::function<void()>& work) {
  WorkScope scope;
  if (!device.is_cpu()) {
    scope.add(memory);
    for (const Tensor& input : binding.inputs) scope.reads(*input.storage());
    for (const Tensor& output : binding.outputs) scope.writes(*output.storage());
    scope.begin();
  }
  work();
}

void Program::Impl::run(const Binding& binding, Generator& generator) {
  const WritingRun writing(*this);
  const RandomState random = training || draws ? generator.next_forward() : generator.state();
  in_order(binding, [&] { execute(random); });
  for (const auto& storage : written) storage->bump_version();
}

std::vector<Tensor> Program::run(std::span<const Tensor> inputs, Generator& generator) {
  Impl::Binding binding = impl_->bind(inputs);
  impl_->run(binding, generator);
  return std::move(binding.outputs);
}

void Program::Impl::launch(std::size_t i, const RandomState& random) {
  DeviceBackend& backend = device_backend(device.type);
  const Instruction& instruction = instructions[i];
  KernelArgs args = instruction.args();
  args.random = random;
  args.stream = backend.stream(device.index);
  args.workspace = workspace_of(instruction);
  const ProfilerRange range(backend, infos[i].name.c_str());
  detail::run_kernel(*instruction.kernel, args);
}

void Program::Impl::launch_each(const RandomState& random) {
  for (std::size_t i = kept; i < instructions.size(); ++i) launch(i, random);
}

void Program::Impl::copy_changed_state(const RandomState& random) {
  std::vector<std::uint64_t> versions;
  for (const auto& storage : kept_state) versions.push_back(storage->version());
  if (versions == kept_versions) return;
  for (std::size_t i = 0; i < kept; ++i) launch(i, random);
  kept_versions = std::move(versions);
}

void Program::Impl::execute(const RandomState& random) {
  copy_changed_state(random);
  if (capture_mode() == CaptureMode::never || !capturable) return launch_each(random);
  Capture& capture = find_capture(random.seed);
  capture.last_use = ++uses;
  if (!capture.work && (capture.seen || capture_mode() == CaptureMode::always)) {
    record(capture, random);
  }
  capture.seen = true;
  if (!capture.work) return launch_each(random);
  const ProfilerRange range(device_backend(device.type), "captured run");
  capture.work->launch(random.forward);
}

void Program::Impl::record(Capture& capture, const RandomState& random) {
  if (!capture_failure.empty()) return;
  try {
    capture.work = device_backend(device.type).capture(device.index, [&](const auto* forward_cell) {
      launch_each({random.seed, random.forward, forward_cell});
    });
  } catch (const DeviceLost&) {
    throw;
  } catch (const std::exception& error) {
    // Launched one by one, the kernels give the same bits, or show what is wrong with them.
    capture_failure = error.what();
  }
}

Capture& Program::Impl::find_capture(std::uint64_t seed) {
  std::vector<const void*> addresses{device_backend(device.type).stream(device.index)};
  for (const Buffer& buffer : buffers) {
    const bool moves = buffer.kind == BufferKind::input || buffer.kind == BufferKind::output;
    if (moves) addresses.push_back(buffer.data);
  }
  for (Capture& capture : captures) {
    if (capture.seed == seed && capture.addresses == addresses) return capture;
  }
  if (captures.size() >= kMaxCaptures) {
    captures.erase(
        std::min_element(captures.begin(), captures.end(),
                         [](const auto& a, const auto& b) { return a.last_use < b.last_use; }));
  }
  return captures.emplace_back(Capture{std::move(addresses), seed, nullptr, false, 0});
}

std::vector<std::string> slow_paths(std::span<const InstructionInfo> instructions) {
  struct Group {
    const InstructionInfo* first;
    int count = 0;
  };
  std::vector<Group> groups;
  for (const InstructionInfo& info : instructions) {
    if (info.slow_because.empty()) continue;
    const auto same = [&](const Group& group) {
      return group.first->kernel == info.kernel && group.first->slow_because == info.slow_because;
    };
    auto group = std::find_if(groups.begin(), groups.end(), same);
    if (group == groups.end()) group = groups.insert(groups.end(), {&info});
    ++group->count;
  }
  std::vector<std::string> lines;
  for (const Group& group : groups) {
    const std::string others =
        group.count > 1 ? fmt::format(" and {} more", group.count - 1) : std::string();
    lines.push_back(fmt::format("{}{} by {}: {}", group.first->name, others, group.first->kernel,
                                group.first->slow_because));
  }
  return lines;
}

std::int64_t Program::count_kernels(std::span<const Tensor> inputs, Generator& generator) {
  const Impl::Binding binding = impl_->bind(inputs);
  impl_->run(binding, generator);
  return device_backend(impl_->device.type).count_kernels(impl_->device.index, [&] {
    impl_->launch_each(generator.state());
  });
}

std::vector<WorkTime> Program::time_instructions(std::span<const Tensor> inputs,
                                                 Generator& generator) {
  const Impl::Binding binding = impl_->bind(inputs);
  impl_->run(binding, generator);
  std::vector<std::function<void()>> work;
  for (std::size_t i = 0; i < impl_->instructions.size(); ++i) {
    work.emplace_back([this, i, random = generator.state()] {
      if (i >= impl_->kept) impl_->launch(i, random);
    });
  }
  std::vector<WorkTime> times;
  const WritingRun writing(*impl_);
  impl_->in_order(binding, [&] {
    times = device_backend(impl_->device.type).time_each(impl_->device.index, work);
  });
  for (const auto& storage : impl_->written) storage->bump_version();
  return times;
}

const std::vector<InstructionInfo>& Program::instructions() const { return impl_->infos; }
std::size_t Program::num_captures() const {
  const std::lock_guard lock(impl_->mutex);
  return static_cast<std::size_t>(
      std::count_if(impl_->captures.begin(), impl_->captures.end(),
                    [](const Capture& c) { return c.work != nullptr; }));
}
std::string Program::capture_failure() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->capture_failure;
}
Device Program::device() const { return impl_->device; }
std::size_t Program::arena_bytes() const { return impl_->arena_bytes; }
std::size_t Program::live_bound_bytes() const { return impl_->live_bound_bytes; }

double Program::flops() const {
  double sum = 0;
  for (const InstructionInfo& info : impl_->infos) sum += info.flops;
  return sum;
}

std::vector<std::string> Program::slow_paths() const { return tenon::slow_paths(impl_->infos); }

std::string Program::to_string() const {
  std::string text;
  constexpr const char* kKinds[] = {"arena", "input", "output", "state"};
  for (std::size_t i = 0; i < impl_->instructions.size(); ++i) {
    const Instruction& instruction = impl_->instructions[i];
    text += fmt::format("{:3}  {:24} {:40}", i, impl_->infos[i].kernel, impl_->infos[i].name);
    for (std::size_t k = 0; k < instruction.outputs.size(); ++k) {
      const Place& place = instruction.output_places[k];
      text += fmt::format(
          " -> {}{} ({})",
          kKinds[static_cast<int>(impl_->buffers[static_cast<std::size_t>(place.buffer)].kind)],
          place.buffer, fmt::join(instruction.outputs[k].sizes, ", "));
    }
    text += "\n";
  }
  for (const std::string& line : slow_paths()) text += "slow: " + line + "\n";
  if (const std::string reason = capture_failure(); !reason.empty()) {
    text +=
        fmt::format("kernels are launched one by one, since recording a run failed: {}\n", reason);
  }
  return text;
}

}  // namespace tenon
