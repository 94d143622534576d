// Program: a Graph lowered for concrete sizes, dtype, device and mode. Kernels are chosen, views are
// aliases, and intermediate results share one arena; a run allocates only its outputs.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "graph/graph.h"
#include "tensor/random.h"

namespace tenon {

struct WorkTime;

/// Values that state has instead of its own, by the identity of its handle.
using StateValues = std::unordered_map<const TensorImpl*, Tensor>;

struct LowerOptions {
  /// The mode that nodes which follow the root module are lowered in.
  bool training = false;
  /// Runs the whole Graph in another floating dtype, state and inputs converted: verification's
  /// float64 reference.
  std::optional<DType> float_dtype = {};
  /// Runs on another device than the state's, which is copied there.
  std::optional<Device> device = {};
  /// Verification's other parameters; the model's stay as they are.
  const StateValues* states = nullptr;
};

/// What one instruction of a Program does, for listings and measurements.
struct InstructionInfo {
  std::string name;    // the node's full name
  std::string module;  // the path of the module whose call it belongs to; "" outside of all
  std::string kernel;  // "cuda.flash_mma"
  double flops = 0;    // 0 where the op does not say
  double bytes = 0;    // of operands and results, each once and whole; what is broadcast, as stored
  std::string slow_because = {};  // Kernel::slow_because, where the call is large enough to matter
};

/// Program::slow_paths of these instructions.
std::vector<std::string> slow_paths(std::span<const InstructionInfo> instructions);

class Program {
 public:
  ~Program();
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  /// Runs on inputs of exactly the lowered specs. The outputs are the caller's own. In training
  /// mode, and where something draws in evaluation, the generator advances to a new forward first.
  /// Runs of one Program exclude each other, and different Programs run at once; ConcurrencyError
  /// when one on another thread writes state that this one writes. StaleProgram when a parameter
  /// moved to another storage, dtype or device since lowering, or when a hook that would be part of
  /// it was added or taken off; when a module whose mode counts has left its root's; when traced
  /// code asked grad_enabled() and it is off.
  std::vector<Tensor> run(std::span<const Tensor> inputs,
                          Generator& generator = default_generator());

  /// Kernels that one run launches, as the device counts them (kernel nodes of a CUDA graph).
  std::int64_t count_kernels(std::span<const Tensor> inputs,
                             Generator& generator = default_generator());
  const std::vector<InstructionInfo>& instructions() const;
  /// Runs twice, the second time kernel by kernel: when each instruction ran. See graph/profile.h.
  std::vector<WorkTime> time_instructions(std::span<const Tensor> inputs,
                                          Generator& generator = default_generator());
  Device device() const;
  /// Floating-point operations of the products and attentions in it.
  double flops() const;
  /// Runs recorded as CUDA graphs so far and kept: one for each set of addresses that inputs and
  /// outputs had at least twice, on each stream. TENON_CUDA_GRAPHS=never launches kernel by kernel,
  /// which gives the same bits; =always records at the first run.
  std::size_t num_captures() const;
  /// Why no more runs are recorded, after recording one failed; "" where none did. Such runs are
  /// launched kernel by kernel.
  std::string capture_failure() const;
  /// A line for each instruction that is expected to be slow, with the reason and what would help;
  /// equal ones once, with their number. Part of to_string, of profiles and of schedule reports.
  std::vector<std::string> slow_paths() const;
  std::size_t arena_bytes() const;
  std::size_t live_bound_bytes() const;
  /// One line an instruction: kernel, operands, where they live.
  std::string to_string() const;

  struct Impl;
  explicit Program(std::unique_ptr<Impl> impl);

 private:
  std::unique_ptr<Impl> impl_;
};

/// Makes sizes concrete, chooses kernels and plans memory. It never fuses. `inputs` are the specs
/// of the graph's inputs with sizes as numbers; ShapeError or DTypeError when they do not fit them,
/// TraceError naming the guard that these sizes break, StaleProgram as require_current, and when
/// traced code asked training() in the other mode.
std::unique_ptr<Program> lower(const Graph& graph, const std::vector<TensorSpec>& inputs,
                               const LowerOptions& options = {});

/// Moves parameters that a concatenation joins, or one of their views, into one storage, so that
/// lowering can alias the result instead of copying. Names and values stay. Refuses with
/// ScheduleError, nothing moved, when a parameter occurs twice or is part of another packing already.
/// VerificationError, before a storage is used, when a parameter's bytes are not the same in it.
void pack_parameters(const Graph& graph);

}  // namespace tenon
