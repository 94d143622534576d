// Matches that no find on this Graph returned: made by hand, damaged, kept too long, given twice. Each
// primitive refuses them with a ScheduleError and changes nothing.
#include <gtest/gtest.h>

#include <functional>
#include <limits>

#include "tests/support/schedule_checks.h"

namespace tenon {
namespace hand_made_matches_test {

using test::expect_refused;
using T = const Tensor&;

/// Two Linears of one input, and a chain that has a fused op behind them.
struct Branches : nn::Module {
  Branches() : left(add<nn::Linear>("left", 4, 4)), right(add<nn::Linear>("right", 4, 4)) {}
  Tensor forward(T x) const { return tanh(left(x)) + gelu(right(x) * 2); }
  nn::Child<nn::Linear> left;
  nn::Child<nn::Linear> right;
};

Schedule branches() { return create_schedule(nn::make<Branches>(), {{"x", randn({3, 4})}}); }

Matches linears(const Schedule& sch) { return sch.find("left|right"); }

struct Primitive {
  const char* name;
  std::function<void(Schedule&, const Matches&)> apply;
  /// It also reads what a match takes and returns.
  bool reads_border = false;
};

std::vector<Primitive> primitives() {
  const auto same = [](T x) { return x * 1; };
  const auto all = [](T x) { return std::vector{x * 1, x * 2}; };
  return {
      {"replace each", [=](Schedule& s, const Matches& m) { s.replace(same, m); }, true},
      {"replace all", [=](Schedule& s, const Matches& m) { s.replace(all, m); }, true},
      {"replace by a module",
       [](Schedule& s, const Matches& m) { s.replace(nn::make<nn::Linear>(4, 4), m); }, true},
      {"fuse", [](Schedule& s, const Matches& m) { s.fuse(m); }, true},
      {"fuse_parallel", [](Schedule& s, const Matches& m) { s.fuse_parallel(m); }, true},
      {"decompose", [](Schedule& s, const Matches& m) { s.decompose(m); }},
      {"checkpoint", [](Schedule& s, const Matches& m) { s.checkpoint(m); }},
      {"bind", [](Schedule& s, const Matches& m) { s.bind(m, "cpu.gemm"); }},
      {"print", [](Schedule& s, const Matches& m) { s.print(m); }, true},
  };
}

struct Damage {
  const char* name;
  std::function<void(Subgraph&)> spoil;
  bool of_border = false;
};

std::vector<Damage> damages() {
  constexpr NodeId kHuge = std::numeric_limits<NodeId>::max();
  return {
      {"empty", [](Subgraph& m) { m = {}; }},
      {"no nodes", [](Subgraph& m) { m.nodes.clear(); }},
      {"nodes only",
       [](Subgraph& m) {
         const auto nodes = m.nodes;
         m = {};
         m.nodes = nodes;
       }},
      {"no operands", [](Subgraph& m) { m.operands.clear(); }},
      {"no names", [](Subgraph& m) { m.names.clear(); }},
      {"no operands and names",
       [](Subgraph& m) {
         m.operands.clear();
         m.names.clear();
       }},
      {"other operands", [](Subgraph& m) { m.operands[0].assign(7, 0); }},
      {"more nodes", [](Subgraph& m) { m.nodes.push_back(m.nodes[0] + 1); }},
      {"node not there", [](Subgraph& m) { m.nodes[0] = 1000; }},
      {"node huge", [=](Subgraph& m) { m.nodes[0] = kHuge; }},
      {"node none", [](Subgraph& m) { m.nodes[0] = kNone; }},
      {"node negative", [](Subgraph& m) { m.nodes[0] = std::numeric_limits<NodeId>::min(); }},
      {"other node", [](Subgraph& m) { m.nodes[0] += 1; }},
      {"input not there", [](Subgraph& m) { m.inputs = {1000}; }, true},
      {"input negative", [](Subgraph& m) { m.inputs = {-7}; }, true},
      {"no outputs", [](Subgraph& m) { m.outputs.clear(); }, true},
      {"output not there", [](Subgraph& m) { m.outputs = {1000}; }, true},
      {"output none", [](Subgraph& m) { m.outputs = {kNone}; }, true},
      {"output negative", [](Subgraph& m) { m.outputs = {-9}; }, true},
  };
}

TEST(HandMadeMatches, DamagedOnesAreRefused) {
  for (const Primitive& primitive : primitives()) {
    for (const Damage& damage : damages()) {
      if (damage.of_border && !primitive.reads_border) continue;
      const bool prints = std::string(primitive.name) == "print";
      if (prints && std::string(damage.name).starts_with("input")) continue;
      SCOPED_TRACE(std::string(primitive.name) + ", " + damage.name);
      Schedule sch = branches();
      const Matches found = linears(sch);
      ASSERT_EQ(found.size(), 2U);
      for (const bool last : {false, true}) {
        std::vector<Subgraph> matches(found.begin(), found.end());
        damage.spoil(matches[last ? 1 : 0]);
        expect_refused(sch, "refused", [&] { primitive.apply(sch, matches); });
      }
    }
  }
}

TEST(HandMadeMatches, OutputsThatTheMatchDoesNotMakeAreRefused) {
  for (const Primitive& primitive : primitives()) {
    if (!primitive.reads_border || std::string(primitive.name) == "print") continue;
    SCOPED_TRACE(primitive.name);
    Schedule sch = branches();
    const Matches found = linears(sch);
    std::vector<Subgraph> matches(found.begin(), found.end());
    matches[0].outputs = sch.graph().outputs();
    expect_refused(sch, "is a result of the match and not computed inside of it",
                   [&] { primitive.apply(sch, matches); });
    matches[0].outputs = matches[0].inputs;
    expect_refused(sch, "is", [&] { primitive.apply(sch, matches); });
  }
}

// An input that depends on the match would close a cycle.
TEST(HandMadeMatches, AnInputBehindTheMatchIsRefused) {
  Schedule sch = branches();
  Subgraph match = linears(sch)[0];
  match.inputs = {sch.graph().outputs()[0]};
  expect_refused(sch, "refused", [&] { sch.replace([](T x) { return x * 1; }, match); });
}

TEST(HandMadeMatches, OnesOfAnotherScheduleAreRefused) {
  const Schedule other =
      create_schedule(nn::make<nn::Sequential>(nn::make<nn::Linear>(4, 4), nn::make<nn::ReLU>(),
                                               nn::make<nn::Linear>(4, 4), nn::make<nn::Tanh>()),
                      {{"x", randn({3, 4})}});
  for (const Primitive& primitive : primitives()) {
    SCOPED_TRACE(primitive.name);
    Schedule sch = branches();
    expect_refused(sch, "refused", [&] {
      primitive.apply(sch, other.find([](const Node& node) { return node.op->name == "tanh"; }));
    });
  }
}

// After an undo, the same ids name what another primitive made.
TEST(HandMadeMatches, OnesMadeBeforeAnUndoAreRefused) {
  const auto tanh_of = [](const Schedule& sch) {
    return sch.find([](const Node& node) { return node.op->name == "tanh"; });
  };
  for (const Primitive& primitive : primitives()) {
    SCOPED_TRACE(primitive.name);
    Schedule sch = branches();
    sch.replace([](T x) { return log(exp(x)); }, tanh_of(sch));
    const auto of = [](const char* op) {
      return [=](const Node& node) { return node.op->name == op; };
    };
    const Matches logs = sch.find(of("log"));
    const Matches exps = sch.find(of("exp"));
    sch.undo();
    expect_refused(sch, "out of date", [&] { primitive.apply(sch, logs); });
    sch.replace([](T x) { return sin(cos(x)); }, tanh_of(sch));
    ASSERT_TRUE(sch.graph().has_node(logs[0].nodes[0])) << "ids are not used again";
    expect_refused(sch, "out of date", [&] { primitive.apply(sch, logs); });
    expect_refused(sch, "out of date", [&] { primitive.apply(sch, exps); });
  }
}

TEST(HandMadeMatches, AnAttributeChangedSinceIsNoticed) {
  Schedule sch = branches();
  const auto tanhs = [&] {
    return sch.find([](const Node& node) { return node.op->name == "tanh"; });
  };
  const auto softmaxes = [&] {
    return sch.find([](const Node& node) { return node.op->name == "softmax"; });
  };
  sch.replace([](T x) { return softmax(x, -1); }, tanhs());
  const Matches old = softmaxes();
  ASSERT_EQ(old.size(), 1U);
  sch.undo();
  sch.replace([](T x) { return softmax(x, 0); }, tanhs());
  expect_refused(sch, "out of date", [&] { sch.replace([](T x) { return x * 1; }, old); });
}

// --- the same node in two matches -----------------------------------------------------------------------

TEST(OverlappingMatches, AreRefused) {
  for (const Primitive& primitive : primitives()) {
    const std::string name = primitive.name;
    if (name == "bind" || name == "print") continue;
    SCOPED_TRACE(name);
    Schedule sch = branches();
    const Matches found = linears(sch);
    expect_refused(sch, "in two of the matches", [&] {
      primitive.apply(sch, std::vector{found[0], found[0]});
    });
    expect_refused(sch, "in two of the matches", [&] {
      primitive.apply(sch, std::vector{found[0], found[1], found[0]});
    });
    Subgraph twice = found[0];
    twice.nodes.push_back(twice.nodes[0]);
    twice.names.push_back(twice.names[0]);
    twice.operands.push_back(twice.operands[0]);
    expect_refused(sch, "in a match twice", [&] { primitive.apply(sch, twice); });
  }
}

TEST(OverlappingMatches, OfAChainAreRefused) {
  Schedule sch = branches();
  const Matches one = sch.find([](T x) { return gelu(x * 2); });
  const Matches all = sch.find([](T x, T w, T b) { return gelu(linear(x, w, b) * 2); });
  ASSERT_EQ(one.size(), 1U);
  ASSERT_EQ(all.size(), 1U);
  const std::vector<Subgraph> both{one[0], all[0]};
  expect_refused(sch, "in two of the matches", [&] { sch.checkpoint(both); });
  expect_refused(sch, "in two of the matches", [&] { sch.fuse(both); });
  Subgraph same_arity = all[0];
  same_arity.inputs = one[0].inputs;
  expect_refused(sch, "refused", [&] {
    sch.replace([](T x) { return x * 1; }, std::vector{one[0], same_arity});
  });
}

TEST(OverlappingMatches, MayBeBoundAndPrinted) {
  Schedule sch = branches();
  const Matches found = linears(sch);
  sch.bind(std::vector{found[0], found[0]}, "cpu.gemm");
  sch.print(std::vector{found[0], found[0]}, "twice");
  EXPECT_EQ(sch.applied().size(), 2U);
  build(sch);
}

// A match in front of another that is replaced first by something that does not read it.
TEST(OverlappingMatches, OneThatAnotherReplacementMadeDeadIsRefused) {
  Schedule sch = create_schedule(
      nn::make<nn::Sequential>(nn::make<nn::Tanh>(), nn::make<nn::Sigmoid>()), {randn({3})});
  const Matches tanhs = sch.find([](const Node& node) { return node.op->name == "tanh"; });
  const Matches sigmoids = sch.find([](const Node& node) { return node.op->name == "sigmoid"; });
  Subgraph last = sigmoids[0];
  last.inputs = sch.graph().inputs();  // not what it reads
  expect_refused(sch, "gone", [&] {
    sch.replace([](T x) { return x * 1; }, std::vector{last, tanhs[0]});
  });
}

// --- what a replacement returns ---------------------------------------------------------------------------

Matches tanhs(const Schedule& sch) {
  return sch.find([](const Node& node) { return node.op->name == "tanh"; });
}

TEST(ReturnedTensors, UndefinedIsRefused) {
  Schedule sch = branches();
  expect_refused(sch, "result 0", [&] { sch.replace([](T) { return Tensor(); }, tanhs(sch)); });
  expect_refused(sch, "result 1", [&] {
    sch.replace([](T x) { return std::vector{x * 1, Tensor()}; }, linears(sch));
  });
  expect_refused(sch, "refused",
                 [&] { sch.replace([](T) { return std::vector<Tensor>(); }, tanhs(sch)); });
}

TEST(ReturnedTensors, OneOfAnotherTraceIsRefused) {
  Schedule sch = branches();
  std::vector<Tensor> kept;
  const auto keep = [&](T x) {
    kept.push_back(x);
    kept.push_back(tanh(x));
    return kept.back();
  };
  sch.replace(keep, tanhs(sch));
  ASSERT_GE(kept.size(), 2U);
  // Builders of later traces may stand where those of earlier ones stood.
  for (const Tensor& old : std::vector<Tensor>(kept)) {
    expect_refused(sch, "another trace", [&] { sch.replace([=](T) { return old; }, tanhs(sch)); });
    expect_refused(sch, "another trace",
                   [&] { sch.replace([=](T x) { return x * old; }, tanhs(sch)); });
  }
  Schedule other = branches();
  for (const Tensor& old : kept) {
    expect_refused(other, "another trace",
                   [&] { other.replace([=](T) { return old; }, tanhs(other)); });
  }
  EXPECT_THROW(kept[0].to_doubles(), Error);
}

TEST(ReturnedTensors, AnInputOfTheMatchMayStandForIt) {
  struct Model : nn::Module {
    Tensor forward(T x) const { return exp(relu(relu(x))); }
  };
  const auto model = nn::make<Model>();
  Schedule sch = create_schedule(model, {{"x", randn({3, 4})}});
  const Matches relus = sch.find([](const Node& node) { return node.op->name == "relu"; });
  ASSERT_EQ(relus.size(), 2U);
  sch.replace([](T x) { return x; }, relus[1]);
  const Tensor x = randn({5, 4});
  EXPECT_EQ(test::max_difference(build(sch)(x), model(x)), 0);
}

TEST(ReturnedTensors, AnInputInPlaceOfAnOutputIsRefused) {
  Schedule sch = create_schedule(nn::make<nn::Sequential>(nn::make<nn::ReLU>()), {randn({3})});
  expect_refused(sch, "V19", [&] {
    sch.replace([](T x) { return x; },
                sch.find([](const Node& node) { return node.op->name == "relu"; }));
  });
}

TEST(ReturnedTensors, OneForTwoResultsIsRightOrRefused) {
  struct Twins : nn::Module {
    Tensor forward(T x) const { return exp(x * 2) + tanh(x * 2); }
  };
  const auto model = nn::make<Twins>();
  Schedule sch = create_schedule(model, {{"x", randn({3, 4})}});
  const Matches products = sch.find([](T x) { return x * 2; });
  ASSERT_EQ(products.size(), 2U);
  const auto doubled = [](T v) {
    const Tensor y = v + v;
    return std::vector{y, y};
  };
  sch.replace(doubled, products);
  const Tensor batch = randn({5, 4});
  EXPECT_LT(test::max_difference(build(sch)(batch), model(batch)), 1e-5);

  struct TwoOutputs : nn::Module {
    std::vector<Tensor> forward(T x) const { return {x * 2, x * 2}; }
  };
  Schedule apart = create_schedule(nn::make<TwoOutputs>(), {{"x", randn({3, 4})}});
  expect_refused(apart, "V19",
                 [&] { apart.replace(doubled, apart.find([](T x) { return x * 2; })); });
}

TEST(ReturnedTensors, AnEagerTensorIsAConstant) {
  struct Model : nn::Module {
    Tensor forward(T x) const { return x + relu(tensor({1.0, 2.0}, {2})); }
  };
  const auto model = nn::make<Model>();
  Schedule sch = create_schedule(model, {{"x", randn({3, 2})}});
  const Matches relus = sch.find([](const Node& node) { return node.op->name == "relu"; });
  ASSERT_EQ(relus.size(), 1U);
  sch.replace([c = tensor({1.0, 2.0}, {2})](T) { return c; }, relus);
  const Tensor x = randn({5, 2});
  EXPECT_EQ(test::max_difference(build(sch)(x), model(x)), 0);
}

TEST(ReturnedTensors, AModuleMayReturnItsParameter) {
  struct Model : nn::Module {
    Model() : gain(register_parameter("gain", ones({4}))) {}
    Tensor forward(T x) const { return x * (gain * 1); }
    Tensor gain;
  };
  struct Gain : nn::Module {
    Gain() : gain(register_parameter("gain", ones({4}))) {}
    Tensor forward(T) const { return gain; }
    Tensor gain;
  };
  const auto model = nn::make<Model>();
  Schedule sch = create_schedule(model, {{"x", randn({3, 4})}});
  const Matches products = sch.find([](T g) { return g * 1; });
  ASSERT_EQ(products.size(), 1U);
  sch.replace(nn::make<Gain>(), products);
  EXPECT_TRUE(sch.added_parameters().empty());
  const Tensor x = randn({5, 4});
  EXPECT_EQ(test::max_difference(build(sch)(x), model(x)), 0);
}

// --- absent operands -------------------------------------------------------------------------------------

/// Takes an optional second tensor.
struct Scale : nn::Module {
  Tensor forward(T x, T by) const { return by ? x * by : x * 2; }
};

TEST(AbsentOperands, AreHandedToTheReplacement) {
  struct Model : nn::Module {
    Model() : scale(add<Scale>("scale")) {}
    Tensor forward(T x) const { return relu(scale(x, Tensor())); }
    nn::Child<Scale> scale;
  };
  const auto model = nn::make<Model>();
  const Tensor x = randn({5, 4});
  const auto by_match = [&](Schedule& sch) { sch.replace(nn::make<Scale>(), sch.find("scale")); };
  const auto by_module = [&](Schedule& sch) { sch["scale"].replace(nn::make<Scale>()); };
  for (const auto& apply :
       {std::function<void(Schedule&)>(by_match), std::function<void(Schedule&)>(by_module)}) {
    Schedule sch = create_schedule(model, {{"x", randn({3, 4})}});
    apply(sch);
    EXPECT_EQ(test::max_difference(build(sch)(x), model(x)), 0);
  }
}

}  // namespace hand_made_matches_test
}  // namespace tenon
