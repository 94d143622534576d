// scaled_dot_product_attention against a naive double reference and against its decomposition.
#include <gtest/gtest.h>

#include <algorithm>

#include "tensor/error.h"
#include "tensor/interpreter.h"
#include "tensor/ops/attributes.h"
#include "tensor/philox.h"
#include "tensor/random.h"
#include "tests/support/expect_error.h"
#include "tests/tensor/strided_samples.h"

namespace tenon::test {
namespace {

struct Sizes {
  std::int64_t heads, queries, keys, depth, value_depth;
};

/// What is added to the score of (head, query, key).
using ScoreTerm = std::function<double(std::int64_t, std::int64_t, std::int64_t)>;

/// The plain formula in double; a query that sees no key gets zeros.
Values naive_attention(const Sizes& s, const Values& q, const Values& k, const Values& v,
                       double scale, const ScoreTerm& term) {
  Values result;
  for (std::int64_t row = 0; row < s.heads * s.queries; ++row) {
    const std::int64_t head = row / s.queries;
    Values scores;
    double max = -INFINITY;
    for (std::int64_t j = 0; j < s.keys; ++j) {
      double score = 0;
      for (std::int64_t e = 0; e < s.depth; ++e) {
        score += q[static_cast<std::size_t>(row * s.depth + e)] *
                 k[static_cast<std::size_t>((head * s.keys + j) * s.depth + e)];
      }
      scores.push_back(score * scale + term(head, row % s.queries, j));
      max = std::max(max, scores.back());
    }
    double sum = 0;
    for (double& score : scores) sum += score = max == -INFINITY ? 0 : std::exp(score - max);
    if (sum == 0) sum = 1;
    for (std::int64_t d = 0; d < s.value_depth; ++d) {
      double value = 0;
      for (std::int64_t j = 0; j < s.keys; ++j) {
        value += scores[static_cast<std::size_t>(j)] / sum *
                 v[static_cast<std::size_t>((head * s.keys + j) * s.value_depth + d)];
      }
      result.push_back(value);
    }
  }
  return result;
}

double no_term(std::int64_t, std::int64_t, std::int64_t) { return 0; }
double causal_term(std::int64_t, std::int64_t i, std::int64_t j) { return j <= i ? 0 : -INFINITY; }

/// Random operands of one sample, with a way to make tensors of them.
struct Sample {
  Sizes sizes;
  DType dtype;
  Values q, k, v;

