// The pass that lets a gradient's op add: structure, equal numbers, and sums that stay.
#include <gtest/gtest.h>

#include "graph/executor.h"
#include "graph/passes/accumulate.h"
#include "graph/verify.h"
#include "schedule/joint_graph.h"
#include "schedule/schedule.h"
#include "tests/support/compare.h"
#include "tests/support/count_nodes.h"
#include "tests/support/models.h"

namespace tenon {
namespace {

using test::count_nodes;
using test::function_model;
using test::max_difference;

struct PassCase {
  const char* name;
  Tensor (*function)(const Tensor&);
  int taken;
  int sums_left;
};

Tensor weight(std::int64_t seed) {
  Generator generator(static_cast<std::uint64_t>(seed));
  return randn({6, 6}, {}, &generator);
}

Tensor one_product(const Tensor& x) { return matmul(x, weight(1)); }
Tensor two_products(const Tensor& x) { return matmul(x, weight(1)) * matmul(x, weight(2)); }
Tensor three_products(const Tensor& x) {
  return matmul(x, weight(1)) * matmul(x, weight(2)) * matmul(x, weight(3));
}
/// The residual's gradient is there before the product's.
Tensor residual(const Tensor& x) { return x + gelu(matmul(x, weight(1))); }
/// No op adds: both terms are pointwise.
Tensor pointwise(const Tensor& x) { return gelu(x) * sin(x); }
/// The model's own sum is its schedule's business.
Tensor written_sum(const Tensor& x) { return matmul(x, weight(1)) + x; }

class Accumulate : public ::testing::TestWithParam<PassCase> {};

TEST_P(Accumulate, KeepsTheNumbers) {
  const PassCase& sample = GetParam();
  const auto model = function_model(sample.function);
  Generator generator(20261122);
  const Tensor x = randn({4, 6}, {}, &generator);
  const Graph forward = create_schedule(model, {{"x", x}}).graph();
  Graph graph = differentiate(forward, {}, {.accumulate = false}).graph;
  const Graph before = graph;
  EXPECT_EQ(accumulate_gradients(graph), sample.taken) << to_text(before);
  verify(graph);
  EXPECT_EQ(count_nodes(graph, "matmul_add"), sample.taken);
  EXPECT_EQ(count_nodes(graph, "add"), sample.sums_left);
  if (sample.taken == 0) {
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

INSTANTIATE_TEST_SUITE_P(Cases, Accumulate,
                         ::testing::Values(PassCase{"OneProduct", one_product, 0, 0},
                                           PassCase{"TwoProducts", two_products, 1, 0},
                                           PassCase{"ThreeProducts", three_products, 2, 0},
                                           PassCase{"Residual", residual, 1, 1},
                                           PassCase{"Pointwise", pointwise, 0, 1},
                                           PassCase{"WrittenSum", written_sum, 1, 1}),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace tenon
