// cross_entropy and mse_loss against naive references in double, and their gradients against finite
// differences.
#include <gtest/gtest.h>

#include <algorithm>

#include "autograd/autograd.h"
#include "tensor/error.h"
#include "tensor/functional.h"
#include "tests/support/compare.h"
#include "tests/support/expect_error.h"
#include "tests/support/finite_differences.h"
#include "tests/tensor/strided_samples.h"

namespace tenon::test {
namespace {

constexpr std::int64_t kIgnored = -100;

std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

Tensor classes(const std::vector<std::int64_t>& values) {
  return from_vector(values, {static_cast<std::int64_t>(values.size())});
}

/// The loss of each row of n logits, in double.
Values naive_losses(const Values& x, std::int64_t n, const std::vector<std::int64_t>& target,
                    double smoothing) {
  Values losses;
  for (std::size_t row = 0; row < target.size(); ++row) {
    if (target[row] == kIgnored) {
      losses.push_back(0);
      continue;
    }
    const auto first = x.begin() + static_cast<std::ptrdiff_t>(row) * n;
    const double max = *std::max_element(first, first + n);
    double sum = 0;
    double mean = 0;
    for (std::int64_t i = 0; i < n; ++i) {
      sum += std::exp(first[i] - max);
      mean += (first[i] - max) / static_cast<double>(n);
    }
    const double log_sum = std::log(sum);
    losses.push_back((1 - smoothing) * (log_sum - (first[target[row]] - max)) +
                     smoothing * (log_sum - mean));
  }
  return losses;
}

TEST(CrossEntropy, AgreesWithTheReference) {
  for (const std::int64_t n : {1, 3, 31, 32, 33, 1023, 1024, 4099}) {
    for (const DType dtype : kFloats) {
      Values x = random_values(4 * n, dtype, 1);
      for (double& value : x) value = rounded(value * 10, dtype);
      const std::vector<std::int64_t> target = {0, n - 1, kIgnored, n / 2};
      for (const double smoothing : {0.0, 0.1, 1.0}) {
        const Values losses = naive_losses(x, n, target, smoothing);
        const double total = losses[0] + losses[1] + losses[3];
        for (const Arrangement layout : kArrangements) {
          const Tensor logits = arranged(x, {4, n}, dtype, layout);
          const auto loss = [&](Reduction reduction) {
            return cross_entropy(logits, classes(target), {kIgnored, reduction, smoothing});
          };
          const std::string what = "cross_entropy of " + std::to_string(n) + " classes";
          const double bound = 200 * compute_roundoff(dtype);
          expect_close(loss(Reduction::none), losses, bound, what);
          expect_close(loss(Reduction::sum), {total}, 4 * bound, what + ", sum");
          expect_close(loss(Reduction::mean), {total / 3}, bound, what + ", mean");
        }
      }
    }
  }
}

TEST(CrossEntropy, TakesHigherRanksAndASingleRow) {
  const Values x = random_values(2 * 3 * 4, DType::float64, 2);
  const Tensor logits = dense(x, {2, 3, 2, 2}, DType::float64);
  const std::vector<std::int64_t> target = {0, 1, 2, 0, 1, kIgnored, 2, 1};
  const Tensor rows = logits.permute({0, 2, 3, 1}).reshape({8, 3});
  const CrossEntropyOptions none{.reduction = Reduction::none};
  const Tensor losses = cross_entropy(logits, from_vector(target, {2, 2, 2}), none);
  EXPECT_EQ(losses.shape().hints(), (std::vector<std::int64_t>{2, 2, 2}));
  EXPECT_EQ(losses.to_doubles(), cross_entropy(rows, classes(target), none).to_doubles());
  EXPECT_EQ(cross_entropy(logits, from_vector(target, {2, 2, 2})).item(),
            cross_entropy(rows, classes(target)).item());
  const Tensor row = dense({0.5, -1, 2}, {3}, DType::float64);
  const Tensor one = from_vector(std::vector<std::int64_t>{2}, {});
  for (const Reduction reduction : {Reduction::none, Reduction::mean, Reduction::sum}) {
    const Tensor loss = cross_entropy(row, one, {.reduction = reduction});
    EXPECT_EQ(loss.dim(), 0);
    EXPECT_NEAR(loss.item(), naive_losses({0.5, -1, 2}, 3, {2}, 0)[0], 1e-12);
  }
}

TEST(CrossEntropy, SpecialRows) {
  const double inf = INFINITY;
  const Tensor x = tensor({-inf, -inf, 0, -inf, NAN, 1, inf, 0, 1e4, -1e4}, {5, 2});
  const Values losses =
      cross_entropy(x, classes({0, 1, 0, 0, 0}), {.reduction = Reduction::none}).to_doubles();
  EXPECT_TRUE(std::isnan(losses[0]));
  EXPECT_EQ(losses[1], inf);
  EXPECT_TRUE(std::isnan(losses[2]));
  EXPECT_TRUE(std::isnan(losses[3]));
  EXPECT_EQ(losses[4], 0);
  EXPECT_TRUE(std::isnan(cross_entropy(zeros({2, 3}), classes({kIgnored, kIgnored})).item()));
  EXPECT_TRUE(std::isnan(cross_entropy(zeros({0, 3}), classes({})).item()));
  EXPECT_EQ(cross_entropy(zeros({0, 3}), classes({}), {.reduction = Reduction::sum}).item(), 0);
}

TEST(CrossEntropy, GradientsAgreeWithFiniteDifferences) {
  const Tensor x = dense(random_values(15, DType::float64, 3), {3, 5}, DType::float64);
  const Tensor target = classes({4, kIgnored, 0});
  for (const double smoothing : {0.0, 0.3}) {
    for (const Reduction reduction : {Reduction::none, Reduction::mean, Reduction::sum}) {
      const CrossEntropyOptions options{kIgnored, reduction, smoothing};
      const auto call = [&](const std::vector<Tensor>& i) {
        return cross_entropy(i[0], target, options);
      };
      expect_gradients(call, {x}, "cross_entropy");
    }
  }
  const Tensor images = dense(random_values(24, DType::float64, 4), {2, 3, 4}, DType::float64);
  const Tensor pixels =
      from_vector(std::vector<std::int64_t>{0, 1, 2, 0, 2, 1, kIgnored, 0}, {2, 4});
  expect_gradients([&](const std::vector<Tensor>& i) { return cross_entropy(i[0], pixels); },
                   {images}, "cross_entropy of (N, C, d)");
}

TEST(CrossEntropy, SecondDerivativesAgreeWithFiniteDifferences) {
  const Tensor x = dense(random_values(15, DType::float64, 3), {3, 5}, DType::float64);
  const Tensor target = classes({4, kIgnored, 0});
  for (const Reduction reduction : {Reduction::none, Reduction::mean, Reduction::sum}) {
    const auto gradient = [&](const std::vector<Tensor>& i) {
      const bool leaf = !i[0].requires_grad();
      const Tensor input = leaf ? i[0].clone().requires_grad_() : i[0];
      const GradModeGuard on(true);
      const Tensor outputs[] = {cross_entropy(input, target, {kIgnored, reduction, 0.2})};
      const Tensor inputs[] = {input};
      const Tensor cotangents[] = {full(outputs[0].shape(), 2, {DType::float64})};
      return grad(outputs, inputs, cotangents, {.create_graph = true})[0];
    };
    expect_gradients(gradient, {x}, "gradient of cross_entropy");
  }
}

TEST(CrossEntropy, DoesNotDependOnTheNumberOfThreads) {
  const Tensor x = dense(random_values(700 * 90, DType::float32, 1), {700, 90}, DType::float32);
  std::vector<std::int64_t> target(700);
  for (std::size_t i = 0; i < target.size(); ++i) target[i] = static_cast<std::int64_t>(i % 90);
  expect_thread_invariant([&] { return cross_entropy(x, classes(target)); }, "cross_entropy");
}

TEST(CrossEntropy, ErrorsNameTheTarget) {
  EXPECT_ERROR(ValueError,
               "[cross_entropy] target 5 of row 1 with 5 classes; needed 0 <= target < 5, or the "
               "ignore_index -100",
               cross_entropy(zeros({2, 5}), classes({0, 5})));
  EXPECT_ERROR(ShapeError, "[cross_entropy] input (2, 5) and target (3,); needed the target (2,)",
               cross_entropy(zeros({2, 5}), classes({0, 1, 2})));
  EXPECT_ERROR(DTypeError,
               "[cross_entropy] operand 'target' is float32; needed class indices in int64",
               cross_entropy(zeros({2, 5}), zeros({2})));
  EXPECT_ERROR(ValueError, "[cross_entropy] label_smoothing 1.5; needed a number from 0 to 1",
               cross_entropy(zeros({2, 5}), classes({0, 1}), {.label_smoothing = 1.5}));
}

/// What linear_cross_entropy replaces, in double.
struct LinearLoss {
  Tensor loss, input_gradient, weight_gradient;
};

LinearLoss composed(const Tensor& input, const Tensor& weight, const Tensor& target,
                    const CrossEntropyOptions& options) {
  const Tensor x = input.to(DType::float64).clone().requires_grad_();
  const Tensor w = weight.to(DType::float64).clone().requires_grad_();
  const Tensor loss = cross_entropy(linear(x, w), target, options);
  backward(loss);
  return {loss.detach(), x.grad(), w.grad()};
}

TEST(LinearCrossEntropy, IsCrossEntropyOfLinear) {
  const Tensor target = classes({4, kIgnored, 0, 12, 4, 7});
  for (const DType dtype : kFloats) {
    const Tensor x = dense(random_values(6 * 9, dtype, 5), {6, 9}, dtype);
    const Tensor w = dense(random_values(13 * 9, dtype, 6), {13, 9}, dtype);
    const double rounding = dtype == DType::bfloat16  ? 0x1p-8
                            : dtype == DType::float16 ? 0x1p-11
                            : dtype == DType::float32 ? 0x1p-24
                                                      : 0x1p-53;
    for (const Reduction reduction : {Reduction::mean, Reduction::sum}) {
      for (const double smoothing : {0.0, 0.2}) {
        const CrossEntropyOptions options{kIgnored, reduction, smoothing};
        const LinearLoss expected = composed(x, w, target, options);
        const Tensor plain = linear_cross_entropy(x, w, target, options);
        EXPECT_EQ(plain.dtype(), dtype == DType::float64 ? dtype : DType::float32);
        EXPECT_NEAR(plain.item(), expected.loss.item(), 64 * rounding);
        const Tensor input = x.clone().requires_grad_(), weight = w.clone().requires_grad_();
        const Tensor recorded = linear_cross_entropy(input, weight, target, options);
        EXPECT_EQ(recorded.item(), plain.item());
        backward(recorded * 0.5);
        EXPECT_EQ(input.grad().dtype(), dtype);
        EXPECT_LE(max_difference(input.grad(), expected.input_gradient * 0.5), 64 * rounding);
        EXPECT_LE(max_difference(weight.grad(), expected.weight_gradient * 0.5), 64 * rounding);
      }
    }
  }
}

TEST(LinearCrossEntropy, OfNothing) {
  const Tensor w = zeros({3, 2}).requires_grad_();
  EXPECT_TRUE(std::isnan(linear_cross_entropy(zeros({0, 2}), w, classes({})).item()));
  const Tensor sum =
      linear_cross_entropy(zeros({0, 2}), w, classes({}), {.reduction = Reduction::sum});
  EXPECT_EQ(sum.item(), 0);
  backward(sum);
  EXPECT_EQ(max_difference(w.grad(), zeros({3, 2})), 0);
  const Tensor even = linear_cross_entropy(zeros({2, 0}), zeros({4, 0}), classes({1, 3}));
  EXPECT_NEAR(even.item(), std::log(4.0), 1e-6);
}

TEST(LinearCrossEntropy, DoesNotDependOnTheNumberOfThreads) {
  const Tensor x = dense(random_values(300 * 20, DType::float32, 1), {300, 20}, DType::float32);
  const Tensor w = dense(random_values(90 * 20, DType::float32, 2), {90, 20}, DType::float32);
  std::vector<std::int64_t> target(300);
  for (std::size_t i = 0; i < target.size(); ++i) target[i] = static_cast<std::int64_t>(i % 90);
  expect_thread_invariant(
      [&] {
        const Tensor weight = w.clone().requires_grad_();
        backward(linear_cross_entropy(x, weight, classes(target)));
        return weight.grad();
      },
      "linear_cross_entropy");
}

TEST(LinearCrossEntropy, Refuses) {
  const Tensor x = zeros({2, 3}), w = zeros({5, 3});
  EXPECT_ERROR(ShapeError,
               "[linear_cross_entropy] input (2, 3), weight (5, 4) and target (2,); needed (R, K), "
               "(C, K) and (R)",
               linear_cross_entropy(x, zeros({5, 4}), classes({0, 1})));
  EXPECT_ERROR(
      DTypeError,
      "[linear_cross_entropy] operand 'input' is float32 and operand 'weight' is float64, of "
      "shapes (2, 3) and (5, 3); they must have one dtype: convert 'input' with "
      ".to(DType::float64)",
      linear_cross_entropy(x, zeros({5, 3}, {DType::float64}), classes({0, 1})));
  EXPECT_ERROR(DTypeError,
               "[linear_cross_entropy] operand 'target' is float32; needed class indices in int64",
               linear_cross_entropy(x, w, zeros({2})));
  EXPECT_ERROR(ValueError, "[linear_cross_entropy] reduction 'none'; needed mean or sum",
               linear_cross_entropy(x, w, classes({0, 1}), {.reduction = Reduction::none}));
  EXPECT_ERROR(ValueError,
               "[linear_cross_entropy] target 5 of row 1 with 5 classes; needed 0 <= target < 5, "
               "or the ignore_index -100",
               linear_cross_entropy(x, w, classes({0, 5})));
}

TEST(MseLoss, ReducesSquares) {
  const Tensor x = tensor({1, 2, 3, 4}, {2, 2}), y = tensor({0, 4, 3, 1}, {2, 2});
  EXPECT_EQ(mse_loss(x, y, Reduction::none).to_doubles(), (Values{1, 4, 0, 9}));
  EXPECT_EQ(mse_loss(x, y, Reduction::sum).item(), 14);
  EXPECT_EQ(mse_loss(x, y).item(), 3.5);
}

}  // namespace
}  // namespace tenon::test
