// fold: batch norm in evaluation becomes part of the convolution or Linear in front of it, with the results
// and the parameters of the model; what it cannot hold is refused, the Graph as before.
#include <gtest/gtest.h>

#include <functional>

#include "graph/program.h"
#include "schedule/schedule.h"
#include "schedule/schedule_json.h"
#include "schedule/verification.h"
#include "tensor/device_backend.h"
#include "tests/support/compare.h"
#include "tests/support/expect_error.h"

namespace tenon {
namespace {

using test::max_difference;

int count(const Graph& graph, const std::string& op) {
  int found = 0;
  for (NodeId id : graph.order()) found += graph.node(id).op->name == op ? 1 : 0;
  return found;
}

Matches norms(const Schedule& sch) {
  return sch.find([](const Node& node) { return node.op->name == "batch_norm"; });
}

struct ConvCase {
  const char* name;
  std::int64_t in, out, kernel, stride, padding, dilation, groups;
  bool bias, affine;
  DType dtype = DType::float32;
};
std::ostream& operator<<(std::ostream& stream, const ConvCase& c) { return stream << c.name; }

struct ConvNorm : nn::Module {
  explicit ConvNorm(const ConvCase& c)
      : conv(add<nn::Conv2d>("conv", c.in, c.out, c.kernel, c.stride, c.padding, c.dilation,
                             c.groups, c.bias)),
        norm(add<nn::BatchNorm2d>("norm", c.out, 1e-3, 0.1, c.affine)) {
    const NoGradGuard no_grad;
    Tensor mean = norm->running_mean, var = norm->running_var;
    mean.copy_(randn({c.out}));
    var.copy_(exp(randn({c.out})));
    if (!c.affine) return;
    Tensor weight = norm->weight, bias = norm->bias;
    weight.copy_(randn({c.out}));
    bias.copy_(randn({c.out}));
  }
  Tensor forward(const Tensor& x) const { return relu(norm(conv(x))); }
  nn::Child<nn::Conv2d> conv;
  nn::Child<nn::BatchNorm2d> norm;
};

class Fold : public ::testing::TestWithParam<std::tuple<ConvCase, DeviceType>> {
 protected:
  void SetUp() override {
    const auto& [c, type] = GetParam();
    const Device device{type, 0};
    if (!is_available(device)) GTEST_SKIP() << "no " << device.to_string() << " device";
    model = nn::make<ConvNorm>(c);
    model->to(device, c.dtype);
    model->eval();
    x = randn({2, c.in, 9, 7}).to(c.dtype).to(device);
  }
  nn::Child<ConvNorm> model;
  Tensor x;
};

TEST_P(Fold, GivesTheModelsResultsAndFollowsItsState) {
  Schedule sch = create_schedule(model, {{"x", x}});
  sch.fold(norms(sch));
  EXPECT_EQ(count(sch.graph(), "batch_norm"), 0) << to_text(sch.graph());
  EXPECT_EQ(count(sch.graph(), "conv2d"), 1);
  const VerifyReport report = verify(sch);
  EXPECT_TRUE(report.ok()) << report.to_string();
  Executor run = build(sch, {.log = nullptr});
  const double tolerance = std::get<0>(GetParam()).dtype == DType::float32 ? 1e-4 : 0.15;
  EXPECT_LT(max_difference(run(x), model(x)), tolerance);
  {  // what was folded is made again where it changed
    const NoGradGuard no_grad;
    Tensor var = model->norm->running_var, weight = model->conv->weight;
    var.copy_(var * 4.0);
    weight.copy_(weight + 0.25);
  }
  EXPECT_LT(max_difference(run(x), model(x)), tolerance);
  EXPECT_LT(max_difference(run(x), model(x)), tolerance);
}

INSTANTIATE_TEST_SUITE_P(
    Convolutions, Fold,
    ::testing::Combine(
        ::testing::Values(ConvCase{"plain", 3, 8, 3, 1, 1, 1, 1, false, true},
                          ConvCase{"biased", 3, 8, 3, 2, 1, 1, 1, true, true},
                          ConvCase{"groups", 6, 9, 3, 1, 0, 2, 3, true, true},
                          ConvCase{"depthwise", 5, 5, 3, 1, 1, 1, 5, false, true},
                          ConvCase{"one_by_one", 8, 16, 1, 1, 0, 1, 1, false, true},
                          ConvCase{"not_affine", 4, 6, 3, 1, 1, 1, 1, true, false},
                          ConvCase{"bfloat16", 8, 16, 3, 1, 1, 1, 1, false, true, DType::bfloat16},
                          ConvCase{"float16", 8, 16, 3, 1, 1, 1, 1, true, true, DType::float16}),
        ::testing::Values(DeviceType::cpu, DeviceType::cuda)),
    [](const auto& info) {
      return std::string(std::get<0>(info.param).name) +
             (std::get<1>(info.param) == DeviceType::cpu ? "_cpu" : "_cuda");
    });

ConvCase plain() { return {"plain", 3, 8, 3, 1, 1, 1, 1, false, true}; }

nn::Child<ConvNorm> evaluated_model() {
  auto model = nn::make<ConvNorm>(plain());
  model->eval();
  return model;
}

TEST(FoldKept, WeightsAreFoldedOnceNotInEveryRun) {
  if (!is_available(kCuda)) GTEST_SKIP() << "kernels are counted on a GPU";
  const auto model = evaluated_model();
  model->to(kCuda);
  const Tensor x = randn({1, 3, 8, 8}).to(kCuda);
  Schedule unscheduled = create_schedule(model, {{"x", x}});
  Schedule sch = create_schedule(model, {{"x", x}});
  sch.fold(norms(sch));
  Executor before = build(unscheduled, {.verify = false, .log = nullptr});
  Executor after = build(sch, {.verify = false, .log = nullptr});
  const Tensor in[] = {x};
  EXPECT_LE(after.program(in).count_kernels(in), before.program(in).count_kernels(in));
}

TEST(FoldKept, LinearsFoldToo) {
  struct Model : nn::Module {
    Model() : up(add<nn::Linear>("up", 6, 10)), norm(add<nn::BatchNorm2d>("norm", 10)) {}
    Tensor forward(const Tensor& x) const { return norm(up(x)); }
    nn::Child<nn::Linear> up;
    nn::Child<nn::BatchNorm2d> norm;
  };
  auto model = nn::make<Model>();
  model->eval();
  {
    const NoGradGuard no_grad;
    Tensor mean = model->norm->running_mean;
    mean.copy_(randn({10}));
  }
  const Tensor x = randn({4, 6});
  Schedule sch = create_schedule(model, {{"x", x}});
  sch.fold(sch.find<nn::BatchNorm2d>());
  EXPECT_EQ(count(sch.graph(), "batch_norm"), 0);
  Executor run = build(sch, {.log = nullptr});
  EXPECT_LT(max_difference(run(x), model(x)), 1e-5);
}

TEST(FoldKept, UndoAndJsonBringItBack) {
  const auto model = evaluated_model();
  const Tensor x = randn({1, 3, 8, 8});
  Schedule sch = create_schedule(model, {{"x", x}});
  const std::string before = to_text(sch.graph());
  sch.fold(norms(sch));
  const std::string after = to_text(sch.graph());
  const std::string saved = save_schedule(sch);
  sch.undo();
  EXPECT_EQ(to_text(sch.graph()), before);
  EXPECT_FALSE(sch.graph().facts().held_mode());
  Schedule again = create_schedule(model, {{"x", x}});
  load_schedule(again, saved);
  EXPECT_EQ(to_text(again.graph()), after);
  EXPECT_EQ(again.graph().facts().held_mode(), false);
}

TEST(FoldKept, RunsInEvaluationOnly) {
  const auto model = evaluated_model();
  const Tensor x = randn({2, 3, 8, 8});
  Schedule sch = create_schedule(model, {{"x", x}});
  sch.fold(norms(sch));
  Executor run = build(sch, {.log = nullptr});
  const Tensor in[] = {x};
  run.run(in);
  EXPECT_THROW(run.run(in, /*training=*/true), StaleProgram);
}

TEST(FoldVerification, SeesAnotherEpsilon) {
  struct Pinned : nn::Module {
    Pinned() : inner(add<ConvNorm>("inner", plain())) {}
    Tensor forward(const Tensor& x) const {
      return batch_norm(inner->conv(x), inner->norm->running_mean, inner->norm->running_var,
                        inner->norm->weight, inner->norm->bias, DropoutMode::eval, 0.1, 1e-3);
    }
    nn::Child<ConvNorm> inner;
  };
  const auto model = nn::make<Pinned>();
  const auto verified_with = [&](double eps) {
    Schedule sch = create_schedule(model, {{"x", randn({2, 3, 8, 8})}});
    sch.trace({.flatten = true});
    const Matches found = sch.find([](const Tensor& x, const Tensor& f, const Tensor& mean,
                                      const Tensor& var, const Tensor& w, const Tensor& b) {
      return batch_norm(conv2d(x, f, {}, {1, 1}, {1, 1}), mean, var, w, b, DropoutMode::eval, 0.1,
                        1e-3);
    });
    EXPECT_EQ(found.size(), 1U);
    sch.replace(
        [eps](const Tensor& x, const Tensor& f, const Tensor& mean, const Tensor& var,
              const Tensor& w, const Tensor& b) {
          const Tensor scale = w * rsqrt(var + eps);
          return conv2d(x, f * reshape(scale, {f.size(0), 1, 1, 1}), b - mean * scale, {1, 1},
                        {1, 1});
        },
        found);
    return verify(sch).ok();
  };
  EXPECT_TRUE(verified_with(1e-3));
  EXPECT_FALSE(verified_with(1.1e-3));
}

/// A model that fold refuses, and what it says.
struct NearMiss {
  const char* name;
  std::function<Tensor(const ConvNorm&, const Tensor&)> forward;
  bool training;
  const char* text;
};
std::ostream& operator<<(std::ostream& stream, const NearMiss& miss) { return stream << miss.name; }

struct MissModel : nn::Module {
  explicit MissModel(const NearMiss& near_miss)
      : inner(add<ConvNorm>("inner", plain())), miss(near_miss) {}
  Tensor forward(const Tensor& x) const { return miss.forward(*inner, x); }
  nn::Child<ConvNorm> inner;
  NearMiss miss;
};

class FoldNearMiss : public ::testing::TestWithParam<NearMiss> {};

TEST_P(FoldNearMiss, IsRefusedWithTheReason) {
  auto model = nn::make<MissModel>(GetParam());
  model->train(GetParam().training);
  Schedule sch = create_schedule(model, {{"x", randn({2, 3, 8, 8})}});
  const std::string before = to_text(sch.graph());
  const std::string text = test::error_text<ScheduleError>([&] { sch.fold(norms(sch)); });
  EXPECT_NE(text.find(GetParam().text), std::string::npos) << text;
  EXPECT_EQ(to_text(sch.graph()), before);
  EXPECT_TRUE(sch.applied().empty());
}

INSTANTIATE_TEST_SUITE_P(
    Refused, FoldNearMiss,
    ::testing::Values(
        NearMiss{"training", [](const ConvNorm& m, const Tensor& x) { return m.norm(m.conv(x)); },
                 true, "call eval() on it"},
        NearMiss{"batch_statistics",
                 [](const ConvNorm& m, const Tensor& x) {
                   return batch_norm(m.conv(x), {}, {}, m.norm->weight, m.norm->bias);
                 },
                 false, "normalizes by its batch"},
        NearMiss{"read_elsewhere",
                 [](const ConvNorm& m, const Tensor& x) {
                   const Tensor y = m.conv(x);
                   return m.norm(y) + y;
                 },
                 false, "is read by"},
        NearMiss{"behind_relu",
                 [](const ConvNorm& m, const Tensor& x) { return m.norm(relu(m.conv(x))); }, false,
                 "needed a conv2d or linear"},
        NearMiss{"of_the_input",
                 [](const ConvNorm& m, const Tensor& x) {
                   return batch_norm(x, narrow(m.norm->running_mean, 0, 0, 3),
                                     narrow(m.norm->running_var, 0, 0, 3), {}, {},
                                     DropoutMode::eval);
                 },
                 false, "needed the result of a conv2d or linear"},
        NearMiss{"another_axis",
                 [](const ConvNorm& m, const Tensor& x) {
                   const Tensor y = linear(x, reshape(m.conv->weight, {27, 8}));
                   return batch_norm(y, narrow(m.norm->running_mean, 0, 0, 3),
                                     narrow(m.norm->running_var, 0, 0, 3), {}, {},
                                     DropoutMode::eval);
                 },
                 false, "the features of"},
        NearMiss{"computed_weight",
                 [](const ConvNorm& m, const Tensor& x) {
                   return m.norm(conv2d(x, m.conv->weight * mean(x), {}, {1, 1}, {1, 1}));
                 },
                 false, "which every run makes anew"}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(FoldNearMisses, AConvolutionThatIsReturned) {
  struct Two : nn::Module {
    Two() : inner(add<ConvNorm>("inner", plain())) {}
    std::vector<Tensor> forward(const Tensor& x) const {
      const Tensor y = inner->conv(x);
      return {inner->norm(y), y};
    }
    nn::Child<ConvNorm> inner;
  };
  auto model = nn::make<Two>();
  model->eval();
  Schedule sch = create_schedule(model, {{"x", randn({2, 3, 8, 8})}});
  const std::string text = test::error_text<ScheduleError>([&] { sch.fold(norms(sch)); });
  EXPECT_NE(text.find("is an output of the model"), std::string::npos) << text;
}

TEST(FoldNearMisses, MatchesWithoutABatchNorm) {
  const auto model = evaluated_model();
  Schedule sch = create_schedule(model, {{"x", randn({2, 3, 8, 8})}});
  const std::string text =
      test::error_text<ScheduleError>([&] { sch.fold(sch.find<nn::Conv2d>()); });
  EXPECT_NE(text.find("there is no batch_norm in conv"), std::string::npos) << text;
}

}  // namespace
}  // namespace tenon
