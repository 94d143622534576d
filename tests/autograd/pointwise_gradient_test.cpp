// Gradients of pointwise ops where calculus leaves a choice, and the kernels of gradient ops in every
// dtype and layout against double-precision references.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "autograd/autograd.h"
#include "tensor/error.h"
#include "tensor/functional.h"
#include "tensor/rules/gradients.h"
#include "tests/tensor/layouts.h"

namespace tenon::test {
namespace {

using Doubles = std::vector<double>;
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();

Tensor leaf(const Doubles& values) {
  Tensor x = tensor(values, {static_cast<std::int64_t>(values.size())}, {DType::float64});
  return x.requires_grad_();
}

/// NaN equals NaN.
void expect_equal(const Tensor& got, const Doubles& expected, const char* what) {
  SCOPED_TRACE(what);
  ASSERT_TRUE(got);
  expect_values(got, expected, 1e-12);
}

/// The gradients of f(a, b) with cotangents of 1.
std::pair<Tensor, Tensor> gradients(Tensor (*f)(const Tensor&, const Tensor&), const Doubles& a,
                                    const Doubles& b) {
  const Tensor x = leaf(a);
  const Tensor y = leaf(b);
  const Tensor output = f(x, y);
  backward(output, ones(output.shape(), {DType::float64}));
  return {x.grad(), y.grad()};
}

Tensor gradient(Tensor (*f)(const Tensor&), const Doubles& values) {
  const Tensor x = leaf(values);
  const Tensor output = f(x);
  backward(output, ones(output.shape(), {DType::float64}));
  return x.grad();
}

TEST(PointwiseGradient, EqualOperandsShareTheGradient) {
  const auto [a, b] = gradients(maximum, {1, 2, 3, kNan, 1}, {2, 2, 1, 1, kNan});
  expect_equal(a, {0, 0.5, 1, 1, 1}, "maximum, input");
  expect_equal(b, {1, 0.5, 0, 1, 1}, "maximum, other");
  const auto [c, d] = gradients(minimum, {1, 2, 3, kNan, 1}, {2, 2, 1, 1, kNan});
  expect_equal(c, {1, 0.5, 0, 1, 1}, "minimum, input");
  expect_equal(d, {0, 0.5, 1, 1, 1}, "minimum, other");
}

TEST(PointwiseGradient, IsZeroAtKinks) {
  expect_equal(gradient(abs, {-2, -0.0, 0, 3}), {-1, 0, 0, 1}, "abs");
  expect_equal(gradient(relu, {-2, -0.0, 0, 3}), {0, 0, 0, 1}, "relu");
  const auto capped = [](const Tensor& x) { return softplus(x, 1, 2); };
  expect_equal(gradient(capped, {2, 2.5}), {1 / (1 + std::exp(-2)), 1}, "softplus");
}

TEST(PointwiseGradient, AtInfinity) {
  expect_equal(gradient(tanh, {-kInf, kInf}), {0, 0}, "tanh");
  expect_equal(gradient(sigmoid, {-kInf, kInf}), {0, 0}, "sigmoid");
  expect_equal(gradient(erf, {-kInf, kInf}), {0, 0}, "erf");
  expect_equal(gradient(reciprocal, {-kInf, kInf, 0}), {-0.0, -0.0, -kInf}, "reciprocal");
  expect_equal(gradient(sqrt, {0, kInf}), {kInf, 0}, "sqrt");
  expect_equal(gradient(rsqrt, {0, kInf}), {-kInf, -0.0}, "rsqrt");
  expect_equal(gradient(log, {0, kInf}), {kInf, 0}, "log");
}

TEST(PointwiseGradient, PowersOfZeroAndOfNegativeNumbers) {
  const auto number = [](double exponent, const Doubles& values) {
    const Tensor x = leaf(values);
    const Tensor output = pow(x, exponent);
    backward(output, ones(output.shape(), {DType::float64}));
    return x.grad();
  };
  expect_equal(number(0, {0, -1, kInf}), {0, 0, 0}, "exponent 0");
  expect_equal(number(1, {0, -1}), {1, 1}, "exponent 1");
  expect_equal(number(2, {0, -1}), {0, -2}, "exponent 2");
  expect_equal(number(0.5, {0, -1}), {kInf, kNan}, "exponent 0.5");
  // PyTorch: no slope in the exponent where the base is 0 and the exponent at least 0; NaN for a
  // negative base.
  const auto [base, exponent] = gradients(pow, {0, 0, 0, -2, -2, 2, 2}, {0, 2, -1, 2, 0, 0, 3});
  expect_equal(base, {0, 0, -kInf, -4, 0, 0, 12}, "base");
  expect_equal(exponent, {0, 0, -kInf, kNan, kNan, std::log(2.0), 8 * std::log(2.0)}, "exponent");
}

TEST(PointwiseGradient, DivisionDoesNotOverflowOnTheWay) {
  const auto [input, other] = gradients(div, {1e300, 1e-300}, {1e200, 1e-200});
  expect_equal(input, {1e-200, 1e200}, "input");
  expect_equal(other, {-1e-100, -1e100}, "other");
  const auto inverse = [](const Tensor& x) { return mul(reciprocal(x), 1e200); };
  expect_equal(gradient(inverse, {1e200, -1e200}), {-1e-200, -1e-200}, "reciprocal");
  const auto quotient = [](const Tensor& x) { return rdiv(x, 1e200); };
  expect_equal(gradient(quotient, {1e200, -1e200}), {-1e-200, -1e-200}, "rdiv");
  const Tensor half = full({1}, 300.5, {DType::float16}).requires_grad_();
  backward(sum(reciprocal(half)));
  EXPECT_NEAR(half.grad().item(), -1 / (300.5 * 300.5), 1e-7);
}

using Binary = Tensor (*)(const Tensor&, const Tensor&);
constexpr Binary kBinary[] = {add, sub, mul, div, maximum, minimum, pow};

TEST(PointwiseGradient, FunctionsOfLargeHalvesDoNotOverflowOnTheWay) {
  const std::vector<std::pair<const char*, Tensor (*)(const Tensor&)>> functions = {
      {"reciprocal", reciprocal},
      {"1 / x", [](const Tensor& x) { return 1.0 / x; }},
      {"sqrt", sqrt},
      {"rsqrt", rsqrt},
      {"log", log},
      {"tanh", tanh},
      {"sigmoid", sigmoid},
      {"silu", silu},
      {"erf", erf},
      {"gelu", [](const Tensor& x) { return gelu(x); }},
      {"gelu by tanh", [](const Tensor& x) { return gelu(x, Approximate::tanh); }},
      {"softplus", [](const Tensor& x) { return softplus(x); }},
      {"x^-1", [](const Tensor& x) { return pow(x, -1); }},
  };
  constexpr double kTiny = 0x1p-24;  // float16's smallest number
  for (const auto& [name, f] : functions) {
    for (const double value : {300.0, 1000.0}) {
      const double wide = gradient(f, {value}).item();
      Tensor x = tensor({value}, {1}, {DType::float16}).requires_grad_();
      backward(f(x));
      EXPECT_NEAR(x.grad().item(), wide, std::abs(wide) * 0.01 + 2 * kTiny) << name << value;
    }
  }
}

TEST(PointwiseGradient, KeepsDtypeAndShapeOfEachOperand) {
  for (const DType dtype : kFloats) {
    Tensor a = random_tensor({2, 1, 3}, dtype, Memory::permuted, 1, 0.5, 2);
    Tensor b = random_tensor({4, 1}, dtype, Memory::narrowed, 2, 0.5, 2);
    a.requires_grad_();
    b.requires_grad_();
    for (const Binary f : kBinary) {
      a.set_grad({});
      b.set_grad({});
      const Tensor output = f(a, b);
      backward(output, ones(output.shape(), {dtype}));
      EXPECT_EQ(a.grad().spec(), a.spec());
      EXPECT_EQ(b.grad().spec(), b.spec());
    }
  }
}

struct GradientOp {
  const char* name;
  Tensor (*f)(const Tensor&, const Tensor&);
  double (*slope)(double);  // at the second operand
  double low, high;
  double condition = 4;  // how much the formula magnifies rounding errors on its way
};

double sigmoid_of(double x) { return 1 / (1 + std::exp(-x)); }
double gelu_slope(double x) {
  return 0.5 * std::erfc(-x * std::sqrt(0.5)) + x * std::exp(-x * x / 2) / std::sqrt(2 * M_PI);
}
double gelu_tanh_slope(double x) {
  const double t = std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x));
  return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * std::sqrt(2 / M_PI) * (1 + 3 * 0.044715 * x * x);
}

