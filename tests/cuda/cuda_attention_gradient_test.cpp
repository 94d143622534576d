// The gradients of attention, products and the fused residual norm on CUDA against the same calls on
// the CPU in float64: dtypes, head sizes, tails, strides, masks, causality, dropout, special values.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "autograd/autograd.h"
#include "tensor/device_backend.h"
#include "tensor/interpreter.h"
#include "tensor/ops/attributes.h"
#include "tensor/random.h"
#include "tests/cuda/cuda_support.h"

namespace tenon::test {
namespace {

/// Gradients of `op` at leaves that share the operands' memory; undefined for operands without one.
std::vector<Tensor> gradients(const char* op, const std::vector<Tensor>& operands,
                              const Attrs& attrs, const Tensor& cotangent) {
  std::vector<Tensor> leaves;
  for (const Tensor& operand : operands) {
    leaves.push_back(operand ? operand.detach() : Tensor());
    if (operand && is_floating(operand.dtype())) leaves.back().requires_grad_();
  }
  backward(apply(get_op(op), leaves, attrs).at(0), cotangent);
  std::vector<Tensor> result;
  for (const Tensor& leaf : leaves) result.push_back(leaf ? leaf.grad() : Tensor());
  return result;
}

Tensor widened(const Tensor& tensor) {
  return tensor && is_floating(tensor.dtype()) ? tensor.to(DType::float64) : tensor;
}

/// A contiguous operand; undefined stays so.
Operand2 both(const Tensor& tensor) { return tensor ? from_cpu(tensor) : Operand2{}; }

double largest(const std::vector<double>& values) {
  double result = 0;
  for (const double value : values) {
    if (std::isfinite(value)) result = std::max(result, std::abs(value));
  }
  return result;
}

/// All gradients of a call: near those in float64 relative to the largest element, and the same bits
/// in a second run. `roundings` of the operands' dtype, and of what it is computed in; `floor` is the
/// size of terms that cancel.
void check(const char* op, const std::vector<Operand2>& operands, const Attrs& attrs,
           const Operand2& cotangent, double roundings, double compute_roundings,
           const std::string& what, double floor = 0) {
  std::vector<Tensor> wide, cuda;
  for (const Operand2& operand : operands) {
    wide.push_back(widened(operand.cpu));
    cuda.push_back(operand.cuda);
  }
  const auto want = gradients(op, wide, attrs, widened(cotangent.cpu));
  const auto got = gradients(op, cuda, attrs, cotangent.cuda);
  const auto again = gradients(op, cuda, attrs, cotangent.cuda);
  const DType dtype = operands[0].cpu.dtype();
  const double unit = roundings * unit_roundoff(dtype) +
                      compute_roundings * unit_roundoff(accumulation_dtype(dtype));
  // A gradient that is zero in truth is a sum of terms of the others' size.
  for (const Tensor& gradient : want) {
    if (gradient) floor = std::max(floor, 0.1 * largest(gradient.to_doubles()));
  }
  for (std::size_t i = 0; i < operands.size(); ++i) {
    ASSERT_EQ(got[i].defined(), want[i].defined()) << what << ", operand " << i;
    if (!got[i]) continue;
    ASSERT_EQ(got[i].shape(), operands[i].cpu.shape()) << what << ", operand " << i;
    const auto exact = want[i].to_doubles();
    const auto values = got[i].to_doubles();
    const double allowed = unit * std::max(largest(exact), floor) + 1e-30;
    for (std::size_t k = 0; k < exact.size(); ++k) {
      if (std::isnan(exact[k]) && std::isnan(values[k])) continue;
      ASSERT_LE(std::abs(values[k] - exact[k]), allowed)
          << what << ", operand " << i << ", element " << k << " is " << values[k] << ", exactly "
          << exact[k];
    }
    expect_bit_equal(got[i], again[i], what + ", second run, operand " + std::to_string(i));
  }
}

struct AttentionSizes {
  Sizes batch;
  std::int64_t length, keys, head, head_v;
};

enum class Mask { none, boolean, additive, additive_shared, additive_row, additive_column };

struct Options {
  const char* name;
  Mask mask = Mask::none;
  bool is_causal = false;
  double dropout_p = 0;
  double scale = 0;  // 0: 1/√head
};

const Options kOptions[] = {
    {"plain"},
    {"causal", Mask::none, true},
    {"dropout", Mask::none, false, 0.1},
    {"causal_dropout", Mask::none, true, 0.4},
    {"bool_mask", Mask::boolean},
    {"float_mask", Mask::additive},
    {"shared_mask_dropout", Mask::additive_shared, false, 0.3},
    {"row_mask", Mask::additive_row},
    {"column_mask", Mask::additive_column},
    {"negative_scale", Mask::none, false, 0, -0.2},
};

// Tails of 64-row tiles and of 32 and 64 column tiles, heads of several slices, one key, one query.
const AttentionSizes kAttentionSizes[] = {
    {{2, 3}, 1, 1, 8, 8},       {{2, 2}, 77, 77, 32, 32},   {{3}, 77, 130, 40, 56},
    {{1, 2}, 256, 256, 64, 64}, {{2, 1}, 130, 200, 80, 80}, {{2}, 65, 64, 128, 128},
    {{2}, 33, 70, 7, 5},        {{}, 20, 50, 300, 270},     {{2, 1, 2, 1}, 10, 1, 64, 64},
    {{1, 1}, 1, 300, 64, 64},   {{4}, 129, 64, 16, 24},     {{2}, 300, 301, 64, 64},
    {{2}, 5, 7, 64, 64},        {{2}, 193, 97, 128, 96},    {{3}, 45, 90, 36, 60},
};

Sizes with_last(Sizes batch, std::int64_t rows, std::int64_t columns) {
  batch.push_back(rows);
  batch.push_back(columns);
  return batch;
}

Tensor random(const Sizes& sizes, DType dtype, Generator& generator) {
  return randn(to_shape(sizes), {DType::float64}, &generator).to(dtype);
}

Tensor make_mask(const AttentionSizes& s, Mask kind, DType dtype, Generator& generator) {
  const Sizes ones_(s.batch.size(), 1);
  switch (kind) {
    case Mask::none: return {};
    case Mask::boolean: {
      auto values = uniform({s.length, s.keys}, 0, 1, {}, &generator).to_doubles();
      for (std::size_t i = 0; i < values.size(); ++i) {
        values[i] = values[i] < 0.7 || i % static_cast<std::size_t>(s.keys) == 0 ? 1 : 0;
      }
      return tensor(values, {s.length, s.keys}, {DType::boolean, kCpu});
    }
    case Mask::additive: return random(with_last(s.batch, s.length, s.keys), dtype, generator);
    case Mask::additive_shared: {
      Sizes outer = ones_;
      if (!outer.empty()) outer.back() = s.batch.back();
      return random(with_last(outer, s.length, s.keys), dtype, generator);
    }
    case Mask::additive_row: return random({1, s.keys}, dtype, generator);
    case Mask::additive_column: return random(with_last(ones_, s.length, 1), dtype, generator);
  }
  return {};
}

class CudaAttentionGradient
    : public testing::TestWithParam<std::tuple<DType, AttentionSizes, Options>> {
 protected:
  void SetUp() override {
    SKIP_WITHOUT_GPU();
    manual_seed(2024);
  }
};

TEST_P(CudaAttentionGradient, MatchesFloat64) {
  const auto& [dtype, s, options] = GetParam();
  Generator generator(11);
  const std::vector<Operand2> operands{
      both(random(with_last(s.batch, s.length, s.head), dtype, generator)),
      both(random(with_last(s.batch, s.keys, s.head), dtype, generator)),
      both(random(with_last(s.batch, s.keys, s.head_v), dtype, generator)),
      both(make_mask(s, options.mask, dtype, generator))};
  const Operand2 cotangent = both(random(with_last(s.batch, s.length, s.head_v), dtype, generator));
  const double root = std::sqrt(static_cast<double>(s.head));
  const double scale = options.scale != 0 ? options.scale : 1 / root;
  const AttentionAttrs attrs{options.dropout_p, options.is_causal, Scalar(scale),
                             DropoutMode::train, 5};
  // A gradient is a sum of terms larger than itself: roundings count several times. Scores that all
  // move together, or alone in their row, change nothing: those gradients are zero but for rounding.
  const bool cancels = s.keys == 1 || options.mask == Mask::additive_column;
  check("scaled_dot_product_attention", operands, attrs, cotangent, 12,
        256 * std::max(1.0, root * std::abs(scale)), "attention",
        cancels ? static_cast<double>(s.head_v) : 0);
}

const auto kParamName = [](const auto& info) {
  const auto& [dtype, s, options] = info.param;
  std::string text = std::string(name(dtype)) + "_b";
  for (const std::int64_t size : s.batch) text += std::to_string(size) + "_";
  return text + "l" + std::to_string(s.length) + "_s" + std::to_string(s.keys) + "_e" +
         std::to_string(s.head) + "_v" + std::to_string(s.head_v) + "_" + options.name;
};

INSTANTIATE_TEST_SUITE_P(Table, CudaAttentionGradient,
                         testing::Combine(testing::ValuesIn(kFloats),
                                          testing::ValuesIn(kAttentionSizes),
                                          testing::ValuesIn(kOptions)),
                         kParamName);

class CudaGradient : public testing::TestWithParam<DType> {
 protected:
  void SetUp() override {
    SKIP_WITHOUT_GPU();
    manual_seed(5);
  }
};
INSTANTIATE_TEST_SUITE_P(DTypes, CudaGradient, testing::ValuesIn(kFloats),
                         [](const auto& info) { return std::string(name(info.param)); });

TEST_P(CudaGradient, OfAttentionReadsViewsOfPackedQkv) {
  constexpr std::int64_t kBatch = 2, kLength = 90, kHeads = 3, kHead = 64;
  Generator generator(3);
  const Tensor packed = random({kBatch, kLength, 3 * kHeads * kHead}, GetParam(), generator);
  const Tensor cotangent = random({kBatch, kLength, kHeads * kHead}, GetParam(), generator);
  const auto gradient = [&](const Tensor& values, const Tensor& g) {
    Tensor leaf = values.detach().requires_grad_();
    const Tensor parts = leaf.view({kBatch, kLength, 3, kHeads, kHead});
    const auto part = [&](int i) { return parts.narrow(2, i, 1).squeeze(2).permute({0, 2, 1, 3}); };
    const Tensor y = apply1(get_op("scaled_dot_product_attention"), {part(0), part(1), part(2)},
                            AttentionAttrs{0.2, true, Scalar(0.125), DropoutMode::train, 1});
    backward(y.permute({0, 2, 1, 3}).reshape({kBatch, kLength, kHeads * kHead}), g);
    return leaf.grad();
  };
  const auto want = gradient(widened(packed), widened(cotangent)).to_doubles();
  const auto got = gradient(packed.to(kCuda), cotangent.to(kCuda)).to_doubles();
  const double allowed = (12 * unit_roundoff(GetParam()) + 1e-4) * largest(want);
  ASSERT_EQ(got.size(), want.size());
  for (std::size_t i = 0; i < want.size(); ++i) ASSERT_NEAR(got[i], want[i], allowed) << i;
}

constexpr const char* kBackwardOp = "scaled_dot_product_attention_backward";

/// Operands of the gradient's op, as autograd gives them.
struct BackwardCall {
  std::vector<Tensor> inputs;
  AttentionBackwardAttrs attrs;

