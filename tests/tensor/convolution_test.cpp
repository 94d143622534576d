// conv2d, pooling and batch_norm against naive loops in double, and their gradients against finite
// differences.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>

#include "tensor/error.h"
#include "tensor/functional.h"
#include "tensor/interpreter.h"
#include "tensor/ops/vision_attributes.h"
#include "tests/support/expect_error.h"
#include "tests/support/finite_differences.h"
#include "tests/tensor/strided_samples.h"

namespace tenon::test {
namespace convolution_test {

using Inputs = std::vector<Tensor>;

std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

struct ConvCase {
  Extents input, weight;
  Size2 stride, padding, dilation;
  std::int64_t groups;
};

const ConvCase kConvCases[] = {
    {{1, 1, 1, 1}, {1, 1, 1, 1}, {1, 1}, {0, 0}, {1, 1}, 1},
    {{2, 3, 5, 7}, {4, 3, 3, 3}, {1, 1}, {1, 1}, {1, 1}, 1},
    {{2, 4, 6, 5}, {6, 2, 3, 2}, {2, 1}, {1, 0}, {1, 2}, 2},
    {{1, 3, 9, 8}, {3, 1, 3, 3}, {1, 2}, {2, 3}, {2, 1}, 3},  // depthwise
    {{3, 2, 4, 4}, {5, 2, 4, 4}, {3, 3}, {4, 4}, {1, 1}, 1},  // windows wholly in the padding
    {{2, 8, 13, 11}, {8, 8, 1, 1}, {2, 2}, {0, 0}, {1, 1}, 1},
};

std::int64_t windows(std::int64_t input, std::int64_t kernel, std::int64_t stride,
                     std::int64_t padding, std::int64_t dilation = 1) {
  return (input + 2 * padding - dilation * (kernel - 1) - 1) / stride + 1;
}

/// Output values, and Σ |terms| of each for the error bound.
struct NaiveConv {
  Extents sizes;
  Values values, magnitudes;
};
NaiveConv naive_conv2d(const Values& x, const Values& w, const Values& bias, const ConvCase& c) {
  NaiveConv result;
  const std::int64_t filters = c.weight[0], depth = c.weight[1];
  const std::int64_t height =
      windows(c.input[2], c.weight[2], c.stride[0], c.padding[0], c.dilation[0]);
  const std::int64_t width =
      windows(c.input[3], c.weight[3], c.stride[1], c.padding[1], c.dilation[1]);
  result.sizes = {c.input[0], filters, height, width};
  for (std::int64_t index = 0; index < result.sizes.product(); ++index) {
    const std::int64_t ox = index % width, oy = index / width % height;
    const std::int64_t o = index / width / height % filters, n = index / width / height / filters;
    double sum = bias.empty() ? 0 : bias[at(o)];
    double magnitude = std::fabs(sum);
    for (std::int64_t k = 0; k < depth * c.weight[2] * c.weight[3]; ++k) {
      const std::int64_t j = k % c.weight[3], i = k / c.weight[3] % c.weight[2];
      const std::int64_t channel = o / (filters / c.groups) * depth + k / c.weight[3] / c.weight[2];
      const std::int64_t y = oy * c.stride[0] - c.padding[0] + i * c.dilation[0];
      const std::int64_t xx = ox * c.stride[1] - c.padding[1] + j * c.dilation[1];
      if (y < 0 || y >= c.input[2] || xx < 0 || xx >= c.input[3]) continue;
      const double term = x[at(((n * c.input[1] + channel) * c.input[2] + y) * c.input[3] + xx)] *
                          w[at(o * depth * c.weight[2] * c.weight[3] + k)];
      sum += term;
      magnitude += std::fabs(term);
    }
    result.values.push_back(sum);
    result.magnitudes.push_back(magnitude);
  }
  return result;
}

TEST(Conv2d, AgreesWithTheReference) {
  for (const ConvCase& c : kConvCases) {
    for (const DType dtype : kFloats) {
      const Values x = random_values(c.input.product(), dtype, 1);
      const Values w = random_values(c.weight.product(), dtype, 2);
      const Values b = random_values(c.weight[0], dtype, 3);
      for (const bool with_bias : {true, false}) {
        const NaiveConv expected = naive_conv2d(x, w, with_bias ? b : Values(), c);
        Values bound = expected.magnitudes;
        for (double& value : bound) value *= 100 * compute_roundoff(dtype);
        const Tensor bias = with_bias ? dense(b, {c.weight[0]}, dtype) : Tensor();
        for (const Arrangement layout : kArrangements) {
          const Tensor y = conv2d(arranged(x, c.input, dtype, layout), dense(w, c.weight, dtype),
                                  bias, c.stride, c.padding, c.dilation, c.groups);
          ASSERT_EQ(y.layout().sizes, expected.sizes);
          expect_close(y, expected.values, bound, "conv2d");
        }
      }
    }
  }
}

/// relu(conv + bias + residual).
TEST(Conv2d, WhatFollowsItAgreesWithTheReference) {
  for (const ConvCase& c : kConvCases) {
    for (const DType dtype : kFloats) {
      const Values x = random_values(c.input.product(), dtype, 1);
      const Values w = random_values(c.weight.product(), dtype, 2);
      const std::int64_t filters = c.weight[0];
      const NaiveConv conv = naive_conv2d(x, w, {}, c);
      const Values residual = random_values(conv.sizes.product(), dtype, 4);
      const Values bias = random_values(filters, dtype, 7);
      const std::int64_t plane = conv.sizes[2] * conv.sizes[3];
      const auto expected = [&](bool adds, Values& bound) {
        Values values;
        bound.clear();
        for (std::size_t i = 0; i < conv.values.size(); ++i) {
          const double y = conv.values[i] +
                           bias[at(static_cast<std::int64_t>(i) / plane % filters)] +
                           (adds ? residual[i] : 0);
          values.push_back(std::max(y, 0.0));
          bound.push_back(100 * compute_roundoff(dtype) * (conv.magnitudes[i] + 5) +
                          8 * unit_roundoff(dtype) * (std::fabs(conv.values[i]) + 4));
        }
        return values;
      };
      Values bound;
      const Tensor input = dense(x, c.input, dtype), kernel = dense(w, c.weight, dtype);
      const Tensor b = dense(bias, {filters}, dtype), r = dense(residual, conv.sizes, dtype);
      for (const bool adds : {false, true}) {
        const Tensor y = conv2d_relu(input, kernel, b, adds ? r : Tensor(), c.stride, c.padding,
                                     c.dilation, c.groups);
        expect_close(y, expected(adds, bound), bound, "conv2d_relu");
      }
    }
  }
}

TEST(Conv2d, AResidualHasTheResultsShape) {
  expect_error<ShapeError>(
      [] {
        conv2d_relu(ones({1, 2, 4, 4}), ones({3, 2, 3, 3}), Tensor(), ones({1, 3, 4, 4}));
      },
      "[conv2d_relu] operand 'residual' (1, 3, 4, 4); needed the shape (1, 3, 2, 2)");
}

TEST(Conv2d, GradientsAgreeWithFiniteDifferences) {
  for (const ConvCase& c : kConvCases) {
    if (c.input.product() > 200) continue;
    const auto sample = [](const Extents& sizes, unsigned seed) {
      return dense(random_values(sizes.product(), DType::float64, seed), sizes, DType::float64);
    };
    const auto call = [&](const Inputs& i) {
      return conv2d(i[0], i[1], i[2], c.stride, c.padding, c.dilation, c.groups);
    };
    expect_gradients(call, {sample(c.input, 1), sample(c.weight, 2), sample({c.weight[0]}, 3)},
                     "conv2d");
  }
}

TEST(Conv2d, ManySamplesAreCutIntoChunks) {
  // 16 · 9 · 64² columns a sample: seven samples at a time, with a tail of one.
  const ConvCase c{{8, 16, 64, 64}, {2, 16, 3, 3}, {1, 1}, {1, 1}, {1, 1}, 1};
  const Tensor x = randn({8, 16, 64, 64});
  const Tensor w = randn({2, 16, 3, 3});
  const Tensor y = conv2d(x, w, Tensor(), c.stride, c.padding);
  const Tensor last = conv2d(x.narrow(0, 7, 1), w, Tensor(), c.stride, c.padding);
  expect_close(y.narrow(0, 7, 1), last.to_doubles(), 1e-4, "last sample");
}

TEST(Conv2d, DoesNotDependOnTheNumberOfThreads) {
  const Tensor x = randn({5, 6, 17, 19}).requires_grad_();
  const Tensor w = randn({8, 3, 3, 3}).requires_grad_();
  const auto gradients = [&] {
    const Tensor outputs[] = {conv2d(x, w, Tensor(), {1, 1}, {1, 1}, {1, 1}, 2)};
    const Tensor inputs[] = {x, w};
    const Tensor cotangents[] = {outputs[0].detach()};
    return grad(outputs, inputs, cotangents);
  };
  const auto forward = [&] { return conv2d(x, w, Tensor(), {1, 1}, {1, 1}, {1, 1}, 2).detach(); };
  expect_thread_invariant(forward, "conv2d");
  expect_thread_invariant([&] { return gradients()[0]; }, "gradient of the input");
  expect_thread_invariant([&] { return gradients()[1]; }, "gradient of the weight");
}

TEST(Conv2d, EmptyBatchesAndErrors) {
  EXPECT_EQ(conv2d(zeros({0, 3, 4, 4}), zeros({2, 3, 3, 3})).layout().sizes, (Extents{0, 2, 2, 2}));
  EXPECT_ERROR(ShapeError,
               "[conv2d] input (1, 3, 4, 4) and weight (2, 2, 3, 3) in 1 groups; needed "
               "(N, C, H, W) and (O, C/groups, KH, KW), O divisible by the groups",
               conv2d(zeros({1, 3, 4, 4}), zeros({2, 2, 3, 3})));
  EXPECT_ERROR(ShapeError,
               "[conv2d] a window that covers 5 does not fit an axis of 4 with padding 0",
               conv2d(zeros({1, 3, 4, 4}), zeros({2, 3, 5, 3})));
  EXPECT_ERROR(ValueError, "[conv2d] stride is (0, 1); needed at least 1",
               conv2d(zeros({1, 3, 4, 4}), zeros({2, 3, 3, 3}), Tensor(), {0, 1}));
}

struct PoolCase {
  Extents input;
  Size2 kernel, stride, padding;
};

const PoolCase kPoolCases[] = {
    {{1, 1, 1, 1}, {1, 1}, {1, 1}, {0, 0}}, {{2, 3, 6, 6}, {2, 2}, {2, 2}, {0, 0}},
    {{2, 2, 7, 5}, {3, 3}, {2, 1}, {1, 1}}, {{1, 2, 9, 4}, {3, 2}, {1, 3}, {0, 1}},
    {{0, 2, 5, 5}, {2, 2}, {2, 2}, {0, 0}},
};

TEST(Pool2d, AgreesWithTheReference) {
  for (const PoolCase& c : kPoolCases) {
    for (const DType dtype : kFloats) {
      const Values x = random_values(c.input.product(), dtype, 1);
      const std::int64_t height = windows(c.input[2], c.kernel[0], c.stride[0], c.padding[0]);
      const std::int64_t width = windows(c.input[3], c.kernel[1], c.stride[1], c.padding[1]);
      Values largest, means;
      for (std::int64_t i = 0; i < c.input[0] * c.input[1] * height * width; ++i) {
        const std::int64_t plane = i / width / height, oy = i / width % height, ox = i % width;
        double best = -INFINITY;
        double sum = 0;
        for (std::int64_t k = 0; k < c.kernel[0] * c.kernel[1]; ++k) {
          const std::int64_t y = oy * c.stride[0] - c.padding[0] + k / c.kernel[1];
          const std::int64_t xx = ox * c.stride[1] - c.padding[1] + k % c.kernel[1];
          if (y < 0 || y >= c.input[2] || xx < 0 || xx >= c.input[3]) continue;
          const double value = x[at((plane * c.input[2] + y) * c.input[3] + xx)];
          best = std::max(best, value);
          sum += value;
        }
        largest.push_back(best);
        means.push_back(sum / static_cast<double>(c.kernel[0] * c.kernel[1]));
      }
      for (const Arrangement layout : kArrangements) {
        const Tensor input = arranged(x, c.input, dtype, layout);
        expect_close(max_pool2d(input, c.kernel, c.stride, c.padding), largest, 0, "max_pool2d");
        expect_close(avg_pool2d(input, c.kernel, c.stride, c.padding), means,
                     10 * compute_roundoff(dtype), "avg_pool2d");
      }
    }
  }
}

TEST(Pool2d, GradientsAgreeWithFiniteDifferences) {
  for (const PoolCase& c : kPoolCases) {
    // Values apart from each other, so that a small step does not change which is largest.
    Values x(at(c.input.product()));
    for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<double>(i * 37 % 101) / 10;
    const Tensor input = dense(x, c.input, DType::float64);
    expect_gradients(
        [&](const Inputs& i) { return max_pool2d(i[0], c.kernel, c.stride, c.padding); }, {input},
        "max_pool2d");
    expect_gradients(
        [&](const Inputs& i) { return avg_pool2d(i[0], c.kernel, c.stride, c.padding); }, {input},
        "avg_pool2d");
  }
}

TEST(Pool2d, NanSpreadsAndTiesGoToTheFirst) {
  EXPECT_TRUE(std::isnan(max_pool2d(tensor({1, NAN, 3, 4}, {1, 1, 2, 2}), {2, 2}, {2, 2}).item()));
  const double inf = INFINITY;
  EXPECT_EQ(max_pool2d(tensor({-inf, -inf}, {1, 1, 1, 2}), {1, 2}, {1, 2}).item(), -inf);
  const Tensor x = tensor({5, 5, 5, 5}, {1, 1, 2, 2}).requires_grad_();
  const Tensor outputs[] = {max_pool2d(x, {2, 2}, {2, 2})};
  const Tensor inputs[] = {x};
  const Tensor cotangents[] = {ones({1, 1, 1, 1})};
  EXPECT_EQ(grad(outputs, inputs, cotangents)[0].to_doubles(), (Values{1, 0, 0, 0}));
}

TEST(Pool2d, Errors) {
  EXPECT_ERROR(ValueError,
               "[max_pool2d] padding 2 of a window of 3; needed at most half the window",
               max_pool2d(zeros({1, 1, 4, 4}), {3, 3}, {1, 1}, {2, 2}));
  EXPECT_ERROR(ShapeError, "[avg_pool2d] input (4, 4); needed (N, C, H, W)",
               avg_pool2d(zeros({4, 4}), {2, 2}, {2, 2}));
}

/// (N, C, inner) values normalized for each channel, in double.
Values naive_batch_norm(const Values& x, std::int64_t samples, std::int64_t channels,
                        std::int64_t inner, const Values& w, const Values& b, double eps) {
  Values result(x.size());
  for (std::int64_t c = 0; c < channels; ++c) {
    const auto count = static_cast<double>(samples * inner);
    const auto for_each = [&](auto f) {
      for (std::int64_t n = 0; n < samples; ++n) {
        for (std::int64_t i = 0; i < inner; ++i) f(at((n * channels + c) * inner + i));
      }
    };
    double mean = 0, variance = 0;
    for_each([&](std::size_t i) { mean += x[i] / count; });
    for_each([&](std::size_t i) { variance += (x[i] - mean) * (x[i] - mean) / count; });
    for_each([&](std::size_t i) {
      result[i] = (x[i] - mean) / std::sqrt(variance + eps) * w[at(c)] + b[at(c)];
    });
  }
  return result;
}

TEST(BatchNorm, AgreesWithTheReference) {
  for (const Extents& sizes : {Extents{4, 3, 2, 2}, Extents{7, 2}, Extents{2, 5, 33, 31},
                               Extents{1, 3, 4096, 1}, Extents{3, 1, 1023}}) {
    const std::int64_t inner = sizes.product() / sizes[0] / sizes[1];
    for (const DType dtype : kFloats) {
      const Values x = random_values(sizes.product(), dtype, 1);
      const Values w = random_values(sizes[1], dtype, 2), b = random_values(sizes[1], dtype, 3);
      const Values expected = naive_batch_norm(x, sizes[0], sizes[1], inner, w, b, 1e-5);
      for (const Arrangement layout : kArrangements) {
        const Tensor y = batch_norm(arranged(x, sizes, dtype, layout), Tensor(), Tensor(),
                                    dense(w, {sizes[1]}, dtype), dense(b, {sizes[1]}, dtype));
        expect_close(y, expected, 60 * compute_roundoff(dtype), "batch_norm");
      }
    }
  }
}

TEST(BatchNorm, GradientsAgreeWithFiniteDifferences) {
  const auto sample = [](const Extents& sizes, unsigned seed) {
    return dense(random_values(sizes.product(), DType::float64, seed), sizes, DType::float64);
  };
  const Tensor x = sample({3, 2, 2, 3}, 1), w = sample({2}, 2), b = sample({2}, 3);
  const Tensor mean = sample({2}, 4), var = tensor({0.5, 2}, {2}, {DType::float64});
  const auto train = [](const Inputs& i) {
    return batch_norm(i[0], Tensor(), Tensor(), i[1], i[2], DropoutMode::train);
  };
  const auto eval = [&](const Inputs& i) {
    return batch_norm(i[0], mean, var, i[1], i[2], DropoutMode::eval);
  };
  expect_gradients(train, {x, w, b}, "batch_norm in training");
  expect_gradients(eval, {x, w, b}, "batch_norm in evaluation");
  expect_gradients([](const Inputs& i) { return batch_norm(i[0], Tensor(), Tensor()); }, {x},
                   "batch_norm without weight");
}

TEST(BatchNorm, MovesRunningStatisticsThatBackwardDoesNotNeed) {
  const Tensor x = randn({4, 2, 3, 3}).requires_grad_();
  const Tensor mean = zeros({2}), var = ones({2});
  const Tensor y = batch_norm(x, mean, var, Tensor(), Tensor(), DropoutMode::train, 0.5);
  EXPECT_NE(mean.to_doubles(), Values(2, 0.0));
  EXPECT_FALSE(mean.requires_grad());
  backward(y, ones({4, 2, 3, 3}));
  EXPECT_TRUE(x.grad().defined());
}

TEST(BatchNorm, Errors) {
  EXPECT_ERROR(
      ValueError, "[batch_norm] evaluation needs running_mean and running_var",
      batch_norm(zeros({2, 3}), Tensor(), Tensor(), Tensor(), Tensor(), DropoutMode::eval));
  EXPECT_ERROR(ValueError, "[batch_norm] one value a channel in training; needed at least two",
               batch_norm(zeros({1, 3}), zeros({3}), ones({3})));
  EXPECT_ERROR(ShapeError, "[batch_norm] input (2, 3) and weight (2,); needed (3,)",
               batch_norm(zeros({2, 3}), Tensor(), Tensor(), zeros({2})));
}

}  // namespace convolution_test
}  // namespace tenon::test