const GradientOp kGradientOps[] = {
    {"abs", ops::abs_backward, [](double x) { return x > 0   ? 1.0
                                                     : x < 0 ? -1.0
                                                             : 0.0; }, -2, 2},
    {"erf", ops::erf_backward, [](double x) { return 2 / std::sqrt(M_PI) * std::exp(-x * x); }, -3,
     3, 20},
    {"gelu",
     [](const Tensor& g, const Tensor& x) { return ops::gelu_backward(g, x, Approximate::none); },
     gelu_slope, -4, 4, 20},
    {"gelu tanh",
     [](const Tensor& g, const Tensor& x) { return ops::gelu_backward(g, x, Approximate::tanh); },
     gelu_tanh_slope, -4, 4, 40},
    {"relu", ops::relu_backward, [](double y) { return y > 0 ? 1.0 : 0.0; }, -2, 2},
    {"sigmoid", ops::sigmoid_backward, [](double y) { return y * (1 - y); }, 0, 1},
    {"silu", ops::silu_backward,
     [](double x) { return sigmoid_of(x) * (1 + x * (1 - sigmoid_of(x))); }, -8, 8, 20},
    {"softplus",
     [](const Tensor& g, const Tensor& x) { return ops::softplus_backward(g, x, 1, 20); },
     [](double x) { return x > 20 ? 1 : sigmoid_of(x); }, -30, 30, 20},
    {"tanh", ops::tanh_backward, [](double y) { return 1 - y * y; }, -1, 1},
};

