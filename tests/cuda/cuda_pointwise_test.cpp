// CUDA kernels of comparisons, powers and gradients of unary ops against the CPU ops in float64:
// every dtype, layout and broadcast, with sentinels around the outputs.
#include <limits>

#include "tensor/ops/attributes.h"
#include "tests/cuda/cuda_support.h"

namespace tenon::test {
namespace cuda_pointwise_test {

const std::vector<Sizes> kShapes = {{},      {1},        {7},    {64},  {1031},
                                    {5, 77}, {3, 4, 16}, {0, 4}, {4099}};
const std::vector<std::pair<Sizes, Sizes>> kBroadcasts = {
    {{5, 64}, {64}}, {{4, 1, 16}, {3, 1}}, {{7, 3}, {1}},           {{6, 1}, {1, 6}},
    {{9}, {4, 9}},   {{0, 3}, {1, 3}},     {{2, 3, 40}, {2, 1, 40}}};

constexpr const char* kComparisons[] = {"eq", "ne", "lt", "le", "gt", "ge"};

struct GradientCase {
  const char* op;
  double low, high;  // the input or output that the slope is taken at
  Tolerance tolerance;
  Attrs attrs = {};
};

const std::vector<GradientCase>& gradient_cases() {
  static const std::vector<GradientCase> cases = {
      {"abs_backward", -2, 2, {}},
      {"erf_backward", -3, 3, {24, 0.01}},
      {"gelu_backward", -5, 5, {24, 1}, GeluAttrs{Approximate::none}},
      {"gelu_backward", -5, 5, {48, 1}, GeluAttrs{Approximate::tanh}},
      {"relu_backward", -2, 2, {}},
      {"sigmoid_backward", 0, 1, {8}},
      {"silu_backward", -9, 9, {16, 1}},
      {"softplus_backward", -30, 30, {24}, SoftplusAttrs{}},
      {"softplus_backward", -3, 3, {24}, SoftplusAttrs{-2, 1}},
      {"tanh_backward", -1, 1, {8, 1}},
  };
  return cases;
}

TEST(CudaPointwise, GradientsOfUnaryOps) {
  SKIP_WITHOUT_GPU();
  Generator generator(41);
  for (const GradientCase& test : gradient_cases()) {
    for (const DType dtype : kFloats) {
      for (const Sizes& sizes : kShapes) {
        for (const Placement placement : kPlacements) {
          const Operand2 grad = make_operand(sizes, dtype, Placement::contiguous, generator, -1, 1);
          const Operand2 x = make_operand(sizes, dtype, placement, generator, test.low, test.high);
          const std::string what = describe(test.op, dtype, sizes, placement);
          check_op(test.op, {grad, x}, test.attrs, test.tolerance, what);
          check_op(test.op, {x, grad}, test.attrs, {64, 16}, what + ", roles swapped");
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST(CudaPointwise, BiasGelu) {
  SKIP_WITHOUT_GPU();
  Generator generator(45);
  // Rows of whole vectors and not, one row, one column, nothing, several blocks.
  const std::vector<Sizes> shapes = {{7},     {64},    {5, 1},  {5, 77},      {3, 4, 16},
                                     {33, 8}, {0, 24}, {24, 0}, {2, 3, 5, 9}, {70, 1032}};
  for (const Approximate form : {Approximate::none, Approximate::tanh}) {
    const double roundings = form == Approximate::tanh ? 48 : 24;
    for (const DType dtype : kFloats) {
      for (const Sizes& sizes : shapes) {
        for (const Placement placement : kPlacements) {
          for (const Placement of_bias : {Placement::contiguous, Placement::unaligned}) {
            const Operand2 x = make_operand(sizes, dtype, placement, generator, -4, 4);
            const Operand2 bias = make_operand({sizes.back()}, dtype, of_bias, generator, -2, 2);
            const Operand2 grad =
                make_operand(sizes, dtype, Placement::contiguous, generator, -1, 1);
            const std::string what = describe("bias_gelu", dtype, sizes, placement);
            check_op("bias_gelu", {x, bias}, GeluAttrs{form}, {roundings, 1}, what);
            check_op("bias_gelu_backward", {grad, x, bias}, GeluAttrs{form}, {roundings, 1}, what);
            if (HasFatalFailure()) return;
          }
        }
      }
    }
  }
}

TEST(CudaPointwise, BiasGeluPropagatesNanAndInf) {
  SKIP_WITHOUT_GPU();
  const double inf = std::numeric_limits<double>::infinity();
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (const Approximate form : {Approximate::none, Approximate::tanh}) {
    for (const DType dtype : kFloats) {
      const Tensor x = tensor({nan, inf, 0, 1, -0.0, -1, 9, -9}, {2, 4}, {dtype});
      const Tensor bias = tensor({0, 1, nan, inf}, {4}, {dtype});
      check_op("bias_gelu", {from_cpu(x), from_cpu(bias)}, GeluAttrs{form}, {48, 1}, "special");
      if (HasFatalFailure()) return;
    }
  }
}

TEST(CudaPointwise, ComparisonsOfTensors) {
  SKIP_WITHOUT_GPU();
  Generator generator(42);
  for (const char* op : kComparisons) {
    for (int code = 0; code < kNumDTypes; ++code) {
      const auto dtype = static_cast<DType>(code);
      for (const Sizes& sizes : kShapes) {
        for (const Placement placement : kPlacements) {
          // Few values, so that many are equal.
          const Operand2 x = make_operand(sizes, DType::int64, placement, generator, 0, 3);
          const Operand2 y = make_operand(sizes, DType::int64, Placement::gapped, generator, 0, 3);
          check_op(op, {{x.cpu.to(dtype), x.cuda.to(dtype)}, {y.cpu.to(dtype), y.cuda.to(dtype)}},
                   BinaryAttrs{}, {}, describe(op, dtype, sizes, placement));
          if (HasFatalFailure()) return;
        }
      }
      for (const auto& [left, right] : kBroadcasts) {
        const Operand2 x = make_operand(left, dtype, Placement::contiguous, generator, 0, 3);
        const Operand2 y = make_operand(right, dtype, Placement::contiguous, generator, 0, 3);
        check_op(op, {x, y}, BinaryAttrs{}, {}, std::string(op) + " broadcast");
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST(CudaPointwise, ComparisonsWithNumbersNanAndInf) {
  SKIP_WITHOUT_GPU();
  const double inf = std::numeric_limits<double>::infinity();
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (const char* op : kComparisons) {
    for (const DType dtype : kFloats) {
      const Tensor x = tensor({nan, inf, -inf, 0, -0.0, 1, nan, -1, inf, 0.1}, {10}, {dtype});
      const Tensor y = tensor({nan, inf, inf, -0.0, 0, nan, 1, -1, nan, 0.1}, {10}, {dtype});
      check_op(op, {from_cpu(x), from_cpu(y)}, BinaryAttrs{}, {}, op);
      // 0.1 means the nearest number of the dtype.
      for (const double number : {0.0, 0.1, -inf, nan}) {
        const Tensor expected = apply1(get_op(op), {x, Tensor()}, BinaryAttrs{number});
        const Tensor got = apply1(get_op(op), {x.to(kCuda), Tensor()}, BinaryAttrs{number});
        expect_bit_equal(got, expected, std::string(op) + " with a number");
      }
      if (HasFatalFailure()) return;
    }
    for (const DType dtype : {DType::int64, DType::int32, DType::uint8, DType::boolean}) {
      const Tensor x = tensor({0, 1, 0, 1}, {4}, {dtype});
      check_op(op, {from_cpu(x), {}}, BinaryAttrs{1}, {}, std::string(op) + " with a number");
    }
  }
  const Tensor large = from_vector<std::int64_t>({(std::int64_t{1} << 62) + 1}, {1}).to(kCuda);
  EXPECT_EQ(gt(large, std::int64_t{1} << 62).to_doubles(), (std::vector<double>{1}));
}

TEST(CudaPointwise, Softplus) {
  SKIP_WITHOUT_GPU();
  Generator generator(43);
  for (const DType dtype : kFloats) {
    for (const Sizes& sizes : kShapes) {
      for (const Placement placement : kPlacements) {
        const Operand2 x = make_operand(sizes, dtype, placement, generator, -30, 30);
        const std::string what = describe("softplus", dtype, sizes, placement);
        check_op("softplus", {x}, SoftplusAttrs{}, {40}, what);
        check_op("softplus", {x}, SoftplusAttrs{0.5, 7}, {40}, what);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST(CudaPointwise, PowerOfTensors) {
  SKIP_WITHOUT_GPU();
  Generator generator(44);
  for (const DType dtype : kFloats) {
    for (const auto& [left, right] : kBroadcasts) {
      const Operand2 x = make_operand(left, dtype, Placement::gapped, generator, 0.1, 3);
      const Operand2 e = make_operand(right, dtype, Placement::transposed, generator, -3, 3);
      check_op("pow", {x, e}, PowAttrs{}, {32}, "pow of tensors");
      if (HasFatalFailure()) return;
    }
    const Tensor x = tensor({0, 0, 0, -2, -2, 1, 2}, {7}, {dtype});
    const Tensor e = tensor({0, 2, -1, 3, 0.5, 1e4, -1e4}, {7}, {dtype});
    check_op("pow", {from_cpu(x), from_cpu(e)}, PowAttrs{}, {16}, "pow of special values");
  }
}

}  // namespace cuda_pointwise_test
}  // namespace tenon::test
