// Masks in the tensor core kernels of attention and its gradient, that of the mask included: every kernel
// by name against the CPU in float64. Padding in all its forms, biases, full masks, hidden queries,
// dropout, causality, odd lengths and heads, strides.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "tensor/device_backend.h"
#include "tensor/interpreter.h"
#include "tensor/ops/attributes.h"
#include "tensor/random.h"
#include "tests/cuda/cuda_support.h"

namespace tenon::test {
namespace {

constexpr const char* kForwardOp = "scaled_dot_product_attention_lse";
constexpr const char* kBackwardOp = "scaled_dot_product_attention_backward";
constexpr std::int64_t kBatch = 2, kHeads = 2;

struct Problem {
  std::int64_t length, keys, head;
};

enum class Kind {
  padding,           ///< bool (B, 1, 1, S): keys after each batch's length are hidden
  additive_padding,  ///< the same, -inf
  finite_padding,    ///< the same, -10000
  left_padding,      ///< additive, -inf before a key
  bias_row,          ///< additive (1, H, 1, S)
  one_batch_hidden,  ///< bool (B, 1, 1, S), all of one batch
  scattered,         ///< bool (S)
  full,              ///< bool (L, S)
  full_additive,     ///< additive (B, H, L, S), some -inf, a query hidden
  strided,           ///< full_additive, transposed in memory
  unaligned,         ///< full_additive, one element after a vector's start
  head_bias,         ///< additive (1, H, L, S)
  rankless_bias,     ///< additive (H, L, S)
  batch_bias,        ///< additive (B, 1, L, S)
  shared_bias,       ///< additive (L, S)
  column,            ///< additive (L, 1)
  of_heads,          ///< additive (H, 1, 1)
};

struct MaskSample {
  const char* name;
  Kind kind;
};

constexpr MaskSample kMasks[] = {{"padding", Kind::padding},
                                 {"additive_padding", Kind::additive_padding},
                                 {"finite_padding", Kind::finite_padding},
                                 {"left_padding", Kind::left_padding},
                                 {"bias_row", Kind::bias_row},
                                 {"one_batch_hidden", Kind::one_batch_hidden},
                                 {"scattered", Kind::scattered},
                                 {"full", Kind::full},
                                 {"full_additive", Kind::full_additive},
                                 {"strided", Kind::strided},
                                 {"unaligned", Kind::unaligned},
                                 {"head_bias", Kind::head_bias},
                                 {"rankless_bias", Kind::rankless_bias},
                                 {"batch_bias", Kind::batch_bias},
                                 {"shared_bias", Kind::shared_bias},
                                 {"column", Kind::column},
                                 {"of_heads", Kind::of_heads}};

/// Whether what a mask adds moves all scores of a query together: its gradient is 0 in truth.
bool cancels(Kind kind, const Problem& p) {
  return kind == Kind::column || kind == Kind::of_heads || p.keys == 1;
}

constexpr Problem kProblems[] = {{1, 31, 8},     {31, 1, 64},    {64, 65, 64},
                                 {65, 64, 72},   {200, 384, 64}, {384, 200, 128},
                                 {330, 330, 64}, {129, 70, 40},  {65, 300, 96}};

Tensor normal(const Sizes& sizes, DType dtype, Generator& generator) {
  return randn(to_shape(sizes), {DType::float64, kCpu}, &generator).to(dtype);
}

/// On the CPU.
Tensor make_mask(const Problem& p, Kind kind, DType dtype, Generator& generator) {
  const double hidden =
      kind == Kind::finite_padding ? -10000.0 : -std::numeric_limits<double>::infinity();
  const bool is_bool = kind == Kind::padding || kind == Kind::one_batch_hidden ||
                       kind == Kind::scattered || kind == Kind::full;
  Sizes sizes{kBatch, 1, 1, p.keys};
  if (kind == Kind::bias_row) sizes = {1, kHeads, 1, p.keys};
  if (kind == Kind::scattered) sizes = {p.keys};
  if (kind == Kind::full) sizes = {p.length, p.keys};
  if (kind == Kind::full_additive || kind == Kind::unaligned)
    sizes = {kBatch, kHeads, p.length, p.keys};
  if (kind == Kind::head_bias) sizes = {1, kHeads, p.length, p.keys};
  if (kind == Kind::rankless_bias) sizes = {kHeads, p.length, p.keys};
  if (kind == Kind::batch_bias) sizes = {kBatch, 1, p.length, p.keys};
  if (kind == Kind::shared_bias) sizes = {p.length, p.keys};
  if (kind == Kind::of_heads) sizes = {kHeads, 1, 1};
  if (kind == Kind::strided) sizes = {kBatch, kHeads, p.keys, p.length};
  if (kind == Kind::column) sizes = {p.length, 1};
  std::vector<double> values = normal(sizes, DType::float64, generator).to_doubles();
  const std::int64_t last = sizes.back();
  for (std::size_t i = 0; i < values.size(); ++i) {
    const auto key = static_cast<std::int64_t>(i) % last;
    const std::int64_t row = static_cast<std::int64_t>(i) / last;
    bool shown = true;
    switch (kind) {
      case Kind::padding:
      case Kind::additive_padding:
      case Kind::finite_padding:
        shown = key < (row == 0 ? (p.keys + 2) / 3 : p.keys - 1) || key == 0;
        break;
      case Kind::left_padding: shown = key >= (row == 0 ? p.keys / 2 : p.keys / 5); break;
      case Kind::one_batch_hidden: shown = row != 1 && values[i] < 1; break;
      case Kind::scattered:
      case Kind::full: shown = values[i] < 0.5; break;
      case Kind::unaligned:
      case Kind::full_additive: shown = row % 7 != 3 && values[i] < 1; break;
      case Kind::strided: shown = key % 7 != 3 && values[i] < 1; break;
      default: break;
    }
    if (is_bool) values[i] = shown ? 1 : 0;
    if (!is_bool && !shown) values[i] = hidden;
  }
  const Tensor mask = tensor(values, to_shape(sizes), {DType::float64, kCpu});
  return mask.to(is_bool ? DType::boolean : dtype);
}

double largest(const std::vector<double>& values) {
  double result = 0;
  for (const double value : values) result = std::max(result, std::abs(value));
  return result;
}

Tensor widened(const Tensor& t) { return t && is_floating(t.dtype()) ? t.to(DType::float64) : t; }

/// One call of the forward and of the gradient, in float64 on the CPU and by named kernels on the GPU.
struct Call {
  AttentionAttrs attrs;
  AttentionBackwardAttrs backward_attrs;
  std::vector<Tensor> operands, wide;  // query, key, value, mask
  Tensor grad, wide_grad;
  std::vector<Tensor> expected;  // gradients
  Tensor expected_output;
  bool by_columns;

