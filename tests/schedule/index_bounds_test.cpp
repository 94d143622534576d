// Trials of models that select by index: the Graph tells which integers an input may hold, so that a
// right schedule of small or odd tables is accepted and a wrong one is still seen.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "nn/nn.h"
#include "schedule/report.h"
#include "schedule/schedule.h"
#include "schedule/verification.h"
#include "tests/support/expect_error.h"

namespace tenon {
namespace index_bounds_test {

constexpr std::int64_t kHidden = 6;

using Forward = std::function<Tensor(const std::vector<Tensor>& inputs, const Tensor& table,
                                     const Tensor& other, const Tensor& numbers)>;

/// Two tables, integers that no one learns, and a Linear for a schedule to split.
struct Selecting : nn::Module {
  Selecting(std::int64_t rows, std::int64_t other_rows, Forward f)
      : table(add<nn::Embedding>("table", rows, kHidden)),
        other(add<nn::Embedding>("other", other_rows, kHidden)),
        numbers(register_buffer("numbers", arange(64, {DType::int64}))),
        out(add<nn::Linear>("out", kHidden, kHidden)),
        function(std::move(f)) {}
  Tensor forward(const Tensor& a) const { return run({a}); }
  Tensor forward(const Tensor& a, const Tensor& b) const { return run({a, b}); }
  Tensor run(const std::vector<Tensor>& inputs) const {
    return out(function(inputs, table->weight, other->weight, numbers));
  }
  nn::Child<nn::Embedding> table, other;
  Tensor numbers;
  nn::Child<nn::Linear> out;
  Forward function;
};

TensorSpec ints(const Shape& shape = {2, 5}, DType dtype = DType::int64) {
  return {dtype, shape, kCpu};
}
Tensor to_int64(const Tensor& t) { return cast(t, DType::int64); }

struct Case {
  const char* name;
  std::int64_t rows;
  std::int64_t other_rows;
  std::vector<ExampleInput> inputs;
  Forward forward;
};

std::vector<Case> direct_cases() {
  return {{"one row",
           1,
           1,
           {ints()},
           [](auto& in, auto& table, auto&, auto&) { return embedding(in[0], table); }},
          {"token types beside tokens",
           11,
           1,
           {ints(), ints()},
           [](auto& in, auto& table, auto& other, auto&) {
             return embedding(in[0], table) + embedding(in[1], other);
           }},
          {"two tables of one input",
           9,
           3,
           {ints()},
           [](auto& in, auto& table, auto& other, auto&) {
             return embedding(in[0], table) + embedding(in[0], other);
           }},
          {"cast from int32",
           2,
           1,
           {ints({2, 5}, DType::int32)},
           [](auto& in, auto& table, auto&, auto&) { return embedding(to_int64(in[0]), table); }},
          {"cast from uint8 by way of floats",
           3,
           1,
           {ints({2, 5}, DType::uint8)},
           [](auto& in, auto& table, auto&, auto&) {
             return embedding(to_int64(cast(in[0], DType::float32) * 2.0), table);
           }},
          {"parts of an input",
           4,
           1,
           {ints({3, 5})},
           [](auto& in, auto& table, auto& other, auto&) {
             return embedding(in[0].narrow(1, 0, 1), table) +
                    embedding(in[0].narrow(1, 1, 1), other);
           }},
          {"views, expand and cat",
           2,
           1,
           {ints(), ints()},
           [](auto& in, auto& table, auto&, auto&) {
             const Tensor both = cat({in[0].reshape({-1}), in[1].transpose(0, 1).reshape({-1})}, 0);
             return embedding(both.unsqueeze(0).expand({2, both.size(0)}), table);
           }},
          {"columns by index_select",
           3,
           1,
           {ints({4})},
           [](auto& in, auto& table, auto&, auto&) {
             const Tensor columns = index_select(table.transpose(0, 1), 1, in[0]);
             return columns.transpose(0, 1);
           }},
          {"index_select along the last axis",
           3,
           1,
           {ints({4})},
           [](auto& in, auto& table, auto&, auto&) {
             return index_select(table.transpose(0, 1).contiguous(), -1, in[0]).transpose(0, 1);
           }},
          {"gather", 2, 1, {ints({2, kHidden})}, [](auto& in, auto& table, auto&, auto&) {
             return gather(table, 0, in[0]);
           }}};
}

std::vector<Case> computed_cases() {
  const auto ids_after_padding = [](const Tensor& tokens) {
    const Tensor mask = to_int64(ne(tokens, 1));
    return cumsum(mask, 1) * mask + 1;
  };
  return {{"positions behind padding",
           20,
           12,
           {ints()},
           [=](auto& in, auto& table, auto& other, auto&) {
             return embedding(in[0], table) + embedding(ids_after_padding(in[0]), other);
           }},
          {"positions for the example's length only",
           20,
           7,
           {ints({1, 4})},
           [=](auto& in, auto& table, auto& other, auto&) {
             return embedding(in[0], table) + embedding(ids_after_padding(in[0]), other);
           }},
          {"stored positions and an offset",
           10,
           1,
           {ints()},
           [](auto& in, auto& table, auto&, auto& numbers) {
             return embedding(numbers.narrow(0, 0, 5) + in[0].narrow(1, 0, 1), table);
           }},
          {"stored positions, as many as rows",
           4,
           1,
           {ints({1, 3})},
           [](auto& in, auto& table, auto&, auto& numbers) {
             return embedding(numbers.narrow(0, 0, in[0].size(1)), table);
           }},
          {"numbers from one",
           4,
           1,
           {ints()},
           [](auto& in, auto& table, auto&, auto&) { return embedding(in[0] - 1, table); }},
          {"a distant offset",
           5,
           1,
           {ints()},
           [](auto& in, auto& table, auto&, auto&) { return embedding(in[0] - 5000, table); }},
          {"an offset into few rows",
           4,
           1,
           {ints()},
           [](auto& in, auto& table, auto&, auto&) { return embedding(in[0] + 2, table); }},
          {"numbers below zero",
           3,
           1,
           {ints()},
           [](auto& in, auto& table, auto&, auto&) { return embedding(in[0] + 5, table); }},
          {"mirrored",
           2,
           1,
           {ints()},
           [](auto& in, auto& table, auto&, auto&) { return embedding(in[0] * -1 + 1, table); }},
          {"a sum of two inputs",
           5,
           1,
           {ints(), ints({2, 5})},
           [](auto& in, auto& table, auto&, auto&) { return embedding(in[0] * 2 + in[1], table); }},
          {"where",
           2,
           1,
           {ints()},
           [](auto& in, auto& table, auto&, auto&) {
             return embedding(where(lt(in[0], 1), in[0], in[0] - 1), table);
           }},
          {"clamped",
           3,
           1,
           {ints()},
           [](auto& in, auto& table, auto&, auto&) {
             return embedding(where(gt(in[0], 2), zeros({}, {DType::int64}), in[0]), table);
           }},
          {"by a table of integers",
           4,
           1,
           {ints({4})},
           [](auto& in, auto& table, auto&, auto& numbers) {
             return embedding(index_select(numbers.narrow(0, 0, 6) - 1, 0, in[0]), table);
           }},
          {"where the largest is",
           3,
           1,
           {ints(), TensorSpec{DType::float32, {2, 3}, kCpu}},
           [](auto& in, auto& table, auto&, auto&) {
             return embedding(argmax(in[1], 1), table) + sum(embedding(in[0], table));
           }}};
}

/// The Linear split in two is right whatever is selected before.
void expect_accepted(const Case& c) {
  SCOPED_TRACE(c.name);
  const auto model = nn::make<Selecting>(c.rows, c.other_rows, c.forward);
  Schedule sch = create_schedule(model, c.inputs);
  sch["out"].decompose();
  const VerifyReport verified = verify(sch);
  EXPECT_TRUE(verified.ok()) << verified.to_string();
  EXPECT_TRUE(verified.notes.empty()) << verified.to_string();
  for (const TrialSummary& trial : verified.trials) {
    EXPECT_NE(verified.to_string().find(trial.name + ": "), std::string::npos);
    const auto compared = std::count_if(verified.results.begin(), verified.results.end(),
                                        [&](const Comparison& r) { return r.trial == trial.name; });
    EXPECT_GT(compared, 0) << trial.name;
  }
  EXPECT_NO_THROW(build(sch));
  const bool has_report = std::none_of(c.inputs.begin(), c.inputs.end(), [](const auto& input) {
    return is_floating(input.spec.dtype);
  });
  if (has_report) {
    EXPECT_NO_THROW(report(sch, {.runs = 1}));
  }
}

TEST(IndexBounds, OfTheTablesThatAnInputReaches) {
  for (const Case& c : direct_cases()) expect_accepted(c);
}

TEST(IndexBounds, OfIndicesThatAreComputed) {
  for (const Case& c : computed_cases()) expect_accepted(c);
}

/// A loss over `classes` inside the model, targets being an input.
struct Classifier : nn::Module {
  Classifier(std::int64_t classes, std::function<Tensor(const Tensor&, const Tensor&)> f)
      : tokens(add<nn::Embedding>("tokens", 5, kHidden)),
        out(add<nn::Linear>("out", kHidden, kHidden)),
        head(add<nn::Linear>("head", kHidden, classes, false)),
        loss(std::move(f)) {}
  Tensor forward(const Tensor& ids, const Tensor& targets) const {
    const Tensor hidden = out(tokens(ids));
    return fused ? linear_cross_entropy(hidden.reshape({-1, kHidden}), head->weight,
                                        targets.reshape({-1}))
                 : loss(head(hidden), targets);
  }
  nn::Child<nn::Embedding> tokens;
  nn::Child<nn::Linear> out, head;
  std::function<Tensor(const Tensor&, const Tensor&)> loss;
  bool fused = false;
};

TEST(IndexBounds, OfTargetsAreTheClasses) {
  const auto by_rows = [](const Tensor& logits, const Tensor& targets) {
    return cross_entropy(logits.reshape({-1, logits.size(-1)}), targets.reshape({-1}));
  };
  const auto along_axis_1 = [](const Tensor& logits, const Tensor& targets) {
    return cross_entropy(logits.transpose(1, 2), targets);
  };
  const auto ignoring = [](const Tensor& logits, const Tensor& targets) {
    const Tensor kept = where(gt(targets, 0), targets, full({}, -100, {DType::int64}));
    return cross_entropy(logits.reshape({-1, logits.size(-1)}), kept.reshape({-1}));
  };
  for (const std::int64_t classes : {1, 2, 3, 9}) {
    for (int kind = 0; kind < 4; ++kind) {
      const auto model =
          nn::make<Classifier>(classes, kind == 0   ? decltype(Classifier::loss)(by_rows)
                                        : kind == 1 ? decltype(Classifier::loss)(along_axis_1)
                                                    : decltype(Classifier::loss)(ignoring));
      model->fused = kind == 3;
      Schedule sch = create_schedule(model, {ints(), ints()});
      sch["out"].decompose();
      const VerifyReport verified = verify(sch);
      EXPECT_TRUE(verified.ok() && verified.notes.empty()) << classes << " " << kind << "\n"
                                                           << verified.to_string();
    }
  }
}

TEST(IndexBounds, AWrongRewriteOfASmallTableIsStillSeen) {
  for (const std::int64_t rows : {2, 3, 7}) {
    Schedule sch = create_schedule(nn::make<nn::Embedding>(rows, kHidden), {ints()});
    sch.replace(
        [](const Tensor& index, const Tensor& weight) { return embedding(index * 0, weight); },
        sch.find([](const Tensor& i, const Tensor& weight) { return embedding(i, weight); }));
    EXPECT_FALSE(verify(sch).ok()) << rows;
    EXPECT_THROW(build(sch), VerificationError) << rows;
  }
}

TEST(IndexBounds, ATableWithoutRowsIsRefused) {
  Schedule sch = create_schedule(nn::make<nn::Embedding>(0, kHidden), {ints()});
  const VerifyReport verified = verify(sch, {.whole = true});
  EXPECT_FALSE(verified.ok());
  const std::string text = verified.to_string();
  EXPECT_NE(text.find("; what it selects from has 0"), std::string::npos) << text;
}

/// The index is the place of the largest of two learned scores, and an input.
Tensor routed(const std::vector<Tensor>& in, const Tensor& table, const Tensor& other,
              const Tensor&) {
  const Tensor place = argmax(embedding(in[0], other), -1);
  return embedding(place * 0 + in[0], table);
}

TEST(IndexBounds, AreTriedOutWhereParametersDecide) {
  const auto model = nn::make<Selecting>(2, 9, routed);
  Schedule sch = create_schedule(model, {ints()});
  sch["out"].decompose();
  const VerifyReport verified = verify(sch);
  EXPECT_TRUE(verified.ok() && verified.notes.empty()) << verified.to_string();
  EXPECT_GT(verified.results.size(), 0U);
}

/// As many rows as the example has columns, without an integer input and without a guard.
TEST(IndexBounds, SizesThatTheModelRefusesGiveWayToTheExamples) {
  for (const std::int64_t rows : {1, 2, 4}) {
    const auto model =
        nn::make<Selecting>(rows, 1, [](auto& in, auto& table, auto&, auto& numbers) {
          return in[0] +
                 embedding(cumsum(numbers.narrow(0, 1, in[0].size(0)) * 0 + 1, 0) - 1, table);
        });
    Schedule sch = create_schedule(model, {TensorSpec{DType::float32, {rows, kHidden}, kCpu}});
    sch["out"].decompose();
    const VerifyReport verified = verify(sch);
    EXPECT_TRUE(verified.ok() && verified.notes.empty()) << verified.to_string();
    EXPECT_GT(verified.trials.size(), 4U) << verified.to_string();
  }
}

TEST(IndexBounds, WhatTheModelItselfRefusesIsNotedAndNoReasonToRefuse) {
  const auto model = nn::make<Selecting>(2, 9, [](auto& in, auto& table, auto& other, auto&) {
    return embedding(argmax(embedding(in[0], other), -1) * 0 + 2, table);
  });
  Schedule sch = create_schedule(model, {ints()});
  sch["out"].decompose();
  const VerifyReport verified = verify(sch, {.whole = true});
  EXPECT_TRUE(verified.ok()) << verified.to_string();
  EXPECT_TRUE(verified.results.empty());
  EXPECT_NE(verified.to_string().find("not compared on drawn inputs (eval), which the model itself "
                                      "refuses: [embedding] index 2 at position 0"),
            std::string::npos)
      << verified.to_string();
}

}  // namespace index_bounds_test
}  // namespace tenon
