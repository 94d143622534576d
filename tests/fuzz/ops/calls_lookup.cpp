// Lookups by index, and changes in place.
#include <algorithm>

#include "tensor/functional.h"
#include "tests/fuzz/ops/call.h"

namespace tenon::op_fuzz {
namespace {

using I = const Invocation&;

/// Dtypes that indices may have; the storage dtypes too, where Tenon has them.
bool is_index(DType dtype) {
  const Format& format = format_of(dtype);
  return !format.floating && format.is_signed;
}

std::optional<int> draw_index(Drawing& d, const std::function<bool(const Handle&)>& fits) {
  return d.that([&](const Handle& h) { return is_index(h.array.dtype) && fits(h); });
}

/// Most indices are in range: a register whose values are not is seldom taken.
bool in_range(const Handle& handle, std::int64_t size) {
  for (const Number value : handle.array.values()) {
    if (value < 0 || value >= static_cast<Number>(size)) return false;
  }
  return true;
}

/// ValueError, which follows from values: a trace does not see it.
void need_in_range(Evaluation& e, int index, std::int64_t size) {
  if (e.refused() || in_range(*e.handle(index), size)) return;
  e.outcome.by_data = true;
  e.need(false, kValue);
}

void need_index(Evaluation& e, int operand) { e.need(is_index(e.array(operand).dtype), kDType); }

std::int64_t size_along(const Array& array, std::int64_t axis) {
  const std::int64_t i = axis < 0 ? axis + array.rank() : axis;
  return i >= 0 && i < array.rank() ? array.sizes[static_cast<std::size_t>(i)] : 0;
}

bool draw_index_select(Drawing& d, Step& step) {
  const auto input = d.any();
  if (!input) return false;
  const Array& array = d.array(*input);
  step.numbers = {d.axis(array.rank())};
  const std::int64_t size = size_along(array, step.numbers[0]);
  const bool strict = d.reference.now.on_device || d.program.in_module || !d.wrong();
  const auto index = draw_index(d, [&](const Handle& h) {
    return h.array.rank() == 1 && h.array.numel() < 40 && (!strict || in_range(h, size));
  });
  if (!index || array.numel() > 600) return false;
  step.operands = {*input, d.wrong() && !d.reference.now.on_device ? *d.any() : *index};
  return true;
}

void evaluate_index_select(Evaluation& e) {
  need_index(e, 1);
  e.need(e.array(1).rank() == 1, kShape);
  e.need(e.array(0).rank() > 0, kShape);
  const int axis = e.axis(e.number(0), e.array(0).rank());
  if (e.refused()) return;
  const Array& input = e.array(0);
  need_in_range(e, 1, input.sizes[static_cast<std::size_t>(axis)]);
  if (e.refused()) return;
  Sizes sizes = input.sizes;
  sizes[static_cast<std::size_t>(axis)] = 0;
  const Numbers index = e.array(1).values();
  const auto taken = [&](const Array& array) {
    const Sizes outer(array.sizes.begin(), array.sizes.begin() + axis);
    const Sizes inner(array.sizes.begin() + axis + 1, array.sizes.end());
    const std::int64_t size = array.sizes[static_cast<std::size_t>(axis)];
    const Numbers values = array.values();
    Numbers result;
    for (std::int64_t o = 0; o < product(outer); ++o) {
      for (const Number i : index) {
        const std::int64_t first = (o * size + as_integer(i)) * product(inner);
        result.insert(result.end(), values.begin() + first,
                      values.begin() + first + product(inner));
      }
    }
    Sizes shape = array.sizes;
    shape[static_cast<std::size_t>(axis)] = static_cast<std::int64_t>(index.size());
    return make_array(array.dtype, shape, std::move(result));
  };
  e.shows(0, taken);
}

bool draw_gather(Drawing& d, Step& step) {
  const auto input = d.any();
  if (!input) return false;
  const Array& array = d.array(*input);
  step.numbers = {d.axis(array.rank())};
  const std::int64_t size = size_along(array, step.numbers[0]);
  const std::int64_t axis = step.numbers[0] < 0 ? step.numbers[0] + array.rank() : step.numbers[0];
  const auto index = draw_index(d, [&](const Handle& h) {
    if (h.array.rank() != array.rank() || !in_range(h, size)) return false;
    for (int i = 0; i < array.rank(); ++i) {
      const auto at = static_cast<std::size_t>(i);
      if (i != axis && h.array.sizes[at] > array.sizes[at]) return false;
    }
    return true;
  });
  if (!index) return false;
  step.operands = {*input, d.wrong() && !d.reference.now.on_device ? *d.any() : *index};
  return true;
}

void evaluate_gather(Evaluation& e) {
  need_index(e, 1);
  const Array& input = e.array(0);
  const Array& index = e.array(1);
  e.need(input.rank() == index.rank(), kShape);
  const int axis = e.axis(e.number(0), input.rank());
  if (e.refused()) return;
  for (int i = 0; i < input.rank(); ++i) {
    const auto at = static_cast<std::size_t>(i);
    e.need(i == axis || index.sizes[at] <= input.sizes[at], kShape);
  }
  if (input.rank() > 0) {
    need_in_range(e, 1, index.numel() == 0 ? 1 : input.sizes[static_cast<std::size_t>(axis)]);
  } else {
    need_in_range(e, 1, 1);
  }
  if (e.refused()) return;
  const Numbers values = index.values();
  const auto taken = [&](const Array& array) {
    const Numbers from = array.values();
    const Sizes steps = row_major(array.sizes);
    const Sizes index_steps = row_major(index.sizes);
    Numbers result;
    for (std::size_t i = 0; i < values.size(); ++i) {
      std::int64_t place = 0;
      for (int k = 0; k < array.rank(); ++k) {
        const auto at = static_cast<std::size_t>(k);
        const std::int64_t own = static_cast<std::int64_t>(i) / index_steps[at] % index.sizes[at];
        place += (k == axis ? as_integer(values[i]) : own) * steps[at];
      }
      result.push_back(from[static_cast<std::size_t>(place)]);
    }
    return make_array(array.dtype, index.sizes, std::move(result));
  };
  e.shows(0, taken);
}

bool draw_embedding(Drawing& d, Step& step) {
  const auto weight =
      d.that([](const Handle& h) { return is_float(h.array.dtype) && h.array.rank() == 2; });
  if (!weight) return false;
  const std::int64_t rows = d.array(*weight).sizes[0];
  const auto index = draw_index(d, [&](const Handle& h) {
    return h.array.numel() < 40 && h.array.rank() < 5 && in_range(h, rows);
  });
  if (!index) return false;
  step.operands = {d.wrong() && !d.reference.now.on_device ? *d.any() : *index, *weight};
  return true;
}

void evaluate_embedding(Evaluation& e) {
  need_index(e, 0);
  e.need_float(1);
  if (!e.need(e.array(1).rank() == 2, kShape)) return;
  need_in_range(e, 0, e.array(1).sizes[0]);
  if (e.refused()) return;
  const Array& index = e.array(0);
  const std::int64_t width = e.array(1).sizes[1];
  const auto taken = [&](const Array& array) {
    const Numbers from = array.values();
    Numbers result;
    for (const Number row : index.values()) {
      const std::int64_t first = as_integer(row) * width;
      result.insert(result.end(), from.begin() + first, from.begin() + first + width);
    }
    Sizes sizes = index.sizes;
    sizes.push_back(width);
    return make_array(array.dtype, sizes, std::move(result));
  };
  e.shows(1, taken);
}

// --- changes in place ---------------------------------------------------------------------------

bool draw_copy(Drawing& d, Step& step) {
  const auto target = d.any();
  if (!target) return false;
  const Array& array = d.array(*target);
  const auto fits = [&](const Handle& h) { return h.array.sizes == array.sizes; };
  // Often what shares memory with the target.
  const auto shared = d.that([&](const Handle& h) {
    return fits(h) && h.array.memory == array.memory && &h.array != &array;
  });
  const auto source = shared && d.source.chance(60) ? shared : d.that(fits);
  step.operands = {*target, d.wrong() ? *d.any() : *source};
  return true;
}

void evaluate_copy(Evaluation& e) {
  const Array& target = e.array(0);
  const Array& source = e.array(1);
  e.need(!target.overlaps_itself(), kValue);
  if (!e.need(target.sizes == source.sizes, kShape)) return;
  Numbers values = source.values();
  for (Number& value : values) value = convert(value, source.dtype, target.dtype);
  for (std::int64_t i = 0; i < target.numel(); ++i) e.slope(i, 1, i, 1);
  e.saves_nothing = true;
  e.writes(0, std::move(values), {1});
}

bool draw_target(Drawing& d, Step& step) {
  const auto target = d.any();
  if (!target) return false;
  step.operands = {*target};
  return true;
}

void evaluate_zero(Evaluation& e) {
  e.saves_nothing = true;
  e.writes(0, Numbers(static_cast<std::size_t>(e.array(0).numel())), {});
}

}  // namespace

std::vector<Call> calls_that_look_up() {
  return {
      {"index_select", "index_select($0, #0, $1)", 7, draw_index_select, evaluate_index_select,
       [](I c) { return index_select(c[0], c.number(0), c[1]); }},
      {"gather", "gather($0, #0, $1)", 7, draw_gather, evaluate_gather,
       [](I c) { return gather(c[0], c.number(0), c[1]); }},
      {"embedding", "embedding($0, $1)", 6, draw_embedding, evaluate_embedding,
       [](I c) { return embedding(c[0], c[1]); }},
  };
}

std::vector<Call> calls_in_place() {
  return {
      {"copy_", "$0.copy_($1)", 24, draw_copy, evaluate_copy,
       [](I c) {
         Tensor target = c[0];
         target.copy_(c[1]);
         return Tensor();
       }},
      {"zero_", "$0.zero_()", 5, draw_target, evaluate_zero,
       [](I c) {
         Tensor target = c[0];
         target.zero_();
         return Tensor();
       }},
  };
}

}  // namespace tenon::op_fuzz
