// adam_step and sgd_step against a reference in double, for every pair of dtypes, sizes around the
// kernels' blocks, and any number of threads.
#include "tensor/ops/optimizer_steps.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "tensor/error.h"
#include "tensor/parallel.h"
#include "tensor/random.h"
#include "tests/support/compare.h"
#include "tests/support/expect_error.h"

namespace tenon {
namespace {

using Values = std::vector<double>;

struct AdamReference {
  Values param, avg, avg_sq;
};

AdamReference reference_adam(AdamReference s, const Values& grad, double step, double lr,
                             double scale, const AdamStepAttrs& a) {
  for (std::size_t i = 0; i < grad.size(); ++i) {
    double g = grad[i] * scale;
    if (a.decoupled) {
      s.param[i] -= lr * a.weight_decay * s.param[i];
    } else {
      g += a.weight_decay * s.param[i];
    }
    s.avg[i] = a.beta1 * s.avg[i] + (1 - a.beta1) * g;
    s.avg_sq[i] = a.beta2 * s.avg_sq[i] + (1 - a.beta2) * g * g;
    const double mean = s.avg[i] / (1 - std::pow(a.beta1, step));
    const double variance = s.avg_sq[i] / (1 - std::pow(a.beta2, step));
    s.param[i] -= lr * mean / (std::sqrt(variance) + a.eps);
  }
  return s;
}

struct Sample {
  DType param;
  DType grad;
  double tolerance;
};
const Sample kSamples[] = {
    {DType::float64, DType::float64, 1e-14}, {DType::float32, DType::float32, 1e-6},
    {DType::float32, DType::float16, 1e-6},  {DType::float32, DType::bfloat16, 1e-6},
    {DType::float16, DType::float16, 2e-3},  {DType::bfloat16, DType::bfloat16, 2e-2}};
const std::int64_t kSizes[] = {0, 1, 7, 512, 513, 40001};

double worst(const Tensor& actual, const Values& expected) {
  const Values values = actual.to_doubles();
  if (values.size() != expected.size()) return HUGE_VAL;
  double result = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const double apart = std::abs(values[i] - expected[i]);
    result = std::max(result, std::isnan(apart) ? HUGE_VAL : apart);
  }
  return result;
}

TEST(AdamStep, MatchesTheFormula) {
  for (const Sample& sample : kSamples) {
    for (const std::int64_t n : kSizes) {
      for (const bool decoupled : {false, true}) {
        SCOPED_TRACE(std::string(name(sample.param)) + " " + std::to_string(n));
        Generator generator(3);
        const TensorOptions options{sample.param};
        const Tensor param = randn({n}, options, &generator);
        const Tensor grad = randn({n}, {sample.grad}, &generator);
        const Tensor avg = randn({n}, options, &generator);
        const Tensor avg_sq = uniform({n}, 0.1, 1, options, &generator);
        const AdamStepAttrs attrs{0.8, 0.95, 1e-6, 0.125, decoupled};
        const AdamStepResult result = adam_step(param, grad, avg, avg_sq, full({1}, 3),
                                                full({}, 0.0625), full({}, 0.5), attrs);
        const AdamReference expected =
            reference_adam({param.to_doubles(), avg.to_doubles(), avg_sq.to_doubles()},
                           grad.to_doubles(), 3, 0.0625, 0.5, attrs);
        EXPECT_LE(worst(result.param, expected.param), 4 * sample.tolerance);
        EXPECT_LE(worst(result.exp_avg, expected.avg), 4 * sample.tolerance);
        EXPECT_LE(worst(result.exp_avg_sq, expected.avg_sq), 4 * sample.tolerance);
      }
    }
  }
}

TEST(SgdStep, MatchesTheFormula) {
  for (const Sample& sample : kSamples) {
    for (const std::int64_t n : kSizes) {
      for (const bool nesterov : {false, true}) {
        SCOPED_TRACE(std::string(name(sample.param)) + " " + std::to_string(n));
        Generator generator(4);
        const Tensor param = randn({n}, {sample.param}, &generator);
        const Tensor grad = randn({n}, {sample.grad}, &generator);
        const Tensor buffer = randn({n}, {sample.param}, &generator);
        const SgdStepAttrs attrs{0.9, 0.25, 0.125, nesterov};
        const SgdStepResult result =
            sgd_step(param, grad, buffer, full({}, 2), full({}, 0.0625), Tensor(), attrs);
        Values new_param = param.to_doubles();
        Values new_buffer = buffer.to_doubles();
        const Values g = grad.to_doubles();
        for (std::size_t i = 0; i < g.size(); ++i) {
          const double slope = g[i] + 0.125 * new_param[i];
          new_buffer[i] = 0.9 * new_buffer[i] + 0.75 * slope;
          new_param[i] -= 0.0625 * (nesterov ? slope + 0.9 * new_buffer[i] : new_buffer[i]);
        }
        EXPECT_LE(worst(result.param, new_param), 4 * sample.tolerance);
        EXPECT_LE(worst(result.momentum_buffer, new_buffer), 4 * sample.tolerance);
      }
    }
  }
}

TEST(SgdStep, TheFirstStepForgetsTheBuffer) {
  const Tensor garbage = full({3}, NAN);
  const SgdStepResult result =
      sgd_step(zeros({3}), full({3}, 2), garbage, full({}, 1), full({}, 0.5), Tensor(),
               {.momentum = 0.9, .dampening = 0.5});
  EXPECT_EQ(worst(result.momentum_buffer, {2, 2, 2}), 0);
  EXPECT_EQ(worst(result.param, {-1, -1, -1}), 0);
}

TEST(OptimizerSteps, DoNotDependOnTheNumberOfThreads) {
  const int before = num_threads();
  Generator generator(6);
  const Tensor param = randn({100003}, {}, &generator);
  const Tensor grad = randn({100003}, {DType::bfloat16}, &generator);
  const Tensor state = uniform({100003}, 0, 1, {}, &generator);
  std::vector<AdamStepResult> results;
  for (const int threads : {1, 2}) {
    set_num_threads(threads);
    results.push_back(
        adam_step(param, grad, state, state, full({}, 1), full({}, 0.1), Tensor(), {}));
  }
  set_num_threads(before);
  EXPECT_EQ(test::max_difference(results[0].param, results[1].param), 0);
}

TEST(OptimizerSteps, RefuseOperandsThatDoNotFit) {
  const Tensor w = zeros({2});
  const Tensor one = ones({});
  EXPECT_ERROR(ShapeError,
               "[adam_step] operands 'exp_avg' (3,) and 'param' (2,); needed equal shapes",
               adam_step(w, w, zeros({3}), w, one, one, Tensor(), {}));
  EXPECT_ERROR(DTypeError,
               "[adam_step] a gradient of float64 for a parameter of float32; needed the same "
               "dtype, or a 16-bit one for float32",
               adam_step(w, zeros({2}, {DType::float64}), w, w, one, one, Tensor(), {}));
  EXPECT_ERROR(ShapeError, "[sgd_step] operand 'lr' has shape (2,); needed one element",
               sgd_step(w, w, Tensor(), Tensor(), w, Tensor(), {}));
  EXPECT_ERROR(ValueError, "[sgd_step] momentum 0.5 needs momentum_buffer and step",
               sgd_step(w, w, Tensor(), Tensor(), one, Tensor(), {.momentum = 0.5}));
}

}  // namespace
}  // namespace tenon
