// Scaled dot-product attention by cuDNN: softmax(query·keyᵀ·scale)·value, without or with a causal
// mask, without dropout, for 16-bit floats in any layout whose rows are dense and aligned.
//
// cuDNN is given the composition as a graph, in which it recognizes attention. A graph is planned
// once for each device, sizes and strides, by cuDNN's heuristic: never measured, and only engines
// that give the same bits in every run. What it does not take goes to the op's next kernel.
#include "cuda/kernels/attention_cudnn.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <string_view>
#include <unordered_map>

#include "cuda/cudnn_graph.h"
#include "cuda/kernels/attention.h"
#include "cuda/kernels/register.h"
#include "cuda/relaxed_capture.h"
#include "tensor/detail/check.h"

namespace tenon::cuda {
namespace {

/// Plans are never dropped, since captured graphs may launch their kernels; calls that would make
/// more go to the next kernel.
constexpr std::size_t kMaxPlans = 1024;
/// Shorter rows gain less than a launch of cuDNN's costs more.
constexpr std::int64_t kPreferredLength = 256;

/// One operand: (batch, heads, rows, columns).
struct Operand {
  CudnnAxes sizes;
  CudnnAxes strides;
};

/// Rows that cuDNN's vector loads can read, each element in its own place. Before addresses are known
/// they count as aligned.
bool has_vector_rows(const TensorView& view) {
  if (!has_dense_rows(view) || reinterpret_cast<std::uintptr_t>(view.data) % 16 != 0) return false;
  for (int axis = 0; axis < view.rank() - 1; ++axis) {
    const std::int64_t stride = view.strides[axis];
    if (view.sizes[axis] > 1 && (stride <= 0 || stride % 8 != 0)) return false;
  }
  return true;
}

/// An axis of size 1 gets the stride of a row-major tensor, so that equal calls look equal.
Operand operand_of(const TensorView& view) {
  Operand result{{1, 1, 1, 1}, {}};
  for (int axis = 3; axis >= 0; --axis) {
    const int from_end = axis - 4;
    const std::size_t i = static_cast<std::size_t>(axis);
    const bool exists = -from_end <= view.rank();
    if (exists) result.sizes[i] = view.size(from_end);
    result.strides[i] = result.sizes[i] > 1 ? view.stride(from_end)
                        : axis == 3         ? 1
                                            : result.sizes[i + 1] * result.strides[i + 1];
  }
  return result;
}

/// The operand as the kernel will get it: what has no vector rows is copied to row-major order.
Operand packed_operand_of(const TensorView& view) {
  if (has_vector_rows(view)) return operand_of(view);
  TensorView packed = view;
  packed.strides = contiguous_strides(view.sizes);
  return operand_of(packed);
}

/// A forward call, whatever its addresses and scale.
struct Call {
  std::int64_t device;
  std::int64_t dtype;
  std::int64_t is_causal;
  std::int64_t wants_lse;
  Operand query, key, value, output;

