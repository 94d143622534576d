// What training keeps between steps when a model is converted or moved: gradients, records that wait
// for backward, optimizer state and Programs; and that a refusal changes none of it.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "autograd/autograd.h"
#include "nn/nn.h"
#include "schedule/training.h"
#include "tensor/interpreter.h"
#include "tests/support/compare.h"
#include "tests/support/expect_error.h"
#include "tests/support/models.h"

namespace tenon::nn {
namespace training_state_test {

using test::function_model;
using test::max_difference;
using NamedTensors = Module::NamedTensors;

struct Weight : Module {
  explicit Weight(const Tensor& value) : weight(register_parameter("weight", value)) {}
  Tensor forward(const Tensor& x) const { return mul(x, weight); }
  Tensor weight;
};

void assign(const Tensor& target, const std::vector<double>& values) {
  const NoGradGuard no_grad;
  Tensor(target).copy_(tensor(values, target.shape(), {target.dtype()}));
}

// --- Module::to ---------------------------------------------------------------------------------

TEST(ModuleTo, GradientsFollowTheirParameters) {
  const auto model = make<Weight>(tensor({1, 2}, {2}));
  backward(sum(model(tensor({3, 4}, {2}))));
  model->to(DType::float64);
  ASSERT_TRUE(model->weight.grad());
  EXPECT_EQ(model->weight.grad().dtype(), DType::float64);
  backward(sum(model(tensor({1, 1}, {2}, {DType::float64}))));
  EXPECT_EQ(model->weight.grad().to_doubles(), (std::vector<double>{4, 5}));
  model->to(kCpu, DType::bfloat16);
  EXPECT_EQ(clip_grad_norm_(model->named_parameters(), 1e3).dtype(), DType::float32);
  EXPECT_EQ(model->weight.grad().dtype(), DType::bfloat16);
  SGD(model->named_parameters(), SgdOptions{.lr = 1}).step();
  EXPECT_EQ(model->weight.to_doubles(), (std::vector<double>{-3, -3}));
}

TEST(ModuleTo, AGradientThatHasARecordKeepsItsValues) {
  const auto model = make<Weight>(tensor({2}, {1}));
  Tensor x = tensor({3}, {1}).requires_grad_();
  backward(sum(square(model(x))), {}, {.create_graph = true});  // the gradient has a record itself
  model->to(DType::float64);
  EXPECT_EQ(model->weight.grad().to_doubles(), std::vector<double>{36});
  backward(sum(model(tensor({1}, {1}, {DType::float64}))));
  EXPECT_EQ(model->weight.grad().to_doubles(), std::vector<double>{37});
  x.set_grad({});  // its record leads back to x
}

/// What is done to a weight of 3 between forward and backward.
struct Change {
  const char* name;
  std::function<void(const Child<Weight>&)> apply;
};

std::vector<Change> changes() {
  const auto swap = [](const Tensor& value) {
    return [value](const Child<Weight>& m) { Tensor(m->weight).set_data_(value); };
  };
  const auto convert_and_write = [](DType dtype) {
    return [dtype](const Child<Weight>& m) {
      m->to(dtype);
      assign(m->weight, {100});
    };
  };
  return {{"to float64", [](const auto& m) { m->to(DType::float64); }},
          {"to bfloat16", [](const auto& m) { m->to(DType::bfloat16); }},
          {"to float64 and written", convert_and_write(DType::float64)},
          {"to bfloat16 and written", convert_and_write(DType::bfloat16)},
          {"there and back and written",
           [=](const auto& m) {
             m->to(DType::float64);
             convert_and_write(DType::float32)(m);
           }},
          {"set_data_", swap(tensor({100}, {1}))},
          {"set_data_ of another part of one storage", [](const auto& m) {
             const Tensor both = tensor({3, 100}, {2});
             Tensor(m->weight).set_data_(both.narrow(0, 1, 1));
           }}};
}

/// d/dw of x·w², which reads w, is 2·x·w.
TEST(ModuleTo, APendingBackwardReadsTheValuesThatForwardSaw) {
  for (const Change& change : changes()) {
    const auto model = make<Weight>(tensor({3}, {1}));
    const Tensor weight = model->weight;
    const Tensor loss = sum(mul(tensor({5}, {1}), square(weight)));
    change.apply(model);
    backward(loss);
    ASSERT_TRUE(weight.grad()) << change.name;
    EXPECT_EQ(weight.grad().item(), 30) << change.name;
    EXPECT_EQ(weight.grad().dtype(), weight.dtype()) << change.name;
  }
}

TEST(ModuleTo, APendingGradIsOfTheValuesThatForwardSaw) {
  for (const Change& change : changes()) {
    const auto model = make<Weight>(tensor({3}, {1}));
    const Tensor weight = model->weight;
    Tensor x = tensor({5}, {1}).requires_grad_();
    const Tensor y = sum(square(model(x)));
    change.apply(model);
    const Tensor wanted[] = {x, weight};
    const auto gradients = grad(std::span(&y, 1), wanted);
    EXPECT_EQ(gradients[0].item(), 2 * 5 * 9) << change.name;
    EXPECT_EQ(gradients[1].item(), 2 * 25 * 3) << change.name;
  }
}

TEST(ModuleTo, AGradientOfAGradientAcrossAConversionIsRefused) {
  const auto model = make<Weight>(tensor({3}, {1}));
  const Tensor y = sum(square(model->weight) * model->weight);
  model->to(DType::float64);
  EXPECT_ERROR(ValueError,
               "backward of [mul] with create_graph needs its operand 'other', whose data was "
               "replaced since forward (by to(), set_data_() or packing); run forward again",
               backward(y, {}, {.create_graph = true}));
  EXPECT_FALSE(model->weight.grad());
}

TEST(ModuleTo, APendingBackwardIntoAnotherShapeIsRefused) {
  Tensor weight = tensor({3}, {1}).requires_grad_();
  Tensor other = tensor({2}, {1}).requires_grad_();
  const Tensor loss = sum(weight * other);
  weight.set_data_(zeros({2}));
  EXPECT_ERROR(ValueError,
               "backward: a gradient float32(1,) for a leaf that is float32(2,) now: its data was "
               "replaced since forward; run forward again",
               backward(loss));
  EXPECT_FALSE(weight.grad());
  EXPECT_FALSE(other.grad());
}

TEST(ModuleTo, PackingBetweenForwardAndBackwardChangesNoGradient) {
  struct Pair : Module {
    Pair() : q(add<Linear>("q", 3, 3)), k(add<Linear>("k", 3, 3)) {}
    Tensor forward(const Tensor& x) const { return q(x) + k(x); }
    Child<Linear> q, k;
  };
  const auto model = make<Pair>();
  Tensor x = randn({2, 3}).requires_grad_();
  const Tensor loss = sum(square(model(x)));
  const Tensor expected =
      grad(std::span(&loss, 1), std::span(&x, 1), {}, {.retain_graph = true})[0];
  Schedule sch = create_schedule(model, {{"x", x}});
  sch.fuse_parallel(sch.find("[qk]"));
  build(sch);
  assign(model->q->weight, std::vector<double>(9, 7));
  backward(loss);
  EXPECT_EQ(max_difference(x.grad(), expected), 0);
}

TEST(ModuleTo, ARefusedConversionLeavesGradientsAlone) {
  const auto model = make<Weight>(tensor({3}, {1}));
  backward(sum(model(tensor({5}, {1}))));
  const Tensor before = model->weight.grad();
  EXPECT_THROW(model->to(Device{DeviceType::cuda, 1000}), DeviceError);
  EXPECT_THROW(model->to(DType::int64), DTypeError);
  EXPECT_TRUE(model->weight.grad().is_same(before));
}

// --- optimizers made before a conversion --------------------------------------------------------

using MakeOptimizer = std::function<std::shared_ptr<Optimizer>(const NamedTensors&, bool masters)>;
struct Kind {
  const char* name;
  MakeOptimizer make;
};

const std::vector<Kind>& kinds() {
  static const std::vector<Kind> list = {
      {"SGD",
       [](const NamedTensors& p, bool masters) {
         return std::make_shared<SGD>(p, SgdOptions{.lr = 0.01},
                                      OptimizerOptions{.master_weights = masters});
       }},
      {"SGD with momentum",
       [](const NamedTensors& p, bool masters) {
         return std::make_shared<SGD>(p, SgdOptions{.lr = 0.01, .momentum = 0.9},
                                      OptimizerOptions{.master_weights = masters});
       }},
      {"AdamW with clipping", [](const NamedTensors& p, bool masters) {
         return std::make_shared<AdamW>(
             p, AdamWOptions{.lr = 0.01},
             OptimizerOptions{.max_grad_norm = 0.5, .master_weights = masters});
       }}};
  return list;
}

std::vector<double> quarter_steps(double first) { return {first, -first, first / 2, -first / 4}; }

void step_once(const Tensor& weight, Optimizer& optimizer, double scale) {
  Tensor(weight).set_grad(tensor(quarter_steps(scale), {4}, {weight.dtype()}));
  optimizer.step();
  optimizer.zero_grad();
  EXPECT_FALSE(weight.grad());
}

/// Steps before and after a conversion are those of an optimizer that was made afterwards and given
/// the state: what float32 keeps, and master weights of 16-bit parameters, as if made for them.
TEST(OptimizerAfterTo, StepsAsOneThatWasMadeForTheNewDtype) {
  const DType dtypes[] = {DType::float32, DType::bfloat16, DType::float16, DType::float64};
  for (const Kind& kind : kinds()) {
    for (const DType from : dtypes) {
      for (const DType to : dtypes) {
        for (const bool masters : {true, false}) {
          for (const int steps_before : {0, 2}) {
            SCOPED_TRACE(std::string(kind.name) + " " + std::string(name(from)) + " to " +
                         std::string(name(to)) + (masters ? " masters" : "") + " after " +
                         std::to_string(steps_before));
            const auto model = make<Weight>(tensor({1, 2, -1, 0.5}, {4}, {from}));
            const auto optimizer = kind.make(model->named_parameters(), masters);
            for (int i = 0; i < steps_before; ++i) step_once(model->weight, *optimizer, 0.5);
            model->to(to);

            const auto fresh = make<Weight>(model->weight.clone());
            const auto made_after = kind.make(fresh->named_parameters(), masters);
            // Masters of another 16-bit dtype are kept: they say more than the parameter.
            ASSERT_TRUE(made_after->load_state_dict(optimizer->state_dict()).ok());
            for (int i = 0; i < 3; ++i) {
              step_once(model->weight, *optimizer, 0.25);
              step_once(fresh->weight, *made_after, 0.25);
            }
            EXPECT_EQ(max_difference(model->weight, fresh->weight), 0);
            const StateDict state = optimizer->state_dict();
            EXPECT_EQ(state.size(), made_after->state_dict().size());
            for (const auto& [name, value] : made_after->state_dict()) {
              EXPECT_EQ(value.dtype(), state.at(name).dtype()) << name;
              EXPECT_EQ(max_difference(value, state.at(name)), 0) << name;
            }
          }
        }
      }
    }
  }
}

TEST(OptimizerAfterTo, AFloat32ParameterIsNotRoundedToTheDtypeItHad) {
  const auto model = make<Weight>(tensor({1}, {1}, {DType::bfloat16}));
  SGD optimizer(model->named_parameters(), SgdOptions{.lr = 0.001});
  model->to(DType::float32);
  for (int i = 0; i < 3; ++i) optimizer.update(std::vector{ones({1})});
  EXPECT_NEAR(model->weight.item(), 0.997, 1e-6);
  EXPECT_FALSE(optimizer.state_dict().contains("master.weight"));
}

TEST(OptimizerAfterTo, HandlesOfStateFollow) {
  const auto model = make<Weight>(tensor({1}, {1}));
  SGD optimizer(model->named_parameters(), SgdOptions{.lr = 0.5, .momentum = 0.5});
  const Tensor momentum = optimizer.state_dict().at("momentum_buffer.weight");
  model->to(DType::float64);
  optimizer.update(std::vector{ones({1}, {DType::float64})});
  EXPECT_EQ(momentum.dtype(), DType::float64);
  EXPECT_EQ(momentum.item(), 1);
}

TEST(OptimizerAfterTo, TiedParametersStayTiedAndBuffersKeepTheirDtype) {
  struct Tied : Module {
    Tied()
        : first(add<Linear>("first", 2, 2)),
          second(add<Linear>("second", first->weight)),
          steps(register_buffer("steps", zeros({1}, {DType::int64}))) {}
    Tensor forward(const Tensor& x) const { return second(first(x)); }
    Child<Linear> first, second;
    Tensor steps;
  };
  const auto model = make<Tied>();
  AdamW optimizer(model->named_parameters(), AdamWOptions{.lr = 0.1});
  model->to(DType::bfloat16);
  backward(sum(square(model(ones({1, 2}, {DType::bfloat16})))));
  optimizer.step();
  EXPECT_TRUE(model->first->weight.is_same(model->second->weight));
  EXPECT_EQ(model->steps.dtype(), DType::int64);
  EXPECT_EQ(max_difference(optimizer.state_dict().at("master.first.weight").to(DType::bfloat16),
                           model->first->weight),
            0);
}

TEST(OptimizerAfterTo, TwoOptimizersOfOneParameterBothFollow) {
  const auto model = make<Weight>(tensor({1}, {1}));
  SGD first(model->named_parameters(), SgdOptions{.lr = 0.25});
  SGD second(model->named_parameters(), SgdOptions{.lr = 0.5, .momentum = 0.5});
  first.update(std::vector{ones({1})});
  model->to(DType::float64);
  first.update(std::vector{ones({1}, {DType::float64})});
  second.update(std::vector{ones({1}, {DType::float64})});
  EXPECT_EQ(model->weight.item(), 0);
}

TEST(OptimizerAfterTo, StateIsSavedAndLoadedForTheNewDtype) {
  const auto model = make<Weight>(tensor({1, 2, -1, 0.5}, {4}));
  AdamW optimizer(model->named_parameters(), AdamWOptions{.lr = 0.01});
  step_once(model->weight, optimizer, 0.5);
  model->to(DType::bfloat16);
  const StateDict state = optimizer.state_dict();  // before any step
  EXPECT_TRUE(state.contains("master.weight"));
  const auto other = make<Weight>(model->weight.clone());
  AdamW resumed(other->named_parameters(), AdamWOptions{.lr = 0.01});
  EXPECT_TRUE(resumed.load_state_dict(state).ok());
  const auto third = make<Weight>(tensor({1, 2, -1, 0.5}, {4}));
  AdamW made_before(third->named_parameters(), AdamWOptions{.lr = 0.01});
  third->to(DType::bfloat16);
  EXPECT_TRUE(made_before.load_state_dict(state).ok());
  assign(third->weight, model->weight.to_doubles());
  step_once(model->weight, optimizer, 0.5);
  step_once(other->weight, resumed, 0.5);
  step_once(third->weight, made_before, 0.5);
  EXPECT_EQ(max_difference(model->weight, other->weight), 0);
  EXPECT_EQ(max_difference(model->weight, third->weight), 0);
}

TEST(OptimizerAfterTo, RefreshedMasterWeightsAreThoseOfTheNewDtype) {
  const auto model = make<Weight>(tensor({1}, {1}));
  SGD optimizer(model->named_parameters(), SgdOptions{.lr = 1});
  model->to(DType::bfloat16);
  assign(model->weight, {8});
  optimizer.refresh_master_weights();
  optimizer.update(std::vector{ones({1}, {DType::bfloat16})});
  EXPECT_EQ(model->weight.item(), 7);
}

// --- refusals -----------------------------------------------------------------------------------

/// Bits of everything that a step may change.
std::vector<std::pair<std::string, std::string>> snapshot(const NamedTensors& parameters,
                                                          const Optimizer& optimizer) {
  std::vector<std::pair<std::string, std::string>> result;
  const auto note = [&](const std::string& name, const Tensor& tensor) {
    result.emplace_back(name, tensor.to_string());
  };
  for (const auto& [name, parameter] : parameters) {
    note(name, parameter);
    note("gradient of " + name, parameter.grad());
  }
  for (const auto& [name, tensor] : optimizer.state_dict()) note(name, tensor);
  return result;
}

struct Refusal {
  const char* name;
  std::function<std::vector<Tensor>(const std::vector<Tensor>& good)> spoil;
};

/// The first gradients are good: what is refused is the last parameter's, in another group.
const std::vector<Refusal>& refusals() {
  const auto last = [](const std::function<Tensor(const Tensor&)>& change) {
    return [change](std::vector<Tensor> gradients) {
      gradients.back() = change(gradients.back());
      return gradients;
    };
  };
  static const std::vector<Refusal> list = {
      {"shape", last([](const Tensor& g) { return zeros({5}, {g.dtype()}); })},
      {"rank", last([](const Tensor& g) { return g.unsqueeze(0); })},
      {"integers", last([](const Tensor& g) { return g.to(DType::int64); })},
      {"wider dtype", last([](const Tensor& g) { return g.to(DType::float64); })},
      {"too few", [](std::vector<Tensor> gradients) {
         gradients.pop_back();
         return gradients;
       }}};
  return list;
}

TEST(RefusedStep, ChangesNothing) {
  for (const DType dtype : {DType::float32, DType::bfloat16}) {
    for (const bool clips : {false, true}) {
      for (const bool converted : {false, true}) {
        const DType made = converted ? DType::float64 : dtype;
        const auto a = make<Weight>(tensor({1, 2}, {2}, {made}));
        const auto b = make<Weight>(tensor({3}, {1}, {DType::bfloat16}));
        const NamedTensors parameters = {{"a", a->weight}, {"b", b->weight}};
        AdamW optimizer({{{parameters[0]}, AdamWOptions{.lr = 0.1}},
                         {{parameters[1]}, AdamWOptions{.lr = 0.2}}},
                        {.max_grad_norm = clips ? 1.0 : 0.0});
        if (converted) a->to(dtype);
        const std::vector<Tensor> good = {tensor({1, -1}, {2}, {dtype}),
                                          tensor({1}, {1}, {DType::bfloat16})};
        optimizer.update(good);
        const auto before = snapshot(parameters, optimizer);
        for (const Refusal& refusal : refusals()) {
          EXPECT_THROW(optimizer.update(refusal.spoil(good)), Error) << refusal.name;
          EXPECT_EQ(snapshot(parameters, optimizer), before) << refusal.name;
        }
        if (clips) {
          EXPECT_THROW(optimizer.update(std::vector{good[0], Tensor()}), ValueError);
          EXPECT_EQ(snapshot(parameters, optimizer), before);
        }
      }
    }
  }
}

TEST(RefusedStep, RightAfterAConversionChangesNothing) {
  const auto model = make<Weight>(tensor({1, 2}, {2}));
  AdamW optimizer(model->named_parameters(), AdamWOptions{.lr = 0.1});
  optimizer.update(std::vector{tensor({1, -1}, {2})});
  model->to(DType::bfloat16);
  const auto before = snapshot(model->named_parameters(), optimizer);
  EXPECT_THROW(optimizer.update(std::vector{zeros({3})}), Error);
  EXPECT_EQ(snapshot(model->named_parameters(), optimizer), before);
}

TEST(RefusedStep, WhenAParametersShapeChanged) {
  Tensor weight = tensor({1, 2}, {2}).requires_grad_();
  SGD optimizer(NamedTensors{{"w", weight}}, {.lr = 0.5, .momentum = 0.5});
  optimizer.update(std::vector{ones({2})});
  weight.set_data_(zeros({3}));
  EXPECT_ERROR(ValueError,
               "[SGD] parameter \"w\" is float32(3,) now, and its state float32(2,); needed the "
               "shape that it had, or another optimizer",
               optimizer.update(std::vector{ones({3})}));
  EXPECT_EQ(weight.to_doubles(), (std::vector<double>{0, 0, 0}));
  weight.set_data_(zeros({2}));
  optimizer.update(std::vector{zeros({2})});
  EXPECT_EQ(optimizer.state_dict().at("step.w").item(), 2);
}

TEST(RefusedClipping, ChangesNoGradient) {
  Tensor a = zeros({1}).requires_grad_();
  Tensor b = zeros({1}).requires_grad_();
  a.set_grad(tensor({3}, {1}));
  b.set_grad(tensor({4}, {1}));
  b.set_data_(zeros({1}, {DType::float64}));  // its gradient no longer fits
  EXPECT_THROW(clip_grad_norm_({{"a", a}, {"b", b}}, 1), Error);
  EXPECT_EQ(a.grad().item(), 3);
  EXPECT_EQ(b.grad().item(), 4);
}

TEST(RefusedBackward, AThrowingHookAccumulatesNothing) {
  Tensor a = tensor({2}, {1}).requires_grad_();
  Tensor b = tensor({3}, {1}).requires_grad_();
  for (const Tensor& hooked : {a, b}) {
    const auto remove = register_hook(
        hooked, [](const Tensor&) -> Tensor { throw std::runtime_error("the hook's own"); });
    EXPECT_THROW(backward(sum(a * b)), std::runtime_error);
    EXPECT_FALSE(a.grad());
    EXPECT_FALSE(b.grad());
    remove();
  }
}

// --- Programs -----------------------------------------------------------------------------------

TEST(StaleTraining, AnExecutorBuiltBeforeAConversionRefusesEverySize) {
  const auto model = make<Linear>(2, 2);
  const Tensor x = ones({3, 2});
  const Schedule sch = create_schedule(model, {{"x", x}});
  Executor run = build(sch);
  run(x);
  model->to(DType::bfloat16);
  EXPECT_THROW(run(x), StaleProgram) << "lowered before";
  EXPECT_THROW(run(ones({5, 2})), StaleProgram) << "lowered now";
  EXPECT_THROW(build(sch), StaleProgram);
  model->to(DType::float32);
  EXPECT_EQ(max_difference(build(sch)(x), model(x)), 0);
}

TEST(StaleTraining, AStepBuiltBeforeAConversionRefusesAndANewOneGoesOn) {
  for (const DType to : {DType::bfloat16, DType::float64}) {
    const auto model = make<Linear>(2, 1);
    const auto optimizer = std::make_shared<AdamW>(model->named_parameters());
    const auto build_step = [&] {
      const Tensor x = ones({3, 2}, {model->weight.dtype()});
      return build_training(
          create_schedule(model, {{"x", x}}),
          {.loss = [](auto out, auto) { return mean(square(out[0])); }, .optimizer = optimizer});
    };
    TrainingStep step = build_step();
    step.run({ones({3, 2})});
    model->to(to);
    const auto before = snapshot(model->named_parameters(), *optimizer);
    for (const std::int64_t rows : {3, 4}) {
      EXPECT_THROW(step.run({ones({rows, 2}, {to})}), Error);
      EXPECT_THROW(step.run({ones({rows, 2})}), StaleProgram);
    }
    EXPECT_EQ(snapshot(model->named_parameters(), *optimizer), before);

    const auto twin = make<Linear>(2, 1, true, TensorOptions{to});
    twin->load_state_dict(model->state_dict());
    AdamW eager(twin->named_parameters());
    eager.load_state_dict(optimizer->state_dict());
    TrainingStep again = build_step();
    for (int i = 0; i < 2; ++i) {
      again.run({ones({3, 2}, {to})});
      backward(mean(square(twin(ones({3, 2}, {to})))));
      eager.step();
      eager.zero_grad();
    }
    EXPECT_LE(max_difference(model->weight, twin->weight), to == DType::float64 ? 1e-12 : 0);
    EXPECT_EQ(optimizer->state_dict().at("step.weight").item(), 3);
  }
}

}  // namespace training_state_test
}  // namespace tenon::nn
