// Calls of ops on no elements, or one: what every device answers, and the gradients.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "autograd/autograd.h"
#include "tensor/functional.h"
#include "tensor/tensor.h"

namespace tenon::test {

struct EmptySample {
  std::string name;
  std::vector<Tensor> inputs;  // on the CPU
  std::function<Tensor(const std::vector<Tensor>&)> call;
  Shape shape;       // of the result
  double value = 0;  // of all its elements
  /// What all elements of an input's gradient are, where it is not 0.
  std::map<int, double> gradients = {};
};

inline std::vector<EmptySample> empty_reductions() {
  using Inputs = const std::vector<Tensor>&;
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  return {
      {"sum", {ones({0})}, [](Inputs x) { return sum(x[0]); }, {}},
      {"sum of rows", {ones({3, 0})}, [](Inputs x) { return sum(x[0], {1}); }, {3}},
      {"sum of columns", {ones({0, 3})}, [](Inputs x) { return sum(x[0], {0}); }, {3}},
      {"mean", {ones({0})}, [](Inputs x) { return mean(x[0]); }, {}, kNan},
      {"mean of rows", {ones({3, 0})}, [](Inputs x) { return mean(x[0], {1}); }, {3}, kNan},
      {"var", {ones({0})}, [](Inputs x) { return var(x[0]); }, {}, kNan},
      {"var of one", {ones({1})}, [](Inputs x) { return var(x[0]); }, {}, kNan, {{0, kNan}}},
      {"population var of one", {ones({1})}, [](Inputs x) { return var(x[0], {}, 0); }, {}},
      {"amax of no rows", {ones({0, 3})}, [](Inputs x) { return amax(x[0], {1}); }, {0}},
      {"argmax of no rows", {ones({0, 3})}, [](Inputs x) { return argmax(x[0], 1); }, {0}},
      {"softmax of rows", {ones({3, 0})}, [](Inputs x) { return softmax(x[0], 1); }, {3, 0}},
      {"softmax of no rows", {ones({0, 3})}, [](Inputs x) { return softmax(x[0], 1); }, {0, 3}},
      {"log_softmax", {ones({3, 0})}, [](Inputs x) { return log_softmax(x[0], 1); }, {3, 0}},
      {"cumsum", {ones({3, 0})}, [](Inputs x) { return cumsum(x[0], 1); }, {3, 0}},
  };
}

inline std::vector<EmptySample> empty_norms() {
  using Inputs = const std::vector<Tensor>&;
  const auto layer = [](Inputs x) { return layer_norm(x[0], x[1], x[2]); };
  const auto residual = [](Inputs x) {
    return bias_dropout_residual_layer_norm(x[0], x[1], x[2], x[3], x[4], 0);
  };
  const auto batch = [](Inputs x) {
    return batch_norm(x[0], {}, {}, x[1], x[2], DropoutMode::train);
  };
  const auto batch_relu = [](Inputs x) {
    return batch_norm_relu(x[0], {}, {}, x[1], x[2], DropoutMode::train);
  };
  const auto batch_add_relu = [](Inputs x) {
    return batch_norm_add_relu(x[0], {}, {}, x[1], x[2], x[3], DropoutMode::train);
  };
  return {
      {"layer_norm of no rows", {ones({0, 4}), ones({4}), ones({4})}, layer, {0, 4}},
      {"layer_norm of empty rows", {ones({3, 0}), ones({0}), ones({0})}, layer, {3, 0}},
      {"layer_norm of one", {ones({3, 1}), ones({1}), ones({1})}, layer, {3, 1}, 1, {{2, 3}}},
      {"rms_norm of no rows",
       {ones({0, 4}), ones({4})},
       [](Inputs x) { return rms_norm(x[0], {4}, x[1]); },
       {0, 4}},
      {"rms_norm of empty rows",
       {ones({3, 0}), ones({0})},
       [](Inputs x) { return rms_norm(x[0], {0}, x[1]); },
       {3, 0}},
      {"residual norm of no rows",
       {ones({0, 4}), ones({4}), ones({0, 4}), ones({4}), ones({4})},
       residual,
       {0, 4}},
      {"residual norm of empty rows",
       {ones({3, 0}), ones({0}), ones({3, 0}), ones({0}), ones({0})},
       residual,
       {3, 0}},
      {"batch_norm", {ones({0, 3, 4, 4}), ones({3}), ones({3})}, batch, {0, 3, 4, 4}},
      {"batch_norm of no pixels", {ones({2, 3, 0, 4}), ones({3}), ones({3})}, batch, {2, 3, 0, 4}},
      {"batch_norm of rows", {ones({0, 3}), ones({3}), ones({3})}, batch, {0, 3}},
      {"batch_norm of no channels", {ones({1, 0}), ones({0}), ones({0})}, batch, {1, 0}},
      {"batch_norm_relu", {ones({0, 3, 4}), ones({3}), ones({3})}, batch_relu, {0, 3, 4}},
      {"batch_norm_add_relu",
       {ones({0, 3, 4}), ones({3}), ones({3}), ones({0, 3, 4})},
       batch_add_relu,
       {0, 3, 4}},
      {"batch_norm of two", {ones({2, 3}), ones({3}), ones({3})}, batch, {2, 3}, 1, {{2, 2}}},
  };
}

inline std::vector<EmptySample> empty_products() {
  using Inputs = const std::vector<Tensor>&;
  const auto product = [](Inputs x) { return matmul(x[0], x[1]); };
  const auto layer = [](Inputs x) { return linear(x[0], x[1], x[2]); };
  const auto residual = [](Inputs x) { return linear_residual(x[0], x[1], x[2], x[3]); };
  const auto convolution = [](Inputs x) { return conv2d(x[0], x[1], x[2]); };
  const auto attention = [](Inputs x) {
    return scaled_dot_product_attention(x[0], x[1], x[2], x.size() > 3 ? x[3] : Tensor());
  };
  return {
      {"matmul, K = 0", {ones({3, 0}), ones({0, 2})}, product, {3, 2}},
      {"matmul, M = 0", {ones({0, 3}), ones({3, 2})}, product, {0, 2}},
      {"matmul, no batch", {ones({0, 2, 3}), ones({3, 2})}, product, {0, 2, 2}},
      {"matmul, no batches", {ones({0, 2, 3}), ones({0, 3, 2})}, product, {0, 2, 2}},
      {"matmul of vectors", {ones({0}), ones({0})}, product, {}},
      {"linear", {ones({0, 4}), ones({2, 4}), ones({2})}, layer, {0, 2}},
      {"linear, K = 0", {ones({3, 0}), ones({2, 0}), ones({2})}, layer, {3, 2}, 1, {{2, 3}}},
      {"linear, N = 0", {ones({3, 4}), ones({0, 4}), ones({0})}, layer, {3, 0}},
      {"linear_gelu",
       {ones({0, 4}), ones({2, 4}), ones({2})},
       [](Inputs x) { return linear_gelu(x[0], x[1], x[2]); },
       {0, 2}},
      {"linear_relu",
       {ones({0, 4}), ones({2, 4}), ones({2})},
       [](Inputs x) { return linear_relu(x[0], x[1], x[2]); },
       {0, 2}},
      {"linear_silu",
       {ones({0, 4}), ones({2, 4}), ones({2})},
       [](Inputs x) { return linear_silu(x[0], x[1], x[2]); },
       {0, 2}},
      {"linear_residual", {ones({0, 4}), ones({2, 4}), ones({2}), ones({0, 2})}, residual, {0, 2}},
      {"linear_residual, K = 0",
       {ones({3, 0}), ones({2, 0}), ones({2}), ones({3, 2})},
       residual,
       {3, 2},
       2,
       {{2, 3}, {3, 1}}},
      {"conv2d", {ones({0, 3, 5, 5}), ones({2, 3, 3, 3}), ones({2})}, convolution, {0, 2, 3, 3}},
      {"conv2d of no channels",
       {ones({2, 0, 5, 5}), ones({2, 0, 3, 3}), ones({2})},
       convolution,
       {2, 2, 3, 3},
       1,
       {{2, 18}}},
      {"max_pool2d",
       {ones({0, 3, 4, 4})},
       [](Inputs x) {
         return max_pool2d(x[0], {2, 2}, {2, 2});
       },
       {0, 3, 2, 2}},
      {"avg_pool2d",
       {ones({0, 3, 4, 4})},
       [](Inputs x) {
         return avg_pool2d(x[0], {2, 2}, {2, 2});
       },
       {0, 3, 2, 2}},
      {"attention, L = 0",
       {ones({2, 0, 8}), ones({2, 3, 8}), ones({2, 3, 8})},
       attention,
       {2, 0, 8}},
      {"attention, S = 0",
       {ones({2, 3, 8}), ones({2, 0, 8}), ones({2, 0, 8})},
       attention,
       {2, 3, 8}},
      {"attention, S = 0, mask",
       {ones({2, 3, 8}), ones({2, 0, 8}), ones({2, 0, 8}), ones({3, 0})},
       attention,
       {2, 3, 8}},
      {"attention, no batch",
       {ones({0, 3, 8}), ones({0, 3, 8}), ones({0, 3, 8})},
       attention,
       {0, 3, 8}},
  };
}

inline std::vector<EmptySample> empty_losses() {
  using Inputs = const std::vector<Tensor>&;
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  const TensorOptions indices{DType::int64, kCpu};
  const Tensor ignored = full({2}, -100, indices);
  std::vector<EmptySample> samples;
  for (const Reduction reduction : {Reduction::mean, Reduction::sum}) {
    const double value = reduction == Reduction::mean ? kNan : 0;
    const auto entropy = [reduction](Inputs x) {
      return cross_entropy(x[0], x[1], {.reduction = reduction});
    };
    const auto smoothed = [reduction](Inputs x) {
      return cross_entropy(x[0], x[1], {.reduction = reduction, .label_smoothing = 0.1});
    };
    const auto linear_entropy = [reduction](Inputs x) {
      return linear_cross_entropy(x[0], x[1], x[2], {.reduction = reduction});
    };
    const auto squares = [reduction](Inputs x) { return mse_loss(x[0], x[1], reduction); };
    const Tensor none = zeros({0}, indices);
    samples.push_back({"cross_entropy", {ones({0, 3}), none}, entropy, {}, value});
    samples.push_back({"cross_entropy, all ignored", {ones({2, 3}), ignored}, entropy, {}, value});
    samples.push_back({"smoothed, all ignored", {ones({2, 3}), ignored}, smoothed, {}, value});
    samples.push_back(
        {"linear_cross_entropy", {ones({0, 4}), ones({3, 4}), none}, linear_entropy, {}, value});
    samples.push_back({"linear_cross_entropy, all ignored",
                       {ones({2, 4}), ones({3, 4}), ignored},
                       linear_entropy,
                       {},
                       value});
    samples.push_back({"mse_loss", {ones({0}), ones({0})}, squares, {}, value});
  }
  return samples;
}

inline std::vector<EmptySample> empty_others() {
  using Inputs = const std::vector<Tensor>&;
  const Tensor none = zeros({0}, {DType::int64, kCpu});
  return {
      {"add, repeated", {ones({0, 4}), ones({4})}, [](Inputs x) { return x[0] + x[1]; }, {0, 4}},
      {"mul, repeated", {ones({0, 4}), ones({1, 1})}, [](Inputs x) { return x[0] * x[1]; }, {0, 4}},
      {"bias_gelu",
       {ones({0, 4}), ones({4})},
       [](Inputs x) { return bias_gelu(x[0], x[1]); },
       {0, 4}},
      {"silu_mul",
       {ones({0, 4}), ones({0, 4})},
       [](Inputs x) { return silu_mul(x[0], x[1]); },
       {0, 4}},
      {"rotary_embedding",
       {ones({0, 4}), ones({4}), ones({4})},
       [](Inputs x) { return rotary_embedding(x[0], x[1], x[2]); },
       {0, 4}},
      {"dropout",
       {ones({0, 3})},
       [](Inputs x) { return dropout(x[0], 0.5, DropoutMode::train); },
       {0, 3}},
      {"dropout of all",
       {ones({3})},
       [](Inputs x) { return dropout(x[0], 1, DropoutMode::train); },
       {3}},
      {"embedding", {none, ones({3, 4})}, [](Inputs x) { return embedding(x[0], x[1]); }, {0, 4}},
      {"embedding of no table",
       {none, ones({0, 3})},
       [](Inputs x) { return embedding(x[0], x[1]); },
       {0, 3}},
      {"index_select",
       {ones({3, 4}), none},
       [](Inputs x) { return index_select(x[0], 0, x[1]); },
       {0, 4}},
      {"gather",
       {ones({3, 4}), zeros({0, 4}, {DType::int64, kCpu})},
       [](Inputs x) { return gather(x[0], 0, x[1]); },
       {0, 4}},
      {"cat",
       {ones({0, 4}), ones({0, 4})},
       [](Inputs x) {
         return cat({x[0], x[1]});
       },
       {0, 4}},
      {"cat with some",
       {ones({0, 4}), ones({2, 4})},
       [](Inputs x) {
         return cat({x[0], x[1]});
       },
       {2, 4},
       1,
       {{1, 1}}},
      {"stack",
       {ones({0, 4}), ones({0, 4})},
       [](Inputs x) {
         return stack({x[0], x[1]});
       },
       {2, 0, 4}},
      {"expand",
       {ones({1, 4})},
       [](Inputs x) {
         return expand(x[0], {0, 4});
       },
       {0, 4}},
      {"narrow", {ones({3, 4})}, [](Inputs x) { return narrow(x[0], 0, 1, 0); }, {0, 4}},
      {"tril", {ones({0, 4})}, [](Inputs x) { return tril(x[0]); }, {0, 4}},
      {"where",
       {ones({0, 4}), ones({4})},
       [](Inputs x) { return where(gt(x[1], 0), x[0], x[1]); },
       {0, 4}},
  };
}

inline std::vector<EmptySample> empty_samples() {
  std::vector<EmptySample> all;
  for (auto make : {empty_reductions, empty_norms, empty_products, empty_losses, empty_others}) {
    for (EmptySample& sample : make()) all.push_back(std::move(sample));
  }
  return all;
}

inline void expect_all(const Tensor& tensor, double value, const std::string& what) {
  for (const double got : tensor.to_doubles()) {
    ASSERT_TRUE(got == value || (std::isnan(got) && std::isnan(value)))
        << what << " is " << got << ", needed " << value;
  }
}

/// The call on `device` with floating operands of `dtype`: its result, and gradients for a cotangent
/// of ones.
inline void check_empty_sample(const EmptySample& sample, DType dtype, Device device) {
  std::vector<Tensor> inputs;
  for (const Tensor& input : sample.inputs) {
    const bool floating = is_floating(input.dtype());
    inputs.push_back((floating ? input.to(dtype) : input).to(device).detach());
    if (floating) inputs.back().requires_grad_();
  }
  const Tensor result = sample.call(inputs);
  ASSERT_EQ(result.shape(), sample.shape) << sample.name;
  expect_all(result, sample.value, sample.name);
  if (!is_floating(result.dtype())) return;
  backward(result, ones(result.shape(), {result.dtype(), device}));
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    if (!inputs[i].requires_grad()) continue;
    const std::string what = sample.name + ", gradient of operand " + std::to_string(i);
    ASSERT_EQ(inputs[i].grad().shape(), inputs[i].shape()) << what;
    const auto known = sample.gradients.find(static_cast<int>(i));
    expect_all(inputs[i].grad(), known == sample.gradients.end() ? 0 : known->second, what);
  }
}

}  // namespace tenon::test
