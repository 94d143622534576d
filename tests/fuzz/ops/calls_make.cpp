// Calls that make tensors: factories, from values and from the generator.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "tensor/random.h"
#include "tests/fuzz/ops/call.h"

namespace tenon::op_fuzz {
namespace {

/// `count` values of the host type T.
template <class T>
std::vector<T> host_values(const Numbers& values) {
  std::vector<T> result;
  for (const Number value : values) {
    if constexpr (std::is_same_v<T, Half> || std::is_same_v<T, BFloat16>) {
      result.push_back(T(static_cast<float>(value)));
    } else {
      result.push_back(static_cast<T>(value));
    }
  }
  return result;
}

void make_values(Evaluation& e) {
  Numbers values;
  for (const Number value : e.step.values) values.push_back(from_real(e.step.dtype, value));
  e.makes(e.step.dtype, e.step.numbers, std::move(values));
}

bool draw_tensor(Drawing& d, Step& step) {
  step.numbers = d.sizes();
  // Doubles, which are converted once, from whatever range.
  step.values = d.values(DType::float64, product(step.numbers));
  step.dtype = d.dtype();
  return true;
}

Tensor run_tensor(const Invocation& call) {
  std::vector<double> values;
  for (const Number value : call.step.values) values.push_back(static_cast<double>(value));
  return tensor(std::span<const double>(values), call.shape(), call.options());
}

bool draw_from_vector(Drawing& d, Step& step) {
  step.numbers = d.sizes();
  step.dtype = d.dtype();
  // std::vector<bool> has no elements to point to.
  if (step.dtype == DType::boolean) step.dtype = DType::uint8;
  step.values = d.values(step.dtype, product(step.numbers));
  return true;
}

Tensor run_from_vector(const Invocation& call) {
  return dispatch_all(call.step.dtype, [&]<class T>() -> Tensor {
    if constexpr (std::is_same_v<T, bool>) {
      return {};
    } else {
      return from_vector(host_values<T>(call.step.values), call.shape(), call.device);
    }
  });
}

bool draw_filled(Drawing& d, Step& step) {
  step.numbers = d.sizes();
  step.dtype = d.dtype();
  return true;
}

void make_filled(Evaluation& e, Number value) {
  const auto count = static_cast<std::size_t>(product(e.step.numbers));
  e.makes(e.step.dtype, e.step.numbers, Numbers(count, from_real(e.step.dtype, value)));
}

bool draw_full(Drawing& d, Step& step) {
  step.literal.real = static_cast<double>(d.value(DType::float64, d.source.chance(30)));
  return draw_filled(d, step);
}

bool draw_arange(Drawing& d, Step& step) {
  step.numbers = {d.size()};
  step.dtype = d.dtype();
  return true;
}

void evaluate_arange(Evaluation& e) {
  Numbers values = positions(e.step.numbers).values();
  for (Number& value : values) value = convert(value, DType::int64, e.step.dtype);
  e.makes(e.step.dtype, e.step.numbers, std::move(values));
}

// --- random -------------------------------------------------------------------------------------

bool draw_seed(Drawing& d, Step& step) {
  step.numbers = {d.source.between(1, 2)};
  return true;
}

void evaluate_seed(Evaluation& e) {
  Surroundings& now = e.reference.now;
  const std::int64_t seed = e.number(0);
  e.outcome.commit = [&now, seed] {
    now.site = 0;
    now.history = fmt::format("seed {}", seed);
  };
}

Tensor run_seed(const Invocation& call) {
  manual_seed(static_cast<std::uint64_t>(call.number(0)));
  return {};
}

/// What a draw follows from: the seed and the random calls since.
void evaluate_random(Evaluation& e, Number low, Number high) {
  make_filled(e, 0);
  e.outcome.checks.clear();  // the values are what is drawn
  Surroundings& now = e.reference.now;
  const std::string text = "; " + fingerprint(e.step);
  e.outcome.draw = Draw{low, high, fmt::format("{}{}", now.history, text)};
  e.outcome.commit = [&now, text] { now.history += text; };
}

bool draw_randn(Drawing& d, Step& step) {
  step.numbers = d.sizes();
  step.dtype = d.float_dtype();
  return true;
}

Tensor run_randn(const Invocation& call) { return randn(call.shape(), call.options()); }

/// Bounds are literals of the step: `literal` is low, values[0] high.
bool draw_uniform(Drawing& d, Step& step) {
  step.numbers = d.sizes();
  if (d.source.chance(30)) step.numbers = {d.source.between(256, 2048)};
  step.dtype = d.float_dtype();
  step.literal.real = d.source.one_of({0.0, -1.0, 0.1, 100.0, -3.0});
  step.values = {step.literal.real + d.source.one_of({1.0, 0.5, 2.0})};
  return true;
}

void evaluate_uniform(Evaluation& e) {
  evaluate_random(e, e.step.literal.number(), e.step.values.at(0));
}

Tensor run_uniform(const Invocation& call) {
  return uniform(call.shape(), call.step.literal.real, static_cast<double>(call.step.values.at(0)),
                 call.options());
}

}  // namespace

std::vector<Call> calls_that_make() {
  return {
      {"tensor", "tensor({!}, {#*}, @)", 12, draw_tensor, make_values, run_tensor, false, true},
      {"from_vector", "from_vector<@>({!}, {#*})", 40, draw_from_vector, make_values,
       run_from_vector, false, true},
      {"full", "full({#*}, %, @)", 4, draw_full,
       [](Evaluation& e) { make_filled(e, e.step.literal.number()); },
       [](const Invocation& call) {
         return full(call.shape(), call.step.literal.real, call.options());
       },
       false, true},
      {"zeros", "zeros({#*}, @)", 2, draw_filled, [](Evaluation& e) { make_filled(e, 0); },
       [](const Invocation& call) { return zeros(call.shape(), call.options()); }, false, true},
      {"ones", "ones({#*}, @)", 2, draw_filled, [](Evaluation& e) { make_filled(e, 1); },
       [](const Invocation& call) { return ones(call.shape(), call.options()); }, false, true},
      {"arange", "arange(#0, @)", 4, draw_arange, evaluate_arange,
       [](const Invocation& call) { return arange(call.number(0), call.options()); }, false, true},
      {"manual_seed", "manual_seed(#0)", 8, draw_seed, evaluate_seed, run_seed, true, false},
      {"randn", "randn({#*}, @)", 6, draw_randn,
       [](Evaluation& e) { evaluate_random(e, -kInfinity, kInfinity); }, run_randn, false, false},
      {"uniform", "uniform({#*}, %, !, @)", 6, draw_uniform, evaluate_uniform, run_uniform, false,
       false},
  };
}

}  // namespace tenon::op_fuzz
