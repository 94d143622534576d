// adam_step, sgd_step and global_norm against references in double, for every pair of dtypes, sizes
// around the kernels' blocks, and any number of threads.
#include "tensor/ops/optimizer_steps.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "autograd/autograd.h"
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
                             double scale, const AdamAttrs& a) {
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
        const AdamAttrs attrs{0.8, 0.95, 1e-6, 0.125, decoupled};
        const UpdatedParameter result = adam_step({{param, grad, full({1}, 3), {avg, avg_sq}}},
                                                  full({}, 0.0625), full({}, 0.5), attrs)
                                            .at(0);
        const AdamReference expected =
            reference_adam({param.to_doubles(), avg.to_doubles(), avg_sq.to_doubles()},
                           grad.to_doubles(), 3, 0.0625, 0.5, attrs);
        EXPECT_LE(worst(result.param, expected.param), 4 * sample.tolerance);
        EXPECT_LE(worst(result.state[0], expected.avg), 4 * sample.tolerance);
        EXPECT_LE(worst(result.state[1], expected.avg_sq), 4 * sample.tolerance);
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
        const SgdAttrs attrs{0.9, 0.25, 0.125, nesterov};
        const UpdatedParameter result =
            sgd_step({{param, grad, full({}, 2), {buffer}}}, full({}, 0.0625), Tensor(), attrs)
                .at(0);
        Values new_param = param.to_doubles();
        Values new_buffer = buffer.to_doubles();
        const Values g = grad.to_doubles();
        for (std::size_t i = 0; i < g.size(); ++i) {
          const double slope = g[i] + 0.125 * new_param[i];
          new_buffer[i] = 0.9 * new_buffer[i] + 0.75 * slope;
          new_param[i] -= 0.0625 * (nesterov ? slope + 0.9 * new_buffer[i] : new_buffer[i]);
        }
        EXPECT_LE(worst(result.param, new_param), 4 * sample.tolerance);
        EXPECT_LE(worst(result.state[0], new_buffer), 4 * sample.tolerance);
      }
    }
  }
}

TEST(SgdStep, TheFirstStepForgetsTheBuffer) {
  const Tensor garbage = full({3}, NAN);
  const UpdatedParameter result =
      sgd_step({{zeros({3}), full({3}, 2), full({}, 1), {garbage}}}, full({}, 0.5), Tensor(),
               {.momentum = 0.9, .dampening = 0.5})
          .at(0);
  EXPECT_EQ(worst(result.state[0], {2, 2, 2}), 0);
  EXPECT_EQ(worst(result.param, {-1, -1, -1}), 0);
}

TEST(OptimizerSteps, DoNotDependOnTheNumberOfThreads) {
  const int before = num_threads();
  Generator generator(6);
  const Tensor param = randn({100003}, {}, &generator);
  const Tensor grad = randn({100003}, {DType::bfloat16}, &generator);
  const Tensor state = uniform({100003}, 0, 1, {}, &generator);
  std::vector<Tensor> params, norms;
  for (const int threads : {1, 2}) {
    set_num_threads(threads);
    params.push_back(
        adam_step({{param, grad, full({}, 1), {state, state}}}, full({}, 0.1), Tensor(), {})
            .at(0)
            .param);
    norms.push_back(ops::global_norm({param, grad}).norm);
  }
  set_num_threads(before);
  EXPECT_EQ(test::max_difference(params[0], params[1]), 0);
  EXPECT_EQ(norms[0].item(), norms[1].item());
}

/// `count` parameters with their gradients, step counts and `states` tensors of state.
std::vector<ParameterUpdate> many_updates(int count, int states) {
  std::vector<ParameterUpdate> updates;
  Generator generator(7);
  for (int i = 0; i < count; ++i) {
    const std::int64_t n = i % 5 == 4 ? 0 : 1 + 37 * i;
    const bool narrow = i % 3 == 1;
    ParameterUpdate update{randn({n}, {}, &generator),
                           randn({n}, {narrow ? DType::bfloat16 : DType::float32}, &generator),
                           full({1}, 1 + i),
                           {}};
    for (int k = 0; k < states; ++k) {
      update.state.push_back(uniform({n}, 0.1, 1, {}, &generator));
    }
    updates.push_back(std::move(update));
  }
  return updates;
}

TEST(OptimizerSteps, OneCallForAllIsOneCallForEach) {
  const std::vector<ParameterUpdate> adam = many_updates(17, 2);
  AdamAttrs attrs{.weight_decay = 0.25, .decoupled = true, .no_decay = {0, 3, 16}};
  attrs.copies = RoundedCopy::bfloat16;
  const auto together = adam_step(adam, full({}, 0.1), full({}, 0.5), attrs);
  ASSERT_EQ(together.size(), adam.size());
  for (std::size_t i = 0; i < adam.size(); ++i) {
    const bool exempt = i == 0 || i == 3 || i == 16;
    const AdamAttrs own{.weight_decay = exempt ? 0 : 0.25, .decoupled = true};
    const auto alone = adam_step({adam[i]}, full({}, 0.1), full({}, 0.5), own).at(0);
    EXPECT_EQ(test::max_difference(together[i].param, alone.param), 0) << i;
    for (std::size_t k = 0; k < 2; ++k) {
      EXPECT_EQ(test::max_difference(together[i].state[k], alone.state[k]), 0) << i;
    }
    EXPECT_FALSE(alone.copy.defined());
    EXPECT_EQ(together[i].copy.dtype(), DType::bfloat16);
    EXPECT_EQ(test::max_difference(together[i].copy, alone.param.to(DType::bfloat16)), 0) << i;
  }
  const std::vector<ParameterUpdate> sgd = many_updates(17, 1);
  const auto moved = sgd_step(sgd, full({}, 0.1), Tensor(), {.momentum = 0.9, .no_decay = {2}});
  for (std::size_t i = 0; i < sgd.size(); ++i) {
    const auto alone = sgd_step({sgd[i]}, full({}, 0.1), Tensor(), {.momentum = 0.9}).at(0);
    EXPECT_EQ(test::max_difference(moved[i].param, alone.param), 0) << i;
    EXPECT_EQ(test::max_difference(moved[i].state[0], alone.state[0]), 0) << i;
  }
}

