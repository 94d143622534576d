// Numbers that programs give: integers stay exact, and what becomes an element is rounded once, in
// factories and ops, eagerly, in Graphs, Programs and their JSON.
#include "tensor/number.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>

#include "schedule/saving/attr_json.h"
#include "schedule/schedule.h"
#include "tensor/ops/attributes.h"
#include "tensor/tensor.h"
#include "tests/support/expect_error.h"

namespace tenon::test {
namespace number_test {

constexpr std::int64_t kLarge = (std::int64_t{1} << 53) + 1;  // no double
constexpr std::int64_t kMax = std::numeric_limits<std::int64_t>::max();
constexpr std::int64_t kMin = std::numeric_limits<std::int64_t>::min();
constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

using Integers = std::vector<std::int64_t>;
using Flags = std::vector<bool>;

Tensor integers(const Integers& values, DType dtype = DType::int64) {
  return tensor(std::span<const std::int64_t>(values), {static_cast<std::int64_t>(values.size())},
                {dtype});
}

TEST(Number, KeepsIntegersExactlyThroughArithmetic) {
  EXPECT_EQ(Scalar(kLarge).number().integer(), kLarge);
  EXPECT_EQ((-Scalar(kLarge)).number().integer(), -kLarge);
  EXPECT_EQ((Scalar(kLarge) + Scalar(2)).number().integer(), kLarge + 2);
  EXPECT_EQ((Scalar(kLarge) - Scalar(2.0)).number().integer(), kLarge - 2);
  EXPECT_EQ((Scalar(kLarge) * Scalar(3)).number().integer(), 3 * kLarge);
  EXPECT_EQ((Scalar(3 * kLarge) / Scalar(3)).number().integer(), kLarge);
  EXPECT_EQ((Scalar(kLarge) / Scalar(-1)).number().integer(), -kLarge);
  EXPECT_EQ((Scalar(1) / Scalar(8)).value(), 0.125);
  EXPECT_EQ((Scalar(kLarge) * Scalar(Dim(5))).number().integer(), 5 * kLarge);
  EXPECT_EQ(Scalar(true).number().integer(), 1);
}

TEST(Number, WhatOverflowsBecomesADouble) {
  EXPECT_EQ((Scalar(kMax) + Scalar(1)).value(), 0x1p63);
  EXPECT_EQ((-Scalar(kMin)).value(), 0x1p63);
  EXPECT_EQ((Scalar(kMin) / Scalar(-1)).value(), 0x1p63);
  EXPECT_EQ((Scalar(kMax) * Scalar(4)).value(), 0x1p65);
  EXPECT_EQ(Scalar(std::uint64_t{1} << 63).value(), 0x1p63);
  EXPECT_EQ(Scalar(std::numeric_limits<std::uint64_t>::max()).value(), 0x1p64);
  EXPECT_EQ((Scalar(1) / Scalar(0)).value(), kInf);
}

TEST(Number, TextAndEqualityTellIntegersApart) {
  EXPECT_EQ(Scalar(kLarge).to_string(), "9007199254740993");
  EXPECT_EQ(Scalar(2.0).to_string(), "2");
  EXPECT_EQ(Scalar(0.5).to_string(), "0.5");
  EXPECT_EQ(Scalar(-0.0).to_string(), "-0");
  EXPECT_TRUE(Scalar(2).same_as(Scalar(2.0)));
  EXPECT_TRUE(Scalar(kNan).same_as(Scalar(kNan)));
  EXPECT_FALSE(Scalar(kLarge).same_as(Scalar(kLarge - 1)));
  EXPECT_FALSE(Scalar(0.0).same_as(Scalar(-0.0))) << "they differ as divisors";
  EXPECT_FALSE(Attrs(BinaryAttrs{kLarge}) == Attrs(BinaryAttrs{kLarge - 1}));
  EXPECT_EQ(integers({kLarge}).to_string(), "int64(1,) [9007199254740993]");
}

/// Of what a Graph may hold: an integer times a size.
TEST(Number, IsExactBehindASymbolicSize) {
  const auto guards = std::make_shared<GuardList>();
  const Dim n = Dim::symbol("n", 3, guards);
  const Scalar product = Scalar(kLarge) * Scalar(n);
  EXPECT_EQ(product.hint_number().integer(), 3 * kLarge);
  std::vector<std::int64_t> ids;
  n.collect_symbols(ids);
  EXPECT_EQ(product.evaluate_number({{ids.at(0), 5}}).integer(), 5 * kLarge);
  EXPECT_TRUE(guards->guards.empty());
  EXPECT_DOUBLE_EQ((1.0 / n).hint(), 1.0 / 3);
  EXPECT_DOUBLE_EQ((n * 0.5 + 1).value(), 2.5);
}

TEST(Factories, FullOfAnInt64IsExact) {
  EXPECT_EQ(full({2}, kLarge, {DType::int64}).to_vector<std::int64_t>(),
            (Integers{kLarge, kLarge}));
  EXPECT_EQ(full({1}, kMax, {DType::int64}).to_vector<std::int64_t>(), (Integers{kMax}));
  EXPECT_EQ(full({1}, kMin, {DType::int64}).to_vector<std::int64_t>(), (Integers{kMin}));
}

TEST(Factories, ListsOfIntegersAreExact) {
  EXPECT_EQ(tensor({kLarge, -kLarge}, {2}, {DType::int64}).to_vector<std::int64_t>(),
            (Integers{kLarge, -kLarge}));
  EXPECT_EQ(tensor({1, kLarge}, {2}, {DType::int64}).to_vector<std::int64_t>(),
            (Integers{1, kLarge}));
  EXPECT_EQ(integers({kMax, kMin}).to_vector<std::int64_t>(), (Integers{kMax, kMin}));
  EXPECT_EQ(tensor({true, false}, {2}, {DType::boolean}).to_vector<bool>(), (Flags{true, false}));
  EXPECT_EQ(tensor({1, 0.5}, {2}).to_vector<float>(), (std::vector<float>{1, 0.5}));
  EXPECT_EQ(tensor({}, {0}).to_vector<float>(), std::vector<float>());
}

/// Just above the middle of 1 and the next number of p bits, by what a float cannot hold.
double above_the_middle(int p) { return 1 + std::ldexp(1, -p) + 0x1p-40; }

TEST(Factories, RoundADoubleOnce) {
  const double half = above_the_middle(11), brain = above_the_middle(8);
  const double next_half = 1 + 0x1p-10, next_brain = 1 + 0x1p-7;
  const TensorOptions f16{DType::float16}, bf16{DType::bfloat16};
  EXPECT_EQ(full({1}, half, f16).item(), next_half);
  EXPECT_EQ(full({1}, brain, bf16).item(), next_brain);
  EXPECT_EQ(tensor({half}, {1}, f16).item(), next_half);
  EXPECT_EQ(tensor({-brain}, {1}, bf16).item(), -next_brain);
  const std::vector<double> list{half};
  EXPECT_EQ(tensor(std::span<const double>(list), {1}, f16).item(), next_half);
  const Tensor mask = ones({1}, {DType::boolean});
  EXPECT_EQ(masked_fill(zeros({1}, f16), mask, half).item(), next_half);
  EXPECT_EQ(masked_fill(zeros({1}, bf16), mask, brain).item(), next_brain);
  EXPECT_EQ(eq(full({1}, next_half, f16), half).item(), 1) << "rounded to the operand's dtype";
  EXPECT_EQ(ge(full({1}, next_brain, bf16), brain).item(), 1);
}

/// The middle of two bfloat16 numbers, and 1 more: a double on the way would lose the 1.
TEST(Factories, RoundAnIntegerOnce) {
  const std::int64_t middle = (std::int64_t{1} << 62) + (std::int64_t{1} << 54);
  const double below = 0x1p62, above = 0x1p62 + 0x1p55;
  const TensorOptions bf16{DType::bfloat16};
  EXPECT_EQ(full({1}, middle, bf16).item(), below) << "to even";
  EXPECT_EQ(full({1}, middle + 1, bf16).item(), above);
  EXPECT_EQ(tensor({-middle - 1}, {1}, bf16).item(), -above);
  EXPECT_EQ(integers({middle + 1}).to(DType::bfloat16).item(), above);
  EXPECT_EQ(integers({-middle + 1}).to(DType::bfloat16).item(), -below);
  // Of float32 likewise: 2^60 + 2^36 lies in the middle.
  const std::int64_t narrow_middle = (std::int64_t{1} << 60) + (std::int64_t{1} << 36);
  EXPECT_EQ(full({1}, narrow_middle + 1).item(), 0x1p60 + 0x1p37);
  EXPECT_EQ(add(zeros({1}), narrow_middle + 1).item(), 0x1p60 + 0x1p37);
}

TEST(Factories, SaturateAtAnIntegersRange) {
  struct Case {
    Scalar value;
    DType dtype;
    std::int64_t expected;
  };
  const std::int64_t int32_max = std::numeric_limits<std::int32_t>::max();
  const std::int64_t int32_min = std::numeric_limits<std::int32_t>::min();
  const Case cases[] = {{1e30, DType::int64, kMax},      {-1e30, DType::int64, kMin},
                        {kInf, DType::int32, int32_max}, {-kInf, DType::int32, int32_min},
                        {kNan, DType::int64, 0},         {kNan, DType::uint8, 0},
                        {300, DType::uint8, 255},        {300.7, DType::uint8, 255},
                        {-1, DType::uint8, 0},           {-0.5, DType::uint8, 0},
                        {2.9, DType::int32, 2},          {-2.9, DType::int32, -2},
                        {kMax, DType::int32, int32_max}, {kMin, DType::int32, int32_min},
                        {0x1p63, DType::int64, kMax},    {0.5, DType::boolean, 1},
                        {kNan, DType::boolean, 1},       {0, DType::boolean, 0},
                        {kMin, DType::boolean, 1}};
  for (const Case& test : cases) {
    const Tensor made = full({2}, test.value, {test.dtype});
    EXPECT_EQ(made.to(DType::int64).to_vector<std::int64_t>(),
              (Integers{test.expected, test.expected}))
        << test.value.to_string() << " as " << name(test.dtype);
    const Number number = test.value.number();
    EXPECT_EQ(tensor({number}, {1}, {test.dtype}).item<std::int64_t>(), test.expected);
  }
  EXPECT_EQ(arange(258, {DType::uint8}).to(DType::int64).to_vector<std::int64_t>().back(), 255);
}

/// Every number against every value, in long double, which holds all int64.
TEST(Comparisons, OfIntegersWithAnyNumberAreExact) {
  using Compared = Tensor (*)(const Tensor&, const Scalar&);
  struct Case {
    const char* name;
    Compared compare;
    bool (*reference)(long double, long double);
  };
  const Case cases[] = {{"eq", eq, [](long double a, long double b) { return a == b; }},
                        {"ne", ne, [](long double a, long double b) { return a != b; }},
                        {"lt", lt, [](long double a, long double b) { return a < b; }},
                        {"le", le, [](long double a, long double b) { return a <= b; }},
                        {"gt", gt, [](long double a, long double b) { return a > b; }},
                        {"ge", ge, [](long double a, long double b) { return a >= b; }}};
  const std::pair<DType, Integers> operands[] = {
      {DType::int64, {kMin, kMin + 1, -kLarge, -1, 0, 1, kLarge - 1, kLarge, kLarge + 1, kMax}},
      {DType::int32, {-(1LL << 31), -1, 0, 1, (1LL << 31) - 1}},
      {DType::uint8, {0, 1, 44, 254, 255}},
      {DType::boolean, {0, 1}}};
  const std::int64_t whole[] = {kMin, -kLarge, -1,  0,         1,          2,      44,
                                255,  256,     300, 1LL << 31, kLarge - 1, kLarge, kMax};
  const double real[] = {kNan,   kInf, -kInf,   0.5,    -0.5,    254.5,  255.5,
                         1.0e30, -0.0, -0x1p63, 0x1p63, -0x1p64, 1e-300, 2147483647.5};
  std::vector<std::pair<Scalar, long double>> numbers;
  for (const std::int64_t value : whole) numbers.emplace_back(value, value);
  for (const double value : real) numbers.emplace_back(value, value);
  for (const auto& [dtype, values] : operands) {
    const Tensor x = integers(values, dtype);
    for (const Case& test : cases) {
      for (const auto& [number, exact] : numbers) {
        const Flags result = test.compare(x, number).to_vector<bool>();
        for (std::size_t i = 0; i < values.size(); ++i) {
          EXPECT_EQ(result[i], test.reference(static_cast<long double>(values[i]), exact))
              << values[i] << " " << test.name << " " << number.to_string() << " in "
              << name(dtype);
        }
      }
    }
  }
}

TEST(IntegerOps, TakeIntegersExactly) {
  const Tensor ids = integers({kLarge, 7});
  const auto values = [](const Tensor& x) { return x.to_vector<std::int64_t>(); };
  EXPECT_EQ(values(ids + kLarge), (Integers{2 * kLarge, kLarge + 7}));
  EXPECT_EQ(values(ids - kLarge), (Integers{0, 7 - kLarge}));
  EXPECT_EQ(values(kLarge - ids), (Integers{0, kLarge - 7}));
  EXPECT_EQ(values(integers({3, -1}) * kLarge), (Integers{3 * kLarge, -kLarge}));
  EXPECT_EQ(values(masked_fill(ids, eq(ids, 7), kLarge + 2)), (Integers{kLarge, kLarge + 2}));
  EXPECT_EQ(values(5 - integers({7, 2}, DType::uint8).to(DType::int64)), (Integers{-2, 3}));
  EXPECT_EQ((5 - integers({7, 2}, DType::uint8)).to_doubles(), (std::vector<double>{254, 3}));
}

TEST(IntegerOps, KeepLargeValuesInReductionsAndLookups) {
  const Tensor ids = integers({kLarge - 1, kLarge, 3});
  EXPECT_EQ(sum(ids).item<std::int64_t>(), 2 * kLarge + 2);
  EXPECT_EQ(amax(ids).item<std::int64_t>(), kLarge);
  EXPECT_EQ(amin(integers({-kLarge, -kLarge + 1})).item<std::int64_t>(), -kLarge);
  EXPECT_EQ(argmax(ids).item<std::int64_t>(), 1);
  EXPECT_EQ(cumsum(ids, 0).to_vector<std::int64_t>(),
            (Integers{kLarge - 1, 2 * kLarge - 1, 2 * kLarge + 2}));
  EXPECT_EQ(index_select(ids, 0, integers({1})).item<std::int64_t>(), kLarge);
  EXPECT_EQ(arange(3, {DType::int64}).to_vector<std::int64_t>(), (Integers{0, 1, 2}));
}

TEST(IntegerOps, RefuseWhatTheirDTypeDoesNotHold) {
  struct Case {
    DType dtype;
    Scalar number;
    const char* text;
  };
  const Case cases[] = {
      {DType::int64, 0.5,
       "the number 0.5 does not fit the dtype int64 of operand 'input', of shape "
       "(2,); convert the operand first, with .to(DType::float32)"},
      {DType::int64, kNan, "the number nan does not fit the dtype int64"},
      {DType::int64, 0x1p63, "the number 9.223372036854776e+18 does not fit the dtype int64"},
      {DType::int32, std::int64_t{1} << 40,
       "the number 1099511627776 does not fit the dtype int32 of operand 'input', of shape (2,); "
       "convert the operand first, with .to(DType::int64)"},
      {DType::uint8, 300, "the number 300 does not fit the dtype uint8"},
      {DType::uint8, -1, "the number -1 does not fit the dtype uint8"},
      {DType::boolean, 2, "the number 2 does not fit the dtype bool"}};
  for (const Case& test : cases) {
    const Tensor x = zeros({2}, {test.dtype});
    const Tensor mask = zeros({2}, {DType::boolean});
    std::vector<std::string> errors = {
        error_text<ValueError>([&] { add(x, test.number); }),
        error_text<ValueError>([&] { mul(x, test.number); }),
        error_text<ValueError>([&] { masked_fill(x, mask, test.number); })};
    if (test.dtype != DType::boolean) {
      errors.push_back(error_text<ValueError>([&] { sub(x, test.number); }));
      errors.push_back(error_text<ValueError>([&] { rsub(x, test.number); }));
    }
    for (const std::string& error : errors) EXPECT_NE(error.find(test.text), error.npos) << error;
  }
}

TEST(IntegerOps, ANumberNeverRaisesADType) {
  for (const DType dtype : {DType::float32, DType::float64, DType::float16, DType::bfloat16}) {
    const Tensor x = ones({2}, {dtype});
    for (const Scalar& number : {Scalar(1e300), Scalar(0.1), Scalar(kLarge), Scalar(true)}) {
      for (const Tensor& result : {x + number, x - number, number - x, x * number, x / number,
                                   number / x, masked_fill(x, eq(x, 1), number)}) {
        EXPECT_EQ(result.dtype(), dtype);
      }
    }
  }
}

TEST(Item, OfATypeIsExactOrAnError) {
  EXPECT_EQ(integers({kLarge}).item<std::int64_t>(), kLarge);
  EXPECT_EQ(full({}, kMin, {DType::int64}).item<std::int64_t>(), kMin);
  EXPECT_EQ(full({}, 3, {DType::float32}).item<std::int32_t>(), 3);
  EXPECT_EQ(full({}, 0.1, {DType::float64}).item<float>(), 0.1F);
  EXPECT_EQ(full({}, 0.1, {DType::float64}).item<double>(), 0.1);
  EXPECT_TRUE(ones({}, {DType::boolean}).item<bool>());
  EXPECT_TRUE(std::isnan(full({}, kNan).item<float>()));
  EXPECT_EQ(integers({kLarge}).item(), 0x1p53) << "the nearest double";
  EXPECT_ERROR(
      ValueError,
      "item() of 9007199254740993 as int32, which does not hold that value; needed a wider "
      "type",
      integers({kLarge}).item<std::int32_t>());
  EXPECT_ERROR(ValueError,
               "item() of 0.5 as int64, which does not hold that value; needed float or double",
               full({}, 0.5).item<std::int64_t>());
  error_text<ValueError>([] { (void)full({}, kNan).item<std::int64_t>(); });
  error_text<ValueError>([] { (void)full({}, 2).item<bool>(); });
  error_text<ValueError>([] { (void)full({}, -1).item<std::uint8_t>(); });
}

struct FindId : nn::Module {
  Tensor forward(const Tensor& ids) const {
    const Tensor shifted = ids + kLarge;
    return eq(masked_fill(shifted, lt(ids, 0.5), 3 * kLarge), 2 * kLarge).to(DType::int64) * kLarge;
  }
};

TEST(Programs, KeepIntegersExactlyThroughGraphsAndJson) {
  const auto model = nn::make<FindId>();
  const Tensor ids = integers({kLarge - 1, kLarge, kLarge + 1, 0});
  const Integers expected{0, kLarge, 0, 0};
  EXPECT_EQ(model(ids).to_vector<std::int64_t>(), expected);
  Schedule sch = create_schedule(model, {{"ids", ids}});
  EXPECT_EQ(build(sch)(ids).to_vector<std::int64_t>(), expected);
  const auto find = [&](std::int64_t number) {
    return sch.find([number](const Tensor& x) { return x + number; }).size();
  };
  EXPECT_EQ(find(kLarge), 1U);
  EXPECT_EQ(find(kLarge - 1), 0U) << "the same number as a double";
  EXPECT_EQ(sch.find([](const Tensor& x) { return x + Scalar(any()); }).size(), 1U);
}

struct Scaled : nn::Module {
  Tensor forward(const Tensor& ids) const { return ids * kLarge + kLarge; }
};

/// As doubles, and within what float64 results may differ by, both are the same.
TEST(Programs, VerificationTellsLargeIntegersApart) {
  Schedule sch = create_schedule(nn::make<Scaled>(), {{"ids", integers({1, 2, 3})}});
  sch.replace([](const Tensor& x) { return x * (kLarge - 1); },
              sch.find([](const Tensor& x) { return x * kLarge; }));
  error_text<ScheduleError>([&] { build(sch); });
  sch.undo();
  sch.replace([](const Tensor& x) { return (x + (kLarge + 1)) - 1; },
              sch.find([](const Tensor& x) { return x + kLarge; }));
  EXPECT_NO_THROW(build(sch));
}

struct HalfOfTheSize : nn::Module {
  Tensor forward(const Tensor& ids) const { return ids * (Scalar(ids.size(0)) / 2); }
};

TEST(Programs, RefuseANumberThatARealSizeMakesFractional) {
  Schedule sch = create_schedule(nn::make<HalfOfTheSize>(), {{"ids", integers({5, 6})}});
  Executor run = build(sch, {.verify = false});
  EXPECT_EQ(run(integers({1, 2, 3, 4})).to_vector<std::int64_t>(), (Integers{2, 4, 6, 8}));
  const std::string error = error_text<ValueError>([&] { run(integers({1, 2, 3})); });
  EXPECT_NE(error.find("[mul] the number 1.5 does not fit the dtype int64"), error.npos) << error;
}

TEST(Programs, ArgumentsOfReplacementsConvertWhereNothingIsLost) {
  using detail::convert_argument;
  const auto give = [](std::int64_t number) { return Argument(number); };
  EXPECT_EQ(convert_argument<double>("f", "p", give(3)), 3);
  EXPECT_EQ(convert_argument<std::int64_t>("f", "p", give(kLarge)), kLarge);
  error_text<ScheduleError>([&] { convert_argument<double>("f", "p", give(kLarge)); });
  error_text<ScheduleError>([&] { convert_argument<int>("f", "p", give(1LL << 40)); });
}

TEST(Programs, WriteNumbersAsJsonAndReadTheSame) {
  const auto guards = std::make_shared<GuardList>();
  const Dim n = Dim::symbol("s0", 3, guards);
  const Scalar numbers[] = {
      kLarge,          kMin, 0.5,  -0.0, 0x1p63, kNan, kInf, Scalar(kLarge) * n, n, sqrt(n),
      Scalar(0.1) / n, 2.0,  1e300};
  for (const Scalar& number : numbers) {
    const nlohmann::json json =
        nlohmann::json::parse(detail::attrs_to_json(BinaryAttrs{number}).dump());
    const Attrs read = detail::attrs_from_json(json, {{"s0", n}});
    EXPECT_TRUE(read.as<BinaryAttrs>().other.same_as(number)) << json.dump();
  }
}

}  // namespace number_test
}  // namespace tenon::test
