// matmul and linear against a naive double product, over shapes, dtypes and layouts.
#include <gtest/gtest.h>

#include "tensor/error.h"
#include "tensor/interpreter.h"
#include "tests/support/broadcast_index.h"
#include "tests/support/expect_error.h"
#include "tests/tensor/strided_samples.h"

namespace tenon::test {
namespace {

struct Product {
  Values values;
  Values magnitudes;  // Σ |terms|, to which rounding errors are proportional
};

/// C (rows, columns) = A (rows, depth)·B, B given by b(k, n).
template <class B>
void multiply(Product& out, const double* a, std::int64_t rows, std::int64_t columns,
              std::int64_t depth, B b) {
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t n = 0; n < columns; ++n) {
      double sum = 0;
      double magnitude = 0;
      for (std::int64_t k = 0; k < depth; ++k) {
        const double term = a[r * depth + k] * b(k, n);
        sum += term;
        magnitude += std::fabs(term);
      }
      out.values.push_back(sum);
      out.magnitudes.push_back(magnitude);
    }
  }
}

Values bounds(const Product& product, DType dtype) {
  Values result;
  for (const double magnitude : product.magnitudes) {
    result.push_back(16 * compute_roundoff(dtype) * magnitude);
  }
  return result;
}

std::int64_t first_rows(const Extents& sizes) {
  std::int64_t rows = 1;
  for (int i = 0; i + 1 < sizes.size(); ++i) rows *= sizes[i];
  return rows;
}

std::string label(const char* op, DType dtype, Arrangement a, Arrangement b, std::size_t sample) {
  return std::string(op) + " sample " + std::to_string(sample) + " " + std::string(name(dtype)) +
         " " + kArrangementNames[static_cast<int>(a)] + " x " +
         kArrangementNames[static_cast<int>(b)];
}

struct LinearSample {
  Extents input;
  std::int64_t columns;
};

TEST(Linear, AgreesWithTheNaiveProductInEveryLayout) {
  const LinearSample samples[] = {{{1, 1}, 1},  {{7}, 5},         {{1, 13}, 33},   {{3, 5, 7}, 17},
                                  {{9, 1}, 40}, {{13, 8}, 16},    {{2, 0, 5}, 4},  {{3, 0}, 5},
                                  {{4, 6}, 0},  {{98, 260}, 130}, {{2, 31, 9}, 3}, {{5, 300}, 70}};
  for (std::size_t s = 0; s < std::size(samples); ++s) {
    const Extents& sizes = samples[s].input;
    const std::int64_t depth = sizes.back();
    const std::int64_t columns = samples[s].columns;
    const std::int64_t rows = first_rows(sizes);
    for (const DType dtype : kFloats) {
      const Values a = random_values(rows * depth, dtype, 1);
      const Values w = random_values(columns * depth, dtype, 2);
      const Values bias = random_values(columns, dtype, 3);
      Product expected;
      multiply(expected, a.data(), rows, columns, depth,
               [&](auto k, auto n) { return w[static_cast<std::size_t>(n * depth + k)]; });
      Product with_bias = expected;
      for (std::size_t i = 0; i < expected.values.size(); ++i) {
        with_bias.values[i] += bias[i % bias.size()];
        with_bias.magnitudes[i] += std::fabs(bias[i % bias.size()]);
      }
      for (const Arrangement x : kArrangements) {
        for (const Arrangement y : kArrangements) {
          const Tensor input = arranged(a, sizes, dtype, x);
          const Tensor weight = arranged(w, {columns, depth}, dtype, y);
          const std::string what = label("linear", dtype, x, y, s);
          expect_close(linear(input, weight), expected.values, bounds(expected, dtype), what);
          expect_close(linear(input, weight, arranged(bias, {columns}, dtype, x)), with_bias.values,
                       bounds(with_bias, dtype), what + " with bias");
        }
      }
    }
  }
}

struct MatmulSample {
  Extents a, b, batch;  // batch: of the result
};

