// Activations and their slopes far from 0 (tests/support/saturation.h), and those of the ops that
// they are fused into; second derivatives there.
#include "tests/support/saturation.h"

#include <gtest/gtest.h>

#include "autograd/autograd.h"
#include "tensor/functional.h"
#include "tests/tensor/layouts.h"

namespace tenon::test {
namespace saturation_test {

TEST(Saturation, ActivationsAreStraightLinesFarFromZero) {
  for (const SaturatedOp& op : saturated_ops()) {
    for (const DType dtype : kFloats) check_saturation(op, dtype, kCpu);
  }
}

TEST(Saturation, FusedGelusHaveTheSameSlopes) {
  for (const SaturatedOp& op : saturated_ops()) {
    if (std::string(op.op) != "gelu") continue;
    for (const DType dtype : kFloats) {
      const SaturatedCase expected(op, dtype);
      const auto size = static_cast<std::int64_t>(expected.inputs.size());
      const TensorOptions options{dtype};
      const Tensor x = tensor(expected.inputs, {size, 1}, options);
      const Tensor one = ones({size, 1}, options), none = zeros({1}, options);
      const Tensor identity = ones({1, 1}, options);
      const std::string what = op.attrs.to_string() + " " + std::string(name(dtype));
      const auto run = [&](const char* fused, const std::vector<Tensor>& operands) {
        return apply(get_op(fused), operands, op.attrs).at(0);
      };
      const auto& at = expected.inputs;
      expect_line(run("bias_gelu", {x, none}), expected.values, at, "bias_gelu " + what);
      expect_line(run("bias_gelu_backward", {one, x, none}), expected.slopes, at,
                  "bias_gelu_backward " + what);
      expect_line(run("linear_gelu", {x, identity, none}), expected.values, at,
                  "linear_gelu " + what);
      expect_line(run("matmul_gelu_backward", {one, identity, x}), expected.slopes, at,
                  "matmul_gelu_backward " + what);
    }
  }
}

TEST(Saturation, GelusHaveNoCurvatureFarFromZero) {
  for (const Approximate form : {Approximate::none, Approximate::tanh}) {
    for (const DType dtype : kFloats) {
      std::vector<double> at = saturated_inputs(dtype);
      at.insert(at.end(), {31, -31, 33, -33});  // on both sides of where formulas may end
      const auto size = static_cast<std::int64_t>(at.size());
      Tensor x = tensor(at, {size}, {dtype}).requires_grad_();
      const Tensor y = gelu(x, form);
      const Tensor seed = ones({size}, {dtype});
      const Tensor slope =
          grad(std::span(&y, 1), std::span(&x, 1), std::span(&seed, 1), {.create_graph = true})
              .at(0);
      const Tensor curvature =
          grad(std::span(&slope, 1), std::span(&x, 1), std::span(&seed, 1)).at(0);
      expect_line(curvature, std::vector<double>(at.size(), 0.0), at,
                  std::string(enum_name(form)) + " " + std::string(name(dtype)));
    }
  }
}

}  // namespace saturation_test
}  // namespace tenon::test
