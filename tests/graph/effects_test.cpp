// Ops with an effect in a Graph: kept by every pass, run once a run, in program order.
#include <gtest/gtest.h>

#include "graph/verify.h"
#include "nn/sgd.h"
#include "schedule/training.h"
#include "tensor/device_backend.h"
#include "tests/support/capture_print.h"
#include "tests/support/compare.h"
#include "tests/support/models.h"

namespace tenon {
namespace {

using test::CapturePrint;
using test::max_difference;
using Labels = std::vector<std::string>;

/// Prints a value that is used, one that nothing else needs, the output and an input.
struct Printing : nn::Module {
  Printing()
      : up(add<nn::Linear>("up", 4, 8)),
        watch(add<nn::Print>("watch", "up")),
        down(add<nn::Linear>("down", 8, 4)) {}
  Tensor forward(const Tensor& x) const {
    const Tensor hidden = relu(watch(up(x)));
    print(exp(hidden), "unused");
    const Tensor y = print(down(hidden), "output");
    print(x, "input");
    return y;
  }
  nn::Child<nn::Linear> up;
  nn::Child<nn::Print> watch;
  nn::Child<nn::Linear> down;
};
const Labels kOrder = {"up", "unused", "output", "input"};

class Effects : public ::testing::TestWithParam<DeviceType> {
 protected:
  void SetUp() override {
    if (!is_available(device())) GTEST_SKIP() << "no " << device().to_string() << " device";
    model->to(device());
  }
  Device device() const { return {GetParam(), 0}; }
  nn::Child<Printing> model = nn::make<Printing>();
};

int count(const Graph& graph, const char* op) {
  int found = 0;
  for (const NodeId id : graph.order()) found += graph.node(id).op->name == op;
  return found;
}

TEST_P(Effects, TracingRecordsThemAndPrintsNothing) {
  const CapturePrint capture;
  const Schedule sch = create_schedule(model, {randn({3, 4}).to(device())});
  EXPECT_EQ(capture.text(), "");
  EXPECT_EQ(count(sch.graph(), "print"), 4);
  EXPECT_EQ(count(sch.graph(), "exp"), 1) << "what is printed is computed";
  EXPECT_NO_THROW(verify(sch.graph()));
  Graph graph = sch.graph();
  const std::string before = to_text(graph);
  graph.eliminate_dead_code();
  EXPECT_EQ(to_text(graph), before);
}

TEST_P(Effects, RunOnceARunInProgramOrder) {
  const Schedule sch = create_schedule(model, {randn({3, 4}).to(device())});
  Executor run(sch.graph());
  const std::vector<Tensor> inputs = {randn({5, 4}).to(device())};
  for (const bool training : {false, true, false}) {
    const CapturePrint capture;
    const Tensor y = run.run(inputs, training).at(0);
    EXPECT_EQ(capture.labels(), kOrder);
    const CapturePrint eager;
    EXPECT_LT(max_difference(y, model(inputs[0])), 1e-6);
    EXPECT_EQ(eager.labels(), kOrder);
    EXPECT_EQ(eager.text(), capture.text()) << "the same values too";
  }
}

TEST_P(Effects, RunOnceATrainingStep) {
  const Schedule sch = create_schedule(model, {randn({3, 4}).to(device())});
  const LossFunction loss = [](auto outputs, auto) { return mean(square(outputs[0])); };
  const auto optimizer =
      std::make_shared<nn::SGD>(model->named_parameters(), nn::SgdOptions{.lr = 0.1});
  auto step = build_training(sch, {.loss = loss, .optimizer = optimizer, .verify = false});
  EXPECT_EQ(count(step.graph(), "print"), 4);
  for (int i = 0; i < 3; ++i) {
    const CapturePrint capture;
    step.run({randn({2, 4}).to(device())});
    EXPECT_EQ(capture.labels(), kOrder);
  }
}

TEST_P(Effects, StateIsPrintedAsItWasBeforeItsUpdate) {
  struct Counter : nn::Module {
    Counter() : steps(register_buffer("steps", zeros({2}))) {}
    Tensor forward(const Tensor& x) const {
      print(steps, "before");
      {
        const NoGradGuard no_grad;
        Tensor(steps).add_(ones({2}, {DType::float32, steps.device()}));
      }
      print(steps, "after");
      return x + steps;
    }
    Tensor steps;
  };
  const auto counter = nn::make<Counter>();
  counter->to(device());
  const Schedule sch = create_schedule(counter, {randn({2}).to(device())});
  Executor run(sch.graph());
  for (int i = 0; i < 2; ++i) {
    const CapturePrint capture;
    run(randn({2}).to(device()));
    const std::string now = std::to_string(i);
    const std::string next = std::to_string(i + 1);
    EXPECT_NE(capture.text().find("[" + now + ", " + now + "]\n"), std::string::npos);
    EXPECT_NE(capture.text().find("[" + next + ", " + next + "]\n"), std::string::npos);
    EXPECT_EQ(capture.labels(), (Labels{"before", "after"}));
  }
}

INSTANTIATE_TEST_SUITE_P(Devices, Effects, ::testing::Values(DeviceType::cpu, DeviceType::cuda),
                         [](const auto& device) {
                           return device.param == DeviceType::cpu ? "cpu" : "cuda";
                         });

}  // namespace
}  // namespace tenon
