// No elements, or one: every op eagerly and in Programs, forward and backward, and state that an empty
// batch must leave as it is.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <memory>

#include "graph/program.h"
#include "nn/nn.h"
#include "schedule/joint_graph.h"
#include "schedule/schedule.h"
#include "schedule/training.h"
#include "tensor/error.h"
#include "tests/support/empty_samples.h"
#include "tests/support/expect_error.h"
#include "tests/support/models.h"

namespace tenon::test {
namespace empty_contracts_test {

TEST(Empty, EveryOpAnswersEagerlyWithFiniteGradients) {
  for (const EmptySample& sample : empty_samples()) {
    for (const DType dtype : {DType::float32, DType::float64, DType::float16, DType::bfloat16}) {
      check_empty_sample(sample, dtype, kCpu);
    }
  }
}

struct SampleModel : nn::Module {
  explicit SampleModel(const EmptySample& s) : sample(s) {}
  Tensor forward(const std::vector<Tensor>& inputs) const { return sample.call(inputs); }
  const EmptySample& sample;
};

TEST(Empty, EveryOpAnswersInProgramsWithFiniteGradients) {
  for (const EmptySample& sample : empty_samples()) {
    SCOPED_TRACE(sample.name);
    const auto model = nn::make<SampleModel>(sample);
    const ForwardFunction forward = [&](std::span<const Tensor> inputs) {
      return std::vector{model(std::vector<Tensor>(inputs.begin(), inputs.end()))};
    };
    const Schedule sch =
        create_schedule(model.shared(), forward, {sample.inputs.begin(), sample.inputs.end()});
    const GradientGraph both = differentiate(sch.graph(), {});
    std::vector<Tensor> inputs = sample.inputs;
    if (!both.cotangents.empty()) inputs.push_back(ones(sample.shape));
    const std::vector<Tensor> results = Executor(both.graph).run(inputs, /*training=*/true);
    ASSERT_EQ(results.at(0).shape(), sample.shape);
    expect_all(results[0], sample.value, "result");
    for (std::size_t i = 1; i < results.size(); ++i) {
      // Gradients are those of the floating inputs that have one, in their order.
      const std::string input = both.outputs[i].substr(std::string("gradient of input ").size());
      const int number =
          input == "input" ? 0 : std::stoi(input.substr(std::string("input_").size()));
      const auto known = sample.gradients.find(number);
      expect_all(results[i], known == sample.gradients.end() ? 0 : known->second, both.outputs[i]);
    }
  }
}

TEST(Empty, ExtremaRefuse) {
  EXPECT_ERROR(ShapeError,
               "[amax] axis 1 of the input (3, 0) is empty; needed at least one element to reduce",
               amax(zeros({3, 0}), {1}));
  EXPECT_THROW(amin(zeros({0})), ShapeError);
  EXPECT_THROW(argmax(zeros({0})), ShapeError);
}

TEST(Empty, WhatEagerCodeRefusesATraceRefusesWithTheSameExample) {
  const std::pair<const char*, std::function<Tensor(const Tensor&)>> kCalls[] = {
      {"amax", [](const Tensor& x) { return amax(x, {-1}); }},
      {"amax of all", [](const Tensor& x) { return amax(x); }},
      {"amin", [](const Tensor& x) { return amin(x, {0, 1}, true); }},
      {"argmax", [](const Tensor& x) { return argmax(x, 1); }},
      {"argmax of all", [](const Tensor& x) { return argmax(x); }},
      {"view", [](const Tensor& x) { return x.view({-1, x.size(1)}); }},
      {"reshape", [](const Tensor& x) { return x.reshape({x.size(0), x.size(1), -1}); }},
      {"max_pool2d", [](const Tensor& x) {
         return max_pool2d(x.view({1, 1, 3, x.size(1)}), {1, 1}, {1, 1});
       }},
      {"narrow", [](const Tensor& x) { return narrow(x, 1, 0, 1); }}};
  for (const auto& [name, call] : kCalls) {
    SCOPED_TRACE(name);
    const Tensor x = zeros({3, 0});
    EXPECT_THROW(call(x), ShapeError);
    EXPECT_THROW(create_schedule(function_model(call), {x}), ShapeError);
    const auto unread = [&](const Tensor& input) {
      call(input);
      return input;
    };
    EXPECT_THROW(create_schedule(function_model(unread), {x}), ShapeError);
  }
}

TEST(Empty, AProgramRefusesExtremaAsEagerCodeDoes) {
  const auto largest = function_model([](const Tensor& x) { return amax(x, {1}); });
  const auto smallest = function_model([](const Tensor& x) { return amin(x); });
  const auto place = function_model([](const Tensor& x) { return argmax(x, -1, true); });
  const Tensor empty = zeros({3, 0});
  EXPECT_ERROR(ShapeError,
               "[amax] axis 1 of the input (3, 0) is empty; needed at least one element to reduce",
               Executor(create_schedule(largest, {ones({3, 2})}).graph())(empty));
  EXPECT_THROW(Executor(create_schedule(smallest, {ones({3, 2})}).graph())(empty), ShapeError);
  EXPECT_THROW(Executor(create_schedule(place, {ones({3, 2})}).graph())(empty), ShapeError);
}

const Shape kEmptyBatches[] = {{0, 3, 4, 4}, {2, 3, 0, 4}, {2, 3, 4, 0}, {0, 3, 0, 0}};

/// Statistics as they are after one batch, and not after none.
void expect_moved_once(const nn::BatchNorm2d& norm, const Tensor& mean, const Tensor& var) {
  EXPECT_EQ(norm.running_mean.to_doubles(), mean.to_doubles());
  EXPECT_EQ(norm.running_var.to_doubles(), var.to_doubles());
}

TEST(Empty, BatchNormsStatisticsStayAsTheyAre) {
  for (const DType dtype : {DType::float32, DType::float64, DType::float16, DType::bfloat16}) {
    for (const Shape& shape : kEmptyBatches) {
      SCOPED_TRACE(shape.to_string());
      const TensorOptions options{dtype, kCpu};
      const auto norm = nn::make<nn::BatchNorm2d>(3, 1e-5, 0.1, true, true, options);
      norm(randn({2, 3, 4, 4}, options) * 2.0 + 1.0);
      const Tensor mean = norm->running_mean.clone(), var = norm->running_var.clone();
      Tensor x = zeros(shape, options).requires_grad_();
      const Tensor y = norm(x);
      EXPECT_EQ(y.shape(), shape);
      expect_moved_once(*norm, mean, var);
      backward(sum(y));
      EXPECT_EQ(x.grad().shape(), shape);
      expect_all(norm->weight.grad(), 0, "weight");
      expect_all(norm->bias.grad(), 0, "bias");
    }
  }
}

TEST(Empty, BatchNormsStatisticsStayAsTheyAreInAProgram) {
  const auto norm = nn::make<nn::BatchNorm2d>(3);
  Executor run(create_schedule(norm, {randn({2, 3, 4, 4})}).graph());
  run.run(std::vector{randn({5, 3, 2, 2}) + 1.0}, /*training=*/true);
  const Tensor mean = norm->running_mean.clone(), var = norm->running_var.clone();
  EXPECT_NE(mean.to_doubles(), std::vector<double>(3, 0.0));
  for (const Shape& shape : kEmptyBatches) {
    const std::vector<Tensor> outputs = run.run(std::vector{zeros(shape)}, /*training=*/true);
    EXPECT_EQ(outputs.at(0).shape(), shape);
    expect_moved_once(*norm, mean, var);
  }
}

struct SmallNet : nn::Module {
  SmallNet()
      : conv(add<nn::Conv2d>("conv", 2, 3, 3, 1, 1)),
        norm(add<nn::BatchNorm2d>("norm", 3)),
        out(add<nn::Linear>("out", 3, 2)) {}
  Tensor forward(const Tensor& x) const { return out(mean(relu(norm(conv(x))), {2, 3})); }
  nn::Child<nn::Conv2d> conv;
  nn::Child<nn::BatchNorm2d> norm;
  nn::Child<nn::Linear> out;
};

TEST(Empty, ABatchOfNothingLeavesATrainingProgramsModelAsItIs) {
  for (const double max_grad_norm : {0.0, 1.0}) {
    const auto model = nn::make<SmallNet>();
    Schedule sch = create_schedule(model, {randn({2, 2, 4, 4})});
    TrainingStep step =
        build_training(sch, {.loss = [](auto outputs, auto) { return sum(square(outputs[0])); },
                             .optimizer = std::make_shared<nn::SGD>(
                                 model->named_parameters(), nn::SgdOptions{.lr = 0.1},
                                 nn::OptimizerOptions{max_grad_norm})});
    step.run({randn({3, 2, 4, 4})});
    const nn::StateDict before = model->state_dict();
    std::vector<std::vector<double>> values;
    for (const auto& [name, tensor] : before) values.push_back(tensor.to_doubles());
    EXPECT_EQ(step.run({zeros({0, 2, 4, 4})}).loss.item(), 0);
    std::size_t i = 0;
    for (const auto& [name, tensor] : model->state_dict()) {
      EXPECT_EQ(tensor.to_doubles(), values.at(i++)) << name;
    }
  }
}

TEST(Empty, OneValueAChannelIsRefusedAndMovesNoStatistics) {
  const auto norm = nn::make<nn::BatchNorm2d>(3);
  Executor run(create_schedule(norm, {randn({2, 3, 4, 4})}).graph());
  const std::string refusal = "[batch_norm] one value a channel in training; needed at least two";
  EXPECT_ERROR(ValueError, refusal, norm(ones({1, 3, 1, 1})));
  EXPECT_ERROR(ValueError, refusal, run.run(std::vector{ones({1, 3, 1, 1})}, /*training=*/true));
  expect_moved_once(*norm, zeros({3}), ones({3}));
  norm->eval();
  expect_all(norm(zeros({1, 3, 1, 1})), 0, "evaluation");
}

TEST(Empty, SecondDerivativesOfBatchNormAreEmpty) {
  Tensor x = zeros({0, 3, 2}, {DType::float64, kCpu}).requires_grad_();
  Tensor w = ones({3}, {DType::float64, kCpu}).requires_grad_();
  const Tensor y = sum(square(batch_norm(x, {}, {}, w, {}, DropoutMode::train)));
  const Tensor leaves[] = {x, w};
  const auto first = grad(std::span(&y, 1), leaves, {}, {.create_graph = true});
  const Tensor again = sum(square(first[0])) + sum(square(first[1]));
  for (const Tensor& second : grad(std::span(&again, 1), leaves, {}, {.allow_unused = true})) {
    if (second) expect_all(second, 0, "second");
  }
}

TEST(Empty, OptimizersAndClippingTakeParametersWithoutElements) {
  for (const DType dtype : {DType::float32, DType::float64, DType::float16, DType::bfloat16}) {
    const auto parameter = [&](const Shape& shape) {
      Tensor p = zeros(shape, {dtype, kCpu}).requires_grad_();
      p.set_grad(ones(shape, {dtype, kCpu}));
      return p;
    };
    const nn::Module::NamedTensors empty = {{"empty", parameter({0, 3})}};
    const nn::Module::NamedTensors both = {{"empty", parameter({0, 3})}, {"one", parameter({1})}};
    EXPECT_EQ(nn::clip_grad_norm_(empty, 1).item(), 0);
    EXPECT_EQ(nn::clip_grad_norm_(both, 10).item(), 1);
    EXPECT_EQ(nn::AdamW(empty, {}, {.max_grad_norm = 1}).step().item(), 0);
    EXPECT_EQ(nn::SGD(both, {.lr = 1, .momentum = 0.9}, {.max_grad_norm = 10}).step().item(), 1);
    EXPECT_EQ(both[1].second.item(), -1);
  }
}

}  // namespace empty_contracts_test
}  // namespace tenon::test
