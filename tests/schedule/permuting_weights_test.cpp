// Weight maps that move rows, columns or heads: legal wherever the map says where each number comes from.
#include <gtest/gtest.h>

#include "nn/nn.h"
#include "tests/support/schedule_checks.h"

namespace tenon {
namespace permuting_weights_test {

using test::expect_close;
using T = const Tensor&;

constexpr std::int64_t kIn = 6;
constexpr std::int64_t kOut = 8;

struct Model : nn::Module {
  Model() : proj(add<nn::Linear>("proj", kIn, kOut)), gate(add<nn::Linear>("gate", kIn, kOut)) {}
  Tensor forward(T x) const {
    const Tensor value = tanh(proj(x));
    return value * gate(x);
  }
  nn::Child<nn::Linear> proj, gate;
};

/// A Linear with its weight in another order, which `undo` turns back.
struct Permuted : nn::Module {
  using Undo = Tensor (*)(T);
  Permuted(const Shape& weight_shape, Undo weights, Undo results)
      : weight(register_parameter("weight", zeros(weight_shape))),
        bias(register_parameter("bias", zeros({kOut}))),
        weight_of(weights),
        undo(results) {}
  Tensor forward(T x) const { return undo(linear(x, weight_of(weight), bias)); }
  Tensor weight, bias;
  Undo weight_of, undo;
};

struct Case {
  const char* name;
  Shape shape;
  WeightSource weight;
  WeightSource bias;
  Permuted::Undo weight_of;
  Permuted::Undo undo;
};

Tensor as_is(T x) { return x; }
/// Half-split back to interleaved: (…, 2, n) -> (…, n·2).
Tensor interleaved(T y) {
  const Dim n = y.size(-1) / 2;
  return y.reshape({y.size(0), 2, n}).transpose(1, 2).reshape({y.size(0), n * 2});
}
Tensor swapped(T y) { return cat({narrow(y, -1, 4, 4), narrow(y, -1, 0, 4)}, -1); }
Tensor reversed(T y) {
  std::vector<Tensor> columns;
  for (std::int64_t i = kOut; i-- > 0;) columns.push_back(narrow(y, -1, i, 1));
  return cat(columns, -1);
}

std::vector<WeightSource> rows_backwards(const char* name) {
  std::vector<WeightSource> rows;
  for (std::int64_t i = kOut; i-- > 0;) rows.push_back(narrow(name, 0, i, 1));
  return rows;
}

/// Rows 0, 2, 4, 6, then 1, 3, 5, 7.
std::vector<WeightSource> even_then_odd(const char* name) {
  std::vector<WeightSource> rows;
  for (const int first : {0, 1}) {
    for (int i = first; i < kOut; i += 2) rows.push_back(narrow(name, 0, i, 1));
  }
  return rows;
}

std::vector<Case> cases() {
  const Shape plain{kOut, kIn};
  return {
      {"half-split by reshape and transpose", plain,
       reshape(transpose(reshape("proj.weight", {4, 2, kIn}), 0, 1), {kOut, kIn}),
       reshape(transpose(reshape("proj.bias", {4, 2}), 0, 1), {kOut}), as_is, interleaved},
      {"half-split by rows", plain, cat(even_then_odd("proj.weight"), 0),
       cat(even_then_odd("proj.bias"), 0), as_is, interleaved},
      {"half-split by strided pieces", plain,
       cat(reshape(narrow(reshape("proj.weight", {4, 2, kIn}), 1, 0, 1), {4, kIn}),
           reshape(narrow(reshape("proj.weight", {4, 2, kIn}), 1, 1, 1), {4, kIn})),
       cat(reshape(narrow(reshape("proj.bias", {4, 2}), 1, 0, 1), {4}),
           reshape(narrow(reshape("proj.bias", {4, 2}), 1, 1, 1), {4})),
       as_is, interleaved},
      {"halves swapped", plain, cat(narrow("proj.weight", 0, 4, 4), narrow("proj.weight", 0, 0, 4)),
       cat(narrow("proj.bias", 0, 4, 4), narrow("proj.bias", 0, 0, 4)), as_is, swapped},
      {"halves swapped by split", plain,
       cat(split("proj.weight", 2, 1), split("proj.weight", 2, 0)),
       cat(split("proj.bias", 2, 1), split("proj.bias", 2, 0)), as_is, swapped},
      {"halves as they are", plain,
       cat(narrow("proj.weight", 0, 0, 4), narrow("proj.weight", 0, 4, 4)), "proj.bias", as_is,
       as_is},
      {"rows backwards", plain, cat(rows_backwards("proj.weight"), 0),
       cat(rows_backwards("proj.bias"), 0), as_is, reversed},
      {"columns rotated", plain,
       cat({narrow("proj.weight", 1, 2, 4), narrow("proj.weight", 1, 0, 2)}, 1), "proj.bias",
       [](T w) {
         return cat({narrow(w, 1, 4, 2), narrow(w, 1, 0, 4)}, 1);
       },
       as_is},
      {"columns rotated, axis from the end", plain,
       cat({narrow("proj.weight", -1, 2, 4), narrow("proj.weight", -1, 0, 2)}, -1), "proj.bias",
       [](T w) {
         return cat({narrow(w, 1, 4, 2), narrow(w, 1, 0, 4)}, 1);
       },
       as_is},
      {"transposed",
       {kIn, kOut},
       transpose("proj.weight", 0, 1),
       "proj.bias",
       [](T w) { return transpose(w, 0, 1); },
       as_is},
      {"transposed and swapped",
       {kIn, kOut},
       cat({narrow(transpose("proj.weight", 0, 1), 1, 4, 4),
            narrow(transpose("proj.weight", 0, 1), 1, 0, 4)},
           1),
       cat(narrow("proj.bias", 0, 4, 4), narrow("proj.bias", 0, 0, 4)),
       [](T w) { return transpose(w, 0, 1); },
       swapped},
      {"twice, half of it read",
       {2 * kOut, kIn},
       cat("proj.weight", "proj.weight"),
       "proj.bias",
       [](T w) { return (narrow(w, 0, 0, kOut) + narrow(w, 0, kOut, kOut)) / 2; },
       as_is},
      {"with its transpose",
       {kOut, kIn + kOut},
       cat({WeightSource("proj.weight"),
            reshape(transpose(reshape("proj.weight", {kIn, kOut}), 0, 1), {kOut, kIn})},
           1),
       "proj.bias",
       [](T w) { return narrow(w, 1, 0, kIn); },
       as_is},
  };
}

class PermutingWeights : public ::testing::TestWithParam<std::size_t> {};

TEST_P(PermutingWeights, BuildRunAndTrain) {
  Case c = cases()[GetParam()];
  if (std::string(c.name) == "with its transpose") c.shape = {kOut, 2 * kIn};
  SCOPED_TRACE(c.name);
  const auto model = test::initialized<Model>();
  const auto before = model->state_dict();
  std::vector<std::vector<float>> values;
  for (const auto& [name, tensor] : before) values.push_back(tensor.to_vector<float>());
  Schedule sch = create_schedule(model, {{"x", randn({3, kIn})}});
  sch.replace(nn::make<Permuted>(c.shape, c.weight_of, c.undo), sch.find("proj"),
              {.weights = {{"weight", c.weight}, {"bias", c.bias}}});
  EXPECT_TRUE(sch.added_parameters().empty());
  test::expect_equivalent(model, sch, {randn({3, kIn})});
  Executor run = build(sch);
  std::size_t i = 0;
  const auto after = model->state_dict();
  ASSERT_EQ(after.size(), values.size());
  for (const auto& [name, tensor] : after) {
    EXPECT_EQ(tensor.contiguous().to_vector<float>(), values[i++]) << name;
  }
  // What is loaded under the old names is what runs.
  const auto other = test::initialized<Model>();
  test::initialize(*other, 99);
  model->load_state_dict(other->state_dict());
  const Tensor x = randn({4, kIn});
  expect_close(run(x), other(x), 2e-5, "loaded");
}

INSTANTIATE_TEST_SUITE_P(Maps, PermutingWeights, ::testing::Range<std::size_t>(0, cases().size()));

/// A joined projection of two modules, its rows interleaved.
TEST(PermutingWeights, OfTwoModules) {
  struct Joined : nn::Module {
    Joined()
        : weight(register_parameter("weight", zeros({2 * kOut, kIn}))),
          bias(register_parameter("bias", zeros({2 * kOut}))) {}
    std::vector<Tensor> forward(T x) const {
      const Tensor y = linear(x, weight, bias);
      const Tensor pairs = y.reshape({y.size(0), kOut, 2});
      return {select(pairs, 2, 0), select(pairs, 2, 1)};
    }
    Tensor weight, bias;
  };
  const auto rows = [](const char* name, std::vector<std::int64_t> sizes) {
    return reshape(name, std::move(sizes));
  };
  const auto model = test::initialized<Model>();
  Schedule sch = create_schedule(model, {{"x", randn({3, kIn})}});
  sch.replace(
      nn::make<Joined>(), sch.find("proj|gate"),
      {.weights = {
           {"weight",
            reshape(
                cat({rows("proj.weight", {kOut, 1, kIn}), rows("gate.weight", {kOut, 1, kIn})}, 1),
                {2 * kOut, kIn})},
           {"bias", reshape(cat({rows("proj.bias", {kOut, 1}), rows("gate.bias", {kOut, 1})}, 1),
                            {2 * kOut})}}});
  test::expect_equivalent(model, sch, {randn({3, kIn})});
}

/// What is not read of a weight has no place in the joined one.
TEST(PermutingWeights, OfTheFirstRowsOfTwoModules) {
  struct Halves : nn::Module {
    Halves() : proj(add<nn::Linear>("proj", kIn, kOut)), gate(add<nn::Linear>("gate", kIn, kOut)) {}
    Tensor forward(T x) const { return narrow(proj(x), -1, 0, 4) * narrow(gate(x), -1, 0, 4); }
    nn::Child<nn::Linear> proj, gate;
  };
  struct Joined : nn::Module {
    Joined()
        : weight(register_parameter("weight", zeros({kOut, kIn}))),
          bias(register_parameter("bias", zeros({kOut}))) {}
    Tensor forward(T x) const {
      const Tensor y = linear(x, weight, bias);
      return narrow(y, -1, 0, 4) * narrow(y, -1, 4, 4);
    }
    Tensor weight, bias;
  };
  const auto first = [](const char* name) { return narrow(name, 0, 0, 4); };
  const auto model = test::initialized<Halves>();
  Schedule sch = create_schedule(model, {{"x", randn({3, kIn})}});
  const auto pattern = [](T x) {
    return narrow(call_module("proj", x), -1, 0, 4) * narrow(call_module("gate", x), -1, 0, 4);
  };
  sch.replace(nn::make<Joined>(), sch.find(pattern),
              {.weights = {{"weight", cat(first("proj.weight"), first("gate.weight"))},
                           {"bias", cat(first("proj.bias"), first("gate.bias"))}}});
  test::expect_equivalent(model, sch, {randn({3, kIn})});
}

TEST(PermutingWeights, WrongOnesAreRefused) {
  const auto model = test::initialized<Model>();
  Schedule sch = create_schedule(model, {{"x", randn({3, kIn})}});
  const Shape plain{kOut, kIn};
  const auto replace = [&](const WeightSource& weight) {
    sch.replace(nn::make<Permuted>(plain, as_is, as_is), sch.find("proj"),
                {.weights = {{"weight", weight}, {"bias", "proj.bias"}}});
  };
  test::expect_refused(sch, "its sources make", [&] { replace(narrow("proj.weight", 0, 0, 4)); });
  test::expect_refused(sch, "cannot be", [&] { replace(narrow("proj.weight", 0, 6, 4)); });
  test::expect_refused(sch, "cannot be", [&] { replace(transpose("proj.weight", 0, 7)); });
  test::expect_refused(sch, "cannot be", [&] { replace(reshape("proj.weight", {5, 5})); });
  test::expect_refused(sch, "does not split", [&] {
    replace(cat(split("proj.weight", 3, 0), split("proj.weight", 3, 1)));
  });
  // A map that fits, to the wrong places.
  replace(cat(narrow("proj.weight", 0, 4, 4), narrow("proj.weight", 0, 0, 4)));
  EXPECT_THROW(build(sch), VerificationError);
}

}  // namespace permuting_weights_test
}  // namespace tenon