  Call(const Problem& p, Kind kind, DType dtype, bool is_causal, double dropout)
      : attrs{dropout, is_causal, Scalar(1 / std::sqrt(static_cast<double>(p.head))),
              DropoutMode::train, 7},
        backward_attrs{attrs, false},
        by_columns(kind == Kind::strided) {
    Generator generator(23);
    const auto make = [&](std::int64_t rows) {
      return normal({kBatch, kHeads, rows, p.head}, dtype, generator);
    };
    operands = {make(p.length), make(p.keys), make(p.keys)};
    operands.push_back(make_mask(p, kind, dtype, generator));
    grad = make(p.length);
    backward_attrs.mask_gradient = is_floating(operands[3].dtype());
    for (Tensor& t : operands) wide.push_back(widened(t));
    if (by_columns) wide[3] = transpose(wide[3], -2, -1);
    wide_grad = widened(grad);
    expected_output = apply(get_op("scaled_dot_product_attention"), wide, attrs).at(0);
    expected = apply(get_op(kBackwardOp),
                     std::vector<Tensor>{wide_grad, wide[0], wide[1], wide[2], expected_output,
                                         wide[3], Tensor(), Tensor()},
                     backward_attrs);
    for (Tensor& t : operands) t = t.to(kCuda);
    if (kind == Kind::unaligned) operands[3] = shifted(operands[3], 1);
    if (by_columns) operands[3] = transpose(operands[3], -2, -1);
    grad = grad.to(kCuda);
  }