TEST(Matmul, AgreesWithTheNaiveProductInEveryLayout) {
  const MatmulSample samples[] = {
      {{1, 1}, {1, 1}, {}},
      {{5, 7}, {7, 9}, {}},
      {{1, 40}, {40, 33}, {}},
      {{50, 33}, {33, 1}, {}},
      {{3, 4, 5}, {3, 5, 6}, {3}},
      {{2, 1, 3, 4}, {5, 4, 6}, {2, 5}},
      {{4, 3}, {2, 3, 5}, {2}},
      {{2, 3, 4, 9}, {9, 5}, {2, 3}},
      {{2, 3, 1, 9}, {1, 1, 9, 5}, {2, 3}},
      {{0, 3}, {3, 4}, {}},
      {{3, 0}, {0, 4}, {}},
      {{0, 2, 3}, {0, 3, 4}, {0}},
      {{100, 270}, {270, 150}, {}},
      {{7, 98, 20}, {7, 20, 66}, {7}},
  };
  for (std::size_t s = 0; s < std::size(samples); ++s) {
    const auto& [a_sizes, b_sizes, batch] = samples[s];
    const std::int64_t m = a_sizes[a_sizes.size() - 2];
    const std::int64_t k = a_sizes.back();
    const std::int64_t n = b_sizes.back();
    for (const DType dtype : kFloats) {
      const Values a = random_values(a_sizes.product(), dtype, 1);
      const Values b = random_values(b_sizes.product(), dtype, 2);
      Product expected;
      for (std::int64_t i = 0; i < batch.product(); ++i) {
        const double* matrix_a = a.data() + broadcast_index(i, batch, a_sizes) * m * k;
        const double* matrix_b = b.data() + broadcast_index(i, batch, b_sizes) * k * n;
        multiply(expected, matrix_a, m, n, k, [&](auto p, auto q) { return matrix_b[p * n + q]; });
      }
      for (const Arrangement x : kArrangements) {
        for (const Arrangement y : kArrangements) {
          const Tensor result =
              matmul(arranged(a, a_sizes, dtype, x), arranged(b, b_sizes, dtype, y));
          Extents sizes = batch;
          sizes.push_back(m);
          sizes.push_back(n);
          ASSERT_EQ(result.layout().sizes, sizes);
          expect_close(result, expected.values, bounds(expected, dtype),
                       label("matmul", dtype, x, y, s));
        }
      }
    }
  }
}

TEST(Matmul, TakesOneDimensionalOperandsLikePyTorch) {
  const Tensor vector = tensor({1, 2, 3}, {3});
  const Tensor matrix = tensor({1, 0, 2, 0, 1, 1}, {3, 2});
  const Tensor dot = matmul(vector, tensor({4, 5, 6}, {3}));
  EXPECT_EQ(dot.dim(), 0);
  EXPECT_EQ(dot.item(), 32);
  EXPECT_EQ(matmul(vector, matrix).to_doubles(), (Values{8, 3}));
  EXPECT_EQ(matmul(vector, matrix).layout().sizes, Extents({2}));
  EXPECT_EQ(matmul(matrix.transpose(0, 1), vector).to_doubles(), (Values{8, 3}));
  const Tensor batched = matmul(vector, matrix.unsqueeze(0).expand({4, 3, 2}));
  EXPECT_EQ(batched.layout().sizes, Extents({4, 2}));
  EXPECT_EQ(batched.to_doubles(), (Values{8, 3, 8, 3, 8, 3, 8, 3}));
}

