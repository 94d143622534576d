// Queries that see no key: zeros, a log-sum-exp of -inf and zero gradients, by the kernels, by the
// decompositions and through them; and what is not hidden: large negative numbers, NaN, overflow.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "autograd/autograd.h"
#include "tensor/interpreter.h"
#include "tensor/ops/attributes.h"
#include "tensor/random.h"
#include "tensor/rules/gradients.h"
#include "tests/tensor/strided_samples.h"

namespace tenon::test {
namespace attention_unseen_test {

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr std::int64_t kHeads = 2, kQueries = 60, kKeys = 140, kDepth = 8;
const Op& attention_op() { return get_op("scaled_dot_product_attention"); }

/// Queries in the middle of a block of them, at its ends, and two in a row.
bool is_hidden(std::int64_t query) {
  return query == 0 || query == 20 || query == 47 || query == 48 || query == kQueries - 1;
}

/// A mask of these sizes; those without a size per query hide every query of the first head.
struct MaskKind {
  const char* name;
  bool boolean;
  Extents sizes;
};
const MaskKind kMasks[] = {
    {"bool (L, S)", true, {kQueries, kKeys}},
    {"bool (H, L, 1)", true, {kHeads, kQueries, 1}},
    {"bool (H, 1, S)", true, {kHeads, 1, kKeys}},
    {"additive (L, S)", false, {kQueries, kKeys}},
    {"additive (L, 1)", false, {kQueries, 1}},
    {"additive (H, L, S)", false, {kHeads, kQueries, kKeys}},
    {"additive (H, 1, 1)", false, {kHeads, 1, 1}},
};

bool hides(const MaskKind& kind, std::int64_t head, std::int64_t query) {
  return kind.sizes[kind.sizes.size() - 2] == 1 ? head == 0 : is_hidden(query);
}

Tensor make_mask(const MaskKind& kind, DType dtype) {
  Values values = random_values(kind.sizes.product(), dtype, 5);
  const std::int64_t columns = kind.sizes.back();
  const std::int64_t rows = kind.sizes[kind.sizes.size() - 2];
  for (std::size_t i = 0; i < values.size(); ++i) {
    const std::int64_t row = static_cast<std::int64_t>(i) / columns;
    const std::int64_t column = static_cast<std::int64_t>(i) % columns;
    const bool hidden = hides(kind, row / rows, row % rows);
    if (kind.boolean) {
      values[i] = !hidden && (values[i] > -0.5 || column == 0) ? 1 : 0;
    } else if (hidden || (column > 0 && values[i] < -0.5)) {
      values[i] = -kInf;
    }
  }
  const Shape shape(std::vector<Dim>(kind.sizes.begin(), kind.sizes.end()));
  return tensor(values, shape, {kind.boolean ? DType::boolean : dtype, kCpu});
}

struct Sample {
  Tensor q, k, v, mask;
  AttentionAttrs attrs;

