// conv2d, pooling and their gradients on CUDA against the CPU's in float64: what cuDNN computes, and what
// Tenon's own kernels do where it refuses.
#include <algorithm>

#include "tensor/ops/vision_attributes.h"
#include "tests/cuda/cuda_layouts.h"

namespace tenon::test {
namespace {

struct ConvCase {
  Sizes input, weight, output;
  Conv2dAttrs attrs;
};

const std::vector<ConvCase> kConvCases = {
    {{1, 1, 1, 1}, {1, 1, 1, 1}, {1, 1, 1, 1}, {{1, 1}, {0, 0}, {1, 1}, 1}},
    {{2, 3, 5, 7}, {4, 3, 3, 3}, {2, 4, 5, 7}, {{1, 1}, {1, 1}, {1, 1}, 1}},
    {{2, 4, 6, 5}, {6, 2, 3, 2}, {2, 6, 3, 3}, {{2, 1}, {1, 0}, {1, 2}, 2}},
    {{1, 3, 9, 8}, {3, 1, 3, 3}, {1, 3, 9, 6}, {{1, 2}, {2, 3}, {2, 1}, 3}},
    {{3, 2, 4, 4}, {5, 2, 4, 4}, {3, 5, 3, 3}, {{3, 3}, {4, 4}, {1, 1}, 1}},
    {{4, 32, 17, 19}, {64, 32, 3, 3}, {4, 64, 17, 19}, {{1, 1}, {1, 1}, {1, 1}, 1}},
    {{0, 3, 4, 4}, {2, 3, 3, 3}, {0, 2, 2, 2}, {{1, 1}, {0, 0}, {1, 1}, 1}},
};

Conv2dBackwardAttrs backward_attrs(const Conv2dAttrs& a, const Sizes& shape) {
  return {a.stride, a.padding, a.dilation, a.groups, to_shape(shape)};
}

TEST(CudaConv, Conv2dAndItsGradients) {
  SKIP_WITHOUT_GPU();
  Generator generator(41);
  for (const ConvCase& c : kConvCases) {
    const auto depth = static_cast<double>(c.weight[1] * c.weight[2] * c.weight[3]);
    const auto positions = static_cast<double>(c.output[0] * c.output[2] * c.output[3]);
    for (const DType dtype : kFloats) {
      for (const Placement placement :
           {Placement::contiguous, Placement::unaligned, Placement::transposed}) {
        const Operand2 x = make_operand(c.input, dtype, placement, generator);
        const Operand2 w = make_operand(c.weight, dtype, placement, generator);
        const Operand2 b = make_operand({c.weight[0]}, dtype, Placement::contiguous, generator);
        const Operand2 grad = make_operand(c.output, dtype, placement, generator);
        const std::string what = describe("conv2d", dtype, c.input, placement);
        // cuDNN may round a 16-bit result before it adds the bias.
        const double early = unit_roundoff(dtype) / unit_roundoff(accumulation_dtype(dtype));
        check_op("conv2d", {x, w, {}}, c.attrs, {8, 4 * depth}, what);
        check_op("conv2d", {x, w, b}, c.attrs, {8, 4 * depth + early * depth}, what + ", bias");
        check_op("conv2d_backward_input", {grad, w}, backward_attrs(c.attrs, c.input),
                 {8, 4 * depth * static_cast<double>(c.weight[0])}, what + ", input");
        check_op("conv2d_backward_weight", {grad, x}, backward_attrs(c.attrs, c.weight),
                 {8, 4 * positions}, what + ", weight");
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST(CudaConv, EveryImplementationAgrees) {
  SKIP_WITHOUT_GPU();
  Generator generator(42);
  const ConvCase& c = kConvCases[1];
  for (const DType dtype : kFloats) {
    const Operand2 x = make_operand(c.input, dtype, Placement::contiguous, generator);
    const Operand2 w = make_operand(c.weight, dtype, Placement::contiguous, generator);
    const Attrs attrs = c.attrs;
    const std::vector<double> exact = exact_result("conv2d", {x.cpu, w.cpu, {}}, attrs);
    for (const Kernel& kernel : get_op("conv2d").kernels(DeviceType::cuda)) {
      const Tensor result = empty(to_shape(c.output), {dtype, kCuda});
      const TensorView inputs[] = {x.cuda.view_of_data(), w.cuda.view_of_data(), {}};
      const TensorView outputs[] = {result.view_of_data()};
      KernelArgs args{&get_op("conv2d"), inputs, outputs, &attrs};
      args.stream = device_backend(DeviceType::cuda).stream(0);
      if (kernel.supports && !kernel.supports(args)) continue;
      const std::size_t bytes = kernel.workspace_bytes ? kernel.workspace_bytes(args) : 0;
      const Tensor workspace = empty({static_cast<std::int64_t>(bytes)}, {DType::uint8, kCuda});
      args.workspace = workspace.view_of_data().data;
      kernel.run(args);
      expect_near(result, exact, {8, 4 * 27}, std::string(kernel.name));
    }
  }
}

/// Tenon's own kernels in both layouts, in little work: also for tools/sanitize_cuda.py.
TEST(CudaConv, SmallOnesWithoutCudnn) {
  SKIP_WITHOUT_GPU();
  Generator generator(44);
  for (std::size_t i = 1; i < 5; ++i) {
    const ConvCase& c = kConvCases[i];
    for (const DType dtype : {DType::bfloat16, DType::float32}) {
      const auto make = [&](const Sizes& sizes) {
        return make_operand(sizes, dtype, Placement::contiguous, generator);
      };
      const Operand2 x = make(c.input), w = make(c.weight), b = make({c.weight[0]});
      const Operand2 grad = make(c.output);
      const std::string what = describe("conv2d", dtype, c.input, Placement::contiguous);
      check_ordered("conv2d", "cuda.conv2d", {x, w, b}, c.attrs, {8, 256}, what);
      check_ordered("conv2d_backward_input", "cuda.conv2d_backward_input", {grad, w},
                    backward_attrs(c.attrs, c.input), {8, 1024}, what + ", input");
      check_ordered("conv2d_backward_weight", "cuda.conv2d_backward_weight", {grad, x},
                    backward_attrs(c.attrs, c.weight), {8, 256}, what + ", weight");
      if (HasFatalFailure()) return;
    }
  }
}

/// cuDNN's kernel with bias, residual and relu in it; and, where it cannot read vectors, after it.
TEST(CudaConv, SmallOnesThatEndInRelu) {
  SKIP_WITHOUT_GPU();
  Generator generator(45);
  for (const DType dtype : {DType::bfloat16, DType::float16}) {
    const auto make = [&](const Sizes& sizes) {
      return make_operand(sizes, dtype, Placement::contiguous, generator, -2, 2);
    };
    const std::vector<Operand2> operands = {make({2, 16, 5, 6}), make({24, 16, 3, 3}), make({24}),
                                            make({2, 24, 5, 6})};
    const Attrs attrs = Conv2dAttrs{{1, 1}, {1, 1}, {1, 1}, 1};
    const std::vector<Tensor> exact = exact_outputs("conv2d_relu", operands, attrs);
    for (const std::int64_t shift : {0, 1}) {
      const std::vector<Tensor> got = run_ordered("conv2d_relu", "cudnn.conv2d_relu", operands,
                                                  attrs, Order::channels_last, shift);
      // Where cuDNN cannot do it at once the sum is rounded before what follows.
      const double early = shift == 0 ? 0 : unit_roundoff(dtype) / unit_roundoff(DType::float32);
      expect_near(got[0], exact[0].to_doubles(), {64, 4 * 144 + 144 * early / 16},
                  "conv2d_relu, shift " + std::to_string(shift));
      if (HasFatalFailure()) return;
    }
  }
}

struct PoolCase {
  Sizes input, output;
  Pool2dAttrs attrs;
};

const std::vector<PoolCase> kPoolCases = {
    {{1, 1, 1, 1}, {1, 1, 1, 1}, {{1, 1}, {1, 1}, {0, 0}}},
    {{2, 3, 6, 6}, {2, 3, 3, 3}, {{2, 2}, {2, 2}, {0, 0}}},
    {{2, 2, 7, 5}, {2, 2, 4, 5}, {{3, 3}, {2, 1}, {1, 1}}},
    {{1, 2, 9, 4}, {1, 2, 7, 2}, {{3, 2}, {1, 3}, {0, 1}}},
    {{0, 2, 5, 5}, {0, 2, 2, 2}, {{2, 2}, {2, 2}, {0, 0}}},
};

TEST(CudaConv, Pooling) {
  SKIP_WITHOUT_GPU();
  Generator generator(43);
  for (const PoolCase& c : kPoolCases) {
    const Pool2dBackwardAttrs backward{c.attrs.kernel_size, c.attrs.stride, c.attrs.padding,
                                       to_shape(c.input)};
    for (const DType dtype : kFloats) {
      for (const Placement placement : {Placement::contiguous, Placement::transposed}) {
        const Operand2 x = make_operand(c.input, dtype, placement, generator);
        const Operand2 grad = make_operand(c.output, dtype, placement, generator);
        const std::string what = describe("pooling", dtype, c.input, placement);
        check_outputs("max_pool2d", {x}, c.attrs, {0, 0}, what);
        const Tensor operands[] = {x.cpu};
        const Operand2 indices = from_cpu(apply(get_op("max_pool2d"), operands, c.attrs).at(1));
        check_op("max_pool2d_backward", {grad, indices}, backward, {8, 8}, what + ", max gradient");
        check_op("avg_pool2d", {x}, c.attrs, {8, 2}, what + ", mean");
        check_op("avg_pool2d_backward", {grad}, backward, {8, 8}, what + ", mean gradient");
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST(CudaConv, MaxPoolingOfNanAndTies) {
  SKIP_WITHOUT_GPU();
  const double nan = std::nan("");
  const Tensor x = tensor({1, nan, 3, 4, 5, 5, 5, 5}, {1, 2, 2, 2});
  check_outputs("max_pool2d", {from_cpu(x)}, Pool2dAttrs{{2, 2}, {2, 2}, {0, 0}}, {0, 0},
                "special");
}

}  // namespace
}  // namespace tenon::test