/// Sizes beyond what is packed at once, along each of columns, rows and batches.
TEST(Matmul, BlocksOfLargeOperandsMeetExactly) {
  const MatmulSample samples[] = {{{30, 3000}, {3000, 700}, {}},
                                  {{800, 3000}, {3000, 20}, {}},
                                  {{60, 100, 300}, {60, 300, 8}, {60}}};
  for (std::size_t s = 0; s < std::size(samples); ++s) {
    const auto& [a_sizes, b_sizes, batch] = samples[s];
    const std::int64_t m = a_sizes[a_sizes.size() - 2];
    const std::int64_t k = a_sizes.back();
    const std::int64_t n = b_sizes.back();
    // Small integers: every order of summation gives the same exact result.
    const auto integers = [](std::int64_t count, unsigned seed) {
      Values values = random_values(count, DType::float64, seed);
      for (double& value : values) value = std::floor(value * 4);
      return values;
    };
    const Values a = integers(a_sizes.product(), 1);
    const Values b = integers(b_sizes.product(), 2);
    Product expected;
    for (std::int64_t i = 0; i < batch.product(); ++i) {
      multiply(expected, a.data() + i * m * k, m, n, k,
               [&](auto p, auto q) { return b[static_cast<std::size_t>((i * k + p) * n + q)]; });
    }
    const Tensor result =
        matmul(dense(a, a_sizes, DType::float32), dense(b, b_sizes, DType::float32));
    EXPECT_EQ(result.to_doubles() == expected.values, true) << "sample " << s;
  }
}

TEST(Matmul, DoesNotDependOnTheNumberOfThreads) {
  for (const DType dtype : kFloats) {
    const Tensor a = dense(random_values(3 * 130 * 300, dtype, 1), {3, 130, 300}, dtype);
    const Tensor b = dense(random_values(3 * 300 * 200, dtype, 2), {3, 300, 200}, dtype);
    const Tensor w = dense(random_values(90 * 300, dtype, 3), {90, 300}, dtype);
    const Tensor row = dense(random_values(300, dtype, 4), {1, 300}, dtype);
    expect_thread_invariant([&] { return matmul(a, b); }, "matmul");
    expect_thread_invariant([&] { return linear(a, w); }, "linear");
    expect_thread_invariant([&] { return linear(row, w); }, "linear of one row");
  }
}

TEST(Matmul, ExpandedOperandsWithStrideZero) {
  const Values column = random_values(20, DType::float32, 1);
  const Tensor a = strided(column, {20, 1}, {1, 1}, 0, DType::float32).expand({20, 12});
  const Tensor b = strided({0.5}, {1}, {1}, 0, DType::float32).expand({12, 9});
  const Values result = matmul(a, b).to_doubles();
  for (std::size_t i = 0; i < result.size(); ++i) EXPECT_FLOAT_EQ(result[i], 6 * column[i / 9]);
}

TEST(Matmul, NanAndInfReachExactlyTheirRowAndColumn) {
  for (const std::int64_t rows : {3, 40}) {  // both the unpacked and the packed path
    Values a(static_cast<std::size_t>(rows * 20), 1.0);
    a[20 + 3] = NAN;
    Values w(50 * 20, 1.0);
    w[7 * 20 + 5] = INFINITY;
    const Tensor result =
        linear(dense(a, {rows, 20}, DType::float32), dense(w, {50, 20}, DType::float32));
    const Values values = result.to_doubles();
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t n = 0; n < 50; ++n) {
        const double value = values[static_cast<std::size_t>(r * 50 + n)];
        if (r == 1) {
          EXPECT_TRUE(std::isnan(value)) << r << ", " << n;
        } else {
          EXPECT_EQ(value, n == 7 ? INFINITY : 20.0) << r << ", " << n;
        }
      }
    }
  }
}

TEST(Linear, SixteenBitSumsAndBiasAreRoundedOnce) {
  // 256 + 1 needs nine bits: rounded to bfloat16 before the bias it would be 256, and the result 0.
  const Tensor input = tensor({256, 1}, {1, 2}, {DType::bfloat16, kCpu});
  const Tensor weight = tensor({1, 1}, {1, 2}, {DType::bfloat16, kCpu});
  const Tensor bias = tensor({-256}, {1}, {DType::bfloat16, kCpu});
  EXPECT_EQ(linear(input, weight, bias).item(), 1.0);
  const Tensor rows = tensor({256, 1}, {1, 2}, {DType::bfloat16, kCpu}).expand({20, 2});
  EXPECT_EQ(linear(rows, weight, bias).to_doubles(), Values(20, 1.0));
}