TEST(PointwiseGradient, KernelsOnEveryDTypeAndLayout) {
  const Extents sizes[] = {{}, {0, 3}, {7}, {3, 5}, {2, 3, 4}, {33, 65}};
  unsigned seed = 1;
  for (const GradientOp& op : kGradientOps) {
    for (const DType dtype : kFloats) {
      for (const Extents& size : sizes) {
        for (const Memory memory : kAllMemory) {
          const Tensor g = random_tensor(size, dtype, kAllMemory[++seed % 4], seed, -1, 1);
          const Tensor x = random_tensor(size, dtype, memory, ++seed, op.low, op.high);
          SCOPED_TRACE(std::string(op.name) + " " + x.spec().to_string() + " " + name(memory));
          Doubles expected = values_of(x);
          const Doubles grads = values_of(g);
          for (std::size_t i = 0; i < expected.size(); ++i) {
            expected[i] = grads[i] * op.slope(expected[i]);
          }
          const double rounding = dtype == DType::float64 ? 1e-15 : 2e-7;
          ASSERT_NO_FATAL_FAILURE(expect_values(op.f(g, x), expected,
                                                tolerance(dtype) + op.condition * rounding,
                                                op.condition * rounding + smallest_step(dtype)));
        }
      }
    }
  }
}

