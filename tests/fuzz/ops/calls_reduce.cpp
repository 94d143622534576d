// Reductions, softmax, products and losses.
#include <algorithm>
#include <cmath>
#include <set>

#include "tensor/functional.h"
#include "tests/fuzz/ops/call.h"

namespace tenon::op_fuzz {
namespace {

using I = const Invocation&;

/// The elements of an operand that one output element is computed from.
struct Group {
  std::vector<std::int64_t> in;
};

/// The groups that are left when `axes` are reduced, row-major, and the shape of the results.
struct Grouping {
  Sizes sizes;
  std::vector<Group> groups;
};

Grouping group(const Sizes& input, const std::set<int>& axes, bool keepdim) {
  Grouping result;
  Sizes kept;
  Sizes order;
  for (int axis = 0; axis < static_cast<int>(input.size()); ++axis) {
    const std::int64_t size = input[static_cast<std::size_t>(axis)];
    if (axes.contains(axis)) {
      if (keepdim) result.sizes.push_back(1);
      continue;
    }
    result.sizes.push_back(size);
    kept.push_back(size);
    order.push_back(axis);
  }
  const auto groups = static_cast<std::size_t>(product(kept));
  for (const int axis : axes) order.push_back(axis);
  const Numbers from = permute(positions(input), order).values();
  result.groups.resize(groups);
  const std::size_t length = groups == 0 ? 0 : from.size() / groups;
  for (std::size_t i = 0; i < groups * length; ++i) {
    result.groups[i / length].in.push_back(as_integer(from[i]));
  }
  return result;
}

Numbers picked(const Numbers& values, const Group& group) {
  Numbers result;
  for (const std::int64_t i : group.in) result.push_back(values[static_cast<std::size_t>(i)]);
  return result;
}

/// A sum in long double, and the error that one in the dtype's wide type may have.
struct Total {
  Number value = 0;
  Number scale = 0;  // Σ of absolute terms
  Number allowed(DType dtype) const {
    // Beyond the largest number on the way, what comes depends on the order.
    if (!(scale < largest(wide(dtype)) / 2)) return kInfinity;
    return std::isfinite(value) ? scale * terms * roundoff(wide(dtype)) : 0;
  }
  Number terms = 0;
  void add(Number term) {
    value += term;
    if (std::isfinite(term)) scale += std::fabs(term);
    ++terms;
  }
};

/// Numbers: keepdim, then axes.
bool draw_reduction(Drawing& d, Step& step) {
  const auto input = d.any();
  if (!input) return false;
  step.operands = {*input};
  step.numbers = {d.source.chance(40)};
  const int rank = d.array(*input).rank();
  for (int axis = 0; axis < rank; ++axis) {
    if (d.source.chance(40)) step.numbers.push_back(d.source.chance(20) ? axis - rank : axis);
  }
  if (d.wrong()) step.numbers.push_back(d.axis(rank));
  return true;
}

std::set<int> reduced_axes(Evaluation& e) {
  std::set<int> axes;
  const int rank = e.array(0).rank();
  for (std::size_t i = 1; i < e.step.numbers.size(); ++i) {
    e.need(axes.insert(e.axis(e.number(i), rank)).second, kShape);
  }
  if (axes.empty()) {
    for (int axis = 0; axis < rank; ++axis) axes.insert(axis);
  }
  if (rank == 0) axes.clear();
  return axes;
}

std::vector<std::int64_t> axes_of(I c) {
  return {c.step.numbers.begin() + 1, c.step.numbers.end()};
}

void evaluate_sum(Evaluation& e, bool mean) {
  const Array& input = e.array(0);
  if (mean) e.need_float(0);
  e.need(computes(input.dtype), kDType);
  const std::set<int> axes = reduced_axes(e);
  if (e.refused()) return;
  const Grouping grouping = group(input.sizes, axes, e.number(0) != 0);
  const Numbers values = input.values();
  const bool floating = is_float(input.dtype);
  Numbers results, allowed;
  for (std::size_t g = 0; g < grouping.groups.size(); ++g) {
    const Group& members = grouping.groups[g];
    Total total;
    std::uint64_t integer = 0;
    for (const Number value : picked(values, members)) {
      if (floating) total.add(value);
      if (!floating) integer += static_cast<std::uint64_t>(as_integer(value));
    }
    const Number count = mean ? static_cast<Number>(members.in.size()) : 1;
    const Number sum = floating ? total.value : Number(static_cast<std::int64_t>(integer));
    results.push_back(sum / count);
    if (floating) {
      const Number last = ulp(wide(input.dtype), std::isfinite(sum) ? sum / count : 0);
      allowed.push_back(total.allowed(input.dtype) / count + (mean ? last : last / 2));
    }
    for (const std::int64_t in : members.in) {
      e.slope(static_cast<std::int64_t>(g), 0, in, 1 / count);
    }
  }
  e.saves_nothing = true;
  e.makes(floating ? input.dtype : DType::int64, grouping.sizes, std::move(results),
          std::move(allowed), false);
}

void need_elements(Evaluation& e, const std::set<int>& axes) {
  for (const int axis : axes) e.need(e.array(0).sizes[static_cast<std::size_t>(axis)] > 0, kShape);
}

void evaluate_extremum(Evaluation& e, bool maximum) {
  const Array& input = e.array(0);
  e.need(computes(input.dtype), kDType);
  const std::set<int> axes = reduced_axes(e);
  if (!e.refused()) need_elements(e, axes);
  if (e.refused()) return;
  const Grouping grouping = group(input.sizes, axes, e.number(0) != 0);
  const Numbers values = input.values();
  Numbers results;
  for (std::size_t g = 0; g < grouping.groups.size(); ++g) {
    Number best = maximum ? -kInfinity : kInfinity;
    Number equals = 0;
    for (const Number value : picked(values, grouping.groups[g])) {
      if (std::isnan(best)) continue;
      if (std::isnan(value) || (maximum ? value > best : value < best)) best = value;
    }
    for (const Number value : picked(values, grouping.groups[g])) equals += value == best;
    for (const std::int64_t in : grouping.groups[g].in) {
      const bool is_best = values[static_cast<std::size_t>(in)] == best;
      const Number share = std::isnan(best) ? kNaN : (is_best ? 1 / equals : 0);
      e.slope(static_cast<std::int64_t>(g), 0, in, share);
    }
    results.push_back(best);
  }
  e.makes(input.dtype, grouping.sizes, std::move(results), {}, false);
}

bool draw_argmax(Drawing& d, Step& step) {
  const auto input = d.any();
  if (!input) return false;
  step.operands = {*input};
  step.numbers = {d.source.chance(40)};
  if (d.source.chance(70)) step.numbers.push_back(d.axis(d.array(*input).rank()));
  return true;
}

void evaluate_argmax(Evaluation& e) {
  const Array& input = e.array(0);
  e.need(computes(input.dtype), kDType);
  const std::set<int> axes = reduced_axes(e);
  if (!e.refused()) need_elements(e, axes);
  if (e.refused()) return;
  e.not_differentiable = true;
  const Grouping grouping = group(input.sizes, axes, e.number(0) != 0);
  const Numbers values = input.values();
  Numbers results;
  for (const Group& members : grouping.groups) {
    const Numbers of_group = picked(values, members);
    std::size_t best = 0;
    for (std::size_t i = 1; i < of_group.size(); ++i) {
      const bool nan = std::isnan(of_group[i]) && !std::isnan(of_group[best]);
      if (nan || of_group[i] > of_group[best]) best = i;
    }
    results.push_back(static_cast<Number>(best));
  }
  e.makes(DType::int64, grouping.sizes, std::move(results));
}

// --- softmax ------------------------------------------------------------------------------------

bool draw_softmax(Drawing& d, Step& step) {
  const auto input = d.wrong() ? d.any() : d.floating();
  if (!input) return false;
  step.operands = {*input};
  step.numbers = {d.axis(d.array(*input).rank())};
  return true;
}

void evaluate_softmax(Evaluation& e, bool logarithm) {
  e.need_float(0);
  const Array& input = e.array(0);
  const int axis = e.axis(e.number(0), input.rank());
  if (e.refused()) return;
  const DType dtype = input.dtype;
  const Number eps = roundoff(wide(dtype));
  const Grouping grouping =
      group(input.sizes, input.rank() == 0 ? std::set<int>{} : std::set{axis}, true);
  const Numbers values = input.values();
  Numbers results(values.size()), allowed(values.size());
  for (const Group& members : grouping.groups) {
    const Numbers x = picked(values, members);
    const Number top = x.empty() ? 0 : *std::max_element(x.begin(), x.end());
    const bool nan = std::any_of(x.begin(), x.end(), [](Number v) { return std::isnan(v); });
    Number sum = 0;
    for (const Number value : x) sum += std::exp(value - top);
    const Number length = static_cast<Number>(x.size());
    Numbers p;
    for (std::size_t i = 0; i < x.size(); ++i) {
      const auto place = static_cast<std::size_t>(members.in[i]);
      const Number shifted = x[i] - top;
      p.push_back(nan || std::isinf(top) ? kNaN : std::exp(shifted) / sum);
      const Number log_p = nan || std::isinf(top) ? kNaN : shifted - std::log(sum);
      results[place] = logarithm ? log_p : p.back();
      // exp of a difference that is rounded: relative error of its size times eps.
      const Number error = std::isfinite(shifted) ? std::fabs(shifted) : 0;
      allowed[place] = logarithm
                           ? eps * (2 * error + 8 + length)
                           : p.back() * eps * (error + 12 + length) + smallest_normal(wide(dtype));
      if (std::isnan(results[place])) allowed[place] = 0;
    }
    for (std::size_t i = 0; i < x.size(); ++i) {
      for (std::size_t j = 0; j < x.size(); ++j) {
        const Number same = i == j;
        const Number slope = logarithm ? same - p[j] : p[i] * (same - p[j]);
        const Number magnitude = logarithm ? same + p[j] : p[i] * (same + p[j]);
        e.slope(members.in[i], 0, members.in[j], slope, magnitude);
      }
    }
  }
  e.makes(dtype, input.sizes, std::move(results), std::move(allowed), false);
}

// --- products -----------------------------------------------------------------------------------

bool draw_matmul(Drawing& d, Step& step) {
  const auto a = d.wrong() ? d.any() : d.floating();
  if (!a) return false;
  const Array& left = d.array(*a);
  const auto b = d.that([&](const Handle& handle) {
    const Sizes& sizes = handle.array.sizes;
    if (handle.array.dtype != left.dtype || sizes.empty() || left.sizes.empty()) return false;
    return left.sizes.back() == sizes[sizes.size() == 1 ? 0 : sizes.size() - 2];
  });
  if (!b) return false;
  step.operands = {*a, d.wrong() ? *d.any() : *b};
  return d.array(step.operands[0]).numel() * d.array(step.operands[1]).numel() < 60000;
}

void evaluate_matmul(Evaluation& e) {
  e.need_float(0);
  e.need_one_dtype();
  Array a = e.array(0), b = e.array(1);
  e.need(a.rank() >= 1 && b.rank() >= 1, kShape);
  if (e.refused()) return;
  Array from_a = positions(a.sizes), from_b = positions(b.sizes);
  const bool left_vector = a.rank() == 1, right_vector = b.rank() == 1;
  const auto as_matrix = [](Array& array, Array& from, int axis) {
    array = unsqueeze(array, axis);
    from = unsqueeze(from, axis);
  };
  if (left_vector) as_matrix(a, from_a, 0);
  if (right_vector) as_matrix(b, from_b, 1);
  const auto batch = [](const Array& x) { return Sizes(x.sizes.begin(), x.sizes.end() - 2); };
  const std::int64_t m = a.sizes[a.sizes.size() - 2], k = a.sizes.back(), n = b.sizes.back();
  e.need(k == b.sizes[b.sizes.size() - 2], kShape);
  Sizes sizes = e.need_broadcast(batch(a), batch(b));
  if (e.refused()) return;
  const std::int64_t batches = product(sizes);
  const auto spread = [&](const Array& array) {
    Sizes wanted = sizes;
    wanted.insert(wanted.end(), array.sizes.end() - 2, array.sizes.end());
    return expand(array, wanted).values();
  };
  const Numbers x = spread(a), y = spread(b), x_from = spread(from_a), y_from = spread(from_b);
  Numbers results, allowed;
  for (std::int64_t i = 0; i < batches * m * n; ++i) {
    const std::int64_t row = i / n, column = i % n, of_batch = row / m;
    Total total;
    for (std::int64_t j = 0; j < k; ++j) {
      const auto left = static_cast<std::size_t>(row * k + j);
      const auto right = static_cast<std::size_t>((of_batch * k + j) * n + column);
      total.add(x[left] * y[right]);
      e.slope(i, 0, as_integer(x_from[left]), y[right]);
      e.slope(i, 1, as_integer(y_from[right]), x[left]);
    }
    results.push_back(total.value);
    const Number tiny = smallest_subnormal(wide(a.dtype)) * static_cast<Number>(k + 1);
    allowed.push_back(total.allowed(a.dtype) + ulp(wide(a.dtype), total.value) + tiny);
  }
  if (!left_vector) sizes.push_back(m);
  if (!right_vector) sizes.push_back(n);
  e.makes(a.dtype, sizes, std::move(results), std::move(allowed), false);
}

// --- losses -------------------------------------------------------------------------------------

bool draw_mse(Drawing& d, Step& step) {
  const auto a = d.floating();
  if (!a) return false;
  const auto b = d.source.chance(75) ? d.that([&](const Handle& handle) {
    return handle.array.dtype == d.array(*a).dtype && handle.array.sizes == d.array(*a).sizes;
  })
                                     : d.beside(*a);
  if (!b) return false;
  step.operands = {*a, *b};
  step.numbers = {d.source.between(0, 2)};
  return true;
}

void evaluate_mse(Evaluation& e) {
  const DType dtype = e.array(0).dtype;
  const auto reduction = static_cast<Reduction>(e.number(0));
  e.need_one_dtype();
  e.need(e.array(0).sizes == e.array(1).sizes, kShape);
  if (e.refused()) return;
  const Numbers x = e.array(0).values(), y = e.array(1).values();
  const Number count = reduction == Reduction::mean ? static_cast<Number>(x.size()) : 1;
  Total total;
  Numbers squares, allowed;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const Number difference = x[i] - y[i];
    // The difference is rounded, squared and rounded again: all within the dtype's own precision.
    const Number square = difference * difference;
    squares.push_back(square);
    allowed.push_back(4 * roundoff(dtype) * square + 2 * smallest_subnormal(dtype));
    if (!(square < largest(dtype) / 2)) allowed.back() = std::isnan(square) ? 0 : kInfinity;
    total.add(square);
    const auto out = reduction == Reduction::none ? static_cast<std::int64_t>(i) : 0;
    e.slope(out, 0, static_cast<std::int64_t>(i), 2 * difference / count,
            2 * (std::fabs(x[i]) + std::fabs(y[i])) / count);
    e.slope(out, 1, static_cast<std::int64_t>(i), -2 * difference / count,
            2 * (std::fabs(x[i]) + std::fabs(y[i])) / count);
  }
  if (reduction == Reduction::none) {
    return e.makes(dtype, e.array(0).sizes, std::move(squares), std::move(allowed), false);
  }
  Number error = total.allowed(dtype);
  for (const Number each : allowed) error += each;
  e.makes(dtype, {}, {total.value / count},
          {error / count + 2 * ulp(wide(dtype), total.value / count)}, false);
}

}  // namespace

