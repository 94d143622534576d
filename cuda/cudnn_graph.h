// cuDNN's graph API: a few operations on four-dimensional tensors, written down, then compiled into
// one plan that computes them in fused kernels.
//
//   CudnnGraph graph;
//   const auto a = graph.memory(CUDNN_DATA_HALF, sizes, strides);
//   …
//   graph.matmul(a, b, c);
//   CudnnPlan plan(std::move(graph), handle);
//   if (plan.compile(handle)) plan.run(handle, bindings, workspace);
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <vector>

#include "cuda/cudnn.h"

namespace tenon::cuda {

using CudnnDescriptor = Handle<cudnnBackendDescriptor_t, cudnnBackendDestroyDescriptor>;
/// Sizes or strides: batch, heads, rows, columns; of images samples, channels, height, width.
using CudnnAxes = std::array<std::int64_t, 4>;

/// How windows slide over height and width.
struct CudnnWindows {
  std::array<std::int64_t, 2> padding, stride, dilation;
};

/// Which of a convolution's three tensors is computed from the others.
enum class CudnnConvolution : std::uint8_t { result, d_images, d_filters };

/// Results that are not given are virtual: float32 values that need not be stored.
class CudnnGraph {
 public:
  /// A tensor of the graph: its unique id.
  using Value = std::int64_t;

  /// A tensor in device memory, aligned to 16 bytes.
  Value memory(cudnnDataType_t type, const CudnnAxes& sizes, const CudnnAxes& strides);
  /// The same elements with rows and columns exchanged, as an operand of matmul.
  Value transposed_memory(cudnnDataType_t type, CudnnAxes sizes, CudnnAxes strides);
  /// A float32 value of these strides that need not be stored.
  Value intermediate(const CudnnAxes& sizes, const CudnnAxes& strides);
  /// A float32 in host memory, read when the plan runs.
  Value number();

  /// a·b over the last two axes.
  Value matmul(Value a, Value b);
  void matmul(Value a, Value b, Value result);
  /// `mode` of one to three operands; sizes of 1 are broadcast to the first operand's.
  Value pointwise(cudnnPointwiseMode_t mode, std::initializer_list<Value> operands);
  void pointwise(cudnnPointwiseMode_t mode, std::initializer_list<Value> operands, Value result);
  /// The number of each element's row (axis 2) or column (axis 3), int32.
  Value index(int axis, Value like);
  /// a >= b for each element, bool.
  Value at_least(Value a, Value b);
  /// Over the columns; sizes (…, rows, 1).
  Value reduce(cudnnReduceTensorOp_t operation, Value x);
  /// Over what `result` has fewer of: columns, or the heads of each group that follow each other.
  void reduce(cudnnReduceTensorOp_t operation, Value x, Value result);
  /// a·b over the last two axes, rounded to `type`.
  Value rounded_matmul(Value a, Value b, cudnnDataType_t type);
  /// pointwise with its result rounded to `type`, as a factor of a product is.
  Value rounded(cudnnPointwiseMode_t mode, std::initializer_list<Value> operands,
                cudnnDataType_t type);
  /// x with rows and columns exchanged, as `type`.
  Value transpose(Value x, cudnnDataType_t type);

  /// Cross-correlation of images with filters (filters, channels of a group, height, width), or one of
  /// its gradients; sums are of type `sums`.
  void convolution(CudnnConvolution computes, Value images, Value filters, Value result,
                   const CudnnWindows& windows, cudnnDataType_t sums);

 private:
  friend class CudnnPlan;
  struct Tensor {
    CudnnAxes sizes;
    CudnnAxes strides;
    cudnnBackendDescriptor_t descriptor;
  };
  enum class Kind : std::uint8_t { memory, virtual_value, number };

  Value add(cudnnDataType_t type, const CudnnAxes& sizes, const CudnnAxes& strides, Kind kind);
  Value add_virtual(cudnnDataType_t type, const CudnnAxes& sizes);
  const Tensor& tensor(Value value) const { return tensors_[static_cast<std::size_t>(value - 1)]; }
  cudnnBackendDescriptor_t make(cudnnBackendDescriptorType_t type);
  cudnnBackendDescriptor_t make_windows(const CudnnWindows& windows, cudnnDataType_t sums);
  void add_pointwise(cudnnBackendDescriptor_t settings, std::span<const Value> operands,
                     Value result);
  cudnnBackendDescriptor_t pointwise_settings(cudnnPointwiseMode_t mode, cudnnDataType_t compute);

  std::vector<Tensor> tensors_;
  std::vector<cudnnBackendDescriptor_t> operations_;
  std::vector<CudnnDescriptor> owned_;
};

/// Where a graph's tensor is: device memory, or host memory for a number.
struct CudnnBinding {
  CudnnGraph::Value value;
  void* data;
};

/// Which of cuDNN's engines may compute a graph. None of them is nondeterministic, and none adds in
/// less than the graph's type of sums.
struct CudnnEngines {
  /// Also those that the heuristic names as its last resort.
  bool with_fallbacks = false;
  /// Products of float32 by the units for float32: no TF32, no Winograd transforms.
  bool exact = false;
  std::size_t most_workspace_bytes = SIZE_MAX;
  /// Those that are there before those that are compiled for the graph, which takes a third of a second.
  bool compiled_last = false;
};

/// A graph planned for the handle's device: the first of cuDNN's own choices among `engines`. Nothing
/// is measured, no work is queued. Not safe from two threads at once.
class CudnnPlan {
 public:
  /// Asks cuDNN whether and how it computes the graph.
  CudnnPlan(CudnnGraph graph, cudnnHandle_t handle, const CudnnEngines& engines = {});

  /// Why cuDNN does not take the graph; empty when it does.
  const std::string& refusal() const { return refusal_; }
  /// Compiles the kernels at the first call, which takes about a second; false when that is refused.
  bool compile(cudnnHandle_t handle);
  /// Of a plan that is compiled.
  std::size_t workspace_bytes() const { return workspace_bytes_; }
  /// Queues a compiled plan on the handle's stream. Every memory tensor and number of the graph is
  /// bound; bindings of value 0 are passed over.
  void run(cudnnHandle_t handle, std::span<const CudnnBinding> bindings, void* workspace) const;

 private:
  bool compile(cudnnHandle_t handle, cudnnBackendDescriptor_t configuration);

  /// Adds configurations that were not asked for yet; false when there are no more to ask for.
  bool ask_further();

  std::vector<CudnnDescriptor> graph_;           // what the plan is made from
  std::vector<CudnnDescriptor> configurations_;  // still to be tried, in order
  CudnnEngines engines_;
  std::size_t asked_ = 0;
  std::string refusal_;
  CudnnDescriptor plan_;
  std::size_t workspace_bytes_ = 0;
};

}  // namespace tenon::cuda
