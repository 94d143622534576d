// Calls that make tensors: factories, from values and from the generator.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdint>

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
  // Doubles or int64, which are converted once, from whatever range.
  step.values =
      d.values(d.source.chance(20) ? DType::int64 : DType::float64, product(step.numbers));
  step.dtype = d.dtype();
  return true;
}

bool is_int64(Number value) { return same(convert(value, DType::float64, DType::int64), value); }

/// As a braced list where it is short, else as a span of the type that holds all values.
Tensor run_tensor(const Invocation& call) {
  const Numbers& values = call.step.values;
  const auto number = [&](std::size_t i) -> tenon::Number {
    if (is_int64(values[i])) return static_cast<std::int64_t>(values[i]);
    return static_cast<double>(values[i]);
  };
  if (values.size() == 1) return tensor({number(0)}, call.shape(), call.options());
  if (values.size() == 2) return tensor({number(0), number(1)}, call.shape(), call.options());
  if (std::all_of(values.begin(), values.end(), is_int64)) {
    const auto integers = host_values<std::int64_t>(values);
    return tensor(std::span<const std::int64_t>(integers), call.shape(), call.options());
  }
  const auto reals = host_values<double>(values);
  return tensor(std::span<const double>(reals), call.shape(), call.options());
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
  const bool special = d.source.chance(30);
  step.literal.is_integer = d.source.chance(40);
  if (step.literal.is_integer) {
    step.literal.integer = as_integer(d.value(DType::int64, special));
  } else {
    step.literal.real = static_cast<double>(d.value(DType::float64, special));
  }
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
  e.outcome.commit = [&random = e.reference.now.random, seed = e.number(0)] {
    random = {static_cast<std::uint64_t>(seed)};
  };
}

Tensor run_seed(const Invocation& call) {
  manual_seed(static_cast<std::uint64_t>(call.number(0)));
  return {};
}

/// Sizes are the numbers from `first` on.
void evaluate_random(Evaluation& e, Draw draw, std::ptrdiff_t first = 0) {
  const Sizes sizes(e.step.numbers.begin() + first, e.step.numbers.end());
  const bool all_are = std::all_of(sizes.begin(), sizes.end(), [](auto size) { return size >= 0; });
  if (!e.need(all_are, kShape) || e.refused()) return;
  e.makes(e.step.dtype, sizes, Numbers(static_cast<std::size_t>(product(sizes))));
  e.outcome.checks.clear();  // the values are what is drawn
  RandomNumbers& random = e.reference.now.random;
  draw.key = fmt::format("{}: {}", random.key_of_tensor(), fingerprint(e.step));
  e.outcome.draw = std::move(draw);
  e.outcome.commit = [&random] { random = random.after_tensor(); };
}

/// Sizes, one of which is seldom negative.
Sizes random_sizes(Drawing& d) {
  Sizes sizes = d.sizes();
  if (!sizes.empty() && d.wrong()) sizes[0] = -1;
  return sizes;
}

bool draw_randn(Drawing& d, Step& step) {
  step.numbers = random_sizes(d);
  step.dtype = d.wrong() ? d.dtype() : d.float_dtype();
  return true;
}

void evaluate_randn(Evaluation& e) {
  e.need(is_float(e.step.dtype), kDType);
  evaluate_random(e, {});
}

Tensor run_randn(const Invocation& call) { return randn(call.shape(), call.options()); }

/// Bounds are literals of the step: `literal` is low, values[0] high.
bool draw_uniform(Drawing& d, Step& step) {
  step.numbers = random_sizes(d);
  if (d.source.chance(30)) step.numbers = {d.source.between(256, 2048)};
  step.dtype = d.source.chance(80) ? d.float_dtype() : d.dtype();
  step.literal.real = d.source.one_of({0.0, -1.0, 0.1, 100.0, -3.0});
  step.values = {step.literal.real + d.source.one_of({1.0, 0.5, 2.0})};
  return true;
}

/// The largest number of the dtype that is not above `value`.
Number rounded_down(DType dtype, Number value) {
  if (!is_float(dtype)) return std::floor(value);
  const Number nearest = round_to(dtype, value);
  return nearest > value ? nearest - ulp(dtype, nearest) : nearest;
}

