// State writes: changes in place under the tracer become values that a run writes back, last.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "graph/executor.h"
#include "graph/tracer.h"
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

/// What two states, given as views of memory of their own kind, hold after `step`.
struct TwoStates {
  const char* what;
  Tensor (*step)(Tensor a, Tensor b, const Tensor& x);
};
const TwoStates kSteps[] = {
    {"both get one value",
     [](Tensor a, Tensor b, const Tensor& x) {
       const Tensor t = x * 2.0;
       a.copy_(t);
       b.copy_(t);
       return t + 1.0;
     }},
    {"one gets a value, the other a view of it",
     [](Tensor a, Tensor b, const Tensor& x) {
       const Tensor t = x * 2.0;
       a.copy_(t);
       b.copy_(t.transpose(0, 1));
       return x + 1.0;
     }},
    {"both get a value that is returned",
     [](Tensor a, Tensor b, const Tensor& x) {
       const Tensor t = x * 2.0;
       a.copy_(t);
       b.copy_(t);
       return t;
     }},
    {"a state gets its own transposed",
     [](Tensor a, Tensor b, const Tensor& x) {
       a.copy_(a.transpose(0, 1));
       b.add_(a);
       return a + x;
     }},
    {"each gets the other's transposed",
     [](Tensor a, Tensor b, const Tensor& x) {
       const Tensor t = (a + x).transpose(0, 1);
       a.copy_(b.transpose(0, 1));
       b.copy_(t);
       return t * 1.0;
     }},
    {"one is read before the other is changed",
     [](Tensor a, Tensor b, const Tensor& x) {
       const Tensor y = b + x;
       a.mul_(2.0);
       return y;
     }},
    {"one is set to zero, then to the other",
     [](Tensor a, Tensor b, const Tensor& x) {
       const Tensor y = a + x;
       a.zero_();
       a.add_(b);
       return y;
     }},
};

/// Two (4, 4) states in memory of one kind.
std::vector<Tensor> states_in(const std::string& memory) {
  const Tensor values = arange(64).view({4, 16});
  if (memory == "columns of one matrix") return {values.narrow(1, 0, 4), values.narrow(1, 4, 4)};
  const Tensor a = values.narrow(1, 0, 4) * 1.0;
  const Tensor b = values.narrow(1, 4, 4) * 1.0;
  if (memory == "transposed") return {a.transpose(0, 1), b.transpose(0, 1)};
  return {a, b};
}

TEST(StateWrite, AProgramLeavesInStatesOfAnyLayoutWhatEagerLeaves) {
  for (const std::string memory : {"dense", "columns of one matrix", "transposed"}) {
    for (const TwoStates& example : kSteps) {
      SCOPED_TRACE(std::string(example.what) + ", " + memory);
      std::vector<std::vector<double>> seen[2];
      for (const bool eager : {true, false}) {
        const std::vector<Tensor> s = states_in(memory);
        const auto model =
            function_model([&](const Tensor& x) { return example.step(s[0], s[1], x); });
        const Tensor x = arange(16).view({4, 4});
        Executor run(eager ? Graph() : create_schedule(model, {x}).graph());
        for (int i = 0; i < 2; ++i) {
          seen[eager].push_back((eager ? model(x) : run(x)).to_doubles());
          for (const Tensor& state : s) seen[eager].push_back(state.to_doubles());
        }
      }
      EXPECT_EQ(seen[0], seen[1]);
    }
  }
}

TEST(StateWrite, OfStatesThatShareMemoryOnlyTheChangedOneIsReadAfterwards) {
  const Tensor whole = arange(16).view({4, 4});
  const Tensor part = whole.narrow(0, 1, 2);
  const Tensor apart = whole.narrow(0, 3, 1);
  const auto traced = [&](auto f) { create_schedule(function_model(f), {ones({2, 4})}); };
  EXPECT_NO_THROW(traced([&](const Tensor& x) {
    const Tensor before = whole.narrow(0, 0, 2) * x;
    Tensor(part).add_(x);
    return before + part + apart;  // disjoint memory of one storage
  }));
  const auto stale = [&](const Tensor& x) {
    Tensor(part).add_(x);
    return whole.narrow(0, 0, 2) * x;
  };
  EXPECT_THROW(traced(stale), TraceError);
  const auto written = [&](const Tensor& x) {
    Tensor(whole).mul_(2.0);
    Tensor(part).add_(x);
    return x;
  };
  EXPECT_THROW(traced(written), TraceError);
}

