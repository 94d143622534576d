// Calls that show or copy elements: views, copies, casts, joins.
#include <algorithm>
#include <set>

#include "tests/fuzz/ops/call.h"

namespace tenon::op_fuzz {
namespace {

/// Draws operand 0 and an axis of it as number 0.
bool draw_along_axis(Drawing& d, Step& step) {
  const auto input = d.any();
  if (!input) return false;
  step.operands = {*input};
  step.numbers = {d.axis(d.array(*input).rank())};
  return true;
}

bool draw_unary(Drawing& d, Step& step) {
  const auto input = d.any();
  if (!input) return false;
  step.operands = {*input};
  return true;
}

std::int64_t size_at(const Array& array, std::int64_t axis) {
  const std::int64_t i = axis < 0 ? axis + array.rank() : axis;
  return i >= 0 && i < array.rank() ? array.sizes[static_cast<std::size_t>(i)] : 1;
}

bool draw_narrow(Drawing& d, Step& step) {
  if (!draw_along_axis(d, step)) return false;
  const std::int64_t size = size_at(d.array(step.operands[0]), step.numbers[0]);
  const std::int64_t start = d.source.between(0, size);
  const std::int64_t length = d.source.between(0, size - start) + (d.wrong() ? 2 : 0);
  step.numbers.push_back(d.source.chance(20) && start < size ? start - size : start);
  step.numbers.push_back(length);
  return true;
}

void evaluate_narrow(Evaluation& e) {
  const Array& input = e.array(0);
  e.need(input.rank() > 0, kShape);
  const int axis = e.axis(e.number(0), input.rank());
  if (e.refused()) return;
  const std::int64_t size = input.sizes[static_cast<std::size_t>(axis)];
  const std::int64_t start = e.number(1) < 0 ? e.number(1) + size : e.number(1);
  const std::int64_t length = e.number(2);
  e.need(start >= 0 && start <= size && length >= 0 && length <= size - start, kShape);
  if (e.refused()) return;
  e.shows(0, [&](const Array& array) { return narrow(array, axis, start, length); });
}

bool draw_select(Drawing& d, Step& step) {
  if (!draw_along_axis(d, step)) return false;
  const std::int64_t size = size_at(d.array(step.operands[0]), step.numbers[0]);
  const bool wrong = d.wrong();
  if (size == 0 && !wrong) return false;
  step.numbers.push_back(d.source.between(-size, size - (wrong ? 0 : 1)));
  return true;
}

void evaluate_select(Evaluation& e) {
  const Array& input = e.array(0);
  e.need(input.rank() > 0, kShape);
  const int axis = e.axis(e.number(0), input.rank());
  if (e.refused()) return;
  const std::int64_t size = input.sizes[static_cast<std::size_t>(axis)];
  const std::int64_t index = e.number(1) < 0 ? e.number(1) + size : e.number(1);
  if (!e.need(index >= 0 && index < size, kValue)) return;
  e.shows(0, [&](const Array& array) { return squeeze(narrow(array, axis, index, 1), axis); });
}

bool draw_permute(Drawing& d, Step& step) {
  if (!draw_unary(d, step)) return false;
  const int rank = d.array(step.operands[0]).rank();
  for (int i = 0; i < rank; ++i) step.numbers.push_back(i);
  for (std::size_t i = step.numbers.size(); i-- > 1;) {
    std::swap(step.numbers[i], step.numbers[d.source.below(i + 1)]);
  }
  for (std::int64_t& axis : step.numbers) axis -= d.source.chance(15) ? rank : 0;
  if (rank > 0 && d.wrong()) step.numbers[0] = d.source.between(-rank - 1, rank);
  return true;
}

void evaluate_permute(Evaluation& e) {
  const int rank = e.array(0).rank();
  e.need(static_cast<int>(e.step.numbers.size()) == rank, kShape);
  Sizes axes;
  for (const std::int64_t axis : e.step.numbers) axes.push_back(e.axis(axis, rank));
  e.need(std::set<std::int64_t>(axes.begin(), axes.end()).size() == axes.size(), kShape);
  if (e.refused()) return;
  e.shows(0, [&](const Array& array) { return permute(array, axes); });
}

bool draw_transpose(Drawing& d, Step& step) {
  if (!draw_along_axis(d, step)) return false;
  step.numbers.push_back(d.axis(d.array(step.operands[0]).rank()));
  return true;
}

void evaluate_transpose(Evaluation& e) {
  const int a = e.axis(e.number(0), e.array(0).rank());
  const int b = e.axis(e.number(1), e.array(0).rank());
  if (e.refused()) return;
  e.shows(0, [&](const Array& array) { return transpose(array, a, b); });
}

bool draw_expand(Drawing& d, Step& step) {
  if (!draw_unary(d, step)) return false;
  const Sizes& sizes = d.array(step.operands[0]).sizes;
  std::int64_t numel = product(sizes);
  if (d.source.chance(40) && sizes.size() < 4) step.numbers = {d.source.between(1, 3)};
  for (const std::int64_t size : sizes) {
    std::int64_t to = size == 1 ? d.source.one_of<std::int64_t>({1, 2, 3, 0}) : size;
    if (d.source.chance(15)) to = -1;
    if (d.wrong()) to = size + 1;
    step.numbers.push_back(to);
  }
  for (const std::int64_t size : step.numbers) numel *= std::max<std::int64_t>(size, 1);
  return numel < 4000 || product(sizes) < 50;
}

void evaluate_expand(Evaluation& e) {
  const Sizes& sizes = e.array(0).sizes;
  Sizes wanted = e.step.numbers;
  if (!e.need(wanted.size() >= sizes.size(), kShape)) return;
  const std::size_t added = wanted.size() - sizes.size();
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    const bool keeps = wanted[i] == -1 && i >= added;
    e.need(wanted[i] >= 0 || keeps, kShape);
    if (i < added) continue;
    if (keeps) wanted[i] = sizes[i - added];
    e.need(wanted[i] == sizes[i - added] || sizes[i - added] == 1, kShape);
  }
  if (e.refused()) return;
  e.shows(0, [&](const Array& array) { return expand(array, wanted); });
}

/// A random shape with that many elements, one size maybe -1.
bool draw_view(Drawing& d, Step& step) {
  if (!draw_unary(d, step)) return false;
  std::int64_t rest = d.array(step.operands[0]).numel();
  if (rest == 0) {
    step.numbers = d.array(step.operands[0]).sizes;
    std::reverse(step.numbers.begin(), step.numbers.end());
    return true;
  }
  for (int i = 0; i < 3; ++i) {
    const std::int64_t factor = d.source.one_of<std::int64_t>({1, 2, 3, 7, 11, 16});
    if (rest % factor != 0 || d.source.chance(30)) continue;
    step.numbers.push_back(factor);
    rest /= factor;
  }
  if (rest > 1 || d.source.chance(30)) {
    const auto place = static_cast<std::ptrdiff_t>(d.source.below(step.numbers.size() + 1));
    step.numbers.insert(step.numbers.begin() + place, d.source.chance(30) ? -1 : rest);
  }
  if (d.wrong()) step.numbers.push_back(d.source.one_of<std::int64_t>({-1, 2, 0, -2}));
  return true;
}

/// The sizes that are asked for with -1 replaced.
Sizes resolve(Evaluation& e) {
  Sizes sizes = e.step.numbers;
  const std::int64_t numel = e.array(0).numel();
  std::int64_t known = 1;
  int unknown = -1;
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] >= 0) {
      known *= sizes[i];
    } else if (e.need(sizes[i] == -1 && unknown < 0, kShape)) {
      unknown = static_cast<int>(i);
    }
  }
  if (e.refused()) return sizes;
  if (unknown < 0) {
    e.need(known == numel, kShape);
  } else if (e.need(known != 0 && numel % known == 0, kShape)) {
    sizes[static_cast<std::size_t>(unknown)] = numel / known;
  }
  return sizes;
}

