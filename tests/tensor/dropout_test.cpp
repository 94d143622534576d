// Philox4x32-10 and dropout: known answers, the exact mask, statistics, modes and sites.
#include <gtest/gtest.h>

#include <set>

#include "tensor/error.h"
#include "tensor/interpreter.h"
#include "tensor/ops/attributes.h"
#include "tensor/philox.h"
#include "tensor/random.h"
#include "tests/support/expect_error.h"
#include "tests/tensor/strided_samples.h"

namespace tenon::test {
namespace {

/// Seeds the default generator for one test and puts its state back.
class SeededTest : public ::testing::Test {
 protected:
  void SetUp() override { manual_seed(1234); }
  void TearDown() override { manual_seed(0); }
};
using Dropout = SeededTest;
using DropoutSites = SeededTest;

Tensor dropout_at(const Tensor& x, double p, std::int64_t site) {
  return apply1(get_op("dropout"), {x}, DropoutAttrs{p, DropoutMode::train, site});
}

/// Known answers of Random123 1.14 (tests/kat_vectors, philox4x32 with 10 rounds).
TEST(Philox, KnownAnswers) {
  struct Sample {
    PhiloxBlock counter;
    std::uint32_t key[2];
    PhiloxBlock expected;
  };
  const Sample samples[] = {
      {{{0, 0, 0, 0}}, {0, 0}, {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}}},
      {{{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}},
       {0xffffffff, 0xffffffff},
       {{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}}},
      {{{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}},
       {0xa4093822, 0x299f31d0},
       {{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}}}};
  for (const Sample& sample : samples) {
    const PhiloxBlock actual = philox4x32_10(sample.counter, sample.key[0], sample.key[1]);
    for (int i = 0; i < 4; ++i) EXPECT_EQ(actual.word[i], sample.expected.word[i]) << i;
  }
}

/// The counter layout written out a second time, from the comment in philox.h.
TEST(Philox, DropoutBitsFollowTheDocumentedLayout) {
  const DropoutKey key{0x123456789abcdef0, 7, 0x00fedcba};
  const std::int64_t row = (std::int64_t{0x5a} << 32) | 0x89abcdef;
  const std::int64_t group = 0x76543210;
  const PhiloxBlock random =
      philox4x32_10({{0x76543210, 0x89abcdef, 0x5afedcba, 7}}, 0x9abcdef0, 0x12345678);
  const std::uint32_t threshold = 20000;
  const std::uint32_t bits = dropout_bits8(key, row, group, threshold);
  for (int i = 0; i < 8; ++i) {
    const std::uint32_t half = (random.word[i / 2] >> (16 * (i % 2))) & 0xffff;
    EXPECT_EQ((bits >> i) & 1, half >= threshold ? 1U : 0U) << i;
    EXPECT_EQ(dropout_keep(key, row, 8 * group + i, threshold), half >= threshold) << i;
  }
}

TEST_F(Dropout, KeepsExactlyTheElementsOfTheMask) {
  const Extents shapes[] = {{},     {1},     {9},        {3, 21}, {2, 3, 8},
                            {5, 1}, {40000}, {2, 16400}, {0, 4},  {4, 0}};
  for (const Extents& sizes : shapes) {
    const std::int64_t cols = sizes.empty() ? 1 : sizes.back();
    for (const DType dtype : kFloats) {
      const Values x = random_values(sizes.product(), dtype, 3);
      const DropoutKey key{1234, 0, 5};
      Values expected = x;
      for (std::size_t i = 0; i < x.size(); ++i) {
        const auto index = static_cast<std::int64_t>(i);
        const bool kept = dropout_keep(key, index / cols, index % cols, dropout_threshold(0.3));
        expected[i] = kept ? x[i] / 0.7 : 0;
      }
      for (const Arrangement layout : kArrangements) {
        expect_close(dropout_at(arranged(x, sizes, dtype, layout), 0.3, 5), expected,
                     2 * compute_roundoff(dtype),
                     std::string(name(dtype)) + " " + kArrangementNames[static_cast<int>(layout)]);
      }
    }
  }
}

TEST_F(Dropout, KeepsTheRightFraction) {
  const Tensor ones_ = ones({500, 1000});
  for (const double p : {0.01, 0.1, 0.5, 0.9}) {
    const Values y = dropout_at(ones_, p, 0).to_doubles();
    double kept = 0;
    for (const double value : y) kept += value != 0 ? 1 : 0;
    const double n = 500000;
    const double deviation = std::sqrt(p * (1 - p) / n);
    EXPECT_NEAR(kept / n, 1 - p, 5 * deviation + 0x1p-17) << p;
  }
}

TEST_F(Dropout, MasksDifferBySeedForwardSiteAndRow) {
  const Tensor ones_ = ones({2, 256});
  std::set<std::string> masks;
  const auto add = [&] {
    const std::string bytes = bytes_of(dropout_at(ones_, 0.5, 3));
    masks.insert(bytes.substr(0, bytes.size() / 2));
    masks.insert(bytes.substr(bytes.size() / 2));
  };
  add();
  add();
  EXPECT_EQ(masks.size(), 2U) << "the same state draws the same mask, two rows differ";
  default_generator().set_forward(1);
  add();
  EXPECT_EQ(masks.size(), 4U);
  manual_seed(1235);
  add();
  EXPECT_EQ(masks.size(), 6U);
  manual_seed(1234);
  masks.insert(bytes_of(dropout_at(ones_.narrow(0, 0, 1), 0.5, 4)));
  EXPECT_EQ(masks.size(), 7U) << "another site";
}

TEST_F(Dropout, OfProbabilityOneIsZeroEvenForNanAndInf) {
  const Tensor x = tensor({1, NAN, INFINITY, -2, 5, 6, 7, 8, NAN}, {9});
  for (const double value : dropout_at(x, 1.0, 0).to_doubles()) EXPECT_EQ(value, 0);
  EXPECT_TRUE(std::isnan(dropout_at(tensor({NAN}, {1}), 0.0000001, 0).item()));
}

TEST_F(Dropout, IsTheInputWhereItDoesNotAct) {
  const Tensor x = ones({3, 4});
  EXPECT_TRUE(dropout(x, 0.5, DropoutMode::eval).is_same(x));
  EXPECT_TRUE(dropout(x, 0.0, DropoutMode::train).is_same(x));
  const ModuleFrame evaluating{.training = false};
  const ModuleScope scope(evaluating, {});
  EXPECT_TRUE(dropout(x, 0.5).is_same(x));
  EXPECT_FALSE(dropout(x, 0.5, DropoutMode::train).is_same(x));
}

TEST_F(Dropout, RefusesIntegersWhereItDoesNotActToo) {
  constexpr const char* kText =
      "[dropout] operand 'input' is int64; needed float32, float64, float16 or bfloat16";
  const Tensor x = zeros({2}, {DType::int64, kCpu});
  EXPECT_ERROR(DTypeError, kText, dropout(x, 0.5, DropoutMode::train));
  EXPECT_ERROR(DTypeError, kText, dropout(x, 0.5, DropoutMode::eval));
  EXPECT_ERROR(DTypeError, kText, dropout(x, 0.0, DropoutMode::train));
  const ModuleFrame evaluating{.training = false};
  const ModuleScope scope(evaluating, {});
  EXPECT_ERROR(DTypeError, kText, dropout(x, 0.5));
}

TEST_F(Dropout, DoesNotDependOnTheNumberOfThreads) {
  const Tensor x = dense(random_values(200 * 333, DType::float32, 1), {200, 333}, DType::float32);
  expect_thread_invariant([&] { return dropout_at(x, 0.4, 1); }, "dropout");
  const Tensor row = dense(random_values(100000, DType::bfloat16, 1), {100000}, DType::bfloat16);
  expect_thread_invariant([&] { return dropout_at(row, 0.4, 1); }, "dropout of a long row");
}

/// Fused ops and their compositions ask for sites alike, so whole models keep their masks.
TEST_F(DropoutSites, FusedAndComposedCallsUseTheSameOnes) {
  const Tensor x = ones({4, 32});
  const Tensor v = ones({32});
  const auto sites_used = [&](auto call) {
    const ModuleFrame frame{.training = true};
    const ModuleScope scope(frame, {});
    call();
    return next_dropout_site();
  };
  const auto fused = [&](double p) {
    return sites_used([&] {
      bias_dropout_residual_layer_norm(x, v, x, v, v, p);
      scaled_dot_product_attention(x, x, x, {}, {.dropout_p = p});
    });
  };
  const auto composed = [&](double p) {
    return sites_used([&] {
      layer_norm(dropout(x + v, p) + x, v, v);
      matmul(dropout(softmax(matmul(x, x.transpose(0, 1)), -1), p), x);
    });
  };
  EXPECT_EQ(fused(0.1), 2);
  EXPECT_EQ(composed(0.1), 2);
  EXPECT_EQ(fused(0), 0);
}

TEST_F(DropoutSites, FusedCallsDrawTheMaskOfTheirComposition) {
  const Tensor x = dense(random_values(4 * 48, DType::float32, 1), {4, 48}, DType::float32);
  const Tensor v = dense(random_values(48, DType::float32, 2), {48}, DType::float32);
  const auto in_module = [&](auto call) {
    manual_seed(99);
    const ModuleFrame frame{.training = true};
    const ModuleScope scope(frame, {});
    dropout(x, 0.5);  // so that the site is not 0
    return call();
  };
  const Tensor fused =
      in_module([&] { return bias_dropout_residual_layer_norm(x, v, x, v, v, 0.25); });
  const Tensor composed = in_module([&] { return layer_norm(dropout(x + v, 0.25) + x, v, v); });
  EXPECT_EQ(bytes_of(fused), bytes_of(composed));
}

TEST(DropoutErrors, NameTheProbabilityAndTheSite) {
  const Tensor x = ones({2, 3});
  EXPECT_ERROR(ValueError, "[dropout] dropout probability -0.1; needed a number from 0 to 1",
               dropout(x, -0.1, DropoutMode::eval));
  EXPECT_ERROR(ValueError, "[dropout] dropout probability nan; needed a number from 0 to 1",
               dropout(x, NAN));
  EXPECT_ERROR(ValueError, "[dropout] dropout site 16777216; needed a number from 0 to 16777215",
               dropout_at(x, 0.5, kMaxDropoutSites));
  EXPECT_ERROR(DTypeError,
               "[dropout] operand 'input' is int64; needed float32, float64, float16 or bfloat16",
               dropout_at(zeros({3}, {DType::int64, kCpu}), 0.5, 0));
  // 2^41 rows without memory behind them: refused before anything is computed.
  const TensorView huge{
      .data = nullptr, .sizes = {kMaxDropoutRows + 1, 1}, .strides = {0, 0}, .present = true};
  const TensorView views[] = {huge};
  const Attrs attrs = DropoutAttrs{0.5, DropoutMode::train, 0};
  EXPECT_ERROR(
      ShapeError,
      "[dropout] dropout of 1099511627777 rows of 1 elements; needed at most 1099511627776 "
      "rows of 34359738368",
      get_op("dropout").kernels(DeviceType::cpu)[0].run(
          {.inputs = views, .outputs = views, .attrs = &attrs}));
}

TEST(DropoutMode, NamesAndTheirInverse) {
  for (const DropoutMode mode : {DropoutMode::follow, DropoutMode::train, DropoutMode::eval}) {
    EXPECT_EQ(parse_enum(DropoutMode{}, enum_name(mode)), mode);
  }
  EXPECT_ERROR(ValueError, "dropout mode 'sometimes'; needed follow, train or eval",
               parse_enum(DropoutMode{}, "sometimes"));
}

}  // namespace
}  // namespace tenon::test
