// Reductions: op × dtype × layout × axes against double-precision references written here.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tensor/error.h"
#include "tensor/functional.h"
#include "tensor/parallel.h"
#include "tests/tensor/layouts.h"

namespace tenon::test {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();

using Axes = std::vector<std::int64_t>;

struct ReduceCase {
  Extents sizes;
  Axes dim;
};
const ReduceCase kCases[] = {
    {{}, {}},
    {{5}, {}},
    {{5}, {0}},
    {{1}, {-1}},
    {{3, 4}, {}},
    {{3, 4}, {0}},
    {{3, 4}, {1}},
    {{4, 0, 3}, {2}},
    {{2, 3, 4}, {1}},
    {{2, 3, 4}, {0, 2}},
    {{2, 3, 4}, {-1, 0}},
    {{7, 130}, {0}},
    {{7, 130}, {1}},
    {{200, 65}, {0}},
    {{65, 200}, {1}},
    {{3, 70, 5, 2}, {1, 3}},
    {{3, 70, 5, 2}, {0, 2}},
    {{2, 40000}, {1}},
    {{40000, 3}, {0}},
    {{150000}, {}},
    {{300, 2, 500}, {0, 2}},
};

/// For each output element, the values that it reduces, in row-major order.
std::vector<std::vector<double>> groups_of(const Tensor& x, const Axes& dim) {
  const Extents sizes = sizes_of(x);
  std::vector<bool> reduced(static_cast<std::size_t>(sizes.size()), dim.empty());
  for (std::int64_t axis : dim) {
    reduced[static_cast<std::size_t>(axis < 0 ? axis + sizes.size() : axis)] = true;
  }
  std::int64_t count = 1;
  for (int axis = 0; axis < sizes.size(); ++axis) {
    if (!reduced[static_cast<std::size_t>(axis)]) count *= sizes[axis];
  }
  std::vector<std::vector<double>> groups(static_cast<std::size_t>(count));
  const std::vector<double> values = values_of(x);
  for (std::size_t i = 0; i < values.size(); ++i) {
    auto rest = static_cast<std::int64_t>(i);
    std::int64_t group = 0;
    std::int64_t stride = 1;
    for (int axis = sizes.size() - 1; axis >= 0; --axis) {
      if (!reduced[static_cast<std::size_t>(axis)]) {
        group += rest % sizes[axis] * stride;
        stride *= sizes[axis];
      }
      rest /= sizes[axis];
    }
    groups[static_cast<std::size_t>(group)].push_back(values[i]);
  }
  return groups;
}

double total(const std::vector<double>& values) {
  long double sum = 0;
  for (double value : values) sum += value;
  return static_cast<double>(sum);
}

Extents expected_sizes(const Extents& sizes, const Axes& dim, bool keepdim) {
  Extents result;
  for (int axis = 0; axis < sizes.size(); ++axis) {
    bool reduced = dim.empty();
    for (std::int64_t d : dim) reduced = reduced || d == axis || d + sizes.size() == axis;
    if (!reduced)
      result.push_back(sizes[axis]);
    else if (keepdim)
      result.push_back(1);
  }
  return result;
}

/// Error of a sum beside the rounding of the result: a few roundings for each of log32(n) levels of
/// 32 rows, on the sum of magnitudes.
double sum_error(const std::vector<double>& group, DType dtype) {
  double magnitude = 0;
  for (double value : group) magnitude += std::fabs(value);
  return 40 * unit_roundoff(dtype == DType::float64 ? dtype : DType::float32) * magnitude;
}

TEST(Reduce, SumAndMeanOnEveryDTypeAndLayout) {
  unsigned seed = 1;
  for (const ReduceCase& sample : kCases) {
    for (const DType dtype : kFloats) {
      for (const Memory memory : kAllMemory) {
        const Tensor x = random_tensor(sample.sizes, dtype, memory, ++seed, -1, 1.2);
        const bool keepdim = seed % 2 == 0;
        SCOPED_TRACE(x.spec().to_string() + " " + name(memory) + " seed " + std::to_string(seed));
        const Tensor sums = sum(x, sample.dim, keepdim);
        const Tensor means = mean(x, sample.dim, keepdim);
        ASSERT_EQ(sizes_of(sums), expected_sizes(sample.sizes, sample.dim, keepdim));
        ASSERT_EQ(sizes_of(means), sizes_of(sums));
        const auto groups = groups_of(x, sample.dim);
        const auto got_sums = values_of(sums);
        const auto got_means = values_of(means);
        ASSERT_EQ(got_sums.size(), groups.size());
        for (std::size_t i = 0; i < groups.size(); ++i) {
          const double expected = total(groups[i]);
          const auto n = static_cast<double>(groups[i].size());
          const double error = sum_error(groups[i], dtype) + smallest_step(dtype);
          ASSERT_TRUE(is_close(got_sums[i], expected, tolerance(dtype), error))
              << "sum " << i << ": " << got_sums[i] << ", expected " << expected;
          ASSERT_TRUE(is_close(got_means[i], expected / n, tolerance(dtype), error / n))
              << "mean " << i << ": " << got_means[i] << ", expected " << expected / n;
        }
      }
    }
  }
}

TEST(Reduce, ExtremaOnEveryDTypeAndLayout) {
  unsigned seed = 3000;
  for (const ReduceCase& sample : kCases) {
    for (const DType dtype : kAllDTypes) {
      for (const Memory memory : kAllMemory) {
        const Tensor x = random_tensor(sample.sizes, dtype, memory, ++seed, 0, 100);
        const bool keepdim = seed % 2 == 0;
        SCOPED_TRACE(x.spec().to_string() + " " + name(memory) + " seed " + std::to_string(seed));
        std::vector<double> largest, smallest;
        for (const auto& group : groups_of(x, sample.dim)) {
          if (group.empty()) continue;
          largest.push_back(*std::max_element(group.begin(), group.end()));
          smallest.push_back(*std::min_element(group.begin(), group.end()));
        }
        const Tensor high = amax(x, sample.dim, keepdim);
        ASSERT_EQ(sizes_of(high), expected_sizes(sample.sizes, sample.dim, keepdim));
        ASSERT_EQ(high.dtype(), dtype);
        ASSERT_NO_FATAL_FAILURE(expect_values(high, largest, 0));
        ASSERT_NO_FATAL_FAILURE(expect_values(amin(x, sample.dim, keepdim), smallest, 0));
      }
    }
  }
}

TEST(Reduce, IntegersSumToInt64) {
  unsigned seed = 9000;
  for (const DType dtype : {DType::int64, DType::int32, DType::uint8, DType::boolean}) {
    for (const Memory memory : kAllMemory) {
      const Tensor x = random_tensor({60, 70}, dtype, memory, ++seed, 0, 250);
      SCOPED_TRACE(x.spec().to_string() + " " + name(memory) + " seed " + std::to_string(seed));
      std::vector<double> expected;
      for (const auto& group : groups_of(x, {1})) expected.push_back(total(group));
      EXPECT_EQ(sum(x, {1}).dtype(), DType::int64);
      expect_values(sum(x, {1}), expected, 0);
    }
  }
  const Tensor large = full({3}, 4e9, of(DType::int64));
  EXPECT_EQ(sum(large).to_vector<std::int64_t>()[0], 12000000000);
}

TEST(Reduce, LongSumsKeepTheirDigits) {
  // One running float32 sum of this would stop growing at 2^24.
  const Tensor ones_and_more = full({20000000}, 1.0F);
  EXPECT_EQ(sum(ones_and_more).item(), 20000000.0);
  EXPECT_EQ(mean(ones_and_more).item(), 1.0);
  const Tensor half = full({100000}, 1.0, of(DType::float16));
  EXPECT_EQ(mean(half).item(), 1.0);
  EXPECT_EQ(sum(half).item(), kInf);  // above 65504
}

TEST(Reduce, ResultsDoNotDependOnTheNumberOfThreads) {
  const int before = num_threads();
  for (const Extents& sizes :
       {Extents{500000}, Extents{3, 400000}, Extents{200000, 5}, Extents{700, 900}}) {
    const Tensor x = random_tensor(sizes, DType::float32, Memory::contiguous, 42);
    for (const Axes& dim : {Axes{}, Axes{0}, Axes{-1}}) {
      set_num_threads(1);
      const auto one = sum(x, dim).to_vector<float>();
      for (const int threads : {2, 5}) {
        set_num_threads(threads);
        EXPECT_EQ(sum(x, dim).to_vector<float>(), one) << x.spec().to_string() << " " << threads;
      }
    }
  }
  set_num_threads(before);
}

TEST(Reduce, NanAndInfPropagate) {
  for (const DType dtype : kFloats) {
    SCOPED_TRACE(std::string(tenon::name(dtype)));
    const Tensor x =
        tensor({1, kNan, 2, 1, kInf, 2, -kInf, -kInf, -kInf, kInf, -kInf, 0}, {4, 3}, of(dtype));
    expect_values(sum(x, {1}), {kNan, kInf, -kInf, kNan}, 0);
    expect_values(mean(x, {1}), {kNan, kInf, -kInf, kNan}, 0);
    expect_values(amax(x, {1}), {kNan, kInf, -kInf, kInf}, 0);
    expect_values(amin(x, {1}), {kNan, 1, -kInf, -kInf}, 0);
    expect_values(amax(x, {0}), {kInf, kNan, 2}, 0);
  }
}

TEST(Reduce, OverNothing) {
  const Tensor x = zeros({2, 0});
  expect_values(sum(x), {0}, 0);
  expect_values(sum(x, {1}), {0, 0}, 0);
  expect_values(mean(x, {1}), {kNan, kNan}, 0);
  EXPECT_EQ(sizes_of(amax(x, {0})), (Extents{0}));
  expect_error<ShapeError>([&] { amax(x, {1}); }, "[amax] axis 1 of the input (2, 0) is empty");
  expect_error<ShapeError>([&] { amin(x); }, "[amin] axis 1 of the input (2, 0) is empty");
}

TEST(Reduce, ErrorsSayWhatWasGivenAndNeeded) {
  const Tensor x = zeros({2, 3});
  expect_error<ShapeError>([&] { sum(x, {2}); },
                           "[sum] axis 2 of a tensor of rank 2; needed an axis from -2 to 1");
  expect_error<ShapeError>([&] { mean(x, {-3}); }, "[mean] axis -3 of a tensor of rank 2");
  expect_error<ShapeError>(
      [&] {
        sum(x, {1, -1});
      },
      "[sum] axis 1 is given twice for the input (2, 3)");
  expect_error<DTypeError>([&] { mean(zeros({2}, of(DType::int64))); },
                           "[mean] operand 'input' is int64; needed float32");
}

}  // namespace
}  // namespace tenon::test