  /// Output, lse and decisions.
  std::vector<Tensor> forward(const char* kernel) const {
    const auto results = apply(get_op(kForwardOp), operands, attrs);
    EXPECT_TRUE(run_kernel(kForwardOp, kernel, operands, results, attrs)) << kernel;
    return results;
  }

  /// None where the kernel does not take the call.
  std::vector<Tensor> backward(const char* kernel, const std::vector<Tensor>& kept) const {
    const TensorOptions options{operands[0].dtype(), kCuda};
    std::vector<Tensor> results;
    for (std::size_t i = 0; i < expected.size(); ++i)
      results.push_back(full(expected[i].shape(), 7.0, options));
    const bool runs = run_kernel(
        kBackwardOp, kernel,
        {grad, operands[0], operands[1], operands[2], kept[0], operands[3], kept[1], kept[2]},
        results, backward_attrs);
    return runs ? results : std::vector<Tensor>();
  }
};

void expect_near(const Tensor& got, const Tensor& want, double roundings, double floor,
                 const std::string& what) {
  const auto values = got.to_doubles(), exact = want.to_doubles();
  const double allowed = roundings * std::max(largest(exact), floor) + 1e-30;
  ASSERT_EQ(values.size(), exact.size()) << what;
  for (std::size_t i = 0; i < exact.size(); ++i) {
    ASSERT_FALSE(std::isnan(values[i])) << what << ", element " << i << ", exactly " << exact[i];
    ASSERT_LE(std::abs(values[i] - exact[i]), allowed)
        << what << ", element " << i << " is " << values[i] << ", exactly " << exact[i];
  }
}

using Parameters = std::tuple<DType, MaskSample, Problem>;
class CudaAttentionMask : public testing::TestWithParam<Parameters> {
 protected:
  void SetUp() override {
    SKIP_WITHOUT_GPU();
    manual_seed(5);
  }
};

TEST_P(CudaAttentionMask, IsExactInEveryTensorCoreKernel) {
  const auto& [dtype, mask, problem] = GetParam();
  const bool wide = dtype == DType::float32;
  const double unit = 12 * unit_roundoff(dtype) + 256 * unit_roundoff(DType::float32);
  for (const bool is_causal : {false, true}) {
    for (const double dropout : {0.0, 0.25}) {
      const Call call(problem, mask.kind, dtype, is_causal, dropout);
      const std::string what =
          std::string(is_causal ? "causal" : "all keys") + ", dropout " + std::to_string(dropout);
      const auto kept = call.forward(wide ? "cuda.flash_tf32x3" : "cuda.flash_mma");
      expect_near(kept[0], call.expected_output, unit, 0, what + ", output");
      if (HasFatalFailure()) return;
      double floor = 0;
      for (const Tensor& t : call.expected) floor = std::max(floor, 0.1 * largest(t.to_doubles()));
      if (cancels(mask.kind, problem)) floor = std::max(floor, static_cast<double>(problem.head));
      std::vector<const char*> kernels = {"cuda.flash_backward_mma", "cuda.flash_backward_wgmma"};
      if (wide) kernels = {"cuda.flash_backward_tf32x3"};
      for (const char* kernel : kernels) {
        const auto results = call.backward(kernel, kept);
        const auto again = call.backward(kernel, kept);
        ASSERT_TRUE(!results.empty() || kernel != kernels[0]) << kernel;
        for (std::size_t i = 0; i < results.size(); ++i) {
          const std::string which = what + ", " + kernel + ", result " + std::to_string(i);
          expect_near(results[i], call.expected[i], unit, floor, which);
          if (HasFatalFailure()) return;
          expect_bit_equal(results[i], again[i], which);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

const auto kParamName = [](const auto& info) {
  const auto& [dtype, mask, p] = info.param;
  return std::string(name(dtype)) + "_" + mask.name + "_l" + std::to_string(p.length) + "_s" +
         std::to_string(p.keys) + "_e" + std::to_string(p.head);
};

INSTANTIATE_TEST_SUITE_P(Table, CudaAttentionMask,
                         testing::Combine(testing::Values(DType::float16, DType::bfloat16,
                                                          DType::float32),
                                          testing::ValuesIn(kMasks), testing::ValuesIn(kProblems)),
                         kParamName);

/// Heads that only float32's kernels take.
INSTANTIATE_TEST_SUITE_P(OddHeads, CudaAttentionMask,
                         testing::Combine(testing::Values(DType::float32),
                                          testing::Values(kMasks[0], kMasks[3], kMasks[8],
                                                          kMasks[11]),
                                          testing::Values(Problem{70, 90, 36}, Problem{90, 70, 4},
                                                          Problem{33, 65, 100})),
                         kParamName);

/// Masks, and their gradients, are no reason to leave the tensor cores.
TEST(CudaAttentionMaskChoice, TensorCoresTakeMasksAndTheirGradients) {
  SKIP_WITHOUT_GPU();
  for (const DType dtype : {DType::bfloat16, DType::float16, DType::float32}) {
    for (const MaskSample& mask : kMasks) {
      const Call call({96, 80, 64}, mask.kind, dtype, false, 0.25);
      const auto kept =
          call.forward(dtype == DType::float32 ? "cuda.flash_tf32x3" : "cuda.flash_mma");
      const std::vector<Tensor> inputs = {call.grad,        call.operands[0], call.operands[1],
                                          call.operands[2], kept[0],          call.operands[3],
                                          kept[1],          kept[2]};
      std::vector<TensorView> input_views, output_views;
      for (const Tensor& t : inputs) input_views.push_back(t.view_of_data());
      std::vector<Tensor> outputs;
      for (const Tensor& t : call.expected) outputs.push_back(empty(t.shape(), {dtype, kCuda}));
      for (const Tensor& t : outputs) output_views.push_back(t.view_of_data());
      const Attrs attrs = call.backward_attrs;
      const Op& op = get_op(kBackwardOp);
      const KernelArgs args{&op,
                            input_views,
                            output_views,
                            &attrs,
                            true,
                            default_generator().state(),
                            device_backend(DeviceType::cuda).stream(0)};
      const Kernel* kernel = select_kernel(op, DeviceType::cuda, args);
      ASSERT_NE(kernel, nullptr);
      EXPECT_NE(std::string(kernel->name), "cuda.flash_backward_simt")
          << name(dtype) << " " << mask.name;
    }
  }
}

TEST(CudaAttentionMaskChoice, TwentyRunsGiveTheSameBits) {
  SKIP_WITHOUT_GPU();
  for (const std::int64_t head : {64, 128}) {
    const Call call({384, 384, head}, Kind::left_padding, DType::bfloat16, false, 0.25);
    const auto kept = call.forward("cuda.flash_mma");
    for (const char* kernel : {"cuda.flash_backward_mma", "cuda.flash_backward_wgmma"}) {
      const auto first = call.backward(kernel, kept);
      for (int run = 0; run < 20; ++run) {
        const auto again = call.backward(kernel, kept);
        for (std::size_t i = 0; i < first.size(); ++i) expect_bit_equal(first[i], again[i], kernel);
      }
    }
  }
}

}  // namespace
}  // namespace tenon::test