  Sample(const MaskKind& kind, DType dtype, double p)
      : q(make(kQueries, dtype, 1)),
        k(make(kKeys, dtype, 2)),
        v(make(kKeys, dtype, 3)),
        mask(make_mask(kind, dtype)),
        attrs{p, false, Scalar(0.4), DropoutMode::train, 3} {}
  static Tensor make(std::int64_t rows, DType dtype, unsigned seed) {
    return dense(random_values(kHeads * rows * kDepth, dtype, seed), {kHeads, rows, kDepth}, dtype);
  }
  std::vector<Tensor> operands() const { return {q, k, v, mask}; }
};

/// Calls f(sample, kind, what) for every dtype and mask, without and with dropout.
template <class F>
void for_each_sample(F f) {
  for (const DType dtype : kFloats) {
    for (const MaskKind& kind : kMasks) {
      for (const double p : {0.0, 0.3}) {
        manual_seed(11);
        f(Sample(kind, dtype, p), kind,
          std::string(name(dtype)) + " " + kind.name + " p=" + std::to_string(p));
      }
    }
  }
}

/// Row (head, query) of `rows`, which has `n` values a row, is zero or `hidden_value` if hidden, else
/// finite and, of more than one value, not all zero.
void expect_rows(const Tensor& rows, const MaskKind& kind, std::int64_t n, double hidden_value,
                 const std::string& what) {
  const Values values = rows.to_doubles();
  ASSERT_EQ(values.size(), static_cast<std::size_t>(kHeads * kQueries * n)) << what;
  for (std::int64_t row = 0; row < kHeads * kQueries; ++row) {
    const bool hidden = hides(kind, row / kQueries, row % kQueries);
    bool nonzero = false;
    for (std::int64_t i = row * n; i < (row + 1) * n; ++i) {
      const double value = values[static_cast<std::size_t>(i)];
      const bool right = hidden ? value == hidden_value : std::isfinite(value);
      ASSERT_TRUE(right) << what << ", row " << row << " is " << value;
      nonzero = nonzero || value != 0;
    }
    ASSERT_TRUE(hidden || n == 1 || nonzero) << what << ", row " << row;
  }
}

void expect_finite(const Tensor& tensor, const std::string& what) {
  for (const double value : tensor.to_doubles()) ASSERT_TRUE(std::isfinite(value)) << what;
}

TEST(AttentionUnseen, QueriesGetZerosAndALogSumExpOfMinusInfinity) {
  for_each_sample([](const Sample& s, const MaskKind& kind, const std::string& what) {
    const Attrs attrs = s.attrs;
    const auto kept = tenon::apply(get_op("scaled_dot_product_attention_lse"), s.operands(), attrs);
    expect_rows(kept[0], kind, kDepth, 0, what);
    expect_rows(kept[1], kind, 1, -kInf, what + " lse");
    const Tensor plain = tenon::apply(attention_op(), s.operands(), attrs).at(0);
    expect_rows(plain, kind, kDepth, 0, what);
    const Tensor composed = attention_op().decompose(s.operands(), attrs).at(0);
    expect_rows(composed, kind, kDepth, 0, what + " decomposed");
    expect_close(plain, composed.to_doubles(), 12 * unit_roundoff(s.q.dtype()), what);
  });
}

/// The gradients of a call by `forward`, in operand order.
template <class Forward>
std::vector<Tensor> gradients(const Sample& s, Forward forward) {
  manual_seed(11);
  std::vector<Tensor> leaves;
  for (const Tensor& operand : s.operands()) {
    leaves.push_back(operand.detach());
    if (is_floating(operand.dtype())) leaves.back().requires_grad_();
  }
  backward(forward(leaves), Sample::make(kQueries, s.q.dtype(), 9));
  std::vector<Tensor> result;
  for (const Tensor& leaf : leaves) result.push_back(leaf.grad());
  return result;
}

/// Where the mask hides a query whole, the mask has no gradient.
void expect_mask_gradient(const Tensor& gradient, const MaskKind& kind, const std::string& what) {
  const Values values = gradient.to_doubles();
  const std::int64_t columns = kind.sizes.back();
  const std::int64_t rows = kind.sizes[kind.sizes.size() - 2];
  for (std::size_t i = 0; i < values.size(); ++i) {
    const std::int64_t row = static_cast<std::int64_t>(i) / columns;
    const bool hidden = hides(kind, row / rows, row % rows);
    ASSERT_TRUE(hidden ? values[i] == 0 : std::isfinite(values[i])) << what << ", mask " << i;
  }
}

TEST(AttentionUnseen, QueriesHaveNoGradientAndReachNoOther) {
  for_each_sample([](const Sample& s, const MaskKind& kind, const std::string& what) {
    const Attrs attrs = s.attrs;
    const auto fused = gradients(s, [&](const std::vector<Tensor>& leaves) {
      return tenon::apply(attention_op(), leaves, attrs).at(0);
    });
    const auto composed = gradients(s, [&](const std::vector<Tensor>& leaves) {
      return attention_op().decompose(leaves, attrs).at(0);
    });
    for (const auto& [found, by] : {std::pair{fused, " fused"}, {composed, " decomposed"}}) {
      expect_rows(found[0], kind, kDepth, 0, what + by);
      for (std::size_t i = 1; i < 4; ++i) {
        if (found[i]) expect_finite(found[i], what + by + " " + std::to_string(i));
      }
    }
    // What reaches the others is what the composition lets reach them.
    double largest = 0;
    for (std::size_t i = 0; i < 3; ++i) {
      for (const double x : composed[i].to_doubles()) largest = std::max(largest, std::abs(x));
    }
    for (std::size_t i = 0; i < 3; ++i) {
      expect_close(fused[i], composed[i].to_doubles(), 24 * unit_roundoff(s.q.dtype()) * largest,
                   what + " " + std::to_string(i));
    }
    if (kind.boolean) return;
    for (const Tensor& mask : {fused[3], composed[3]}) expect_mask_gradient(mask, kind, what);
  });
}

TEST(AttentionUnseen, TheBackwardOpNeedsNoStatisticsForIt) {
  for_each_sample([](const Sample& s, const MaskKind& kind, const std::string& what) {
    const Attrs forward = s.attrs;
    const Tensor output = tenon::apply(attention_op(), s.operands(), forward).at(0);
    const Tensor g = Sample::make(kQueries, s.q.dtype(), 9);
    const AttentionBackwardAttrs attrs{s.attrs, !kind.boolean};
    const auto fused =
        ops::scaled_dot_product_attention_backward(g, s.q, s.k, s.v, output, s.mask, attrs, {});
    const std::vector<Tensor> inputs = {g, s.q, s.k, s.v, output, s.mask};
    const auto composed =
        get_op("scaled_dot_product_attention_backward").decompose(inputs, Attrs(attrs));
    for (const auto& found : {fused, composed}) {
      expect_rows(found[0], kind, kDepth, 0, what);
      for (std::size_t i = 1; i < found.size(); ++i) expect_finite(found[i], what);
    }
  });
}

TEST(AttentionUnseen, QueriesOfANetworkThatTrainsOnPaddingKeepItsWeightsFinite) {
  // Softmax's NaN would reach every weight, though the loss looks at the first sequence alone.
  const Tensor x = randn({2, 5, 8});
  const Tensor seen = tensor({1, 1, 1, 1, 1, 0, 0, 0, 0, 0}, {2, 1, 5}, {DType::boolean, kCpu});
  Tensor w = randn({8, 8}).requires_grad_();
  const Tensor y = linear(x, w);
  const Tensor z = scaled_dot_product_attention(y, y, y, seen);
  backward(sum(square(z)));
  expect_finite(w.grad(), "weight");
  EXPECT_EQ(z.narrow(0, 1, 1).to_doubles(), Values(40, 0.0));
}

TEST(AttentionUnseen, SecondDerivativesAreFiniteToo) {
  const Tensor mask = tensor({1, 1, 0, 0, 0, 0}, {3, 2}, {DType::boolean, kCpu});
  const Tensor q = randn({3, 4}, {DType::float64}).requires_grad_();
  const Tensor k = randn({2, 4}, {DType::float64}).requires_grad_();
  const Tensor loss = sum(square(scaled_dot_product_attention(q, k, k, mask)));
  const Tensor first = grad(std::span(&loss, 1), std::span(&q, 1), {}, {.create_graph = true})[0];
  const Tensor norm = sum(square(first));
  const Tensor leaves[] = {q, k};
  for (const Tensor& second : grad(std::span(&norm, 1), leaves)) expect_finite(second, "second");
}

TEST(AttentionUnseen, NoKeysAtAllGiveZerosUnderAMaskToo) {
  for (const DType mask_dtype : {DType::boolean, DType::float32}) {
    const std::vector<Tensor> operands = {ones({2, 3, 4}), ones({2, 0, 4}), ones({2, 0, 5}),
                                          zeros({3, 0}, {mask_dtype, kCpu})};
    const Attrs attrs = AttentionAttrs{.scale = 1.0};
    EXPECT_EQ(tenon::apply(attention_op(), operands, attrs)[0].to_doubles(), Values(30, 0.0));
    EXPECT_EQ(attention_op().decompose(operands, attrs)[0].to_doubles(), Values(30, 0.0));
  }
}

TEST(AttentionUnseen, LargeNegativeNumbersHideNothing) {
  for (const DType dtype : kFloats) {
    const double lowest = dtype == DType::float16    ? -65504
                          : dtype == DType::bfloat16 ? -3e38
                          : dtype == DType::float32  ? -1e30
                                                     : -1e300;
    const Tensor q = zeros({2, 4}, {dtype, kCpu});
    const Tensor v = tensor({1, 2, 3, 4, 5, 6}, {3, 2}, {dtype, kCpu});
    const Tensor y = scaled_dot_product_attention(q, zeros({3, 4}, {dtype, kCpu}), v,
                                                  full({2, 3}, lowest, {dtype, kCpu}));
    EXPECT_EQ(y.to_doubles(), (Values{3, 4, 3, 4})) << name(dtype);
  }
}

/// Far below zero nothing is left of the scores' differences in float32: a plain mean, whose gradients by
/// queries and keys are those of scores that stand still together.
TEST(AttentionUnseen, KeysThatAreAllFarBelowZeroHaveTheSameWeight) {
  for (const DType dtype : kFloats) {
    if (dtype == DType::float16) continue;  // its numbers are not so low
    for (const double low : {-1e9, dtype == DType::bfloat16 ? -0x1.fep127 : -0x1.fffffep127}) {
      if (dtype == DType::float64 && low == -1e9) continue;  // keeps the differences
      Sample s(kMasks[0], dtype, 0);
      for (const Extents& sizes : {Extents{kQueries, kKeys}, Extents{kHeads, 1, kKeys}}) {
        const Shape shape(std::vector<Dim>(sizes.begin(), sizes.end()));
        std::vector<Tensor> leaves = {s.q, s.k, s.v, full(shape, low, {dtype, kCpu})};
        for (Tensor& leaf : leaves) leaf = leaf.detach().requires_grad_();
        const Attrs attrs = s.attrs;
        const Tensor y = tenon::apply(attention_op(), leaves, attrs)[0];
        backward(y, ones(y.shape(), {dtype, kCpu}));
        const Values got = y.to_doubles(), mean_of = mean(s.v.to(DType::float64), {1}).to_doubles();
        const double allowed = 4 * unit_roundoff(dtype) + 1e-6 * (dtype == DType::float64 ? 0 : 1);
        for (std::size_t i = 0; i < got.size(); ++i) {
          const std::size_t head = i / (kQueries * kDepth);
          ASSERT_NEAR(got[i], mean_of[head * kDepth + i % kDepth], allowed)
              << name(dtype) << " " << low << ", element " << i;
        }
        for (const double weight : leaves[2].grad().to_doubles()) {
          const double exact = static_cast<double>(kQueries) / kKeys;
          ASSERT_NEAR(weight, exact, 4 * unit_roundoff(dtype) + 1e-6) << name(dtype) << " " << low;
        }
      }
    }
  }
}

TEST(AttentionUnseen, NanAmongHiddenKeysStays) {
  const Tensor v = ones({2, 2});
  const Attrs attrs = AttentionAttrs{.scale = 1.0};
  // NaN in the mask, and in the score of the only key that a query sees.
  const std::vector<Tensor> in_mask = {ones({1, 2}), ones({2, 2}), v, tensor({-kInf, NAN}, {1, 2})};
  const std::vector<Tensor> in_score = {ones({1, 2}), tensor({1, 1, NAN, 1}, {2, 2}), v,
                                        tensor({0, 1}, {1, 2}, {DType::boolean, kCpu})};
  for (const auto& operands : {in_mask, in_score}) {
    for (const Tensor& y : {tenon::apply(attention_op(), operands, attrs)[0],
                            attention_op().decompose(operands, attrs)[0]}) {
      for (const double value : y.to_doubles()) EXPECT_TRUE(std::isnan(value));
    }
  }
}

TEST(AttentionUnseen, ScoresThatOverflowWithoutAMaskAreSoftmaxs) {
  const std::vector<Tensor> operands = {full({1, 2}, 1e30), full({3, 2}, -1e30), ones({3, 2}),
                                        Tensor()};
  const Attrs attrs = AttentionAttrs{.scale = 1.0};
  for (const Tensor& y : {tenon::apply(attention_op(), operands, attrs)[0],
                          attention_op().decompose(operands, attrs)[0]}) {
    for (const double value : y.to_doubles()) EXPECT_TRUE(std::isnan(value));
  }
}

}  // namespace attention_unseen_test
}  // namespace tenon::test
