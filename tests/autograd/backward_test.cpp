// The tape and the walk: what is accumulated where, in which order, and which mistakes are refused.
#include <gtest/gtest.h>

#include <cmath>

#include "autograd/autograd.h"
#include "tensor/error.h"
#include "tensor/functional.h"
#include "tests/support/expect_error.h"

namespace tenon::test {
namespace {

using Tensors = std::vector<Tensor>;
using Doubles = std::vector<double>;

Tensor leaf(std::initializer_list<double> values) {
  Tensor x = tensor(values, {static_cast<std::int64_t>(values.size())}, {DType::float64});
  return x.requires_grad_();
}

Doubles values(const Tensor& tensor) { return tensor ? tensor.to_doubles() : Doubles{}; }

template <class E, class F>
void expect_refused(F&& f, const std::string& text) {
  const std::string message = error_text<E>(f);
  EXPECT_NE(message.find(text), std::string::npos) << "message: " << message;
}

TEST(Backward, OfAScalarSeedsWithOne) {
  const Tensor x = leaf({1, 2, 3});
  const Tensor loss = sum(square(x));
  EXPECT_TRUE(loss.requires_grad());
  EXPECT_FALSE(loss.is_leaf());
  backward(loss);
  EXPECT_EQ(values(x.grad()), (Doubles{2, 4, 6}));
  EXPECT_FALSE(x.grad().requires_grad());
}

TEST(Backward, TakesACotangent) {
  const Tensor x = leaf({1, 2, 3});
  backward(square(x), tensor({1, 10, 100}, {3}, {DType::float64}));
  EXPECT_EQ(values(x.grad()), (Doubles{2, 40, 600}));
}

TEST(Backward, OfSeveralRootsIsOneWalk) {
  const Tensor x = leaf({2});
  const Tensor shared = exp(x);
  int walked = 0;
  register_hook(shared, [&](const Tensor&) {
    ++walked;
    return Tensor();
  });
  const Tensors roots = {mul(shared, 3), mul(shared, 5), x};
  const Tensors cotangents = {Tensor(), tensor({2}, {1}, {DType::float64}), Tensor()};
  backward(roots, cotangents);
  EXPECT_EQ(walked, 1);
  EXPECT_NEAR(values(x.grad())[0], 13 * std::exp(2.0) + 1, 1e-12);
}

TEST(Backward, ATensorIsNotItsOwnGradient) {
  Tensor x = leaf({1, 2});
  Tensor y = leaf({3, 4});
  const auto refusal = [](Tensor& target, const Tensor& gradient) {
    return test::error_text<ValueError>([&] { target.set_grad(gradient); });
  };
  EXPECT_NE(refusal(x, x).find("give detach().clone()"), std::string::npos);
  x.set_grad(y);
  EXPECT_NE(refusal(y, x).find("give detach().clone()"), std::string::npos);
  EXPECT_FALSE(y.grad());
  y.set_grad(x.detach().clone());
  EXPECT_EQ(values(y.grad()), (Doubles{1, 2}));
}

TEST(Backward, Accumulates) {
  const Tensor x = leaf({1, 2});
  backward(sum(mul(x, 3)));
  backward(sum(mul(x, 4)));
  EXPECT_EQ(values(x.grad()), (Doubles{7, 7}));
  Tensor(x).set_grad({});
  EXPECT_FALSE(x.grad());
  backward(sum(mul(x, 4)));
  EXPECT_EQ(values(x.grad()), (Doubles{4, 4}));
}

TEST(Backward, EachLeafOwnsItsGradient) {
  const Tensor a = leaf({1, 2});
  const Tensor b = leaf({3, 4});
  const Tensor cotangent = tensor({1, 1}, {2}, {DType::float64});
  backward(add(a, b), cotangent);
  a.grad().mul_(0.5);
  EXPECT_EQ(values(a.grad()), (Doubles{0.5, 0.5}));
  EXPECT_EQ(values(b.grad()), (Doubles{1, 1}));
  EXPECT_EQ(values(cotangent), (Doubles{1, 1}));
}

TEST(Backward, GradientsAreContiguousWhateverTheCotangentIs) {
  const Tensor x = leaf({1, 2, 3});
  backward(sum(x));  // the cotangent of x is one element repeated
  EXPECT_TRUE(x.grad().is_contiguous());
  EXPECT_EQ(values(x.grad()), (Doubles{1, 1, 1}));
}

TEST(Backward, ALeafUsedManyTimesGetsTheSum) {
  const Tensor x = leaf({3});
  const Tensor y = mul(x, x);
  backward(add(mul(y, x), y));  // x³ + x²
  EXPECT_EQ(values(x.grad()), (Doubles{3 * 9 + 2 * 3}));
}

TEST(Backward, UndefinedIsNotZero) {
  const Tensor used = leaf({1});
  const Tensor unused = leaf({1});
  const Tensor times_zero = leaf({1});
  backward(add(used, mul(times_zero, 0)));
  EXPECT_FALSE(unused.grad());
  ASSERT_TRUE(times_zero.grad());
  EXPECT_EQ(values(times_zero.grad()), (Doubles{0}));
  const Tensors parts = split(leaf({1, 2}), 1);
  backward(square(parts[0]));  // nothing depends on the other part
}

TEST(Backward, RetainGraphAllowsASecondTime) {
  const Tensor x = leaf({2});
  const Tensor y = square(x);
  backward(y, {}, {.retain_graph = true});
  backward(y);
  EXPECT_EQ(values(x.grad()), (Doubles{8}));
  expect_refused<ValueError>([&] { backward(y); },
                             "backward through [square] a second time, after its saved values");
}

TEST(Backward, DoesNotTouchFrozenLeaves) {
  const Tensor x = leaf({2});
  const Tensor frozen = tensor({5}, {1}, {DType::float64});
  backward(mul(x, frozen));
  EXPECT_EQ(values(x.grad()), (Doubles{5}));
  EXPECT_FALSE(frozen.grad());
}

TEST(Backward, RefusesWhatHasNoGradient) {
  const Tensor x = leaf({1, 2});
  expect_refused<ValueError>([&] { backward(square(x)); },
                             "shape (2,) needs a cotangent of that shape");
  expect_refused<ValueError>([&] { backward(sum(x.detach())); }, "requires no gradient");
  expect_refused<ShapeError>([&] { backward(square(x), ones({3}, {DType::float64})); },
                             "a cotangent float64(3,) for a root float64(2,)");
  expect_refused<ShapeError>([&] { backward(square(x), ones({2})); },
                             "a cotangent float32(2,) for a root float64(2,)");
  const Tensors roots = {sum(x), sum(x)};
  const Tensors one = {Tensor()};
  expect_refused<ValueError>([&] { backward(roots, one); }, "2 roots and 1 cotangents");
  expect_refused<DTypeError>([] { arange(3, {DType::int64}).requires_grad_(); },
                             "only floats have gradients");
  expect_refused<ValueError>([&] { square(x).requires_grad_(); }, "only leaves");
}

TEST(Grad, OfLeavesAndComputedTensorsChangesNoGrad) {
  const Tensor x = leaf({1, 2});
  const Tensor y = leaf({3, 4});
  const Tensor middle = mul(x, y);
  const Tensor loss = sum(square(middle));
  const Tensors gradients = grad(Tensors{loss}, Tensors{x, middle});
  EXPECT_EQ(values(gradients[0]), (Doubles{2 * 3 * 3, 2 * 8 * 4}));
  EXPECT_EQ(values(gradients[1]), (Doubles{6, 16}));
  EXPECT_FALSE(x.grad());
  EXPECT_FALSE(y.grad());
}

TEST(Grad, OfAnInputTwiceAndOfARoot) {
  const Tensor x = leaf({3});
  const Tensor y = square(x);
  const Tensors gradients = grad(Tensors{y}, Tensors{x, x, y});
  EXPECT_EQ(values(gradients[0]), (Doubles{6}));
  EXPECT_EQ(values(gradients[1]), (Doubles{6}));
  EXPECT_EQ(values(gradients[2]), (Doubles{1}));
}

TEST(Grad, RunsOnlyWhatLeadsToTheInputs) {
  const Tensor x = leaf({2});
  const Tensor w = leaf({3});
  int calls = 0;
  const auto count = [&](const Tensor&) {
    ++calls;
    return Tensor();
  };
  register_hook(w, count);
  const Tensor aside = exp(w);
  register_hook(aside, count);
  const Tensor middle = square(x);
  const Tensor y = mul(middle, aside);
  EXPECT_NEAR(values(grad(Tensors{y}, Tensors{middle}, {}, {.retain_graph = true})[0])[0],
              std::exp(3.0), 1e-12);
  EXPECT_EQ(calls, 0);
  backward(y);  // nothing below `middle` or beside it was released
  EXPECT_EQ(calls, 2);
  // What does not lead to an input may even have been released.
  const Tensor z = mul(square(x), aside);
  EXPECT_NEAR(values(grad(Tensors{z}, Tensors{x})[0])[0], 4 * std::exp(3.0), 1e-11);
}

TEST(Grad, TellsUnusedInputs) {
  const Tensor x = leaf({3});
  const Tensor unused = leaf({3});
  const Tensor y = square(x);
  expect_refused<ValueError>(
      [&] {
        grad(Tensors{y}, Tensors{x, unused}, {}, {.retain_graph = true});
      },
      "no output depends on input 1");
  const Tensors gradients = grad(Tensors{y}, Tensors{x, unused}, {}, {.allow_unused = true});
  EXPECT_TRUE(gradients[0]);
  EXPECT_FALSE(gradients[1]);
  expect_refused<ValueError>([&] { grad(Tensors{y}, Tensors{}); }, "no inputs");
  expect_refused<ValueError>([&] { grad(Tensors{y}, Tensors{y.detach()}); },
                             "an input requires no gradient");
}

TEST(Grad, OfGrad) {
  const Tensor x = leaf({2});
  const Tensor y = pow(x, 4);
  const Tensor first = grad(Tensors{y}, Tensors{x}, {}, {.create_graph = true})[0];
  EXPECT_TRUE(first.requires_grad());
  const Tensor second = grad(Tensors{first}, Tensors{x}, {}, {.create_graph = true})[0];
  const Tensor third = grad(Tensors{second}, Tensors{x})[0];
  EXPECT_NEAR(values(first)[0], 4 * 8, 1e-12);
  EXPECT_NEAR(values(second)[0], 12 * 4, 1e-12);
  EXPECT_NEAR(values(third)[0], 24 * 2, 1e-12);
  EXPECT_FALSE(third.requires_grad());
}

TEST(Grad, OfGradThroughASavedOutput) {
  const Tensor x = leaf({0.3});
  const Tensor y = exp(x);  // its gradient is computed from y itself
  const Tensor first = grad(Tensors{y}, Tensors{x}, {}, {.create_graph = true})[0];
  EXPECT_NEAR(values(grad(Tensors{first}, Tensors{x})[0])[0], std::exp(0.3), 1e-12);
}

TEST(Grad, APenaltyOnAGradientReachesTheLeaves) {
  const Tensor x = leaf({1.5});
  const Tensor w = leaf({2});
  const Tensor y = mul(w, square(x));
  const Tensor slope = grad(Tensors{y}, Tensors{x}, {}, {.create_graph = true})[0];  // 2wx
  backward(square(slope));                                                           // 4w²x²
  EXPECT_NEAR(values(w.grad())[0], 8 * 2 * 2.25, 1e-12);
  EXPECT_NEAR(values(x.grad())[0], 8 * 4 * 1.5, 1e-12);
}

TEST(NoGrad, RecordsNothing) {
  const Tensor x = leaf({1, 2});
  EXPECT_TRUE(grad_enabled());
  {
    const NoGradGuard no_grad;
    EXPECT_FALSE(grad_enabled());
    EXPECT_FALSE(square(x).requires_grad());
    const GradModeGuard again(true);
    EXPECT_TRUE(square(x).requires_grad());
  }
  EXPECT_TRUE(grad_enabled());
}

TEST(NoGrad, DetachCutsOff) {
  const Tensor x = leaf({3});
  const Tensor y = mul(x, square(x).detach());
  backward(y);
  EXPECT_EQ(values(x.grad()), (Doubles{9}));
  EXPECT_TRUE(x.detach().is_leaf());
}

TEST(NoGrad, ComparisonsAndIntegersAreOutside) {
  const Tensor x = leaf({1, -1});
  EXPECT_FALSE(gt(x, 0).requires_grad());
  EXPECT_FALSE(cast(x, DType::int64).requires_grad());
}

TEST(Hooks, RunInOrderReplaceAndComeOff) {
  const Tensor x = leaf({1});
  std::vector<int> order;
  const auto remove_first = register_hook(x, [&](const Tensor& gradient) {
    order.push_back(1);
    return mul(gradient, 10);
  });
  register_hook(x, [&](const Tensor& gradient) {
    order.push_back(2);
    EXPECT_EQ(values(gradient).size(), 1U);
    return Tensor();
  });
  backward(mul(x, 3));
  EXPECT_EQ(order, (std::vector<int>{1, 2}));
  EXPECT_EQ(values(x.grad()), (Doubles{30}));
  remove_first();
  remove_first();
  order.clear();
  backward(mul(x, 3));
  EXPECT_EQ(order, (std::vector<int>{2}));
  EXPECT_EQ(values(x.grad()), (Doubles{33}));
}

TEST(Hooks, SeeTheCompleteGradientBeforeItFlowsOn) {
  const Tensor x = leaf({2});
  const Tensor y = mul(x, 3);
  Doubles seen;
  register_hook(y, [&](const Tensor& gradient) {
    for (const double value : values(gradient)) seen.push_back(value);
    return mul(gradient, -1);
  });
  backward(add(mul(y, 4), mul(y, 5)));
  EXPECT_EQ(seen, (Doubles{9}));
  EXPECT_EQ(values(x.grad()), (Doubles{-27}));
}

TEST(Hooks, MayRemoveThemselves) {
  const Tensor x = leaf({1});
  int calls = 0;
  std::function<void()> remove;
  remove = register_hook(x, [&](const Tensor&) {
    ++calls;
    remove();
    return Tensor();
  });
  backward(mul(x, 2));
  backward(mul(x, 2));
  EXPECT_EQ(calls, 1);
}

TEST(Hooks, AreRefusedWhereTheyDoNotFit) {
  const Tensor x = leaf({1});
  expect_refused<ValueError>([&] { register_hook(x.detach(), [](const Tensor& g) { return g; }); },
                             "register_hook on a tensor that requires no gradient");
  register_hook(x, [](const Tensor&) { return ones({2}, {DType::float64}); });
  expect_refused<ShapeError>([&] { backward(mul(x, 2)); },
                             "a gradient hook returned float64(2,) for a gradient float64(1,)");
}

TEST(InPlace, ChangingASavedOutputIsNoticed) {
  const Tensor x = leaf({1, 2});
  Tensor y = exp(x);
  y.add_(ones({2}, {DType::float64}));
  expect_refused<ValueError>([&] { backward(sum(y)); },
                             "backward of [exp] needs its output '0', which was changed in place");
}

TEST(InPlace, ChangingASavedOperandIsNoticed) {
  const Tensor x = leaf({1, 2});
  Tensor factor = ones({2}, {DType::float64});
  const Tensor y = mul(x, factor);
  factor.zero_();
  expect_refused<ValueError>(
      [&] { backward(sum(y)); },
      "backward of [mul] needs its operand 'other', which was changed in place");
}

TEST(InPlace, ChangingADetachedHandleIsNoticed) {
  const Tensor x = leaf({1, 2});
  const Tensor y = square(x);
  x.detach().add_(ones({2}, {DType::float64}));
  expect_refused<ValueError>([&] { backward(sum(y)); },
                             "backward of [square] needs its operand 'input'");
}

TEST(InPlace, WhatIsNotSavedMayChange) {
  const Tensor x = leaf({1, 2});
  Tensor y = add(x, x);
  y.mul_(3);
  y.add_(x);
  backward(sum(y));
  EXPECT_EQ(values(x.grad()), (Doubles{7, 7}));
}

TEST(InPlace, AnEarlierUseIsUnaffectedByALaterChange) {
  const Tensor x = leaf({1, 2});
  Tensor y = add(x, 1);
  const Tensor before = mul(y, 2);
  y.mul_(10);
  const Tensor after = mul(y, 2);
  backward(sum(add(before, after)));
  EXPECT_EQ(values(x.grad()), (Doubles{22, 22}));
}

TEST(InPlace, ALeafIsRefused) {
  Tensor x = leaf({1, 2});
  expect_refused<ValueError>([&] { x.add_(x); },
                             "a leaf that requires a gradient was changed in place");
  const NoGradGuard no_grad;
  x.add_(x);
  EXPECT_EQ(values(x), (Doubles{2, 4}));
}

TEST(InPlace, AViewIsRefused) {
  const Tensor x = leaf({1, 2});
  const Tensor y = mul(x, 2);
  Tensor part = narrow(y, 0, 0, 1);
  expect_refused<ValueError>([&] { part.mul_(2); }, "a view of a tensor with a gradient");
}

TEST(InPlace, AViewOfAChangedTensorIsRefused) {
  const Tensor x = leaf({1, 2});
  Tensor y = mul(x, 2);
  const Tensor part = narrow(y, 0, 0, 1);
  y.mul_(3);
  expect_refused<ValueError>([&] { mul(part, 2); },
                             "[mul] an operand was changed in place through another tensor");
}

TEST(InPlace, CopyIntoAConstantCarriesTheGradient) {
  const Tensor x = leaf({1, 2});
  Tensor buffer = zeros({2}, {DType::float64});
  buffer.copy_(mul(x, 5));
  EXPECT_TRUE(buffer.requires_grad());
  backward(sum(square(buffer)));
  EXPECT_EQ(values(x.grad()), (Doubles{50, 100}));
}

TEST(InPlace, CopyIntoAViewOfAConstantIsRefused) {
  const Tensor x = leaf({1, 2});
  const Tensor buffer = zeros({4}, {DType::float64});
  Tensor part = narrow(buffer, 0, 0, 2);
  expect_refused<ValueError>([&] { part.copy_(x); }, "memory that several constants share");
  const NoGradGuard no_grad;
  part.copy_(x);
  EXPECT_EQ(values(buffer), (Doubles{1, 2, 0, 0}));
}

TEST(Chain, AHundredThousandOpsDeep) {
  constexpr int kOps = 100000;
  const Tensor x = leaf({1});
  Tensor y = x;
  for (int i = 0; i < kOps; ++i) y = mul(y, 1.0 + 1.0 / (1 + i));  // telescopes to kOps + 1
  backward(y);
  EXPECT_NEAR(values(x.grad())[0], kOps + 1, 1e-4);
}

TEST(Chain, IsDestroyedWithoutRecursion) {
  const Tensor x = leaf({1});
  Tensor by_edges = x;
  Tensor by_operands = x;
  Tensor by_outputs = x;
  for (int i = 0; i < 100000; ++i) {
    by_edges = neg(by_edges);
    by_operands = mul(by_operands, by_operands);  // both saved operands lead to the same node
    by_outputs = tanh(by_outputs);
  }
  by_edges = by_operands = by_outputs = Tensor();
  SUCCEED();
}

TEST(Chain, AReleasedChainIsDestroyedWithoutRecursion) {
  const Tensor x = leaf({1});
  Tensor y = x;
  for (int i = 0; i < 100000; ++i) y = mul(y, y);
  backward(y, {}, {.retain_graph = true});
  backward(y);
  y = Tensor();
  EXPECT_EQ(values(x.grad()).size(), 1U);
}

}  // namespace
}  // namespace tenon::test
