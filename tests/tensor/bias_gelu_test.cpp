// bias_gelu and its gradient against references in double: dtype x layout x form, 16-bit floats
// rounded once; and what they refuse.
#include <gtest/gtest.h>

#include <cmath>

#include "autograd/autograd.h"
#include "tensor/error.h"
#include "tensor/functional.h"
#include "tensor/rules/gradients.h"
#include "tests/tensor/layouts.h"

namespace tenon::test {
namespace bias_gelu_test {

constexpr double kInvRootTwoPi = 0.39894228040143267794;

struct Form {
  Approximate approximate;
  double (*value)(double);
  double (*slope)(double);
  double condition;  // how much the function magnifies rounding errors on its way
};

double exact(double x) { return 0.5 * x * std::erfc(-x / std::sqrt(2.0)); }
double exact_slope(double x) {
  return 0.5 * std::erfc(-x / std::sqrt(2.0)) + x * kInvRootTwoPi * std::exp(-0.5 * x * x);
}
constexpr double kRootTwoOverPi = 2 * kInvRootTwoPi;
double tanh_argument(double x) { return kRootTwoOverPi * (x + 0.044715 * x * x * x); }
double by_tanh(double x) { return 0.5 * x * (1 + std::tanh(tanh_argument(x))); }
double by_tanh_slope(double x) {
  const double t = std::tanh(tanh_argument(x));
  return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * kRootTwoOverPi * (1 + 3 * 0.044715 * x * x);
}

const Form kForms[] = {{Approximate::none, exact, exact_slope, 8},
                       {Approximate::tanh, by_tanh, by_tanh_slope, 24}};

/// One rounding to the dtype, and a few of what it is computed in.
void expect_rounded_once(const Tensor& got, const std::vector<double>& expected, double roundings) {
  const double compute = unit_roundoff(accumulation_dtype(got.dtype()));
  expect_values(got, expected, 1.001 * unit_roundoff(got.dtype()) + roundings * compute,
                roundings * compute + smallest_step(got.dtype()));
}

/// Whole vectors and not, one row, one column, nothing, several blocks of a row, several tasks.
const Extents kSizes[] = {{7}, {5, 1}, {3, 5}, {2, 3, 16}, {0, 4}, {4, 0}, {3, 1100}, {260, 131}};

TEST(BiasGelu, AgreesWithTheReferenceInEveryLayout) {
  for (const Form& form : kForms) {
    for (const DType dtype : kFloats) {
      for (const Extents& sizes : kSizes) {
        for (const Memory memory : kAllMemory) {
          SCOPED_TRACE(std::string(enum_name(form.approximate)) + " " + std::string(name(dtype)) +
                       " " + name(memory) + " N=" + std::to_string(sizes.back()));
          const Tensor x = random_tensor(sizes, dtype, memory, 1, -4, 4);
          const Tensor bias = random_tensor({sizes.back()}, dtype, memory, 2);
          const Tensor grad = random_tensor(sizes, dtype, memory, 3);
          const auto xs = values_of(x);
          const auto bs = values_of(bias);
          const auto gs = values_of(grad);
          std::vector<double> value, gradient;
          for (std::size_t i = 0; i < xs.size(); ++i) {
            const double sum = xs[i] + bs[i % bs.size()];
            value.push_back(form.value(sum));
            gradient.push_back(gs[i] * form.slope(sum));
          }
          expect_rounded_once(bias_gelu(x, bias, form.approximate), value, form.condition);
          expect_rounded_once(ops::bias_gelu_backward(grad, x, bias, form.approximate), gradient,
                              2 * form.condition);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST(BiasGelu, GradientsAreThoseOfTheComposition) {
  for (const Form& form : kForms) {
    for (const Extents& sizes : kSizes) {
      const Tensor x = random_tensor(sizes, DType::float64, Memory::contiguous, 1);
      const Tensor bias = random_tensor({sizes.back()}, DType::float64, Memory::contiguous, 2);
      const Tensor cotangent = random_tensor(sizes, DType::float64, Memory::contiguous, 3);
      const auto gradients = [&](bool fused) {
        const std::vector<Tensor> leaves = {x.clone().requires_grad_(),
                                            bias.clone().requires_grad_()};
        const Tensor y = fused ? bias_gelu(leaves[0], leaves[1], form.approximate)
                               : gelu(leaves[0] + leaves[1], form.approximate);
        return grad(std::vector{y}, leaves, std::vector{cotangent});
      };
      const auto got = gradients(true);
      const auto want = gradients(false);
      for (std::size_t i = 0; i < 2; ++i) expect_values(got[i], values_of(want[i]), 1e-12, 1e-12);
    }
  }
}

TEST(BiasGelu, PropagatesNanAndInf) {
  const double inf = HUGE_VAL;
  for (const DType dtype : kFloats) {
    const Tensor x = tensor({NAN, inf, 0, 1}, {1, 4}, of(dtype));
    const Tensor bias = tensor({0, 1, NAN, inf}, {4}, of(dtype));
    for (const Form& form : kForms) {
      expect_values(bias_gelu(x, bias, form.approximate), {NAN, inf, NAN, inf}, 0);
    }
  }
}

TEST(BiasGelu, RefusesOtherShapesAndDTypes) {
  const Tensor x = zeros({2, 3});
  expect_error<ShapeError>([&] { bias_gelu(x, zeros({2})); },
                           "[bias_gelu] input (2, 3) and bias (2,); needed the shape (3,)");
  expect_error<ShapeError>([&] { bias_gelu(x, x); },
                           "[bias_gelu] input (2, 3) and bias (2, 3); needed the shape (3,)");
  expect_error<ShapeError>([&] { bias_gelu(zeros({}), zeros({1})); },
                           "[bias_gelu] input (); needed (…, N)");
  expect_error<DTypeError>([&] { bias_gelu(x, zeros({3}, of(DType::float64))); }, "[bias_gelu]");
  expect_error<DTypeError>(
      [&] { bias_gelu(x.to(DType::int64), zeros({3}).to(DType::int64)); },
      "[bias_gelu] operand 'input' is int64; needed float32, float64, float16 or bfloat16");
}

}  // namespace bias_gelu_test
}  // namespace tenon::test
