// The pass that takes a GELU's slope into the product before it: structure, equal numbers, near misses.
#include "graph/passes/fuse_gelu_gradient.h"

#include <gtest/gtest.h>

#include "graph/executor.h"
#include "graph/verify.h"
#include "schedule/joint_graph.h"
#include "schedule/schedule.h"
#include "tests/support/compare.h"
#include "tests/support/count_nodes.h"
#include "tests/support/models.h"

namespace tenon {
namespace fuse_gelu_gradient_test {

using test::count_nodes;
using test::function_model;
using test::max_difference;

Tensor weight(std::int64_t seed) {
  Generator generator(static_cast<std::uint64_t>(seed));
  return randn({6, 6}, {}, &generator);
}

struct PassCase {
  const char* name;
  Tensor (*function)(const Tensor&);
  int fused;
  std::string activation = "gelu";
};

Tensor mlp(const Tensor& x) {
  return linear(linear_gelu(x, weight(1), {}, Approximate::tanh), weight(2));
}
Tensor two_layers(const Tensor& x) { return mlp(mlp(x)); }
Tensor exact_form(const Tensor& x) { return linear(linear_gelu(x, weight(1), {}), weight(2)); }
/// The schedule did not ask for it.
Tensor separate_gelu(const Tensor& x) {
  return linear(gelu(linear(x, weight(1)), Approximate::tanh), weight(2));
}
/// The slope's gradient is a sum of two.
Tensor used_twice(const Tensor& x) {
  const Tensor y = linear_gelu(x, weight(1), {}, Approximate::tanh);
  return linear(y, weight(2)) * sin(y);
}
/// No product follows.
Tensor no_product(const Tensor& x) { return sin(linear_gelu(x, weight(1), {}, Approximate::tanh)); }

Tensor relu_form(const Tensor& x) { return linear(linear_relu(x, weight(1), {}), weight(2)); }
Tensor silu_form(const Tensor& x) { return linear(linear_silu(x, weight(1), {}), weight(2)); }
Tensor separate_relu(const Tensor& x) { return linear(relu(linear(x, weight(1))), weight(2)); }
/// The second relu is of the first one's result, whose slope is not the product's.
Tensor relu_of_relu(const Tensor& x) {
  return linear(relu(linear_relu(x, weight(1), {})), weight(2));
}
Tensor silu_used_twice(const Tensor& x) {
  const Tensor y = linear_silu(x, weight(1), {});
  return linear(y, weight(2)) * sin(y);
}

class FuseGeluGradient : public ::testing::TestWithParam<PassCase> {};

TEST_P(FuseGeluGradient, KeepsTheNumbers) {
  const PassCase& sample = GetParam();
  const auto model = function_model(sample.function);
  Generator generator(20261122);
  const Tensor x = randn({2, 4, 6}, {}, &generator);
  const Graph forward = create_schedule(model, {{"x", x}}).graph();
  Graph graph =
      differentiate(forward, {}, {.fuse_gelu_gradient = false, .accumulate = false}).graph;
  const Graph before = graph;
  const std::string slope = sample.activation + "_backward";
  const int slopes = count_nodes(before, slope);
  EXPECT_EQ(fuse_gelu_gradients(graph), sample.fused) << to_text(before);
  verify(graph);
  EXPECT_EQ(count_nodes(graph, "matmul_" + slope), sample.fused);
  EXPECT_EQ(count_nodes(graph, slope), slopes - sample.fused);
  if (sample.fused == 0) {
    EXPECT_EQ(to_text(graph), to_text(before));
  }
  Executor with(graph);
  Executor without(before);
  const std::vector<Tensor> inputs = {x, randn(model(x).shape(), {}, &generator)};
  const auto actual = with.run(inputs);
  const auto expected = without.run(inputs);
  ASSERT_EQ(actual.size(), expected.size());
  for (std::size_t i = 0; i < actual.size(); ++i) {
    EXPECT_LE(max_difference(actual[i], expected[i]), 1e-5) << "output " << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, FuseGeluGradient,
                         ::testing::Values(PassCase{"Mlp", mlp, 1},
                                           PassCase{"TwoLayers", two_layers, 2},
                                           PassCase{"ExactForm", exact_form, 1},
                                           PassCase{"SeparateGelu", separate_gelu, 0},
                                           PassCase{"UsedTwice", used_twice, 0},
                                           PassCase{"NoProduct", no_product, 0},
                                           PassCase{"Relu", relu_form, 1, "relu"},
                                           PassCase{"SeparateRelu", separate_relu, 0, "relu"},
                                           PassCase{"ReluOfRelu", relu_of_relu, 0, "relu"},
                                           PassCase{"Silu", silu_form, 1, "silu"},
                                           PassCase{"SiluUsedTwice", silu_used_twice, 0, "silu"}),
                         [](const auto& info) { return info.param.name; });

/// A weight that gradients reach.
Tensor own_weight(const Tensor& x) {
  const Tensor rows = x.narrow(0, 0, 1);  // (1, 4, 6)
  return matmul(rows.transpose(1, 2), rows).reshape({6, 6});
}
Tensor own_mlp(const Tensor& x) {
  return linear(linear_gelu(x, weight(1), {}, Approximate::tanh), own_weight(x));
}
Tensor two_own_layers(const Tensor& x) { return own_mlp(own_mlp(x)); }
Tensor own_exact_form(const Tensor& x) {
  return linear(linear_gelu(x, weight(1), {}), own_weight(x));
}
Tensor own_used_twice(const Tensor& x) {
  const Tensor y = linear_gelu(x, weight(1), {}, Approximate::tanh);
  return linear(y, own_weight(x)) * sin(y);
}

/// What is not kept comes from the gradient's product, or else from GELU's input: never from the
/// product that both were fused with.
TEST(FuseGeluGradientAgain, RederivesActivations) {
  struct Case {
    const char* what;
    Tensor (*function)(const Tensor&);
    int together;
    int alone;
  };
  const Case cases[] = {{"two layers", two_own_layers, 2, 0},
                        {"exact form", own_exact_form, 1, 0},
                        {"used twice", own_used_twice, 0, 1},
                        {"nothing reads it", mlp, 0, 0}};
  for (const Case& sample : cases) {
    SCOPED_TRACE(sample.what);
    const auto model = function_model(sample.function);
    Generator generator(20261122);
    const Tensor x = randn({2, 4, 6}, {}, &generator);
    Schedule schedule = create_schedule(model, {{"x", x}});
    Executor kept(differentiate(schedule.graph(), {}).graph);
    const auto is_fused = [](const Node& node) { return node.op->name == "linear_gelu"; };
    schedule.checkpoint(schedule.find(is_fused), {.keep_results = false});
    const Graph graph = differentiate(schedule.graph(), {}).graph;
    verify(graph);
    EXPECT_EQ(count_nodes(graph, "matmul_gelu_backward_again"), sample.together) << to_text(graph);
    EXPECT_EQ(count_nodes(graph, "gelu"), sample.alone) << to_text(graph);
    const auto runs_again = [&](NodeId id) {
      return graph.node(id).recomputed && graph.node(id).op->name == "linear_gelu_aux";
    };
    EXPECT_TRUE(std::none_of(graph.order().begin(), graph.order().end(), runs_again));
    Executor discarded(graph);
    const std::vector<Tensor> inputs = {x, randn(model(x).shape(), {}, &generator)};
    const auto actual = discarded.run(inputs);
    const auto expected = kept.run(inputs);
    ASSERT_EQ(actual.size(), expected.size());
    for (std::size_t i = 0; i < actual.size(); ++i) {
      EXPECT_LE(max_difference(actual[i], expected[i]), 1e-4) << "output " << i;
    }
  }
}

}  // namespace fuse_gelu_gradient_test
}  // namespace tenon
