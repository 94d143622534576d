// Every op with a decomposition, bound to it: forward, in training, at other sizes, with the results and
// gradients of its own kernels.
#include <gtest/gtest.h>

#include <set>

#include "nn/optimizer.h"
#include "tensor/interpreter.h"
#include "tests/autograd/gradcheck_samples.h"
#include "tests/support/models.h"
#include "tests/support/schedule_checks.h"

namespace tenon {
namespace bound_decompositions_test {

using test::expect_close;
using test::function_model;
using T = const Tensor&;

auto of_op(const std::string& name) {
  return [=](const Node& node) { return node.op->name == name; };
}

/// A sample's function of its floating inputs, as parameters, and of what is given.
struct SampleModel : nn::Module {
  explicit SampleModel(const test::GradcheckSample& sample) : f(sample.f), inputs(sample.inputs) {
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      if (!inputs[i] || !inputs[i].requires_grad()) continue;
      Tensor copy = inputs[i].detach().clone().requires_grad_();
      parameters.emplace_back(i, register_parameter("p" + std::to_string(i), copy));
    }
  }
  std::vector<Tensor> forward(T one) const {
    std::vector<Tensor> operands = inputs;
    for (const auto& [i, parameter] : parameters) operands[i] = parameter * one;
    return f(operands);
  }
  TensorFunction f;
  std::vector<Tensor> inputs;
  std::vector<std::pair<std::size_t, Tensor>> parameters;
};

/// The bound schedule verifies, and runs and trains as the unbound one does.
void expect_same(const Schedule& bound, const Schedule& unbound, const std::vector<Tensor>& inputs,
                 double tolerance, bool trains) {
  Executor run = build(bound, {.verify = trains});
  Executor reference = build(unbound, {.verify = false});
  bool empty = false;  // a mean of no elements is no loss
  for (const bool training : {false, true}) {
    manual_seed(test::kSeed);
    const std::vector<Tensor> actual = run.run(inputs, training);
    manual_seed(test::kSeed);
    const std::vector<Tensor> expected = reference.run(inputs, training);
    ASSERT_EQ(actual.size(), expected.size());
    for (std::size_t i = 0; i < actual.size(); ++i) {
      expect_close(actual[i], expected[i], tolerance, "output " + std::to_string(i));
      empty |= actual[i].layout().numel() == 0;
    }
  }
  if (!trains) return;
  if (empty) {
    build_training(bound, {.loss = [](std::span<const Tensor> outputs, std::span<const Tensor>) {
                     return sum(outputs[0]);
                   }});
  } else {
    test::expect_same_step(test::program_step(bound, inputs), test::program_step(unbound, inputs),
                           tolerance);
  }
}

class BoundDecomposition : public ::testing::TestWithParam<std::string> {};

TEST_P(BoundDecomposition, GivesTheResultsAndGradientsOfTheOp) {
  int bound = 0;
  for (const auto& family : {test::pointwise_samples, test::matrix_samples, test::reduction_samples,
                             test::model_samples, test::vision_samples}) {
    for (const test::GradcheckSample& sample : family()) {
      if (sample.op != GetParam()) continue;
      // The gradient's mask is its attention's: no forward pass has both.
      if (sample.op == "scaled_dot_product_attention_backward" && sample.what == "dropout")
        continue;
      SCOPED_TRACE(sample.what);
      const auto model = nn::make<SampleModel>(sample);
      Schedule sch = create_schedule(model, {ones({}, {DType::float64})});
      const Schedule unbound = create_schedule(model, {ones({}, {DType::float64})});
      const Matches matches = sch.find(of_op(sample.op));
      if (matches.empty()) continue;
      sch.bind(matches, "decomposition");
      ++bound;
      // A step to train has no place for a gradient's mask in its forward half.
      const bool trains =
          sch.find([](const Node& node) {
               return node.op->name.find("_backward") != std::string::npos && draws_mask(node);
             })
              .empty();
      expect_same(sch, unbound, {ones({}, {DType::float64})}, 1e-9, trains);
    }
  }
  EXPECT_GT(bound, 0) << "no sample of " << GetParam() << " is recorded as a node";
}

/// Ops with a decomposition that a forward Graph may have.
std::vector<std::string> decomposed_ops() {
  std::vector<std::string> names;
  for (const Op* op : all_ops()) {
    if (op->decompose != nullptr) names.push_back(op->name);
  }
  return names;
}

INSTANTIATE_TEST_SUITE_P(Ops, BoundDecomposition, ::testing::ValuesIn(decomposed_ops()),
                         [](const auto& info) { return info.param; });

// --- symbolic sizes, float32 ------------------------------------------------------------------------------

struct AttentionCase {
  const char* name;
  AttentionOptions options = {};
  bool has_mask = false;
};

TEST(BoundAttention, ServesEverySize) {
  for (const AttentionCase& c :
       {AttentionCase{"plain"}, AttentionCase{"causal", {.is_causal = true}},
        AttentionCase{"dropout", {.dropout_p = 0.3}},
        AttentionCase{"causal with dropout", {.dropout_p = 0.3, .is_causal = true}},
        AttentionCase{"mask", {}, true},
        AttentionCase{"mask with dropout", {.dropout_p = 0.3}, true}}) {
    SCOPED_TRACE(c.name);
    struct Model : nn::Module {
      explicit Model(const AttentionCase& of)
          : one(of), q(add<nn::Linear>("q", 8, 8)), kv(add<nn::Linear>("kv", 8, 8)) {}
      Tensor forward(T x, T mask) const {
        const auto split = [](T y) { return y.view({y.size(0), y.size(1), 2, 4}).transpose(1, 2); };
        return scaled_dot_product_attention(split(q(x)), split(kv(x)), split(kv(x)),
                                            one.has_mask ? mask : Tensor(), one.options);
      }
      AttentionCase one;
      nn::Child<nn::Linear> q;
      nn::Child<nn::Linear> kv;
    };
    const auto model = nn::make<Model>(c);
    const auto inputs = [](std::int64_t batch, std::int64_t length) {
      Generator generator(7);
      const Tensor mask = gt(randn({batch, 1, length, length}, {}, &generator), -0.5);
      return std::vector<Tensor>{randn({batch, length, 8}, {}, &generator), mask};
    };
    const Schedule unbound = create_schedule(model, {inputs(2, 5)[0], inputs(2, 5)[1]});
    Schedule sch = create_schedule(model, {inputs(2, 5)[0], inputs(2, 5)[1]});
    sch.bind(sch.find(of_op("scaled_dot_product_attention")), "decomposition");
    for (const auto& batch : {inputs(2, 5), inputs(3, 7), inputs(1, 1)}) {
      expect_same(sch, unbound, batch, 2e-5, batch[0].size(1) == 5);  // targets like those traced
    }
    Schedule split = create_schedule(model, {inputs(2, 5)[0], inputs(2, 5)[1]});
    split.decompose(split.find(of_op("scaled_dot_product_attention")));
    expect_same(split, unbound, inputs(2, 5), 2e-5, true);
    expect_same(split, unbound, inputs(3, 7), 2e-5, false);
  }
}

TEST(BoundLinearCrossEntropy, ServesEverySizeInFloat32) {
  struct Model : nn::Module {
    Model() : weight(register_parameter("weight", randn({7, 4}))) {}
    Tensor forward(T x, T target) const { return linear_cross_entropy(x, weight, target); }
    Tensor weight;
  };
  const auto model = nn::make<Model>();
  const auto inputs = [](std::int64_t rows) {
    std::vector<std::int64_t> targets;
    for (std::int64_t i = 0; i < rows; ++i) targets.push_back(i % 7);
    return std::vector<Tensor>{randn({rows, 4}), from_vector(targets, {rows})};
  };
  const std::vector<Tensor> traced = inputs(3);
  const Schedule unbound = create_schedule(model, {traced[0], traced[1]});
  Schedule sch = create_schedule(model, {traced[0], traced[1]});
  sch.bind(sch.find(of_op("linear_cross_entropy")), "decomposition");
  for (const std::int64_t rows : {3, 5, 1}) expect_same(sch, unbound, inputs(rows), 2e-5, true);
}

// Recomputed in backward, its mask again that of the forward pass.
TEST(BoundAttention, MayBeInACheckpoint) {
  struct Model : nn::Module {
    Model() : q(add<nn::Linear>("q", 4, 4)) {}
    Tensor forward(T x) const {
      const Tensor y = q(x);
      return tanh(
          scaled_dot_product_attention(y, y, x, Tensor(), {.dropout_p = 0.3, .is_causal = true}));
    }
    nn::Child<nn::Linear> q;
  };
  const auto model = test::initialized<Model>();
  const Tensor x = randn({2, 5, 4});
  const Schedule unbound = create_schedule(model, {{"x", x}});
  for (const bool keep : {false, true}) {
    Schedule sch = create_schedule(model, {{"x", x}});
    const Matches attention = sch.find(of_op("scaled_dot_product_attention"));
    sch.bind(attention, "decomposition");
    sch.checkpoint(attention, {.keep_results = keep});
    expect_same(sch, unbound, {x}, 2e-5, true);
  }
}

// Two splits of one Graph bring constants of their own.
TEST(BoundAttention, TwoMayBeDecomposed) {
  const auto attention = [](T x) {
    return scaled_dot_product_attention(x, x, x, Tensor(), {.is_causal = true});
  };
  const auto model = function_model([=](T x) { return attention(attention(x)); });
  const Tensor x = randn({2, 4, 4});
  Schedule sch = create_schedule(model, {x});
  sch.decompose(sch.find(of_op("scaled_dot_product_attention")));
  expect_close(build(sch)(x), model(x), 2e-5, "output");
}

}  // namespace bound_decompositions_test
}  // namespace tenon
