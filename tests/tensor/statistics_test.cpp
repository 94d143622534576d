// var, argmax, and the gradients of var, amax and amin, against references in double.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>

#include "autograd/autograd.h"
#include "tensor/error.h"
#include "tensor/functional.h"
#include "tests/tensor/layouts.h"
#include "tests/tensor/threads.h"

namespace tenon::test {
namespace statistics_test {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();

using Axes = std::vector<std::int64_t>;

struct Sample {
  Extents sizes;
  Axes dim;  // non-negative
};
const Sample kSamples[] = {{{}, {}},          {{5}, {}},         {{5}, {0}},
                           {{1}, {0}},        {{3, 4}, {}},      {{3, 4}, {0}},
                           {{3, 4}, {1}},     {{2, 3, 4}, {1}},  {{2, 3, 4}, {0, 2}},
                           {{7, 130}, {0}},   {{7, 130}, {1}},   {{3, 70, 5, 2}, {1, 3}},
                           {{2, 40000}, {1}}, {{40000, 3}, {0}}, {{300, 2, 250}, {0, 2}}};

/// For each element of x, in row-major order, the number of the output that it belongs to.
std::vector<std::size_t> groups_of(const Extents& sizes, const Axes& dim) {
  std::vector<std::size_t> groups;
  for (std::int64_t i = 0; i < sizes.product(); ++i) {
    std::int64_t rest = i;
    std::int64_t group = 0;
    std::int64_t stride = 1;
    for (int axis = sizes.size() - 1; axis >= 0; --axis) {
      const bool kept = !dim.empty() && std::find(dim.begin(), dim.end(), axis) == dim.end();
      if (kept) {
        group += rest % sizes[axis] * stride;
        stride *= sizes[axis];
      }
      rest /= sizes[axis];
    }
    groups.push_back(static_cast<std::size_t>(group));
  }
  return groups;
}

/// Count, mean and Σ(x - mean)² of each output's elements.
struct Statistics {
  Statistics(const std::vector<double>& values, const std::vector<std::size_t>& groups,
             std::size_t outputs)
      : mean(outputs), squares(outputs) {
    std::vector<long double> sums(outputs);
    for (std::size_t i = 0; i < values.size(); ++i) sums[groups[i]] += values[i];
    count = static_cast<double>(values.size()) / static_cast<double>(outputs);
    for (std::size_t i = 0; i < outputs; ++i) mean[i] = static_cast<double>(sums[i] / count);
    std::fill(sums.begin(), sums.end(), 0);
    for (std::size_t i = 0; i < values.size(); ++i) {
      const double deviation = values[i] - mean[groups[i]];
      sums[groups[i]] += deviation * deviation;
    }
    for (std::size_t i = 0; i < outputs; ++i) squares[i] = static_cast<double>(sums[i]);
  }
  double count = 0;
  std::vector<double> mean, squares;
};

TEST(Statistics, VarAndItsGradientOnEveryDTypeAndLayout) {
  unsigned seed = 1;
  for (const Sample& sample : kSamples) {
    for (const DType dtype : kFloats) {
      for (const Memory memory : kAllMemory) {
        for (const double correction : {0.0, 1.0, 0.5}) {
          Tensor x = random_tensor(sample.sizes, dtype, memory, ++seed, 1, 3);
          const bool keepdim = seed % 2 == 0;
          SCOPED_TRACE(x.spec().to_string() + " " + name(memory) + " correction " +
                       std::to_string(correction) + " axes " + std::to_string(sample.dim.size()));
          x.requires_grad_();
          const Tensor y = var(x, sample.dim, correction, keepdim);
          const auto groups = groups_of(sample.sizes, sample.dim);
          const auto outputs = static_cast<std::size_t>(y.layout().numel());
          const std::vector<double> values = values_of(x);
          const Statistics statistics(values, groups, outputs);
          const double divisor = std::max(0.0, statistics.count - correction);
          std::vector<double> expected;
          for (double squares : statistics.squares) expected.push_back(squares / divisor);
          if (memory == Memory::expanded) {
            ASSERT_NO_FATAL_FAILURE(expect_values(y, expected, tolerance(dtype), 1e-15));
          } else {
            ASSERT_NO_FATAL_FAILURE(expect_values(y, expected, tolerance(dtype)));
          }
          if (divisor == 0) continue;
          const Tensor g = random_tensor(sizes_of(y), dtype, Memory::contiguous, seed);
          backward(y, g);
          const std::vector<double> cotangent = values_of(g);
          std::vector<double> gradient;
          for (std::size_t i = 0; i < values.size(); ++i) {
            gradient.push_back(2 * cotangent[groups[i]] * (values[i] - statistics.mean[groups[i]]) /
                               divisor);
          }
          const double error = 64 * unit_roundoff(accumulation_dtype(dtype)) / divisor;
          ASSERT_EQ(sizes_of(x.grad()), sample.sizes);
          ASSERT_NO_FATAL_FAILURE(
              expect_values(x.grad(), gradient, tolerance(dtype), error + smallest_step(dtype)));
        }
      }
    }
  }
}

TEST(Statistics, EqualExtremaShareTheGradient) {
  unsigned seed = 1;
  for (const Sample& sample : kSamples) {
    for (const DType dtype : kFloats) {
      for (const Memory memory : kAllMemory) {
        for (const bool largest : {true, false}) {
          // Few values, so that many are equal.
          Tensor x = random_tensor(sample.sizes, dtype, memory, ++seed, -3, 3);
          for_each_position(x.layout(), [&](std::int64_t at) {
            dispatch_float(dtype, [&]<class T>() {
              T& value = static_cast<T*>(x.storage()->data())[at];
              value = T(std::trunc(static_cast<compute_type<T>>(value)));
            });
          });
          const bool keepdim = seed % 2 == 0;
          SCOPED_TRACE(x.spec().to_string() + " " + name(memory) + (largest ? " amax" : " amin"));
          x.requires_grad_();
          const Tensor y = largest ? amax(x, sample.dim, keepdim) : amin(x, sample.dim, keepdim);
          const Tensor g = random_tensor(sizes_of(y), dtype, Memory::contiguous, seed);
          backward(y, g);
          const auto groups = groups_of(sample.sizes, sample.dim);
          const std::vector<double> values = values_of(x);
          const std::vector<double> best = values_of(y);
          const std::vector<double> cotangent = values_of(g);
          std::vector<double> count(best.size());
          for (std::size_t i = 0; i < values.size(); ++i) {
            count[groups[i]] += values[i] == best[groups[i]] ? 1 : 0;
          }
          std::vector<double> expected;
          for (std::size_t i = 0; i < values.size(); ++i) {
            const bool shares = values[i] == best[groups[i]];
            expected.push_back(shares ? cotangent[groups[i]] / count[groups[i]] : 0);
          }
          ASSERT_EQ(sizes_of(x.grad()), sample.sizes);
          ASSERT_NO_FATAL_FAILURE(
              expect_values(x.grad(), expected, tolerance(dtype), smallest_step(dtype)));
        }
      }
    }
  }
}

TEST(Statistics, VarKeepsItsDigitsFarFromZero) {
  // Values around 10000: Σx² - n·mean² would have no correct digit left in float32.
  const Tensor x = add(random_tensor({4, 5000}, DType::float64, Memory::contiguous, 2), 1e4);
  const Tensor narrow = x.to(DType::float32);
  const Tensor exact = var(narrow.to(DType::float64), {1});
  expect_values(var(narrow, {1}), values_of(exact), 1e-6);
  expect_values(var(full({1000}, 12345.678)), {0}, 0);
}

TEST(Statistics, VarOfTooFewElements) {
  expect_values(var(full({1}, 3)), {kNan}, 0);
  expect_values(var(full({}, 3), {}, 0), {0}, 0);
  expect_values(var(tensor({1, 2}, {2}), {}, 2), {kInf}, 0);
  expect_values(var(tensor({1, 2}, {2}), {}, 3), {kInf}, 0);
  expect_values(var(zeros({2, 0}), {1}), {kNan, kNan}, 0);
  EXPECT_EQ(sizes_of(var(zeros({0, 2}), {1})), (Extents{0}));
  for (const DType dtype : kFloats) {
    const Tensor x = tensor({1, kInf, 2, 1, kNan, 2, -kInf, 1, 2, 1, 2, 3}, {4, 3}, of(dtype));
    expect_values(var(x, {1}), {kNan, kNan, kNan, 1}, 0);
  }
  EXPECT_EQ(var(zeros({2, 3}), {-1}, 1, true).shape().to_string(), "(2, 1)");
  expect_error<DTypeError>([] { var(zeros({2}, {DType::int64})); },
                           "[var] operand 'input' is int64");
}

TEST(Statistics, ArgmaxOnEveryDTypeAndLayout) {
  unsigned seed = 1;
  for (const Sample& sample : kSamples) {
    if (sample.dim.size() > 1) continue;
    for (const DType dtype : kAllDTypes) {
      for (const Memory memory : kAllMemory) {
        // Few values, so that many are equal.
        const Tensor x =
            random_tensor(sample.sizes, dtype, memory, ++seed, 0, 5).to(DType::int32).to(dtype);
        const bool keepdim = seed % 2 == 0;
        SCOPED_TRACE(x.spec().to_string() + " " + name(memory));
        const std::optional<std::int64_t> dim =
            sample.dim.empty() ? std::nullopt : std::optional(sample.dim[0]);
        const Tensor y = argmax(x, dim, keepdim);
        ASSERT_EQ(y.dtype(), DType::int64);
        ASSERT_EQ(sizes_of(y), sizes_of(amax(x, sample.dim, keepdim)));
        const auto groups = groups_of(sample.sizes, sample.dim);
        const std::vector<double> values = values_of(x);
        std::vector<double> best(static_cast<std::size_t>(y.layout().numel()), -kInf);
        std::vector<double> expected(best.size());
        std::vector<double> seen(best.size());
        for (std::size_t i = 0; i < values.size(); ++i) {
          const double at = seen[groups[i]]++;
          if (values[i] <= best[groups[i]]) continue;
          best[groups[i]] = values[i];
          expected[groups[i]] = at;
        }
        ASSERT_NO_FATAL_FAILURE(expect_values(y, expected, 0));
      }
    }
  }
}

TEST(Statistics, ArgmaxOfEqualsAndNan) {
  for (const DType dtype : kFloats) {
    const Tensor x = tensor({1, kNan, kNan, 3, 3, kInf, -kInf, -kInf, -kInf}, {3, 3}, of(dtype));
    expect_values(argmax(x, 1), {1, 2, 0}, 0);
    expect_values(argmax(x, 0), {1, 0, 0}, 0);
    expect_values(argmax(x), {1}, 0);
  }
  EXPECT_EQ(argmax(zeros({2, 3}), {}, true).shape().to_string(), "(1, 1)");
  EXPECT_EQ(sizes_of(argmax(zeros({0, 3}), 1)), (Extents{0}));
  // The best of a long line is found in pieces.
  Tensor x = zeros({200000});
  x.data<float>()[131072] = 1;
  x.data<float>()[199999] = 1;
  expect_values(argmax(x), {131072}, 0);
  x.data<float>()[70000] = static_cast<float>(kNan);
  expect_values(argmax(x), {70000}, 0);
  expect_error<ShapeError>([] { argmax(zeros({2, 0}), 1); }, "[argmax] axis 1 of the input (2, 0)");
  expect_error<ShapeError>([] { argmax(zeros({0})); }, "[argmax]");
}

TEST(Statistics, ThreadCountDoesNotMatter) {
  for (const Extents& sizes : {Extents{500000}, Extents{3, 400000}, Extents{200000, 5}}) {
    const Tensor x = random_tensor(sizes, DType::float32, Memory::contiguous, 42);
    for (const Axes& dim : {Axes{}, Axes{0}, Axes{-1}}) {
      expect_thread_invariant([&] { return var(x, dim); }, "var");
      expect_thread_invariant([&] { return dim.empty() ? argmax(x) : argmax(x, dim[0]); },
                              "argmax");
    }
  }
}

}  // namespace statistics_test
}  // namespace tenon::test