TEST(StateWrite, ATensorMadeAndChangedInForwardIsMadeAnewByEachRun) {
  const auto model = function_model([](const Tensor& x) {
    Tensor sum = zeros({4});
    for (int i = 0; i < 3; ++i) sum.add_(x);
    return sum;
  });
  const Schedule sch = create_schedule(model, {ones({4})});
  EXPECT_TRUE(sch.graph().writes().empty());
  Executor run(sch.graph());
  for (int i = 0; i < 2; ++i) EXPECT_EQ(run(ones({4})).to_doubles(), std::vector<double>(4, 3.0));
}

TEST(StateWrite, ATensorMadeInForwardAndKeptByTheModelIsAState) {
  struct Counter : nn::Module {
    Tensor forward(const Tensor& x) {
      if (!count) count = zeros({2});
      count.add_(x);
      return count;
    }
    Tensor count;
  };
  const auto model = nn::make<Counter>();
  Executor run(create_schedule(model, {ones({2})}).graph());
  EXPECT_EQ(run(ones({2})).to_doubles(), std::vector<double>(2, 1.0));
  EXPECT_EQ(run(ones({2})).to_doubles(), std::vector<double>(2, 2.0));
  EXPECT_EQ(model->count.to_doubles(), std::vector<double>(2, 2.0));
}

TEST(StateWrite, AStateThatIsAlsoTheInputIsReadAsItWasBefore) {
  const Tensor state = full({4}, 1);
  const auto model = function_model([state](const Tensor& x) {
    Tensor s = state;
    s.mul_(3.0);
    return x + s;
  });
  Executor run(create_schedule(model, {ones({4})}).graph());
  EXPECT_EQ(run(state).to_doubles(), std::vector<double>(4, 4.0));
  EXPECT_EQ(state.to_doubles(), std::vector<double>(4, 3.0));
}

TEST(StateWrite, ChangesWithGradModeOffAreNotTakenForThoseOfAView) {
  const auto model = function_model([](const Tensor& x) {
    const NoGradGuard no_grad;
    Tensor y = x * 2.0;
    y.add_(x);
    return y;
  });
  Executor run(create_schedule(model, {ones({4})}).graph());
  EXPECT_EQ(run(ones({4})).to_doubles(), std::vector<double>(4, 3.0));
}

TEST(StateWrite, ReplayedWritesUseTheValuesBeforeAllWrites) {
  const Tensor a = full({2}, 1);
  const Tensor b = full({2}, 2);
  const auto model = function_model([a, b](const Tensor& x) {
    const Tensor old = a * 1.0;
    Tensor(a).copy_(b);
    Tensor(b).copy_(old);
    return x * 1.0;
  });
  Graph graph = create_schedule(model, {ones({2})}).graph();
  const ValueId old =
      graph.writes().at(1).value;  // as a rewrite would that knows 1 changes nothing
  graph.replace_all_uses(old, graph.node(graph.value(old).producer).inputs[0]);
  graph.eliminate_dead_code();
  Graph again = graph.without_nodes();
  GraphBuilder builder(again, SIZE_MAX, 0);
  {
    const InterpreterGuard guard(builder);
    const std::vector<Tensor> inputs = {builder.tensor(again.inputs()[0])};
    again.set_outputs({builder.value_of(builder.replay(graph, inputs).at(0), "return")});
  }
  Executor run(again);
  run(ones({2}));
  EXPECT_EQ(a.to_doubles(), std::vector<double>(2, 2.0));
  EXPECT_EQ(b.to_doubles(), std::vector<double>(2, 1.0));
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
