// Gradients of matmul and linear against naive double sums, over shapes, dtypes and layouts.
#include <gtest/gtest.h>

#include "autograd/autograd.h"
#include "tests/support/broadcast_index.h"
#include "tests/tensor/strided_samples.h"

namespace tenon::test {
namespace product_gradient_test {

/// Values with, per element, the sum of the magnitudes of its terms: rounding grows with it.
struct Sums {
  explicit Sums(std::int64_t n)
      : values(static_cast<std::size_t>(n), 0), magnitudes(static_cast<std::size_t>(n), 0) {}
  void add(std::int64_t i, double term) {
    values[static_cast<std::size_t>(i)] += term;
    magnitudes[static_cast<std::size_t>(i)] += std::fabs(term);
  }
  /// `roundings` is how often a partial sum may be rounded to the operands' dtype.
  Values bounds(DType dtype, int roundings = 0) const {
    Values result;
    for (const double magnitude : magnitudes) {
      result.push_back((16 * compute_roundoff(dtype) + roundings * unit_roundoff(dtype)) *
                       magnitude);
    }
    return result;
  }
  Values values, magnitudes;
};

double at(const Values& values, std::int64_t i) { return values[static_cast<std::size_t>(i)]; }

struct MatmulSample {
  Extents a, b, batch;  // batch: of the result
};

/// a, b and gradients as (…, M, K), (…, K, N): dA = G·Bᵀ and dB = Aᵀ·G, summed over what was repeated.
std::pair<Sums, Sums> matmul_gradients(const MatmulSample& sample, const Values& a, const Values& b,
                                       const Values& gradient) {
  const std::int64_t m = sample.a.size() > 1 ? sample.a[sample.a.size() - 2] : 1;
  const std::int64_t k = sample.a.back();
  const std::int64_t n = sample.b.size() > 1 ? sample.b.back() : 1;
  Sums da(sample.a.product());
  Sums db(sample.b.product());
  for (std::int64_t batch = 0; batch < sample.batch.product(); ++batch) {
    const std::int64_t a0 = broadcast_index(batch, sample.batch, sample.a) * m * k;
    const std::int64_t b0 = broadcast_index(batch, sample.batch, sample.b) * k * n;
    for (std::int64_t i = 0; i < m; ++i) {
      for (std::int64_t j = 0; j < n; ++j) {
        const double g = at(gradient, (batch * m + i) * n + j);
        for (std::int64_t l = 0; l < k; ++l) {
          da.add(a0 + i * k + l, g * at(b, b0 + l * n + j));
          db.add(b0 + l * n + j, g * at(a, a0 + i * k + l));
        }
      }
    }
  }
  return {std::move(da), std::move(db)};
}

TEST(MatmulGradient, AgreesWithNaiveSumsInEveryLayout) {
  const MatmulSample samples[] = {
      {{1, 1}, {1, 1}, {}},
      {{5, 7}, {7, 9}, {}},
      {{50, 33}, {33, 1}, {}},
      {{1, 40}, {40, 33}, {}},
      {{3, 4, 5}, {3, 5, 6}, {3}},
      {{2, 1, 3, 4}, {5, 4, 6}, {2, 5}},
      {{4, 3}, {2, 3, 5}, {2}},
      {{2, 3, 4, 9}, {9, 5}, {2, 3}},
      {{2, 3, 1, 9}, {1, 1, 9, 5}, {2, 3}},
      {{3, 4, 9}, {1, 1, 9, 5}, {1, 3}},
      {{0, 3}, {3, 4}, {}},
      {{3, 0}, {0, 4}, {}},
      {{0, 2, 3}, {0, 3, 4}, {0}},
      {{0, 2, 3}, {3, 4}, {0}},
      {{6}, {6}, {}},
      {{6}, {6, 4}, {}},
      {{3, 6}, {6}, {}},
      {{6}, {2, 6, 4}, {2}},
      {{2, 3, 6}, {6}, {2}},
      {{7, 98, 20}, {20, 66}, {7}},
  };
  for (std::size_t s = 0; s < std::size(samples); ++s) {
    const MatmulSample& sample = samples[s];
    Extents result = sample.batch;
    if (sample.a.size() > 1) result.push_back(sample.a[sample.a.size() - 2]);
    if (sample.b.size() > 1) result.push_back(sample.b.back());
    for (const DType dtype : kFloats) {
      const Values a = random_values(sample.a.product(), dtype, 1);
      const Values b = random_values(sample.b.product(), dtype, 2);
      const Values g = random_values(result.product(), dtype, 3);
      const auto [da, db] = matmul_gradients(sample, a, b, g);
      for (const Arrangement layout : kArrangements) {
        const Tensor x = arranged(a, sample.a, dtype, layout).requires_grad_();
        const Tensor y = arranged(b, sample.b, dtype, layout).requires_grad_();
        backward(matmul(x, y), arranged(g, result, dtype, layout));
        const std::string what = "sample " + std::to_string(s) + " " + std::string(name(dtype)) +
                                 " " + kArrangementNames[static_cast<int>(layout)];
        expect_close(x.grad(), da.values, da.bounds(dtype, 1), what + " input");
        expect_close(y.grad(), db.values, db.bounds(dtype, 1), what + " other");
        EXPECT_EQ(x.grad().shape(), x.shape()) << what;
        EXPECT_EQ(y.grad().shape(), y.shape()) << what;
      }
    }
  }
}

TEST(LinearGradient, AgreesWithNaiveSumsInEveryLayout) {
  struct Sample {
    Extents input;
    std::int64_t columns;
  };
  const Sample samples[] = {{{1, 1}, 1},        {{7}, 5},      {{3, 5, 7}, 17}, {{2, 0, 5}, 4},
                            {{3, 0}, 5},        {{4, 6}, 0},   {{98, 40}, 70},  {{2, 31, 9}, 3},
                            {{2, 2, 9, 8}, 16}, {{600, 9}, 20}};
  for (std::size_t s = 0; s < std::size(samples); ++s) {
    const Extents& sizes = samples[s].input;
    const std::int64_t columns = samples[s].columns;
    const std::int64_t depth = sizes.back();
    Extents result = sizes;
    result[result.size() - 1] = columns;
    std::int64_t rows = 1;
    for (int i = 0; i + 1 < sizes.size(); ++i) rows *= sizes[i];
    for (const DType dtype : kFloats) {
      const Values a = random_values(rows * depth, dtype, 1);
      const Values w = random_values(columns * depth, dtype, 2);
      const Values bias = random_values(columns, dtype, 3);
      const Values g = random_values(rows * columns, dtype, 4);
      Sums da(rows * depth);
      Sums dw(columns * depth);
      Sums db(columns);
      for (std::int64_t r = 0; r < rows; ++r) {
        for (std::int64_t n = 0; n < columns; ++n) {
          const double gradient = at(g, r * columns + n);
          db.add(n, gradient);
          for (std::int64_t k = 0; k < depth; ++k) {
            da.add(r * depth + k, gradient * at(w, n * depth + k));
            dw.add(n * depth + k, gradient * at(a, r * depth + k));
          }
        }
      }
      for (const Arrangement layout : kArrangements) {
        const Tensor x = arranged(a, sizes, dtype, layout).requires_grad_();
        const Tensor weight = arranged(w, {columns, depth}, dtype, layout).requires_grad_();
        const Tensor b = arranged(bias, {columns}, dtype, layout).requires_grad_();
        backward(linear(x, weight, b), arranged(g, result, dtype, layout));
        const std::string what = "sample " + std::to_string(s) + " " + std::string(name(dtype)) +
                                 " " + kArrangementNames[static_cast<int>(layout)];
        expect_close(x.grad(), da.values, da.bounds(dtype), what + " input");
        expect_close(weight.grad(), dw.values, dw.bounds(dtype), what + " weight");
        expect_close(b.grad(), db.values, db.bounds(dtype), what + " bias");
      }
    }
  }
}

TEST(LinearGradient, OfABroadcastCotangentSumsColumns) {
  const Tensor x = randn({3, 5, 4}).requires_grad_();
  const Tensor weight = randn({6, 4}).requires_grad_();
  backward(sum(linear(x, weight)));
  const Tensor columns = sum(x.detach(), {0, 1});
  for (std::int64_t n = 0; n < 6; ++n) {
    expect_close(weight.grad().narrow(0, n, 1), columns.to_doubles(), 1e-5, "weight row");
  }
  EXPECT_EQ(x.grad().shape(), x.shape());
}

TEST(ProductGradient, IsTheSameOnAnyNumberOfThreads) {
  const Tensor x = randn({4, 300, 65});
  const Tensor weight = randn({70, 65}).requires_grad_();
  const Tensor gradient = randn({4, 300, 70});
  expect_thread_invariant(
      [&] {
        weight.impl()->grad = nullptr;
        backward(linear(x, weight), gradient);
        return weight.grad();
      },
      "weight gradient");
}

TEST(ProductGradient, CanBeDifferentiatedAgain) {
  const Tensor x = randn({3, 4}, {DType::float64}).requires_grad_();
  const Tensor weight = randn({5, 4}, {DType::float64}).requires_grad_();
  const Tensor y = linear(x, weight);
  const Tensor loss = sum(y * y);
  const std::vector<Tensor> first =
      grad(std::span(&loss, 1), std::span(&x, 1), {}, {.create_graph = true});
  // d/dx Σ (x·Wᵀ)² = 2x·WᵀW, whose sum has the gradient 2·WᵀW·1 for every row of x.
  const Tensor total = sum(first[0]);
  const std::vector<Tensor> second = grad(std::span(&total, 1), std::span(&x, 1));
  const Tensor w = weight.detach();
  const Tensor expected = sum(matmul(w.transpose(0, 1), w), {0}) * 2.0;
  for (std::int64_t row = 0; row < 3; ++row) {
    expect_close(second[0].narrow(0, row, 1), expected.to_doubles(), 1e-12, "second derivative");
  }
}

}  // namespace product_gradient_test
}  // namespace tenon::test
