#include "cuda/cudnn_graph.h"

#include <algorithm>
#include <iterator>
#include <utility>

namespace tenon::cuda {
namespace {

constexpr std::int64_t kAlignment = 16;

/// The attribute types of the values that are set here.
template <class T>
constexpr cudnnBackendAttributeType_t kAttributeType = CUDNN_TYPE_INT64;
template <>
constexpr auto kAttributeType<bool> = CUDNN_TYPE_BOOLEAN;
template <>
constexpr auto kAttributeType<float> = CUDNN_TYPE_FLOAT;
template <>
constexpr auto kAttributeType<double> = CUDNN_TYPE_DOUBLE;
template <>
constexpr auto kAttributeType<cudnnConvolutionMode_t> = CUDNN_TYPE_CONVOLUTION_MODE;
template <>
constexpr auto kAttributeType<cudnnHandle_t> = CUDNN_TYPE_HANDLE;
template <>
constexpr auto kAttributeType<cudnnDataType_t> = CUDNN_TYPE_DATA_TYPE;
template <>
constexpr auto kAttributeType<cudnnPointwiseMode_t> = CUDNN_TYPE_POINTWISE_MODE;
template <>
constexpr auto kAttributeType<cudnnNanPropagation_t> = CUDNN_TYPE_NAN_PROPOGATION;
template <>
constexpr auto kAttributeType<cudnnReduceTensorOp_t> = CUDNN_TYPE_REDUCTION_OPERATOR_TYPE;
template <>
constexpr auto kAttributeType<cudnnBackendHeurMode_t> = CUDNN_TYPE_HEUR_MODE;
template <>
constexpr auto kAttributeType<cudnnBackendNumericalNote_t> = CUDNN_TYPE_NUMERICAL_NOTE;
template <>
constexpr auto kAttributeType<cudnnBackendBehaviorNote_t> = CUDNN_TYPE_BEHAVIOR_NOTE;
template <>
constexpr auto kAttributeType<cudnnBackendDescriptor_t> = CUDNN_TYPE_BACKEND_DESCRIPTOR;

CudnnDescriptor create(cudnnBackendDescriptorType_t type) {
  cudnnBackendDescriptor_t descriptor = nullptr;
  TENON_CUDNN_CHECK(cudnnBackendCreateDescriptor(type, &descriptor));
  return CudnnDescriptor(descriptor);
}

template <class T>
void set_all(cudnnBackendDescriptor_t descriptor, cudnnBackendAttributeName_t name,
             std::span<const T> values, cudnnBackendAttributeType_t type = kAttributeType<T>) {
  TENON_CUDNN_CHECK(cudnnBackendSetAttribute(
      descriptor, name, type, static_cast<std::int64_t>(values.size()), values.data()));
}

template <class T>
void set(cudnnBackendDescriptor_t descriptor, cudnnBackendAttributeName_t name, const T& value) {
  set_all(descriptor, name, std::span<const T>(&value, 1));
}

/// A factor is of the type of sums.
void set_factor(cudnnBackendDescriptor_t descriptor, cudnnBackendAttributeName_t name, float value,
                cudnnDataType_t sums) {
  if (sums == CUDNN_DATA_DOUBLE) return set(descriptor, name, static_cast<double>(value));
  set(descriptor, name, value);
}

void finalize(cudnnBackendDescriptor_t descriptor) {
  TENON_CUDNN_CHECK(cudnnBackendFinalize(descriptor));
}

/// How many elements an attribute has, at most `room` of them written to `values`.
template <class T>
std::int64_t get(cudnnBackendDescriptor_t descriptor, cudnnBackendAttributeName_t name,
                 std::int64_t room, T* values) {
  std::int64_t count = 0;
  TENON_CUDNN_CHECK(
      cudnnBackendGetAttribute(descriptor, name, kAttributeType<T>, room, &count, values));
  return count;
}

CudnnAxes row_major(const CudnnAxes& sizes) {
  return {sizes[1] * sizes[2] * sizes[3], sizes[2] * sizes[3], sizes[3], 1};
}

std::string last_refusal(cudnnStatus_t status) {
  std::array<char, 1024> reason{};
  cudnnGetLastErrorString(reason.data(), reason.size());
  return std::string(cudnnGetErrorString(status)) + ": " + reason.data();
}

CudnnDescriptor engine_of(cudnnBackendDescriptor_t configuration) {
  CudnnDescriptor engine = create(CUDNN_BACKEND_ENGINE_DESCRIPTOR);
  cudnnBackendDescriptor_t raw = engine.get();
  get(configuration, CUDNN_ATTR_ENGINECFG_ENGINE, 1, &raw);
  return engine;
}

/// Whether a plan of this engine is compiled when it is made.
bool is_compiled(cudnnBackendDescriptor_t engine) {
  std::array<cudnnBackendBehaviorNote_t, CUDNN_BEHAVIOR_NOTE_TYPE_COUNT> notes{};
  const std::int64_t count = get(engine, CUDNN_ATTR_ENGINE_BEHAVIOR_NOTE,
                                 static_cast<std::int64_t>(notes.size()), notes.data());
  return std::find(notes.begin(), notes.begin() + count, CUDNN_BEHAVIOR_NOTE_RUNTIME_COMPILATION) !=
         notes.begin() + count;
}

/// Whether an engine is one of `engines`.
bool is_allowed(cudnnBackendDescriptor_t engine, const CudnnEngines& engines) {
  std::array<cudnnBackendNumericalNote_t, CUDNN_NUMERICAL_NOTE_TYPE_COUNT> notes{};
  const std::int64_t count = get(engine, CUDNN_ATTR_ENGINE_NUMERICAL_NOTE,
                                 static_cast<std::int64_t>(notes.size()), notes.data());
  return std::none_of(notes.begin(), notes.begin() + count, [&](auto note) {
    switch (note) {
      case CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC:
      case CUDNN_NUMERICAL_NOTE_REDUCED_PRECISION_REDUCTION:
      case CUDNN_NUMERICAL_NOTE_WINOGRAD_TILE_13x13: return true;
      case CUDNN_NUMERICAL_NOTE_TENSOR_CORE:
      case CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS:
      case CUDNN_NUMERICAL_NOTE_FFT:
      case CUDNN_NUMERICAL_NOTE_WINOGRAD:
      case CUDNN_NUMERICAL_NOTE_WINOGRAD_TILE_4x4:
      case CUDNN_NUMERICAL_NOTE_WINOGRAD_TILE_6x6: return engines.exact;
      default: return false;
    }
  });
}

/// cuDNN's own choices for a graph, best first, at most so many; none where this heuristic refuses it.
std::vector<CudnnDescriptor> configurations(cudnnBackendDescriptor_t graph,
                                            cudnnBackendHeurMode_t mode, std::int64_t most) {
  const CudnnDescriptor heuristic = create(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
  set(heuristic.get(), CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph);
  set(heuristic.get(), CUDNN_ATTR_ENGINEHEUR_MODE, mode);
  const cudnnStatus_t status = cudnnBackendFinalize(heuristic.get());
  if (is_unsupported(status)) return {};
  check_cudnn(status, "cudnnBackendFinalize of a heuristic");
  const std::int64_t count = std::min(most, get<cudnnBackendDescriptor_t>(
                                                heuristic.get(), CUDNN_ATTR_ENGINEHEUR_RESULTS, 0,
                                                nullptr));
  std::vector<CudnnDescriptor> results;
  std::vector<cudnnBackendDescriptor_t> raw;
  for (std::int64_t i = 0; i < count; ++i) {
    results.push_back(create(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR));
    raw.push_back(results.back().get());
  }
  const std::int64_t written =
      get(heuristic.get(), CUDNN_ATTR_ENGINEHEUR_RESULTS, count, raw.data());
  results.resize(static_cast<std::size_t>(std::min(count, written)));
  return results;
}

/// What cuDNN calls a convolution's operation and its attributes.
struct ConvolutionNames {
  cudnnBackendDescriptorType_t operation;
  cudnnBackendAttributeName_t windows, images, filters, result, alpha, beta;
};
/// By CudnnConvolution.
constexpr ConvolutionNames kConvolutionNames[] = {
    {CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR,
     CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X,
     CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y,
     CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA},
    {CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR,
     CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC,
     CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DX, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_W,
     CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_ALPHA,
     CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_BETA},
    {CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR,
     CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_CONV_DESC,
     CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_X, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DW,
     CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DY,
     CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_ALPHA,
     CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_BETA},
};

}  // namespace

cudnnBackendDescriptor_t CudnnGraph::make(cudnnBackendDescriptorType_t type) {
  owned_.push_back(create(type));
  return owned_.back().get();
}

CudnnGraph::Value CudnnGraph::add(cudnnDataType_t type, const CudnnAxes& sizes,
                                  const CudnnAxes& strides, Kind kind) {
  const auto id = static_cast<Value>(tensors_.size()) + 1;
  cudnnBackendDescriptor_t descriptor = make(CUDNN_BACKEND_TENSOR_DESCRIPTOR);
  set(descriptor, CUDNN_ATTR_TENSOR_UNIQUE_ID, id);
  set(descriptor, CUDNN_ATTR_TENSOR_DATA_TYPE, type);
  set_all<std::int64_t>(descriptor, CUDNN_ATTR_TENSOR_DIMENSIONS, sizes);
  set_all<std::int64_t>(descriptor, CUDNN_ATTR_TENSOR_STRIDES, strides);
  set(descriptor, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, kAlignment);
  set(descriptor, CUDNN_ATTR_TENSOR_IS_VIRTUAL, kind == Kind::virtual_value);
  set(descriptor, CUDNN_ATTR_TENSOR_IS_BY_VALUE, kind == Kind::number);
  finalize(descriptor);
  tensors_.push_back({sizes, strides, descriptor});
  return id;
}

CudnnGraph::Value CudnnGraph::add_virtual(cudnnDataType_t type, const CudnnAxes& sizes) {
  return add(type, sizes, row_major(sizes), Kind::virtual_value);
}

CudnnGraph::Value CudnnGraph::memory(cudnnDataType_t type, const CudnnAxes& sizes,
                                     const CudnnAxes& strides) {
  return add(type, sizes, strides, Kind::memory);
}

CudnnGraph::Value CudnnGraph::transposed_memory(cudnnDataType_t type, CudnnAxes sizes,
                                                CudnnAxes strides) {
  std::swap(sizes[2], sizes[3]);
  std::swap(strides[2], strides[3]);
  return add(type, sizes, strides, Kind::memory);
}

CudnnGraph::Value CudnnGraph::intermediate(const CudnnAxes& sizes, const CudnnAxes& strides) {
  return add(CUDNN_DATA_FLOAT, sizes, strides, Kind::virtual_value);
}

CudnnGraph::Value CudnnGraph::number() {
  return add(CUDNN_DATA_FLOAT, {1, 1, 1, 1}, {1, 1, 1, 1}, Kind::number);
}

CudnnGraph::Value CudnnGraph::matmul(Value a, Value b) {
  return rounded_matmul(a, b, CUDNN_DATA_FLOAT);
}

CudnnGraph::Value CudnnGraph::rounded_matmul(Value a, Value b, cudnnDataType_t type) {
  CudnnAxes sizes = tensor(a).sizes;
  sizes[3] = tensor(b).sizes[3];
  const Value result = add_virtual(type, sizes);
  matmul(a, b, result);
  return result;
}

void CudnnGraph::matmul(Value a, Value b, Value result) {
  cudnnBackendDescriptor_t settings = make(CUDNN_BACKEND_MATMUL_DESCRIPTOR);
  set(settings, CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_DATA_FLOAT);
  finalize(settings);
  cudnnBackendDescriptor_t operation = make(CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR);
  set(operation, CUDNN_ATTR_OPERATION_MATMUL_ADESC, tensor(a).descriptor);
  set(operation, CUDNN_ATTR_OPERATION_MATMUL_BDESC, tensor(b).descriptor);
  set(operation, CUDNN_ATTR_OPERATION_MATMUL_CDESC, tensor(result).descriptor);
  set(operation, CUDNN_ATTR_OPERATION_MATMUL_DESC, settings);
  finalize(operation);
  operations_.push_back(operation);
}

cudnnBackendDescriptor_t CudnnGraph::pointwise_settings(cudnnPointwiseMode_t mode,
                                                        cudnnDataType_t compute) {
  cudnnBackendDescriptor_t settings = make(CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
  set(settings, CUDNN_ATTR_POINTWISE_MODE, mode);
  set(settings, CUDNN_ATTR_POINTWISE_MATH_PREC, compute);
  if (mode == CUDNN_POINTWISE_RELU_FWD) {
    set(settings, CUDNN_ATTR_POINTWISE_NAN_PROPAGATION, CUDNN_PROPAGATE_NAN);
  }
  return settings;
}

void CudnnGraph::add_pointwise(cudnnBackendDescriptor_t settings, std::span<const Value> operands,
                               Value result) {
  constexpr cudnnBackendAttributeName_t kOperands[] = {CUDNN_ATTR_OPERATION_POINTWISE_XDESC,
                                                       CUDNN_ATTR_OPERATION_POINTWISE_BDESC,
                                                       CUDNN_ATTR_OPERATION_POINTWISE_TDESC};
  finalize(settings);
  cudnnBackendDescriptor_t operation = make(CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
  set(operation, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, settings);
  for (std::size_t i = 0; i < operands.size(); ++i) {
    set(operation, kOperands[i], tensor(operands[i]).descriptor);
  }
  set(operation, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, tensor(result).descriptor);
  finalize(operation);
  operations_.push_back(operation);
}

CudnnGraph::Value CudnnGraph::pointwise(cudnnPointwiseMode_t mode,
                                        std::initializer_list<Value> operands) {
  return rounded(mode, operands, CUDNN_DATA_FLOAT);
}

CudnnGraph::Value CudnnGraph::rounded(cudnnPointwiseMode_t mode,
                                      std::initializer_list<Value> operands, cudnnDataType_t type) {
  const Value result = add_virtual(type, tensor(*operands.begin()).sizes);
  pointwise(mode, operands, result);
  return result;
}

void CudnnGraph::pointwise(cudnnPointwiseMode_t mode, std::initializer_list<Value> operands,
                           Value result) {
  add_pointwise(pointwise_settings(mode, CUDNN_DATA_FLOAT), operands, result);
}

CudnnGraph::Value CudnnGraph::index(int axis, Value like) {
  cudnnBackendDescriptor_t settings =
      pointwise_settings(CUDNN_POINTWISE_GEN_INDEX, CUDNN_DATA_FLOAT);
  set(settings, CUDNN_ATTR_POINTWISE_AXIS, std::int64_t{axis});
  const Value result = add_virtual(CUDNN_DATA_INT32, tensor(like).sizes);
  add_pointwise(settings, {{like}}, result);
  return result;
}

CudnnGraph::Value CudnnGraph::at_least(Value a, Value b) {
  const Value result = add_virtual(CUDNN_DATA_BOOLEAN, tensor(a).sizes);
  add_pointwise(pointwise_settings(CUDNN_POINTWISE_CMP_GE, CUDNN_DATA_BOOLEAN), {{a, b}}, result);
  return result;
}

CudnnGraph::Value CudnnGraph::reduce(cudnnReduceTensorOp_t operation, Value x) {
  CudnnAxes sizes = tensor(x).sizes;
  sizes[3] = 1;
  const Value result = add_virtual(CUDNN_DATA_FLOAT, sizes);
  reduce(operation, x, result);
  return result;
}

void CudnnGraph::reduce(cudnnReduceTensorOp_t operation, Value x, Value result) {
  cudnnBackendDescriptor_t settings = make(CUDNN_BACKEND_REDUCTION_DESCRIPTOR);
  set(settings, CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_DATA_FLOAT);
  set(settings, CUDNN_ATTR_REDUCTION_OPERATOR, operation);
  finalize(settings);
  cudnnBackendDescriptor_t node = make(CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR);
  set(node, CUDNN_ATTR_OPERATION_REDUCTION_DESC, settings);
  set(node, CUDNN_ATTR_OPERATION_REDUCTION_XDESC, tensor(x).descriptor);
  set(node, CUDNN_ATTR_OPERATION_REDUCTION_YDESC, tensor(result).descriptor);
  finalize(node);
  operations_.push_back(node);
}

CudnnGraph::Value CudnnGraph::transpose(Value x, cudnnDataType_t type) {
  CudnnAxes sizes = tensor(x).sizes;
  CudnnAxes strides = tensor(x).strides;
  std::swap(sizes[2], sizes[3]);
  std::swap(strides[2], strides[3]);
  const Value result = add(type, sizes, strides, Kind::virtual_value);
  cudnnBackendDescriptor_t operation = make(CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR);
  set(operation, CUDNN_ATTR_OPERATION_RESHAPE_XDESC, tensor(x).descriptor);
  set(operation, CUDNN_ATTR_OPERATION_RESHAPE_YDESC, tensor(result).descriptor);
  finalize(operation);
  operations_.push_back(operation);
  return result;
}

cudnnBackendDescriptor_t CudnnGraph::make_windows(const CudnnWindows& windows,
                                                  cudnnDataType_t sums) {
  cudnnBackendDescriptor_t settings = make(CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR);
  set(settings, CUDNN_ATTR_CONVOLUTION_COMP_TYPE, sums);
  set(settings, CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_CROSS_CORRELATION);
  set(settings, CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, std::int64_t{2});
  set_all<std::int64_t>(settings, CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, windows.padding);
  set_all<std::int64_t>(settings, CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, windows.padding);
  set_all<std::int64_t>(settings, CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, windows.stride);
  set_all<std::int64_t>(settings, CUDNN_ATTR_CONVOLUTION_DILATIONS, windows.dilation);
  finalize(settings);
  return settings;
}

void CudnnGraph::convolution(CudnnConvolution computes, Value images, Value filters, Value result,
                             const CudnnWindows& windows, cudnnDataType_t sums) {
  const ConvolutionNames& names = kConvolutionNames[static_cast<std::size_t>(computes)];
  cudnnBackendDescriptor_t settings = make_windows(windows, sums);
  cudnnBackendDescriptor_t node = make(names.operation);
  set(node, names.windows, settings);
  set(node, names.images, tensor(images).descriptor);
  set(node, names.filters, tensor(filters).descriptor);
  set(node, names.result, tensor(result).descriptor);
  set_factor(node, names.alpha, 1, sums);
  set_factor(node, names.beta, 0, sums);
  finalize(node);
  operations_.push_back(node);
}

CudnnPlan::CudnnPlan(CudnnGraph graph, cudnnHandle_t handle, const CudnnEngines& engines)
    : graph_(std::move(graph.owned_)), engines_(engines) {
  graph_.push_back(create(CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR));
  cudnnBackendDescriptor_t operations = graph_.back().get();
  set(operations, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, handle);
  set_all<cudnnBackendDescriptor_t>(operations, CUDNN_ATTR_OPERATIONGRAPH_OPS, graph.operations_);
  const cudnnStatus_t status = cudnnBackendFinalize(operations);
  if (is_unsupported(status)) {
    refusal_ = last_refusal(status);
    return;
  }
  check_cudnn(status, "cudnnBackendFinalize of the operation graph");
  while (configurations_.empty() && ask_further()) {
  }
  if (configurations_.empty()) refusal_ = "no deterministic engine: " + last_refusal(status);
}

/// What each heuristic names costs a millisecond or more to list.
bool CudnnPlan::ask_further() {
  constexpr std::int64_t kFew = 8;
  constexpr std::pair<cudnnBackendHeurMode_t, std::int64_t> kQuestions[] = {
      {CUDNN_HEUR_MODE_A, kFew},
      {CUDNN_HEUR_MODE_A, INT64_MAX},
      {CUDNN_HEUR_MODE_B, INT64_MAX},
      {CUDNN_HEUR_MODE_FALLBACK, INT64_MAX}};
  const std::size_t questions = engines_.with_fallbacks ? std::size(kQuestions) : 2;
  if (asked_ >= questions) return false;
  const auto [mode, most] = kQuestions[asked_++];
  std::vector<CudnnDescriptor> last;
  for (CudnnDescriptor& configuration : configurations(graph_.back().get(), mode, most)) {
    const CudnnDescriptor engine = engine_of(configuration.get());
    if (!is_allowed(engine.get(), engines_)) continue;
    const bool is_last = engines_.compiled_last && is_compiled(engine.get());
    (is_last ? last : configurations_).push_back(std::move(configuration));
  }
  std::move(last.begin(), last.end(), std::back_inserter(configurations_));
  return true;
}

bool CudnnPlan::compile(cudnnHandle_t handle) {
  if (plan_) return true;
  do {
    for (const CudnnDescriptor& configuration : configurations_) {
      if (compile(handle, configuration.get())) return true;
    }
    configurations_.clear();
  } while (ask_further());
  return false;
}

bool CudnnPlan::compile(cudnnHandle_t handle, cudnnBackendDescriptor_t configuration) {
  CudnnDescriptor plan = create(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
  set(plan.get(), CUDNN_ATTR_EXECUTION_PLAN_HANDLE, handle);
  set(plan.get(), CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, configuration);
  if (const cudnnStatus_t status = cudnnBackendFinalize(plan.get()); status != 0) {
    refusal_ = last_refusal(status);
    return false;
  }
  std::int64_t bytes = 0;
  get(plan.get(), CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, 1, &bytes);
  if (static_cast<std::size_t>(bytes) > engines_.most_workspace_bytes) {
    refusal_ = "needed a workspace of " + std::to_string(bytes) + " bytes";
    return false;
  }
  workspace_bytes_ = static_cast<std::size_t>(bytes);
  refusal_.clear();
  plan_ = std::move(plan);
  return true;
}

void CudnnPlan::run(cudnnHandle_t handle, std::span<const CudnnBinding> bindings,
                    void* workspace) const {
  std::vector<CudnnGraph::Value> ids;
  std::vector<void*> pointers;
  for (const CudnnBinding& binding : bindings) {
    if (binding.value == 0) continue;
    ids.push_back(binding.value);
    pointers.push_back(binding.data);
  }
  const CudnnDescriptor pack = create(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
  set_all<void*>(pack.get(), CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, pointers, CUDNN_TYPE_VOID_PTR);
  set_all<std::int64_t>(pack.get(), CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, ids);
  set_all<void*>(pack.get(), CUDNN_ATTR_VARIANT_PACK_WORKSPACE, {&workspace, 1},
                 CUDNN_TYPE_VOID_PTR);
  finalize(pack.get());
  TENON_CUDNN_CHECK(cudnnBackendExecute(handle, plan_.get(), pack.get()));
}

}  // namespace tenon::cuda