void evaluate_view(Evaluation& e) {
  const Sizes sizes = resolve(e);
  if (e.refused()) return;
  if (!viewed(e.array(0), sizes)) {
    e.outcome.by_data = true;
    e.need(false, kShape);
    return;
  }
  e.shows(0, [&](const Array& array) { return *viewed(array, sizes); });
}

void evaluate_reshape(Evaluation& e) {
  const Sizes sizes = resolve(e);
  if (e.refused()) return;
  e.shows(0, [&](const Array& array) { return reshaped(array, sizes); });
}

void evaluate_squeeze(Evaluation& e) {
  const int axis = e.axis(e.number(0), e.array(0).rank());
  if (e.refused()) return;
  const Sizes& sizes = e.array(0).sizes;
  if (sizes.empty() || sizes[static_cast<std::size_t>(axis)] != 1) return e.returns(0);
  e.shows(0, [&](const Array& array) { return squeeze(array, axis); });
}

bool draw_unsqueeze(Drawing& d, Step& step) {
  if (!draw_unary(d, step)) return false;
  const int rank = d.array(step.operands[0]).rank();
  step.numbers = {d.axis(rank + 1)};
  return rank < 5;
}

void evaluate_unsqueeze(Evaluation& e) {
  const int axis = e.axis(e.number(0), e.array(0).rank() + 1);
  if (e.refused()) return;
  e.shows(0, [&](const Array& array) { return unsqueeze(array, axis); });
}