  BackwardCall(const Sizes& sizes, std::int64_t keys, DType dtype, const AttentionAttrs& forward,
               const Tensor& mask = {})
      : attrs{forward, false} {
    Generator generator(17);
    Sizes others = sizes;
    others[sizes.size() - 2] = keys;
    const auto make = [&](const Sizes& s) { return random(s, dtype, generator).to(kCuda); };
    const std::vector<Tensor> operands = {make(sizes), make(others), make(others), mask};
    const auto kept = apply(get_op("scaled_dot_product_attention_lse"), operands, forward);
    inputs = {make(sizes), operands[0], operands[1], operands[2],
              kept[0],     mask,        kept[1],     kept[2]};
  }

  /// Runs the named implementation; false where it does not take the call.
  bool run(const std::string& kernel_name, const std::vector<Tensor>& outputs) const {
    return run_kernel(kBackwardOp, kernel_name, inputs, outputs, attrs);
  }
};

constexpr const char* kTensorCoreKernels[] = {
    "cuda.flash_backward_mma", "cuda.flash_backward_wgmma", "cuda.flash_backward_tf32x3"};

struct KernelSizes {
  std::int64_t heads, length, keys, head;
};

/// Masks of two batches of scores, on the GPU.
struct NamedMask {
  const char* name;
  Tensor (*make)(const KernelSizes& sizes, DType dtype);
};

/// The first batch sees `first` keys, the second those from `second` on; as 1 and 0.
std::vector<double> padding_of(const KernelSizes& sizes, std::int64_t first, std::int64_t second) {
  std::vector<double> seen;
  for (std::int64_t key = 0; key < sizes.keys; ++key) seen.push_back(key < first ? 1 : 0);
  for (std::int64_t key = 0; key < sizes.keys; ++key) seen.push_back(key >= second ? 1 : 0);
  return seen;
}

Tensor hidden_by(double value, std::vector<double> seen, std::int64_t keys, DType dtype) {
  for (double& one : seen) one = one != 0 ? 0 : value;
  return tensor(seen, {2, 1, 1, keys}, {dtype, kCpu}).to(kCuda);
}

const NamedMask kMasks[] = {
    {"bool padding",
     [](const KernelSizes& s, DType) {
       return tensor(padding_of(s, s.keys / 2 + 1, 3), {2, 1, 1, s.keys}, {DType::boolean, kCpu})
           .to(kCuda);
     }},
    {"one batch hidden",
     [](const KernelSizes& s, DType) {
       return tensor(padding_of(s, 0, s.keys / 2), {2, 1, 1, s.keys}, {DType::boolean, kCpu})
           .to(kCuda);
     }},
    {"padding of -inf",
     [](const KernelSizes& s, DType dtype) {
       return hidden_by(-std::numeric_limits<double>::infinity(), padding_of(s, 2, s.keys - 1),
                        s.keys, dtype);
     }},
    {"padding of -3e4",
     [](const KernelSizes& s, DType dtype) {
       return hidden_by(-3e4, padding_of(s, s.keys - 5, s.keys / 3), s.keys, dtype);
     }},
    {"one batch hidden by the lowest number",
     [](const KernelSizes& s, DType dtype) {
       const double lowest = dtype == DType::float16 ? -65504 : -3.3895e38;
       return hidden_by(lowest, padding_of(s, 0, s.keys / 2), s.keys, dtype);
     }},
    {"every other key hidden",
     [](const KernelSizes& s, DType) {
       std::vector<double> seen;
       for (std::int64_t key = 0; key < 2 * s.keys; ++key) seen.push_back(key % 2);
       return tensor(seen, {2, 1, 1, s.keys}, {DType::boolean, kCpu}).to(kCuda);
     }},
    {"bias of keys",
     [](const KernelSizes& s, DType dtype) {
       Generator generator(4);
       return random({s.keys}, dtype, generator).to(kCuda);
     }},
    {"bool of all heads",
     [](const KernelSizes& s, DType) {
       Generator generator(5);
       auto seen = uniform({s.length, s.keys}, 0, 1, {}, &generator).to_doubles();
       for (double& one : seen) one = one < 0.6 ? 1 : 0;
       std::fill_n(seen.begin(), s.keys, 0);  // a query that sees nothing
       return tensor(seen, {s.length, s.keys}, {DType::boolean, kCpu}).to(kCuda);
     }},
    {"bias of each head",
     [](const KernelSizes& s, DType dtype) {
       Generator generator(6);
       return random({2, s.heads, s.length, s.keys}, dtype, generator).to(kCuda);
     }},
    {"bias of one batch for all, 0 and -inf",
     [](const KernelSizes& s, DType dtype) {
       Generator generator(8);
       auto values = uniform({s.length, s.keys}, 0, 1, {}, &generator).to_doubles();
       for (double& one : values) {
         one = one < 0.5 ? 0 : -std::numeric_limits<double>::infinity();
       }
       return tensor(values, {s.length, s.keys}, {dtype, kCpu}).to(kCuda);
     }},
    {"bools of a wider tensor",
     [](const KernelSizes& s, DType) {
       Generator generator(9);
       auto seen = uniform({2, 1, s.length, s.keys + 24}, 0, 1, {}, &generator).to_doubles();
       for (double& one : seen) one = one < 0.6 ? 1 : 0;
       return tensor(seen, {2, 1, s.length, s.keys + 24}, {DType::boolean, kCpu})
           .to(kCuda)
           .narrow(-1, 3, s.keys);
     }},
    {"bias by columns",
     [](const KernelSizes& s, DType dtype) {
       Generator generator(7);
       return random({s.heads, s.keys, s.length}, dtype, generator).to(kCuda).transpose(-1, -2);
     }},
};

/// Every kernel for tensor cores near the one for multiply-adds, for two batches.
void expect_same_in_every_kernel(const KernelSizes& sizes, DType dtype, bool is_causal, double p,
                                 const NamedMask* mask = nullptr) {
  const auto [heads, length, keys, head] = sizes;
  const AttentionAttrs attrs{p, is_causal, Scalar(0.15), DropoutMode::train, 7};
  const BackwardCall call({2, heads, length, head}, keys, dtype, attrs,
                          mask != nullptr ? mask->make(sizes, dtype) : Tensor());
  const auto outputs = [&] {
    const TensorOptions options{dtype, kCuda};
    return std::vector<Tensor>{empty(Shape{2, sizes.heads, sizes.length, sizes.head}, options),
                               empty(Shape{2, sizes.heads, sizes.keys, sizes.head}, options),
                               empty(Shape{2, sizes.heads, sizes.keys, sizes.head}, options)};
  };
  const auto expected = outputs();
  ASSERT_TRUE(call.run("cuda.flash_backward_simt", expected));
  for (const char* kernel : kTensorCoreKernels) {
    const auto results = outputs();
    if (!call.run(kernel, results)) continue;
    for (std::size_t i = 0; i < 3; ++i) {
      const auto got = results[i].to_doubles(), want = expected[i].to_doubles();
      // Results of 16 bits are rounded once more than they are summed. What is cut off three
      // TF32 products is some 8 roundings, of both kernels' 200 terms and of their differences.
      const int roundings = dtype == DType::float32 ? 256 : 8;
      const double allowed = roundings * unit_roundoff(dtype) * largest(want);
      for (std::size_t k = 0; k < want.size(); ++k) {
        ASSERT_NEAR(got[k], want[k], allowed)
            << kernel << ": " << length << " x " << keys << " x " << head << ", mask "
            << (mask != nullptr ? mask->name : "none") << ", causal " << is_causal << ", dropout "
            << p << ", result " << i << ", element " << k;
      }
    }
  }
}

TEST_P(CudaGradient, OfAttentionIsTheSameInEveryKernel) {
  if (GetParam() == DType::float64) GTEST_SKIP() << "one kernel takes it";
  // The last has more tiles than a GPU has multiprocessors, for kernels whose blocks stay.
  for (const KernelSizes& sizes : {KernelSizes{2, 200, 130, 64},
                                   {2, 64, 256, 64},
                                   {2, 130, 200, 32},
                                   {2, 90, 150, 128},
                                   {40, 330, 390, 64}}) {
    for (const bool is_causal : {false, true}) {
      for (const double p : {0.0, 0.3}) {
        expect_same_in_every_kernel(sizes, GetParam(), is_causal, p);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_P(CudaGradient, OfMaskedAttentionIsTheSameInEveryKernel) {
  if (GetParam() == DType::float64) GTEST_SKIP() << "one kernel takes it";
  for (const KernelSizes& sizes : {KernelSizes{2, 200, 130, 64},
                                   {2, 64, 256, 40},
                                   {3, 33, 64, 64},
                                   {1, 130, 200, 128},
                                   {40, 330, 390, 64}}) {
    for (const NamedMask& mask : kMasks) {
      for (const bool is_causal : {false, true}) {
        for (const double p : {0.0, 0.3}) {
          expect_same_in_every_kernel(sizes, GetParam(), is_causal, p, &mask);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST_P(CudaGradient, MaskedAttentionIsTheSameInEveryForwardKernel) {
  if (size_of(GetParam()) != 2) GTEST_SKIP() << "fewer kernels take it";
  const AttentionAttrs attrs{0, false, Scalar(0.15), DropoutMode::eval, 7};
  for (const KernelSizes& sizes :
       {KernelSizes{2, 200, 130, 64}, {2, 300, 512, 40}, {3, 33, 64, 128}, {4, 256, 256, 64}}) {
    Generator generator(21);
    const auto make = [&](std::int64_t rows) {
      return random({2, sizes.heads, rows, sizes.head}, GetParam(), generator).to(kCuda);
    };
    const Tensor query = make(sizes.length), key = make(sizes.keys), value = make(sizes.keys);
    for (const NamedMask& mask : kMasks) {
      const std::vector<Tensor> inputs = {query, key, value, mask.make(sizes, GetParam())};
      const auto result_of = [&](const char* kernel) {
        const Tensor result = full(query.shape(), 7, {GetParam(), kCuda});
        const std::vector<Tensor> outputs = {result};
        const bool ran =
            run_kernel("scaled_dot_product_attention", kernel, inputs, outputs, attrs);
        return ran ? result.to_doubles() : std::vector<double>();
      };
      const std::vector<double> want = result_of("cuda.flash_simt");
      ASSERT_FALSE(want.empty());
      for (const char* kernel : {"cuda.flash_mma", "cuda.flash_wgmma"}) {
        const std::vector<double> got = result_of(kernel);
        if (got.empty()) continue;
        for (std::size_t k = 0; k < want.size(); ++k) {
          ASSERT_NEAR(got[k], want[k], 4 * unit_roundoff(GetParam()) * (1 + std::abs(want[k])))
              << kernel << ", " << mask.name << ", " << sizes.keys << " keys, element " << k;
        }
      }
    }
  }
}

TEST_P(CudaGradient, OfMaskedAttentionRunsOnTensorCores) {
  if (size_of(GetParam()) != 2) GTEST_SKIP() << "masks of other dtypes are added by multiply-adds";
  const KernelSizes sizes{2, 100, 140, 64};
  for (const NamedMask& mask : kMasks) {
    const AttentionAttrs attrs{0.1, false, Scalar(0.15), DropoutMode::train, 7};
    const BackwardCall call({2, 2, 100, 64}, 140, GetParam(), attrs, mask.make(sizes, GetParam()));
    const TensorOptions options{GetParam(), kCuda};
    const std::vector<Tensor> results = {empty(Shape{2, 2, 100, 64}, options),
                                         empty(Shape{2, 2, 140, 64}, options),
                                         empty(Shape{2, 2, 140, 64}, options)};
    EXPECT_TRUE(call.run("cuda.flash_backward_mma", results)) << mask.name;
    EXPECT_TRUE(call.run("cuda.flash_backward_wgmma", results)) << mask.name;
  }
}

/// The same in little work, for tools/sanitize_cuda.py: rings that turn twice, warpgroups that pass
/// tiles, and more tiles than multiprocessors.
constexpr KernelSizes kSmallSizes[] = {{1, 580, 70, 64}, {1, 70, 580, 64},  {1, 330, 330, 64},
                                       {1, 70, 90, 128}, {150, 20, 24, 16}, {1, 330, 390, 128}};

TEST_P(CudaGradient, OfSmallAttentionInEveryKernel) {
  if (GetParam() == DType::float64) GTEST_SKIP() << "one kernel takes it";
  for (const KernelSizes& sizes : kSmallSizes) {
    expect_same_in_every_kernel(sizes, GetParam(), sizes.length != 70, 0);
    if (HasFatalFailure()) return;
  }
}

TEST_P(CudaGradient, OfSmallDroppedAttentionInEveryKernel) {
  if (GetParam() == DType::float64) GTEST_SKIP() << "one kernel takes it";
  for (const KernelSizes& sizes : kSmallSizes) {
    expect_same_in_every_kernel(sizes, GetParam(), sizes.length != 70, 0.3);
    if (HasFatalFailure()) return;
  }
}

/// With each mask; and in tiles of 128 queries, and a ring that turns, with some of them.
void expect_same_under_masks(DType dtype, double p) {
  for (std::size_t i = 0; i < std::size(kMasks); ++i) {
    expect_same_in_every_kernel({1, 70, 90, 64}, dtype, i % 2 == 0, p, &kMasks[i]);
    expect_same_in_every_kernel({1, 20, 200, 128}, dtype, i % 2 == 1, p, &kMasks[i]);
    if (i % 3 == 1) {
      expect_same_in_every_kernel({70, 66, 24, 16}, dtype, true, p, &kMasks[i]);
      expect_same_in_every_kernel({1, 330, 200, 64}, dtype, false, p, &kMasks[i]);
    }
    if (testing::Test::HasFatalFailure()) return;
  }
}

TEST_P(CudaGradient, OfSmallMaskedAttentionInEveryKernel) {
  if (GetParam() == DType::float64) GTEST_SKIP() << "one kernel takes it";
  expect_same_under_masks(GetParam(), 0);
}

TEST_P(CudaGradient, OfSmallMaskedDroppedAttentionInEveryKernel) {
  if (GetParam() == DType::float64) GTEST_SKIP() << "one kernel takes it";
  expect_same_under_masks(GetParam(), 0.3);
}

/// Blocks of keys that a batch hides whole, under causality: no copy is waited for.
TEST_P(CudaGradient, OfCausalAttentionWithHiddenBlocksEnds) {
  if (GetParam() == DType::float64) GTEST_SKIP() << "one kernel takes it";
  for (const KernelSizes& sizes :
       {KernelSizes{2, 300, 300, 64}, {2, 66, 24, 16}, {1, 64, 500, 40}}) {
    for (const NamedMask& mask : kMasks) {
      expect_same_in_every_kernel(sizes, GetParam(), true, 0, &mask);
      if (HasFatalFailure()) return;
    }
  }
}

TEST(CudaAttentionGradientFloat32, IsAsAccurateOnTensorCoresAsByMultiplyAdds) {
  SKIP_WITHOUT_GPU();
  for (const auto& [length, keys, head] :
       {std::tuple{256, 256, 64}, {2000, 96, 64}, {96, 2000, 64}, {200, 200, 128}}) {
    const AttentionAttrs attrs{0, false, Scalar(1 / std::sqrt(static_cast<double>(head))),
                               DropoutMode::train, 7};
    const BackwardCall call({2, 2, length, head}, keys, DType::float32, attrs);
    std::vector<Tensor> wide;
    for (const Tensor& t : call.inputs) wide.push_back(t ? widened(t.to(kCpu)) : Tensor());
    const std::vector<Tensor> operands = {wide[1], wide[2], wide[3], Tensor()};
    wide[4] = apply(get_op("scaled_dot_product_attention"), operands, attrs).at(0);
    wide[6] = wide[7] = Tensor();
    const auto exact = apply(get_op("scaled_dot_product_attention_backward"), wide, call.attrs);
    const auto errors = [&](const char* kernel) {
      const TensorOptions options{DType::float32, kCuda};
      const std::vector<Tensor> results{empty(Shape{2, 2, length, head}, options),
                                        empty(Shape{2, 2, keys, head}, options),
                                        empty(Shape{2, 2, keys, head}, options)};
      EXPECT_TRUE(call.run(kernel, results));
      std::vector<double> largest_errors;
      for (std::size_t i = 0; i < 3; ++i) {
        auto difference = results[i].to_doubles();
        const auto want = exact[i].to_doubles();
        for (std::size_t k = 0; k < want.size(); ++k) difference[k] -= want[k];
        largest_errors.push_back(largest(difference));
      }
      return largest_errors;
    };
    const auto simt = errors("cuda.flash_backward_simt");
    const auto tf32x3 = errors("cuda.flash_backward_tf32x3");
    for (std::size_t i = 0; i < 3; ++i) {
      const double floor = 4 * unit_roundoff(DType::float32) * largest(exact[i].to_doubles());
      EXPECT_LE(tf32x3[i], 2 * simt[i] + floor)
          << length << " x " << keys << " x " << head << ", result " << i;
    }
  }
}

TEST_P(CudaGradient, OfAttentionGoesStraightIntoPackedQkv) {
  if (GetParam() == DType::float64) GTEST_SKIP() << "one kernel takes it";
  constexpr std::int64_t kBatch = 2, kLength = 90, kHeads = 3, kHead = 64;
  for (const double p : {0.0, 0.3, 1.0}) {
    const AttentionAttrs attrs{p, true, Scalar(0.125), DropoutMode::train, 7};
    const BackwardCall call({kBatch, kHeads, kLength, kHead}, kLength, GetParam(), attrs);
    for (const char* kernel : kTensorCoreKernels) {
      const Tensor packed = ones({kBatch, kLength, 3, kHeads, kHead}, {GetParam(), kCuda});
      std::vector<Tensor> parts, plain;
      for (int i = 0; i < 3; ++i) {
        parts.push_back(packed.narrow(2, i, 1).squeeze(2).permute({0, 2, 1, 3}));
        plain.push_back(empty(Shape{kBatch, kHeads, kLength, kHead}, {GetParam(), kCuda}));
      }
      if (!call.run(kernel, parts)) continue;
      call.run(kernel, plain);
      for (std::size_t i = 0; i < 3; ++i) {
        EXPECT_EQ(parts[i].to_doubles(), plain[i].to_doubles()) << kernel << ", result " << i;
        if (p == 1) EXPECT_EQ(largest(plain[i].to_doubles()), 0) << kernel << ", result " << i;
      }
    }
  }
}

TEST_P(CudaGradient, OfAttentionOverNothingIsZero) {
  Generator generator(3);
  const struct {
    Sizes q, k, v, g;
    double dropout_p;
  } samples[] = {{{2, 0, 4}, {2, 3, 4}, {2, 3, 5}, {2, 0, 5}, 0},
                 {{2, 3, 4}, {2, 0, 4}, {2, 0, 5}, {2, 3, 5}, 0},
                 {{2, 3, 0}, {2, 2, 0}, {2, 2, 5}, {2, 3, 5}, 0},
                 {{2, 3, 4}, {2, 2, 4}, {2, 2, 0}, {2, 3, 0}, 0},
                 {{2, 3, 4}, {2, 2, 4}, {2, 2, 5}, {2, 3, 5}, 1},
                 {{2, 0, 8}, {2, 3, 8}, {2, 3, 8}, {2, 0, 8}, 0.5},
                 {{2, 3, 8}, {2, 0, 8}, {2, 0, 8}, {2, 3, 8}, 0.5},
                 {{2, 3, 8}, {2, 2, 8}, {2, 2, 8}, {2, 3, 8}, 1}};
  for (const auto& sample : samples) {
    const auto make = [&](const Sizes& sizes) {
      return both(random(sizes, GetParam(), generator));
    };
    check("scaled_dot_product_attention", {make(sample.q), make(sample.k), make(sample.v), {}},
          AttentionAttrs{sample.dropout_p, false, Scalar(0.5), DropoutMode::train, 0},
          make(sample.g), 12, 256, "nothing");
  }
}

TEST_P(CudaGradient, OfProductsInEveryLayout) {
  Generator generator(7);
  const struct {
    Sizes a, b, output;
  } samples[] = {{{5, 7}, {7, 9}, {5, 9}},
                 {{2, 3, 40, 33}, {33, 20}, {2, 3, 40, 20}},
                 {{3, 1, 8, 16}, {5, 16, 24}, {3, 5, 8, 24}},
                 {{4, 3}, {2, 3, 5}, {2, 4, 5}},
                 {{3, 0}, {0, 4}, {3, 4}}};
  for (const auto& sample : samples) {
    for (const Placement placement : kPlacements) {
      const Operand2 a = make_operand(sample.a, GetParam(), placement, generator);
      const Operand2 b = make_operand(sample.b, GetParam(), placement, generator);
      const Operand2 g = make_operand(sample.output, GetParam(), placement, generator);
      check("matmul", {a, b}, {}, g, 12, 64, std::string("matmul ") + placement_name(placement));
    }
  }
  for (const Placement placement : kPlacements) {
    const auto make = [&](const Sizes& sizes) {
      return make_operand(sizes, GetParam(), placement, generator);
    };
    const Operand2 x = make({2, 33, 40}), w = make({24, 40}), bias = make({24});
    const Operand2 g = make({2, 33, 24});
    check("linear", {x, w, bias}, {}, g, 12, 64,
          std::string("linear ") + placement_name(placement));
  }
}

TEST_P(CudaGradient, OfDropoutAndOfTheResidualNorm) {
  Generator generator(9);
  for (const Sizes& sizes : {Sizes{5, 3}, Sizes{2, 70, 64}, Sizes{9, 1000}, Sizes{0, 8}}) {
    const Sizes vector{sizes.back()};
    const auto make = [&](const Sizes& shape) {
      return both(random(shape, GetParam(), generator));
    };
    const Operand2 x = make(sizes), g = make(sizes);
    check("dropout", {x}, DropoutAttrs{0.3, DropoutMode::train, 3}, g, 2, 4, "dropout");
    check("bias_dropout_residual_layer_norm",
          {x, make(vector), make(sizes), make(vector), make(vector)},
          BiasDropoutResidualLayerNormAttrs{0.3, 1e-3, DropoutMode::train, 4}, g, 48, 512,
          "residual norm");
  }
}

}  // namespace
}  // namespace tenon::test