TEST(PointwiseGradient, KernelsComputeWhatTheirDecompositionsSay) {
  for (const GradientOp& op : kGradientOps) {
    Tensor g = random_tensor({5, 7}, DType::float64, Memory::permuted, 1);
    const Tensor x = random_tensor({5, 7}, DType::float64, Memory::contiguous, 2, op.low, op.high);
    const Tensor by_kernel = op.f(g, x);
    const Tensor by_ops = op.f(g.requires_grad_(), x);  // recorded, and so decomposed
    SCOPED_TRACE(op.name);
    EXPECT_TRUE(by_ops.requires_grad());
    expect_values(by_kernel, by_ops.to_doubles(), 1e-12, 1e-13);
  }
}

TEST(PointwiseGradient, RefusesOperandsThatDoNotFit) {
  expect_error<DTypeError>(
      [] { ops::silu_backward(ones({2}), ones({2}, {DType::float64})); },
      "[silu_backward] operand 'grad' is float32 and operand 'input' is float64");
}

TEST(Comparisons, GiveBoolForEveryDTypeLayoutAndBroadcast) {
  struct Case {
    const char* name;
    Tensor (*tensors)(const Tensor&, const Tensor&);
    Tensor (*number)(const Tensor&, const Scalar&);
    bool (*reference)(double, double);
  };
  const Case cases[] = {{"eq", eq, eq, [](double a, double b) { return a == b; }},
                        {"ne", ne, ne, [](double a, double b) { return a != b; }},
                        {"lt", lt, lt, [](double a, double b) { return a < b; }},
                        {"le", le, le, [](double a, double b) { return a <= b; }},
                        {"gt", gt, gt, [](double a, double b) { return a > b; }},
                        {"ge", ge, ge, [](double a, double b) { return a >= b; }}};
  unsigned seed = 1;
  for (const Case& test : cases) {
    for (const DType dtype : kAllDTypes) {
      for (const Memory memory : kAllMemory) {
        SCOPED_TRACE(std::string(test.name) + " " + std::string(name(dtype)) + " " + name(memory));
        std::mt19937 generator(++seed);  // few values, so that many are equal
        const auto next = [&] { return static_cast<double>(generator() % 3); };
        const Tensor a = make_tensor({4, 3, 5}, dtype, memory, next);
        const Tensor b = make_tensor({3, 1}, dtype, Memory::narrowed, next);
        const Doubles x = values_of(a);
        const Doubles y = values_of(b);
        const Tensor by_tensor = test.tensors(a, b);
        const Tensor by_number = test.number(a, 1);
        ASSERT_EQ(by_tensor.dtype(), DType::boolean);
        ASSERT_EQ(sizes_of(by_tensor), (Extents{4, 3, 5}));
        const Doubles tensors = values_of(by_tensor);
        const Doubles numbers = values_of(by_number);
        for (std::size_t i = 0; i < x.size(); ++i) {
          ASSERT_EQ(tensors[i] != 0, test.reference(x[i], y[i / 5 % 3])) << i;
          ASSERT_EQ(numbers[i] != 0, test.reference(x[i], 1)) << i;
        }
      }
    }
  }
}

TEST(Comparisons, NanInfAndNumbersThatAreRounded) {
  const Tensor x = tensor({kNan, kInf, -0.0}, {3});
  EXPECT_EQ(eq(x, x).to_doubles(), (Doubles{0, 1, 1}));
  EXPECT_EQ(ne(x, x).to_doubles(), (Doubles{1, 0, 0}));
  EXPECT_EQ(le(x, kInf).to_doubles(), (Doubles{0, 1, 1}));
  EXPECT_EQ(eq(x, 0).to_doubles(), (Doubles{0, 0, 1}));
  for (const DType dtype : kFloats) {
    EXPECT_EQ(eq(full({1}, 0.1, {dtype}), 0.1).to_doubles(), (Doubles{1})) << name(dtype);
  }
  expect_error<DTypeError>([] { lt(zeros({1}), zeros({1}, {DType::int32})); },
                           "[lt] operand 'input' is float32 and operand 'other' is int32");
}

}  // namespace
}  // namespace tenon::test
