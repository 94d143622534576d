// State writes: changes in place under the tracer become values that a run writes back, last.
#include <gtest/gtest.h>

#include "graph/executor.h"
#include "graph/verify.h"
#include "schedule/schedule.h"
#include "tensor/interpreter.h"
#include "tests/support/compare.h"
#include "tests/support/expect_error.h"
#include "tests/support/models.h"

namespace tenon {
namespace {

using test::function_model;
using test::max_difference;

std::size_t copies_in(Program& program) {
  std::size_t copies = 0;
  for (const InstructionInfo& info : program.instructions()) {
    copies += info.kernel.find("contiguous") != std::string::npos ||
              info.kernel.find("copy") != std::string::npos;
  }
  return copies;
}

TEST(StateWrite, ARunWritesBackAndReturnsTheOldRead) {
  const Tensor count = full({3}, 5);
  const auto model = function_model([count](const Tensor& x) {
    Tensor state = count;
    const Tensor before = state * 1.0;
    state.copy_(state + x);
    return before + state;  // the old value and the new one
  });
  const Schedule schedule = create_schedule(model, {ones({3})});
  EXPECT_EQ(max_difference(count, full({3}, 5)), 0) << "tracing changed the state";
  ASSERT_EQ(schedule.graph().writes().size(), 1U);
  Executor run(schedule.graph());
  const Tensor x = ones({3});
  EXPECT_EQ(run(x).to_vector<float>(), std::vector<float>(3, 11.0F));
  EXPECT_EQ(count.to_vector<float>(), std::vector<float>(3, 6.0F));
  EXPECT_EQ(run(x).to_vector<float>(), std::vector<float>(3, 13.0F));
  EXPECT_EQ(count.to_vector<float>(), std::vector<float>(3, 7.0F));
}

TEST(StateWrite, APointwiseUpdateWritesStraightIntoTheState) {
  const Tensor state = full({64}, 1);
  const auto model = function_model([state](const Tensor& x) {
    Tensor s = state;
    s.copy_(s + x);
    return x * 2.0;
  });
  Executor run(create_schedule(model, {ones({64})}).graph());
  const Tensor x[] = {ones({64})};
  EXPECT_EQ(copies_in(run.program(x)), 0U) << run.program(x).to_string();
  run.run(x);
  EXPECT_EQ(state.to_doubles(), std::vector<double>(64, 2.0));
}

TEST(StateWrite, AReadAfterTheUpdateSeesTheOldValue) {
  const Tensor state = full({64}, 1);
  const auto model = function_model([state](const Tensor& x) {
    Tensor s = state;
    const Tensor old = s.transpose(0, 0);  // a view that is read after the write was computed
    const Tensor result = old * x;
    s.copy_(s + x);
    return result + s;
  });
  Executor run(create_schedule(model, {ones({64})}).graph());
  EXPECT_EQ(run(full({64}, 3)).to_doubles(), std::vector<double>(64, 3 + 4.0));
  EXPECT_EQ(state.to_doubles(), std::vector<double>(64, 4.0));
}

TEST(StateWrite, TwoStatesSwap) {
  const Tensor a = full({4}, 1);
  const Tensor b = full({4}, 2);
  const auto model = function_model([a, b](const Tensor& x) {
    Tensor first = a;
    Tensor second = b;
    const Tensor old = first * 1.0;
    first.copy_(second);
    second.copy_(old);
    return x;
  });
  Executor run(create_schedule(model, {ones({4})}).graph());
  const Tensor x = ones({4});
  run(x);
  EXPECT_EQ(a.to_doubles(), std::vector<double>(4, 2.0));
  EXPECT_EQ(b.to_doubles(), std::vector<double>(4, 1.0));
  run(x);
  EXPECT_EQ(a.to_doubles(), std::vector<double>(4, 1.0));
}

TEST(StateWrite, ALoopOfChangesOfAComputedValueIsFunctional) {
  const auto model = function_model([](const Tensor& x) {
    Tensor sum = x * 0.0;
    for (int i = 0; i < 3; ++i) sum.add_(x);
    sum.mul_(2.0);
    return sum;
  });
  const Schedule schedule = create_schedule(model, {ones({4})});
  EXPECT_TRUE(schedule.graph().writes().empty());
  Executor run(schedule.graph());
  EXPECT_EQ(run(full({4}, 1.5)).to_doubles(), std::vector<double>(4, 9.0));
}

TEST(StateWrite, RefusesWhatWouldBreakAliases) {
  const auto view = function_model([](const Tensor& x) {
    Tensor y = (x * 2.0).narrow(0, 0, 2);
    y.mul_(3.0);
    return y;
  });
  EXPECT_ERROR(
      TraceError,
      "[copy_] under the tracer %narrow cannot be changed in place: it is a view; change a "
      "clone()",
      create_schedule(view, {ones({4})}));
  const auto base = function_model([](const Tensor& x) {
    Tensor y = x * 2.0;
    const Tensor part = y.narrow(0, 0, 2);
    y.mul_(3.0);
    return part;
  });
  EXPECT_ERROR(TraceError,
               "[copy_] under the tracer %mul cannot be changed in place: there are views of it; "
               "change a clone()",
               create_schedule(base, {ones({4})}));
  const auto input = function_model([](const Tensor& x) {
    Tensor y = x;
    y.mul_(3.0);
    return y;
  });
  EXPECT_ERROR(TraceError,
               "[copy_] under the tracer an input cannot be changed in place; change a clone()",
               create_schedule(input, {ones({4})}));
  const Tensor state = ones({4});
  const auto stale = function_model([state](const Tensor& x) {
    Tensor s = state;
    const Tensor part = s.narrow(0, 0, 2);
    s.copy_(x);
    return part * 1.0;
  });
  EXPECT_ERROR(TraceError,
               "mul reads a view of %constant_0, which was changed in place since; take the view "
               "again",
               create_schedule(stale, {ones({4})}));
}

TEST(StateWrite, GradModeOffIsRecordedAsDetach) {
  const auto model = function_model([](const Tensor& x) {
    const Tensor kept = x * 2.0;
    const NoGradGuard no_grad;
    return kept + x * 3.0;
  });
  const Graph graph = create_schedule(model, {ones({4})}).graph();
  int detached = 0;
  for (NodeId id : graph.order()) detached += graph.node(id).op->name == "detach";
  EXPECT_EQ(detached, 2);
  EXPECT_EQ(graph.node(graph.value(graph.outputs()[0]).producer).op->name, "detach");
}

TEST(StateWrite, TextNamesTheWrite) {
  const Tensor state = ones({4});
  const auto model = function_model([state](const Tensor& x) {
    Tensor s = state;
    s.copy_(s * x);
    return x;
  });
  const std::string text = to_text(create_schedule(model, {ones({4})}).graph());
  EXPECT_NE(text.find("  write %constant_0 <- %mul\n"), std::string::npos) << text;
}

}  // namespace
}  // namespace tenon