TEST(Matmul, WritesPermutedOutputs) {
  const Tensor a =
      dense(random_values(2 * 3 * 50 * 20, DType::float32, 1), {2, 3, 50, 20}, DType::float32);
  const Tensor b =
      dense(random_values(2 * 3 * 20 * 30, DType::float32, 2), {2, 3, 20, 30}, DType::float32);
  const Values expected = matmul(a, b).to_doubles();
  // (B, H, L, D) stored as (B, L, H, D).
  const Tensor output =
      strided(Values(9000, 0.0), {2, 3, 50, 30}, {4500, 30, 90, 1}, 0, DType::float32);
  const Op& op = get_op("matmul");
  ASSERT_TRUE(op.kernels(DeviceType::cpu)[0].strided_output);
  const TensorView inputs[] = {a.view_of_data(), b.view_of_data()};
  const TensorView outputs[] = {output.view_of_data()};
  op.kernels(DeviceType::cpu)[0].run({.op = &op, .inputs = inputs, .outputs = outputs});
  EXPECT_EQ(output.to_doubles(), expected);
}

TEST(Matmul, CountsFlops) {
  const Tensor a = zeros({2, 5, 7});
  const Tensor b = zeros({7, 9});
  const Tensor c = matmul(a, b);
  const TensorView inputs[] = {a.view_of_data(), b.view_of_data()};
  const TensorView outputs[] = {c.view_of_data()};
  EXPECT_EQ(get_op("matmul").flops({.inputs = inputs, .outputs = outputs}), 2.0 * 2 * 5 * 7 * 9);
}

TEST(MatmulErrors, NameShapesAndDtypes) {
  EXPECT_EQ(error_text<ShapeError>([] {
              matmul(zeros({2, 3, 4}), zeros({5, 6}));
            }),
            "[matmul] (2, 3, 4) x (5, 6); the last axis of input (4) must equal the second-last of "
            "other (5)");
  EXPECT_EQ(error_text<ShapeError>([] {
              matmul(zeros({}), zeros({5, 6}));
            }),
            "[matmul] () x (5, 6); needed operands of at least one axis");
  EXPECT_EQ(error_text<ShapeError>([] {
              matmul(zeros({2, 3, 4}), zeros({3, 4, 5}));
            }),
            "[matmul] (2, 3, 4) x (3, 4, 5); leading axes must broadcast: equal, or one of them 1");
  EXPECT_NE(error_text<DTypeError>([] {
              matmul(zeros({2, 3}), zeros({3, 4}, {DType::float64, kCpu}));
            }).find("[matmul] operand 'input' is float32 and operand 'other' is float64"),
            std::string::npos);
  EXPECT_NE(error_text<DTypeError>([] {
              matmul(zeros({2, 3}, {DType::int64, kCpu}), zeros({3, 4}, {DType::int64, kCpu}));
            }).find("[matmul] operand 'input' is int64; needed float32"),
            std::string::npos);
  EXPECT_EQ(error_text<ShapeError>([] {
              linear(zeros({2, 3}), zeros({5, 4}));
            }),
            "[linear] input (2, 3) and weight (5, 4); the last axis of input (3) must equal the "
            "weight's second (4)");
  EXPECT_EQ(error_text<ShapeError>([] {
              linear(zeros({2, 3}), zeros({5}));
            }),
            "[linear] input (2, 3) and weight (5,); needed (…, K) and (N, K)");
  EXPECT_EQ(error_text<ShapeError>([] {
              linear(zeros({2, 3}), zeros({5, 3}), zeros({4}));
            }),
            "[linear] weight (5, 3) and bias (4,); needed a bias of shape (5,)");
  EXPECT_EQ(error_text<ValueError>([] {
              linear(zeros({2, 3}), Tensor());
            }),
            "[linear] operand 'weight' is undefined");
}

}  // namespace
}  // namespace tenon::test
