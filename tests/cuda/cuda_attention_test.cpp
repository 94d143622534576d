// scaled_dot_product_attention on CUDA against the CPU op in float64: dtypes, head sizes, tails,
// strides, masks, causality and dropout masks, special values.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "cuda/kernels/attention.h"
#include "tensor/device_backend.h"
#include "tensor/error.h"
#include "tensor/interpreter.h"
#include "tensor/ops/attributes.h"
#include "tensor/random.h"
#include "tensor/tensor.h"
#include "tests/cuda/cuda_support.h"

namespace tenon {
namespace {

constexpr const char* kOp = "scaled_dot_product_attention";

/// Sizes of query (batch…, length, head), key (batch…, keys, head), value (batch…, keys, head_v).
struct Sizes {
  std::vector<std::int64_t> batch;
  std::int64_t length, keys, head, head_v;
};

struct Operands {
  Tensor query, key, value, mask;
};

enum class Mask { none, boolean, additive, padding, hidden_row };

struct Options {
  const char* name;
  Mask mask = Mask::none;
  bool is_causal = false;
  double dropout_p = 0;
  double scale = 0;  // 0: 1/√head
  double magnitude = 1;
};

AttentionAttrs make_attrs(const Options& options, std::int64_t head) {
  const double scale =
      options.scale != 0 ? options.scale : 1 / std::sqrt(static_cast<double>(head));
  return {options.dropout_p, options.is_causal, Scalar(scale), DropoutMode::train, 5};
}

Shape shape_of(std::vector<std::int64_t> batch, std::int64_t rows, std::int64_t columns) {
  Shape shape;
  for (const std::int64_t size : batch) shape.push_back(size);
  shape.push_back(rows);
  shape.push_back(columns);
  return shape;
}

/// A mask for scores (batch…, length, keys), on the CPU.
Tensor make_mask(const Sizes& sizes, Mask kind, DType dtype, Generator* generator) {
  const auto [batch, length, keys, head, head_v] = sizes;
  const auto keep = [](const Tensor& u) {  // true where u < 0.7
    std::vector<double> values = u.to_doubles();
    for (double& value : values) value = value < 0.7 ? 1 : 0;
    return tensor(values, u.shape(), {DType::boolean, kCpu});
  };
  switch (kind) {
    case Mask::none: return {};
    case Mask::boolean: return keep(uniform({length, keys}, 0, 1, {}, generator));
    case Mask::additive: return randn(shape_of(batch, length, keys), {}, generator).to(dtype);
    case Mask::padding: {
      std::vector<std::int64_t> outer(batch.size(), 1);
      if (!batch.empty()) outer[0] = batch[0];
      return keep(uniform(shape_of(outer, 1, keys), 0, 1, {}, generator));
    }
    case Mask::hidden_row: {
      std::vector<double> values(static_cast<std::size_t>(length * keys), 0.25);
      std::fill_n(values.end() - keys, keys, -std::numeric_limits<double>::infinity());
      return tensor(values, {length, keys}, {dtype, kCpu});
    }
  }
  return {};
}

Operands make_operands(const Sizes& sizes, DType dtype, const Options& options) {
  Generator generator(11);
  const auto normal = [&](std::int64_t rows, std::int64_t columns) {
    return (randn(shape_of(sizes.batch, rows, columns), {DType::float64, kCpu}, &generator) *
            Scalar(options.magnitude))
        .to(dtype);
  };
  Operands result;
  result.query = normal(sizes.length, sizes.head);
  result.key = normal(sizes.keys, sizes.head);
  result.value = normal(sizes.keys, sizes.head_v);
  result.mask = make_mask(sizes, options.mask, dtype, &generator);
  return result;
}

Operands convert(const Operands& from, const auto& function) {
  return {function(from.query), function(from.key), function(from.value),
          from.mask ? function(from.mask) : Tensor()};
}

Operands on_cuda(const Operands& from) {
  return convert(from, [](const Tensor& x) { return x.to(kCuda); });
}

Operands in_float64(const Operands& from) {
  return convert(
      from, [](const Tensor& x) { return x.dtype() == DType::boolean ? x : x.to(DType::float64); });
}

Tensor attend(const Operands& x, const AttentionAttrs& attrs) {
  return apply1(get_op(kOp), {x.query, x.key, x.value, x.mask}, attrs);
}

/// Largest |a - b| over elements where both are finite.
double largest_error(const std::vector<double>& a, const std::vector<double>& b) {
  double largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (std::isfinite(a[i]) && std::isfinite(b[i]))
      largest = std::max(largest, std::abs(a[i] - b[i]));
  }
  return largest;
}

/// The largest Σ|query·key|·|scale|: in units of roundoff, how much scores may differ.
double score_terms(const Operands& exact, const AttentionAttrs& attrs) {
  const Tensor terms = matmul(abs(exact.query), transpose(abs(exact.key), -2, -1));
  return amax(terms).item() * std::abs(attrs.scale.value());
}

/// Equal element by element; NaN equals NaN.
bool same_values(const std::vector<double>& a, const std::vector<double>& b) {
  return std::ranges::equal(
      a, b, [](double x, double y) { return x == y || (std::isnan(x) && std::isnan(y)); });
}

/// `got` is as close to the float64 result as twice the plain composition in its dtype is, plus
/// (4 roundings to the dtype + roundings of the scores' terms) · Σ|probability·value|: an error of a
/// score is a relative error of its probability. NaN stands where the float64 result has it.
void expect_accurate(const Tensor& got, const Operands& x, const AttentionAttrs& attrs) {
  const DType dtype = x.query.dtype();
  const Operands exact = in_float64(x);
  Operands magnitudes = exact;
  magnitudes.value = abs(exact.value);
  const std::vector<double> want = attend(exact, attrs).to_doubles();
  const std::vector<double> terms = attend(magnitudes, attrs).to_doubles();
  const std::vector<Tensor> inputs = {x.query, x.key, x.value, x.mask};
  const std::vector<double> unfused = get_op(kOp).decompose(inputs, attrs).at(0).to_doubles();
  const std::vector<double> values = got.to_doubles();
  ASSERT_EQ(got.dtype(), dtype);
  ASSERT_EQ(values.size(), want.size());
  const double allowed = 2 * largest_error(unfused, want);
  const double roundings = 4 * unit_roundoff(dtype) +
                           unit_roundoff(accumulation_dtype(dtype)) * score_terms(exact, attrs);
  int shown = 0;
  for (std::size_t i = 0; i < want.size() && shown < 5; ++i) {
    if (std::isnan(want[i])) {
      if (!std::isnan(values[i])) ++shown, ADD_FAILURE() << i << " is " << values[i] << ", not NaN";
      continue;
    }
    const double bound = allowed + roundings * terms[i];
    if (!(std::abs(values[i] - want[i]) <= bound)) {
      ++shown;
      ADD_FAILURE() << "element " << i << " is " << values[i] << "; needed " << want[i] << " ± "
                    << bound;
    }
  }
}

/// One call of a named implementation, without the interpreter's choices and copies.
void run_kernel(const std::string& name, const Operands& x, const AttentionAttrs& attributes,
                const Tensor& output) {
  const Attrs attrs = attributes;
  std::vector<TensorView> inputs;
  for (const Tensor& t : {x.query, x.key, x.value, x.mask}) {
    inputs.push_back(t ? t.view_of_data() : TensorView{});
  }
  const TensorView outputs[] = {output.view_of_data()};
  KernelArgs args{&get_op(kOp),
                  inputs,
                  outputs,
                  &attrs,
                  true,
                  default_generator().state(),
                  device_backend(DeviceType::cuda).stream(0)};
  for (const Kernel& kernel : get_op(kOp).kernels(DeviceType::cuda)) {
    if (kernel.name != name) continue;
    const std::size_t bytes = kernel.workspace_bytes ? kernel.workspace_bytes(args) : 0;
    const Tensor workspace = empty(Shape{static_cast<std::int64_t>(bytes)}, {DType::uint8, kCuda});
    args.workspace = workspace.view_of_data().data;
    return kernel.run(args);
  }
  FAIL() << "no kernel " << name;
}

const Kernel& first_kernel() { return get_op(kOp).kernels(DeviceType::cuda).at(0); }

std::string sizes_text(const Sizes& sizes) {
  std::string text = "b";
  for (const std::int64_t size : sizes.batch) text += std::to_string(size) + "_";
  return text + "l" + std::to_string(sizes.length) + "_s" + std::to_string(sizes.keys) + "_e" +
         std::to_string(sizes.head) + "_v" + std::to_string(sizes.head_v);
}

// Tails of 64 and 128 row tiles and 32 and 64 key tiles, padded heads, heads only for multiply-adds.
const Sizes kSizes[] = {
    {{2, 3}, 1, 1, 8, 8},        {{2, 2}, 77, 77, 32, 32},      {{3}, 77, 130, 40, 56},
    {{1, 2}, 512, 512, 64, 64},  {{2, 1}, 130, 200, 80, 80},    {{2}, 65, 64, 128, 128},
    {{1, 2}, 64, 257, 256, 256}, {{2, 2}, 100, 33, 16, 24},     {{2}, 33, 70, 7, 5},
    {{}, 20, 50, 300, 270},      {{2, 1, 2, 1}, 10, 1, 64, 64}, {{1, 1}, 1, 512, 64, 64},
    {{3}, 45, 90, 36, 60},
};

const Options kOptions[] = {
    {.name = "plain"},
    {.name = "causal", .is_causal = true},
    {.name = "bool_mask", .mask = Mask::boolean},
    {.name = "float_mask", .mask = Mask::additive},
    {.name = "padding_mask", .mask = Mask::padding},
    {.name = "hidden_row", .mask = Mask::hidden_row},
    {.name = "dropout", .dropout_p = 0.1},
    {.name = "causal_dropout", .is_causal = true, .dropout_p = 0.5},
    {.name = "mask_dropout", .mask = Mask::boolean, .dropout_p = 0.3},
    {.name = "negative_scale", .scale = -0.2},
    {.name = "large_scores", .magnitude = 20},
};

class CudaAttention : public testing::TestWithParam<std::tuple<DType, Sizes, Options>> {
 protected:
  void SetUp() override {
    SKIP_WITHOUT_GPU();
    manual_seed(2024);
  }
};

TEST_P(CudaAttention, MatchesFloat64) {
  const auto& [dtype, sizes, options] = GetParam();
  const Operands x = make_operands(sizes, dtype, options);
  const AttentionAttrs attrs = make_attrs(options, sizes.head);
  const Tensor got = attend(on_cuda(x), attrs);
  expect_accurate(got, x, attrs);
  EXPECT_TRUE(same_values(attend(on_cuda(x), attrs).to_doubles(), got.to_doubles()))
      << "two runs differ";
}

const auto kParamName = [](const auto& info) {
  const auto& [dtype, sizes, options] = info.param;
  return std::string(name(dtype)) + "_" + sizes_text(sizes) + "_" + options.name;
};

INSTANTIATE_TEST_SUITE_P(Table, CudaAttention,
                         testing::Combine(testing::ValuesIn(test::kFloats),
                                          testing::ValuesIn(kSizes), testing::ValuesIn(kOptions)),
                         kParamName);

// Enough rows for the 128-row tiles on any GPU of up to 160 multiprocessors.
const Sizes kManyRows[] = {{{4, 20}, 200, 150, 64, 64}, {{4, 20}, 160, 130, 128, 96}};
const Options kLargeOptions[] = {{.name = "plain"},
                                 {.name = "causal", .is_causal = true},
                                 {.name = "dropout", .dropout_p = 0.1},
                                 {.name = "causal_dropout", .is_causal = true, .dropout_p = 0.1},
                                 {.name = "large_scores", .magnitude = 20}};

INSTANTIATE_TEST_SUITE_P(
    LargeTiles, CudaAttention,
    testing::Combine(testing::Values(DType::float16, DType::bfloat16, DType::float32),
                     testing::ValuesIn(kManyRows), testing::ValuesIn(kLargeOptions)),
    kParamName);

class CudaAttentionLayout : public testing::TestWithParam<DType> {
 protected:
  void SetUp() override {
    SKIP_WITHOUT_GPU();
    manual_seed(7);
  }
};
INSTANTIATE_TEST_SUITE_P(DTypes, CudaAttentionLayout, testing::ValuesIn(test::kFloats),
                         [](const auto& info) { return std::string(name(info.param)); });

TEST_P(CudaAttentionLayout, ReadsPackedQkvWithoutCopying) {
  constexpr std::int64_t kBatch = 2, kLength = 90, kHeads = 3, kHead = 64;
  const auto unpack = [&](const Tensor& packed) {
    const Tensor parts = packed.view({kBatch, kLength, 3, kHeads, kHead});
    const auto part = [&](int i) { return parts.narrow(2, i, 1).squeeze(2).permute({0, 2, 1, 3}); };
    return Operands{part(0), part(1), part(2), {}};
  };
  const Tensor packed = randn({kBatch, kLength, 3 * kHeads * kHead}).to(GetParam());
  const Operands x = unpack(packed);
  const Operands on_device = unpack(packed.to(kCuda));
  EXPECT_TRUE(first_kernel().accepts(1, on_device.key.view_of_data()));
  const AttentionAttrs attrs = make_attrs({.name = "", .is_causal = true, .dropout_p = 0.2}, kHead);
  expect_accurate(attend(on_device, attrs), x, attrs);
}

TEST_P(CudaAttentionLayout, WritesPermutedOutputs) {
  const Sizes sizes{{2, 3}, 70, 50, 64, 40};
  const Options options{.name = "", .dropout_p = 0.2};
  const AttentionAttrs attrs = make_attrs(options, sizes.head);
  const Operands x = on_cuda(make_operands(sizes, GetParam(), options));
  const TensorOptions device{GetParam(), kCuda};
  for (const Kernel& kernel : get_op(kOp).kernels(DeviceType::cuda)) {
    const bool refuses = (kernel.name == "cuda.flash_mma" &&
                          !cuda::flash_mma_takes(GetParam(), sizes.head, sizes.head_v)) ||
                         (kernel.name == "cuda.flash_tf32x3" &&
                          !cuda::flash_tf32x3_takes(GetParam(), sizes.head, sizes.head_v)) ||
                         kernel.name == "cuda.flash_wgmma";  // it takes no dropout
    if (refuses) continue;
    const Tensor plain = empty(Shape{2, 3, 70, 40}, device);
    const Tensor by_row = empty(Shape{2, 70, 3, 40}, device).permute({0, 2, 1, 3});
    const Tensor by_column = empty(Shape{2, 3, 40, 70}, device).transpose(2, 3);
    for (const Tensor& output : {plain, by_row, by_column}) {
      run_kernel(std::string(kernel.name), x, attrs, output);
    }
    EXPECT_EQ(by_row.to_doubles(), plain.to_doubles()) << kernel.name;
    EXPECT_EQ(by_column.to_doubles(), plain.to_doubles()) << kernel.name;
    expect_accurate(plain, make_operands(sizes, GetParam(), options), attrs);
  }
}

TEST_P(CudaAttentionLayout, KeepsLogSumExpAndDropoutMask) {
  // Tails of every tile; enough rows for the 128-row tiles, whose dropout has a variant of its own.
  // Thresholds of 1 and 0, and beyond the middle of 16 bits.
  const std::pair<Sizes, double> samples[] = {
      {{{2, 3}, 70, 50, 64, 40}, 0.3},    {{{1}, 3, 5, 8, 8}, 1e-5},
      {{{3}, 100, 90, 16, 16}, 1e-6},     {{{2}, 33, 300, 136, 16}, 0.75},
      {{{4, 20}, 200, 150, 64, 64}, 0.3}, {{{4, 20}, 160, 130, 128, 96}, 0.1}};
  for (const auto& [sizes, dropout_p] : samples) {
    for (const bool is_causal : {false, true}) {
      const Options options{.name = "", .is_causal = is_causal, .dropout_p = dropout_p};
      const AttentionAttrs attrs = make_attrs(options, sizes.head);
      const Operands x = make_operands(sizes, GetParam(), options);
      const auto run = [&](const Operands& operands, const AttentionAttrs& a) {
        const std::vector<Tensor> inputs = {operands.query, operands.key, operands.value,
                                            operands.mask};
        return apply(get_op("scaled_dot_product_attention_lse"), inputs, a);
      };
      const auto want = run(in_float64(x), attrs), got = run(on_cuda(x), attrs);
      const std::string what = sizes_text(sizes) + (is_causal ? " causal" : "");
      EXPECT_TRUE(same_values(got[0].to_doubles(), attend(on_cuda(x), attrs).to_doubles())) << what;
      const auto lse = got[1].to_doubles(), exact = want[1].to_doubles();
      for (std::size_t i = 0; i < lse.size(); ++i) ASSERT_NEAR(lse[i], exact[i], 2e-4) << what << i;
      // Bits of hidden keys, and past the last key, are unspecified.
      const auto bits = got[2].to_doubles(), all = want[2].to_doubles();
      ASSERT_EQ(bits.size(), all.size()) << what;
      const std::int64_t bytes = got[2].layout().sizes.back();
      for (std::size_t i = 0; i < bits.size(); ++i) {
        const auto row = static_cast<std::int64_t>(i) / bytes % sizes.length;
        const std::int64_t end = is_causal ? std::min(row + 1, sizes.keys) : sizes.keys;
        const std::int64_t seen =
            std::clamp<std::int64_t>(end - static_cast<std::int64_t>(i) % bytes * 8, 0, 8);
        const int mask = (1 << seen) - 1;
        ASSERT_EQ(static_cast<int>(bits[i]) & mask, static_cast<int>(all[i]) & mask) << what << i;
      }
      AttentionAttrs quiet = attrs;
      quiet.mode = DropoutMode::eval;
      for (const double byte : run(on_cuda(x), quiet)[2].to_doubles()) ASSERT_EQ(byte, 255) << what;
    }
  }
}

TEST_P(CudaAttentionLayout, BroadcastKeysHaveStrideZero) {
  const Tensor query = randn({2, 4, 33, 32}).to(GetParam());
  const Tensor key = randn({2, 1, 45, 32}).to(GetParam());
  const Tensor value = randn({1, 1, 45, 32}).to(GetParam());
  const auto expand_all = [&](const Operands& x) {
    return Operands{x.query, x.key.expand({2, 4, 45, 32}), x.value.expand({2, 4, 45, 32}), {}};
  };
  const AttentionAttrs attrs = make_attrs({.name = ""}, 32);
  const Operands x{query, key, value, {}};
  expect_accurate(attend(expand_all(on_cuda(x)), attrs), expand_all(x), attrs);
}

TEST_P(CudaAttentionLayout, TakesUnalignedAddresses) {
  const auto shifted = [](const Tensor& x) { return x.narrow(-1, 1, 64); };
  const Operands whole = make_operands({{2}, 40, 50, 72, 72}, GetParam(), {.name = ""});
  const Operands x = convert(whole, shifted);
  const Operands on_device = convert(on_cuda(whole), shifted);
  const AttentionAttrs attrs = make_attrs({.name = ""}, 64);
  expect_accurate(attend(on_device, attrs), x, attrs);
  // As in a Program, where the kernel is chosen before addresses are known.
  const Tensor output = empty(Shape{2, 40, 64}, {GetParam(), kCuda});
  run_kernel(std::string(first_kernel().name), on_device, attrs, output);
  expect_accurate(output, x, attrs);
}

TEST_P(CudaAttentionLayout, EmptyOperands) {
  const TensorOptions device{GetParam(), kCuda};
  const AttentionAttrs attrs = make_attrs({.name = ""}, 16);
  const auto run = [&](const Shape& query, const Shape& key) {
    return attend({ones(query, device), ones(key, device), ones(key, device), {}}, attrs);
  };
  EXPECT_EQ(run({2, 0, 16}, {2, 5, 16}).shape(), (Shape{2, 0, 16}));
  EXPECT_EQ(run({0, 4, 16}, {0, 5, 16}).shape(), (Shape{0, 4, 16}));
  EXPECT_EQ(run({2, 4, 16}, {2, 0, 16}).to_doubles(), std::vector<double>(2 * 4 * 16, 0.0));
}

TEST_P(CudaAttentionLayout, DroppingEverythingGivesZeros) {
  const Options options{.name = "", .dropout_p = 1};
  const Operands x = make_operands({{2}, 20, 30, 64, 64}, GetParam(), options);
  const Tensor got = attend(on_cuda(x), make_attrs(options, 64));
  EXPECT_EQ(got.to_doubles(), std::vector<double>(2 * 20 * 64, 0.0));
}

TEST_P(CudaAttentionLayout, NanAndInfPropagate) {
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  constexpr double kInf = std::numeric_limits<double>::infinity();
  Operands x = make_operands({{}, 70, 40, 64, 64}, GetParam(), {.name = ""});
  const auto with = [](const Tensor& t, std::size_t index, double special) {
    std::vector<double> values = t.to_doubles();
    values[index] = special;
    return tensor(values, t.shape(), {t.dtype(), kCpu});
  };
  x.query = with(x.query, 66 * 64 + 3, kNan);
  x.value = with(x.value, 39 * 64 + 5, kInf);
  const std::vector<double> got = attend(on_cuda(x), make_attrs({.name = ""}, 64)).to_doubles();
  for (std::size_t row = 0; row < 70; ++row) {
    for (std::size_t column = 0; column < 64; ++column) {
      const double element = got[row * 64 + column];
      if (row == 66) {
        EXPECT_TRUE(std::isnan(element)) << row << ", " << column;
      } else if (column == 5) {
        EXPECT_EQ(element, kInf) << row;
      } else {
        EXPECT_TRUE(std::isfinite(element)) << row << ", " << column << ": " << element;
      }
    }
  }
}

TEST_P(CudaAttentionLayout, StridesBeyond32Bits) {
  constexpr std::int64_t kKeys = 70, kStride = std::int64_t{1} << 26;
  if (GetParam() != DType::bfloat16) GTEST_SKIP() << "one dtype is enough for 9 GB";
  const Operands x = make_operands({{}, 40, kKeys, 64, 64}, GetParam(), {.name = ""});
  Operands on_device = on_cuda(x);
  Tensor wide;
  try {
    wide = empty(Shape{kKeys, kStride}, {GetParam(), kCuda});
  } catch (const OutOfMemory&) {
    GTEST_SKIP() << "not enough device memory";
  }
  on_device.key = wide.narrow(1, 0, 64);
  on_device.key.copy_(x.key.to(kCuda));
  on_device.value = wide.narrow(1, 64, 64);
  on_device.value.copy_(x.value.to(kCuda));
  const AttentionAttrs attrs = make_attrs({.name = ""}, 64);
  for (const char* kernel : {"cuda.flash_mma", "cuda.flash_simt"}) {
    const Tensor output = empty(Shape{40, 64}, {GetParam(), kCuda});
    run_kernel(kernel, on_device, attrs, output);
    expect_accurate(output, x, attrs);
  }
}

// --- float32 on tensor cores ---------------------------------------------------------------------

/// Standard deviations of the operands, and how many keys are summed over.
struct Magnitudes {
  const char* name;
  double query, key, value;
  std::int64_t keys;
};

const Magnitudes kMagnitudes[] = {
    {"plain", 1, 1, 1, 200},
    {"many_keys", 1, 1, 1, 3000},
    {"large_scores", 6, 6, 1, 300},
    {"tiny_values", 1, 1, 1e-20, 300},
    {"large_values", 1, 1, 1e18, 300},
    {"tiny_queries_large_keys", 1e-18, 1e18, 1, 300},
    {"large_queries_tiny_keys", 1e18, 1e-18, 1, 300},
    {"tiny_products", 1e-18, 1e-18, 1, 300},
};

class CudaAttentionTf32x3 : public testing::TestWithParam<Magnitudes> {
 protected:
  void SetUp() override { SKIP_WITHOUT_GPU(); }
};
INSTANTIATE_TEST_SUITE_P(Table, CudaAttentionTf32x3, testing::ValuesIn(kMagnitudes),
                         [](const auto& info) { return std::string(info.param.name); });

TEST_P(CudaAttentionTf32x3, IsAsAccurateAsMultiplyAdds) {
  const Magnitudes& m = GetParam();
  for (const auto& [length, head] : {std::pair{150, 64}, {40, 64}, {70, 128}}) {
    const Sizes sizes{{length == 150 ? 66 : 2}, length, m.keys, head, head};
    Operands x = make_operands(sizes, DType::float64, {.name = ""});
    x.query = (x.query * Scalar(m.query)).to(DType::float32);
    x.key = (x.key * Scalar(m.key)).to(DType::float32);
    x.value = (x.value * Scalar(m.value)).to(DType::float32);
    const AttentionAttrs attrs = make_attrs({.name = ""}, head);
    const std::vector<double> want = attend(in_float64(x), attrs).to_doubles();
    const auto error_of = [&](const char* kernel) {
      const Tensor output = empty(Shape{sizes.batch[0], length, head}, {DType::float32, kCuda});
      run_kernel(kernel, on_cuda(x), attrs, output);
      const std::vector<double> got = output.to_doubles();
      for (const double value : got) EXPECT_TRUE(std::isfinite(value)) << kernel;
      return largest_error(got, want);
    };
    const double simt = error_of("cuda.flash_simt"), tf32x3 = error_of("cuda.flash_tf32x3");
    RecordProperty("head_" + std::to_string(head) + "_length_" + std::to_string(length),
                   std::to_string(tf32x3 / simt));
    const double floor =
        4 * unit_roundoff(DType::float32) * largest_error(want, std::vector<double>(want.size()));
    EXPECT_LE(tf32x3, 2 * simt + floor) << length << " x " << m.keys << " x " << head;
  }
}

TEST(CudaAttentionFloat32, InfinityOfAKeyReachesThoseWhoSeeIt) {
  SKIP_WITHOUT_GPU();
  constexpr std::int64_t kLength = 90, kHead = 64;
  constexpr std::size_t kKey = 40, kColumn = 3;
  Operands x = make_operands({{}, kLength, kLength, kHead, kHead}, DType::float32, {.name = ""});
  const AttentionAttrs attrs = make_attrs({.name = "", .is_causal = true}, kHead);
  const auto run = [&] {
    const Tensor output = empty(Shape{kLength, kHead}, {DType::float32, kCuda});
    run_kernel("cuda.flash_tf32x3", on_cuda(x), attrs, output);
    return output.to_doubles();
  };
  const std::vector<double> query = x.query.to_doubles();
  std::vector<double> key = x.key.to_doubles();
  key[kKey * kHead + kColumn] = std::numeric_limits<double>::infinity();
  x.key = tensor(key, x.key.shape(), {DType::float32, kCpu});
  const std::vector<double> got = run(), want = attend(in_float64(x), attrs).to_doubles();
  for (std::size_t i = 0; i < got.size(); ++i) {
    const std::size_t row = i / kHead;
    if (row >= kKey && query[row * kHead + kColumn] > 0) {
      ASSERT_TRUE(std::isnan(got[i])) << "row " << row << ": the score is Inf";
    } else {
      ASSERT_NEAR(got[i], want[i], 1e-5) << "row " << row << ": the score is hidden, or -Inf";
    }
  }
}

}  // namespace
}  // namespace tenon
