// conv2d and its gradients by cuDNN's graph API, for every floating dtype, in row-major and channels-last
// memory. Engines are those that cuDNN's heuristics name, the first that takes the call within a bound of
// memory, never measured and deterministic. float32 multiplies in float32 (no TF32), 16-bit floats
// accumulate in float32. What cuDNN refuses goes to conv2d.cu.
//
// In channels-last memory 16-bit convolutions do before they round what follows them, in one kernel where
// cuDNN has one: conv2d adds the bias, conv2d_relu also the residual and the relu. Where cuDNN has none,
// conv2d's bias is added after it, and conv2d_relu is expanded.
//
// A call is planned once for each device, sizes and strides. In a Program 16-bit images are channels-last,
// the layout of its kernels for tensor cores.
#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "cuda/context.h"
#include "cuda/cudnn_graph.h"
#include "cuda/kernels/conv2d.h"
#include "cuda/kernels/register.h"
#include "cuda/launch.h"
#include "tensor/calls/window.h"

namespace tenon::cuda {
namespace {

using ops::ConvGeometry;

/// Plans are never dropped, since captured graphs may launch their kernels; calls that would make
/// more go to conv2d.cu.
constexpr std::size_t kMaxPlans = 4096;
/// Products of a call that is done before a kernel for it could be compiled ten thousand times over: it
/// takes those that are there.
constexpr std::int64_t kFewProducts = std::int64_t{1} << 24;
constexpr std::size_t kMostWorkspaceBytes = std::size_t{1} << 29;

enum class Computes : std::uint8_t { result, activated_result, d_images, d_filters };

constexpr bool is_forward(Computes computes) { return computes <= Computes::activated_result; }

/// What follows the sums of a forward call, in this order: as words, for a ConvolutionCall.
struct Tail {
  std::int64_t adds_bias = 0;
  std::int64_t adds_residual = 0;
  std::int64_t relu = 0;
  std::int64_t count() const { return adds_bias + adds_residual + relu; }
};

/// A convolution's three tensors, whichever of them is the result.
struct Tensors {
  const TensorView& images;
  const TensorView& filters;
  const TensorView& result;
};

template <Computes kComputes>
Tensors tensors_of(const KernelArgs& args) {
  switch (kComputes) {
    case Computes::result:
    case Computes::activated_result: return {args.inputs[0], args.inputs[1], args.outputs[0]};
    case Computes::d_images: return {args.outputs[0], args.inputs[1], args.inputs[0]};
    case Computes::d_filters: return {args.inputs[1], args.outputs[0], args.inputs[0]};
  }
}

template <Computes kComputes>
ConvGeometry geometry_of(const KernelArgs& args) {
  const auto [images, filters, result] = tensors_of<kComputes>(args);
  if constexpr (is_forward(kComputes)) {
    return {args.attributes<Conv2dAttrs>(), images, filters, result};
  } else {
    return {args.attributes<Conv2dBackwardAttrs>(), images, filters, result};
  }
}

bool has_16_bits(DType dtype) { return size_of(dtype) == 2; }

/// A call, whatever its addresses: compared as words.
struct ConvolutionCall {
  std::int64_t device, dtype, computes;
  Tail tail;
  std::array<CudnnAxes, 3> sizes, strides;  // of images, filters and result
  CudnnWindows windows;

