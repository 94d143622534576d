// Queries that see no key on CUDA, by every kernel that takes a mask: zeros, a log-sum-exp of -inf, zero
// gradients, and nothing of them in the gradients of the others.
#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "autograd/autograd.h"
#include "tensor/op.h"
#include "tensor/ops/attributes.h"
#include "tensor/rules/gradients.h"
#include "tests/cuda/cuda_support.h"

namespace tenon::test {
namespace cuda_attention_unseen_test {

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr std::int64_t kHeads = 3, kQueries = 150, kKeys = 170;

/// One at each edge of tiles of 16, 64 and 128 queries, and a tile of 64 and its neighbours whole.
bool is_hidden(std::int64_t query) {
  return query == 0 || query == 15 || (query >= 60 && query < 130) || query == kQueries - 1;
}

struct MaskKind {
  const char* name;
  bool boolean;
  Sizes sizes;
};
const MaskKind kMasks[] = {
    {"bool (L, S)", true, {kQueries, kKeys}},
    {"bool (H, 1, S)", true, {kHeads, 1, kKeys}},
    {"bool (H, L, 1)", true, {kHeads, kQueries, 1}},
    {"additive (L, S)", false, {kQueries, kKeys}},
    {"additive (H, L, S)", false, {kHeads, kQueries, kKeys}},
    {"additive (L, 1)", false, {kQueries, 1}},
    {"additive (H, 1, 1)", false, {kHeads, 1, 1}},
};

/// A mask without a size for each query hides all of the first head.
bool hides(const MaskKind& kind, std::int64_t head, std::int64_t query) {
  return kind.sizes[kind.sizes.size() - 2] == 1 ? head == 0 : is_hidden(query);
}

Tensor make_mask(const MaskKind& kind, DType dtype, Generator& generator) {
  std::vector<double> values = randn(to_shape(kind.sizes), {}, &generator).to_doubles();
  const std::int64_t columns = kind.sizes.back();
  const std::int64_t rows = kind.sizes[kind.sizes.size() - 2];
  for (std::size_t i = 0; i < values.size(); ++i) {
    const std::int64_t row = static_cast<std::int64_t>(i) / columns;
    const std::int64_t column = static_cast<std::int64_t>(i) % columns;
    const bool hidden = hides(kind, row / rows, row % rows);
    // The first tiles of keys are hidden from the others: a row's maximum comes late.
    const bool seen =
        !hidden && (columns == 1 || (column >= 70 && values[i] > -0.5) || column == columns - 1);
    if (kind.boolean) {
      values[i] = seen ? 1 : 0;
    } else if (!seen) {
      values[i] = -kInf;
    }
  }
  return tensor(values, to_shape(kind.sizes), {kind.boolean ? DType::boolean : dtype, kCpu});
}

/// Operands on the CPU, in the dtype's own numbers.
struct Sample {
  std::vector<Tensor> operands;
  Tensor cotangent;
  AttentionAttrs attrs;

