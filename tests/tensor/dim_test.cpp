// Dim and Scalar: arithmetic on symbolic sizes, unification, and the guards that conditions record.
#include "tensor/dim.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tensor/attrs.h"
#include "tensor/error.h"
#include "tests/support/expect_error.h"

namespace tenon {
namespace {

struct Symbols : ::testing::Test {
  std::shared_ptr<GuardList> guards = std::make_shared<GuardList>();
  Dim b = Dim::symbol("b", 2, guards);
  Dim s = Dim::symbol("s", 6, guards);
  std::vector<std::string> guard_texts() const {
    std::vector<std::string> texts;
    for (const DimGuard& guard : guards->guards) texts.push_back(guard.to_string());
    return texts;
  }
};

TEST_F(Symbols, ArithmeticIsCanonical) {
  EXPECT_TRUE((b * s).same_as(s * b));
  EXPECT_TRUE((b + s - b).same_as(s));
  EXPECT_TRUE(((b + 1) * (s - 1)).same_as(b * s - b + s - 1));
  EXPECT_TRUE((b * s * 1024 / (b * s * 16)).same_as(64));
  EXPECT_TRUE((b * s / s).same_as(b));
  EXPECT_EQ((b * s * 3 + 1).to_string(), "3*b*s + 1");
  EXPECT_TRUE(guards->guards.empty());
}

TEST_F(Symbols, InexactDivisionStaysAnExpression) {
  const Dim half = s / 4;
  EXPECT_EQ(half.to_string(), "((s)//(4))");
  EXPECT_EQ(half.hint(), 1);
  std::vector<std::int64_t> id;
  s.collect_symbols(id);
  EXPECT_EQ(half.evaluate({{id[0], 11}}), 2);
  EXPECT_EQ((s % 4).evaluate({{id[0], 11}}), 3);
  EXPECT_TRUE((s / 4).same_as(half));
}

TEST_F(Symbols, ConditionsAndNumbersRecordGuards) {
  EXPECT_EQ(s.value(), 6);
  EXPECT_TRUE(b == Dim(2));
  EXPECT_FALSE(b == Dim(3));
  EXPECT_TRUE(b < s);
  EXPECT_FALSE(s < b);
  EXPECT_EQ(guard_texts(),
            (std::vector<std::string>{"s == 6", "b == 2", "b != 3", "b < s", "b <= s"}));
  std::vector<std::int64_t> ids;
  b.collect_symbols(ids);
  s.collect_symbols(ids);
  EXPECT_TRUE(guards->guards[3].holds({{ids[0], 1}, {ids[1], 2}}));
  EXPECT_FALSE(guards->guards[3].holds({{ids[0], 2}, {ids[1], 2}}));
}

TEST_F(Symbols, WhatHoldsForAllSizesNeedsNoGuard) {
  EXPECT_TRUE(Dim(0) <= s);
  EXPECT_TRUE(s <= s * 2);
  EXPECT_TRUE(s <= s * 2 - s);
  EXPECT_TRUE(b < b + s + 1);
  EXPECT_FALSE(b + s < b);
  EXPECT_FALSE(s / 4 < Dim(0));
  EXPECT_TRUE(guards->guards.empty());
  EXPECT_TRUE(b < b + s);  // unless s is 0
  EXPECT_EQ(guard_texts(), std::vector<std::string>{"b < b + s"});
}

TEST_F(Symbols, UnifyBindsAndIsChecked) {
  EXPECT_FALSE(unify(b, s));
  EXPECT_TRUE(unify(s, 6));
  EXPECT_TRUE(s.is_constant());
  EXPECT_EQ((s * b).to_string(), "6*b");
  EXPECT_EQ(guard_texts(), std::vector<std::string>{"s == 6"});
  EXPECT_FALSE(unify(Dim(3), Dim(4)));
}

TEST_F(Symbols, EarlierGuardsFollowWhatUnifyBinds) {
  const Dim t = Dim::symbol("t", 6, guards);
  EXPECT_TRUE(Dim(2) <= t);
  EXPECT_TRUE(b < t);
  EXPECT_TRUE(s == t);
  EXPECT_TRUE(unify(s, t));
  const std::vector<std::string> expected = {"2 <= s", "b < s", "s == t"};
  EXPECT_EQ(guard_texts(), expected);
  EXPECT_TRUE(Dim(2) <= t);
  EXPECT_TRUE(Dim(0) <= s - 2) << "the same in another form";
  EXPECT_TRUE(b < s);
  EXPECT_EQ(guard_texts(), expected) << "asked again";
  EXPECT_TRUE(unify(s, 6));
  EXPECT_EQ(guard_texts(), (std::vector<std::string>{"2 <= 6", "b < 6", "6 == t", "s == 6"}));
}

TEST_F(Symbols, WhatASizeCannotBeStaysKnownWhenItIsADifference) {
  const Dim t = Dim::symbol("t", 4, guards);
  EXPECT_TRUE(unify(t, s - 2));
  EXPECT_EQ(guard_texts(), (std::vector<std::string>{"t == s - 2", "0 <= s - 2"}));
  EXPECT_TRUE(Dim(0) <= t);
  EXPECT_TRUE(b <= t + b);
  EXPECT_EQ(guards->guards.size(), 2U);
}

TEST_F(Symbols, TransactionUndoesGuardsAndBindings) {
  EXPECT_TRUE(b < s);
  {
    const GuardTransaction transaction(guards, {b, s});
    EXPECT_TRUE(unify(s, 6));
    EXPECT_EQ(transaction.recorded().size(), 1U);
    EXPECT_EQ(guard_texts(), (std::vector<std::string>{"b < 6", "s == 6"}));
  }
  EXPECT_FALSE(s.is_constant());
  EXPECT_EQ(guard_texts(), std::vector<std::string>{"b < s"});
}

TEST_F(Symbols, ScalarsKeepPowersOfSizes) {
  const Scalar scale = Scalar(1.0) / sqrt(s);
  EXPECT_FALSE(scale.is_constant());
  std::vector<std::int64_t> id;
  s.collect_symbols(id);
  EXPECT_EQ(scale.evaluate({{id[0], 64}}), 0.125);
  EXPECT_TRUE((scale * sqrt(s)).same_as(1.0));
  EXPECT_TRUE((sqrt(s) * sqrt(s)).same_as(Scalar(s)));
  EXPECT_TRUE(guards->guards.empty());
  EXPECT_TRUE(sqrt(Dim(64)).same_as(8.0));
  unify(s, 6);
  EXPECT_TRUE(scale.is_constant() || scale.same_as(1.0 / std::sqrt(6.0)));
}

TEST(Dim, ConstantsBehaveLikeIntegers) {
  EXPECT_EQ((Dim(7) / Dim(2)).value(), 3);
  EXPECT_EQ((Dim(-7) / Dim(2)).value(), -4);
  EXPECT_EQ((Dim(7) % Dim(4)).value(), 3);
  EXPECT_ERROR(ShapeError, "division of size 7 by zero", Dim(7) / Dim(0));
  EXPECT_THROW(Dim(std::int64_t{1} << 40) * Dim(std::int64_t{1} << 40), ShapeError);
}

TEST(Any, TravelsThroughNumbers) {
  for (int capture : {-1, 0, 5, 1000}) {
    const Any any(capture);
    for (const AttrValue& value :
         {AttrValue(static_cast<double>(any)), AttrValue(static_cast<std::int64_t>(any)),
          AttrValue(static_cast<Dim>(any)), AttrValue(static_cast<Scalar>(any))}) {
      EXPECT_TRUE(wildcard_info(value).is_wildcard);
      EXPECT_EQ(wildcard_info(value).capture, capture);
    }
  }
  EXPECT_FALSE(wildcard_info(AttrValue(std::nan(""))).is_wildcard);
  EXPECT_FALSE(wildcard_info(AttrValue(std::int64_t{-1})).is_wildcard);
}

}  // namespace
}  // namespace tenon
