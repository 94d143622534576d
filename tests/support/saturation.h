// Activations far from 0, where they have long become straight lines: values, slopes and decomposed
// slopes of every dtype on either device, as PyTorch has them. tanh's GELU is better than
// PyTorch's, whose slope is NaN once the square of the input overflows.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "tensor/interpreter.h"
#include "tensor/ops/attributes.h"
#include "tensor/tensor.h"

namespace tenon::test {

/// What a function is on one side of 0: y = factor·x + constant.
struct StraightLine {
  double factor, constant;
  double value_at_inf, slope_at_inf;  // in PyTorch, NaN where 0 meets an infinity
};

struct SaturatedOp {
  const char* op;  // its gradient's op is <op>_backward
  Attrs attrs;
  StraightLine above, below;
  bool slope_from_output = false;
  double slope_at_nan = std::numeric_limits<double>::quiet_NaN();
};

inline const std::vector<SaturatedOp>& saturated_ops() {
  constexpr double inf = std::numeric_limits<double>::infinity();
  constexpr double nan = std::numeric_limits<double>::quiet_NaN();
  static const std::vector<SaturatedOp> ops = {
      {"gelu", GeluAttrs{Approximate::tanh}, {1, 0, inf, 1}, {0, 0, nan, 0}},
      {"gelu", GeluAttrs{Approximate::none}, {1, 0, inf, nan}, {0, 0, nan, nan}},
      {"silu", {}, {1, 0, inf, nan}, {0, 0, nan, nan}},
      {"softplus", SoftplusAttrs{}, {1, 0, inf, 1}, {0, 0, 0, 0}},
      // Without a threshold e^x would overflow long before x does.
      {"softplus", SoftplusAttrs{1, inf}, {1, 0, inf, 1}, {0, 0, 0, 0}},
      {"softplus", SoftplusAttrs{-1, inf}, {0, 0, 0, 0}, {1, 0, -inf, 1}},
      {"relu", {}, {1, 0, inf, 1}, {0, 0, 0, 0}, true, 1},
      {"abs", {}, {1, 0, inf, 1}, {-1, 0, inf, -1}, false, 0},
      {"sigmoid", {}, {0, 1, 1, 0}, {0, 0, 0, 0}, true},
      {"tanh", {}, {0, 1, 1, 0}, {0, -1, -1, 0}, true},
      {"erf", {}, {0, 1, 1, 0}, {0, -1, -1, 0}},
  };
  return ops;
}

inline double largest_value(DType dtype) {
  switch (dtype) {
    case DType::float16: return 65504;
    case DType::bfloat16: return 0x1.fep127;
    case DType::float32: return 0x1.fffffep127;
    default: return 0x1.fffffffffffffp1023;
  }
}

/// Both signs of what the dtype can hold: where squares, cubes and their products with an input
/// overflow in it or in what it is computed in, and on to the largest number.
inline std::vector<double> saturated_inputs(DType dtype) {
  std::vector<double> result;
  for (const double x : {400.0, 1e4, 1e12, 1e13, 1e18, 1.9e19, 6e19, 1e20, 1e38, 1e103, 1e153,
                         2e154, 5e154, 1e200, 1e300, largest_value(dtype)}) {
    if (x > largest_value(dtype)) continue;
    result.push_back(x);
    result.push_back(-x);
  }
  return result;
}

/// Equal; NaN equals NaN, and a tail of nearly 0 is 0.
inline void expect_line(const Tensor& got, const std::vector<double>& want,
                        const std::vector<double>& at, const std::string& what) {
  const std::vector<double> values = got.to_doubles();
  ASSERT_EQ(values.size(), want.size()) << what;
  for (std::size_t i = 0; i < want.size(); ++i) {
    const bool same = std::isnan(want[i]) ? std::isnan(values[i])
                      : want[i] == 0      ? std::abs(values[i]) < 1e-150
                                          : values[i] == want[i];
    EXPECT_TRUE(same) << what << " at " << at[i] << " is " << values[i] << ", needed " << want[i];
  }
}

/// A table's values and slopes at finite inputs, at both infinities and at NaN.
struct SaturatedCase {
  std::vector<double> inputs, values, slopes;
  std::size_t finite;  // so many come first

  SaturatedCase(const SaturatedOp& op, DType dtype) {
    const auto side = [&](double x) { return x > 0 ? op.above : op.below; };
    inputs = saturated_inputs(dtype);
    finite = inputs.size();
    // As the dtype rounds them.
    inputs = tensor(inputs, {static_cast<std::int64_t>(finite)}, {dtype}).to_doubles();
    for (const double x : inputs) {
      values.push_back(side(x).factor * x + side(x).constant);
      slopes.push_back(side(x).factor);
    }
    for (const double x : {HUGE_VAL, -HUGE_VAL}) {
      inputs.push_back(x);
      values.push_back(side(x).value_at_inf);
      slopes.push_back(side(x).slope_at_inf);
    }
    inputs.push_back(std::nan(""));
    values.push_back(std::nan(""));
    slopes.push_back(op.slope_at_nan);
  }
};

inline void check_saturation(const SaturatedOp& test, DType dtype, Device device) {
  const std::string what = std::string(test.op) + " " + test.attrs.to_string() + " " +
                           std::string(name(dtype)) + " on " + device.to_string();
  SaturatedCase expected(test, dtype);
  const auto size = static_cast<std::int64_t>(expected.inputs.size());
  const Tensor x = tensor(expected.inputs, {size}, {dtype}).to(device);
  const Tensor y = apply1(get_op(test.op), {x}, test.attrs);
  expect_line(y, expected.values, expected.inputs, what);
  const Op& gradient = get_op(std::string(test.op) + "_backward");
  const std::vector<Tensor> operands = {ones({size}, {dtype, device}),
                                        test.slope_from_output ? y : x};
  expect_line(apply(gradient, operands, test.attrs).at(0), expected.slopes, expected.inputs,
              what + ", slope");
  // The ops that a second derivative goes through need not agree where the first has no bound.
  const auto finite = static_cast<std::int64_t>(expected.finite);
  const std::vector<Tensor> bounded = {operands[0].narrow(0, 0, finite),
                                       operands[1].narrow(0, 0, finite)};
  expected.slopes.resize(expected.finite);
  expect_line(gradient.decompose(bounded, test.attrs).at(0), expected.slopes, expected.inputs,
              what + ", slope by ops");
}

}  // namespace tenon::test
