// softmax, layer_norm and bias_dropout_residual_layer_norm against naive double references.
#include <gtest/gtest.h>

#include <algorithm>

#include "tensor/error.h"
#include "tensor/interpreter.h"
#include "tensor/ops/attributes.h"
#include "tests/support/expect_error.h"
#include "tests/tensor/strided_samples.h"

namespace tenon::test {
namespace {

/// Calls f(first, stride, n) for every line of row-major `sizes` along `axis`.
template <class F>
void for_each_line(const Extents& sizes, int axis, F f) {
  std::int64_t inner = 1;
  for (int i = axis + 1; i < sizes.size(); ++i) inner *= sizes[i];
  const std::int64_t n = sizes[axis];
  for (std::int64_t i = 0; i < sizes.product() / std::max<std::int64_t>(n, 1); ++i) {
    f(i / inner * inner * n + i % inner, inner, n);
  }
}

Values naive_softmax(const Values& x, const Extents& sizes, int axis) {
  Values result = x;
  for_each_line(sizes, axis, [&](std::int64_t first, std::int64_t stride, std::int64_t n) {
    const auto at = [&](std::int64_t k) { return static_cast<std::size_t>(first + k * stride); };
    double max = -INFINITY;
    for (std::int64_t k = 0; k < n; ++k) max = std::max(max, x[at(k)]);
    double sum = 0;
    for (std::int64_t k = 0; k < n; ++k) sum += std::exp(x[at(k)] - max);
    for (std::int64_t k = 0; k < n; ++k) result[at(k)] = std::exp(x[at(k)] - max) / sum;
  });
  return result;
}

TEST(Softmax, AgreesWithTheReferenceAlongEveryAxisInEveryLayout) {
  const Extents shapes[] = {{1},       {7},     {5, 8}, {3, 130}, {2, 3, 33},
                            {4, 1, 9}, {40, 5}, {0, 3}, {3, 0}};
  for (const Extents& sizes : shapes) {
    for (const DType dtype : kFloats) {
      Values x = random_values(sizes.product(), dtype, 1);
      for (double& value : x) value = rounded(value * 20, dtype);
      for (int axis = 0; axis < sizes.size(); ++axis) {
        const Values expected = naive_softmax(x, sizes, axis);
        Values bound;
        // Rounding x - max, up to 40 in size, is what limits the exponential.
        for (const double value : expected) bound.push_back(100 * compute_roundoff(dtype) * value);
        for (const Arrangement layout : kArrangements) {
          const std::string what =
              "axis " + std::to_string(axis) + " of " +
              zeros(Shape(std::vector<Dim>(sizes.begin(), sizes.end()))).shape().to_string() + " " +
              kArrangementNames[static_cast<int>(layout)];
          expect_close(softmax(arranged(x, sizes, dtype, layout), axis), expected, bound, what);
          expect_close(softmax(arranged(x, sizes, dtype, layout), axis - sizes.size()), expected,
                       bound, what);
        }
      }
    }
  }
}

TEST(Softmax, OfAScalarIsOne) { EXPECT_EQ(softmax(tensor({3}, {}), -1).item(), 1); }

TEST(Softmax, NanInfAndMaskedRows) {
  const double inf = INFINITY;
  const Tensor x =
      tensor({0, NAN, 1, -inf, -inf, -inf, 1, inf, 2, -inf, 5, -inf, 1e30, 1, -1e30}, {5, 3});
  for (const bool along_rows : {true, false}) {
    const Tensor result =
        along_rows ? softmax(x, 1) : softmax(x.transpose(0, 1), 0).transpose(0, 1);
    const Values y = result.to_doubles();
    for (std::size_t i = 0; i < 9; ++i) EXPECT_TRUE(std::isnan(y[i])) << i;
    EXPECT_EQ((Values(y.begin() + 9, y.end())), (Values{0, 1, 0, 1, 0, 0}));
  }
}

TEST(Softmax, LongRowsKeepTheirDigits) {
  const std::int64_t n = 300001;
  const Values x = random_values(n, DType::float32, 5);
  const Values expected = naive_softmax(x, {n}, 0);
  Values bound;
  for (const double value : expected) bound.push_back(1e-6 * value);
  expect_close(softmax(dense(x, {n}, DType::float32), 0), expected, bound, "long row");
}

TEST(Softmax, DoesNotDependOnTheNumberOfThreads) {
  for (const DType dtype : kFloats) {
    const Tensor x = dense(random_values(300 * 200, dtype, 1), {3, 100, 200}, dtype);
    for (const int axis : {0, 1, 2})
      expect_thread_invariant([&] { return softmax(x, axis); }, "softmax");
  }
}

Values naive_layer_norm(const Values& x, std::int64_t n, double eps, const Values& weight,
                        const Values& bias) {
  Values result(x.size());
  for (std::size_t first = 0; n > 0 && first < x.size(); first += static_cast<std::size_t>(n)) {
    double mean = 0;
    double variance = 0;
    const auto count = static_cast<std::size_t>(n);
    for (std::size_t i = 0; i < count; ++i) mean += x[first + i] / static_cast<double>(n);
    for (std::size_t i = 0; i < count; ++i) {
      variance += (x[first + i] - mean) * (x[first + i] - mean) / static_cast<double>(n);
    }
    for (std::size_t i = 0; i < count; ++i) {
      const double normal = (x[first + i] - mean) / std::sqrt(variance + eps);
      result[first + i] = normal * (weight.empty() ? 1 : weight[i]) + (bias.empty() ? 0 : bias[i]);
    }
  }
  return result;
}

TEST(LayerNorm, AgreesWithTheReferenceInEveryLayout) {
  struct Sample {
    Extents sizes;
    int axes;
  };
  const Sample samples[] = {{{7}, 1},        {{3, 8}, 1},    {{2, 3, 33}, 1},
                            {{2, 3, 33}, 2}, {{4, 3, 5}, 3}, {{2, 2, 1030}, 1},
                            {{5, 1}, 1},     {{0, 4}, 1},    {{4, 0}, 1}};
  for (const auto& [sizes, axes] : samples) {
    Extents inner;
    for (int i = sizes.size() - axes; i < sizes.size(); ++i) inner.push_back(sizes[i]);
    const std::vector<std::int64_t> normalized(inner.begin(), inner.end());
    const std::int64_t n = inner.product();
    for (const DType dtype : kFloats) {
      const Values x = random_values(sizes.product(), dtype, 1);
      const Values weight = random_values(n, dtype, 2);
      const Values bias = random_values(n, dtype, 3);
      for (const Arrangement layout : kArrangements) {
        for (const int present : {0, 1, 2, 3}) {
          const bool with_weight = (present & 1) != 0;
          const bool with_bias = (present & 2) != 0;
          const Values expected = naive_layer_norm(x, n, 1e-5, with_weight ? weight : Values{},
                                                   with_bias ? bias : Values{});
          const Tensor result =
              layer_norm(arranged(x, sizes, dtype, layout), normalized,
                         with_weight ? arranged(weight, inner, dtype, layout) : Tensor(),
                         with_bias ? arranged(bias, inner, dtype, layout) : Tensor(), 1e-5);
          // A constant row of one element: (x - mean)/√eps amplifies nothing, both are exactly 0.
          expect_close(
              result, expected, 40 * compute_roundoff(dtype),
              std::string(name(dtype)) + " " + kArrangementNames[static_cast<int>(layout)]);
        }
      }
    }
  }
}

TEST(LayerNorm, LargeMeansDoNotCancel) {
  Values x = random_values(4 * 512, DType::float32, 1);
  for (double& value : x) value = rounded(value + 3000, DType::float32);
  const Values expected = naive_layer_norm(x, 512, 1e-5, {}, {});
  // The mean is rounded to 2^-13: relative to a deviation of 0.6 that is 2e-4 at most.
  expect_close(layer_norm(dense(x, {4, 512}, DType::float32), {512}), expected, 4e-4, "mean 3000");
}

TEST(LayerNorm, NanStaysInItsRow) {
  Values x = random_values(3 * 20, DType::float32, 1);
  x[25] = NAN;
  const Values y = layer_norm(dense(x, {3, 20}, DType::float32), {20}).to_doubles();
  for (std::size_t i = 0; i < y.size(); ++i) EXPECT_EQ(std::isnan(y[i]), i / 20 == 1) << i;
}

TEST(LayerNorm, TheOverloadForPatternsTakesTheLastAxis) {
  const Tensor x = dense(random_values(60, DType::float32, 1), {3, 4, 5}, DType::float32);
  const Tensor w = dense(random_values(5, DType::float32, 2), {5}, DType::float32);
  EXPECT_EQ(bytes_of(layer_norm(x, w, w, 1e-3)), bytes_of(layer_norm(x, {5}, w, w, 1e-3)));
}

/// Operands of bias_dropout_residual_layer_norm of shape (rows, n).
struct Block {
  Tensor input, bias, residual, weight, norm_bias;
};

Block random_block(const Extents& sizes, DType dtype, Arrangement layout) {
  const std::int64_t n = sizes.back();
  const auto make = [&](const Extents& shape, unsigned seed) {
    return arranged(random_values(shape.product(), dtype, seed), shape, dtype, layout);
  };
  return {make(sizes, 1), make({n}, 2), make(sizes, 3), make({n}, 4), make({n}, 5)};
}

TEST(BiasDropoutResidualLayerNorm, EqualsItsDecompositionBitForBit) {
  const Op& op = get_op("bias_dropout_residual_layer_norm");
  for (const DType dtype : {DType::float32, DType::float64}) {
    for (const Extents& sizes :
         {Extents{1, 5}, Extents{3, 7, 33}, Extents{40, 1024}, Extents{0, 4}}) {
      for (const Arrangement layout : kArrangements) {
        const Block b = random_block(sizes, dtype, layout);
        for (const DropoutMode mode : {DropoutMode::eval, DropoutMode::train}) {
          const Attrs attrs = BiasDropoutResidualLayerNormAttrs{0.3, 1e-5, mode, 11};
          const std::vector<Tensor> inputs = {b.input, b.bias, b.residual, b.weight, b.norm_bias};
          const Tensor fused = tenon::apply(op, inputs, attrs).at(0);
          const Tensor composed = op.decompose(inputs, attrs).at(0);
          EXPECT_EQ(bytes_of(fused) == bytes_of(composed), true)
              << name(dtype) << " " << kArrangementNames[static_cast<int>(layout)];
        }
      }
    }
  }
}

TEST(BiasDropoutResidualLayerNorm, SixteenBitFloatsAreRoundedOnce) {
  for (const DType dtype : {DType::float16, DType::bfloat16}) {
    const Block b = random_block({6, 100}, dtype, Arrangement::padded);
    const Tensor fused = bias_dropout_residual_layer_norm(
        b.input, b.bias, b.residual, b.weight, b.norm_bias, 0.1, 1e-5, DropoutMode::eval);
    const Values input = b.input.to_doubles();
    const Values bias = b.bias.to_doubles();
    const Values residual = b.residual.to_doubles();
    Values x(input.size());
    for (std::size_t i = 0; i < x.size(); ++i) x[i] = input[i] + bias[i % 100] + residual[i];
    expect_close(fused,
                 naive_layer_norm(x, 100, 1e-5, b.weight.to_doubles(), b.norm_bias.to_doubles()),
                 1e-5, std::string(name(dtype)));
  }
}

TEST(BiasDropoutResidualLayerNorm, DoesNotDependOnTheNumberOfThreads) {
  const Block b = random_block({100, 260}, DType::float32, Arrangement::contiguous);
  const Attrs attrs = BiasDropoutResidualLayerNormAttrs{0.3, 1e-5, DropoutMode::train, 2};
  expect_thread_invariant(
      [&] {
        return apply1(get_op("bias_dropout_residual_layer_norm"),
                      {b.input, b.bias, b.residual, b.weight, b.norm_bias}, attrs);
      },
      "fused");
  expect_thread_invariant([&] { return layer_norm(b.input, b.weight, b.bias); }, "layer_norm");
}

TEST(NormalizationErrors, NameShapesAndNeeds) {
  const Tensor x = zeros({2, 3, 4});
  EXPECT_ERROR(ShapeError, "[softmax] axis 3 of a tensor of rank 3; needed an axis from -3 to 2",
               softmax(x, 3));
  EXPECT_ERROR(DTypeError,
               "[softmax] operand 'input' is int64; needed float32, float64, float16 or bfloat16",
               softmax(zeros({3}, {DType::int64, kCpu}), 0));
  EXPECT_ERROR(
      ShapeError,
      "[layer_norm] input (2, 3, 4) and normalized_shape (3,); needed the sizes of the last axes",
      layer_norm(x, std::vector<std::int64_t>{3}));
  EXPECT_ERROR(
      ShapeError,
      "[layer_norm] input (2, 3, 4) and normalized_shape (); needed the sizes of the last axes",
      layer_norm(x, std::vector<std::int64_t>{}));
  EXPECT_ERROR(ShapeError,
               "[layer_norm] input (2, 3, 4) and weight (3,); needed the sizes of the last axes",
               layer_norm(x, zeros({3}), Tensor()));
  EXPECT_ERROR(ShapeError,
               "[layer_norm] input (2, 3, 4) and bias (3, 4); needed the sizes of the last 1 axes",
               layer_norm(x, Tensor(), zeros({3, 4})));
  EXPECT_ERROR(
      DTypeError,
      "[layer_norm] operand 'input' is float32 and operand 'weight' is float64, of shapes "
      "(2, 3, 4) and (4,); they must have one dtype: convert 'input' with .to(DType::float64)",
      layer_norm(x, zeros({4}, {DType::float64, kCpu}), Tensor()));
  const Tensor v = zeros({4});
  EXPECT_ERROR(
      ShapeError,
      "[bias_dropout_residual_layer_norm] input (2, 3, 4) and bias (3,); needed the shape (4,)",
      bias_dropout_residual_layer_norm(x, zeros({3}), x, v, v, 0.1));
  EXPECT_ERROR(
      ShapeError,
      "[bias_dropout_residual_layer_norm] input (2, 3, 4) and residual (3, 4); needed equal shapes",
      bias_dropout_residual_layer_norm(x, v, zeros({3, 4}), v, v, 0.1));
  EXPECT_ERROR(
      ValueError,
      "[bias_dropout_residual_layer_norm] dropout probability 1.5; needed a number from 0 to 1",
      bias_dropout_residual_layer_norm(x, v, x, v, v, 1.5));
}

}  // namespace
}  // namespace tenon::test
