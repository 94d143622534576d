// Guards of a trace in which a later call shows that two sizes are one: what earlier calls recorded of
// them stays true of the Graph, whether or not the later call is part of it.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <functional>

#include "graph/verify.h"
#include "schedule/schedule.h"
#include "tests/support/compare.h"
#include "tests/support/models.h"

namespace tenon {
namespace guards_test {

using Function = std::function<Tensor(const Tensor&, const Tensor&)>;

struct Case {
  const char* name;
  Function forward;
};

/// Each asks something of y's sizes; then a sum that nothing reads shows that they are x's.
const Case kCases[] = {
    {"NarrowFromTheEnd",
     [](const Tensor&, const Tensor& y) { return narrow(y, 0, -2, 0); }},
    {"NarrowByANumber", [](const Tensor&, const Tensor& y) { return narrow(y, 1, 1, 2); }},
    {"ViewOfAPart",
     [](const Tensor&, const Tensor& y) { return narrow(y, 0, 2, 2).reshape({-1}); }},
    {"ViewInPairs", [](const Tensor&, const Tensor& y) { return y.view({-1, 2}); }},
    {"ReshapeToNumbers", [](const Tensor&, const Tensor& y) { return y.reshape({6, 4}); }},
    {"Branch", [](const Tensor&, const Tensor& y) {
       return y.size(0) < y.size(1) ? y : narrow(y, 0, 1, y.size(0) - 1);
     }},
    {"Pool", [](const Tensor&, const Tensor& y) {
       return max_pool2d(y.view({1, 1, y.size(0), y.size(1)}), {3, 3}, {1, 1}, {0, 0});
     }},
    {"GatherOfAPart", [](const Tensor& x, const Tensor& y) {
       return gather(y, 1, cast(narrow(x * 0.0, 0, 0, 3), DType::int64));
     }},
    {"MaskedFillOfOneRow", [](const Tensor& x, const Tensor& y) {
       return masked_fill(x, gt(narrow(y, 0, 0, 1), 0), 2.0);
     }},
};

TEST(Guards, WhatALaterCallShowsLeavesEarlierOnesKnown) {
  const Tensor x = randn({4, 6});
  const Tensor y = randn({4, 6});
  for (const Case& c : kCases) {
    for (const bool used : {false, true}) {
      SCOPED_TRACE(fmt::format("{}, {}", c.name, used ? "used" : "not used"));
      const Function forward = [&](const Tensor& a, const Tensor& b) {
        const Tensor result = c.forward(a, b);
        const Tensor both = a + b;
        return used ? sum(result) + sum(both) : result;
      };
      const auto model = test::function_model(forward);
      const Schedule sch = create_schedule(model, {{"x", x}, {"y", y}});
      EXPECT_NO_THROW(verify(sch.graph()));
      EXPECT_EQ(test::max_difference(Executor(sch.graph())(x, y), forward(x, y)), 0);
      EXPECT_NO_THROW(build(create_schedule(model, {{"x", x}, {"y", y}})));
    }
  }
}

}  // namespace guards_test
}  // namespace tenon
