// DESIGN section 3, contract 11: dropout is a function of (seed, site, forward number, element).
#include <gtest/gtest.h>

#include "autograd/autograd.h"
#include "examples/attention_model.h"
#include "schedule/joint_graph.h"
#include "schedule/schedule.h"
#include "tensor/ops/attributes.h"
#include "tensor/philox.h"
#include "tensor/random.h"
#include "tests/support/compare.h"
#include "tests/support/models.h"

namespace tenon {
namespace {

using test::function_model;
using test::max_difference;

struct Contract3_11 : ::testing::Test {
  void SetUp() override { manual_seed(kSeed); }
  void TearDown() override { manual_seed(0); }
  static constexpr std::uint64_t kSeed = 0xfedcba9876543210;
};

struct DropoutModel : nn::Module {
  Tensor forward(const Tensor& x) const { return dropout(dropout(x, 0.3) + x, 0.5); }
};

/// The mask of a call by the formula of tensor/philox.h, on any shape.
std::vector<double> expected_dropout(const Tensor& x, double p, std::uint32_t forward,
                                     std::uint32_t site, std::uint64_t seed) {
  const std::vector<double> values = x.to_doubles();
  std::vector<double> result(values.size());
  const std::int64_t cols = x.dim() == 0 ? 1 : x.size(-1).value();
  for (std::size_t i = 0; i < values.size(); ++i) {
    const auto index = static_cast<std::int64_t>(i);
    const bool keep =
        dropout_keep({seed, forward, site}, index / cols, index % cols, dropout_threshold(p));
    result[i] = keep ? values[i] / (1 - p) : 0;
  }
  return result;
}

TEST_F(Contract3_11, TheMaskFollowsTheFormulaForEveryShapeStrideAndDtype) {
  const std::vector<Shape> shapes = {{},      {1},        {7},    {8},      {9},
                                     {3, 13}, {2, 3, 17}, {0, 4}, {5, 1024}};
  for (const DType dtype : {DType::float32, DType::float64}) {
    for (const Shape& shape : shapes) {
      const Tensor x = ones(shape, {dtype});
      const Tensor y = apply1(get_op("dropout"), {x}, DropoutAttrs{0.25, DropoutMode::train, 5});
      const auto expected = expected_dropout(x, 0.25, 0, 5, kSeed);
      const auto given = y.to_doubles();
      ASSERT_EQ(given.size(), expected.size());
      for (std::size_t i = 0; i < given.size(); ++i) {
        EXPECT_NEAR(given[i], expected[i], 1e-6) << shape.to_string() << " " << i;
      }
    }
  }
  // The index is that of the operand as it is seen, whatever its strides.
  const Tensor base = randn({13, 6});
  const Tensor strided = base.transpose(0, 1);
  const DropoutAttrs attrs{0.5, DropoutMode::train, 3};
  EXPECT_EQ(max_difference(apply1(get_op("dropout"), {strided}, attrs),
                           apply1(get_op("dropout"), {strided.contiguous()}, attrs)),
            0);
}

TEST_F(Contract3_11, EagerTracedForwardAndBackwardDrawOneMask) {
  const auto model = nn::make<DropoutModel>();
  const Tensor example = randn({6, 11});
  const Schedule sch = create_schedule(model, {{"x", example}});
  Executor joint(differentiate(sch.graph(), {}).graph);
  const Tensor cotangent = randn({6, 11});
  manual_seed(kSeed);
  Tensor x = example.clone().requires_grad_();
  const Tensor y = model(x);
  model(x);  // a later forward does not change what backward replays
  backward(y, cotangent);
  manual_seed(kSeed);
  const Tensor inputs[] = {example, cotangent};
  const auto results = joint.run(inputs, true);
  EXPECT_EQ(max_difference(results[0], y), 0);
  EXPECT_EQ(max_difference(results[1], x.grad()), 0);
}

TEST_F(Contract3_11, TwoForwardsNeverShareAMaskAndTheSequenceResumes) {
  const auto model = nn::make<DropoutModel>();
  const Tensor x = ones({64, 64});
  const Tensor first = model(x);
  const Tensor second = model(x);
  EXPECT_GT(max_difference(first, second), 0);
  const Generator saved = default_generator();
  const Tensor third = model(x);
  default_generator() = Generator(99);
  EXPECT_GT(max_difference(model(x), third), 0);
  default_generator() = saved;
  EXPECT_EQ(max_difference(model(x), third), 0);
  Executor run(create_schedule(model, {{"x", x}}).graph());
  default_generator() = saved;
  const Tensor inputs[] = {x};
  EXPECT_EQ(max_difference(run.run(inputs, true)[0], third), 0);
  EXPECT_GT(max_difference(run.run(inputs, true)[0], third), 0);
}

TEST_F(Contract3_11, AttentionDropoutInsideTheKernelEqualsTheComposition) {
  const Op& op = get_op("scaled_dot_product_attention");
  const Attrs attrs = AttentionAttrs{0.3, false, 0.25, DropoutMode::train, 12};
  const std::vector<Tensor> inputs = {randn({2, 3, 9, 8}, {DType::float64}),
                                      randn({2, 3, 13, 8}, {DType::float64}),
                                      randn({2, 3, 13, 4}, {DType::float64}), Tensor()};
  EXPECT_LT(max_difference(apply(op, inputs, attrs)[0], op.decompose(inputs, attrs)[0]), 1e-13);
}

}  // namespace
}  // namespace tenon
