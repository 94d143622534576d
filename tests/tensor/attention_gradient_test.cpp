// The gradient of scaled_dot_product_attention against the plain formula in double.
#include <gtest/gtest.h>

#include "autograd/autograd.h"
#include "tensor/error.h"
#include "tensor/interpreter.h"
#include "tensor/philox.h"
#include "tensor/random.h"
#include "tensor/rules/gradients.h"
#include "tests/support/expect_error.h"
#include "tests/tensor/strided_samples.h"

namespace tenon::test {
namespace attention_gradient_test {

constexpr std::uint64_t kSeed = 1234;

struct Sizes {
  std::int64_t heads, queries, keys, depth, value_depth;
};

/// A call: the mask's sizes broadcast to (heads, queries, keys); without sizes there is none.
struct Options {
  const char* name;
  bool is_causal = false;
  bool boolean = false;  // the mask's dtype
  int mask_axes = 0;     // bits 4, 2, 1: the mask has the heads', queries', keys' size, else 1
  bool has_mask = false;
  double dropout_p = 0;
  double scale = 0;  // 0: 1/√depth
};

const Options kOptions[] = {
    {"plain"},
    {"causal", true},
    {"scale", false, false, 0, false, 0, -0.4},
    {"dropout", false, false, 0, false, 0.3},
    {"causal dropout", true, false, 0, false, 0.3},
    {"bool (L, S)", false, true, 3, true},
    {"bool (H, 1, S)", false, true, 5, true},
    {"additive (H, L, S)", false, false, 7, true},
    {"additive (L, S)", false, false, 3, true},
    {"additive (H, 1, S)", false, false, 5, true},
    {"additive (L, 1) with dropout", false, false, 2, true, 0.3},
    {"additive (1, S)", false, false, 1, true},
};

/// A tensor's values, with what their rounding errors are proportional to.
struct Sums {
  explicit Sums(std::int64_t n)
      : values(static_cast<std::size_t>(n)), magnitudes(static_cast<std::size_t>(n)) {}
  void add(std::int64_t i, double value, double magnitude) {
    values[static_cast<std::size_t>(i)] += value;
    magnitudes[static_cast<std::size_t>(i)] += magnitude;
  }
  Values values, magnitudes;
};

struct Sample {
  Sizes sizes;
  DType dtype;
  Options options;
  Values q, k, v, g, mask;