void evaluate_contiguous(Evaluation& e) {
  e.shows(0, [](const Array& array) { return array.is_contiguous() ? array : copied(array); });
}

void evaluate_detach(Evaluation& e) {
  e.not_differentiable = true;
  e.shows(0, [](const Array& array) { return array; });
}

void evaluate_clone(Evaluation& e) { e.copies(copied(e.array(0))); }

void evaluate_round_trip(Evaluation& e) {
  if (!e.now().on_device) return e.returns(0);
  evaluate_clone(e);
}

/// Numbers: the piece's size or the number of pieces, the axis, which piece.
bool draw_pieces(Drawing& d, Step& step) {
  if (!draw_along_axis(d, step)) return false;
  const std::int64_t axis = step.numbers[0];
  const std::int64_t size = size_at(d.array(step.operands[0]), axis);
  step.numbers = {d.source.between(d.wrong() ? 0 : 1, size + 1), axis, d.source.between(0, 4)};
  return true;
}

void evaluate_pieces(Evaluation& e, bool by_size) {
  const Array& input = e.array(0);
  e.need(input.rank() > 0, kShape);
  const int axis = e.axis(e.number(1), input.rank());
  const std::int64_t given = e.number(0);
  const std::int64_t size = e.refused() ? 1 : input.sizes[static_cast<std::size_t>(axis)];
  e.need(given > 0 || (by_size && given == 0 && size == 0), kValue);
  if (e.refused()) return;
  const std::int64_t step = by_size ? given : (size + given - 1) / given;
  std::int64_t count = size == 0 ? (by_size ? 1 : given) : (size + step - 1) / step;
  const std::int64_t piece = e.number(2) % count;
  const std::int64_t start = std::min(piece * step, size);
  const std::int64_t length = std::min(step, size - start);
  e.shows(0, [&](const Array& array) { return narrow(array, axis, start, length); });
}

Tensor piece_of(const std::vector<Tensor>& pieces, const Invocation& call) {
  return pieces.at(static_cast<std::size_t>(call.number(2)) % pieces.size());
}

bool draw_cast(Drawing& d, Step& step) {
  step.dtype = d.dtype();
  return draw_unary(d, step);
}