  Sample(const Sizes& s, DType t)
      : sizes(s),
        dtype(t),
        q(random_values(s.heads * s.queries * s.depth, t, 1)),
        k(random_values(s.heads * s.keys * s.depth, t, 2)),
        v(random_values(s.heads * s.keys * s.value_depth, t, 3)) {
    for (double& value : q) value = rounded(value * 3, t);
  }
  double scale() const { return 1 / std::sqrt(static_cast<double>(sizes.depth)); }
  /// Scores are up to 3·depth·scale; each rounding of one moves the result by that much.
  double tolerance() const {
    const double score = 3 * static_cast<double>(std::max<std::int64_t>(sizes.depth, 1)) * scale();
    return compute_roundoff(dtype) * (16 + 8 * score);
  }
  Tensor query(Arrangement a) const {
    return arranged(q, {sizes.heads, sizes.queries, sizes.depth}, dtype, a);
  }
  Tensor key(Arrangement a) const {
    return arranged(k, {sizes.heads, sizes.keys, sizes.depth}, dtype, a);
  }
  Tensor value(Arrangement a) const {
    return arranged(v, {sizes.heads, sizes.keys, sizes.value_depth}, dtype, a);
  }
  std::string label() const {
    return std::string(name(dtype)) + " L=" + std::to_string(sizes.queries) +
           " S=" + std::to_string(sizes.keys);
  }
};

const Sizes kSizes[] = {{1, 1, 1, 1, 1},     {2, 3, 5, 4, 4},     {1, 50, 130, 16, 16},
                        {2, 49, 257, 9, 20}, {3, 1, 40, 64, 64},  {1, 100, 100, 8, 3},
                        {2, 7, 128, 33, 17}, {1, 130, 20, 12, 12}};

TEST(Attention, AgreesWithTheReferenceInEveryLayout) {
  for (const Sizes& sizes : kSizes) {
    for (const DType dtype : kFloats) {
      const Sample s(sizes, dtype);
      const Values expected = naive_attention(sizes, s.q, s.k, s.v, s.scale(), no_term);
      const Values causal = naive_attention(sizes, s.q, s.k, s.v, s.scale(), causal_term);
      for (const Arrangement x : kArrangements) {
        for (const Arrangement y : {Arrangement::contiguous, x}) {
          expect_close(scaled_dot_product_attention(s.query(x), s.key(y), s.value(x)), expected,
                       s.tolerance(), s.label());
          expect_close(scaled_dot_product_attention(s.query(y), s.key(x), s.value(y), {},
                                                    {.is_causal = true}),
                       causal, s.tolerance(), s.label() + " causal");
        }
      }
    }
  }
}

TEST(Attention, ReadsViewsOfPackedQkvWithoutCopying) {
  // (B, L, 3, H, D) viewed as three (B, H, L, D).
  const std::int64_t b = 2, l = 60, h = 3, d = 16;
  const Values packed = random_values(b * l * 3 * h * d, DType::float32, 1);
  const Tensor storage = dense(packed, {b, l, 3, h, d}, DType::float32);
  const auto part = [&](std::int64_t i) {
    return Tensor(storage.storage(), DType::float32,
                  Layout{{b, h, l, d}, {l * 3 * h * d, d, 3 * h * d, 1}, i * h * d});
  };
  const Kernel& kernel = get_op("scaled_dot_product_attention").kernels(DeviceType::cpu)[0];
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(kernel.accepts(i, part(i).view_of_data()));
  const Tensor views = scaled_dot_product_attention(part(0), part(1), part(2));
  const Tensor copies =
      scaled_dot_product_attention(dense(part(0).to_doubles(), {b, h, l, d}, DType::float32),
                                   dense(part(1).to_doubles(), {b, h, l, d}, DType::float32),
                                   dense(part(2).to_doubles(), {b, h, l, d}, DType::float32));
  EXPECT_EQ(bytes_of(views), bytes_of(copies));
  // The result may go where the next product wants it: (B, L, H, D) in memory.
  ASSERT_TRUE(kernel.strided_output);
  const Tensor output = strided(Values(static_cast<std::size_t>(b * h * l * d), 0.0), {b, h, l, d},
                                {l * h * d, d, h * d, 1}, 0, DType::float32);
  const TensorView inputs[] = {
      part(0).view_of_data(), part(1).view_of_data(), part(2).view_of_data(), {}};
  const TensorView outputs[] = {output.view_of_data()};
  const Attrs attrs = AttentionAttrs{.scale = 0.25};
  kernel.run({.inputs = inputs, .outputs = outputs, .attrs = &attrs});
  EXPECT_EQ(output.to_doubles(), views.to_doubles());
}

TEST(Attention, MasksBroadcastAndHide) {
  const Sizes sizes{6, 50, 140, 8, 8};  // heads = (2, 3)
  const Extents scores{2, 3, 50, 140};
  for (const DType dtype : kFloats) {
    const Sample s(sizes, dtype);
    const Tensor q = s.query(Arrangement::contiguous).view({2, 3, 50, 8});
    const Tensor k = s.key(Arrangement::contiguous).view({2, 3, 140, 8});
    const Tensor v = s.value(Arrangement::contiguous).view({2, 3, 140, 8});
    for (const Extents& mask_sizes : {Extents{50, 140}, Extents{1, 140}, Extents{2, 1, 1, 140},
                                      Extents{3, 50, 1}, Extents{2, 3, 50, 140}, Extents{140}}) {
      const Values random = random_values(mask_sizes.product(), dtype, 4);
      const auto mask_value = [&](std::int64_t head, std::int64_t i, std::int64_t j) {
        const std::int64_t position[] = {head / 3, head % 3, i, j};
        std::int64_t index = 0;
        for (int axis = 0; axis < mask_sizes.size(); ++axis) {
          const std::int64_t size = mask_sizes[axis];
          index = index * size + (size == 1 ? 0 : position[4 - mask_sizes.size() + axis]);
        }
        return random[static_cast<std::size_t>(index)];
      };
      const Values added = naive_attention(sizes, s.q, s.k, s.v, s.scale(), mask_value);
      const Tensor mask = arranged(random, mask_sizes, dtype, Arrangement::padded);
      expect_close(scaled_dot_product_attention(q, k, v, mask), added, s.tolerance(),
                   s.label() + " added");

      const Values hidden = naive_attention(
          sizes, s.q, s.k, s.v, s.scale(),
          [&](auto h, auto i, auto j) { return mask_value(h, i, j) > -0.3 ? 0.0 : -INFINITY; });
      std::vector<double> visible;
      for (const double value : random) visible.push_back(value > -0.3 ? 1 : 0);
      const Tensor bool_mask =
          tensor(visible, Shape(std::vector<Dim>(mask_sizes.begin(), mask_sizes.end())),
                 {DType::boolean, kCpu});
      expect_close(scaled_dot_product_attention(q, k, v, bool_mask), hidden, s.tolerance(),
                   s.label() + " bool");
    }
  }
}

TEST(Attention, OneVisibleKeyGivesItsValueAndNoKeysGiveZeros) {
  const Tensor x = dense(random_values(3 * 4, DType::float32, 1), {3, 4}, DType::float32);
  const Tensor mask = tensor({1, 1, 1, 0, 0, 0, 0, 1, 0}, {3, 3}, {DType::boolean, kCpu});
  const Values y = scaled_dot_product_attention(x, x, x, mask).to_doubles();
  // The third query sees only the second key.
  const Values values = x.to_doubles();
  for (std::size_t i = 8; i < 12; ++i) EXPECT_FLOAT_EQ(y[i], values[i - 4]);

  const Tensor none = zeros({0, 4});
  EXPECT_EQ(scaled_dot_product_attention(x, none, zeros({0, 2})).to_doubles(), Values(6, 0.0));
  EXPECT_EQ(scaled_dot_product_attention(none, x, x).layout().sizes, Extents({0, 4}));
  EXPECT_EQ(scaled_dot_product_attention(x, x, zeros({3, 0})).layout().sizes, Extents({3, 0}));
}

TEST(Attention, LargeScoresDoNotOverflow) {
  const Sizes sizes{1, 4, 300, 8, 8};
  Sample s(sizes, DType::float32);
  for (double& value : s.q) value = rounded(value * 1000, DType::float32);
  const Values expected = naive_attention(sizes, s.q, s.k, s.v, 1.0, no_term);
  // Scores near 5000 are rounded to 2^-12: weights move by that much.
  const AttentionOptions options{.scale = 1.0};
  expect_close(
      scaled_dot_product_attention(s.query(Arrangement::contiguous), s.key(Arrangement::contiguous),
                                   s.value(Arrangement::contiguous), {}, options),
      expected, 1e-2, "large scores");
}

TEST(Attention, NanInAQueryStaysInItsRowAndInAKeyReachesAll) {
  const std::int64_t n = 150;
  Sample s({1, n, n, 8, 8}, DType::float32);
  s.q[20 * 8 + 3] = NAN;
  const auto run = [&](bool causal) {
    return scaled_dot_product_attention(s.query(Arrangement::contiguous),
                                        s.key(Arrangement::contiguous),
                                        s.value(Arrangement::contiguous), {}, {.is_causal = causal})
        .to_doubles();
  };
  Values y = run(false);
  for (std::size_t i = 0; i < y.size(); ++i) EXPECT_EQ(std::isnan(y[i]), i / 8 == 20) << i;
  s.q[20 * 8 + 3] = 0;
  s.k[100 * 8] = NAN;
  y = run(false);
  for (const double value : y) EXPECT_TRUE(std::isnan(value));
  y = run(true);
  for (std::size_t i = 0; i < y.size(); ++i) EXPECT_EQ(std::isnan(y[i]), i / 8 >= 100) << i;
}

TEST(Attention, DropsWithTheMaskOfTheProbabilities) {
  manual_seed(77);
  const std::int64_t heads = 2, l = 60, keys = 150;
  const Tensor q =
      dense(random_values(heads * l * 8, DType::float32, 1), {heads, l, 8}, DType::float32);
  const Tensor k =
      dense(random_values(heads * keys * 8, DType::float32, 2), {heads, keys, 8}, DType::float32);
  Values identity(static_cast<std::size_t>(heads * keys * keys), 0.0);
  for (std::int64_t i = 0; i < heads * keys; ++i)
    identity[static_cast<std::size_t>(i * keys + i % keys)] = 1;
  const Tensor v = dense(identity, {heads, keys, keys}, DType::float32);
  const Attrs attrs =
      AttentionAttrs{.dropout_p = 0.3, .scale = 0.5, .mode = DropoutMode::train, .site = 9};
  const Values dropped =
      apply1(get_op("scaled_dot_product_attention"), {q, k, v, Tensor()}, attrs).to_doubles();
  const Values all = softmax(matmul(q, k.transpose(1, 2)) * 0.5, -1).to_doubles();
  for (std::size_t i = 0; i < dropped.size(); ++i) {
    const auto row = static_cast<std::int64_t>(i) / keys;
    const bool kept =
        dropout_keep({77, 0, 9}, row, static_cast<std::int64_t>(i) % keys, dropout_threshold(0.3));
    ASSERT_NEAR(dropped[i], kept ? all[i] / 0.7 : 0, 1e-6) << i;
    ASSERT_EQ(dropped[i] == 0, !kept) << i;
  }
  const Attrs everything = AttentionAttrs{.dropout_p = 1, .mode = DropoutMode::train};
  const Tensor zero =
      apply1(get_op("scaled_dot_product_attention"), {q, k, v, Tensor()}, everything);
  for (const double value : zero.to_doubles()) ASSERT_EQ(value, 0);
  manual_seed(0);
}

/// log Σ exp(score) of every query, by the plain formula.
Values naive_lse(const Sizes& s, const Values& q, const Values& k, double scale,
                 const ScoreTerm& term) {
  Values result;
  for (std::int64_t row = 0; row < s.heads * s.queries; ++row) {
    Values scores;
    for (std::int64_t j = 0; j < s.keys; ++j) {
      double score = 0;
      for (std::int64_t e = 0; e < s.depth; ++e) {
        score += q[static_cast<std::size_t>(row * s.depth + e)] *
                 k[static_cast<std::size_t>((row / s.queries * s.keys + j) * s.depth + e)];
      }
      scores.push_back(score * scale + term(row / s.queries, row % s.queries, j));
    }
    const double max = *std::max_element(scores.begin(), scores.end());
    double sum = 0;
    for (const double score : scores) sum += std::exp(score - max);
    result.push_back(max + std::log(sum));
  }
  return result;
}

TEST(Attention, KeepsItsLogSumExp) {
  const Op& op = get_op("scaled_dot_product_attention_lse");
  for (const Sizes& sizes : kSizes) {
    for (const DType dtype : kFloats) {
      const Sample s(sizes, dtype);
      const auto c = Arrangement::contiguous;
      for (const bool causal : {false, true}) {
        const Attrs attrs = AttentionAttrs{.is_causal = causal, .scale = s.scale()};
        const std::vector<Tensor> inputs = {s.query(c), s.key(c), s.value(c), Tensor()};
        const std::vector<Tensor> got = tenon::apply(op, inputs, attrs);
        ASSERT_EQ(got.size(), 3U);
        EXPECT_EQ(got[1].dtype(), accumulation_dtype(dtype));
        EXPECT_EQ(got[1].layout().sizes, Extents({sizes.heads, sizes.queries}));
        EXPECT_EQ(got[2].layout().sizes, Extents({sizes.heads, sizes.queries, 0}));
        expect_close(
            got[1],
            naive_lse(sizes, s.q, s.k, s.scale(), causal ? ScoreTerm(causal_term) : no_term),
            s.tolerance() * 4, s.label());
        const Tensor alone =
            tenon::apply(get_op("scaled_dot_product_attention"), inputs, attrs).at(0);
        EXPECT_EQ(bytes_of(got[0]), bytes_of(alone)) << s.label();
      }
    }
  }
}

TEST(Attention, KeepsItsDropoutMaskAsBits) {
  manual_seed(31);
  constexpr std::int64_t kHeads = 3, kQueries = 50, kKeys = 130, kBytes = 32;
  const Tensor q = randn({kHeads, kQueries, 8}), k = randn({kHeads, kKeys, 8});
  const auto bits_of = [&](double p, DropoutMode mode) {
    const std::vector<Tensor> inputs = {q, k, k, Tensor()};
    const Attrs attrs =
        AttentionAttrs{.dropout_p = p, .is_causal = true, .scale = 0.5, .mode = mode, .site = 9};
    return tenon::apply(get_op("scaled_dot_product_attention_lse"), inputs, attrs).at(2);
  };
  const Tensor bits = bits_of(0.3, DropoutMode::train);
  ASSERT_EQ(bits.dtype(), DType::uint8);
  ASSERT_EQ(bits.layout().sizes, Extents({kHeads, kQueries, kBytes}));
  for (std::int64_t row = 0; row < kHeads * kQueries; ++row) {
    for (std::int64_t j = 0; j <= row % kQueries; ++j) {
      const int byte = bits.data<std::uint8_t>()[row * kBytes + j / 8];
      const bool kept = dropout_keep({31, 0, 9}, row, j, dropout_threshold(0.3));
      ASSERT_EQ((byte >> (j % 8)) & 1, kept ? 1 : 0) << row << ", " << j;
    }
  }
  for (const double byte : bits_of(0.3, DropoutMode::eval).to_doubles()) ASSERT_EQ(byte, 255);
  EXPECT_EQ(bits_of(0, DropoutMode::train).layout().sizes, Extents({kHeads, kQueries, 0}));
  manual_seed(0);
}

TEST(Attention, EqualsItsDecomposition) {
  const Op& op = get_op("scaled_dot_product_attention");
  const Sizes sizes{4, 70, 140, 16, 24};
  const Sample s(sizes, DType::float32);
  const auto shaped = [](const Tensor& x, std::int64_t rows, std::int64_t cols) {
    return x.view({2, 2, rows, cols});
  };
  const Tensor q = shaped(s.query(Arrangement::contiguous), 70, 16);
  const Tensor k = shaped(s.key(Arrangement::contiguous), 140, 16);
  const Tensor v = shaped(s.value(Arrangement::contiguous), 140, 24);
  const Tensor added = dense(random_values(70 * 140, DType::float32, 9), {70, 140}, DType::float32);
  std::vector<double> pattern;
  for (int i = 0; i < 2 * 140; ++i) pattern.push_back(i % 3 != 0 ? 1 : 0);
  const Tensor hidden = tensor(pattern, {2, 1, 1, 140}, {DType::boolean, kCpu});
  for (const double p : {0.0, 0.25}) {
    for (const bool causal : {false, true}) {
      for (const Tensor& mask : {Tensor(), added, hidden}) {
        if (causal && mask) continue;
        const Attrs attrs = AttentionAttrs{p, causal, 0.3, DropoutMode::train, 4};
        const std::vector<Tensor> inputs = {q, k, v, mask};
        const Tensor fused = tenon::apply(op, inputs, attrs).at(0);
        const Tensor composed = op.decompose(inputs, attrs).at(0);
        ASSERT_EQ(fused.layout().sizes, composed.layout().sizes);
        expect_close(fused, composed.to_doubles(), 4e-6, "p=" + std::to_string(p));
      }
    }
  }
}

TEST(Attention, DoesNotDependOnTheNumberOfThreads) {
  for (const DType dtype : kFloats) {
    const Sample s({5, 130, 300, 16, 16}, dtype);
    const Tensor q = s.query(Arrangement::contiguous);
    const Tensor k = s.key(Arrangement::contiguous);
    const Tensor v = s.value(Arrangement::contiguous);
    const Attrs attrs = AttentionAttrs{
        .dropout_p = 0.2, .is_causal = true, .scale = 0.2, .mode = DropoutMode::train};
    expect_thread_invariant(
        [&] {
          return apply1(get_op("scaled_dot_product_attention"), {q, k, v, Tensor()}, attrs);
        },
        std::string(name(dtype)));
  }
}

/// More packed keys and values than are held at a time.
TEST(Attention, GroupsOfHeadsMeet) {
  const Sizes sizes{40, 2, 1000, 32, 32};
  const Sample s(sizes, DType::float32);
  expect_close(
      scaled_dot_product_attention(s.query(Arrangement::contiguous), s.key(Arrangement::contiguous),
                                   s.value(Arrangement::contiguous)),
      naive_attention(sizes, s.q, s.k, s.v, s.scale(), no_term), s.tolerance(), "groups");
}

TEST(Attention, CountsFlopsOfVisiblePairs) {
  const Tensor q = zeros({2, 3, 5, 8});
  const Tensor k = zeros({2, 3, 4, 8});
  const Tensor v = zeros({2, 3, 4, 6});
  const TensorView inputs[] = {q.view_of_data(), k.view_of_data(), v.view_of_data()};
  const auto flops = [&](bool causal) {
    const Attrs attrs = AttentionAttrs{.is_causal = causal};
    return get_op("scaled_dot_product_attention").flops({.inputs = inputs, .attrs = &attrs});
  };
  EXPECT_EQ(flops(false), 2.0 * 6 * 5 * 4 * (8 + 6));
  EXPECT_EQ(flops(true), 2.0 * 6 * (1 + 2 + 3 + 4 + 4) * (8 + 6));
}

class PatternValue final : public TracedPayload {
 public:
  Dim size(int axis) const override { return Dim::of_pattern(1, axis); }
  bool is_pattern() const override { return true; }
};

/// Records the names and attributes of the ops that a pattern function calls.
class PatternRecorder final : public Interpreter {
 public:
  std::vector<Tensor> apply(const Op& op, std::span<const Tensor>, const Attrs& attrs) override {
    names.push_back(op.name);
    calls.push_back(attrs);
    return {value()};
  }
  bool is_pattern() const override { return true; }
  static Tensor value() { return Tensor::symbolic({}, std::make_shared<PatternValue>()); }