  friend bool operator==(const ConvolutionCall& a, const ConvolutionCall& b) {
    return std::memcmp(&a, &b, sizeof(ConvolutionCall)) == 0;
  }
};
static_assert(sizeof(ConvolutionCall) == (6 + 2 * 3 * 4 + 6) * sizeof(std::int64_t),
              "compared as bytes");

bool is_small(const ConvolutionCall& call) {
  const auto& [images, filters, result] = call.sizes;
  std::int64_t products = filters[1] * filters[2] * filters[3];
  for (const std::int64_t size : result) products *= size;
  return products <= kFewProducts;
}

struct CallHash {
  std::size_t operator()(const ConvolutionCall& call) const {
    return std::hash<std::string_view>{}(
        {reinterpret_cast<const char*>(&call), sizeof(ConvolutionCall)});
  }
};

CudnnAxes axes_of(const Extents& values) { return {values[0], values[1], values[2], values[3]}; }

template <Computes kComputes>
ConvolutionCall call_of(const KernelArgs& args, bool channels_last) {
  const auto [images, filters, result] = tensors_of<kComputes>(args);
  const ConvGeometry g = geometry_of<kComputes>(args);
  ConvolutionCall call{
      .device = images.device.index,
      .dtype = static_cast<std::int64_t>(images.dtype),
      .computes = static_cast<std::int64_t>(kComputes),
      .tail = {},
      .windows = {
          {g.h.padding, g.w.padding}, {g.h.stride, g.w.stride}, {g.h.dilation, g.w.dilation}}};
  const TensorView* const views[] = {&images, &filters, &result};
  for (std::size_t i = 0; i < 3; ++i) {
    const Extents& sizes = views[i]->sizes;
    call.sizes[i] = axes_of(sizes);
    call.strides[i] =
        axes_of(channels_last ? channels_last_strides(sizes) : contiguous_strides(sizes));
  }
  return call;
}

struct Planned {
  Planned(const ConvolutionCall& call, cudnnHandle_t handle)
      : plan(graph_of(call), handle,
             {.with_fallbacks = true,
              .exact = !has_16_bits(static_cast<DType>(call.dtype)),
              .most_workspace_bytes = kMostWorkspaceBytes,
              .compiled_last = is_small(call)}) {}

  CudnnGraph graph_of(const ConvolutionCall& call) {
    const auto dtype = static_cast<DType>(call.dtype);
    const cudnnDataType_t sums = dtype == DType::float64 ? CUDNN_DATA_DOUBLE : CUDNN_DATA_FLOAT;
    CudnnGraph graph;
    for (std::size_t i = 0; i < 3; ++i) {
      operands[i] = graph.memory(cudnn_type(dtype), call.sizes[i], call.strides[i]);
    }
    const auto [images, filters, result, bias, residual] = operands;
    switch (static_cast<Computes>(call.computes)) {
      case Computes::result:
      case Computes::activated_result: add_forward(graph, call, sums); break;
      case Computes::d_images:
        graph.convolution(CudnnConvolution::d_images, images, filters, result, call.windows, sums);
        break;
      case Computes::d_filters:
        graph.convolution(CudnnConvolution::d_filters, images, filters, result, call.windows, sums);
        break;
    }
    return graph;
  }

  void add_forward(CudnnGraph& graph, const ConvolutionCall& call, cudnnDataType_t sums) {
    const CudnnAxes& sizes = call.sizes[2];
    const CudnnAxes& strides = call.strides[2];
    const cudnnDataType_t type = cudnn_type(static_cast<DType>(call.dtype));
    auto& [images, filters, result, bias, residual] = operands;
    const CudnnGraph::Value last = result;
    std::int64_t left = call.tail.count();
    const auto next = [&] { return left == 0 ? last : graph.intermediate(sizes, strides); };
    CudnnGraph::Value value = next();
    graph.convolution(CudnnConvolution::result, images, filters, value, call.windows, sums);
    const auto then = [&](cudnnPointwiseMode_t mode, CudnnGraph::Value operand) {
      --left;
      const CudnnGraph::Value before = std::exchange(value, next());
      if (operand == 0) return graph.pointwise(mode, {before}, value);
      graph.pointwise(mode, {before, operand}, value);
    };
    // In this order, in which cuDNN has kernels that need no compilation.
    if (call.tail.adds_residual != 0) {
      then(CUDNN_POINTWISE_ADD, residual = graph.memory(type, sizes, strides));
    }
    if (call.tail.adds_bias != 0) {
      bias = graph.memory(type, {1, sizes[1], 1, 1}, {sizes[1], 1, sizes[1], sizes[1]});
      then(CUDNN_POINTWISE_ADD, bias);
    }
    if (call.tail.relu != 0) then(CUDNN_POINTWISE_RELU_FWD, 0);
  }