std::vector<Call> calls_that_reduce() {
  return {
      {"sum", "sum($0, {#1*}, #0)", 10, draw_reduction,
       [](Evaluation& e) { evaluate_sum(e, false); },
       [](I c) { return sum(c[0], axes_of(c), c.number(0) != 0); }},
      {"mean", "mean($0, {#1*}, #0)", 7, draw_reduction,
       [](Evaluation& e) { evaluate_sum(e, true); },
       [](I c) { return mean(c[0], axes_of(c), c.number(0) != 0); }},
      {"amax", "amax($0, {#1*}, #0)", 5, draw_reduction,
       [](Evaluation& e) { evaluate_extremum(e, true); },
       [](I c) { return amax(c[0], axes_of(c), c.number(0) != 0); }},
      {"amin", "amin($0, {#1*}, #0)", 4, draw_reduction,
       [](Evaluation& e) { evaluate_extremum(e, false); },
       [](I c) { return amin(c[0], axes_of(c), c.number(0) != 0); }},
      {"argmax", "argmax($0, {#1*}, #0)", 4, draw_argmax, evaluate_argmax,
       [](I c) {
         const auto axes = axes_of(c);
         return argmax(c[0], axes.empty() ? std::nullopt : std::optional(axes[0]),
                       c.number(0) != 0);
       }},
      {"softmax", "softmax($0, #0)", 6, draw_softmax,
       [](Evaluation& e) { evaluate_softmax(e, false); },
       [](I c) { return softmax(c[0], c.number(0)); }},
      {"log_softmax", "log_softmax($0, #0)", 5, draw_softmax,
       [](Evaluation& e) { evaluate_softmax(e, true); },
       [](I c) { return log_softmax(c[0], c.number(0)); }},
      {"matmul", "matmul($0, $1)", 10, draw_matmul, evaluate_matmul,
       [](I c) { return matmul(c[0], c[1]); }},
      {"mse_loss", "mse_loss($0, $1, Reduction(#0))", 6, draw_mse, evaluate_mse,
       [](I c) { return mse_loss(c[0], c[1], static_cast<Reduction>(c.number(0))); }},
  };
}

}  // namespace tenon::op_fuzz
