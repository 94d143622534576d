// batch_norm_relu and batch_norm_add_relu against a reference in double, their running statistics, and
// their gradients beside those of the composition.
#include <gtest/gtest.h>

#include <cmath>

#include "autograd/autograd.h"
#include "tensor/error.h"
#include "tensor/functional.h"
#include "tests/tensor/layouts.h"

namespace tenon::test {
namespace batch_norm_relu_test {

constexpr double kEps = 0.1;
constexpr double kMomentum = 0.25;

struct Operands {
  Tensor x, mean, var, weight, bias, residual;
};

Operands make_operands(const Extents& sizes, DType dtype, Memory memory) {
  const Extents vector = {sizes[1]};
  return {random_tensor(sizes, dtype, memory, 1, -2, 2),
          random_tensor(vector, dtype, Memory::contiguous, 2, -1, 1),
          random_tensor(vector, dtype, Memory::contiguous, 3, 0.5, 2),
          random_tensor(vector, dtype, Memory::contiguous, 4, -2, 2),
          random_tensor(vector, dtype, Memory::contiguous, 5, -1, 1),
          random_tensor(sizes, dtype, memory, 6, -2, 2)};
}

struct Reference {
  std::vector<double> plain, added, mean, var;
};

Reference reference(const Operands& o, const Extents& sizes, bool training) {
  const auto x = values_of(o.x), residual = values_of(o.residual), weight = values_of(o.weight);
  const auto bias = values_of(o.bias);
  Reference result{{}, {}, values_of(o.mean), values_of(o.var)};
  const auto channels = static_cast<std::size_t>(sizes[1]);
  std::size_t inner = 1;
  for (int axis = 2; axis < sizes.size(); ++axis) inner *= static_cast<std::size_t>(sizes[axis]);
  result.plain = result.added = x;
  for (std::size_t c = 0; c < channels; ++c) {
    double mean = result.mean[c], var = result.var[c];
    const auto each = [&](const auto& f) {
      for (std::size_t i = 0; i < x.size(); ++i) {
        if (i / inner % channels == c) f(i);
      }
    };
    if (training) {
      double count = 0, sum = 0, squares = 0;
      each([&](std::size_t i) { ++count, sum += x[i]; });
      mean = sum / count;
      each([&](std::size_t i) { squares += (x[i] - mean) * (x[i] - mean); });
      var = squares / count;
      result.mean[c] += kMomentum * (mean - result.mean[c]);
      result.var[c] += kMomentum * (squares / (count - 1) - result.var[c]);
    }
    each([&](std::size_t i) {
      const double y = (x[i] - mean) / std::sqrt(var + kEps) * weight[c] + bias[c];
      result.plain[i] = std::max(y, 0.0);
      result.added[i] = std::max(y + residual[i], 0.0);
    });
  }
  return result;
}

const Extents kSizes[] = {{4, 3}, {3, 2, 5}, {2, 3, 4, 5}, {2, 2, 2, 3, 2}};

TEST(BatchNormRelu, AgreesWithTheReference) {
  for (const DType dtype : {DType::float64, DType::float32}) {
    for (const Extents& sizes : kSizes) {
      for (const bool training : {true, false}) {
        for (const bool adds : {true, false}) {
          const Operands o = make_operands(sizes, dtype, Memory::contiguous);
          const Reference expected = reference(o, sizes, training);
          const DropoutMode mode = training ? DropoutMode::train : DropoutMode::eval;
          const Tensor got =
              adds ? batch_norm_add_relu(o.x, o.mean, o.var, o.weight, o.bias, o.residual, mode,
                                         kMomentum, kEps)
                   : batch_norm_relu(o.x, o.mean, o.var, o.weight, o.bias, mode, kMomentum, kEps);
          const double u = 16 * unit_roundoff(dtype);
          expect_values(got, adds ? expected.added : expected.plain, u, 8 * u);
          expect_values(o.mean, expected.mean, u, u);
          expect_values(o.var, expected.var, u, u);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST(BatchNormRelu, GradientsAreThoseOfTheComposition) {
  for (const DropoutMode mode : {DropoutMode::train, DropoutMode::eval}) {
    for (const bool adds : {true, false}) {
      const auto gradients = [&](bool fused) {
        Operands o = make_operands({3, 4, 2, 3}, DType::float64, Memory::contiguous);
        for (Tensor* t : {&o.x, &o.weight, &o.bias, &o.residual}) t->requires_grad_();
        Tensor y;
        if (fused && adds) {
          y = batch_norm_add_relu(o.x, o.mean, o.var, o.weight, o.bias, o.residual, mode);
        } else if (fused) {
          y = batch_norm_relu(o.x, o.mean, o.var, o.weight, o.bias, mode);
        } else {
          const Tensor norm = batch_norm(o.x, o.mean, o.var, o.weight, o.bias, mode);
          y = relu(adds ? norm + o.residual : norm);
        }
        backward(
            sum(square(y) * random_tensor({3, 4, 2, 3}, DType::float64, Memory::contiguous, 9)));
        std::vector<Tensor> found = {o.x.grad(), o.weight.grad(), o.bias.grad()};
        if (adds) found.push_back(o.residual.grad());
        return found;
      };
      const auto fused = gradients(true), composed = gradients(false);
      for (std::size_t i = 0; i < fused.size(); ++i) {
        ASSERT_TRUE(fused[i].defined()) << i;
        expect_values(fused[i], composed[i].to_doubles(), 1e-12, 1e-12);
      }
    }
  }
}

TEST(BatchNormRelu, RefusesWhatDoesNotFit) {
  const Operands o = make_operands({2, 3, 4, 4}, DType::float32, Memory::contiguous);
  expect_error<ShapeError>(
      [&] {
        batch_norm_add_relu(o.x, o.mean, o.var, o.weight, o.bias, ones({2, 3, 1, 4}));
      },
      "[batch_norm_add_relu] operands 'input' (2, 3, 4, 4) and 'residual' (2, 3, 1, 4)");
  expect_error<ValueError>([&] { batch_norm_relu(o.x, o.mean, {}, o.weight, o.bias); },
                           "[batch_norm_relu] one of running_mean and running_var is missing");
  expect_error<ShapeError>([&] { batch_norm_relu(o.x, o.mean, o.var, ones({4}), o.bias); },
                           "[batch_norm_relu] input (2, 3, 4, 4) and weight (4,); needed (3,)");
}

}  // namespace batch_norm_relu_test
}  // namespace tenon::test
