// The gradient of dropout: the mask of its forward, whatever the operand and whatever ran since.
#include <gtest/gtest.h>

#include "autograd/autograd.h"
#include "tensor/interpreter.h"
#include "tensor/random.h"
#include "tests/tensor/strided_samples.h"

namespace tenon::test {
namespace {

constexpr ModuleFrame kTraining{.training = true};

Tensor in_module(const Tensor& x, double p) {
  const ModuleScope scope(kTraining, {});
  dropout(x, 0.5);  // so that the site is not 0
  return dropout(x, p);
}

TEST(DropoutGradient, HasTheMaskOfItsForward) {
  const Extents shapes[] = {{}, {1}, {9}, {3, 21}, {2, 3, 8}, {5, 1}, {2, 16400}, {0, 4}, {4, 0}};
  for (const Extents& sizes : shapes) {
    for (const DType dtype : kFloats) {
      const Values ones_(static_cast<std::size_t>(sizes.product()), 1.0);
      for (const Arrangement layout : kArrangements) {
        for (const Arrangement other : {Arrangement::contiguous, Arrangement::transposed}) {
          manual_seed(0x9e3779b97f4a7c15);
          Tensor x = arranged(ones_, sizes, dtype, layout).requires_grad_();
          const Tensor y = in_module(x, 0.3);
          backward(y, arranged(ones_, sizes, dtype, other));
          EXPECT_EQ(x.grad().to_doubles(), y.to_doubles()) << name(dtype);
        }
      }
    }
  }
}

TEST(DropoutGradient, IsNotMovedByLaterForwards) {
  manual_seed(11);
  Tensor x = ones({40, 40}).requires_grad_();
  const Tensor first = in_module(x, 0.5);
  const Tensor second = in_module(x, 0.5);
  in_module(x, 0.5);
  EXPECT_NE(first.to_doubles(), second.to_doubles());
  backward(second, ones({40, 40}));
  EXPECT_EQ(x.grad().to_doubles(), second.to_doubles());
  x.set_grad({});
  backward(first, ones({40, 40}));
  EXPECT_EQ(x.grad().to_doubles(), first.to_doubles());
}

TEST(DropoutGradient, FollowsTheModeOfItsForward) {
  const ModuleFrame evaluating{.training = false};
  Tensor x = ones({64}).requires_grad_();
  const Tensor y = [&] {
    const ModuleScope scope(evaluating, {});
    return dropout(x, 0.5) * 2.0;
  }();
  backward(y, ones({64}));
  for (const double value : x.grad().to_doubles()) EXPECT_EQ(value, 2);
}

TEST(DropoutGradient, OfADroppedElementIsZeroEvenForNan) {
  Tensor x = ones({3, 3}).requires_grad_();
  backward(dropout(x, 1.0, DropoutMode::train), full({3, 3}, NAN));
  for (const double value : x.grad().to_doubles()) EXPECT_EQ(value, 0);
}

}  // namespace
}  // namespace tenon::test