TEST(GlobalNorm, IsThatOfAllElements) {
  Generator generator(8);
  for (const bool wide : {false, true}) {
    std::vector<Tensor> tensors;
    double squares = 0;
    for (const std::int64_t n : {1, 0, 513, 70001}) {
      for (const DType dtype : {DType::float32, DType::bfloat16, DType::float16, DType::float64}) {
        if (dtype == DType::float64 && !wide) continue;
        tensors.push_back(randn({n}, {dtype}, &generator));
        for (const double x : tensors.back().to_doubles()) squares += x * x;
      }
    }
    const double norm = std::sqrt(squares);
    const double rounding = wide ? 1e-14 : 1e-7;
    for (const double max_norm : {norm / 4, norm * 4}) {
      const GlobalNorm result = ops::global_norm(tensors, {max_norm});
      EXPECT_EQ(result.norm.dtype(), wide ? DType::float64 : DType::float32);
      EXPECT_NEAR(result.norm.item(), norm, norm * rounding);
      EXPECT_NEAR(result.clip_coefficient.item(), std::min(1.0, max_norm / norm), 1e-6);
    }
    EXPECT_FALSE(ops::global_norm(tensors).clip_coefficient.defined());
  }
}

TEST(GlobalNorm, KeepsNanAndInfinity) {
  const GlobalNorm nan = ops::global_norm({tensor({1, NAN}, {2})}, {1});
  EXPECT_TRUE(std::isnan(nan.norm.item()));
  EXPECT_TRUE(std::isnan(nan.clip_coefficient.item()));
  const GlobalNorm infinite = ops::global_norm({tensor({1, HUGE_VAL}, {2})}, {1});
  EXPECT_EQ(infinite.norm.item(), HUGE_VAL);
  EXPECT_EQ(infinite.clip_coefficient.item(), 0);
  EXPECT_EQ(ops::global_norm({zeros({0})}, {1}).clip_coefficient.item(), 1);
}

TEST(GlobalNorm, HasTheGradientOfItsDecomposition) {
  const Tensor x = tensor({3, 0, 4}, {3}).requires_grad_();
  const Tensor y = tensor({12}, {1}, {DType::bfloat16}).requires_grad_();
  backward(ops::global_norm({x, y}).norm);
  EXPECT_LE(worst(x.grad(), {3.0 / 13, 0, 4.0 / 13}), 1e-6);
  EXPECT_LE(worst(y.grad(), {12.0 / 13}), 4e-3);
}

TEST(OptimizerSteps, RefuseOperandsThatDoNotFit) {
  const Tensor w = zeros({2});
  const Tensor one = ones({});
  EXPECT_ERROR(ShapeError, "[adam_step] 'state' of parameter 0 has shape (3,); needed (2,)",
               adam_step({{w, w, one, {zeros({3}), w}}}, one, Tensor(), {}));
  EXPECT_ERROR(DTypeError,
               "[adam_step] a gradient of float64 for parameter 1 of float32; needed the same "
               "dtype, or a 16-bit one for float32",
               adam_step({{w, w, one, {w, w}}, {w, zeros({2}, {DType::float64}), one, {w, w}}}, one,
                         Tensor(), {}));
  EXPECT_ERROR(
      DTypeError,
      "[sgd_step] the state of parameter 0 is float64 and the parameter float32; needed "
      "one dtype",
      sgd_step({{w, w, one, {zeros({2}, {DType::float64})}}}, one, Tensor(), {.momentum = 0.5}));
  EXPECT_ERROR(ShapeError, "[sgd_step] 'lr' has shape (2,); needed one element",
               sgd_step({{w, w, one, {}}}, w, Tensor(), {}));
  EXPECT_ERROR(ValueError, "[sgd_step] parameter 0 comes with 0 tensors of state; needed 1",
               sgd_step({{w, w, one, {}}}, one, Tensor(), {.momentum = 0.5}));
  EXPECT_ERROR(ValueError, "[adam_step] there are no parameters", adam_step({}, one, Tensor(), {}));
  EXPECT_ERROR(ValueError, "[global_norm] no tensors; needed at least one", ops::global_norm({}));
  EXPECT_ERROR(ValueError, "[global_norm] max_norm is -1; needed at least 0",
               ops::global_norm({w}, {-1}));
  EXPECT_ERROR(ValueError, "copies 'int8'; needed none, float16 or bfloat16",
               parse_enum(RoundedCopy::none, "int8"));
}

}  // namespace
}  // namespace tenon
