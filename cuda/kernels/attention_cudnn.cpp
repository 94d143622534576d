// Scaled dot-product attention and its gradient by cuDNN: softmax(query·keyᵀ·scale)·value, without or
// with a causal mask, without dropout, for 16-bit floats in any layout whose rows are dense and aligned.
//
// cuDNN is given the composition as a graph, in which it recognizes attention. A graph is planned
// once for each device, sizes and strides, by cuDNN's heuristic, never by measurement, and gives the
// same bits in every run. What cuDNN does not take goes to the op's next kernel.
#include "cuda/kernels/attention_cudnn.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "cuda/context.h"
#include "cuda/cudnn_graph.h"
#include "cuda/kernels/attention.h"
#include "cuda/kernels/register.h"
#include "tensor/support/check.h"

namespace tenon::cuda {
namespace {

constexpr const char* kForwardOps[] = {"scaled_dot_product_attention",
                                       "scaled_dot_product_attention_lse"};
constexpr std::string_view kBackwardOp = "scaled_dot_product_attention_backward";
/// Plans are never dropped, since captured graphs may launch their kernels; calls that would make
/// more go to the next kernel.
constexpr std::size_t kMaxPlans = 1024;
/// Earlier versions have known errors in the gradient of rows that are not multiples of 128.
constexpr std::size_t kAnyGradientVersion = 91600;
constexpr std::int64_t kGradientTile = 128;
/// Shorter rows gain less than a launch of cuDNN's costs more.
constexpr std::int64_t kPreferredLength = 256;
/// Larger gradients of scores are not worth their memory.
constexpr double kPreferredScoreBytes = 1 << 30;

/// One operand: (batch, heads, rows, columns).
struct CudnnOperand {
  CudnnAxes sizes;
  CudnnAxes strides;
};

/// Rows that cuDNN's vector loads can read, each element in its own place. Before addresses are known
/// they count as aligned.
bool has_vector_rows(const TensorView& view) {
  if (!has_aligned_rows(view)) return false;
  for (int axis = 0; axis < view.rank(); ++axis) {
    if (view.sizes[axis] > 1 && view.strides[axis] <= 0) return false;
  }
  return true;
}

/// An axis of size 1 gets the stride of a row-major tensor, so that equal calls look equal.
CudnnOperand operand_of(const TensorView& view) {
  CudnnOperand result{{1, 1, 1, 1}, {}};
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
CudnnOperand packed_operand_of(const TensorView& view) {
  if (has_vector_rows(view)) return operand_of(view);
  TensorView packed = view;
  packed.strides = contiguous_strides(view.sizes);
  return operand_of(packed);
}

/// What calls are made of: tensors in memory, all of (batch, heads, rows, columns).
enum Role : std::uint8_t { kQuery, kKey, kValue, kOutput, kGrad, kDQuery, kDKey, kDValue, kRoles };

enum class Computes : std::uint8_t { output, output_and_lse, gradients };

/// The tensors of a call and what is to be done with them, whatever the op's order of operands.
struct Arguments {
  Computes computes;
  std::array<const TensorView*, kRoles> tensors{};  // null: the op has none
  const TensorView* mask;
  const TensorView* lse = nullptr;
  const TensorView* keep_bits = nullptr;
  const AttentionAttrs* attributes;

  bool reads(int role) const {
    return computes == Computes::gradients ? role <= kGrad : role <= kValue;
  }
  std::int64_t size(Role role, int axis) const { return tensors[role]->size(axis); }
};

Arguments forward_arguments(const KernelArgs& args) {
  const bool keeps = args.outputs.size() > 1;
  Arguments result{.computes = keeps ? Computes::output_and_lse : Computes::output,
                   .mask = &args.inputs[3],
                   .attributes = &args.attributes<AttentionAttrs>()};
  result.tensors = {&args.inputs[0], &args.inputs[1], &args.inputs[2], &args.outputs[0]};
  if (keeps) result.lse = &args.outputs[1], result.keep_bits = &args.outputs[2];
  return result;
}

Arguments backward_arguments(const KernelArgs& args) {
  Arguments result{.computes = Computes::gradients,
                   .mask = &args.inputs[5],
                   .attributes = &args.attributes<AttentionBackwardAttrs>()};
  result.tensors = {&args.inputs[1], &args.inputs[2],  &args.inputs[3],  &args.inputs[4],
                    &args.inputs[0], &args.outputs[0], &args.outputs[1], &args.outputs[2]};
  result.lse = &args.inputs[6];
  result.keep_bits = &args.inputs[7];
  return result;
}

Arguments arguments_of(const KernelArgs& args) {
  return args.op->name == kBackwardOp ? backward_arguments(args) : forward_arguments(args);
}

/// A call, whatever its addresses and scale.
struct CudnnAttentionCall {
  std::int64_t device;
  std::int64_t dtype;
  std::int64_t is_causal;
  Computes computes;
  std::array<std::uint8_t, 7> padding{};
  std::array<CudnnOperand, kRoles> operands{};

  friend bool operator==(const CudnnAttentionCall& a, const CudnnAttentionCall& b) {
    return std::memcmp(&a, &b, sizeof(CudnnAttentionCall)) == 0;
  }
};
static_assert(sizeof(CudnnAttentionCall) == (4 + kRoles * 8) * sizeof(std::int64_t),
              "compared as bytes");

struct CallHash {
  std::size_t operator()(const CudnnAttentionCall& call) const {
    return std::hash<std::string_view>{}(
        {reinterpret_cast<const char*>(&call), sizeof(CudnnAttentionCall)});
  }
};

CudnnAttentionCall call_of(const Arguments& arguments) {
  const TensorView& query = *arguments.tensors[kQuery];
  CudnnAttentionCall call{.device = query.device.index,
                          .dtype = static_cast<std::int64_t>(query.dtype),
                          .is_causal = arguments.attributes->is_causal,
                          .computes = arguments.computes};
  for (std::size_t role = 0; role < kRoles; ++role) {
    if (arguments.tensors[role] == nullptr) continue;
    const TensorView& view = *arguments.tensors[role];
    call.operands[role] =
        arguments.reads(static_cast<int>(role)) ? packed_operand_of(view) : operand_of(view);
  }
  return call;
}

/// What a run binds; those that are 0 are not in the graph.
struct Tensors {
  std::array<CudnnGraph::Value, kRoles> operands{};
  CudnnGraph::Value scale = 0, minus_infinity = 0, one = 0, lse = 0;
  CudnnGraph::Value delta = 0;  // Σ grad∘output of each row, in the workspace
};

/// The graph of a call, and where its tensors are in it.
class GraphOfCall {
 public:
  GraphOfCall(const CudnnAttentionCall& call, Tensors& tensors)
      : call_(call), t_(tensors), type_(cudnn_type(static_cast<DType>(call.dtype))) {
    t_.scale = graph_.number();
    if (call.is_causal != 0) t_.minus_infinity = graph_.number();
    if (call.computes == Computes::gradients) {
      add_gradients();
    } else {
      add_forward();
    }
  }
  CudnnGraph take() { return std::move(graph_); }

 private:
  using Value = CudnnGraph::Value;

  Value memory(Role role) {
    const CudnnOperand& operand = call_.operands[role];
    return t_.operands[role] = graph_.memory(type_, operand.sizes, operand.strides);
  }
  Value transposed(Role role) {
    const CudnnOperand& operand = call_.operands[role];
    return t_.operands[role] = graph_.transposed_memory(type_, operand.sizes, operand.strides);
  }
  /// float32, a number for each query, row-major.
  Value row_numbers() {
    const auto [batch, heads, length, head] = call_.operands[kQuery].sizes;
    return graph_.memory(CUDNN_DATA_FLOAT, {batch, heads, length, 1},
                         {heads * length, length, 1, 1});
  }
  /// Key j of query i is hidden where j > i.
  Value hide_later_keys(Value scores) {
    if (call_.is_causal == 0) return scores;
    const Value row = graph_.index(2, scores);
    const Value column = graph_.index(3, scores);
    const Value visible = graph_.at_least(row, column);
    return graph_.pointwise(CUDNN_POINTWISE_BINARY_SELECT, {scores, t_.minus_infinity, visible});
  }

  void add_forward() {
    const Value product = graph_.matmul(memory(kQuery), transposed(kKey));
    const Value scaled = graph_.pointwise(CUDNN_POINTWISE_MUL, {product, t_.scale});
    const Value scores = hide_later_keys(scaled);
    const Value largest = graph_.reduce(CUDNN_REDUCE_TENSOR_MAX, scores);
    const Value below = graph_.pointwise(CUDNN_POINTWISE_SUB, {scores, largest});
    const Value power = graph_.pointwise(CUDNN_POINTWISE_EXP, {below});
    const Value sum = graph_.reduce(CUDNN_REDUCE_TENSOR_ADD, power);
    // cuDNN recognizes attention by its log-sum-exp, be it stored or not.
    const Value logarithm = graph_.pointwise(CUDNN_POINTWISE_LOG, {sum});
    if (call_.computes == Computes::output_and_lse) {
      t_.lse = row_numbers();
      graph_.pointwise(CUDNN_POINTWISE_ADD, {largest, logarithm}, t_.lse);
    } else {
      graph_.pointwise(CUDNN_POINTWISE_ADD, {largest, logarithm});
    }
    const Value probability = graph_.rounded(CUDNN_POINTWISE_DIV, {power, sum}, type_);
    const Value value = memory(kValue);
    graph_.matmul(probability, value, memory(kOutput));
  }

  /// A product whose heads are the query's; keys that several of these read get the sum.
  void matmul_of_keys(Value a, Value b, Role role) {
    const Value result = memory(role);
    if (call_.operands[role].sizes[1] == call_.operands[kQuery].sizes[1]) {
      return graph_.matmul(a, b, result);
    }
    // In float32, cuDNN plans a kernel whose sums are wrong.
    const Value of_heads = graph_.rounded_matmul(a, b, type_);
    graph_.reduce(CUDNN_REDUCE_TENSOR_ADD, of_heads, result);
  }

  // d_query is the direct result of a product, not a float32 sum that blocks add to in any order: that
  // is how cuDNN is told to use its deterministic algorithm, which stores the scores' gradients.
  void add_gradients() {
    const Value query = memory(kQuery);
    const Value key = transposed(kKey);
    const Value grad = memory(kGrad);
    t_.lse = row_numbers();
    t_.delta = row_numbers();
    t_.one = graph_.number();
    const Value terms = graph_.pointwise(CUDNN_POINTWISE_MUL, {grad, memory(kOutput)});
    const Value sum = graph_.reduce(CUDNN_REDUCE_TENSOR_ADD, terms);
    graph_.pointwise(CUDNN_POINTWISE_MUL, {sum, t_.one}, t_.delta);

    const Value product = graph_.matmul(query, key);
    const Value scaled = graph_.pointwise(CUDNN_POINTWISE_MUL, {product, t_.scale});
    const Value below = graph_.pointwise(CUDNN_POINTWISE_SUB, {scaled, t_.lse});
    const Value probability = graph_.pointwise(CUDNN_POINTWISE_EXP, {hide_later_keys(below)});
    matmul_of_keys(graph_.transpose(probability, type_), grad, kDValue);

    const Value d_probability = graph_.matmul(grad, transposed(kValue));
    const Value centred = graph_.pointwise(CUDNN_POINTWISE_SUB, {d_probability, t_.delta});
    const Value d_scaled = graph_.pointwise(CUDNN_POINTWISE_MUL, {centred, probability});
    const Value d_product = graph_.pointwise(CUDNN_POINTWISE_MUL, {d_scaled, t_.scale});
    matmul_of_keys(graph_.transpose(d_product, type_), query, kDKey);
    graph_.matmul(d_product, graph_.transpose(key, type_), memory(kDQuery));
  }

  const CudnnAttentionCall& call_;
  Tensors& t_;
  cudnnDataType_t type_;
  CudnnGraph graph_;
};

struct Planned {
  Planned(const CudnnAttentionCall& call, cudnnHandle_t handle)
      : plan(GraphOfCall(call, tensors).take(), handle) {}
  Tensors tensors;
  CudnnPlan plan;
  bool has_run = false;
};

/// The plan of a call, made at its first use and compiled by `compile`; null when there are too many.
/// It stays where it is until the process ends.
Planned* find_plan(const CudnnAttentionCall& call) {
  static std::mutex mutex;
  static auto* plans =
      new std::unordered_map<CudnnAttentionCall, std::unique_ptr<Planned>, CallHash>;
  const std::lock_guard lock(mutex);
  if (const auto found = plans->find(call); found != plans->end()) return found->second.get();
  if (plans->size() >= kMaxPlans) return nullptr;
  CudnnLibrary& library = cudnn_library(static_cast<int>(call.device));
  const std::lock_guard library_lock(library.mutex);
  use_device(static_cast<int>(call.device));
  return plans->emplace(call, std::make_unique<Planned>(call, library.handle()))
      .first->second.get();
}

/// What can be told without asking cuDNN.
std::string refusal_of_arguments(const Arguments& x, bool training) {
  if (!cudnn_attention_takes(x.tensors[kQuery]->dtype, x.size(kQuery, -1), x.size(kValue, -1))) {
    return "needed 16-bit floats and head sizes that are multiples of 8 up to 256";
  }
  if (x.tensors[kQuery]->rank() > 4) return "needed at most two batch axes";
  if (x.tensors[kOutput]->numel() == 0 || x.size(kKey, -2) == 0) return "an operand is empty";
  if (x.mask->present) return "a mask is given";
  if (drops(x.attributes->mode, x.attributes->dropout_p, training)) return "dropout is active";
  const auto scale = static_cast<float>(x.attributes->scale.value());
  if (!(scale > 0) || !std::isfinite(scale)) return "needed a positive scale";
  if (x.computes == Computes::gradients) {
    const bool whole_tiles =
        x.size(kQuery, -2) % kGradientTile == 0 && x.size(kKey, -2) % kGradientTile == 0;
    if (!x.lse->present) return "no lse is given";
    if (!whole_tiles && cudnnGetVersion() < kAnyGradientVersion) {
      return "needed cuDNN 9.16 or later for the gradient of rows that are not multiples of 128";
    }
  }
  // Decisions of a dropout that is not active are still to be stored.
  const bool stores_bits = x.computes == Computes::output_and_lse && x.keep_bits->numel() > 0;
  return stores_bits ? "keep_bits are wanted" : "";
}

/// Whether cuDNN can read and write every tensor where it lies.
bool has_vector_tensors(const Arguments& arguments, bool of_results_only) {
  for (int role = 0; role < kRoles; ++role) {
    const TensorView* view = arguments.tensors[static_cast<std::size_t>(role)];
    if (view == nullptr || (of_results_only && arguments.reads(role))) continue;
    if (!has_vector_rows(*view)) return false;
  }
  const bool is_asked =
      arguments.lse != nullptr && !(of_results_only && arguments.computes == Computes::gradients);
  return !is_asked || has_aligned_start(*arguments.lse);  // CudnnGraph says so of every tensor
}

/// The plan of a call that cuDNN takes, compiled; null for the others.
Planned* compiled_plan(const KernelArgs& args) {
  const Arguments arguments = arguments_of(args);
  if (!refusal_of_arguments(arguments, args.training).empty()) return nullptr;
  // Operands in other layouts are copied before the call.
  if (!has_vector_tensors(arguments, /*of_results_only=*/true)) return nullptr;
  const CudnnAttentionCall call = call_of(arguments);
  Planned* planned = find_plan(call);
  if (planned == nullptr) return nullptr;
  CudnnLibrary& library = cudnn_library(static_cast<int>(call.device));
  const std::lock_guard lock(library.mutex);
  use_device(static_cast<int>(call.device));
  return planned->plan.compile(library.handle()) ? planned : nullptr;
}

/// Bytes before cuDNN's own part of the workspace.
std::size_t delta_bytes(const Arguments& arguments) {
  if (arguments.computes != Computes::gradients) return 0;
  constexpr std::int64_t kAlignment = 256;
  const TensorView& query = *arguments.tensors[kQuery];
  const std::int64_t rows = query.numel() / query.size(-1);
  return static_cast<std::size_t>(
      ceil_div(rows * static_cast<std::int64_t>(sizeof(float)), kAlignment) * kAlignment);
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
  if (planned == nullptr) return bytes;
  return std::max(bytes, delta_bytes(arguments_of(args)) + planned->plan.workspace_bytes());
}

void run_plan(Planned& planned, const Arguments& arguments, const KernelArgs& args) {
  auto scale = static_cast<float>(arguments.attributes->scale.value());
  float minus_infinity = -std::numeric_limits<float>::infinity();
  float one = 1;
  auto* delta = static_cast<std::byte*>(args.workspace);
  const Tensors& t = planned.tensors;
  std::vector<CudnnBinding> bindings = {{t.scale, &scale},
                                        {t.minus_infinity, &minus_infinity},
                                        {t.one, &one},
                                        {t.delta, delta},
                                        {t.lse, arguments.lse ? arguments.lse->data : nullptr}};
  for (std::size_t role = 0; role < kRoles; ++role) {
    if (t.operands[role] == 0) continue;
    bindings.push_back({t.operands[role], arguments.tensors[role]->data});
  }
  const Stream stream = stream_of(args);
  use_device(stream.device);
  CudnnLibrary& library = cudnn_library(stream.device);
  const std::lock_guard lock(library.mutex);
  TENON_CUDNN_CHECK(cudnnSetStream(library.handle(), stream.handle));
  planned.plan.run(library.handle(), bindings, delta + delta_bytes(arguments));
  if (!std::exchange(planned.has_run, true)) stop_other_threads_at_exit();
}

void run(const KernelArgs& args) {
  const Arguments arguments = arguments_of(args);
  // Kernels are selected before addresses are known.
  const bool readable = has_vector_tensors(arguments, /*of_results_only=*/false);
  Planned* planned = readable ? compiled_plan(args) : nullptr;
  if (planned == nullptr) return next_kernel(args).run(args);
  const std::size_t bytes = delta_bytes(arguments) + planned->plan.workspace_bytes();
  TENON_INTERNAL(args.workspace != nullptr || bytes == 0, "[{}] {} is run without its workspace",
                 args.op->name, kCudnnAttention);
  run_plan(*planned, arguments, args);
}

bool supports(const KernelArgs& args) { return cudnn_attention_refusal(args).empty(); }

bool is_preferred(const KernelArgs& args) {
  const Arguments arguments = arguments_of(args);
  const TensorView& query = *arguments.tensors[kQuery];
  const std::int64_t keys = arguments.size(kKey, -2);
  if (!cudnn_attention_preferred(query.size(-2), keys, query.data == nullptr)) return false;
  if (arguments.computes == Computes::gradients) {
    const double rows = static_cast<double>(query.numel()) / static_cast<double>(query.size(-1));
    if (2 * rows * static_cast<double>(keys) > kPreferredScoreBytes) return false;
  }
  return true;
}

bool accepts_forward(int operand, const TensorView& view) {
  return operand >= 3 || has_vector_rows(view);
}

bool accepts_backward(int operand, const TensorView& view) {
  if (operand == 6) return view.is_contiguous() && has_aligned_start(view);
  return operand > 6 ? view.is_contiguous() : operand == 5 || has_vector_rows(view);
}

constexpr Kernel kForward{.name = kCudnnAttention,
                          .run = run,
                          .supports = supports,
                          .accepts = accepts_forward,
                          .strided_output = true,
                          .workspace_bytes = workspace_bytes,
                          .preferred = is_preferred};

constexpr Kernel kBackward{.name = kCudnnAttention,
                           .run = run,
                           .supports = supports,
                           .accepts = accepts_backward,
                           .strided_output = true,
                           .sliced_output = true,
                           .workspace_bytes = workspace_bytes,
                           .preferred = is_preferred};

}  // namespace

bool cudnn_attention_takes(DType dtype, std::int64_t head, std::int64_t head_v) {
  const auto fits = [](std::int64_t size) { return size > 0 && size <= 256 && size % 8 == 0; };
  return (dtype == DType::float16 || dtype == DType::bfloat16) && fits(head) && fits(head_v);
}

bool cudnn_attention_preferred(std::int64_t length, std::int64_t keys, bool in_program) {
  return in_program && length >= kPreferredLength && keys >= kPreferredLength;
}

std::string cudnn_attention_refusal(const KernelArgs& args) {
  const Arguments arguments = arguments_of(args);
  std::string reason = refusal_of_arguments(arguments, args.training);
  if (!reason.empty()) return reason;
  const CudnnAttentionCall call = call_of(arguments);
  const Planned* planned = find_plan(call);
  if (planned == nullptr) return "too many plans are in use";
  const std::lock_guard lock(cudnn_library(static_cast<int>(call.device)).mutex);
  return planned->plan.refusal();
}

void register_attention_cudnn_kernels() {
  for (const char* op : kForwardOps) register_kernel(op, DeviceType::cuda, kForward);
  register_kernel(kBackwardOp, DeviceType::cuda, kBackward);
}

}  // namespace tenon::cuda
