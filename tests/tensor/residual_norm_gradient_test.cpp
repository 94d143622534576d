// The gradient of bias_dropout_residual_layer_norm against that of its composition in float64.
#include <gtest/gtest.h>

#include "autograd/autograd.h"
#include "tensor/interpreter.h"
#include "tensor/random.h"
#include "tensor/rules/gradients.h"
#include "tests/tensor/strided_samples.h"

namespace tenon::test {
namespace {

constexpr const char* kOperands[] = {"input", "bias", "residual", "weight", "norm_bias"};

/// Gradients of all operands, of the fused op or of its composition.
std::vector<Tensor> gradients(std::vector<Tensor> operands, const Attrs& attrs,
                              const Tensor& cotangent, bool fused) {
  manual_seed(3);
  for (Tensor& operand : operands) operand = operand.detach().requires_grad_();
  const Op& op = get_op("bias_dropout_residual_layer_norm");
  backward(fused ? apply(op, operands, attrs)[0] : op.decompose(operands, attrs)[0], cotangent);
  std::vector<Tensor> result;
  for (const Tensor& operand : operands) result.push_back(operand.grad());
  return result;
}

TEST(ResidualNormGradient, AgreesWithTheCompositionInFloat64) {
  const Extents shapes[] = {{1, 1}, {5, 3}, {2, 7, 24}, {70, 33}, {9}, {2, 0, 8}};
  for (const Extents& sizes : shapes) {
    const Extents vector{sizes.back()};
    for (const double p : {0.0, 0.3, 1.0}) {
      const Attrs attrs = BiasDropoutResidualLayerNormAttrs{p, 1e-3, DropoutMode::train, 4};
      for (const DType dtype : kFloats) {
        Values values[6];
        for (unsigned i = 0; i < 6; ++i) {
          const bool whole = i == 0 || i == 2 || i == 5;
          values[i] = random_values((whole ? sizes : vector).product(), dtype, i + 1);
        }
        for (const Arrangement layout : kArrangements) {
          std::vector<Tensor> given, exact;
          for (int i = 0; i < 5; ++i) {
            const Extents& shape = i == 0 || i == 2 ? sizes : vector;
            given.push_back(arranged(values[i], shape, dtype, layout));
            exact.push_back(dense(values[i], shape, DType::float64));
          }
          const auto got = gradients(given, attrs, arranged(values[5], sizes, dtype, layout), true);
          const auto want = gradients(exact, attrs, dense(values[5], sizes, DType::float64), false);
          for (std::size_t i = 0; i < 5; ++i) {
            const Values expected = want[i].to_doubles();
            // What is normalized is rounded to the dtype, and 1/√(var + eps) is up to 32.
            const double rows = static_cast<double>(sizes.product()) /
                                static_cast<double>(std::max<std::int64_t>(sizes.back(), 1));
            const double bound = (dtype == DType::float64 ? 64 : 400) * unit_roundoff(dtype) *
                                 (i == 1 || i >= 3 ? std::max(rows, 1.0) : 1.0);
            expect_close(got[i], expected, bound,
                         std::string(kOperands[i]) + " " + std::string(name(dtype)) + " p=" +
                             std::to_string(p) + " " + kArrangementNames[static_cast<int>(layout)] +
                             " n=" + std::to_string(sizes.back()));
          }
        }
      }
    }
  }
}

TEST(ResidualNormGradient, ComputesWhatIsAskedForOnly) {
  manual_seed(3);
  const Tensor grad = randn({5, 24}), input = randn({5, 24}), residual = randn({5, 24});
  const Tensor bias = randn({24}), weight = randn({24});
  const auto gradients = [&](int mask) {
    const ResidualNormBackwardAttrs attrs{{0.5, 1e-5, DropoutMode::train, 2},
                                          (mask & 1) != 0,
                                          (mask & 2) != 0,
                                          (mask & 4) != 0,
                                          (mask & 8) != 0,
                                          (mask & 16) != 0};
    return ops::bias_dropout_residual_layer_norm_backward(grad, input, bias, residual, weight,
                                                          attrs);
  };
  const std::vector<Tensor> all = gradients(31);
  ASSERT_EQ(all.size(), 5U);
  for (int mask = 0; mask < 32; ++mask) {
    const std::vector<Tensor> some = gradients(mask);
    auto next = some.begin();
    for (std::size_t i = 0; i < 5; ++i) {
      if ((mask >> i & 1) == 0) continue;
      ASSERT_NE(next, some.end());
      EXPECT_EQ(bytes_of(*next++), bytes_of(all[i])) << kOperands[i] << " of mask " << mask;
    }
    EXPECT_EQ(next, some.end());
  }
}

TEST(ResidualNormGradient, IsOneForwardKernelWhileRecorded) {
  manual_seed(3);
  Tensor x = randn({4, 16}).requires_grad_();
  const Tensor v = randn({16}), residual = randn({4, 16});
  const auto call = [&](const Tensor& input) {
    manual_seed(3);
    return apply1(get_op("bias_dropout_residual_layer_norm"), {input, v, residual, v, v},
                  BiasDropoutResidualLayerNormAttrs{0.5, 1e-5, DropoutMode::train, 0});
  };
  EXPECT_EQ(bytes_of(call(x)), bytes_of(call(x.detach())));
}

}  // namespace
}  // namespace tenon::test