  Sample(const Sizes& s, DType t, const Options& o) : sizes(s), dtype(t), options(o) {
    q = random_values(s.heads * s.queries * s.depth, t, 1);
    k = random_values(s.heads * s.keys * s.depth, t, 2);
    v = random_values(s.heads * s.keys * s.value_depth, t, 3);
    g = random_values(s.heads * s.queries * s.value_depth, t, 4);
    for (double& value : q) value = rounded(value * 3, t);
    if (!o.has_mask) return;
    mask = random_values(mask_sizes().product(), t, 5);
    if (!o.boolean) return;
    // Key 0 stays visible, so that no row is hidden whole.
    for (std::size_t i = 0; i < mask.size(); ++i) {
      mask[i] = mask[i] > -0.3 || static_cast<std::int64_t>(i) % mask_sizes().back() == 0 ? 1 : 0;
    }
  }
  Extents mask_sizes() const {
    return {options.mask_axes & 4 ? sizes.heads : 1, options.mask_axes & 2 ? sizes.queries : 1,
            options.mask_axes & 1 ? sizes.keys : 1};
  }
  std::int64_t mask_index(std::int64_t h, std::int64_t i, std::int64_t j) const {
    const Extents m = mask_sizes();
    return (h % m[0] * m[1] + i % m[1]) * m[2] + j % m[2];
  }
  double scale() const {
    if (options.scale != 0) return options.scale;
    return 1 / std::sqrt(static_cast<double>(sizes.depth));
  }
  AttentionAttrs attrs() const {
    return {options.dropout_p, options.is_causal, Scalar(scale()), DropoutMode::train, 5};
  }
  std::string label() const {
    return std::string(options.name) + " " + std::string(name(dtype)) +
           " L=" + std::to_string(sizes.queries) + " S=" + std::to_string(sizes.keys) +
           " E=" + std::to_string(sizes.depth);
  }
};

double at(const Values& values, std::int64_t i) { return values[static_cast<std::size_t>(i)]; }

struct Reference {
  Sums dq, dk, dv, dm;
};

/// The probabilities of one query, and the factors of its dropout mask.
struct Row {
  Values p, keep;
};

Row probabilities(const Sample& s, std::int64_t head, std::int64_t query) {
  const Sizes& z = s.sizes;
  Row row;
  double max = -INFINITY;
  for (std::int64_t j = 0; j < z.keys; ++j) {
    double score = 0;
    for (std::int64_t e = 0; e < z.depth; ++e) {
      score += at(s.q, (head * z.queries + query) * z.depth + e) *
               at(s.k, (head * z.keys + j) * z.depth + e);
    }
    score *= s.scale();
    if (s.options.is_causal && j > query) score = -INFINITY;
    if (s.options.has_mask) {
      const double mask = at(s.mask, s.mask_index(head, query, j));
      score = s.options.boolean ? (mask != 0 ? score : -INFINITY) : score + mask;
    }
    const bool kept =
        s.options.dropout_p == 0 || dropout_keep({kSeed, 0, 5}, head * z.queries + query, j,
                                                 dropout_threshold(s.options.dropout_p));
    row.p.push_back(score);
    row.keep.push_back(kept ? 1 / (1 - s.options.dropout_p) : 0);
    max = std::max(max, score);
  }
  double sum = 0;
  for (double& p : row.p) sum += p = std::exp(p - max);
  for (double& p : row.p) p /= sum;
  return row;
}

Reference reference(const Sample& s) {
  const Sizes& z = s.sizes;
  Reference r{Sums(z.heads * z.queries * z.depth), Sums(z.heads * z.keys * z.depth),
              Sums(z.heads * z.keys * z.value_depth), Sums(s.mask_sizes().product())};
  for (std::int64_t h = 0; h < z.heads; ++h) {
    for (std::int64_t i = 0; i < z.queries; ++i) {
      const std::int64_t row = h * z.queries + i;
      const auto [p, keep] = probabilities(s, h, i);
      Values d_p, terms;
      double delta = 0, delta_terms = 0;
      for (std::int64_t j = 0; j < z.keys; ++j) {
        double dot = 0, magnitude = 0;
        for (std::int64_t d = 0; d < z.value_depth; ++d) {
          const double g = at(s.g, row * z.value_depth + d);
          const std::int64_t v = (h * z.keys + j) * z.value_depth + d;
          const double weight = at(p, j) * at(keep, j);
          dot += g * at(s.v, v);
          magnitude += std::fabs(g * at(s.v, v));
          r.dv.add(v, weight * g, weight * std::fabs(g));
        }
        d_p.push_back(dot * at(keep, j));
        terms.push_back(magnitude * at(keep, j));
        delta += at(p, j) * d_p.back();
        delta_terms += at(p, j) * terms.back();
      }
      for (std::int64_t j = 0; j < z.keys; ++j) {
        const double d_score = at(p, j) * (at(d_p, j) - delta);
        const double magnitude = at(p, j) * (at(terms, j) + delta_terms);
        r.dm.add(s.mask_index(h, i, j), d_score, magnitude);
        for (std::int64_t e = 0; e < z.depth; ++e) {
          const double q = s.scale() * at(s.q, row * z.depth + e);
          const double k = s.scale() * at(s.k, (h * z.keys + j) * z.depth + e);
          r.dq.add(row * z.depth + e, d_score * k, magnitude * std::fabs(k));
          r.dk.add((h * z.keys + j) * z.depth + e, d_score * q, magnitude * std::fabs(q));
        }
      }
    }
  }
  return r;
}

/// A rounding of a score moves its probability by that much; the output is rounded to the dtype
/// before Σ grad∘output is taken of it.
Values bounds(const Sample& s, const Sums& sums) {
  const double score =
      3 * static_cast<double>(std::max<std::int64_t>(s.sizes.depth, 1)) * std::fabs(s.scale());
  const double roundings = compute_roundoff(s.dtype) * (16 + 8 * score) + unit_roundoff(s.dtype);
  Values result;
  for (const double magnitude : sums.magnitudes) result.push_back(roundings * magnitude + 1e-30);
  return result;
}

void check(const Sample& s, const Reference& expected, Arrangement x, Arrangement y) {
  const Sizes& z = s.sizes;
  manual_seed(kSeed);
  Tensor q = arranged(s.q, {z.heads, z.queries, z.depth}, s.dtype, x).requires_grad_();
  Tensor k = arranged(s.k, {z.heads, z.keys, z.depth}, s.dtype, y).requires_grad_();
  Tensor v = arranged(s.v, {z.heads, z.keys, z.value_depth}, s.dtype, x).requires_grad_();
  Tensor mask;
  if (s.options.has_mask) {
    mask =
        arranged(s.mask, s.mask_sizes(), s.dtype, s.options.boolean ? Arrangement::contiguous : y);
    if (s.options.boolean) {
      mask = mask.to(DType::boolean);
    } else {
      mask.requires_grad_();
    }
  }
  const Tensor output = apply1(get_op("scaled_dot_product_attention"), {q, k, v, mask}, s.attrs());
  backward(output, arranged(s.g, {z.heads, z.queries, z.value_depth}, s.dtype, y));
  expect_close(q.grad(), expected.dq.values, bounds(s, expected.dq), s.label() + " query");
  expect_close(k.grad(), expected.dk.values, bounds(s, expected.dk), s.label() + " key");
  expect_close(v.grad(), expected.dv.values, bounds(s, expected.dv), s.label() + " value");
  if (!s.options.has_mask || s.options.boolean) return;
  expect_close(mask.grad(), expected.dm.values, bounds(s, expected.dm), s.label() + " mask");
  EXPECT_EQ(mask.grad().shape(), mask.shape());
}

const Sizes kSizes[] = {{1, 1, 1, 1, 1},    {2, 3, 5, 4, 4},    {1, 50, 130, 16, 16},
                        {3, 49, 67, 9, 20}, {3, 5, 1, 64, 64},  {2, 1, 40, 33, 17},
                        {2, 97, 20, 8, 3},  {17, 50, 18, 5, 6}, {1, 100, 100, 32, 32}};

TEST(AttentionGradient, AgreesWithTheReference) {
  for (const Sizes& sizes : kSizes) {
    for (const Options& options : kOptions) {
      for (const DType dtype : kFloats) {
        const Sample sample(sizes, dtype, options);
        const Reference expected = reference(sample);
        check(sample, expected, Arrangement::contiguous, Arrangement::contiguous);
        check(sample, expected, Arrangement::transposed, Arrangement::padded);
      }
    }
  }
}

TEST(AttentionGradient, AgreesWithTheReferenceInEveryLayout) {
  const Sample sample({2, 11, 13, 6, 7}, DType::float32, kOptions[10]);
  const Reference expected = reference(sample);
  for (const Arrangement x : kArrangements) {
    for (const Arrangement y : kArrangements) check(sample, expected, x, y);
  }
}

/// Every gradient of one call at given operands.
std::vector<Tensor> gradients(const std::vector<Tensor>& operands, const AttentionAttrs& attrs,
                              const Tensor& cotangent) {
  std::vector<Tensor> leaves;
  for (const Tensor& operand : operands) {
    leaves.push_back(operand ? operand.detach() : Tensor());
    if (operand && is_floating(operand.dtype())) leaves.back().requires_grad_();
  }
  leaves.resize(4);
  backward(apply1(get_op("scaled_dot_product_attention"),
                  {leaves[0], leaves[1], leaves[2], leaves[3]}, attrs),
           cotangent);
  std::vector<Tensor> result;
  for (const Tensor& leaf : leaves) result.push_back(leaf ? leaf.grad() : Tensor());
  return result;
}

TEST(AttentionGradient, TakesOperandsOfAnyRankAndRepeatedHeads) {
  const Tensor query = randn({2, 3, 5, 8});
  const Tensor key = randn({2, 1, 7, 8});  // shared by three heads
  const Tensor cotangent = randn({2, 3, 5, 8});
  const Tensor repeated = key.expand({2, 3, 7, 8});
  const AttentionAttrs attrs{.scale = 0.5};
  const auto views = gradients({query, repeated, repeated}, attrs, cotangent);
  const auto copies = gradients({query, repeated.clone(), repeated.clone()}, attrs, cotangent);
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(bytes_of(views[static_cast<std::size_t>(i)].contiguous()),
              bytes_of(copies[static_cast<std::size_t>(i)].contiguous()))
        << i;
  }
  Tensor leaf = key.detach().requires_grad_();
  const Tensor shared = leaf.expand({2, 3, 7, 8});
  backward(scaled_dot_product_attention(query, shared, shared, {}, {.scale = 0.5}), cotangent);
  const Tensor expected = sum(copies[1] + copies[2], {1}, true);
  expect_close(leaf.grad(), expected.to_doubles(), 1e-5, "shared key");
}

TEST(AttentionGradient, ReadsStatisticsOfTheForwardPass) {
  manual_seed(kSeed);
  const AttentionAttrs attrs{.dropout_p = 0.3, .scale = 0.5, .mode = DropoutMode::train, .site = 3};
  const Tensor q = randn({2, 5, 8}), k = randn({2, 7, 8}), g = randn({2, 5, 8});
  const std::vector<Tensor> inputs = {q, k, k, Tensor()};
  const auto kept = tenon::apply(get_op("scaled_dot_product_attention_lse"), inputs, attrs);
  const auto run = [&](const Tensor& lse, const Tensor& bits) {
    return ops::scaled_dot_product_attention_backward(g, q, k, k, kept[0], {}, {attrs, false},
                                                      {lse, bits});
  };
  const auto with = run(kept[1], kept[2]), without = run({}, {});
  for (std::size_t i = 0; i < 3; ++i) {
    expect_close(with[i], without[i].to_doubles(), 1e-5, std::to_string(i));
  }
  EXPECT_ERROR(ShapeError,
               "[scaled_dot_product_attention_backward] lse float32(2, 4) for query (2, 5, 8); "
               "needed (…, L) in float32",
               run(zeros({2, 4}), kept[2]));
  EXPECT_ERROR(ShapeError,
               "[scaled_dot_product_attention_backward] keep_bits uint8(2, 5, 8) for query "
               "(2, 5, 8); needed (…, L, 16) in uint8",
               run(kept[1], zeros({2, 5, 8}, {DType::uint8, kCpu})));
  Tensor leaf = q.detach().requires_grad_();
  const std::vector<Tensor> operands = {leaf, k, k, Tensor()};
  const auto recorded = tenon::apply(get_op("scaled_dot_product_attention_lse"), operands, attrs);
  EXPECT_ERROR(ValueError,
               "[scaled_dot_product_attention_lse] lse has no gradient; take a logsumexp of the "
               "scores instead",
               backward(sum(recorded[1])));
}

TEST(AttentionGradient, OfNothingIsZero) {
  const struct {
    Extents q, k, v;
    double dropout_p;
  } samples[] = {{{2, 0, 4}, {2, 3, 4}, {2, 3, 5}, 0}, {{2, 3, 4}, {2, 0, 4}, {2, 0, 5}, 0},
                 {{0, 3, 4}, {0, 2, 4}, {0, 2, 5}, 0}, {{2, 3, 0}, {2, 2, 0}, {2, 2, 5}, 0},
                 {{2, 3, 4}, {2, 2, 4}, {2, 2, 0}, 0}, {{2, 3, 4}, {2, 2, 4}, {2, 2, 5}, 1}};
  for (const auto& sample : samples) {
    const auto values = [](const Extents& sizes) {
      return dense(random_values(sizes.product(), DType::float32, 1), sizes, DType::float32);
    };
    Extents output = sample.q;
    output[2] = sample.v[2];
    const auto result = gradients(
        {values(sample.q), values(sample.k), values(sample.v)},
        {.dropout_p = sample.dropout_p, .scale = 1.0, .mode = DropoutMode::train}, values(output));
    const Extents sizes[] = {sample.q, sample.k, sample.v};
    for (int i = 0; i < 3; ++i) {
      const Tensor& gradient = result[static_cast<std::size_t>(i)];
      EXPECT_EQ(gradient.layout().sizes, sizes[i]);
      if (sample.q[2] == 0 && i == 2) continue;  // equal weights reach the value
      for (const double value : gradient.to_doubles()) EXPECT_EQ(value, 0);
    }
  }
}

TEST(AttentionGradient, IsTheSameOnAnyNumberOfThreads) {
  const AttentionAttrs attrs{
      .dropout_p = 0.2, .is_causal = true, .scale = 0.25, .mode = DropoutMode::train};
  for (const std::int64_t heads : {2, 20}) {  // slices of heads, and whole ones
    const Tensor q = randn({heads, 200, 16}), k = randn({heads, 150, 16}),
                 v = randn({heads, 150, 24});
    const Tensor g = randn({heads, 200, 24});
    for (std::size_t i = 0; i < 3; ++i) {
      expect_thread_invariant(
          [&] {
            return gradients({q, k, v}, attrs, g)[i].contiguous();
          },
          "operand " + std::to_string(i));
    }
  }
}

TEST(AttentionGradient, DrawsTheMaskOfItsForward) {
  const Tensor x = randn({2, 9, 8});
  const ModuleFrame frame{.training = true};
  const auto forward = [&](const Tensor& input) {
    const ModuleScope scope(frame, {});
    return scaled_dot_product_attention(input, input, input, {}, {.dropout_p = 0.5});
  };
  manual_seed(7);
  const Tensor first = x.detach().requires_grad_();
  backward(forward(first), ones({2, 9, 8}));
  manual_seed(7);
  const Tensor second = x.detach().requires_grad_();
  const Tensor output = forward(second);
  for (int i = 0; i < 3; ++i) forward(x);  // the generator goes on
  backward(output, ones({2, 9, 8}));
  EXPECT_EQ(bytes_of(first.grad()), bytes_of(second.grad()));
}

TEST(AttentionGradient, AgreesWithItsDecomposition) {
  manual_seed(kSeed);
  const Tensor q = randn({2, 5, 4}, {DType::float64}), k = randn({2, 6, 4}, {DType::float64}),
               v = randn({2, 6, 3}, {DType::float64}), g = randn({2, 5, 3}, {DType::float64}),
               mask = randn({5, 6}, {DType::float64});
  AttentionBackwardAttrs attrs;
  attrs.dropout_p = 0.3;
  attrs.scale = 0.7;
  attrs.mode = DropoutMode::train;
  attrs.mask_gradient = true;
  const Tensor output =
      apply1(get_op("scaled_dot_product_attention"), {q, k, v, mask}, AttentionAttrs(attrs));
  const std::vector<Tensor> inputs{g, q, k, v, output, mask};
  const Op& op = get_op("scaled_dot_product_attention_backward");
  const auto fused = apply(op, inputs, attrs);
  const auto plain = op.decompose(inputs, attrs);
  ASSERT_EQ(fused.size(), 4U);
  ASSERT_EQ(plain.size(), 4U);
  for (std::size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(fused[i].shape(), plain[i].shape());
    expect_close(fused[i], plain[i].to_doubles(), 1e-12, "output " + std::to_string(i));
  }
}

TEST(AttentionGradient, CanBeDifferentiatedAgain) {
  const Tensor q = randn({4, 3}, {DType::float64}).requires_grad_();
  const Tensor k = randn({5, 3}, {DType::float64}), v = randn({5, 2}, {DType::float64});
  const Tensor direction = randn({4, 3}, {DType::float64});
  const auto slope = [&](const Tensor& at, bool create_graph) {
    const Tensor loss = sum(square(scaled_dot_product_attention(at, k, v)));
    return sum(grad(std::span(&loss, 1), std::span(&at, 1), {}, {.create_graph = create_graph})[0] *
               direction);
  };
  const Tensor first = slope(q, true);
  const Tensor second = grad(std::span(&first, 1), std::span(&q, 1))[0];
  const double got = sum(second * direction).item();
  const double h = 1e-5;
  const auto moved = [&](double by) {
    return slope((q.detach() + direction * by).detach().requires_grad_(), false).item();
  };
  EXPECT_NEAR(got, (moved(h) - moved(-h)) / (2 * h), 1e-6);
}

}  // namespace attention_gradient_test
}  // namespace tenon::test
