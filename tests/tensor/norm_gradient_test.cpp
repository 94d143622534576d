// Gradients of softmax, log_softmax, layer_norm and rms_norm, and the forward of the new ones, against
// naive references in double; the gradients that backward finds, against finite differences.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>

#include "autograd/autograd.h"
#include "tensor/error.h"
#include "tensor/interpreter.h"
#include "tensor/rules/gradients.h"
#include "tests/support/expect_error.h"
#include "tests/support/finite_differences.h"
#include "tests/tensor/strided_samples.h"

namespace tenon::test {
namespace {

constexpr std::int64_t kRowLengths[] = {1, 3, 31, 32, 33, 1023, 1024, 4099};

std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

/// f(values of a row, first index) for each row of n.
template <class F>
void for_each_row(std::size_t count, std::int64_t n, F f) {
  for (std::size_t first = 0; first < count; first += at(n)) f(first);
}

std::string describe(const char* op, std::int64_t n, DType dtype, Arrangement layout) {
  return std::string(op) + " of rows of " + std::to_string(n) + " " + std::string(name(dtype)) +
         " " + kArrangementNames[static_cast<int>(layout)];
}

TEST(LogSoftmax, AgreesWithTheReference) {
  for (const std::int64_t n : kRowLengths) {
    for (const DType dtype : kFloats) {
      const Extents sizes = {3, n};
      Values x = random_values(sizes.product(), dtype, 1);
      for (double& value : x) value = rounded(value * 20, dtype);
      Values expected = x;
      for_each_row(x.size(), n, [&](std::size_t first) {
        const auto begin = x.begin() + static_cast<std::ptrdiff_t>(first);
        const double max = *std::max_element(begin, begin + n);
        double sum = 0;
        for (std::int64_t i = 0; i < n; ++i) sum += std::exp(x[first + at(i)] - max);
        for (std::int64_t i = 0; i < n; ++i) expected[first + at(i)] -= max + std::log(sum);
      });
      for (const Arrangement layout : kArrangements) {
        const Tensor operand = arranged(x, sizes, dtype, layout);
        const std::string what = describe("log_softmax", n, dtype, layout);
        expect_close(log_softmax(operand, 1), expected, 100 * compute_roundoff(dtype), what);
        expect_close(log_softmax(operand.transpose(0, 1), 0).transpose(0, 1), expected,
                     100 * compute_roundoff(dtype), what + " along axis 0");
      }
    }
  }
}

TEST(LogSoftmax, NanInfAndMaskedRows) {
  const double inf = INFINITY;
  const Tensor x = tensor({0, NAN, 1, -inf, -inf, -inf, 1, inf, 2, -inf, 5, -inf}, {4, 3});
  const Values y = log_softmax(x, 1).to_doubles();
  for (std::size_t i = 0; i < 9; ++i) EXPECT_TRUE(std::isnan(y[i])) << i;
  EXPECT_EQ((Values(y.begin() + 9, y.end())), (Values{-inf, 0, -inf}));
  EXPECT_EQ(log_softmax(tensor({3}, {}), -1).item(), 0);
}

/// Both softmax gradients of rows of g and y, in double.
Values naive_softmax_backward(const Values& g, const Values& y, std::int64_t n, bool log) {
  Values result(g.size());
  for_each_row(g.size(), n, [&](std::size_t first) {
    double sum = 0;
    for (std::size_t i = first; i < first + at(n); ++i) sum += log ? g[i] : g[i] * y[i];
    for (std::size_t i = first; i < first + at(n); ++i) {
      result[i] = log ? g[i] - std::exp(y[i]) * sum : (g[i] - sum) * y[i];
    }
  });
  return result;
}

TEST(SoftmaxBackward, AgreesWithTheReference) {
  for (const std::int64_t n : kRowLengths) {
    for (const DType dtype : kFloats) {
      const Extents sizes = {3, n};
      const Values g = random_values(sizes.product(), dtype, 2);
      Values y = random_values(sizes.product(), dtype, 3);
      for (double& value : y) value = rounded(std::fabs(value) / static_cast<double>(n), dtype);
      Values logs = random_values(sizes.product(), dtype, 4);
      for (double& value : logs) value = rounded(-5 * std::fabs(value), dtype);
      const Values expected = naive_softmax_backward(g, y, n, false);
      const Values expected_log = naive_softmax_backward(g, logs, n, true);
      // Rounding Σ g, of at most n terms below 1, is what limits log_softmax.
      const double log_bound = 4 * compute_roundoff(dtype) * static_cast<double>(n + 4);
      for (const Arrangement layout : kArrangements) {
        const Tensor grad = arranged(g, sizes, dtype, layout);
        const std::string what = describe("backward", n, dtype, layout);
        expect_close(ops::softmax_backward(grad, arranged(y, sizes, dtype, layout), 1), expected,
                     8 * compute_roundoff(dtype), what);
        expect_close(ops::log_softmax_backward(grad, dense(logs, sizes, dtype), 1), expected_log,
                     log_bound, what);
        const Tensor columns = ops::log_softmax_backward(
            grad.transpose(0, 1), arranged(logs, sizes, dtype, layout).transpose(0, 1), 0);
        expect_close(columns.transpose(0, 1), expected_log, log_bound, what + " along axis 0");
      }
    }
  }
}

/// The gradients of a normalization of rows of n, in double.
struct NaiveNorm {
  Values input, weight, bias;
};
NaiveNorm naive_norm_backward(const Values& g, const Values& x, const Values& weight,
                              std::int64_t n, double eps, bool centers) {
  NaiveNorm result{Values(x.size()), Values(at(n)), Values(at(n))};
  const auto count = static_cast<double>(n);
  for_each_row(x.size(), n, [&](std::size_t first) {
    double mean = 0, variance = 0, shift = 0, slope = 0;
    for (std::size_t i = 0; centers && i < at(n); ++i) mean += x[first + i] / count;
    for (std::size_t i = 0; i < at(n); ++i)
      variance += (x[first + i] - mean) * (x[first + i] - mean) / count;
    const double factor = 1 / std::sqrt(variance + eps);
    Values normal(at(n)), scaled(at(n));
    for (std::size_t i = 0; i < at(n); ++i) {
      normal[i] = (x[first + i] - mean) * factor;
      scaled[i] = g[first + i] * (weight.empty() ? 1 : weight[i]);
      result.weight[i] += g[first + i] * normal[i];
      result.bias[i] += g[first + i];
      if (centers) shift += scaled[i] / count;
      slope += scaled[i] * normal[i] / count;
    }
    for (std::size_t i = 0; i < at(n); ++i)
      result.input[first + i] = factor * (scaled[i] - shift - normal[i] * slope);
  });
  return result;
}

double largest(const Values& values) {
  double result = 0;
  for (const double value : values) result = std::max(result, std::fabs(value));
  return result;
}

void check_norm_backward(bool centers, std::int64_t rows, std::int64_t n, DType dtype,
                         double offset) {
  const Extents sizes = {rows, n};
  const Values g = random_values(rows * n, dtype, 5);
  Values x = random_values(rows * n, dtype, 6);
  for (double& value : x) value = rounded(value + offset, dtype);
  const Values w = random_values(n, dtype, 7);
  const auto backward = centers ? ops::layer_norm_backward : ops::rms_norm_backward;
  // What rounding the mean costs, relative to the deviations.
  const double u = compute_roundoff(dtype) * (16 + 4 * std::fabs(offset));
  for (const bool weighted : {true, false}) {
    const NaiveNorm expected = naive_norm_backward(g, x, weighted ? w : Values(), n, 1e-5, centers);
    const double bound = u * (largest(expected.input) + 4);
    const double sum_bound = u * static_cast<double>(rows + 4);
    for (const Arrangement layout : kArrangements) {
      const std::string what = describe(centers ? "layer_norm" : "rms_norm", n, dtype, layout);
      const Tensor weight = weighted ? dense(w, {n}, dtype) : Tensor();
      const ops::NormGradients gradients =
          backward(arranged(g, sizes, dtype, layout), arranged(x, sizes, dtype, layout), weight,
                   {1, 1e-5, true, true, centers});
      expect_close(gradients.input, expected.input, bound, what);
      expect_close(gradients.weight, expected.weight, sum_bound * 4, what + " weight");
      if (centers) expect_close(gradients.bias, expected.bias, sum_bound, what + " bias");
    }
  }
}

TEST(NormBackward, AgreesWithTheReference) {
  for (const bool centers : {true, false}) {
    for (const DType dtype : kFloats) {
      for (const std::int64_t n : kRowLengths) check_norm_backward(centers, 5, n, dtype, 0);
      check_norm_backward(centers, 300, 33, dtype, 0);
    }
  }
}

TEST(NormBackward, KeepsItsDigitsBesideALargeOffset) {
  for (const DType dtype : {DType::float32, DType::float64}) {
    check_norm_backward(true, 4, 1024, dtype, 1000);
    check_norm_backward(false, 4, 1024, dtype, 1000);
  }
}

TEST(NormBackward, ComputesWhatIsAskedForOnly) {
  const Tensor x = dense(random_values(24, DType::float32, 1), {2, 3, 4}, DType::float32);
  const Tensor g = dense(random_values(24, DType::float32, 2), {2, 3, 4}, DType::float32);
  const Tensor w = dense(random_values(12, DType::float32, 3), {3, 4}, DType::float32);
  const ops::NormGradients all = ops::layer_norm_backward(g, x, w, {2, 1e-5, true, true, true});
  for (int mask = 0; mask < 8; ++mask) {
    const bool wanted[] = {(mask & 1) != 0, (mask & 2) != 0, (mask & 4) != 0};
    const ops::NormGradients some =
        ops::layer_norm_backward(g, x, w, {2, 1e-5, wanted[0], wanted[1], wanted[2]});
    EXPECT_EQ(some.input.defined(), wanted[0]);
    EXPECT_EQ(some.weight.defined(), wanted[1]);
    EXPECT_EQ(some.bias.defined(), wanted[2]);
    if (wanted[0]) EXPECT_EQ(bytes_of(some.input), bytes_of(all.input));
    if (wanted[1]) EXPECT_EQ(bytes_of(some.weight), bytes_of(all.weight));
    if (wanted[2]) EXPECT_EQ(bytes_of(some.bias), bytes_of(all.bias));
  }
}

/// The op that accumulates against the one that does not, in float64, and a sum.
TEST(NormBackward, AddsToTheFirstGradientBeforeRounding) {
  const Extents sizes = {37, 72};
  for (const char* name : {"layer_norm_backward", "rms_norm_backward"}) {
    const Op& plain = get_op(name);
    const Op& adds = get_op(plain.accumulates_as);
    for (const DType dtype : kFloats) {
      for (int mask = 1; mask < 8; ++mask) {
        const Attrs attrs =
            NormBackwardAttrs{1, 0.1, (mask & 1) != 0, (mask & 2) != 0, (mask & 4) != 0};
        const Extents first = (mask & 1) != 0 ? sizes : Extents{72};
        std::vector<Tensor> operands, wide;
        for (const auto& [shape, seed] : std::vector<std::pair<Extents, unsigned>>{
                 {sizes, 1U}, {sizes, 2U}, {Extents{72}, 3U}, {first, 4U}}) {
          const Values values = random_values(shape.product(), dtype, seed);
          operands.push_back(dense(values, shape, dtype));
          wide.push_back(dense(values, shape, DType::float64));
        }
        const std::vector<Tensor> got = apply(adds, operands, attrs);
        std::vector<Tensor> want = apply(plain, std::span(wide).first(3), attrs);
        want[0] = want[0] + wide[3];
        ASSERT_EQ(got.size(), want.size());
        for (std::size_t i = 0; i < got.size(); ++i) {
          expect_close(got[i], want[i].to_doubles(), 400 * compute_roundoff(dtype),
                       adds.name + " " + std::to_string(mask) + " output " + std::to_string(i));
        }
      }
    }
  }
}

TEST(NormBackward, OfNothingSumsToZero) {
  const Tensor w = zeros({4});
  const ops::NormGradients none =
      ops::layer_norm_backward(zeros({0, 4}), zeros({0, 4}), w, {1, 1e-5, true, true, true});
  EXPECT_EQ(none.input.numel(), 0);
  EXPECT_EQ(none.weight.to_doubles(), Values(4, 0.0));
  EXPECT_EQ(none.bias.to_doubles(), Values(4, 0.0));
}

TEST(NormBackward, DoesNotDependOnTheNumberOfThreads) {
  const DType dtype = DType::float32;
  const Tensor x = dense(random_values(1000 * 70, dtype, 1), {1000, 70}, dtype);
  const Tensor g = dense(random_values(1000 * 70, dtype, 2), {1000, 70}, dtype);
  const Tensor w = dense(random_values(70, dtype, 3), {70}, dtype);
  const auto gradients = [&] {
    return ops::layer_norm_backward(g, x, w, {1, 1e-5, true, true, true});
  };
  expect_thread_invariant([&] { return gradients().input; }, "input");
  expect_thread_invariant([&] { return gradients().weight; }, "weight");
  expect_thread_invariant([&] { return gradients().bias; }, "bias");
}

TEST(RmsNorm, AgreesWithTheReference) {
  for (const std::int64_t n : kRowLengths) {
    for (const DType dtype : kFloats) {
      const Values x = random_values(3 * n, dtype, 1);
      const Values w = random_values(n, dtype, 2);
      Values expected(x.size());
      for_each_row(x.size(), n, [&](std::size_t first) {
        double squares = 0;
        for (std::size_t i = 0; i < at(n); ++i) squares += x[first + i] * x[first + i];
        const double eps = 2 * unit_roundoff(dtype);
        const double factor = 1 / std::sqrt(squares / static_cast<double>(n) + eps);
        for (std::size_t i = 0; i < at(n); ++i) expected[first + i] = x[first + i] * factor * w[i];
      });
      for (const Arrangement layout : kArrangements) {
        const Tensor operand = arranged(x, {3, n}, dtype, layout);
        expect_close(rms_norm(operand, {n}, dense(w, {n}, dtype)), expected,
                     40 * compute_roundoff(dtype), describe("rms_norm", n, dtype, layout));
      }
    }
  }
}

Tensor sample(const Extents& sizes, unsigned seed) {
  return dense(random_values(sizes.product(), DType::float64, seed), sizes, DType::float64);
}

TEST(NormGradients, AgreeWithFiniteDifferences) {
  using Inputs = std::vector<Tensor>;
  const Tensor x = sample({2, 3, 5}, 1), w = sample({5}, 2), b = sample({5}, 3);
  const Tensor w2 = sample({3, 5}, 4), b2 = sample({3, 5}, 5);
  const Tensor none;
  for (const std::int64_t dim : {0, 1, 2}) {
    expect_gradients([&](const Inputs& i) { return softmax(i[0], dim); }, {x}, "softmax");
    expect_gradients([&](const Inputs& i) { return log_softmax(i[0], dim); }, {x}, "log_softmax");
  }
  expect_gradients([&](const Inputs& i) { return layer_norm(i[0], {5}, i[1], i[2]); }, {x, w, b},
                   "layer_norm");
  expect_gradients([&](const Inputs& i) { return layer_norm(i[0], {5}, none, i[1]); }, {x, b},
                   "layer_norm without weight");
  expect_gradients([&](const Inputs& i) { return layer_norm(i[0], {5}, i[1], none); }, {x, w},
                   "layer_norm without bias");
  expect_gradients(
      [&](const Inputs& i) {
        return layer_norm(i[0], {3, 5}, i[1], i[2]);
      },
      {x, w2, b2}, "layer_norm over two axes");
  expect_gradients([&](const Inputs& i) { return layer_norm(i[0], {5}, i[1], i[2]); },
                   {sample({5}, 6), w, b}, "layer_norm of one row");
  expect_gradients([&](const Inputs& i) { return rms_norm(i[0], {5}, i[1]); }, {x, w}, "rms_norm");
  expect_gradients([&](const Inputs& i) { return rms_norm(i[0], {3, 5}); }, {x}, "rms_norm");
}

TEST(NormGradients, ErrorsNameTheOperands) {
  EXPECT_ERROR(ShapeError,
               "[softmax_backward] operands 'grad' (2, 3) and 'output' (3, 2); needed equal shapes",
               ops::softmax_backward(zeros({2, 3}), zeros({3, 2}), 1));
  EXPECT_ERROR(
      ShapeError,
      "[rms_norm] input (2, 3) and normalized_shape (2,); needed the sizes of the last axes",
      rms_norm(zeros({2, 3}), {2}));
  EXPECT_ERROR(ShapeError,
               "[rms_norm] input (2, 3) and weight (2,); needed the sizes of the last axes",
               rms_norm(zeros({2, 3}), {3}, zeros({2})));
  const Tensor operands[] = {zeros({2, 3}), zeros({2, 3}), zeros({3}), zeros({2})};
  EXPECT_ERROR(ShapeError,
               "[layer_norm_backward_add] addend (2,); needed the shape of the first gradient",
               apply(get_op("layer_norm_backward_add"), operands, NormBackwardAttrs{}));
}

}  // namespace
}  // namespace tenon::test
