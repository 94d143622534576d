// randn, uniform, randint and randperm, eagerly: element by element against the formulas of
// tensor/philox.h and tensor/tensor.h, written down again here; and what they refuse.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <map>
#include <numbers>
#include <set>

#include "tensor/functional.h"
#include "tensor/philox.h"
#include "tensor/random.h"
#include "tensor/support/convert.h"
#include "tests/support/expect_error.h"
#include "tests/tensor/threads.h"

namespace tenon::test {
namespace random_tensors_test {

constexpr DType kFloats[] = {DType::float32, DType::float64, DType::float16, DType::bfloat16};
constexpr DType kAll[] = {DType::float32, DType::float64, DType::float16, DType::bfloat16,
                          DType::int64,   DType::int32,   DType::uint8,   DType::boolean};
constexpr std::uint64_t kSeed = 0xfedcba9876543210;

/// The words of element i of stream 0, the first random tensor after manual_seed(kSeed).
std::pair<std::uint32_t, std::uint32_t> words_of(std::int64_t i) {
  std::uint32_t words[2];
  for (const std::uint32_t second : {0U, 1U}) {
    const PhiloxBlock block =
        philox4x32_10({{static_cast<std::uint32_t>(i / 4), second << 31, 0, 0x80000000U}},
                      static_cast<std::uint32_t>(kSeed), static_cast<std::uint32_t>(kSeed >> 32));
    words[second] = block.word[i % 4];
  }
  return {words[0], words[1]};
}

/// Where an element lies in the unit interval: by 53 bits in float64 and int64, by 32 else.
long double unit_of(std::int64_t i, DType dtype) {
  const auto [first, second] = words_of(i);
  if (size_of(dtype) < 8) return (first + 0.5L) * 0x1p-32L;
  return static_cast<long double>(std::uint64_t{first} << 21 | second >> 11) * 0x1p-53L;
}

struct RandomTensors : ::testing::Test {
  void SetUp() override { manual_seed(kSeed); }
  void TearDown() override { manual_seed(0); }
};

TEST_F(RandomTensors, RandnIsTheBoxMullerTransformRoundedOnce) {
  for (const DType dtype : kFloats) {
    for (const std::int64_t n : {1, 2, 5, 255, 256, 257, 70001}) {
      manual_seed(kSeed);
      const std::vector<double> given = randn({n}, {dtype}).to_doubles();
      for (std::int64_t i = 0; i<n; i += n> 1000 ? 97 : 1) {
        const std::int64_t pair = i - i % 2;
        const long double shift = dtype == DType::float64 ? 0x1p-53L : 0;
        const long double radius = std::sqrt(-2 * std::log(unit_of(pair, dtype) + shift));
        const long double angle = 2 * std::numbers::pi_v<long double> * unit_of(pair + 1, dtype);
        const long double exact = radius * (i % 2 == 0 ? std::cos(angle) : std::sin(angle));
        const auto at = static_cast<std::size_t>(i);
        if (dtype == DType::float64) {
          ASSERT_NEAR(given[at], static_cast<double>(exact), 8e-16 * (std::abs(given[at]) + 1));
          continue;
        }
        const double once = dispatch_float(dtype, [&]<typename T>() -> double {
          return static_cast<double>(
              static_cast<compute_type<T>>(cpu::convert<T>(static_cast<double>(exact))));
        });
        ASSERT_EQ(given[at], once) << name(dtype) << " " << i;
      }
    }
  }
}

TEST_F(RandomTensors, RandnHasTheMomentsOfTheNormalDistribution) {
  for (const DType dtype : kFloats) {
    const std::vector<double> x = randn({1000, 1000}, {dtype}).to_doubles();
    double sums[5] = {};
    for (const double value : x) {
      ASSERT_TRUE(std::isfinite(value));
      for (int k = 1; k <= 4; ++k) sums[k] += std::pow(value, k) / 1e6;
    }
    EXPECT_NEAR(sums[1], 0, 5e-3) << name(dtype);
    EXPECT_NEAR(sums[2], 1, 8e-3) << name(dtype);
    EXPECT_NEAR(sums[3], 0, 2e-2) << name(dtype);
    EXPECT_NEAR(sums[4], 3, 5e-2) << name(dtype);
  }
}

struct Interval {
  double low;
  double high;
};
const Interval kIntervals[] = {{0, 1},          {0, 1000},    {100, 101},   {-1, 0},
                               {-1000, -999},   {0, 50257},   {-0.1, 0.1},  {1, 1 + 0x1p-7},
                               {0, 1e-7},       {-3, 5},      {0.1, 0.3},   {0, 65504},
                               {-65504, 65504}, {2047, 2049}, {0, 0x1p-24}, {-1e-8, 1e-8}};

/// The number after `value` in the dtype.
double next_above(double value, DType dtype) {
  return dispatch_all(dtype, [&]<typename T>() -> double {
    if constexpr (std::is_integral_v<T>) {
      return value + 1;
    } else if constexpr (std::is_same_v<T, double>) {
      return std::nextafter(value, HUGE_VAL);
    } else if constexpr (std::is_same_v<T, float>) {
      return std::nextafter(static_cast<float>(value), HUGE_VALF);
    } else {
      T moved = cpu::convert<T>(value);
      if (static_cast<float>(moved) == 0) {
        moved.bits = 1;
      } else {
        moved.bits = static_cast<std::uint16_t>(moved.bits + (value > 0 ? 1 : -1));
      }
      return static_cast<double>(static_cast<float>(moved));
    }
  });
}

TEST_F(RandomTensors, UniformNeverReturnsItsUpperBoundInAnyDtype) {
  for (const DType dtype : kAll) {
    for (const auto& [low, high] : kIntervals) {
      const bool integral = !is_floating(dtype);
      if (integral && (low != std::floor(low) || high != std::floor(high))) continue;
      if (dtype == DType::uint8 && (low < 0 || high > 256)) continue;
      if (dtype == DType::boolean && (low < 0 || high > 2)) continue;
      const Tensor x = uniform({1000, 300}, low, high, {dtype});
      const std::vector<double> values = x.to_doubles();
      const double largest = *std::max_element(values.begin(), values.end());
      const double least = *std::min_element(values.begin(), values.end());
      EXPECT_LT(largest, high) << name(dtype) << " [" << low << ", " << high << ")";
      EXPECT_GE(least, low) << name(dtype) << " [" << low << ", " << high << ")";
    }
  }
}

TEST_F(RandomTensors, UniformIsTheRealIntervalRoundedDown) {
  for (const DType dtype : kAll) {
    for (const auto& [low, high] : kIntervals) {
      const bool integral = !is_floating(dtype);
      if (integral && (low != std::floor(low) || high != std::floor(high))) continue;
      if (dtype == DType::uint8 && (low < 0 || high > 256)) continue;
      if (dtype == DType::boolean && (low < 0 || high > 2)) continue;
      manual_seed(kSeed);
      const std::vector<double> values = uniform({2000}, low, high, {dtype}).to_doubles();
      for (std::size_t i = 0; i < values.size(); ++i) {
        const long double exact = low + (static_cast<long double>(high) - low) *
                                            unit_of(static_cast<std::int64_t>(i), dtype);
        // In float64 the sum itself rounds, in the others only what is below its last place.
        const long double slack = 0x1p-52L * std::max(std::abs(low), std::abs(high));
        // The first number of the interval also stands for what is below it.
        const double before = integral ? values[i] - 1 : -next_above(-values[i], dtype);
        if (before >= low) {
          EXPECT_LE(values[i], exact + slack) << name(dtype) << " " << low;
        }
        EXPECT_GT(next_above(values[i], dtype), exact - slack) << name(dtype) << " " << low;
      }
    }
  }
}

TEST_F(RandomTensors, ClassesDrawnByUniformAreAllValidAndEvenlySpread) {
  // The case that indexed one past the end: cast(uniform(0, V)).
  for (const DType dtype : {DType::float32, DType::bfloat16, DType::float16}) {
    constexpr double kClasses = 8;  // exact in all of them
    std::vector<std::int64_t> count(8);
    for (const double draw :
         cast(uniform({200000}, 0, kClasses, {dtype}), DType::int64).to_doubles()) {
      ASSERT_TRUE(draw >= 0 && draw < kClasses) << draw;
      ++count[static_cast<std::size_t>(draw)];
    }
    for (const std::int64_t n : count)
      EXPECT_NEAR(static_cast<double>(n), 25000, 800) << name(dtype);
  }
}

TEST_F(RandomTensors, UniformStartsAtTheFirstNumberOfTheInterval) {
  const std::vector<double> x = uniform({4000}, 0.1, 0.101, {DType::bfloat16}).to_doubles();
  for (const double value : x) ASSERT_GE(value, 0.1);
  // Between 1 and the next number of bfloat16 there is none: what rounding down gives.
  for (const double value : uniform({100}, 1.001, 1.002, {DType::bfloat16}).to_doubles()) {
    ASSERT_EQ(value, 1);
  }
}

TEST_F(RandomTensors, UniformOfEqualBoundsIsThatNumber) {
  for (const DType dtype : kFloats) {
    const Tensor expected = full({16}, 0.3, {dtype});
    EXPECT_EQ(bytes_of(uniform({16}, 0.3, 0.3, {dtype})), bytes_of(expected)) << name(dtype);
  }
}

TEST_F(RandomTensors, UniformOfTheWholeRangeIsFinite) {
  constexpr double kHuge = 0x1.fffffffffffffp1023;
  for (const double value : uniform({1000}, -kHuge, kHuge, {DType::float64}).to_doubles()) {
    ASSERT_TRUE(std::isfinite(value));
  }
}

TEST_F(RandomTensors, UniformRefusesBadBoundsAndLeavesTheGeneratorAlone) {
  const std::string before = bytes_of(randn({4}));
  manual_seed(kSeed);
  EXPECT_ERROR(ValueError, "[uniform] bounds nan and 1; needed finite numbers, low <= high",
               uniform({2}, NAN, 1));
  EXPECT_ERROR(ValueError, "[uniform] bounds 0 and inf; needed finite numbers, low <= high",
               uniform({2}, 0, INFINITY));
  EXPECT_ERROR(ValueError, "[uniform] bounds 2 and 1; needed finite numbers, low <= high",
               uniform({2}, 2, 1));
  EXPECT_ERROR(ValueError,
               "[uniform] bounds 0 and 100000 for float16; needed numbers from -65504 to 65504",
               uniform({2}, 0, 1e5, {DType::float16}));
  EXPECT_ERROR(ValueError, "[uniform] bounds -1 and 5 for uint8; needed numbers from 0 to 256",
               uniform({2}, -1, 5, {DType::uint8}));
  EXPECT_ERROR(DTypeError,
               "[randn] dtype int64; needed float32, float64, float16 or bfloat16; randint draws "
               "integers",
               randn({2}, {DType::int64}));
  EXPECT_EQ(bytes_of(randn({4})), before);
}

TEST_F(RandomTensors, Float64HasMoreDigitsOfTheNumbersOfFloat32) {
  for (const bool normal : {true, false}) {
    const auto draw = [&](DType dtype) {
      manual_seed(kSeed);
      return (normal ? randn({4096}, {dtype}) : uniform({4096}, 0, 1, {dtype})).to_doubles();
    };
    const std::vector<double> wide = draw(DType::float64);
    const std::vector<double> narrow = draw(DType::float32);
    std::set<std::uint32_t> low_bits;
    for (std::size_t i = 0; i < wide.size(); ++i) {
      EXPECT_NEAR(wide[i], narrow[i], 1e-6);
      low_bits.insert(static_cast<std::uint32_t>(std::bit_cast<std::uint64_t>(wide[i]) >> 4));
    }
    EXPECT_GT(low_bits.size(), 4000U) << "the last digits of float64 are random too";
  }
}

TEST_F(RandomTensors, RandintIsTheUpperHalfOfAProduct) {
  struct Case {
    std::int64_t low, high;
  };
  for (const auto& [low, high] : {Case{0, 2},
                                  {0, 10},
                                  {-5, 3},
                                  {7, 8},
                                  {0, 50257},
                                  {-2, 254},
                                  {INT64_MIN, INT64_MAX},
                                  {0, INT64_MAX}}) {
    manual_seed(kSeed);
    const auto values = randint(low, high, {1000}).to_vector<std::int64_t>();
    for (std::size_t i = 0; i < values.size(); ++i) {
      const auto [first, second] = words_of(static_cast<std::int64_t>(i));
      __extension__ using Wide = unsigned __int128;
      const Wide bits = std::uint64_t{first} << 32 | second;
      const auto range = static_cast<std::uint64_t>(high) - static_cast<std::uint64_t>(low);
      const auto expected = static_cast<std::int64_t>(
          static_cast<std::uint64_t>(low) + static_cast<std::uint64_t>(bits * range >> 64));
      ASSERT_EQ(values[i], expected) << low << " " << high;
      ASSERT_TRUE(values[i] >= low && values[i] < high);
    }
  }
}

TEST_F(RandomTensors, RandintDrawsTheSameIntegersInEveryDtype) {
  const std::vector<double> wide = randint(0, 200, {5000}).to_doubles();
  for (const DType dtype : kAll) {
    if (dtype == DType::boolean) continue;
    manual_seed(kSeed);
    EXPECT_EQ(randint(0, 200, {5000}, {dtype}).to_doubles(), wide) << name(dtype);
  }
  EXPECT_EQ(randint(0, 200, {2}).dtype(), DType::int64);
  manual_seed(kSeed);
  std::map<double, int> count;
  for (const double value : randint(0, 2, {10000}, {DType::boolean}).to_doubles()) ++count[value];
  EXPECT_NEAR(count[0], 5000, 250);
  EXPECT_EQ(count[0] + count[1], 10000);
}

TEST_F(RandomTensors, RandintRefusesWhatTheDtypeDoesNotHold) {
  EXPECT_ERROR(ValueError, "[randint] from 3 to 3; needed low < high", randint(3, 3, {2}));
  EXPECT_ERROR(ValueError, "[randint] from 5 to -5; needed low < high", randint(5, -5, {2}));
  EXPECT_ERROR(
      ValueError,
      "[randint] integers from 0 to 256 in uint8, which holds those from 0 to 255 exactly; "
      "give another dtype",
      randint(0, 257, {2}, {DType::uint8}));
  EXPECT_ERROR(ValueError,
               "[randint] integers from 0 to 257 in bfloat16, which holds those from -256 to 256 "
               "exactly; give another dtype",
               randint(0, 258, {2}, {DType::bfloat16}));
  EXPECT_ERROR(ShapeError, "[randint] shape (2, -1); needed sizes of 0 or more",
               randint(0, 2, {2, -1}));
}

TEST_F(RandomTensors, RandpermIsTheOrderOfItsWords) {
  for (const std::int64_t n : {0, 1, 2, 7, 1000, 3000}) {
    manual_seed(kSeed);
    const auto order = randperm(n).to_vector<std::int64_t>();
    ASSERT_EQ(order.size(), static_cast<std::size_t>(n));
    EXPECT_EQ(std::set<std::int64_t>(order.begin(), order.end()).size(), order.size());
    for (std::size_t i = 1; i < order.size(); ++i) {
      ASSERT_LT(words_of(order[i - 1]), words_of(order[i])) << n;
      ASSERT_TRUE(order[i] >= 0 && order[i] < n);
    }
  }
  std::map<std::vector<std::int64_t>, int> count;
  for (int i = 0; i < 6000; ++i) ++count[randperm(3).to_vector<std::int64_t>()];
  EXPECT_EQ(count.size(), 6U);
  for (const auto& [order, times] : count) EXPECT_NEAR(times, 1000, 150);
  EXPECT_EQ(randperm(256, {DType::uint8}).dtype(), DType::uint8);
  EXPECT_ERROR(ValueError,
               "[randperm] integers from 0 to 256 in uint8, which holds those from 0 to 255 "
               "exactly; give another dtype",
               randperm(257, {DType::uint8}));
  EXPECT_ERROR(ShapeError, "[randperm] shape (-1,); needed sizes of 0 or more", randperm(-1));
}

TEST_F(RandomTensors, DoNotDependOnTheNumberOfThreads) {
  for (const DType dtype : kFloats) {
    const auto again = [&](auto make) {
      return [=] {
        manual_seed(kSeed);
        return make();
      };
    };
    expect_thread_invariant(again([=] { return randn({100003}, {dtype}); }), "randn");
    expect_thread_invariant(again([=] { return uniform({100003}, -1, 2, {dtype}); }), "uniform");
    expect_thread_invariant(again([] { return randint(0, 9, {100003}); }), "randint");
  }
}

}  // namespace random_tensors_test
}  // namespace tenon::test
