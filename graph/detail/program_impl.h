// The inside of a Program, shared by lowering, which fills it, and Program, which runs it.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "graph/graph.h"
#include "graph/program.h"
#include "tensor/device_backend.h"
#include "tensor/op.h"

namespace tenon {

enum class BufferKind : std::uint8_t { arena, input, output, state };

struct Buffer {
  BufferKind kind = BufferKind::arena;
  std::size_t bytes = 0;
  int index = kNone;     // inputs and outputs: which one
  void* data = nullptr;  // arena and state: fixed at lowering
};

/// A position in a buffer, in elements of the view that is put there.
struct Place {
  int buffer = kNone;
  std::int64_t offset = 0;
};

struct Instruction {
  const Op* op = nullptr;
  const Kernel* kernel = nullptr;
  Attrs attrs;
  bool training = false;
  std::vector<TensorView> inputs;
  std::vector<TensorView> outputs;
  std::vector<Place> input_places;
  std::vector<Place> output_places;
  Place workspace;  // no buffer: the kernel needs none

  KernelArgs args() const {
    return {.op = op, .inputs = inputs, .outputs = outputs, .attrs = &attrs, .training = training};
  }
};

struct InputSlot {
  DType dtype = DType::float32;
  Extents sizes;
  std::string name;
};

struct OutputSlot {
  DType dtype = DType::float32;
  Layout layout;
  int buffer = kNone;
};

/// A storage that state lives in, kept alive by the Program.
struct StateSlot {
  std::shared_ptr<Storage> storage;
  int buffer = kNone;
};

/// A parameter as it was at lowering, to notice that it moved.
struct ParameterSlot {
  std::string name;
  Tensor tensor;
  std::shared_ptr<Storage> storage;
  Layout layout;
};

/// An operand whose address changes from run to run.
struct Patch {
  std::size_t instruction = 0;
  bool output = false;
  std::size_t operand = 0;
};

/// A run recorded for the stream that it was on and the addresses that inputs and outputs had in
/// it. Where the same come back, as they do in a loop, the record is launched instead of the
/// kernels.
struct Capture {
  std::vector<const void*> addresses;  // the stream's first
  std::uint64_t seed = 0;
  std::unique_ptr<CapturedWork> work;  // made when the addresses come a second time
  bool seen = false;
  std::uint64_t last_use = 0;
};
inline constexpr std::size_t kMaxCaptures =
    16;  // of one Program; the least recently used goes first

struct Program::Impl {
  Device device;
  bool training = false;
  bool draws = false;  // some instruction reads the random state
  std::vector<Buffer> buffers;
  std::vector<Instruction> instructions;
  std::vector<InstructionInfo> infos;
  /// The first instructions copy state into other layouts: only where its contents changed since.
  std::size_t kept = 0;
  std::vector<std::shared_ptr<Storage>> kept_state;
  std::vector<std::uint64_t> kept_versions;  // of that state as copied; empty before the first run
  std::vector<InputSlot> inputs;
  std::vector<OutputSlot> outputs;
  std::vector<StateSlot> states;
  std::vector<ParameterSlot> parameters;
  std::vector<std::shared_ptr<Storage>> written;  // by state writes; in order of address
  RecordedFacts facts;
  std::shared_ptr<Storage> arena;
  std::size_t arena_bytes = 0;
  std::size_t live_bound_bytes = 0;
  std::vector<Patch> patches;
  std::vector<Capture> captures;
  std::uint64_t uses = 0;
  bool capturable = true;  // false with an effect, which a record would not repeat
  std::string capture_failure;    // why nothing is recorded any more; "" while nothing failed
  std::vector<MemoryUse> memory;  // of the arena and the state
  std::mutex mutex;  // of a run: captures, and the addresses that the instructions are given

  /// One run's tensors. Until it is gone, the Program is this thread's.
  struct Binding {
    std::vector<Tensor> inputs;
    std::vector<Tensor> outputs;
    std::unique_lock<std::mutex> lock;
  };
  /// Checks the inputs, allocates the outputs and puts their addresses into the instructions.
  Binding bind(std::span<const Tensor> inputs);
  void check_inputs(std::span<const Tensor> inputs) const;
  /// Calls `work`, which queues a bound run, in the order of its memory.
  void in_order(const Binding& binding, const std::function<void()>& work);
  /// A whole run.
  void run(const Binding& binding, Generator& generator);

  /// Runs on the addresses that inputs and outputs are bound to.
  void execute(const RandomState& random);
  /// Records the run, unless something speaks against it, which is noted.
  void record(Capture& capture, const RandomState& random);
  void launch_each(const RandomState& random);
  /// Launches those of the kept copies' instructions that are due.
  void copy_changed_state(const RandomState& random);
  /// Launches the i-th instruction.
  void launch(std::size_t i, const RandomState& random);
  Capture& find_capture(std::uint64_t seed);
  void* workspace_of(const Instruction& instruction) const {
    const int buffer = instruction.workspace.buffer;
    return buffer == kNone ? nullptr : buffers[static_cast<std::size_t>(buffer)].data;
  }
  /// Writes the addresses that never change and lists those that do.
  void resolve_fixed_places();
  void resolve(const Patch& patch);
};

}  // namespace tenon