  std::vector<std::string> names;
  std::vector<Attrs> calls;
};

TEST(FusedOps, TheirDecompositionsArePatterns) {
  PatternRecorder recorder;
  const InterpreterGuard guard(recorder);
  const Tensor x = PatternRecorder::value();
  const auto decompose = [&](std::string_view name, const std::vector<Tensor>& inputs) {
    recorder.names.clear();
    recorder.calls.clear();
    const Op& op = get_op(name);
    EXPECT_EQ(op.decompose(inputs, op.pattern_attrs().at(0)).size(), 1U);
    return recorder.names;
  };
  using Names = std::vector<std::string>;
  EXPECT_EQ(decompose("scaled_dot_product_attention", {x, x, x, Tensor()}),
            (Names{"transpose", "matmul", "mul", "softmax", "dropout", "matmul"}));
  // Field i of the fused op is capture i, wherever the decomposition puts it.
  EXPECT_EQ(recorder.calls[2].as<BinaryAttrs>().other.capture(), 2);
  EXPECT_EQ(wildcard_info(recorder.calls[4].value(0)).capture, 0);
  EXPECT_EQ(decompose("bias_dropout_residual_layer_norm", {x, x, x, x, x}),
            (Names{"add", "dropout", "add", "layer_norm"}));
  EXPECT_EQ(wildcard_info(recorder.calls[1].value(0)).capture, 0);
  EXPECT_EQ(wildcard_info(recorder.calls[3].value(1)).capture, 1);
}

TEST(FusedOps, TheirFrontsTakeWildcards) {
  PatternRecorder recorder;
  const InterpreterGuard guard(recorder);
  const Tensor x = PatternRecorder::value();
  scaled_dot_product_attention(x, x, x, {}, {.dropout_p = any()});
  bias_dropout_residual_layer_norm(x, x, x, x, x, any(), any());
  dropout(x, any());
  matmul(x, x);
  linear(x, x, x);
  layer_norm(x, {8}, x, x, any());
  softmax(x, -1);
  ASSERT_EQ(recorder.calls.size(), 7U);
  for (const std::size_t call : {0, 1, 2}) {
    EXPECT_TRUE(wildcard_info(recorder.calls[call].value(0)).is_wildcard) << call;
  }
  EXPECT_TRUE(recorder.calls[0].as<AttentionAttrs>().scale.is_pattern());
  EXPECT_TRUE(wildcard_info(recorder.calls[1].value(1)).is_wildcard);
  EXPECT_EQ(recorder.calls[6].as<AxisAttrs>().dim, -1);
}

TEST(AttentionErrors, NameShapesAndNeeds) {
  const Tensor x = zeros({2, 3, 4});
  EXPECT_ERROR(
      ShapeError,
      "[scaled_dot_product_attention] query (2, 3, 4), key (2, 3, 5) and value (2, 3, 4); needed "
      "(…, L, E), (…, S, E) and (…, S, Ev) with equal leading axes, or a whole number of the "
      "query's "
      "heads (axis -3) for each of key and value",
      scaled_dot_product_attention(x, zeros({2, 3, 5}), x));
  EXPECT_ERROR(ShapeError, "[scaled_dot_product_attention] query (4,); needed (…, L, E)",
               scaled_dot_product_attention(zeros({4}), x, x));
  EXPECT_ERROR(DTypeError,
               "[scaled_dot_product_attention] operand 'query' is float32 and operand 'value' is "
               "float64, of shapes (2, 3, 4) and (2, 3, 4); they must have one dtype: convert "
               "'query' with .to(DType::float64)",
               scaled_dot_product_attention(x, x, zeros({2, 3, 4}, {DType::float64, kCpu})));
  EXPECT_ERROR(
      ValueError,
      "[scaled_dot_product_attention] attn_mask and is_causal are both given; needed at most one",
      scaled_dot_product_attention(x, x, x, zeros({3, 3}), {.is_causal = true}));
  EXPECT_ERROR(
      DTypeError,
      "[scaled_dot_product_attention] operand 'attn_mask' is int64 and operand 'query' is float32, "
      "of shapes (3, 3) and (2, 3, 4); the mask must be bool or of the query's dtype: convert it "
      "with .to(DType::float32)",
      scaled_dot_product_attention(x, x, x, zeros({3, 3}, {DType::int64, kCpu})));
  EXPECT_ERROR(
      ShapeError,
      "[scaled_dot_product_attention] attn_mask (5, 2, 3, 3) for scores (2, 3, 3); it must "
      "broadcast to them",
      scaled_dot_product_attention(x, x, x, zeros({5, 2, 3, 3})));
  EXPECT_ERROR(
      ShapeError,
      "[scaled_dot_product_attention] attn_mask (3, 2) for scores (2, 3, 3); it must broadcast to "
      "them",
      scaled_dot_product_attention(x, x, x, zeros({3, 2})));
  EXPECT_ERROR(ValueError,
               "[scaled_dot_product_attention] dropout probability 2; needed a number from 0 to 1",
               scaled_dot_product_attention(x, x, x, {}, {.dropout_p = 2}));
}

}  // namespace
}  // namespace tenon::test
