// Training steps whose optimizer holds frozen parameters, some of the parameters, or ones that the loss
// does not use: the same updates as an eager loop makes.
#include <gtest/gtest.h>

#include "nn/nn.h"
#include "tests/support/schedule_checks.h"

namespace tenon {
namespace frozen_parameters_test {

using T = const Tensor&;

struct Model : nn::Module {
  Model()
      : a(add<nn::Linear>("a", 4, 4)),
        b(add<nn::Linear>("b", 4, 4)),
        out(add<nn::Linear>("out", 4, 4)),
        unused(add<nn::Linear>("unused", 4, 4)) {}
  Tensor forward(T x) const { return out(tanh(a(x)) + b(x)); }
  nn::Child<nn::Linear> a, b, out, unused;
};

using MakeOptimizer = std::shared_ptr<nn::Optimizer> (*)(const nn::Module::NamedTensors&);

std::shared_ptr<nn::Optimizer> adamw(const nn::Module::NamedTensors& parameters) {
  return std::make_shared<nn::AdamW>(parameters, nn::AdamWOptions{.lr = 0.05, .weight_decay = 0.1});
}
std::shared_ptr<nn::Optimizer> clipped(const nn::Module::NamedTensors& parameters) {
  return std::make_shared<nn::AdamW>(parameters, nn::AdamWOptions{.lr = 0.05},
                                     nn::OptimizerOptions{.max_grad_norm = 0.1});
}
std::shared_ptr<nn::Optimizer> momentum(const nn::Module::NamedTensors& parameters) {
  return std::make_shared<nn::SGD>(parameters,
                                   nn::SgdOptions{.lr = 0.1, .momentum = 0.9, .weight_decay = 0.1});
}

struct Case {
  const char* name;
  std::vector<std::string> frozen;
  std::vector<std::string> held;  // by the optimizer; empty: all
  MakeOptimizer optimizer = adamw;
  int micro_batches = 1;
  bool late = false;  // frozen when the optimizer is there
  bool fused = false;
};

std::vector<Case> cases() {
  return {{"none frozen, one unused", {}, {}},
          {"one frozen", {"a"}, {}},
          {"one frozen, momentum", {"a"}, {}, momentum},
          {"one frozen, clipped", {"a", "unused"}, {}, clipped},
          {"one frozen, micro-batches", {"a"}, {}, momentum, 2},
          {"frozen late", {"out"}, {}, adamw, 1, true},
          {"frozen late, clipped", {"b", "unused"}, {}, clipped, 2, true},
          {"some held", {}, {"a", "out"}},
          {"some held, one of them frozen", {"out"}, {"a", "out"}, momentum},
          {"only frozen ones held", {"out"}, {"out"}, momentum},
          {"only an unused one held", {}, {"unused"}, momentum},
          {"both of a joined weight frozen", {"a", "b"}, {}, adamw, 1, false, true},
          {"behind a joined weight", {"out"}, {}, adamw, 2, false, true}};
}

nn::Module::NamedTensors held_by(nn::Module& model, const Case& c) {
  nn::Module::NamedTensors held;
  for (const auto& [name, tensor] : model.named_parameters()) {
    const std::string module = name.substr(0, name.find('.'));
    if (c.held.empty() || std::find(c.held.begin(), c.held.end(), module) != c.held.end()) {
      held.emplace_back(name, tensor);
    }
  }
  return held;
}

Tensor loss_of(std::span<const Tensor> outputs, std::span<const Tensor> targets) {
  return mse_loss(outputs[0], targets[0]);
}

TEST(FrozenParameters, TrainAsAnEagerLoopDoes) {
  for (const Case& c : cases()) {
    SCOPED_TRACE(c.name);
    const auto eager = test::initialized<Model>();
    const auto model = test::initialized<Model>();
    const auto freeze = [&](nn::Module& of) {
      for (const std::string& name : c.frozen) of.submodule(name).requires_grad_(false);
    };
    if (!c.late) {
      freeze(*eager);
      freeze(*model);
    }
    const auto eager_optimizer = c.optimizer(held_by(*eager, c));
    const auto optimizer = c.optimizer(held_by(*model, c));
    Schedule sch = create_schedule(model, {{"x", randn({3, 4})}});
    if (c.fused) sch.fuse_parallel(sch.find("a|b"));
    if (c.late) {
      freeze(*eager);
      freeze(*model);
    }
    TrainingStep step = build_training(sch, {.loss = loss_of,
                                             .targets = {{"y", randn({3, 4})}},
                                             .optimizer = optimizer,
                                             .micro_batches = c.micro_batches});
    Generator generator(5);
    for (int update = 0; update < 3; ++update) {
      for (int i = 0; i < c.micro_batches; ++i) {
        const Tensor x = randn({3, 4}, {}, &generator);
        const Tensor y = randn({3, 4}, {}, &generator);
        const Tensor out = eager(x);
        backward(loss_of({&out, 1}, {&y, 1}) / c.micro_batches);
        step.run({x, y});
      }
      eager_optimizer->step();
      for (auto& [name, tensor] : eager->named_parameters()) Tensor(tensor).set_grad(Tensor());
    }
    const auto state = model->state_dict();
    for (const auto& [name, tensor] : eager->named_parameters()) {
      EXPECT_LT(test::max_difference(model->parameter(name), tensor), 1e-5) << name;
    }
    const auto expected = eager_optimizer->state_tensors();
    const auto actual = optimizer->state_tensors();
    ASSERT_EQ(actual.size(), expected.size());
    for (std::size_t i = 0; i < actual.size(); ++i) {
      EXPECT_LT(test::max_difference(actual[i].second, expected[i].second), 1e-4)
          << actual[i].first;
    }
  }
}

TEST(FrozenParameters, FrozenSinceTheStepWasBuiltIsNoticed) {
  const auto model = test::initialized<Model>();
  TrainingStep step = build_training(create_schedule(model, {{"x", randn({3, 4})}}),
                                     {.loss = loss_of,
                                      .targets = {{"y", randn({3, 4})}},
                                      .optimizer = adamw(model->named_parameters())});
  step.run({randn({3, 4}), randn({3, 4})});
  model->submodule("a").requires_grad_(false);
  EXPECT_ERROR(StaleProgram,
               "parameter 'a.weight' was frozen since the training step was built; build it again",
               step.run({randn({3, 4}), randn({3, 4})}));
  model->submodule("a").requires_grad_(true);
  step.run({randn({3, 4}), randn({3, 4})});
}

TEST(FrozenParameters, NothingToDifferentiateIsRefused) {
  const auto model = test::initialized<Model>();
  model->requires_grad_(false);
  EXPECT_ERROR(ScheduleError,
               "build_training: the loss depends on no parameter that requires a gradient",
               build_training(create_schedule(model, {{"x", randn({3, 4})}}),
                              {.loss = loss_of,
                               .targets = {{"y", randn({3, 4})}},
                               .optimizer = adamw(model->named_parameters())}));
}

}  // namespace frozen_parameters_test
}  // namespace tenon
