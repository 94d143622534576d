// The pass that joins gradients of pieces: structure, equal numbers, and sums that stay.
#include <gtest/gtest.h>

#include "graph/executor.h"
#include "graph/passes/join_slices.h"
#include "graph/verify.h"
#include "schedule/joint_graph.h"
#include "schedule/schedule.h"
#include "tests/support/compare.h"
#include "tests/support/count_nodes.h"
#include "tests/support/models.h"

namespace tenon {
namespace join_slices_test {

using test::count_nodes;
using test::function_model;
using test::max_difference;

struct PassCase {
  const char* name;
  Tensor (*function)(const Tensor&);
  int joined;
  int pads_left;
};

/// x·2, whose last axis is known to have 6 elements.
Tensor of_six_columns(const Tensor& x) { return x * full({6}, 2); }

Tensor three_chunks(const Tensor& x) {
  const auto parts = chunk(of_six_columns(x), 3, -1);
  return parts[0] * parts[1] + gelu(parts[2]);
}
Tensor out_of_order(const Tensor& x) {
  const Tensor y = of_six_columns(x);
  return gelu(y.narrow(1, 4, 2)) * y.narrow(1, 0, 2) * y.narrow(1, 2, 2);
}
Tensor two_of_three(const Tensor& x) {
  const auto parts = chunk(of_six_columns(x), 3, -1);
  return parts[0] * gelu(parts[2]);
}
Tensor overlapping(const Tensor& x) {
  const Tensor y = of_six_columns(x);
  return y.narrow(1, 0, 4) * gelu(y.narrow(1, 2, 4));
}
Tensor and_the_whole(const Tensor& x) {
  const Tensor y = of_six_columns(x);
  const auto parts = chunk(y, 2, -1);
  return parts[0] * gelu(parts[1]) + sum(y * y);
}
Tensor other_axes(const Tensor& x) {
  const Tensor y = of_six_columns(x);
  return y.narrow(0, 0, 2) * gelu(y.narrow(1, 0, 1));
}

class JoinSlices : public ::testing::TestWithParam<PassCase> {};

TEST_P(JoinSlices, KeepsTheNumbers) {
  const PassCase& sample = GetParam();
  const auto model = function_model(sample.function);
  const Graph forward = create_schedule(model, {{"x", randn({2, 6})}}).graph();
  Graph graph = differentiate(forward, {}, {.join_slices = false}).graph;
  const Graph before = graph;
  const int pads = count_nodes(graph, "narrow_backward");
  EXPECT_EQ(join_slices(graph), sample.joined);
  verify(graph);
  EXPECT_EQ(count_nodes(graph, "cat"), sample.joined);
  EXPECT_EQ(count_nodes(graph, "narrow_backward"), sample.pads_left) << pads << " before";
  if (sample.joined == 0) {
    EXPECT_EQ(to_text(graph), to_text(before));
  }
  Executor with(graph);
  Executor without(before);
  const Tensor x = randn({2, 6});
  const Tensor y = model(x);
  const std::vector<Tensor> inputs = {x, randn(y.shape())};
  const auto a = with.run(inputs);
  const auto b = without.run(inputs);
  for (std::size_t i = 0; i < a.size(); ++i) EXPECT_EQ(max_difference(a[i], b[i]), 0) << i;
}

INSTANTIATE_TEST_SUITE_P(Samples, JoinSlices,
                         ::testing::Values(PassCase{"three_chunks", three_chunks, 1, 0},
                                           PassCase{"out_of_order", out_of_order, 1, 0},
                                           PassCase{"two_of_three", two_of_three, 0, 2},
                                           PassCase{"overlapping", overlapping, 0, 2},
                                           PassCase{"and_the_whole", and_the_whole, 0, 2},
                                           PassCase{"other_axes", other_axes, 0, 2}),
                         [](const auto& sample) { return sample.param.name; });

}  // namespace join_slices_test
}  // namespace tenon