void evaluate_cast(Evaluation& e) {
  const Array& input = e.array(0);
  if (input.dtype == e.step.dtype) return e.returns(0);
  Numbers values = input.values();
  for (Number& value : values) value = convert(value, input.dtype, e.step.dtype);
  e.copies(make_array(e.step.dtype, input.sizes, std::move(values)));
}

// --- joins --------------------------------------------------------------------------------------

/// Two or three tensors of one dtype whose sizes agree but along one axis.
bool draw_cat(Drawing& d, Step& step) {
  if (!draw_along_axis(d, step)) return false;
  const Array& first = d.array(step.operands[0]);
  if (first.numel() > 500) return false;
  const std::int64_t axis = step.numbers[0] < 0 ? step.numbers[0] + first.rank() : step.numbers[0];
  for (std::int64_t i = d.source.between(0, 2); i > 0; --i) {
    const auto next = d.that([&](const Handle& handle) {
      Sizes sizes = handle.array.sizes;
      if (handle.array.dtype != first.dtype || sizes.size() != first.sizes.size()) return false;
      const auto place = static_cast<std::size_t>(axis);
      if (place < sizes.size()) sizes[place] = first.sizes[place];
      return sizes == first.sizes;
    });
    step.operands.push_back(d.wrong() ? d.any().value_or(*next) : *next);
  }
  return true;
}

bool draw_stack(Drawing& d, Step& step) {
  if (!draw_unary(d, step)) return false;
  const Array& first = d.array(step.operands[0]);
  if (first.numel() > 500 || first.rank() > 4) return false;
  step.numbers = {d.axis(first.rank() + 1)};
  for (std::int64_t i = d.source.between(0, 2); i > 0; --i) {
    const auto next = d.that([&](const Handle& handle) {
      return handle.array.dtype == first.dtype && handle.array.sizes == first.sizes;
    });
    step.operands.push_back(d.wrong() ? d.any().value_or(*next) : *next);
  }
  return true;
}

/// The operands, each seen as `view` shows it, one after another along `axis`.
template <class View>
void join(Evaluation& e, int axis, const View& view) {
  struct Piece {
    Numbers values;
    Numbers from;
    std::int64_t run;  // elements of one index of the outer axes
    int operand;
  };
  std::vector<Piece> pieces;
  Sizes sizes = view(e.array(0)).sizes;
  sizes[static_cast<std::size_t>(axis)] = 0;
  for (int i = 0; i < e.num_operands(); ++i) {
    const Array shown = view(e.array(i));
    sizes[static_cast<std::size_t>(axis)] += shown.sizes[static_cast<std::size_t>(axis)];
    const Sizes inner(shown.sizes.begin() + axis, shown.sizes.end());
    pieces.push_back(
        {shown.values(), view(positions(e.array(i).sizes)).values(), product(inner), i});
  }
  const std::int64_t outer = product(Sizes(sizes.begin(), sizes.begin() + axis));
  Numbers values;
  std::vector<Source> sources;
  for (std::int64_t o = 0; o < outer; ++o) {
    for (const Piece& piece : pieces) {
      for (std::int64_t i = o * piece.run; i < (o + 1) * piece.run; ++i) {
        values.push_back(piece.values[static_cast<std::size_t>(i)]);
        sources.push_back({piece.operand, as_integer(piece.from[static_cast<std::size_t>(i)])});
      }
    }
  }
  e.moves(make_array(e.array(0).dtype, sizes, std::move(values)), [&] { return sources; });
}

void evaluate_cat(Evaluation& e) {
  e.need_one_dtype();
  const Sizes& first = e.array(0).sizes;
  e.need(!first.empty(), kShape);
  const int axis = e.axis(e.number(0), e.array(0).rank());
  if (e.refused()) return;
  for (int i = 1; i < e.num_operands(); ++i) {
    Sizes sizes = e.array(i).sizes;
    if (!e.need(sizes.size() == first.size(), kShape)) continue;
    sizes[static_cast<std::size_t>(axis)] = first[static_cast<std::size_t>(axis)];
    e.need(sizes == first, kShape);
  }
  if (e.refused()) return;
  join(e, axis, [](const Array& array) { return array; });
}