  Sample(const MaskKind& kind, DType dtype, std::int64_t head, double p)
      : attrs{p, false, Scalar(0.3), DropoutMode::train, 3} {
    Generator generator(21);
    const auto make = [&](std::int64_t rows) {
      return randn({kHeads, rows, head}, {}, &generator).to(dtype);
    };
    operands = {make(kQueries), make(kKeys), make(kKeys)};
    operands.push_back(make_mask(kind, dtype, generator));
    cotangent = make(kQueries);
  }
  std::vector<Tensor> on(Device device, bool in_float64) const {
    std::vector<Tensor> result;
    for (const Tensor& operand : operands) {
      const bool widens = in_float64 && operand.dtype() != DType::boolean;
      result.push_back((widens ? operand.to(DType::float64) : operand).to(device).detach());
    }
    return result;
  }
};

/// Rows of `n` values: exactly `hidden_value` where hidden, else near `want`.
void expect_rows(const Tensor& got, const Tensor& want, const MaskKind& kind, std::int64_t n,
                 double hidden_value, double allowed, const std::string& what) {
  const auto values = got.to_doubles(), exact = want.to_doubles();
  ASSERT_EQ(values.size(), exact.size()) << what;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const std::int64_t row = static_cast<std::int64_t>(i) / n;
    if (hides(kind, row / kQueries, row % kQueries)) {
      ASSERT_EQ(values[i], hidden_value) << what << ", row " << row;
      ASSERT_EQ(exact[i], hidden_value) << what << ", row " << row << " on the CPU";
    } else {
      ASSERT_NEAR(values[i], exact[i], allowed) << what << ", row " << row;
    }
  }
}

double tolerance(DType dtype) {
  return 16 * unit_roundoff(dtype) + 2000 * unit_roundoff(accumulation_dtype(dtype));
}

/// Calls f(sample, kind, what) for every mask, without and with dropout, at head sizes for tensor cores
/// and for multiply-adds.
template <class F>
void for_each_sample(DType dtype, F f) {
  for (const MaskKind& kind : kMasks) {
    for (const std::int64_t head : {64, 128, 20, 200}) {
      for (const double p : {0.0, 0.3}) {
        manual_seed(11);
        f(Sample(kind, dtype, head, p), kind,
          std::string(kind.name) + " head " + std::to_string(head) + " p=" + std::to_string(p));
      }
    }
  }
}

class CudaAttentionUnseen : public testing::TestWithParam<DType> {
 protected:
  void SetUp() override { SKIP_WITHOUT_GPU(); }
};
INSTANTIATE_TEST_SUITE_P(DTypes, CudaAttentionUnseen, testing::ValuesIn(kFloats),
                         [](const auto& info) { return std::string(name(info.param)); });

/// The output alone by every kernel that takes the call.
std::vector<std::pair<std::string, Tensor>> outputs_of_kernels(const Sample& s) {
  const Op& op = get_op("scaled_dot_product_attention");
  const Attrs attrs = s.attrs;
  const std::vector<Tensor> operands = s.on(kCuda, false);
  std::vector<TensorView> inputs;
  for (const Tensor& operand : operands) inputs.push_back(operand.view_of_data());
  std::vector<std::pair<std::string, Tensor>> results;
  for (const Kernel& kernel : op.kernels(DeviceType::cuda)) {
    const Tensor output = empty(s.operands[0].shape(), {s.operands[0].dtype(), kCuda});
    const TensorView outputs[] = {output.view_of_data()};
    KernelArgs args{&op,
                    inputs,
                    outputs,
                    &attrs,
                    true,
                    default_generator().state(),
                    device_backend(DeviceType::cuda).stream(0)};
    if (!kernel.supports(args)) continue;
    const std::size_t bytes = kernel.workspace_bytes ? kernel.workspace_bytes(args) : 0;
    const Tensor workspace = empty(Shape{static_cast<std::int64_t>(bytes)}, {DType::uint8, kCuda});
    args.workspace = workspace.view_of_data().data;
    kernel.run(args);
    results.emplace_back(std::string(kernel.name), output);
  }
  return results;
}

TEST_P(CudaAttentionUnseen, QueriesGetZerosInEveryKernel) {
  for_each_sample(GetParam(), [](const Sample& s, const MaskKind& kind, const std::string& what) {
    const DType dtype = s.operands[0].dtype();
    const std::int64_t head = s.operands[0].layout().sizes.back();
    const Tensor want = apply(get_op("scaled_dot_product_attention"), s.on(kCpu, true), s.attrs)[0];
    const auto results = outputs_of_kernels(s);
    ASSERT_FALSE(results.empty());
    for (const auto& [kernel, got] : results) {
      expect_rows(got, want, kind, head, 0, 4 * tolerance(dtype), kernel + " " + what);
    }
  });
}

TEST_P(CudaAttentionUnseen, LogSumExpIsMinusInfinity) {
  for_each_sample(GetParam(), [](const Sample& s, const MaskKind& kind, const std::string& what) {
    const Op& op = get_op("scaled_dot_product_attention_lse");
    const Attrs attrs = s.attrs;
    const auto want = apply(op, s.on(kCpu, true), attrs),
               got = apply(op, s.on(kCuda, false), attrs);
    expect_rows(got[1], want[1], kind, 1, -kInf, 1e-3, what);
  });
}

/// Gradients of the operands, in their order; undefined for a bool mask.
std::vector<Tensor> gradients(const Sample& s, Device device, bool in_float64) {
  std::vector<Tensor> leaves = s.on(device, in_float64);
  for (Tensor& leaf : leaves) {
    if (is_floating(leaf.dtype())) leaf.requires_grad_();
  }
  const Tensor g = in_float64 ? s.cotangent.to(DType::float64) : s.cotangent;
  const Attrs attrs = s.attrs;
  backward(apply(get_op("scaled_dot_product_attention"), leaves, attrs)[0], g.to(device));
  std::vector<Tensor> result;
  for (const Tensor& leaf : leaves) result.push_back(leaf.grad());
  return result;
}

void expect_gradients(const std::vector<Tensor>& got, const std::vector<Tensor>& want,
                      const Sample& s, const MaskKind& kind, const std::string& what) {
  double largest = 0;
  for (std::size_t i = 0; i < 3; ++i) {
    for (const double x : want[i].to_doubles()) largest = std::max(largest, std::abs(x));
  }
  const double allowed = tolerance(s.operands[0].dtype()) * largest;
  const std::int64_t head = s.operands[0].layout().sizes.back();
  expect_rows(got[0], want[0], kind, head, 0, allowed, what + " query");
  for (std::size_t i = 1; i < got.size(); ++i) {
    if (!got[i]) continue;
    const auto values = got[i].to_doubles(), exact = want[i].to_doubles();
    // A mask's gradient sums over what shares an element, and cancels.
    const double terms =
        i == 3 ? static_cast<double>(kHeads * kQueries * kKeys) / static_cast<double>(values.size())
               : 1;
    for (std::size_t k = 0; k < values.size(); ++k) {
      ASSERT_NEAR(values[k], exact[k], allowed * terms) << what << ", operand " << i << ", " << k;
    }
  }
}

TEST_P(CudaAttentionUnseen, QueriesHaveNoGradientAndReachNoOther) {
  for_each_sample(GetParam(), [](const Sample& s, const MaskKind& kind, const std::string& what) {
    expect_gradients(gradients(s, kCuda, false), gradients(s, kCpu, true), s, kind, what);
  });
}

TEST_P(CudaAttentionUnseen, TheBackwardOpNeedsNoStatisticsForIt) {
  for_each_sample(GetParam(), [](const Sample& s, const MaskKind& kind, const std::string& what) {
    const auto x = s.on(kCuda, false);
    const Attrs forward = s.attrs;
    const Tensor output = apply(get_op("scaled_dot_product_attention"), x, forward)[0];
    auto got = ops::scaled_dot_product_attention_backward(
        s.cotangent.to(kCuda), x[0], x[1], x[2], output, x[3], {s.attrs, !kind.boolean}, {});
    expect_gradients(got, gradients(s, kCpu, true), s, kind, what);
  });
}

TEST_P(CudaAttentionUnseen, ScoresThatOverflowWithoutAMaskAreSoftmaxs) {
  if (GetParam() == DType::float16) GTEST_SKIP() << "its scores are finite in float32";
  const double large = GetParam() == DType::float64 ? 1e200 : 1e30;
  const TensorOptions options{GetParam(), kCuda};
  const Tensor q = full({2, 70, 64}, large, options), k = full({2, 70, 64}, -large, options);
  for (const double y : scaled_dot_product_attention(q, k, k).to_doubles()) {
    ASSERT_TRUE(std::isnan(y));
  }
}

/// Numbers that programs hide keys with. They hide nothing where all keys of a query have the same one.
std::vector<double> low_numbers(DType dtype) {
  std::vector<double> result = {-1e4};
  if (largest_finite(dtype) > 1e9) result.push_back(-1e9);
  result.push_back(-largest_finite(dtype));
  return result;
}

/// The sample with a mask of keys, of the second head's whole and of a part of the others', or, by
/// queries, of the hidden ones' whole and of a part of the others'.
void lower_keys(Sample& s, bool by_queries, double low) {
  std::vector<double> values;
  for (std::int64_t i = 0; i < (by_queries ? kQueries : kHeads); ++i) {
    const bool is_low = by_queries ? is_hidden(i) : i == 1;
    for (std::int64_t key = 0; key < kKeys; ++key) {
      values.push_back(is_low || key < 40 || key % 7 == i % 7 ? low : 0);
    }
  }
  const Sizes sizes = by_queries ? Sizes{kQueries, kKeys} : Sizes{kHeads, 1, kKeys};
  s.operands[3] = tensor(values, to_shape(sizes), {s.operands[0].dtype(), kCpu});
  // A mean of them is no small number.
  s.operands[2] = (s.operands[2].to(DType::float64) + 2.0).to(s.operands[0].dtype());
}

/// Calls f(sample, allowed share of the largest number, what) for all such masks.
template <class F>
void for_each_low_mask(DType dtype, F f) {
  for (const double low : low_numbers(dtype)) {
    // Scores are rounded at the number's place. Far below, nothing is left of their differences.
    const double rounding = -low * 4 * unit_roundoff(accumulation_dtype(dtype));
    const double place = rounding < 0.1 ? rounding : 0;
    for (const bool by_queries : {false, true}) {
      for (const std::int64_t head : {64, 128, 20, 200}) {
        Sample s(kMasks[3], dtype, head, 0);
        lower_keys(s, by_queries, low);
        f(s, tolerance(dtype) + place,
          std::to_string(low) + (by_queries ? " by queries" : " by keys") + ", head " +
              std::to_string(head));
        if (::testing::Test::HasFatalFailure()) return;
      }
    }
  }
}

/// On the CPU in the type that is computed in.
std::vector<Tensor> exact_operands(const Sample& s) {
  std::vector<Tensor> result;
  for (const Tensor& operand : s.operands) {
    result.push_back(operand.to(accumulation_dtype(operand.dtype())).detach());
  }
  return result;
}

void expect_all_near(const Tensor& got, const Tensor& want, double share, const std::string& what) {
  const auto values = got.to_doubles(), exact = want.to_doubles();
  ASSERT_EQ(values.size(), exact.size()) << what;
  double largest = 0;
  for (const double x : exact) largest = std::max(largest, std::abs(x));
  for (std::size_t i = 0; i < values.size(); ++i) {
    ASSERT_NEAR(values[i], exact[i], share * largest) << what << ", element " << i;
  }
}

TEST_P(CudaAttentionUnseen, LowNumbersAloneHideNothingInAnyKernel) {
  for_each_low_mask(GetParam(), [](const Sample& s, double share, const std::string& what) {
    const Tensor want =
        apply(get_op("scaled_dot_product_attention"), exact_operands(s), s.attrs)[0];
    const auto results = outputs_of_kernels(s);
    ASSERT_FALSE(results.empty());
    for (const auto& [kernel, got] : results) {
      expect_all_near(got, want, 4 * share, kernel + " " + what);
    }
  });
}

TEST_P(CudaAttentionUnseen, LowNumbersAloneHideNothingFromAnyGradient) {
  const Op& op = get_op("scaled_dot_product_attention_backward");
  for_each_low_mask(GetParam(), [&](const Sample& s, double share, const std::string& what) {
    std::vector<Tensor> leaves = exact_operands(s);
    for (Tensor& leaf : leaves) leaf.requires_grad_();
    const Attrs forward = s.attrs;
    backward(apply(get_op("scaled_dot_product_attention"), leaves, forward)[0],
             s.cotangent.to(leaves[0].dtype()));
    const auto x = s.on(kCuda, false);
    const auto kept = apply(get_op("scaled_dot_product_attention_lse"), x, forward);
    const std::vector<Tensor> inputs = {
        s.cotangent.to(kCuda), x[0], x[1], x[2], kept[0], x[3], kept[1], kept[2]};
    for (const bool of_mask : {false, true}) {
      int kernels = 0;
      for (const Kernel& kernel : op.kernels(DeviceType::cuda)) {
        std::vector<Tensor> outputs;
        for (std::size_t i = 0; i < (of_mask ? 4 : 3); ++i) {
          outputs.push_back(empty(x[i].shape(), {x[i].dtype(), kCuda}));
        }
        const Attrs attrs = AttentionBackwardAttrs{s.attrs, of_mask};
        if (!run_kernel(op.name.c_str(), kernel.name, inputs, outputs, attrs)) continue;
        ++kernels;
        for (std::size_t i = 0; i < outputs.size(); ++i) {
          // A mask's gradient sums over heads or queries, and cancels.
          expect_all_near(outputs[i], leaves[i].grad(), (i == 3 ? 16 : 4) * share,
                          std::string(kernel.name) + " " + what + ", operand " + std::to_string(i));
          if (HasFatalFailure()) return;
        }
      }
      ASSERT_GT(kernels, 0);
    }
  });
}

}  // namespace cuda_attention_unseen_test
}  // namespace tenon::test
