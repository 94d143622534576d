// vjps with symbolic sizes: each gives the operand's dtype and shape by expression, and assumes
// nothing about a size that its forward call did not.
#include <gtest/gtest.h>

#include <functional>

#include "autograd/autograd.h"
#include "tensor/functional.h"
#include "tensor/interpreter.h"
#include "tests/support/infer_only.h"

namespace tenon::test {
namespace {

struct Sample {
  const char* name;
  std::function<Tensor(const Tensor& x, const Tensor& index)> f;  // (b, t, 6), (n,)
};

const Sample kSamples[] = {
    {"sum", [](const Tensor& x, const Tensor&) { return sum(x, {1}); }},
    {"sum of all", [](const Tensor& x, const Tensor&) { return sum(x); }},
    {"mean",
     [](const Tensor& x, const Tensor&) {
       return mean(x, {0, 1});
     }},
    {"amax", [](const Tensor& x, const Tensor&) { return amax(x, {1}); }},
    {"amin", [](const Tensor& x, const Tensor&) { return amin(x, {-1}, true); }},
    {"var",
     [](const Tensor& x, const Tensor&) {
       return var(x, {0, 1});
     }},
    {"reshape",
     [](const Tensor& x, const Tensor&) {
       return reshape(x, {-1, x.size(2)});
     }},
    {"view",
     [](const Tensor& x, const Tensor&) {
       return view(x, {x.size(0), x.size(1), 2, 3});
     }},
    {"permute",
     [](const Tensor& x, const Tensor&) {
       return permute(x, {2, 0, 1});
     }},
    {"transpose", [](const Tensor& x, const Tensor&) { return transpose(x, 0, 2); }},
    {"expand",
     [](const Tensor& x, const Tensor&) {
       return expand(unsqueeze(x, 1), {-1, 4, -1, -1});
     }},
    {"narrow", [](const Tensor& x, const Tensor&) { return narrow(x, 2, 2, 3); }},
    {"squeeze", [](const Tensor& x, const Tensor&) { return squeeze(narrow(x, 2, 1, 1), 2); }},
    {"contiguous", [](const Tensor& x, const Tensor&) { return contiguous(transpose(x, 0, 1)); }},
    {"cat",
     [](const Tensor& x, const Tensor&) {
       return cat({x, x}, 1);
     }},
    {"stack",
     [](const Tensor& x, const Tensor&) {
       return stack({x, x}, 1);
     }},
    {"chunk", [](const Tensor& x, const Tensor&) { return chunk(x, 3, 2)[1]; }},
    {"select", [](const Tensor& x, const Tensor&) { return select(x, 2, -1); }},
    {"tril", [](const Tensor& x, const Tensor&) { return tril(x); }},
    {"cumsum", [](const Tensor& x, const Tensor&) { return cumsum(x, 1); }},
    {"index_select", [](const Tensor& x, const Tensor& i) { return index_select(x, 1, i); }},
    {"gather",
     [](const Tensor& x, const Tensor& i) {
       return gather(select(x, 2, 0), 1, unsqueeze(i, 0).expand({x.size(0), -1}));
     }},
    {"embedding", [](const Tensor& x, const Tensor& i) { return embedding(i, select(x, 2, 0)); }},
    {"a row broadcast", [](const Tensor& x, const Tensor&) { return x * select(x, 0, 0); }},
    {"a column broadcast", [](const Tensor& x, const Tensor&) { return x / narrow(x, 2, 1, 1); }},
    {"both broadcast",
     [](const Tensor& x, const Tensor&) {
       return maximum(narrow(x, 0, 0, 1), narrow(x, 1, 0, 1)) - minimum(x, select(x, 0, 0));
     }},
    {"powers", [](const Tensor& x, const Tensor&) { return pow(pow(x, x), 3); }},
    {"numbers", [](const Tensor& x, const Tensor&) { return (2 * x - 1) / x.size(1) + 3; }},
    {"where",
     [](const Tensor& x, const Tensor&) {
       return masked_fill(where(gt(x, 0), x, select(x, 0, 0)), lt(select(x, 0, 1), 0), 1);
     }},
    {"elementary functions",
     [](const Tensor& x, const Tensor&) {
       return log(sqrt(rsqrt(reciprocal(square(exp(sin(cos(neg(abs(x))))))))));
     }},
    {"activations",
     [](const Tensor& x, const Tensor&) {
       const Tensor y = relu(silu(gelu(gelu(x, Approximate::tanh))));
       return softplus(tanh(sigmoid(erf(y))));
     }},
    {"cast", [](const Tensor& x, const Tensor&) { return cast(x, DType::float64); }},
};

TEST(SymbolicGradients, KeepShapesAndAddNoGuards) {
  for (const Sample& sample : kSamples) {
    SCOPED_TRACE(sample.name);
    InferOnly interpreter;
    const InterpreterGuard guard(interpreter);
    const auto guards = std::make_shared<GuardList>();
    const Dim b = Dim::symbol("b", 5, guards);
    const Dim t = Dim::symbol("t", 7, guards);
    const Dim n = Dim::symbol("n", 4, guards);
    Tensor x = Tensor::symbolic({DType::bfloat16, {b, t, 6}, kCpu});
    x.requires_grad_();
    const Tensor index = Tensor::symbolic({DType::int64, {n}, kCpu});
    const Tensor y = sample.f(x, index);
    ASSERT_TRUE(y.requires_grad());
    const std::size_t before = guards->guards.size();
    const Tensor g = Tensor::symbolic(y.spec());
    const Tensor gradient = grad(std::span(&y, 1), std::span(&x, 1), std::span(&g, 1)).at(0);
    EXPECT_EQ(gradient.dtype(), DType::bfloat16);
    EXPECT_TRUE(gradient.shape().same_as(x.shape())) << gradient.shape().to_string();
    for (std::size_t i = before; i < guards->guards.size(); ++i) {
      ADD_FAILURE() << "assumes " << guards->guards[i].to_string();
    }
  }
}

}  // namespace
}  // namespace tenon::test