void evaluate_stack(Evaluation& e) {
  e.need_one_dtype();
  const int axis = e.axis(e.number(0), e.array(0).rank() + 1);
  for (int i = 1; i < e.num_operands(); ++i) e.need(e.array(i).sizes == e.array(0).sizes, kShape);
  if (e.refused()) return;
  join(e, axis, [axis](const Array& array) { return unsqueeze(array, axis); });
}

}  // namespace

std::vector<Call> calls_that_show() {
  using I = const Invocation&;
  return {
      {"narrow", "narrow($0, #0, #1, #2)", 20, draw_narrow, evaluate_narrow,
       [](I c) { return narrow(c[0], c.number(0), c.number(1), c.number(2)); }},
      {"select", "select($0, #0, #1)", 10, draw_select, evaluate_select,
       [](I c) { return select(c[0], c.number(0), c.number(1)); }},
      {"permute", "permute($0, {#*})", 10, draw_permute, evaluate_permute,
       [](I c) { return permute(c[0], c.step.numbers); }},
      {"transpose", "transpose($0, #0, #1)", 14, draw_transpose, evaluate_transpose,
       [](I c) { return transpose(c[0], c.number(0), c.number(1)); }},
      {"expand", "expand($0, {#*})", 12, draw_expand, evaluate_expand,
       [](I c) { return expand(c[0], c.shape()); }},
      {"view", "view($0, {#*})", 10, draw_view, evaluate_view,
       [](I c) { return view(c[0], c.shape()); }},
      {"reshape", "reshape($0, {#*})", 10, draw_view, evaluate_reshape,
       [](I c) { return reshape(c[0], c.shape()); }},
      {"squeeze", "squeeze($0, #0)", 8, draw_along_axis, evaluate_squeeze,
       [](I c) { return squeeze(c[0], c.number(0)); }},
      {"unsqueeze", "unsqueeze($0, #0)", 8, draw_unsqueeze, evaluate_unsqueeze,
       [](I c) { return unsqueeze(c[0], c.number(0)); }},
      {"contiguous", "contiguous($0)", 8, draw_unary, evaluate_contiguous,
       [](I c) { return contiguous(c[0]); }},
      {"detach", "detach($0)", 6, draw_unary, evaluate_detach, [](I c) { return detach(c[0]); }},
      {"clone", "$0.clone()", 8, draw_unary, evaluate_clone, [](I c) { return c[0].clone(); }},
      {"own_dtype", "$0.to($0.dtype())", 4, draw_unary, [](Evaluation& e) { e.returns(0); },
       [](I c) { return c[0].to(c[0].dtype()); }},
      {"round_trip", "$0.cpu().to(device)", 4, draw_unary, evaluate_round_trip,
       [](I c) { return c[0].cpu().to(c.device); }, true},
      {"split", "split($0, #0, #1)[#2]", 6, draw_pieces,
       [](Evaluation& e) { evaluate_pieces(e, true); },
       [](I c) { return piece_of(split(c[0], c.number(0), c.number(1)), c); }},
      {"chunk", "chunk($0, #0, #1)[#2]", 6, draw_pieces,
       [](Evaluation& e) { evaluate_pieces(e, false); },
       [](I c) { return piece_of(chunk(c[0], c.number(0), c.number(1)), c); }},
      {"cast", "cast($0, @)", 24, draw_cast, evaluate_cast,
       [](I c) { return cast(c[0], c.step.dtype); }},
      {"cat", "cat({$*}, #0)", 10, draw_cat, evaluate_cat,
       [](I c) { return cat(c.operands, c.number(0)); }},
      {"stack", "stack({$*}, #0)", 6, draw_stack, evaluate_stack,
       [](I c) { return stack(c.operands, c.number(0)); }},
  };
}

}  // namespace tenon::op_fuzz