  friend bool operator==(const Call& a, const Call& b) {
    return std::memcmp(&a, &b, sizeof(Call)) == 0;
  }
};
static_assert(sizeof(Call) == (4 + 4 * 8) * sizeof(std::int64_t), "no padding: compared as bytes");

struct CallHash {
  std::size_t operator()(const Call& call) const {
    return std::hash<std::string_view>{}({reinterpret_cast<const char*>(&call), sizeof(Call)});
  }
};

/// What a run binds; those that are 0 are not in the graph.
struct Tensors {
  CudnnGraph::Value query = 0, key = 0, value = 0, output = 0;
  CudnnGraph::Value scale = 0, minus_infinity = 0, lse = 0;
};

CudnnGraph build_forward(const Call& call, Tensors& t) {
  const cudnnDataType_t type = cudnn_type(static_cast<DType>(call.dtype));
  const auto [batch, heads, length, head] = call.query.sizes;
  CudnnGraph graph;
  t.query = graph.memory(type, call.query.sizes, call.query.strides);
  t.key = graph.transposed_memory(type, call.key.sizes, call.key.strides);
  t.value = graph.memory(type, call.value.sizes, call.value.strides);
  t.output = graph.memory(type, call.output.sizes, call.output.strides);
  t.scale = graph.number();

  auto scores = graph.pointwise(CUDNN_POINTWISE_MUL, {graph.matmul(t.query, t.key), t.scale});
  if (call.is_causal != 0) {
    t.minus_infinity = graph.number();
    const auto row = graph.index(2, scores);
    const auto column = graph.index(3, scores);
    const auto visible = graph.at_least(row, column);
    scores = graph.pointwise(CUDNN_POINTWISE_BINARY_SELECT, {scores, t.minus_infinity, visible});
  }
  const auto largest = graph.reduce(CUDNN_REDUCE_TENSOR_MAX, scores);
  const auto below = graph.pointwise(CUDNN_POINTWISE_SUB, {scores, largest});
  const auto power = graph.pointwise(CUDNN_POINTWISE_EXP, {below});
  const auto sum = graph.reduce(CUDNN_REDUCE_TENSOR_ADD, power);
  // cuDNN recognizes attention by its log-sum-exp, be it stored or not.
  const auto logarithm = graph.pointwise(CUDNN_POINTWISE_LOG, {sum});
  if (call.wants_lse != 0) {
    t.lse =
        graph.memory(CUDNN_DATA_FLOAT, {batch, heads, length, 1}, {heads * length, length, 1, 1});
    graph.pointwise(CUDNN_POINTWISE_ADD, {largest, logarithm}, t.lse);
  } else {
    graph.pointwise(CUDNN_POINTWISE_ADD, {largest, logarithm});
  }
  const auto probability = graph.rounded(CUDNN_POINTWISE_DIV, {power, sum}, type);
  graph.matmul(probability, t.value, t.output);
  return graph;
}

struct Planned {
  Planned(const Call& call, cudnnHandle_t handle) : plan(build_forward(call, tensors), handle) {}
  Tensors tensors;
  CudnnPlan plan;
};

/// The plan of a call, made at its first use and compiled by `compile`; null when there are too many.
/// It stays where it is until the process ends.
Planned* find_plan(const Call& call) {
  static std::mutex mutex;
  static auto* plans = new std::unordered_map<Call, std::unique_ptr<Planned>, CallHash>;
  const std::lock_guard lock(mutex);
  if (const auto found = plans->find(call); found != plans->end()) return found->second.get();
  if (plans->size() >= kMaxPlans) return nullptr;
  CudnnLibrary& library = cudnn_library(static_cast<int>(call.device));
  const std::lock_guard library_lock(library.mutex);
  use_device(static_cast<int>(call.device));
  return plans->emplace(call, std::make_unique<Planned>(call, library.handle.get()))
      .first->second.get();
}

bool wants_lse(const KernelArgs& args) { return args.outputs.size() > 1; }

Call call_of(const KernelArgs& args) {
  const TensorView& output = args.outputs[0];
  return {output.device.index,
          static_cast<std::int64_t>(output.dtype),
          args.attributes<AttentionAttrs>().is_causal,
          wants_lse(args),
          packed_operand_of(args.inputs[0]),
          packed_operand_of(args.inputs[1]),
          packed_operand_of(args.inputs[2]),
          operand_of(output)};
}

bool drops(const KernelArgs& args) {
  const auto& attributes = args.attributes<AttentionAttrs>();
  const bool training = attributes.mode == DropoutMode::train ||
                        (attributes.mode == DropoutMode::follow && args.training);
  return training && attributes.dropout_p != 0;
}

/// What can be told without asking cuDNN.
std::string refusal_of_arguments(const KernelArgs& args) {
  const TensorView& query = args.inputs[0];
  if (!cudnn_attention_takes(query.dtype, query.size(-1), args.inputs[2].size(-1))) {
    return "needed 16-bit floats and head sizes that are multiples of 8 up to 256";
  }
  if (query.rank() > 4) return "needed at most two batch axes";
  if (args.outputs[0].numel() == 0 || args.inputs[1].numel() == 0) return "an operand is empty";
  if (args.inputs[3].present) return "a mask is given";
  if (drops(args)) return "dropout is active";
  const auto scale = static_cast<float>(args.attributes<AttentionAttrs>().scale.value());
  if (!(scale > 0) || !std::isfinite(scale)) return "needed a positive scale";
  // Decisions of a dropout that is not active are still to be stored.
  if (wants_lse(args) && args.outputs[2].numel() > 0) return "keep_bits are wanted";
  return "";
}

/// The plan of a call that cuDNN takes, compiled; null for the others.
Planned* compiled_plan(const KernelArgs& args) {
  if (!refusal_of_arguments(args).empty() || !has_vector_rows(args.outputs[0])) return nullptr;
  const Call call = call_of(args);
  Planned* planned = find_plan(call);
  if (planned == nullptr) return nullptr;
  CudnnLibrary& library = cudnn_library(static_cast<int>(call.device));
  const std::lock_guard lock(library.mutex);
  use_device(static_cast<int>(call.device));
  return planned->plan.compile(library.handle.get()) ? planned : nullptr;
}

/// The op's first implementation after cuDNN's that takes the call: what runs when cuDNN does not.
const Kernel& next_kernel(const KernelArgs& args) {
  for (const Kernel& kernel : args.op->kernels(DeviceType::cuda)) {
    if (kernel.name == kCudnnAttention) continue;
    if (kernel.supports == nullptr || kernel.supports(args)) return kernel;
  }
  TENON_INTERNAL(false, "[{}] no kernel beside cuDNN's", args.op->name);
}

std::size_t workspace_bytes(const KernelArgs& args) {
  const Kernel& next = next_kernel(args);
  const std::size_t bytes = next.workspace_bytes ? next.workspace_bytes(args) : 0;
  const Planned* planned = compiled_plan(args);
  return std::max(bytes, planned != nullptr ? planned->plan.workspace_bytes() : 0);
}

void run(const KernelArgs& args) {
  const bool aligned = std::ranges::all_of(args.inputs.first(3), has_vector_rows);
  Planned* planned = aligned ? compiled_plan(args) : nullptr;
  if (planned == nullptr) return next_kernel(args).run(args);
  TENON_INTERNAL(args.workspace != nullptr || planned->plan.workspace_bytes() == 0,
                 "[{}] {} is run without its workspace", args.op->name, kCudnnAttention);
  auto scale = static_cast<float>(args.attributes<AttentionAttrs>().scale.value());
  float minus_infinity = -std::numeric_limits<float>::infinity();
  const Tensors& t = planned->tensors;
  const CudnnBinding bindings[] = {{t.query, args.inputs[0].data},
                                   {t.key, args.inputs[1].data},
                                   {t.value, args.inputs[2].data},
                                   {t.output, args.outputs[0].data},
                                   {t.scale, &scale},
                                   {t.minus_infinity, &minus_infinity},
                                   {t.lse, wants_lse(args) ? args.outputs[1].data : nullptr}};
  const Stream stream = stream_of(args);
  use_device(stream.device);
  CudnnLibrary& library = cudnn_library(stream.device);
  const std::lock_guard lock(library.mutex);
  const RelaxedCapture relaxed;  // a plan's first run may load its kernels
  TENON_CUDNN_CHECK(cudnnSetStream(library.handle.get(), stream.handle));
  planned->plan.run(library.handle.get(), bindings, args.workspace);
}

bool supports(const KernelArgs& args) { return cudnn_attention_refusal(args).empty(); }

bool is_preferred(const KernelArgs& args) {
  const bool in_program = args.inputs[0].data == nullptr;
  return cudnn_attention_preferred(args.inputs[0].size(-2), args.inputs[1].size(-2), in_program) &&
         supports(args);
}

bool accepts(int operand, const TensorView& view) { return operand >= 3 || has_vector_rows(view); }

void add_kernel(bool (*takes)(const KernelArgs&)) {
  register_kernel("scaled_dot_product_attention", DeviceType::cuda,
                  {.name = kCudnnAttention,
                   .run = run,
                   .supports = takes,
                   .accepts = accepts,
                   .strided_output = true,
                   .workspace_bytes = workspace_bytes});
}

}  // namespace

bool cudnn_attention_takes(DType dtype, std::int64_t head, std::int64_t head_v) {
  const auto fits = [](std::int64_t size) { return size > 0 && size <= 256 && size % 8 == 0; };
  return (dtype == DType::float16 || dtype == DType::bfloat16) && fits(head) && fits(head_v);
}

bool cudnn_attention_preferred(std::int64_t length, std::int64_t keys, bool in_program) {
  return in_program && length >= kPreferredLength && keys >= kPreferredLength;
}

std::string cudnn_attention_refusal(const KernelArgs& args) {
  if (std::string reason = refusal_of_arguments(args); !reason.empty()) return reason;
  const Planned* planned = find_plan(call_of(args));
  return planned != nullptr ? planned->plan.refusal() : "too many plans are in use";
}

void register_preferred_attention_cudnn_kernels() { add_kernel(is_preferred); }

void register_attention_cudnn_kernels() { add_kernel(supports); }

}  // namespace tenon::cuda
