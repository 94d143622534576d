// Elementwise ops: op × dtype × layout against double-precision references written here.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tensor/error.h"
#include "tensor/functional.h"
#include "tests/tensor/layouts.h"

namespace tenon::test {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();

/// Empty, 0-dim, single, odd, several blocks of a row, several tasks.
const Extents kSizes[] = {Extents{},    {0},      {1},       {7},          {4, 0, 3}, {3, 5},
                          {2, 3, 4, 5}, {33, 65}, {3, 1100}, {5, 1, 8192}, {70001}};

struct UnaryCase {
  const char* name;
  Tensor (*f)(const Tensor&);
  double (*reference)(double);
  double low = -4;
  double high = 4;
  double condition = 1;  // how much the function magnifies rounding errors on its way
};

double sigmoid_of(double x) { return 1 / (1 + std::exp(-x)); }
double gelu_of(double x) { return x * 0.5 * std::erfc(-x / std::sqrt(2.0)); }
double gelu_tanh_of(double x) {
  const long double u = std::sqrt(2 / 3.14159265358979323846L) * (x + 0.044715L * x * x * x);
  return static_cast<double>(0.5L * x * (1 + std::tanh(u)));
}

const UnaryCase kUnary[] = {
    {"neg", neg, [](double x) { return -x; }},
    {"abs", abs, [](double x) { return std::fabs(x); }},
    {"exp", exp, [](double x) { return std::exp(x); }, -9, 9},
    {"log", log, [](double x) { return std::log(x); }, 0.01, 20},
    {"sqrt", sqrt, [](double x) { return std::sqrt(x); }, 0, 20},
    {"rsqrt", rsqrt, [](double x) { return 1 / std::sqrt(x); }, 0.01, 20},
    {"reciprocal", reciprocal, [](double x) { return 1 / x; }, 0.1, 9},
    {"square", square, [](double x) { return x * x; }},
    {"sin", sin, [](double x) { return std::sin(x); }, -20, 20},
    {"cos", cos, [](double x) { return std::cos(x); }, -20, 20},
    {"tanh", tanh, [](double x) { return std::tanh(x); }},
    {"sigmoid", sigmoid, sigmoid_of, -20, 20},
    {"erf", erf, [](double x) { return std::erf(x); }},
    {"relu", relu, [](double x) { return x < 0 ? 0 : x; }},
    {"silu", silu, [](double x) { return x * sigmoid_of(x); }},
    {"gelu", [](const Tensor& x) { return gelu(x); }, gelu_of, -4, 4, 3},
    {"gelu_tanh", [](const Tensor& x) { return gelu(x, Approximate::tanh); }, gelu_tanh_of, -4, 4,
     10},
    {"softplus", [](const Tensor& x) { return softplus(x); },
     [](double x) { return x > 20 ? x : std::log1p(std::exp(x)); }, -30, 30, 2},
    {"softplus 2", [](const Tensor& x) { return softplus(x, -2, 3); },
     [](double x) { return x < -1.5 ? x : std::log1p(std::exp(-2 * x)) / -2; }, -4, 4, 2},
    {"pow 2", [](const Tensor& x) { return pow(x, 2); }, [](double x) { return x * x; }},
    {"pow 3", [](const Tensor& x) { return pow(x, 3); }, [](double x) { return x * x * x; }},
    {"pow -1.5", [](const Tensor& x) { return pow(x, -1.5); },
     [](double x) { return std::pow(x, -1.5); }, 0.1, 4},
};

std::vector<double> mapped(const std::vector<double>& values, double (*f)(double)) {
  std::vector<double> result;
  for (double value : values) result.push_back(f(value));
  return result;
}

TEST(Elementwise, UnaryOpsOnEveryDTypeAndLayout) {
  unsigned seed = 1;
  for (const UnaryCase& op : kUnary) {
    for (const DType dtype : kFloats) {
      for (const Extents& sizes : kSizes) {
        for (const Memory memory : kAllMemory) {
          if (sizes.product() > 5000 && memory == Memory::narrowed) continue;
          const Tensor x = random_tensor(sizes, dtype, memory, ++seed, op.low, op.high);
          SCOPED_TRACE(std::string(op.name) + " " + x.spec().to_string() + " " + name(memory) +
                       " seed " + std::to_string(seed));
          const Tensor y = op.f(x);
          EXPECT_EQ(y.dtype(), dtype);
          ASSERT_EQ(sizes_of(y), sizes);
          ASSERT_NO_FATAL_FAILURE(expect_values(y, mapped(values_of(x), op.reference),
                                                op.condition * tolerance(dtype),
                                                smallest_step(dtype)));
        }
      }
    }
  }
}

struct BinaryCase {
  const char* name;
  Tensor (*f)(const Tensor&, const Tensor&);
  double (*reference)(double, double);
};

const BinaryCase kBinary[] = {
    {"add", add, [](double x, double y) { return x + y; }},
    {"sub", sub, [](double x, double y) { return x - y; }},
    {"mul", mul, [](double x, double y) { return x * y; }},
    {"div", div, [](double x, double y) { return x / y; }},
    {"maximum", maximum, [](double x, double y) { return std::max(x, y); }},
    {"minimum", minimum, [](double x, double y) { return std::min(x, y); }},
};

/// Element `i` of the output's index space in an operand broadcast to `sizes`.
double broadcast_at(const std::vector<double>& values, const Extents& own, const Extents& sizes,
                    std::int64_t i) {
  std::int64_t at = 0;
  std::int64_t stride = 1;
  for (int axis = 1; axis <= sizes.size(); ++axis) {
    const std::int64_t index = i % sizes[sizes.size() - axis];
    i /= sizes[sizes.size() - axis];
    if (axis > own.size()) continue;
    const std::int64_t size = own[own.size() - axis];
    at += (size == 1 ? 0 : index) * stride;
    stride *= size;
  }
  return values[static_cast<std::size_t>(at)];
}

struct BroadcastSizes {
  Extents a, b, result;
};
const BroadcastSizes kBroadcasts[] = {
    {{}, {}, {}},
    {{3}, {}, {3}},
    {{0}, {1}, {0}},
    {{2, 3}, {3}, {2, 3}},
    {{2, 1, 4}, {3, 1}, {2, 3, 4}},
    {{5, 1}, {1, 7}, {5, 7}},
    {{4, 1, 1000}, {1, 3, 1}, {4, 3, 1000}},
    {{2, 3, 4, 5}, {2, 3, 4, 5}, {2, 3, 4, 5}},
    {{3, 20000}, {20000}, {3, 20000}},
};

TEST(Elementwise, BinaryOpsBroadcastOnEveryDTypeAndLayout) {
  unsigned seed = 100;
  for (const BinaryCase& op : kBinary) {
    for (const DType dtype : kFloats) {
      for (const BroadcastSizes& shapes : kBroadcasts) {
        for (const Memory memory : kAllMemory) {
          ++seed;
          const Tensor a = random_tensor(shapes.a, dtype, memory, seed);
          const Tensor b =
              random_tensor(shapes.b, dtype, kAllMemory[seed % 3], seed + 1000, 0.5, 3);
          SCOPED_TRACE(std::string(op.name) + " " + a.spec().to_string() + " " +
                       b.spec().to_string() + " " + name(memory) + " seed " + std::to_string(seed));
          const Tensor y = op.f(a, b);
          ASSERT_EQ(sizes_of(y), shapes.result);
          std::vector<double> expected;
          const auto va = values_of(a);
          const auto vb = values_of(b);
          for (std::int64_t i = 0; i < shapes.result.product(); ++i) {
            expected.push_back(op.reference(broadcast_at(va, shapes.a, shapes.result, i),
                                            broadcast_at(vb, shapes.b, shapes.result, i)));
          }
          ASSERT_NO_FATAL_FAILURE(expect_values(y, expected, tolerance(dtype), 1e-7));
        }
      }
    }
  }
}

TEST(Elementwise, NumbersAdaptToTheTensor) {
  for (const DType dtype : kFloats) {
    const Tensor x = random_tensor({3, 700}, dtype, Memory::permuted, 7);
    SCOPED_TRACE(x.spec().to_string());
    const auto values = values_of(x);
    const auto expect = [&](const Tensor& y, auto f) {
      std::vector<double> expected;
      for (double value : values) expected.push_back(f(value));
      EXPECT_EQ(y.dtype(), dtype);
      expect_values(y, expected, tolerance(dtype), 1e-6);
    };
    expect(x + 0.3, [](double v) { return v + 0.3; });
    expect(x - 0.3, [](double v) { return v - 0.3; });
    expect(0.3 * x, [](double v) { return v * 0.3; });
    expect(x / 0.3, [](double v) { return v / 0.3; });
  }
}

TEST(Elementwise, NegationChangesTheSignOfZero) {
  for (const DType dtype : {DType::float32, DType::float64, DType::float16, DType::bfloat16}) {
    const std::vector<double> values = neg(tensor({0.0, -0.0}, {2}, of(dtype))).to_doubles();
    EXPECT_TRUE(std::signbit(values[0])) << name(dtype);
    EXPECT_FALSE(std::signbit(values[1])) << name(dtype);
  }
}

TEST(Elementwise, IntegersWrapAround) {
  const Tensor x = tensor({250, 3, 0, 128}, {4}, of(DType::uint8));
  const Tensor y = tensor({10, 5, 1, 2}, {4}, of(DType::uint8));
  expect_values(add(x, y), {4, 8, 1, 130}, 0);
  expect_values(sub(x, y), {240, 254, 255, 126}, 0);
  expect_values(mul(x, y), {196, 15, 0, 0}, 0);
  expect_values(neg(x), {6, 253, 0, 128}, 0);
  expect_values(square(x), {36, 9, 0, 0}, 0);
  const double lowest = -2147483648.0;
  const Tensor z = tensor({lowest, -5, 2147483647}, {3}, of(DType::int32));
  expect_values(neg(z), {lowest, 5, -2147483647}, 0);
  expect_values(abs(z), {lowest, 5, 2147483647}, 0);
  expect_values(z + 1, {-2147483647, -4, lowest}, 0);
  const std::vector<std::int64_t> large{std::numeric_limits<std::int64_t>::max(), 1};
  const auto sums = add(from_vector(large, {2}), 1).to_vector<std::int64_t>();
  EXPECT_EQ(sums[0], std::numeric_limits<std::int64_t>::min());
}

TEST(Elementwise, IntegerOpsOnEveryLayout) {
  unsigned seed = 300;
  for (const DType dtype : kIntegers) {
    for (const Memory memory : kAllMemory) {
      const Tensor a = random_tensor({6, 41}, dtype, memory, ++seed, 0, 100);
      const Tensor b = random_tensor({6, 41}, dtype, Memory::permuted, ++seed, 0, 100);
      SCOPED_TRACE(a.spec().to_string() + " " + name(memory) + " seed " + std::to_string(seed));
      const auto va = values_of(a);
      const auto vb = values_of(b);
      std::vector<double> sum, largest, smallest;
      for (std::size_t i = 0; i < va.size(); ++i) {
        sum.push_back(va[i] + vb[i]);
        largest.push_back(std::max(va[i], vb[i]));
        smallest.push_back(std::min(va[i], vb[i]));
      }
      expect_values(add(a, b), sum, 0);
      expect_values(maximum(a, b), largest, 0);
      expect_values(minimum(a, b), smallest, 0);
      expect_values(relu(a), va, 0);
    }
  }
}

TEST(Elementwise, BoolIsLogical) {
  const Tensor a = tensor({0, 0, 1, 1}, {4}, of(DType::boolean));
  const Tensor b = tensor({0, 1, 0, 1}, {4}, of(DType::boolean));
  expect_values(add(a, b), {0, 1, 1, 1}, 0);
  expect_values(mul(a, b), {0, 0, 0, 1}, 0);
  expect_values(maximum(a, b), {0, 1, 1, 1}, 0);
  EXPECT_EQ(square(a).dtype(), DType::int64);
  expect_values(square(a), {0, 0, 1, 1}, 0);
}

TEST(Elementwise, WhereAndMaskedFillOnEveryDTypeAndLayout) {
  unsigned seed = 500;
  for (const DType dtype : kStoredDTypes) {
    for (const Memory memory : kAllMemory) {
      const Tensor condition = random_tensor({5, 1, 70}, DType::boolean, memory, ++seed);
      const Tensor x = random_tensor({3, 70}, dtype, memory, ++seed, 0, 9);
      const Tensor y = random_tensor({1}, dtype, Memory::contiguous, ++seed, 0, 9);
      SCOPED_TRACE(x.spec().to_string() + " " + name(memory) + " seed " + std::to_string(seed));
      const auto vc = values_of(condition);
      const auto vx = values_of(x);
      const auto vy = values_of(y);
      std::vector<double> chosen, filled;
      for (std::int64_t i = 0; i < 5 * 3 * 70; ++i) {
        const Extents sizes{5, 3, 70};
        const bool c = broadcast_at(vc, {5, 1, 70}, sizes, i) != 0;
        const double v = broadcast_at(vx, {3, 70}, sizes, i);
        chosen.push_back(c ? v : vy[0]);
        filled.push_back(c ? 1 : v);
      }
      ASSERT_NO_FATAL_FAILURE(expect_values(where(condition, x, y), chosen, 0));
      ASSERT_NO_FATAL_FAILURE(expect_values(masked_fill(x, condition, 1), filled, 0));
    }
  }
}

TEST(Elementwise, NanAndInfPropagate) {
  for (const DType dtype : kFloats) {
    SCOPED_TRACE(std::string(tenon::name(dtype)));
    const Tensor x = tensor({kNan, kInf, -kInf, 0, 1}, {5}, of(dtype));
    const Tensor one = tensor({1, 1, 1, kNan, kNan}, {5}, of(dtype));
    expect_values(maximum(x, one), {kNan, kInf, 1, kNan, kNan}, 0);
    expect_values(minimum(x, one), {kNan, 1, -kInf, kNan, kNan}, 0);
    expect_values(relu(x), {kNan, kInf, 0, 0, 1}, 0);
    expect_values(exp(x), {kNan, kInf, 0, 1, std::exp(1.0)}, tolerance(dtype));
    expect_values(log(x), {kNan, kInf, kNan, -kInf, 0}, 0);
    expect_values(rsqrt(x), {kNan, 0, kNan, kInf, 1}, 0);
    expect_values(tanh(x), {kNan, 1, -1, 0, std::tanh(1.0)}, tolerance(dtype));
    expect_values(erf(x), {kNan, 1, -1, 0, std::erf(1.0)}, tolerance(dtype));
    expect_values(sigmoid(x), {kNan, 1, 0, 0.5, sigmoid_of(1)}, tolerance(dtype));
    expect_values(gelu(tensor({kNan, kInf, 0}, {3}, of(dtype))), {kNan, kInf, 0}, 0);
    expect_values(square(x), {kNan, kInf, kInf, 0, 1}, 0);
    expect_values(masked_fill(x, tensor({0, 0, 0, 1, 0}, {5}, of(DType::boolean)), -kInf),
                  {kNan, kInf, -kInf, -kInf, 1}, 0);
  }
}

TEST(Elementwise, ExpReachesSubnormalsAndOverflow) {
  const Tensor x = tensor({-104, -103, -90, 88.7, 88.8}, {5});
  const auto y = exp(x).to_vector<float>();
  EXPECT_EQ(y[0], 0.0F);
  EXPECT_EQ(y[1], std::exp(-103.0F));
  EXPECT_NEAR(y[2], std::exp(-90.0), 3e-45);
  EXPECT_NEAR(y[3] / std::exp(double(88.7F)), 1, 1e-6);
  EXPECT_EQ(y[4], std::numeric_limits<float>::infinity());
}

TEST(Elementwise, GeluKeepsItsDigitsInTheTail) {
  const Tensor x = tensor({-9, -6, -4, -2}, {4});
  expect_values(gelu(x), {gelu_of(-9), gelu_of(-6), gelu_of(-4), gelu_of(-2)}, 1e-5);
}

TEST(Elementwise, ErrorsSayWhatWasGivenAndNeeded) {
  const Tensor a = zeros({2, 3});
  expect_error<ShapeError>(
      [&] { add(a, zeros({4})); },
      "[add] shapes (2, 3) and (4,) do not broadcast: axis -1 has sizes 3 and 4");
  expect_error<DTypeError>(
      [&] {
        mul(a, zeros({2, 3}, of(DType::float64)));
      },
      "[mul] operand 'input' is float32 and operand 'other' is float64");
  expect_error<DTypeError>([&] { exp(zeros({2}, of(DType::int64))); },
                           "[exp] operand 'input' is int64; needed float32");
  expect_error<DTypeError>([&] { div(zeros({2}, of(DType::int32)), 2); },
                           "[div] operand 'input' is int32");
  expect_error<DTypeError>([&] { neg(zeros({2}, of(DType::boolean))); },
                           "[neg] operand 'input' is bool");
  expect_error<ValueError>([&] { zeros({2}, of(DType::int64)) + 0.5; },
                           "[add] the number 0.5 does not fit the dtype int64");
  expect_error<ValueError>([&] { zeros({2}, of(DType::uint8)) * 300; },
                           "[mul] the number 300 does not fit the dtype uint8");
  expect_error<DTypeError>([&] { where(a, a, a); },
                           "[where] operand 'condition' is float32; needed bool");
  expect_error<DTypeError>([&] { masked_fill(a, a, 0); },
                           "[masked_fill] operand 'mask' is float32");
  expect_error<ValueError>(
      [&] {
        add(a, Tensor());
        add(Tensor(), a);
      },
      "[add] operand 'input' is undefined");
  expect_error<ValueError>([&] { maximum(a, Tensor()); }, "[maximum] operand 'other' is undefined");
}

}  // namespace
}  // namespace tenon::test
