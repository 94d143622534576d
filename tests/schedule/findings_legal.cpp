// Right rewrites of values that a check by chosen values and sizes might stop.
#include <cmath>

#include "tests/schedule/findings.h"

namespace tenon::test {
namespace findings_legal {

Tensor number(double value) { return full({}, value); }

/// `part` of what `f` makes of the input becomes `other`.
template <class F, class Part, class Other>
Schedule behind(F f, Part part, Other other) {
  return rewritten(function_model([f, part](const Tensor& x) { return tanh(part(f(x))); }),
                   {randn({3, 8})}, part, other);
}
template <class F, class Other>
Schedule spelled(F f, Other other) {
  return recomputed({randn({3, 8})}, f, other);
}

/// A model whose lengths are multiples of 16, or 32 alone.
template <bool kFixed>
struct Guarded : nn::Module {
  Tensor forward(const Tensor& x) const {
    const bool allowed = kFixed ? x.size(1) == 32 : x.size(1) % 16 == 0;
    if (!allowed) throw ValueError("another length is needed");
    return tanh(mean(x, {1}));
  }
};

const std::vector<Finding> kProven = {
    {"logarithm of a softmax",
     [] {
       return spelled([](const Tensor& x) { return log(softmax(x, -1)); },
                      [](const Tensor& x) { return log_softmax(x, -1); });
     }},
    {"logarithm of a softmax behind something",
     [] {
       return behind([](const Tensor& x) { return x * 0.5; },
                     [](const Tensor& x) { return log(softmax(x, -1)); },
                     [](const Tensor& x) { return log_softmax(x, -1); });
     }},
    {"logarithm of a variance",
     [] {
       return spelled([](const Tensor& x) { return log(var(x, {-1}, 0) + 1e-5); },
                      [](const Tensor& x) {
                        const Tensor centred = x - mean(x, {-1}, true);
                        return log(mean(square(centred), {-1}) + 1e-5);
                      });
     }},
    {"half the logarithm of a variance",
     [] {
       return behind([](const Tensor& x) { return var(x, {-1}, 0) + 1e-3; },
                     [](const Tensor& v) { return log(v) * 0.5; },
                     [](const Tensor& v) { return log(sqrt(v)); });
     }},
    {"root of a number above 0.1",
     [] {
       return behind([](const Tensor& x) { return relu(x) + 0.1; },
                     [](const Tensor& y) { return sqrt(y); },
                     [](const Tensor& y) { return pow(y, 0.5); });
     }},
    {"root of a square guarded by relu",
     [] {
       return behind([](const Tensor& x) { return relu(x) + 0.1; },
                     [](const Tensor& y) { return sqrt(y * y); },
                     [](const Tensor& y) { return y * 1.0; });
     }},
    {"product of roots guarded by relu",
     [] {
       return behind([](const Tensor& x) { return relu(x) + 0.1; },
                     [](const Tensor& y) { return sqrt(y) * sqrt(y); },
                     [](const Tensor& y) { return y * 1.0; });
     }},
    {"reciprocal root guarded by a square",
     [] {
       return behind([](const Tensor& x) { return square(x) + 1e-3; },
                     [](const Tensor& y) { return rsqrt(y); },
                     [](const Tensor& y) { return reciprocal(sqrt(y)); });
     }},
    {"relu of an exponential",
     [] {
       return behind([](const Tensor& x) { return exp(x); },
                     [](const Tensor& y) { return relu(y); },
                     [](const Tensor& y) { return y * 1.0; });
     }},
    {"absolute value of a softmax",
     [] {
       return behind([](const Tensor& x) { return softmax(x, -1); },
                     [](const Tensor& p) { return abs(p); },
                     [](const Tensor& p) { return p * 1.0; });
     }},
    {"absolute value of a variance",
     [] {
       return behind([](const Tensor& x) { return var(x, {-1}, 0) + 1e-5; },
                     [](const Tensor& v) { return abs(v); },
                     [](const Tensor& v) { return v * 1.0; });
     }},
    {"absolute value of a square",
     [] {
       return behind([](const Tensor& x) { return square(x) + 1e-3; },
                     [](const Tensor& y) { return abs(y); },
                     [](const Tensor& y) { return y * 1.0; });
     }},
    {"a cut of probabilities above 2",
     [] {
       return recomputed(
           {randn({3, 8})},
           [](const Tensor& x) {
             const Tensor p = softmax(x, -1);
             return masked_fill(p, gt(p, 2), 0);
           },
           [](const Tensor& x) { return softmax(x, -1); });
     }},
    {"a cut of tanh above 1.5",
     [] {
       return recomputed(
           {randn({3, 8})},
           [](const Tensor& x) {
             const Tensor t = tanh(x);
             return masked_fill(t, gt(abs(t), 1.5), 0);
           },
           [](const Tensor& x) { return tanh(x); });
     }},
    {"softmax without its maximum behind a soft cap of 10",
     [] {
       return spelled([](const Tensor& x) { return softmax(tanh(x / 10.0) * 10.0, -1); },
                      [](const Tensor& x) {
                        const Tensor numerators = exp(tanh(x / 10.0) * 10.0);
                        return numerators / sum(numerators, {-1}, true);
                      });
     }},
    {"mean divided by the length that a guard fixes",
     [] {
       return rewritten(
           nn::make<Guarded<true>>(), {zeros({2, 32, 3})},
           [](const Tensor& x) { return mean(x, {1}); },
           [](const Tensor& x) { return sum(x, {1}) / 32.0; });
     }},
    {"mean divided by a length of multiples of 16",
     [] {
       return rewritten(
           nn::make<Guarded<false>>(), {zeros({2, 32, 3})},
           [](const Tensor& x) { return mean(x, {1}); },
           [](const Tensor& x) { return sum(x, {1}) / x.size(1); });
     }},
    {"behind a logarithm of the input",
     [] {
       return behind([](const Tensor& x) { return layer_norm(log(x), {8}); },
                     [](const Tensor& y) { return relu(y) * 2.0; },
                     [](const Tensor& y) { return relu(y) + relu(y); });
     }},
};

const std::vector<Finding> kSpelled = {
    {"equal to 3, the other way round",
     [] {
       return spelled([](const Tensor& x) { return where(eq(x, 3.0), x * 2.0, x); },
                      [](const Tensor& x) { return where(ne(x, 3.0), x, x * 2.0); });
     }},
    {"beyond 1e4, in two steps",
     [] {
       return spelled([](const Tensor& x) { return masked_fill(x, gt(abs(x), 1e4), 0); },
                      [](const Tensor& x) {
                        return masked_fill(masked_fill(x, gt(x, 1e4), 0), lt(x, -1e4), 0);
                      });
     }},
    {"above 100, the other way round",
     [] {
       return spelled([](const Tensor& x) { return where(gt(x, 100), x * 0.5, x); },
                      [](const Tensor& x) { return where(le(x, 100), x, x * 0.5); });
     }},
    {"at least 1, the other way round",
     [] {
       return spelled([](const Tensor& x) { return where(ge(x, 1), -x, x); },
                      [](const Tensor& x) { return where(lt(x, 1), x, -x); });
     }},
    {"a clamp in the other order",
     [] {
       return spelled([](const Tensor& x) { return minimum(maximum(x, number(-6)), number(6)); },
                      [](const Tensor& x) { return maximum(minimum(x, number(6)), number(-6)); });
     }},
    {"a hard tanh in the other order",
     [] {
       return spelled(
           [](const Tensor& x) {
             return where(gt(x, 30), number(30), where(lt(x, -30), number(-30), x));
           },
           [](const Tensor& x) {
             return where(lt(x, -30), number(-30), where(gt(x, 30), number(30), x));
           });
     }},
    {"a hard sigmoid, scaled before",
     [] {
       return spelled(
           [](const Tensor& x) { return minimum(relu(x + 3.0), number(6)) / 6.0; },
           [](const Tensor& x) { return minimum(relu(x + 3.0), number(6)) * (1.0 / 6.0); });
     }},
    {"softplus of another scale",
     [] {
       return spelled([](const Tensor& x) { return softplus(x, 2); },
                      [](const Tensor& x) { return softplus(x * 2.0) / 2.0; });
     }},
    {"truncation, of halves doubled",
     [] {
       return spelled(
           [](const Tensor& x) { return cast(cast(x * 4.0, DType::int64), DType::float32); },
           [](const Tensor& x) {
             return cast(cast((x * 2.0) * 2.0, DType::int64), DType::float32);
           });
     }},
    {"gelu written out",
     [] {
       return behind([](const Tensor& x) { return x * 2.0; },
                     [](const Tensor& x) { return x * 0.5 * (erf(x / std::sqrt(2.0)) + 1.0); },
                     [](const Tensor& x) { return gelu(x); });
     }},
    {"silu written out",
     [] {
       return behind([](const Tensor& x) { return x * 2.0; },
                     [](const Tensor& x) { return x * sigmoid(x); },
                     [](const Tensor& x) { return silu(x); });
     }},
    {"softmax written out",
     [] {
       return spelled(
           [](const Tensor& x) {
             const Tensor numerators = exp(x - detach(amax(x, {-1}, true)));
             return numerators / sum(numerators, {-1}, true);
           },
           [](const Tensor& x) { return softmax(x, -1); });
     }},
    {"layer norm written out",
     [] {
       return spelled(
           [](const Tensor& x) {
             const Tensor centred = x - mean(x, {-1}, true);
             return centred * rsqrt(mean(square(centred), {-1}, true) + 1e-5);
           },
           [](const Tensor& x) { return layer_norm(x, Tensor(), Tensor(), 1e-5); });
     }},
    {"variance in two passes",
     [] {
       return spelled([](const Tensor& x) { return var(x, {-1}, 0); },
                      [](const Tensor& x) { return mean(square(x - mean(x, {-1}, true)), {-1}); });
     }},
    {"mean by the sum",
     [] {
       return spelled([](const Tensor& x) { return mean(x, {-1}); },
                      [](const Tensor& x) { return sum(x, {-1}) / x.size(-1); });
     }},
    {"a bias beside -1e9",
     [] {
       return recomputed(
           {randn({3, 8}), example_flags({3, 8})},
           [](const Tensor& x, const Tensor& hidden) {
             return masked_fill(x + 0.05, hidden, -1e9);
           },
           [](const Tensor& x, const Tensor& hidden) {
             return masked_fill((x * 20.0 + 1.0) / 20.0, hidden, -1e9);
           });
     }},
};

}  // namespace findings_legal

std::vector<Finding> legal_by_proof() { return findings_legal::kProven; }
std::vector<Finding> legal_spellings() { return findings_legal::kSpelled; }

}  // namespace tenon::test