void evaluate_uniform(Evaluation& e) {
  const DType dtype = e.step.dtype;
  const Number low = e.step.literal.number(), high = e.step.values.at(0);
  e.need(low >= lowest(dtype) && high <= largest(dtype) + !is_float(dtype), kValue);
  Draw draw{low, high};
  draw.integers = !is_float(dtype);
  // No number of the dtype is between the bounds: all are the one below.
  if (-rounded_down(dtype, -low) >= high) draw.low = draw.high = rounded_down(dtype, low);
  evaluate_random(e, std::move(draw));
}

Tensor run_uniform(const Invocation& call) {
  return uniform(call.shape(), call.step.literal.real, static_cast<double>(call.step.values.at(0)),
                 call.options());
}

/// Of the dtype, or of the floats as far as they hold every integer.
bool holds_integers(DType dtype, Number least, Number most) {
  const Number limit = is_float(dtype) ? 1 / roundoff(dtype) : largest(dtype);
  return least >= (is_float(dtype) ? -limit : lowest(dtype)) && most <= limit;
}

/// Numbers: low, high, sizes.
bool draw_randint(Drawing& d, Step& step) {
  step.dtype = d.dtype();
  const bool wide_range = d.source.chance(30);
  const std::int64_t low = d.source.one_of<std::int64_t>({0, 0, 1, -3, 100});
  std::int64_t high = low + d.source.between(d.wrong() ? 0 : 1, 300);
  if (wide_range) high = d.source.one_of<std::int64_t>({INT64_MAX, 1LL << 53, 1LL << 31, 1 << 24});
  step.numbers = random_sizes(d);
  step.numbers.insert(step.numbers.begin(), {low, high});
  return true;
}

void evaluate_randint(Evaluation& e) {
  const Number low = e.number(0), high = e.number(1);
  e.need(low < high && holds_integers(e.step.dtype, low, high - 1), kValue);
  Draw draw{low, high};
  draw.integers = true;
  evaluate_random(e, std::move(draw), 2);
}

Tensor run_randint(const Invocation& call) {
  const std::vector<Dim> sizes(call.step.numbers.begin() + 2, call.step.numbers.end());
  return randint(call.number(0), call.number(1), Shape(sizes), call.options());
}

bool draw_randperm(Drawing& d, Step& step) {
  step.numbers = {d.source.chance(10) ? d.source.between(100, 300) : d.size()};
  if (d.wrong()) step.numbers = {-1};
  step.dtype = d.source.chance(70) ? DType::int64 : d.dtype();
  return true;
}

void evaluate_randperm(Evaluation& e) {
  e.need(e.number(0) < 1 || holds_integers(e.step.dtype, 0, e.number(0) - 1), kValue);
  Draw draw;
  draw.permutation = true;
  evaluate_random(e, std::move(draw));
}

}  // namespace

std::vector<Call> calls_that_make() {
  return {
      {"tensor", "tensor({!}, {#*}, @)", 12, draw_tensor, make_values, run_tensor, false, true},
      {"from_vector", "from_vector<@>({!}, {#*})", 40, draw_from_vector, make_values,
       run_from_vector, false, true},
      {"full", "full({#*}, %, @)", 4, draw_full,
       [](Evaluation& e) { make_filled(e, e.step.literal.number()); },
       [](const Invocation& call) { return full(call.shape(), call.scalar(), call.options()); },
       false, true},
      {"zeros", "zeros({#*}, @)", 2, draw_filled, [](Evaluation& e) { make_filled(e, 0); },
       [](const Invocation& call) { return zeros(call.shape(), call.options()); }, false, true},
      {"ones", "ones({#*}, @)", 2, draw_filled, [](Evaluation& e) { make_filled(e, 1); },
       [](const Invocation& call) { return ones(call.shape(), call.options()); }, false, true},
      {"arange", "arange(#0, @)", 4, draw_arange, evaluate_arange,
       [](const Invocation& call) { return arange(call.number(0), call.options()); }, false, true},
      {"manual_seed", "manual_seed(#0)", 8, draw_seed, evaluate_seed, run_seed, true, false},
      {"randn", "randn({#*}, @)", 6, draw_randn, evaluate_randn, run_randn, false, false},
      {"uniform", "uniform({#*}, %, !, @)", 6, draw_uniform, evaluate_uniform, run_uniform, false,
       false},
      {"randint", "randint(#0, #1, {#2*}, @)", 6, draw_randint, evaluate_randint, run_randint,
       false, false},
      {"randperm", "randperm(#0, @)", 5, draw_randperm, evaluate_randperm,
       [](const Invocation& call) { return randperm(call.number(0), call.options()); }, false,
       false},
  };
}

}  // namespace tenon::op_fuzz
