// linear_gelu, linear_relu, linear_silu, what autograd records, linear_residual and matmul_add against references in double: dtype x
// layout; their gradients against those of the composition; what autograd records; what they refuse.
#include <gtest/gtest.h>

#include <cmath>

#include "autograd/autograd.h"
#include "tensor/error.h"
#include "tensor/functional.h"
#include "tensor/interpreter.h"
#include "tensor/ops/attributes.h"
#include "tests/tensor/layouts.h"

namespace tenon::test {
namespace {

double exact_gelu(double x) { return 0.5 * x * std::erfc(-x / std::sqrt(2.0)); }
double tanh_gelu(double x) {
  return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}

struct Form {
  Approximate approximate;
  double (*value)(double);
};
const Form kForms[] = {{Approximate::none, exact_gelu}, {Approximate::tanh, tanh_gelu}};

/// input (R, K) · weight (N, K)ᵀ + bias (N), if it has elements.
std::vector<double> product(const std::vector<double>& input, const std::vector<double>& weight,
                            const std::vector<double>& bias, std::size_t depth,
                            std::size_t columns) {
  std::vector<double> values;
  for (std::size_t r = 0; r * depth < input.size(); ++r) {
    for (std::size_t n = 0; n < columns; ++n) {
      double sum = bias.empty() ? 0 : bias[n];
      for (std::size_t k = 0; k < depth; ++k) sum += input[r * depth + k] * weight[n * depth + k];
      values.push_back(sum);
    }
  }
  return values;
}

constexpr std::int64_t kDepth = 7;
constexpr std::int64_t kColumns = 5;
const Extents kInputSizes[] = {{kDepth}, {3, kDepth}, {2, 3, kDepth}, {0, kDepth}};

/// Two roundings to the dtype, of values of at most `magnitude`: a composition rounds twice.
void expect_product(const Tensor& got, const std::vector<double>& expected, double magnitude) {
  const double rounding = unit_roundoff(got.dtype());
  expect_values(got, expected, 2 * rounding, 2 * rounding * magnitude + 1e-5 * rounding);
}

TEST(FusedProducts, AgreeWithTheReferenceInEveryLayout) {
  for (const DType dtype : kFloats) {
    for (const Extents& sizes : kInputSizes) {
      for (const Memory memory : kAllMemory) {
        for (const bool has_bias : {true, false}) {
          SCOPED_TRACE(std::string(name(dtype)) + " " + name(memory) + " rank " +
                       std::to_string(sizes.size()) + (has_bias ? "" : ", no bias"));
          const Tensor x = random_tensor(sizes, dtype, memory, 1, -1, 1);
          const Tensor w = random_tensor({kColumns, kDepth}, dtype, memory, 2, -1, 1);
          const Tensor b = has_bias ? random_tensor({kColumns}, dtype, memory, 3) : Tensor();
          Extents result_sizes = sizes;
          result_sizes[result_sizes.size() - 1] = kColumns;
          const Tensor residual = random_tensor(result_sizes, dtype, memory, 4);
          const auto sum =
              product(values_of(x), values_of(w), has_bias ? values_of(b) : std::vector<double>(),
                      kDepth, kColumns);
          constexpr double kMagnitude = 16;  // Σ |terms| <= 7 + 2, with rounding on the way
          for (const Form& form : kForms) {
            std::vector<double> activated;
            for (const double value : sum) activated.push_back(form.value(value));
            expect_product(linear_gelu(x, w, b, form.approximate), activated, kMagnitude);
            const Tensor operands[] = {x, w, b};
            const auto both =
                apply(get_op("linear_gelu_aux"), operands, GeluAttrs{form.approximate});
            ASSERT_EQ(both.size(), 2U);
            expect_product(both[0], activated, kMagnitude);
            expect_product(both[1], sum, kMagnitude);
          }
          std::vector<double> positive, smooth;
          for (const double value : sum) {
            positive.push_back(std::max(value, 0.0));
            smooth.push_back(value / (1 + std::exp(-value)));
          }
          expect_product(linear_relu(x, w, b), positive, kMagnitude);
          expect_product(linear_silu(x, w, b), smooth, kMagnitude);
          const Tensor layer[] = {x, w, b};
          const auto recorded = apply(get_op("linear_silu_aux"), layer, {});
          ASSERT_EQ(recorded.size(), 2U);
          expect_product(recorded[0], smooth, kMagnitude);
          expect_product(recorded[1], sum, kMagnitude);
          std::vector<double> total = sum;
          const auto added = values_of(residual);
          for (std::size_t i = 0; i < total.size(); ++i) total[i] += added[i];
          expect_product(linear_residual(x, w, b, residual), total, kMagnitude);
          if (!has_bias && sizes.size() > 1) {
            const Tensor operands[] = {x, w.transpose(0, 1), residual};
            expect_product(apply(get_op("matmul_add"), operands, {})[0], total, kMagnitude);
          }
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST(FusedProducts, OfNothingAreBiasAndResidual) {
  const Tensor x = zeros({2, 0});
  const Tensor w = zeros({3, 0});
  const Tensor b = tensor({1, 2, 3}, {3});
  const Tensor residual = tensor({10, 20, 30, 40, 50, 60}, {2, 3});
  expect_values(linear_residual(x, w, b, residual), {11, 22, 33, 41, 52, 63}, 0);
  expect_values(linear_residual(x, w, {}, residual), {10, 20, 30, 40, 50, 60}, 0);
}

/// Gradients of f(operands) by each operand, for one cotangent.
template <class F>
std::vector<Tensor> gradients(const F& f, const std::vector<Tensor>& operands,
                              const Tensor& cotangent) {
  std::vector<Tensor> leaves;
  for (const Tensor& operand : operands) leaves.push_back(operand.clone().requires_grad_());
  return grad(std::vector{f(leaves)}, leaves, std::vector{cotangent});
}

TEST(FusedProducts, GradientsAreThoseOfTheComposition) {
  using Operands = std::vector<Tensor>;
  const auto random = [](const Extents& sizes, unsigned seed) {
    return random_tensor(sizes, DType::float64, Memory::contiguous, seed);
  };
  const Operands operands = {random({2, 3, kDepth}, 1), random({kColumns, kDepth}, 2),
                             random({kColumns}, 3), random({2, 3, kColumns}, 4)};
  const Operands first_three(operands.begin(), operands.begin() + 3);
  const Tensor cotangent = random({2, 3, kColumns}, 5);
  const auto expect_equal = [&](const Operands& got, const Operands& want) {
    ASSERT_EQ(got.size(), want.size());
    for (std::size_t i = 0; i < got.size(); ++i) {
      expect_values(got[i], values_of(want[i]), 1e-12, 1e-12);
    }
  };
  for (const Form& form : kForms) {
    const auto fused = [&](const Operands& in) {
      return linear_gelu(in[0], in[1], in[2], form.approximate);
    };
    const auto composed = [&](const Operands& in) {
      return gelu(linear(in[0], in[1], in[2]), form.approximate);
    };
    expect_equal(gradients(fused, first_three, cotangent),
                 gradients(composed, first_three, cotangent));
  }
  for (const Form& form : kForms) {
    const Tensor weight = random({kColumns, 4}, 6);
    const Tensor input = random({2, 3, 4}, 7);
    const Tensor through[] = {cotangent, weight, input};
    const Tensor got =
        apply(get_op("matmul_gelu_backward"), through, GeluAttrs{form.approximate})[0];
    const auto activate = [&](const Operands& in) {
      return matmul(gelu(in[0], form.approximate), weight.transpose(0, 1));
    };
    expect_equal({got}, gradients(activate, {input}, cotangent));
    expect_equal(apply(get_op("matmul_gelu_backward_again"), through, GeluAttrs{form.approximate}),
                 {got, gelu(input, form.approximate)});
  }
  struct Activated {
    Tensor (*value)(const Tensor&);
    Tensor (*product)(const Tensor&, const Tensor&, const Tensor&);
    const char* slope;
    bool from_output;
  };
  for (const Activated& a : {Activated{relu, linear_relu, "matmul_relu_backward", true},
                             Activated{silu, linear_silu, "matmul_silu_backward", false}}) {
    const auto fused = [&](const Operands& in) { return a.product(in[0], in[1], in[2]); };
    const auto composed = [&](const Operands& in) { return a.value(linear(in[0], in[1], in[2])); };
    expect_equal(gradients(fused, first_three, cotangent),
                 gradients(composed, first_three, cotangent));
    const Tensor weight = random({kColumns, 4}, 6);
    const Tensor input = random({2, 3, 4}, 7);
    const Tensor through[] = {cotangent, weight, a.from_output ? a.value(input) : input};
    const auto activate = [&](const Operands& in) {
      return matmul(a.value(in[0]), weight.transpose(0, 1));
    };
    expect_equal(apply(get_op(a.slope), through, {}), gradients(activate, {input}, cotangent));
  }
  const auto fused = [](const Operands& in) { return linear_residual(in[0], in[1], in[2], in[3]); };
  const auto composed = [](const Operands& in) { return linear(in[0], in[1], in[2]) + in[3]; };
  expect_equal(gradients(fused, operands, cotangent), gradients(composed, operands, cotangent));
}

TEST(FusedProducts, RefuseOtherShapesAndDTypes) {
  const Tensor x = zeros({2, 3});
  const Tensor w = zeros({4, 3});
  const Tensor b = zeros({4});
  expect_error<ShapeError>(
      [&] {
        linear_gelu(x, zeros({4, 5}), b);
      },
      "[linear_gelu] input (2, 3) and weight (4, 5); the last axis of input (3) "
      "must equal the weight's second (5)");
  expect_error<ShapeError>(
      [&] { linear_gelu(x, w, zeros({3})); },
      "[linear_gelu] weight (4, 3) and bias (3,); needed a bias of shape (4,)");
  expect_error<DTypeError>([&] { linear_gelu(x, w, b.to(DType::float64)); }, "[linear_gelu]");
  expect_error<ShapeError>([&] { linear_residual(x, w, b, zeros({4})); },
                           "[linear_residual] operand 'residual' (4,); needed the shape (2, 4) of "
                           "the product");
  expect_error<ShapeError>(
      [&] {
        linear_residual(x, w, b, zeros({2, 1}));
      },
      "[linear_residual] operand 'residual' (2, 1); needed the shape (2, 4)");
  expect_error<DTypeError>(
      [&] {
        linear_residual(x, w, b, zeros({2, 4}, of(DType::float64)));
      },
      "[linear_residual]");
  expect_error<ShapeError>(
      [&] {
        const Tensor operands[] = {x, w.transpose(0, 1), zeros({1, 4})};
        apply(get_op("matmul_add"), operands, {});
      },
      "[matmul_add] operand 'addend' (1, 4); needed the shape (2, 4) of the product");
}

}  // namespace
}  // namespace tenon::test
