// Attention whose keys and values have fewer heads than the query: results and gradients against the same
// call on repeated heads in float64, the composition, second derivatives, and what is refused.
#include <gtest/gtest.h>

#include "autograd/autograd.h"
#include "tensor/error.h"
#include "tensor/interpreter.h"
#include "tensor/ops/attributes.h"
#include "tensor/random.h"
#include "tensor/rules/gradients.h"
#include "tests/support/compare.h"
#include "tests/support/expect_error.h"

namespace tenon::test {
namespace attention_groups_test {

constexpr const char* kOp = "scaled_dot_product_attention";

struct Options {
  const char* name;
  bool is_causal = false;
  bool has_bool_mask = false;
  bool has_bias = false;  // of each head
  double dropout_p = 0;
};

const Options kOptions[] = {{"plain"},
                            {"causal", true},
                            {"dropout", false, false, false, 0.3},
                            {"bool mask", false, true},
                            {"bias of each head", false, false, true},
                            {"bias and dropout", false, false, true, 0.2}};

struct Problem {
  std::vector<Dim> lead;  // axes before the heads
  std::int64_t heads, key_heads, length, keys, head, head_v;

  Shape shape(std::int64_t heads_, std::int64_t rows, std::int64_t columns) const {
    std::vector<Dim> sizes = lead;
    for (const std::int64_t size : {heads_, rows, columns}) sizes.emplace_back(size);
    return Shape(sizes);
  }
};

const Problem kProblems[] = {
    {{2}, 4, 2, 7, 9, 8, 8},
    {{}, 6, 1, 50, 70, 16, 5},
    {{2, 3}, 8, 8, 5, 6, 4, 4},
    {{1}, 8, 2, 130, 129, 24, 8},
    {{2}, 6, 3, 1, 40, 8, 16},
    {{3}, 5, 1, 33, 2, 12, 12},
    // More packed keys than are held at a time.
    {{1}, 8, 4, 3, 5000, 128, 64},
};

/// What a query of these heads reads.
Tensor repeated(const Tensor& key, std::int64_t heads) {
  Shape apart = key.shape(), merged = key.shape();
  apart.insert(apart.rank() - 2, heads / key.size(-3));
  merged[-3] = heads;
  return key.unsqueeze(-3).expand(apart).reshape(merged);
}

Tensor random(const Shape& shape, DType dtype, std::uint64_t seed) {
  Generator generator(seed);
  // Rows that are not neighbours.
  return randn(shape, {}, &generator).to(dtype).transpose(-1, -2).contiguous().transpose(-1, -2);
}

Tensor make_mask(const Problem& p, const Options& o, DType dtype) {
  const Shape scores{p.heads, p.length, p.keys};
  if (o.has_bias) return random(scores, dtype, 4);
  if (!o.has_bool_mask) return {};
  return gt(random(scores, DType::float32, 4), -0.5);
}

Tensor wide(const Tensor& x) { return x && is_floating(x.dtype()) ? x.to(DType::float64) : x; }

std::vector<Tensor> leaves_of(const std::vector<Tensor>& operands) {
  std::vector<Tensor> leaves;
  for (const Tensor& x : operands) {
    leaves.push_back(x ? x.detach() : Tensor());
    if (x && is_floating(x.dtype())) leaves.back().requires_grad_();
  }
  return leaves;
}

double largest_of(const Tensor& x) {
  double largest = 0;
  for (const double value : x.to_doubles()) largest = std::max(largest, std::abs(value));
  return largest;
}

/// Within `roundings` of the largest element, or of `floor`, the size of terms that may cancel.
void expect_near(const Tensor& got, const Tensor& want, double roundings, const std::string& what,
                 double floor = 0) {
  ASSERT_EQ(got.shape(), want.shape()) << what;
  const double largest = std::max(floor, largest_of(want));
  const double u = unit_roundoff(got.dtype()) + 16 * unit_roundoff(accumulation_dtype(got.dtype()));
  EXPECT_LE(max_difference(wide(got), wide(want)), roundings * u * largest + 1e-300) << what;
}

void check(const Problem& p, const Options& o, DType dtype) {
  const std::string what = std::string(o.name) + " " + std::string(name(dtype)) + " " +
                           p.shape(p.heads, p.length, p.head).to_string() + " of " +
                           std::to_string(p.key_heads);
  const Attrs attrs = AttentionAttrs{o.dropout_p, o.is_causal, Scalar(0.3), DropoutMode::train, 2};
  const std::vector<Tensor> operands = {random(p.shape(p.heads, p.length, p.head), dtype, 1),
                                        random(p.shape(p.key_heads, p.keys, p.head), dtype, 2),
                                        random(p.shape(p.key_heads, p.keys, p.head_v), dtype, 3),
                                        make_mask(p, o, dtype)};
  const Tensor cotangent = random(p.shape(p.heads, p.length, p.head_v), dtype, 5);

  std::vector<Tensor> exact_operands;
  for (const Tensor& x : operands) exact_operands.push_back(wide(x));
  std::vector<Tensor> exact = leaves_of(exact_operands), leaves = leaves_of(operands);
  const Tensor want = apply(
      get_op(kOp),
      std::vector{exact[0], repeated(exact[1], p.heads), repeated(exact[2], p.heads), exact[3]},
      attrs)[0];
  const Tensor got = apply(get_op(kOp), leaves, attrs)[0];
  expect_near(got, want, 4, what);
  backward(want, wide(cotangent));
  backward(got, cotangent);
  const double floor = 0.1 * largest_of(exact[2].grad());
  for (std::size_t i = 0; i < operands.size(); ++i) {
    if (!leaves[i] || !leaves[i].requires_grad()) continue;
    expect_near(leaves[i].grad(), exact[i].grad(), 12, what + ", operand " + std::to_string(i),
                floor);
  }

  // The composition, whose own rounding counts; it cannot tell a float16 from an infinite score.
  if (dtype != DType::float64) return;
  const Tensor composed = get_op(kOp).decompose(operands, attrs).at(0);
  expect_near(composed, got, 16, what + ", composed");
}

class AttentionGroups : public testing::TestWithParam<DType> {
 protected:
  void SetUp() override { manual_seed(7); }
};
INSTANTIATE_TEST_SUITE_P(DTypes, AttentionGroups,
                         testing::Values(DType::float32, DType::float64, DType::float16,
                                         DType::bfloat16),
                         [](const auto& info) { return std::string(name(info.param)); });

TEST_P(AttentionGroups, MatchRepeatedHeads) {
  for (const Problem& problem : kProblems) {
    for (const Options& options : kOptions) check(problem, options, GetParam());
  }
}

// A head of the query sees the same numbers in the same order, be its keys repeated or not.
TEST_P(AttentionGroups, GiveTheBitsOfRepeatedHeads) {
  const DType dtype = GetParam();
  const Tensor q = random({2, 6, 70, 16}, dtype, 1), k = random({2, 2, 90, 16}, dtype, 2),
               v = random({2, 2, 90, 8}, dtype, 3);
  const Attrs attrs = AttentionAttrs{0.2, true, Scalar(0.25), DropoutMode::train, 1};
  const Op& op = get_op("scaled_dot_product_attention_lse");
  const auto got = apply(op, std::vector{q, k, v, Tensor()}, attrs);
  const auto want = apply(op, std::vector{q, repeated(k, 6), repeated(v, 6), Tensor()}, attrs);
  for (std::size_t i = 0; i < got.size(); ++i) {
    EXPECT_EQ(max_difference(got[i], want[i]), 0) << "result " << i;
  }
}

TEST(AttentionGroupsGradient, MaskGradientAndComposition) {
  const Tensor q = random({2, 4, 6, 8}, DType::float64, 1),
               k = random({2, 2, 5, 8}, DType::float64, 2),
               v = random({2, 2, 5, 8}, DType::float64, 3),
               mask = random({4, 1, 5}, DType::float64, 4),
               grad = random({2, 4, 6, 8}, DType::float64, 5);
  const AttentionBackwardAttrs attrs{{0, false, Scalar(0.4), DropoutMode::eval, 0}, true};
  const Tensor output = apply(get_op(kOp), std::vector{q, k, v, mask},
                              AttentionAttrs{0, false, Scalar(0.4), DropoutMode::eval, 0})[0];
  const auto got =
      ops::scaled_dot_product_attention_backward(grad, q, k, v, output, mask, attrs, {});
  const Op& op = get_op("scaled_dot_product_attention_backward");
  const auto composed = op.decompose(std::vector{grad, q, k, v, output, mask}, attrs);
  ASSERT_EQ(got.size(), 4U);
  for (std::size_t i = 0; i < got.size(); ++i) {
    expect_near(composed[i], got[i], 16, "gradient " + std::to_string(i));
  }
}

TEST(AttentionGroupsEmpty, NoQueriesAndNoKeys) {
  for (const auto& [length, keys] : {std::pair{0, 3}, {3, 0}, {0, 0}}) {
    Tensor q = zeros({4, length, 8}).requires_grad_(), k = ones({2, keys, 8}).requires_grad_(),
           v = ones({2, keys, 8}).requires_grad_();
    const Tensor y = scaled_dot_product_attention(q, k, v);
    ASSERT_EQ(y.shape(), Shape({4, length, 8}));
    backward(y, ones(y.shape()));
    for (const Tensor& leaf : {q, k, v}) {
      ASSERT_EQ(leaf.grad().shape(), leaf.shape());
      for (const double x : leaf.grad().to_doubles()) EXPECT_EQ(x, 0);
    }
  }
}

TEST(AttentionGroupsErrors, NameShapesAndNeeds) {
  struct Refused {
    Shape query, key, value;
  };
  const Refused kRefused[] = {
      {{2, 8, 5, 4}, {2, 3, 5, 4}, {2, 3, 5, 4}},    // 3 does not divide 8
      {{2, 8, 5, 4}, {2, 16, 5, 4}, {2, 16, 5, 4}},  // more keys than queries
      {{2, 8, 5, 4}, {2, 4, 5, 4}, {2, 2, 5, 4}},    // not the same for both
      {{2, 8, 5, 4}, {1, 8, 5, 4}, {1, 8, 5, 4}},    // another axis
      {{2, 8, 5, 4}, {2, 0, 5, 4}, {2, 0, 5, 4}},
      {{2, 0, 5, 4}, {2, 2, 5, 4}, {2, 2, 5, 4}},
      {{8, 5, 4}, {5, 4}, {5, 4}},
  };
  for (const auto& [query, key, value] : kRefused) {
    EXPECT_ERROR(ShapeError,
                 "[scaled_dot_product_attention] query " + query.to_string() + ", key " +
                     key.to_string() + " and value " + value.to_string() +
                     "; needed (…, L, E), (…, S, E) and (…, S, Ev) with equal leading axes, or a "
                     "whole number of the query's heads (axis -3) for each of key and value",
                 scaled_dot_product_attention(zeros(query), zeros(key), zeros(value)));
  }
}

}  // namespace attention_groups_test
}  // namespace tenon::test
