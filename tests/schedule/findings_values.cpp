// Wrong rewrites that show at values which the model's constants point to, that NaN or one large number
// hides, and that drawn inputs do not bring the bound kernels to.
#include <cmath>

#include "tests/schedule/findings.h"

namespace tenon::test {
namespace findings_values {

Tensor clamped(const Tensor& x, double low, double high) {
  return minimum(maximum(x, full({}, low)), full({}, high));
}
Tensor unchanged(const Tensor& x) { return x * 1.0; }
Schedule without(Tensor (*function)(const Tensor&)) {
  return recomputed({randn({3, 4})}, function, unchanged);
}

const std::vector<Finding> kConstants = {
    {"equal to 3 dropped",
     [] { return without([](const Tensor& x) { return where(eq(x, 3.0), x * 2.0, x); }); }},
    {"equal to -7 dropped",
     [] { return without([](const Tensor& x) { return masked_fill(x, eq(x, -7.0), 0); }); }},
    {"equal to 0.1 dropped",
     [] { return without([](const Tensor& x) { return masked_fill(x, eq(x, 0.1), 0); }); }},
    {"equal to 65504 dropped",
     [] { return without([](const Tensor& x) { return masked_fill(x, eq(x, 65504.0), 0); }); }},
    {"beyond 1e4 dropped",
     [] { return without([](const Tensor& x) { return masked_fill(x, gt(abs(x), 1e4), 0); }); }},
    {"above 100 dropped",
     [] { return without([](const Tensor& x) { return where(gt(x, 100), x * 0.5, x); }); }},
    {"below -100 dropped",
     [] { return without([](const Tensor& x) { return where(lt(x, -100), x * 0.5, x); }); }},
    {"within 1e-5 of zero dropped",
     [] { return without([](const Tensor& x) { return masked_fill(x, lt(abs(x), 1e-5), 0); }); }},
    {"between 5 and 5.5 dropped",
     [] {
       return without([](const Tensor& x) { return where(gt(x, 5), where(lt(x, 5.5), -x, x), x); });
     }},
    {"above 100 times a factor",
     [] { return without([](const Tensor& x) { return where(gt(x * 0.01, 1000), x * 0.5, x); }); }},
    {"at least 1 becomes above 1",
     [] {
       return recomputed(
           {randn({3, 4})}, [](const Tensor& x) { return where(ge(x, 1), -x, x); },
           [](const Tensor& x) { return where(gt(x, 1), -x, x); });
     }},
    {"at least 40 becomes above 40",
     [] {
       return recomputed(
           {randn({3, 4})}, [](const Tensor& x) { return where(ge(x, 40), -x, x); },
           [](const Tensor& x) { return where(gt(x, 40), -x, x); });
     }},
    {"clamped with a gradient outside",
     [] {
       return recomputed(
           {randn({3, 4})}, [](const Tensor& x) { return clamped(x, -6, 6); },
           [](const Tensor& x) { return x + detach(clamped(x, -6, 6) - x); });
     }},
    {"clamped at 1000 with a gradient outside",
     [] {
       return recomputed(
           {randn({3, 4})}, [](const Tensor& x) { return clamped(x, -1000, 1000); },
           [](const Tensor& x) { return x + detach(clamped(x, -1000, 1000) - x); });
     }},
    {"clamp at 50 dropped",
     [] { return without([](const Tensor& x) { return clamped(x, -50, 50); }); }},
    {"clamp at 50 becomes one at 60",
     [] {
       return recomputed(
           {randn({3, 4})}, [](const Tensor& x) { return clamped(x, -50, 50); },
           [](const Tensor& x) { return clamped(x, -60, 60); });
     }},
    {"clamp without its lower end",
     [] {
       return recomputed(
           {randn({3, 4})}, [](const Tensor& x) { return clamped(x, -9, 9); },
           [](const Tensor& x) { return minimum(x, full({}, 9)); });
     }},
    {"softplus of another threshold",
     [] {
       return recomputed(
           {randn({3, 4})}, [](const Tensor& x) { return softplus(x); },
           [](const Tensor& x) { return softplus(x, 1, 8); });
     }},
    {"softplus' threshold against x, not beta times x",
     [] {
       return recomputed(
           {randn({3, 4})}, [](const Tensor& x) { return softplus(x, 0.25, 10); },
           [](const Tensor& x) { return where(gt(x, 10), x, softplus(x, 0.25, 1000)); });
     }},
    {"hard tanh at 30 dropped",
     [] {
       return without([](const Tensor& x) {
         return where(gt(x, 30), full({}, 30), where(lt(x, -30), full({}, -30), x));
       });
     }},
    {"hard sigmoid without its upper end",
     [] {
       return recomputed(
           {randn({3, 4})}, [](const Tensor& x) { return clamped(x + 3.0, 0, 6) / 6.0; },
           [](const Tensor& x) { return relu(x + 3.0) / 6.0; });
     }},
};

/// `part` of what `f` makes of the input becomes `other`.
template <class F, class Part, class Other>
Schedule behind(F f, Part part, Other other, const Shape& shape = {3, 8}) {
  return rewritten(function_model([f, part](const Tensor& x) { return part(f(x)); }),
                   {randn(shape)}, part, other);
}
const auto relu_part = [](const Tensor& x) { return relu(x); };
const auto gelu_part = [](const Tensor& x) { return gelu(x); };
const auto zero_part = [](const Tensor& x) { return x * 0.0; };

/// All of a model that is finite for some inputs only, with another activation at its end.
template <class F>
Schedule whole_with_gelu(F f) {
  return recomputed(
      {randn({3, 8})}, [f](const Tensor& x) { return relu(f(x)); },
      [f](const Tensor& x) { return gelu(f(x)); });
}

const std::vector<Finding> kHardlyFinite = {
    {"a norm of a logarithm",
     [] { return whole_with_gelu([](const Tensor& x) { return layer_norm(log(x), {8}); }); }},
    {"a norm of a root",
     [] { return whole_with_gelu([](const Tensor& x) { return layer_norm(sqrt(x), {8}); }); }},
    {"the sum of a power",
     [] { return whole_with_gelu([](const Tensor& x) { return sum(pow(x, 0.5), {1}) - 3.0; }); }},
    {"a norm of a logarithm above 100",
     [] {
       return whole_with_gelu([](const Tensor& x) { return layer_norm(log(x - 100.0), {8}); });
     }},
    {"the root of a negative number",
     [] { return whole_with_gelu([](const Tensor& x) { return sqrt(square(x) * -1.0 - 1.0); }); }},
};

const std::vector<Finding> kNeverFinite = {
    {"the root of a negative number",
     [] {
       return recomputed(
           {randn({3, 8})},
           [](const Tensor& x) { return relu(sqrt(square(x) * -1.0 - 1.0)) * 2.0; },
           [](const Tensor& x) { return relu(sqrt(-1.0 - square(x))) * 2.0; });
     }},
    {"the logarithm of a negative number",
     [] {
       return recomputed(
           {randn({3, 8})}, [](const Tensor& x) { return log(-exp(x)) - 1.0; },
           [](const Tensor& x) { return log(exp(x) * -1.0) - 1.0; });
     }},
};

/// A padding or attention mask as an input: 1 counts.
template <class Keep>
Schedule mask_ignored(const Tensor& mask, Keep keep) {
  return recomputed(
      {randn({3, 8}), mask}, [keep](const Tensor& x, const Tensor& m) { return keep(x, m); },
      [](const Tensor& x, const Tensor&) { return x * 1.0; });
}

/// (batch, n, d) with a mask (batch, n) of numbers, 1 for keys that count.
Tensor padded_attention(const Tensor& x, const Tensor& mask) {
  return attention_without(x, eq(mask, 0).unsqueeze(1));
}

/// Logits where a bool input hides some, and the sum of the others.
struct MaskedLogits : nn::Module {
  std::vector<Tensor> forward(const Tensor& x, const Tensor& hidden) const {
    const Tensor logits = masked_fill(x, hidden, -3.4e38);
    return {logits, relu(logits)};
  }
};

const std::vector<Finding> kBehindOthers = {
    {"behind a logarithm, relu becomes gelu",
     [] { return behind([](const Tensor& x) { return log(x); }, relu_part, gelu_part); }},
    {"behind a norm of a logarithm, relu becomes gelu",
     [] {
       return behind([](const Tensor& x) { return layer_norm(log(x), {8}); }, relu_part, gelu_part);
     }},
    {"behind a norm of a logarithm, relu becomes zero",
     [] {
       return behind([](const Tensor& x) { return layer_norm(log(x), {8}); }, relu_part, zero_part);
     }},
    {"behind a norm of a root, relu becomes gelu",
     [] {
       return behind([](const Tensor& x) { return layer_norm(sqrt(x), {8}); }, relu_part,
                     gelu_part);
     }},
    {"behind the mean of a root, relu becomes zero",
     [] {
       return behind([](const Tensor& x) { return mean(sqrt(x), {1}) - 1.0; }, relu_part,
                     zero_part);
     }},
    {"behind the sum of a power, relu becomes gelu",
     [] {
       return behind([](const Tensor& x) { return sum(pow(x, 0.5), {1}) - 3.0; }, relu_part,
                     gelu_part);
     }},
    {"behind the sum of a power, relu becomes zero",
     [] {
       return behind([](const Tensor& x) { return sum(pow(x, 0.5), {1}) - 3.0; }, relu_part,
                     zero_part);
     }},
    {"behind a softmax of a logarithm, relu becomes zero",
     [] {
       return behind([](const Tensor& x) { return softmax(log(x), -1) - 0.1; }, relu_part,
                     zero_part);
     }},
    {"logits lose a bias beside -1e9",
     [] {
       return recomputed(
           {randn({3, 8}), example_flags({3, 8})},
           [](const Tensor& x, const Tensor& hidden) {
             return masked_fill(x + 0.05, hidden, -1e9);
           },
           [](const Tensor& x, const Tensor& hidden) { return masked_fill(x, hidden, -1e9); });
     }},
    {"logits lose a bias beside an additive mask",
     [] {
       return recomputed(
           {randn({3, 8}), example_flags({3, 8})},
           [](const Tensor& x, const Tensor& hidden) {
             return x + 0.05 + cast(hidden, DType::float32) * -1e9;
           },
           [](const Tensor& x, const Tensor& hidden) {
             return x + cast(hidden, DType::float32) * -1e9;
           });
     }},
    {"a bias alone, -1e9 behind it",
     [] {
       return rewritten(
           function_model([](const Tensor& x, const Tensor& hidden) {
             return masked_fill(tanh(x) + 0.05, hidden, -1e9);
           }),
           {randn({3, 8}), example_flags({3, 8})}, [](const Tensor& x) { return tanh(x) + 0.05; },
           [](const Tensor& x) { return tanh(x); });
     }},
    {"relu becomes gelu behind -3.4e38",
     [] {
       return rewritten(nn::make<MaskedLogits>(), {randn({3, 8}), example_flags({3, 8})}, relu_part,
                        gelu_part);
     }},
    {"relu becomes gelu in front of -3.4e38",
     [] {
       return rewritten(function_model([](const Tensor& x, const Tensor& hidden) {
                          return masked_fill(relu(x), hidden, -3.4e38);
                        }),
                        {randn({3, 8}), example_flags({3, 8})}, relu_part, gelu_part);
     }},
    {"relu becomes gelu beside an input of large numbers",
     [] {
       return recomputed(
           {randn({3, 8}), randn({3, 8})},
           [](const Tensor& x, const Tensor& y) {
             return cat({relu(x), y * 1e30}, 1);
           },
           [](const Tensor& x, const Tensor& y) {
             return cat({gelu(x), y * 1e30}, 1);
           });
     }},
    {"ones of a float mask no longer hidden",
     [] {
       return mask_ignored(ones({3, 8}), [](const Tensor& x, const Tensor& m) {
         return masked_fill(x, eq(m, 1), 0);
       });
     }},
    {"ones of an integer mask no longer hidden",
     [] {
       return mask_ignored(example_integers({3, 8}), [](const Tensor& x, const Tensor& m) {
         return masked_fill(x, eq(m, 1), 0);
       });
     }},
    {"a float mask equal to 1 dropped",
     [] {
       return mask_ignored(ones({3, 8}), [](const Tensor& x, const Tensor& m) {
         return masked_fill(x, ne(m, 1), 0);
       });
     }},
    {"an integer mask equal to 1 dropped",
     [] {
       return mask_ignored(example_integers({3, 8}), [](const Tensor& x, const Tensor& m) {
         return masked_fill(x, ne(m, 1), 0);
       });
     }},
    {"a float mask equal to 1 taken for not 0",
     [] {
       return recomputed(
           {randn({3, 8}), ones({3, 8})},
           [](const Tensor& x, const Tensor& m) { return masked_fill(x, eq(m, 1), 0); },
           [](const Tensor& x, const Tensor& m) { return masked_fill(x, ne(m, 0), 0); });
     }},
    {"a float padding mask lost in attention",
     [] {
       return recomputed(
           {randn({2, 5, 4}), ones({2, 5})}, padded_attention,
           [](const Tensor& x, const Tensor&) { return scaled_dot_product_attention(x, x, x); });
     }},
    {"an integer padding mask lost in attention",
     [] {
       return recomputed(
           {randn({2, 5, 4}), example_integers({2, 5})}, padded_attention,
           [](const Tensor& x, const Tensor&) { return scaled_dot_product_attention(x, x, x); });
     }},
    {"truncated a little below",
     [] {
       return recomputed(
           {randn({3, 8})},
           [](const Tensor& x) { return cast(cast(x * 4.0, DType::int64), DType::float32); },
           [](const Tensor& x) {
             return cast(cast(x * (4.0 * (1 - 1e-6)), DType::int64), DType::float32);
           });
     }},
    {"truncated instead of rounded down",
     [] {
       return recomputed(
           {randn({3, 8})},
           [](const Tensor& x) {
             const Tensor whole = cast(cast(x, DType::int64), DType::float32);
             return where(gt(whole, x), whole - 1.0, whole);
           },
           [](const Tensor& x) {
             const Tensor whole = cast(cast(x, DType::int64), DType::float32);
             return where(lt(x, 0), whole - 1.0, whole);
           });
     }},
    {"equal neighbours told apart",
     [] {
       return recomputed(
           {randn({3, 8}), randn({3, 8})},
           [](const Tensor& x, const Tensor& y) { return where(ge(x, y), x, y * 2.0); },
           [](const Tensor& x, const Tensor& y) { return where(gt(x, y), x, y * 2.0); });
     }},
};

Tensor exponentials_without_maximum(const Tensor& x) {
  const Tensor numerators = exp(x);
  return numerators / sum(numerators, {-1}, true);
}
Tensor variance_in_one_pass(const Tensor& x) {
  return mean(square(x), {-1}, true) - square(mean(x, {-1}, true));
}
Tensor example_of(DType dtype, const Shape& shape) { return zeros(shape, {dtype, kCpu}); }

template <DType kDType>
Schedule one_pass_variance() {
  return recomputed(
      {example_of(kDType, {3, 16})}, [](const Tensor& x) { return var(x, {-1}, 0, true); },
      variance_in_one_pass);
}
template <DType kDType>
Schedule one_pass_norm() {
  return recomputed(
      {example_of(kDType, {3, 16})}, [](const Tensor& x) { return layer_norm(x, {16}); },
      [](const Tensor& x) {
        return (x - mean(x, {-1}, true)) * rsqrt(variance_in_one_pass(x) + 1e-5);
      });
}

const std::vector<Finding> kKernels = {
    {"softmax without its maximum behind a soft cap of 100",
     [] {
       return rewritten(
           function_model([](const Tensor& x) { return softmax(tanh(x / 100.0) * 100.0, -1); }),
           {randn({3, 8})}, [](const Tensor& x) { return softmax(x, -1); },
           exponentials_without_maximum);
     }},
    {"softmax and its soft cap of 100 without the maximum",
     [] {
       return recomputed(
           {randn({3, 8})}, [](const Tensor& x) { return softmax(tanh(x / 100.0) * 100.0, -1); },
           [](const Tensor& x) { return exponentials_without_maximum(tanh(x / 100.0) * 100.0); });
     }},
    {"float16 softmax without its maximum behind a soft cap of 15",
     [] {
       return recomputed(
           {example_of(DType::float16, {3, 8})},
           [](const Tensor& x) { return softmax(tanh(x / 15.0) * 15.0, -1); },
           [](const Tensor& x) { return exponentials_without_maximum(tanh(x / 15.0) * 15.0); });
     }},
    {"logarithm of a sum of exponentials behind a soft cap of 100",
     [] {
       return recomputed(
           {randn({3, 8})},
           [](const Tensor& x) { return log_softmax(tanh(x / 100.0) * 100.0, -1); },
           [](const Tensor& x) {
             const Tensor capped = tanh(x / 100.0) * 100.0;
             return capped - log(sum(exp(capped), {-1}, true));
           });
     }},
    {"variance in one pass, float32", one_pass_variance<DType::float32>},
    {"variance in one pass, float16", one_pass_variance<DType::float16>},
    {"variance in one pass, bfloat16", one_pass_variance<DType::bfloat16>},
    {"norm in one pass, float32", one_pass_norm<DType::float32>},
    {"norm in one pass, bfloat16", one_pass_norm<DType::bfloat16>},
    {"float16 mean of long rows by their sum",
     [] {
       return recomputed(
           {example_of(DType::float16, {3, 16})}, [](const Tensor& x) { return mean(x, {-1}); },
           [](const Tensor& x) { return sum(x, {-1}) / x.size(-1); });
     }},
    {"float16 mean of rows of 4096 by their sum",
     [] {
       return recomputed(
           {example_of(DType::float16, {2, 4096})}, [](const Tensor& x) { return mean(x, {-1}); },
           [](const Tensor& x) { return sum(x, {-1}) / x.size(-1); });
     }},
    {"float16 mean square by its sum",
     [] {
       return recomputed(
           {example_of(DType::float16, {3, 16})},
           [](const Tensor& x) { return rms_norm(x, {16}, {}, 1e-5); },
           [](const Tensor& x) { return x * rsqrt(sum(square(x), {-1}, true) / 16.0 + 1e-5); });
     }},
};

}  // namespace findings_values

std::vector<Finding> wrong_constants() { return findings_values::kConstants; }
std::vector<Finding> wrong_behind_others() { return findings_values::kBehindOthers; }
std::vector<Finding> hardly_finite() { return findings_values::kHardlyFinite; }
std::vector<Finding> never_finite() { return findings_values::kNeverFinite; }
std::vector<Finding> wrong_kernels() { return findings_values::kKernels; }

}  // namespace tenon::test
