// conv2d and its gradients by cuDNN: one fixed algorithm for each, all of them deterministic, never
// chosen by measurement. float32 multiplies in float32 (no TF32), 16-bit floats accumulate in float32.
// What cuDNN refuses, or what needs more than the device's workspace, goes to conv2d.cu.
#include <algorithm>
#include <limits>

#include "cuda/context.h"
#include "cuda/cudnn.h"
#include "cuda/kernels/conv2d.h"
#include "cuda/kernels/register.h"
#include "cuda/launch.h"
#include "tensor/detail/window.h"

namespace tenon::cuda {
namespace {

using ops::ConvGeometry;

using TensorDesc = Handle<cudnnTensorDescriptor_t, cudnnDestroyTensorDescriptor>;
using FilterDesc = Handle<cudnnFilterDescriptor_t, cudnnDestroyFilterDescriptor>;
using ConvDesc = Handle<cudnnConvolutionDescriptor_t, cudnnDestroyConvolutionDescriptor>;

constexpr auto kForward = CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_PRECOMP_GEMM;
constexpr auto kBackwardInput = CUDNN_CONVOLUTION_BWD_DATA_ALGO_1;
constexpr auto kBackwardWeight = CUDNN_CONVOLUTION_BWD_FILTER_ALGO_1;

template <class Desc, class Raw>
Desc created(cudnnStatus_t (*create)(Raw*)) {
  Raw raw = nullptr;
  TENON_CUDNN_CHECK(create(&raw));
  return Desc(raw);
}

/// cuDNN counts in int.
bool fits_int(const TensorView& view) {
  return view.numel() > 0 && view.numel() <= std::numeric_limits<int>::max();
}

TensorDesc tensor_desc(const TensorView& view) {
  TensorDesc desc = created<TensorDesc>(cudnnCreateTensorDescriptor);
  const auto size = [&](int axis) { return static_cast<int>(view.size(axis)); };
  TENON_CUDNN_CHECK(cudnnSetTensor4dDescriptor(
      desc.get(), CUDNN_TENSOR_NCHW, cudnn_type(view.dtype), size(0), size(1), size(2), size(3)));
  return desc;
}

FilterDesc filter_desc(const TensorView& view) {
  FilterDesc desc = created<FilterDesc>(cudnnCreateFilterDescriptor);
  const auto size = [&](int axis) { return static_cast<int>(view.size(axis)); };
  TENON_CUDNN_CHECK(cudnnSetFilter4dDescriptor(
      desc.get(), cudnn_type(view.dtype), CUDNN_TENSOR_NCHW, size(0), size(1), size(2), size(3)));
  return desc;
}

ConvDesc conv_desc(const ConvGeometry& g, DType dtype) {
  ConvDesc desc = created<ConvDesc>(cudnnCreateConvolutionDescriptor);
  const auto narrow = [](std::int64_t value) { return static_cast<int>(value); };
  TENON_CUDNN_CHECK(cudnnSetConvolution2dDescriptor(
      desc.get(), narrow(g.h.padding), narrow(g.w.padding), narrow(g.h.stride), narrow(g.w.stride),
      narrow(g.h.dilation), narrow(g.w.dilation), CUDNN_CROSS_CORRELATION,
      dtype == DType::float64 ? CUDNN_DATA_DOUBLE : CUDNN_DATA_FLOAT));
  TENON_CUDNN_CHECK(cudnnSetConvolutionGroupCount(desc.get(), narrow(g.groups)));
  const bool is_16_bit = dtype == DType::float16 || dtype == DType::bfloat16;
  TENON_CUDNN_CHECK(
      cudnnSetConvolutionMathType(desc.get(), is_16_bit ? CUDNN_TENSOR_OP_MATH : CUDNN_FMA_MATH));
  return desc;
}

/// A convolution's three tensors, whichever of them is the result.
struct Problem {
  const TensorView& input;
  const TensorView& weight;
  const TensorView& output;
  TensorDesc input_desc, output_desc;
  FilterDesc weight_desc;
  ConvDesc convolution;

