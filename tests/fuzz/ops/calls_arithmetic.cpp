// Elementwise calls: arithmetic of tensors and numbers, functions, comparisons, selection.
#include <cmath>

#include "tests/fuzz/ops/call.h"

namespace tenon::op_fuzz {
namespace {

enum class Binary { add, sub, mul, div, maximum, minimum };

std::uint64_t bits(Number value) { return static_cast<std::uint64_t>(as_integer(value)); }

/// Integers wrap around; of bool `add` is the logical or, `mul` the logical and.
Number of_integers(Binary op, DType dtype, Number x, Number y) {
  if (op == Binary::maximum) return std::max(x, y);
  if (op == Binary::minimum) return std::min(x, y);
  if (dtype == DType::boolean) return op == Binary::add ? (x != 0 || y != 0) : (x != 0 && y != 0);
  std::uint64_t result = bits(x) * bits(y);
  if (op == Binary::add) result = bits(x) + bits(y);
  if (op == Binary::sub) result = bits(x) - bits(y);
  return wrap(dtype, static_cast<std::int64_t>(result));
}

/// float64 is computed as such: long double would round twice.
Number once(DType dtype, Binary op, Number x, Number y) {
  const auto compute = [op](auto a, auto b) -> Number {
    switch (op) {
      case Binary::add: return a + b;
      case Binary::sub: return a - b;
      case Binary::mul: return a * b;
      default: return a / b;
    }
  };
  if (dtype != DType::float64) return compute(x, y);
  return compute(static_cast<double>(x), static_cast<double>(y));
}

Local of_floats(Binary op, DType dtype, Number x, Number y) {
  Local local;
  switch (op) {
    case Binary::add: local.slope[0] = local.slope[1] = 1; break;
    case Binary::sub:
      local.slope[0] = 1;
      local.slope[1] = -1;
      break;
    case Binary::mul:
      local.slope[0] = y;
      local.slope[1] = x;
      break;
    case Binary::div:
      local.slope[0] = 1 / y;
      local.slope[1] = -(x / y) / y;
      // A quotient that is subnormal has an error of its own.
      local.magnitude[1] = std::fabs(local.slope[1]) + 2 * smallest_normal(dtype) / std::fabs(y);
      if (!(std::fabs(1 / y) < largest(dtype) / 4)) local.magnitude[1] = kInfinity;
      break;
    case Binary::maximum:
    case Binary::minimum: {
      const bool nan = std::isnan(x) || std::isnan(y);
      const bool first = op == Binary::maximum ? x > y : x < y;
      local.value = nan ? kNaN : (first ? x : y);
      local.slope[0] = nan ? kNaN : (x == y ? 0.5L : first);
      local.slope[1] = nan ? kNaN : (x == y ? 0.5L : !first);
      return local;
    }
  }
  local.value = once(dtype, op, x, y);
  // 16-bit floats come by way of float32.
  if (dtype != wide(dtype)) local.allowed = ulp(wide(dtype), local.value) / 2;
  return local;
}

void require_operands(Evaluation& e, Binary op) {
  if (op == Binary::div) e.need_float(0);
  for (int i = 0; i < e.num_operands(); ++i) e.need_number(i, op != Binary::sub);
  e.need_one_dtype();
}

/// In place, the result is written into operand 0.
template <Binary op, bool in_place = false>
void evaluate_binary(Evaluation& e) {
  require_operands(e, op);
  const DType dtype = e.array(0).dtype;
  // Zeros of both signs are equal: which one a maximum gives is open.
  elementwise(
      e, {0, 1}, dtype,
      [dtype](const Number* x) {
        if (is_float(dtype)) return of_floats(op, dtype, x[0], x[1]);
        return Local{.value = of_integers(op, dtype, x[0], x[1])};
      },
      !is_float(dtype), in_place ? 0 : -1);
  if (op >= Binary::maximum && !e.refused()) e.outcome.checks.back().signed_zero = false;
}

/// A number as the tensor's dtype computes with it.
Number adapted(DType dtype, const Literal& literal) {
  return is_float(dtype) ? round_to(wide(dtype), literal.number()) : literal.number();
}

/// Integers take integers in their range only.
void need_fitting(Evaluation& e, DType dtype, Number value) {
  if (is_float(dtype)) return;
  e.need(std::isfinite(value) && from_real(dtype, value) == value, kValue | kDType);
}

template <Binary op, bool in_place = false>
void evaluate_scalar(Evaluation& e) {
  require_operands(e, op);
  const DType dtype = e.array(0).dtype;
  need_fitting(e, dtype, e.step.literal.number());
  const Number number = adapted(dtype, e.step.literal);
  elementwise(
      e, {0}, dtype,
      [dtype, number](const Number* x) {
        if (!is_float(dtype)) return Local{.value = of_integers(op, dtype, x[0], number)};
        Local local = of_floats(op, dtype, x[0], number);
        // A quotient may be a product with the reciprocal.
        if (op == Binary::div) local.allowed = ulp(wide(dtype), local.value);
        return local;
      },
      !is_float(dtype), in_place ? 0 : -1);
}

/// The number is the left operand.
template <Binary op>
void evaluate_number_on_the_left(Evaluation& e) {
  require_operands(e, op);
  const DType dtype = e.array(0).dtype;
  need_fitting(e, dtype, e.step.literal.number());
  const Number number = adapted(dtype, e.step.literal);
  elementwise(
      e, {0}, dtype,
      [dtype, number](const Number* x) {
        if (!is_float(dtype)) return Local{.value = of_integers(op, dtype, number, x[0])};
        Local local = of_floats(op, dtype, number, x[0]);
        local.slope[0] = local.slope[1];
        local.magnitude[0] = local.magnitude[1];
        return local;
      },
      !is_float(dtype));
}

bool draw_binary(Drawing& d, Step& step) {
  const auto a = d.any();
  if (!a) return false;
  const auto b = d.beside(*a);
  if (!b) return false;
  step.operands = {*a, *b};
  return true;
}

bool draw_scalar(Drawing& d, Step& step) {
  const auto a = d.any();
  if (!a) return false;
  step.operands = {*a};
  step.literal = d.literal(d.array(*a));
  return true;
}

bool draw_float(Drawing& d, Step& step) {
  const auto a = d.wrong() ? d.any() : d.floating();
  if (!a) return false;
  step.operands = {*a};
  return true;
}

bool draw_unary(Drawing& d, Step& step) {
  const auto a = d.any();
  if (!a) return false;
  step.operands = {*a};
  return true;
}

// --- functions of one number --------------------------------------------------------------------

/// The value, its slope and the absolute terms of the slope.
struct Slope {
  Number value;
  Number slope;
  Number magnitude = -1;
};

/// Errors of elementary functions, in units of the last place of the dtype they are computed in.
constexpr Number kFunctionUlps = 4;

template <Slope (*f)(Number)>
void evaluate_function(Evaluation& e) {
  e.need_float(0);
  const DType dtype = e.array(0).dtype;
  elementwise(
      e, {0}, dtype,
      [dtype](const Number* x) {
        const Slope at = f(x[0]);
        Local local{.value = at.value};
        local.slope[0] = at.slope;
        local.magnitude[0] = at.magnitude;
        local.allowed = kFunctionUlps * ulp(wide(dtype), at.value) + smallest_normal(wide(dtype));
        return local;
      },
      false);
  if (!e.refused()) e.outcome.checks.back().signed_zero = false;
}

Slope exp_at(Number x) { return {std::exp(x), std::exp(x)}; }
Slope log_at(Number x) { return {std::log(x), 1 / x}; }
Slope sqrt_at(Number x) { return {std::sqrt(x), 0.5L / std::sqrt(x)}; }
Slope reciprocal_at(Number x) { return {1 / x, -1 / x / x}; }
Slope tanh_at(Number x) {
  const Number y = std::tanh(x);
  return {y, 1 - y * y, 1};
}
Slope sigmoid_at(Number x) {
  const Number y = 1 / (1 + std::exp(-x));
  return {y, y * (1 - y), y};
}

void evaluate_neg(Evaluation& e) {
  e.need_number(0, false);
  const DType dtype = e.array(0).dtype;
  elementwise(
      e, {0}, dtype,
      [dtype](const Number* x) {
        Local local{.value = is_float(dtype) ? -x[0] : of_integers(Binary::sub, dtype, 0, x[0])};
        local.slope[0] = -1;
        return local;
      },
      true);
}

void evaluate_abs(Evaluation& e) {
  e.need_number(0, false);
  const DType dtype = e.array(0).dtype;
  elementwise(
      e, {0}, dtype,
      [dtype](const Number* x) {
        Local local{.value = std::fabs(x[0])};
        if (!is_float(dtype) && x[0] < 0) local.value = of_integers(Binary::sub, dtype, 0, x[0]);
        local.slope[0] = std::isnan(x[0]) ? kNaN : Number(x[0] > 0) - Number(x[0] < 0);
        return local;
      },
      true);
}

void evaluate_relu(Evaluation& e) {
  e.need_number(0, false);
  elementwise(
      e, {0}, e.array(0).dtype,
      [](const Number* x) {
        Local local{.value = std::isnan(x[0]) || x[0] > 0 ? x[0] : 0};
        local.slope[0] = std::isnan(x[0]) ? kNaN : x[0] > 0;
        return local;
      },
      true);
  if (!e.refused()) e.outcome.checks.back().signed_zero = false;
}

// --- comparisons and selection ------------------------------------------------------------------

enum class Relation { eq, ne, lt, le, gt, ge };

bool holds(Relation relation, Number x, Number y) {
  switch (relation) {
    case Relation::eq: return x == y;
    case Relation::ne: return x != y;
    case Relation::lt: return x < y;
    case Relation::le: return x <= y;
    case Relation::gt: return x > y;
    default: return x >= y;
  }
}

template <Relation relation>
void evaluate_comparison(Evaluation& e) {
  e.need_one_dtype();
  e.not_differentiable = true;
  elementwise(
      e, {0, 1}, DType::boolean,
      [](const Number* x) { return Local{.value = Number(holds(relation, x[0], x[1]))}; }, true);
}

/// A number is rounded to a floating dtype first; an integer is compared with it exactly.
template <Relation relation>
void evaluate_comparison_with(Evaluation& e) {
  e.not_differentiable = true;
  const DType dtype = e.array(0).dtype;
  const Number given = e.step.literal.number();
  const Number number = is_float(dtype) ? round_to(dtype, given) : given;
  elementwise(
      e, {0}, DType::boolean,
      [number](const Number* x) { return Local{.value = Number(holds(relation, x[0], number))}; },
      true);
}

bool draw_where(Drawing& d, Step& step) {
  const auto a = d.any();
  const auto condition = d.of_dtype(DType::boolean);
  if (!a || !condition) return false;
  const auto b = d.beside(*a);
  if (!b) return false;
  step.operands = {d.wrong() ? *a : *condition, *a, *b};
  return true;
}

void evaluate_where(Evaluation& e) {
  e.need(e.array(0).dtype == DType::boolean, kDType);
  e.need(e.array(1).dtype == e.array(2).dtype, kDType);
  elementwise(
      e, {0, 1, 2}, e.array(1).dtype,
      [](const Number* x) {
        Local local{.value = x[0] != 0 ? x[1] : x[2]};
        local.slope[1] = x[0] != 0;
        local.slope[2] = x[0] == 0;
        return local;
      },
      true);
}

bool draw_masked_fill(Drawing& d, Step& step) {
  const auto mask = d.of_dtype(DType::boolean);
  const auto input = d.any();
  if (!mask || !input) return false;
  step.operands = {*input, d.wrong() ? *input : *mask};
  step.literal = d.literal(d.array(*input));
  return true;
}

void evaluate_masked_fill(Evaluation& e) {
  const DType dtype = e.array(0).dtype;
  e.need(e.array(1).dtype == DType::boolean, kDType);
  need_fitting(e, dtype, e.step.literal.number());
  const Number number = e.step.literal.number();
  elementwise(
      e, {0, 1}, dtype,
      [dtype, number](const Number* x) {
        Local local{.value = x[1] != 0 ? from_real(dtype, number) : x[0]};
        local.slope[0] = x[1] == 0;
        return local;
      },
      true);
}

using I = const Invocation&;

template <Tensor (*f)(const Tensor&, const Tensor&)>
Tensor run_binary(I c) {
  return f(c[0], c[1]);
}
template <Tensor (*f)(const Tensor&, const Scalar&)>
Tensor run_scalar(I c) {
  return f(c[0], c.scalar());
}
template <Tensor (*f)(const Tensor&)>
Tensor run_unary(I c) {
  return f(c[0]);
}
template <auto change>
Tensor run_assignment(I c) {
  change(c[0], c);
  return {};
}

}  // namespace

std::vector<Call> calls_of_arithmetic() {
  return {
      {"add", "add($0, $1)", 12, draw_binary, evaluate_binary<Binary::add>, run_binary<add>},
      {"sub", "sub($0, $1)", 10, draw_binary, evaluate_binary<Binary::sub>, run_binary<sub>},
      {"mul", "mul($0, $1)", 12, draw_binary, evaluate_binary<Binary::mul>, run_binary<mul>},
      {"div", "div($0, $1)", 8, draw_binary, evaluate_binary<Binary::div>, run_binary<div>},
      {"maximum", "maximum($0, $1)", 5, draw_binary, evaluate_binary<Binary::maximum>,
       run_binary<maximum>},
      {"minimum", "minimum($0, $1)", 5, draw_binary, evaluate_binary<Binary::minimum>,
       run_binary<minimum>},
      {"add_scalar", "add($0, %)", 8, draw_scalar, evaluate_scalar<Binary::add>, run_scalar<add>},
      {"sub_scalar", "sub($0, %)", 6, draw_scalar, evaluate_scalar<Binary::sub>, run_scalar<sub>},
      {"mul_scalar", "mul($0, %)", 8, draw_scalar, evaluate_scalar<Binary::mul>, run_scalar<mul>},
      {"div_scalar", "div($0, %)", 6, draw_scalar, evaluate_scalar<Binary::div>, run_scalar<div>},
      {"rsub", "% - $0", 6, draw_scalar, evaluate_number_on_the_left<Binary::sub>,
       [](I c) { return c.scalar() - c[0]; }},
      {"rdiv", "% / $0", 6, draw_scalar, evaluate_number_on_the_left<Binary::div>,
       [](I c) { return c.scalar() / c[0]; }},
      {"neg", "neg($0)", 5, draw_unary, evaluate_neg, run_unary<neg>},
      {"abs", "abs($0)", 5, draw_unary, evaluate_abs, run_unary<abs>},
      {"relu", "relu($0)", 5, draw_unary, evaluate_relu, run_unary<relu>},
      {"exp", "exp($0)", 5, draw_float, evaluate_function<exp_at>, run_unary<exp>},
      {"log", "log($0)", 4, draw_float, evaluate_function<log_at>, run_unary<log>},
      {"sqrt", "sqrt($0)", 4, draw_float, evaluate_function<sqrt_at>, run_unary<sqrt>},
      {"reciprocal", "reciprocal($0)", 4, draw_float, evaluate_function<reciprocal_at>,
       run_unary<reciprocal>},
      {"tanh", "tanh($0)", 4, draw_float, evaluate_function<tanh_at>, run_unary<tanh>},
      {"sigmoid", "sigmoid($0)", 4, draw_float, evaluate_function<sigmoid_at>, run_unary<sigmoid>},
      {"where", "where($0, $1, $2)", 8, draw_where, evaluate_where,
       [](I c) { return where(c[0], c[1], c[2]); }},
      {"masked_fill", "masked_fill($0, $1, %)", 8, draw_masked_fill, evaluate_masked_fill,
       [](I c) { return masked_fill(c[0], c[1], c.scalar()); }},
  };
}

std::vector<Call> calls_of_assignment() {
  return {
      {"add_", "$0.add_($1)", 14, draw_binary, evaluate_binary<Binary::add, true>,
       run_assignment<[](Tensor x, I c) { x.add_(c[1]); }>},
      {"sub_", "$0 -= $1", 6, draw_binary, evaluate_binary<Binary::sub, true>,
       run_assignment<[](Tensor x, I c) { x -= c[1]; }>},
      {"mul_", "$0 *= $1", 6, draw_binary, evaluate_binary<Binary::mul, true>,
       run_assignment<[](Tensor x, I c) { x *= c[1]; }>},
      {"div_", "$0.div_($1)", 6, draw_binary, evaluate_binary<Binary::div, true>,
       run_assignment<[](Tensor x, I c) { x.div_(c[1]); }>},
      {"add_scalar_", "$0 += %", 6, draw_scalar, evaluate_scalar<Binary::add, true>,
       run_assignment<[](Tensor x, I c) { x += c.scalar(); }>},
      {"sub_scalar_", "$0.sub_(%)", 4, draw_scalar, evaluate_scalar<Binary::sub, true>,
       run_assignment<[](Tensor x, I c) { x.sub_(c.scalar()); }>},
      {"mul_scalar_", "$0.mul_(%)", 10, draw_scalar, evaluate_scalar<Binary::mul, true>,
       run_assignment<[](Tensor x, I c) { x.mul_(c.scalar()); }>},
      {"div_scalar_", "$0 /= %", 4, draw_scalar, evaluate_scalar<Binary::div, true>,
       run_assignment<[](Tensor x, I c) { x /= c.scalar(); }>},
  };
}

std::vector<Call> calls_of_comparison() {
  using R = Relation;
  return {
      {"eq", "eq($0, $1)", 4, draw_binary, evaluate_comparison<R::eq>, run_binary<eq>},
      {"ne", "ne($0, $1)", 3, draw_binary, evaluate_comparison<R::ne>, run_binary<ne>},
      {"lt", "lt($0, $1)", 3, draw_binary, evaluate_comparison<R::lt>, run_binary<lt>},
      {"le", "le($0, $1)", 3, draw_binary, evaluate_comparison<R::le>, run_binary<le>},
      {"gt", "gt($0, $1)", 3, draw_binary, evaluate_comparison<R::gt>, run_binary<gt>},
      {"ge", "ge($0, $1)", 3, draw_binary, evaluate_comparison<R::ge>, run_binary<ge>},
      {"eq_scalar", "eq($0, %)", 6, draw_scalar, evaluate_comparison_with<R::eq>, run_scalar<eq>},
      {"ne_scalar", "ne($0, %)", 3, draw_scalar, evaluate_comparison_with<R::ne>, run_scalar<ne>},
      {"lt_scalar", "lt($0, %)", 3, draw_scalar, evaluate_comparison_with<R::lt>, run_scalar<lt>},
      {"le_scalar", "le($0, %)", 3, draw_scalar, evaluate_comparison_with<R::le>, run_scalar<le>},
      {"gt_scalar", "gt($0, %)", 3, draw_scalar, evaluate_comparison_with<R::gt>, run_scalar<gt>},
      {"ge_scalar", "ge($0, %)", 3, draw_scalar, evaluate_comparison_with<R::ge>, run_scalar<ge>},
  };
}

}  // namespace tenon::op_fuzz
