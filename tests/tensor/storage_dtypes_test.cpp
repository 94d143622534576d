// int16 and int8: stored, moved, compared, cast and used as indices, eagerly, in Programs and on
// either device; computed with nowhere.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "autograd/autograd.h"
#include "nn/nn.h"
#include "schedule/schedule.h"
#include "schedule/training.h"
#include "tensor/device_backend.h"
#include "tensor/functional.h"
#include "tests/support/expect_error.h"
#include "tests/support/models.h"
#include "tests/tensor/layouts.h"

namespace tenon {
namespace storage_dtypes_test {

using test::function_model;

constexpr DType kDTypes[] = {DType::int16, DType::int8};

class StorageDTypes : public ::testing::TestWithParam<std::pair<DeviceType, DType>> {
 protected:
  void SetUp() override {
    if (!is_available(device())) GTEST_SKIP() << "no " << device().to_string() << " device";
  }
  Device device() const { return {GetParam().first, 0}; }
  DType dtype() const { return GetParam().second; }
  double largest() const { return dtype() == DType::int8 ? 127 : 32767; }
  double lowest() const { return -largest() - 1; }
  Tensor make(std::vector<double> values, const Shape& shape) const {
    return tensor(values, shape, {dtype()}).to(device());
  }
  /// (2, 3) with both ends of the range.
  Tensor sample() const { return make({lowest(), largest(), 0, 1, -1, 100}, {2, 3}); }
  void expect(const Tensor& got, const std::vector<double>& values) const {
    EXPECT_EQ(got.dtype(), dtype());
    EXPECT_EQ(got.to_doubles(), values);
  }
};

INSTANTIATE_TEST_SUITE_P(Cpu, StorageDTypes,
                         ::testing::Values(std::pair(DeviceType::cpu, DType::int16),
                                           std::pair(DeviceType::cpu, DType::int8)));
INSTANTIATE_TEST_SUITE_P(Cuda, StorageDTypes,
                         ::testing::Values(std::pair(DeviceType::cuda, DType::int16),
                                           std::pair(DeviceType::cuda, DType::int8)));

TEST(StorageDTypeNames, HaveNamesSizesAndHostTypes) {
  EXPECT_EQ(parse_dtype("int16"), DType::int16);
  EXPECT_EQ(parse_dtype("int8"), DType::int8);
  EXPECT_EQ(name(DType::int16), "int16");
  EXPECT_EQ(name(DType::int8), "int8");
  EXPECT_EQ(size_of(DType::int16), 2U);
  EXPECT_EQ(size_of(DType::int8), 1U);
  EXPECT_EQ(dtype_of<std::int16_t>, DType::int16);
  EXPECT_EQ(dtype_of<std::int8_t>, DType::int8);
  for (const DType dtype : kDTypes) {
    EXPECT_FALSE(is_floating(dtype));
    EXPECT_EQ(accumulation_dtype(dtype), DType::int64);
    EXPECT_EQ(unit_roundoff(dtype), 0);
  }
  const std::vector<std::int8_t> bytes = {-128, 127, 65};
  EXPECT_EQ(from_vector<std::int8_t>(bytes, {3}).to_vector<std::int8_t>(), bytes);
  const std::vector<std::int16_t> shorts = {-32768, 32767, 65};
  EXPECT_EQ(from_vector<std::int16_t>(shorts, {3}).to_vector<std::int16_t>(), shorts);
  EXPECT_ERROR(DTypeError, "the data of a int8 tensor was read as uint8",
               from_vector<std::int8_t>(bytes, {3}).to_vector<std::uint8_t>());
}

TEST_P(StorageDTypes, FactoriesCopiesAndReading) {
  const TensorOptions options{dtype(), device()};
  expect(full({2}, -7, options), {-7, -7});
  expect(zeros({2}, options), {0, 0});
  expect(arange(3, options), {0, 1, 2});
  EXPECT_EQ(full({}, lowest(), options).item(), lowest());
  const Tensor x = sample();
  const std::vector<double> values = x.to_doubles();
  expect(x.clone(), values);
  expect(x.to(kCpu), values);
  Tensor y = zeros({2, 3}, options);
  y.copy_(x);
  expect(y, values);
  y.copy_(tensor({1e9, -1e9, 1.9, -1.9, 5, 6}, {2, 3}).to(device()));
  expect(y, {largest(), lowest(), 1, -1, 5, 6});
  y.narrow(1, 1, 1).copy_(make({8, 9}, {2, 1}));
  expect(y, {largest(), 8, 1, -1, 9, 6});
  y.zero_();
  expect(y, {0, 0, 0, 0, 0, 0});
  EXPECT_EQ(zeros({0, 3}, options).to_doubles().size(), 0U);
  EXPECT_EQ(make({65, -65}, {2}).to(kCpu).to_string(),
            std::string(name(dtype())) + "(2,) [65, -65]");
}

TEST_P(StorageDTypes, CastsSaturateFromFloatsAndWrapFromIntegers) {
  const double inf = std::numeric_limits<double>::infinity();
  for (const DType from : {DType::float32, DType::float64, DType::float16, DType::bfloat16}) {
    const Tensor x = tensor({NAN, inf, -inf, 60000, -60000, -0.0, 1.9, -1.9}, {8}, {from});
    expect(cast(x.to(device()), dtype()), {0, largest(), lowest(), largest(), lowest(), 0, 1, -1});
  }
  const Tensor edges = tensor({largest() + 0.5, largest() - 0.5, lowest() - 0.5, lowest() + 0.5},
                              {4}, {DType::float64});
  expect(cast(edges.to(device()), dtype()), {largest(), largest() - 1, lowest(), lowest() + 1});
  for (const DType from : {DType::int64, DType::int32}) {
    const Tensor x = tensor({largest() + 1, lowest() - 1, 65536 + 5, -1}, {4}, {from});
    expect(cast(x.to(device()), dtype()), {lowest(), largest(), 5, -1});
  }
  const Tensor bytes = tensor({255, 127, 0}, {3}, {DType::uint8}).to(device());
  expect(cast(bytes, dtype()), {dtype() == DType::int8 ? -1.0 : 255, 127, 0});
  expect(cast(bytes.to(DType::boolean), dtype()), {1, 1, 0});
  const Tensor x = sample();
  const std::vector<double> values = x.to_doubles();
  for (const DType to : {DType::float32, DType::float64, DType::int64, DType::int32}) {
    EXPECT_EQ(cast(x, to).dtype(), to);
    EXPECT_EQ(cast(x, to).to_doubles(), values);
  }
  EXPECT_EQ(cast(make({-1, 5}, {2}), DType::uint8).to_doubles(), (std::vector<double>{255, 5}));
  EXPECT_EQ(cast(x, DType::boolean).to_doubles(), (std::vector<double>{1, 1, 0, 1, 1, 1}));
  EXPECT_EQ(cast(make({-100, 100}, {2}), DType::float16).to_doubles(),
            (std::vector<double>{-100, 100}));
  expect(cast(make({-100, 100}, {2}), dtype()), {-100, 100});
  const DType other = dtype() == DType::int8 ? DType::int16 : DType::int8;
  EXPECT_EQ(cast(make({-100, 100}, {2}), other).to_doubles(), (std::vector<double>{-100, 100}));
}

TEST_P(StorageDTypes, OpsThatMoveElementsTakeThem) {
  const Tensor x = sample();
  const double low = lowest(), high = largest();
  const Tensor mask = tensor({1, 0, 1}, {3}, {DType::boolean}).to(device());
  const Tensor pick = tensor({2, 0}, {2}, {DType::int64}).to(device());
  const std::vector<std::pair<Tensor, std::vector<double>>> cases = {
      {transpose(x, 0, 1).contiguous(), {low, 1, high, -1, 0, 100}},
      {permute(x, {1, 0}).reshape({6}), {low, 1, high, -1, 0, 100}},
      {x.narrow(1, 1, 2), {high, 0, -1, 100}},
      {select(x, 0, -1), {1, -1, 100}},
      {x.narrow(0, 1, 1).expand({2, 3}).contiguous(), {1, -1, 100, 1, -1, 100}},
      {squeeze(unsqueeze(x, 1), 1).view({6}), {low, high, 0, 1, -1, 100}},
      {cat({x, x.narrow(1, 0, 1)}, 1), {low, high, 0, low, 1, -1, 100, 1}},
      {stack({select(x, 0, 1), select(x, 0, 0)}), {1, -1, 100, low, high, 0}},
      {split(x, 2, 1).at(1), {0, 100}},
      {chunk(x, 2, 0).at(0), {low, high, 0}},
      {index_select(x, 1, pick), {0, low, 100, 1}},
      {gather(x, 1, pick.reshape({2, 1})), {0, 1}},
      {where(mask, x, zeros({2, 3}, {dtype(), device()})), {low, 0, 0, 1, 0, 100}},
      {masked_fill(x, mask, -3), {-3, high, -3, -3, -1, -3}},
      {tril(x), {low, 0, 0, 1, -1, 0}},
      {triu(x, 1), {0, high, 0, 0, 0, 100}},
      {detach(x), {low, high, 0, 1, -1, 100}}};
  for (std::size_t i = 0; i < cases.size(); ++i) {
    SCOPED_TRACE(i);
    expect(cases[i].first, cases[i].second);
  }
  EXPECT_ERROR(ValueError,
               "[masked_fill] the number 40000 does not fit the dtype " +
                   std::string(name(dtype())) +
                   " of operand 'input', of shape (2, 3); convert the operand first, with "
                   ".to(DType::int64)",
               masked_fill(x, mask, 40000));
}

TEST_P(StorageDTypes, ComparisonsTakeThem) {
  const Tensor x = sample();
  const Tensor y = make({lowest(), 5, -5, 1, 0, 100}, {2, 3});
  const auto expect_truth = [](const Tensor& got, const std::vector<double>& values) {
    EXPECT_EQ(got.dtype(), DType::boolean);
    EXPECT_EQ(got.to_doubles(), values);
  };
  expect_truth(eq(x, y), {1, 0, 0, 1, 0, 1});
  expect_truth(ne(x, y), {0, 1, 1, 0, 1, 0});
  expect_truth(lt(x, y), {0, 0, 0, 0, 1, 0});
  expect_truth(ge(x, y), {1, 1, 1, 1, 0, 1});
  expect_truth(gt(x, -1), {0, 1, 1, 1, 0, 1});
  expect_truth(le(x, -1), {1, 0, 0, 0, 1, 0});
  // Compared as numbers, whatever the dtype holds.
  expect_truth(eq(x, 0.5), {0, 0, 0, 0, 0, 0});
  expect_truth(lt(x, 0.5), {1, 0, 1, 0, 1, 0});
  expect_truth(lt(x, 40000), {1, 1, 1, 1, 1, 1});
}

TEST_P(StorageDTypes, AreIndicesWhereverInt32Is) {
  const Tensor index = make({2, 0, 2, 1}, {4});
  const Tensor wide = index.to(DType::int64);
  const auto same_with_gradient =
      [&](const char* what, const Tensor& start,
          const std::function<Tensor(const Tensor&, const Tensor&)>& f) {
        SCOPED_TRACE(what);
        std::vector<std::vector<double>> results;
        for (const Tensor& by : {index, wide}) {
          Tensor x = start.clone();
          x.requires_grad_();
          const Tensor y = f(x, by);
          backward(sum(y * y));
          results.push_back(y.to_doubles());
          results.push_back(x.grad().to_doubles());
        }
        EXPECT_EQ(results[0], results[2]);
        EXPECT_EQ(results[1], results[3]);
      };
  const Tensor table = randn({3, 5}, {DType::float32}).to(device());
  same_with_gradient("embedding", table,
                     [](const Tensor& x, const Tensor& by) { return embedding(by, x); });
  same_with_gradient("embedding of (2, 2)", table, [](const Tensor& x, const Tensor& by) {
    return embedding(by.reshape({2, 2}), x);
  });
  same_with_gradient("index_select", table,
                     [](const Tensor& x, const Tensor& by) { return index_select(x, 0, by); });
  same_with_gradient("gather", table, [](const Tensor& x, const Tensor& by) {
    return gather(x, 0, by.reshape({4, 1}).narrow(0, 0, 3));
  });
  if (device().is_cpu()) {
    EXPECT_ERROR(ValueError, "[index_select] index -1 at position 0; needed 0 <= index < 3",
                 index_select(table, 0, make({-1}, {1})));
  }
}

TEST_P(StorageDTypes, AreNotComputedWith) {
  const Tensor x = sample();
  const std::vector<std::pair<const char*, std::function<Tensor()>>> cases = {
      {"add", [&] { return x + x; }},
      {"add", [&] { return x + 1; }},
      {"sub", [&] { return x - x; }},
      {"mul", [&] { return x * 2; }},
      {"neg", [&] { return neg(x); }},
      {"abs", [&] { return tenon::abs(x); }},
      {"relu", [&] { return relu(x); }},
      {"square", [&] { return square(x); }},
      {"maximum", [&] { return maximum(x, x); }},
      {"sum", [&] { return sum(x); }},
      {"amax", [&] { return amax(x); }},
      {"amin", [&] { return amin(x, {0}); }},
      {"argmax", [&] { return argmax(x); }},
      {"cumsum", [&] { return cumsum(x, 0); }},
      {"mean", [&] { return mean(x); }},
      {"softmax", [&] { return softmax(x, 1); }},
      {"exp", [&] { return tenon::exp(x); }},
      {"matmul", [&] { return matmul(x, transpose(x, 0, 1)); }}};
  for (const auto& [op, call] : cases) {
    const std::string text = test::error_text<DTypeError>([&] { call(); });
    EXPECT_EQ(text,
              "[" + std::string(op) + "] operand 'input' is " + std::string(name(dtype())) +
                  ", which is for storage, casts, comparisons and indices; convert with cast, "
                  "to int32 for instance");
  }
  EXPECT_EQ(sum(x.to(DType::int32)).item(), 99);
}

/// A table of more rows than an int8 can name, looked up by ids that a second input shifts.
struct Lookup : nn::Module {
  Lookup() : table(add<nn::Embedding>("table", 400, 8)), out(add<nn::Linear>("out", 8, 4)) {}
  Tensor forward(const Tensor& ids, const Tensor& kinds) {
    const Tensor chosen = where(eq(kinds, 1), ids, zeros({}, {ids.dtype(), ids.device()}));
    return out(gelu(table(cat({chosen, ids}, 1))));
  }
  nn::Child<nn::Embedding> table;
  nn::Child<nn::Linear> out;
};

TEST_P(StorageDTypes, ArePassedThroughVerifiedPrograms) {
  const auto model = nn::make<Lookup>();
  model->to(device());
  model->eval();
  const Tensor ids = make({0, 5, 127, 3, 64, 99}, {2, 3});
  const Tensor kinds = make({1, 0, 1, 0, 1, -1}, {2, 3});
  Schedule schedule = create_schedule(model, {{"ids", ids}, {"kinds", kinds}});
  schedule["out"].decompose();
  Executor run = build(schedule);
  for (const std::int64_t rows : {1, 2}) {
    const Tensor i = ids.narrow(0, 0, rows), k = kinds.narrow(0, 2 - rows, rows);
    const std::vector<double> got = run(i, k).to_doubles();
    const std::vector<double> expected = model(i, k).to_doubles();
    ASSERT_EQ(got.size(), expected.size());
    for (std::size_t at = 0; at < got.size(); ++at) EXPECT_NEAR(got[at], expected[at], 1e-5);
  }
}

TEST_P(StorageDTypes, AreIndicesInTrainingPrograms) {
  std::vector<std::vector<double>> weights;
  for (const DType kind : {dtype(), DType::int64}) {
    manual_seed(3);
    const auto model = nn::make<Lookup>();
    model->to(device());
    const Tensor ids = make({0, 5, 127, 3, 64, 99}, {2, 3}).to(kind);
    const Tensor kinds = make({1, 0, 1, 0, 1, -1}, {2, 3}).to(kind);
    const Tensor target = ones({2, 6, 4}).to(device());
    Schedule schedule = create_schedule(model, {{"ids", ids}, {"kinds", kinds}});
    auto step = build_training(
        schedule,
        {.loss = [](std::span<const Tensor> out,
                    std::span<const Tensor> wanted) { return mse_loss(out[0], wanted[0]); },
         .targets = {{"target", target}},
         .optimizer =
             std::make_shared<nn::SGD>(model->named_parameters(), nn::SgdOptions{.lr = 0.1})});
    for (int i = 0; i < 3; ++i) step.run({ids, kinds, target});
    weights.push_back(model->table->weight.to_doubles());
  }
  EXPECT_EQ(weights[0], weights[1]);
}

}  // namespace storage_dtypes_test
}  // namespace tenon