  template <class A>
  Problem(const A& attrs, const TensorView& in, const TensorView& filters, const TensorView& out)
      : input(in),
        weight(filters),
        output(out),
        input_desc(tensor_desc(in)),
        output_desc(tensor_desc(out)),
        weight_desc(filter_desc(filters)),
        convolution(conv_desc(ConvGeometry(attrs, in, filters, out), in.dtype)) {}
};

/// The roles of operands in the three ops.
Problem forward_problem(const KernelArgs& args) {
  return {args.attributes<Conv2dAttrs>(), args.inputs[0], args.inputs[1], args.outputs[0]};
}
Problem backward_input_problem(const KernelArgs& args) {
  return {args.attributes<Conv2dBackwardAttrs>(), args.outputs[0], args.inputs[1], args.inputs[0]};
}
Problem backward_weight_problem(const KernelArgs& args) {
  return {args.attributes<Conv2dBackwardAttrs>(), args.inputs[1], args.outputs[0], args.inputs[0]};
}

cudnnStatus_t forward_workspace(cudnnHandle_t handle, const Problem& p, std::size_t* bytes) {
  return cudnnGetConvolutionForwardWorkspaceSize(handle, p.input_desc.get(), p.weight_desc.get(),
                                                 p.convolution.get(), p.output_desc.get(), kForward,
                                                 bytes);
}
cudnnStatus_t backward_input_workspace(cudnnHandle_t handle, const Problem& p, std::size_t* bytes) {
  return cudnnGetConvolutionBackwardDataWorkspaceSize(handle, p.weight_desc.get(),
                                                      p.output_desc.get(), p.convolution.get(),
                                                      p.input_desc.get(), kBackwardInput, bytes);
}
cudnnStatus_t backward_weight_workspace(cudnnHandle_t handle, const Problem& p,
                                        std::size_t* bytes) {
  return cudnnGetConvolutionBackwardFilterWorkspaceSize(
      handle, p.input_desc.get(), p.output_desc.get(), p.convolution.get(), p.weight_desc.get(),
      kBackwardWeight, bytes);
}

/// Whether cuDNN takes the call within the device's workspace.
template <auto kProblem, auto kWorkspace>
bool supports(const KernelArgs& args) {
  for (const TensorView* view : {&args.inputs[0], &args.inputs[1], &args.outputs[0]}) {
    if (!fits_int(*view)) return false;
  }
  const int device = args.outputs[0].device.index;
  CudnnLibrary& library = cudnn_library(device);
  const std::lock_guard lock(library.mutex);
  std::size_t bytes = 0;
  return kWorkspace(library.handle(), kProblem(args), &bytes) == CUDNN_STATUS_SUCCESS &&
         bytes <= kWorkspaceBytes;
}

/// cuDNN reads vectors; a view may start at any element.
bool is_aligned(const KernelArgs& args) {
  constexpr std::uintptr_t kVectorBytes = 16;
  const auto aligned = [](const TensorView& view) {
    return reinterpret_cast<std::uintptr_t>(view.data) % kVectorBytes == 0;
  };
  return std::ranges::all_of(args.inputs, aligned) && aligned(args.outputs[0]);
}

/// Calls f(handle, problem, workspace) with the handle on the call's stream. False when cuDNN does not
/// support the call after all; then the result is still to be computed.
template <auto kProblem, class F>
bool queue(const KernelArgs& args, F f) {
  require_alive();
  const Stream stream = stream_of(args);
  use_device(stream.device);
  CudnnLibrary& library = cudnn_library(stream.device);
  const std::lock_guard lock(library.mutex);
  TENON_CUDNN_CHECK(cudnnSetStream(library.handle(), stream.handle));
  const cudnnStatus_t status =
      f(library.handle(), kProblem(args), device_context(stream.device).work_stream().workspace());
  static std::once_flag has_run;
  std::call_once(has_run, stop_other_threads_at_exit);
  if (is_unsupported(status)) return false;
  check_cudnn(status, args.name());
  return true;
}

/// The factors of result = one · (…) + zero · result, in the type that cuDNN scales with.
struct Factors {
  explicit Factors(DType dtype) : is_double(dtype == DType::float64) {}
  bool is_double;
  float one32 = 1, zero32 = 0;
  double one64 = 1, zero64 = 0;
  const void* one() const {
    return is_double ? static_cast<const void*>(&one64) : static_cast<const void*>(&one32);
  }
  const void* zero() const {
    return is_double ? static_cast<const void*>(&zero64) : static_cast<const void*>(&zero32);
  }
};

cudnnStatus_t forward(const KernelArgs& args, cudnnHandle_t handle, const Problem& p,
                      void* workspace) {
  const Factors factor(p.input.dtype);
  const cudnnStatus_t status = cudnnConvolutionForward(
      handle, factor.one(), p.input_desc.get(), p.input.data, p.weight_desc.get(), p.weight.data,
      p.convolution.get(), kForward, workspace, kWorkspaceBytes, factor.zero(), p.output_desc.get(),
      p.output.data);
  if (status != CUDNN_STATUS_SUCCESS || !args.inputs[2].present) return status;
  TensorView bias = args.inputs[2];
  bias.sizes = {1, bias.numel(), 1, 1};
  return cudnnAddTensor(handle, factor.one(), tensor_desc(bias).get(), bias.data, factor.one(),
                        p.output_desc.get(), p.output.data);
}

cudnnStatus_t backward_input(const KernelArgs&, cudnnHandle_t handle, const Problem& p,
                             void* workspace) {
  const Factors factor(p.input.dtype);
  return cudnnConvolutionBackwardData(handle, factor.one(), p.weight_desc.get(), p.weight.data,
                                      p.output_desc.get(), p.output.data, p.convolution.get(),
                                      kBackwardInput, workspace, kWorkspaceBytes, factor.zero(),
                                      p.input_desc.get(), p.input.data);
}

cudnnStatus_t backward_weight(const KernelArgs&, cudnnHandle_t handle, const Problem& p,
                              void* workspace) {
  const Factors factor(p.input.dtype);
  return cudnnConvolutionBackwardFilter(handle, factor.one(), p.input_desc.get(), p.input.data,
                                        p.output_desc.get(), p.output.data, p.convolution.get(),
                                        kBackwardWeight, workspace, kWorkspaceBytes, factor.zero(),
                                        p.weight_desc.get(), p.weight.data);
}

template <auto kProblem, auto kCall, auto kDirectly>
void run(const KernelArgs& args) {
  const auto call = [&](cudnnHandle_t handle, const Problem& p, void* workspace) {
    return kCall(args, handle, p, workspace);
  };
  if (!is_aligned(args) || !queue<kProblem>(args, call)) kDirectly(args);
}

}  // namespace

void register_conv2d_cudnn_kernels() {
  register_kernel("conv2d", DeviceType::cuda,
                  {.name = "cudnn.conv2d",
                   .run = run<forward_problem, forward, conv2d_directly>,
                   .supports = supports<forward_problem, forward_workspace>});
  register_kernel(
      "conv2d_backward_input", DeviceType::cuda,
      {.name = "cudnn.conv2d_backward_input",
       .run = run<backward_input_problem, backward_input, conv2d_backward_input_directly>,
       .supports = supports<backward_input_problem, backward_input_workspace>});
  register_kernel(
      "conv2d_backward_weight", DeviceType::cuda,
      {.name = "cudnn.conv2d_backward_weight",
       .run = run<backward_weight_problem, backward_weight, conv2d_backward_weight_directly>,
       .supports = supports<backward_weight_problem, backward_weight_workspace>});
}

}  // namespace tenon::cuda