  /// Images, filters, result, bias and residual; before `plan`, whose graph fills them.
  std::array<CudnnGraph::Value, 5> operands{};
  CudnnPlan plan;
  bool has_run = false;
};

/// The compiled plan of a call; null when cuDNN refuses it. It stays where it is until the process
/// ends.
Planned* find_plan(const ConvolutionCall& call) {
  static std::mutex mutex;
  static auto* plans = new std::unordered_map<ConvolutionCall, std::unique_ptr<Planned>, CallHash>;
  const std::lock_guard lock(mutex);
  auto found = plans->find(call);
  if (found == plans->end() && plans->size() >= kMaxPlans) return nullptr;
  CudnnLibrary& library = cudnn_library(static_cast<int>(call.device));
  const std::lock_guard library_lock(library.mutex);
  use_device(static_cast<int>(call.device));
  if (found == plans->end()) {
    found = plans->emplace(call, std::make_unique<Planned>(call, library.handle())).first;
  }
  return found->second->plan.compile(library.handle()) ? found->second.get() : nullptr;
}

/// Nothing is empty, which cuDNN does not take.
bool has_elements(const KernelArgs& args) {
  return args.inputs[0].numel() > 0 && args.inputs[1].numel() > 0 && args.outputs[0].numel() > 0;
}

/// Whether the images of the call lie channels-last, or, while they have no addresses, will. Where both
/// layouts are the same memory they do not.
template <Computes kComputes>
bool is_channels_last_call(const KernelArgs& args) {
  const auto [images, filters, result] = tensors_of<kComputes>(args);
  const bool chosen = args.inputs[0].data == nullptr;
  if (chosen && !has_16_bits(images.dtype)) return false;
  const auto lies = [&](const TensorView& view) {
    return is_channels_last(view.sizes, chosen ? channels_last_strides(view.sizes) : view.strides);
  };
  return lies(images) || lies(filters) || lies(result);
}

template <Computes kComputes>
Tail tail_of(const KernelArgs& args) {
  const auto has = [&](std::size_t i) { return i < args.inputs.size() && args.inputs[i].present; };
  if constexpr (kComputes == Computes::activated_result) {
    return {has(2), has(3), 1};
  } else if constexpr (kComputes == Computes::result) {
    return {has(2), 0, 0};
  }
  return {};
}

/// Of 16-bit channels, in the layout's vectors. The kernels that compute more than sums would pad others,
/// at the price of a pass over memory.
bool has_whole_vectors(const ConvolutionCall& call) {
  constexpr std::int64_t kVector = 8;
  const auto& [images, filters, result] = call.sizes;
  return has_16_bits(static_cast<DType>(call.dtype)) && images[1] == filters[1] &&
         images[1] % kVector == 0 && result[1] % kVector == 0;
}

template <Computes kComputes>
Planned* planned(const KernelArgs& args) {
  if (!has_elements(args)) return nullptr;
  const bool channels_last = is_channels_last_call<kComputes>(args);
  ConvolutionCall call = call_of<kComputes>(args, channels_last);
  const bool fuses = channels_last && has_whole_vectors(call);
  if constexpr (kComputes == Computes::result) {
    call.tail = tail_of<kComputes>(args);
    if (fuses && call.tail.count() > 0) {
      if (Planned* plan = find_plan(call)) return plan;
    }
    call.tail = {};
  } else if constexpr (is_forward(kComputes)) {
    if (!fuses) return nullptr;
    call.tail = tail_of<kComputes>(args);
  }
  return find_plan(call);
}

template <Computes kComputes>
bool supports(const KernelArgs& args) {
  return planned<kComputes>(args) != nullptr;
}

template <Computes kComputes>
ImageLayout image_layout(const KernelArgs& args) {
  return is_channels_last_call<kComputes>(args) ? ImageLayout::channels_last
                                                : ImageLayout::row_major;
}

template <Computes kComputes>
std::size_t workspace_bytes(const KernelArgs& args) {
  const Planned* plan = planned<kComputes>(args);
  return plan == nullptr ? 0 : plan->plan.workspace_bytes();
}

/// cuDNN reads vectors; a view may start at any element.
bool is_aligned(const KernelArgs& args) {
  constexpr std::uintptr_t kVectorBytes = 16;
  const auto aligned = [](const TensorView& view) {
    return reinterpret_cast<std::uintptr_t>(view.data) % kVectorBytes == 0;
  };
  return std::ranges::all_of(args.inputs, aligned) && aligned(args.outputs[0]);
}

/// A kernel of another op on the call's results.
void run_kernel(const KernelArgs& args, const char* name, std::span<const TensorView> inputs,
                const Attrs& attrs) {
  const Op& op = get_op(name);
  KernelArgs call{&op, inputs, args.outputs, &attrs, args.training};
  call.stream = args.stream;
  select_kernel(op, DeviceType::cuda, call)->run(call);
}

/// One by one.
void conv2d_relu_directly(const KernelArgs& args) {
  static const Attrs kNone;
  conv2d_directly(args);
  const TensorView sum[] = {args.outputs[0], args.inputs[3]};
  if (args.inputs[3].present) run_kernel(args, "add", sum, kNone);
  run_kernel(args, "relu", {sum, 1}, kNone);
}

using TensorDesc = Handle<cudnnTensorDescriptor_t, cudnnDestroyTensorDescriptor>;

TensorDesc descriptor_of(DType dtype, const CudnnAxes& sizes, const CudnnAxes& strides) {
  cudnnTensorDescriptor_t raw = nullptr;
  TENON_CUDNN_CHECK(cudnnCreateTensorDescriptor(&raw));
  TensorDesc desc(raw);
  const auto narrow = [](std::int64_t value) { return static_cast<int>(value); };
  TENON_CUDNN_CHECK(cudnnSetTensor4dDescriptorEx(
      raw, cudnn_type(dtype), narrow(sizes[0]), narrow(sizes[1]), narrow(sizes[2]),
      narrow(sizes[3]), narrow(strides[0]), narrow(strides[1]), narrow(strides[2]),
      narrow(strides[3])));
  return desc;
}

/// Adds (channels) to every position of the result.
void add_bias(cudnnHandle_t handle, const ConvolutionCall& call, const TensorView& bias,
              void* result) {
  const auto dtype = static_cast<DType>(call.dtype);
  const float one32 = 1;
  const double one64 = 1;
  const void* one = dtype == DType::float64 ? static_cast<const void*>(&one64) : &one32;
  const std::int64_t channels = bias.numel();
  const TensorDesc addend =
      descriptor_of(dtype, {1, channels, 1, 1}, {channels, 1, channels, channels});
  const TensorDesc target = descriptor_of(dtype, call.sizes[2], call.strides[2]);
  TENON_CUDNN_CHECK(
      cudnnAddTensor(handle, one, addend.get(), bias.data, one, target.get(), result));
}

template <Computes kComputes, auto kDirectly>
void run(const KernelArgs& args) {
  require_alive();
  const auto [images, filters, result] = tensors_of<kComputes>(args);
  const bool channels_last = is_channels_last_call<kComputes>(args);
  Planned* plan = is_aligned(args) ? planned<kComputes>(args) : nullptr;
  if (plan == nullptr) return kDirectly(args);
  const Stream stream = stream_of(args);
  use_device(stream.device);
  const auto data = [&](std::size_t operand) {
    return is_forward(kComputes) && operand < args.inputs.size() ? args.inputs[operand].data
                                                                 : nullptr;
  };
  CudnnLibrary& library = cudnn_library(stream.device);
  const std::lock_guard lock(library.mutex);
  TENON_CUDNN_CHECK(cudnnSetStream(library.handle(), stream.handle));
  const auto& values = plan->operands;
  const CudnnBinding bindings[] = {{values[0], images.data},
                                   {values[1], filters.data},
                                   {values[2], result.data},
                                   {values[3], data(2)},
                                   {values[4], data(3)}};
  plan->plan.run(library.handle(), bindings, args.workspace);
  if (kComputes == Computes::result && args.inputs[2].present && values[3] == 0) {
    add_bias(library.handle(), call_of<kComputes>(args, channels_last), args.inputs[2],
             result.data);
  }
  if (!std::exchange(plan->has_run, true)) stop_other_threads_at_exit();
}

template <Computes kComputes, auto kDirectly>
void add(const char* op, const char* name) {
  register_kernel(op, DeviceType::cuda,
                  {.name = name,
                   .run = run<kComputes, kDirectly>,
                   .supports = supports<kComputes>,
                   .workspace_bytes = workspace_bytes<kComputes>,
                   .image_layout = image_layout<kComputes>});
}

}  // namespace

void register_conv2d_cudnn_kernels() {
  add<Computes::result, conv2d_directly>("conv2d", "cudnn.conv2d");
  add<Computes::activated_result, conv2d_relu_directly>("conv2d_relu", "cudnn.conv2d_relu");
  add<Computes::d_images, conv2d_backward_input_directly>("conv2d_backward_input",
                                                          "cudnn.conv2d_backward_input");
  add<Computes::d_filters, conv2d_backward_weight_directly>("conv2d_backward_weight",
                                                            "cudnn.conv2d_backward_weight");
}

}  // namespace tenon::cuda
