// Samples of reductions, views, copies and lookups.
#include "tensor/ops/attributes.h"
#include "tensor/rules/gradients.h"
#include "tests/autograd/gradcheck_samples.h"

namespace tenon::test {
namespace {

using Axes = std::vector<std::int64_t>;

/// A sample of one tensor.
template <class F>
void add(Samples& samples, const char* op, const char* what, const Tensor& x, F f) {
  samples.push_back({op,
                     what,
                     [f](const std::vector<Tensor>& in) { return std::vector<Tensor>{f(in[0])}; },
                     {x}});
}

/// Distinct values, far apart compared with a step: no ties.
Tensor distinct(const Extents& sizes, Memory memory = kDense) {
  std::int64_t i = 0;
  const auto next = [&] { return static_cast<double>(++i * 7 % 31) / 8 - 2; };
  return make_tensor(sizes, DType::float64, memory, next).requires_grad_();
}

void add_reduction(Samples& samples, const char* op,
                   Tensor (*f)(const Tensor&, const Axes&, bool)) {
  const bool has_identity = std::string(op) == "sum" || std::string(op) == "mean";
  const auto reduce = [&](const char* what, const Tensor& x, const Axes& dim, bool keepdim) {
    add(samples, op, what, x, [=](const Tensor& in) { return f(in, dim, keepdim); });
  };
  reduce("all", distinct({2, 3}), {}, false);
  reduce("all, keepdim", distinct({2, 3}, kPermuted), {}, true);
  reduce("0-dim", distinct({}), {}, false);
  reduce("last axis", distinct({2, 4}), {-1}, false);
  reduce("first axis, strided", distinct({3, 2, 2}, kPermuted), {0}, true);
  reduce("two axes", distinct({2, 3, 2}, kNarrowed), {0, 2}, false);
  reduce("middle axis", distinct({2, 3, 2}), {1}, true);
  reduce("axis of size 1", distinct({2, 1}), {1}, false);
  reduce("zero-size", distinct({0, 3}), {1}, false);
  if (has_identity) reduce("over nothing", distinct({0, 3}), {0}, false);
  if (has_identity) reduce("expanded", distinct({3, 2}, kExpanded), {0}, false);
}

void add_statistics(Samples& samples) {
  const auto variance = [&](const char* what, const Tensor& x, const Axes& dim, double correction,
                            bool keepdim) {
    add(samples, "var", what, x,
        [=](const Tensor& in) { return var(in, dim, correction, keepdim); });
  };
  variance("all", leaf({2, 3}), {}, 1, false);
  variance("population", leaf({2, 4}, kPermuted), {1}, 0, true);
  variance("two axes", leaf({2, 3, 2}, kNarrowed), {0, 2}, 1, false);
  variance("fractional correction", leaf({4, 2}), {0}, 1.5, false);
  variance("expanded", leaf({3, 2}, kExpanded), {1}, 1, false);
  variance("zero-size", leaf({0, 3}), {1}, 1, false);
  const auto running = [&](const char* what, const Tensor& x, std::int64_t dim) {
    add(samples, "cumsum", what, x, [=](const Tensor& in) { return cumsum(in, dim); });
  };
  running("last axis", leaf({2, 4}), -1);
  running("first axis, strided", leaf({3, 2, 2}, kPermuted), 0);
  running("vector", leaf({5}, kNarrowed), 0);
  running("0-dim", leaf({}), 0);
  running("expanded", leaf({3, 2}, kExpanded), 0);
  running("zero-size", leaf({2, 0}), 1);
}

/// The layouts and sizes that every op on (2, 3, 4), or (2, 0, 4), is checked with.
template <class F>
void add_view(Samples& samples, const char* op, F f) {
  add(samples, op, "contiguous", leaf({2, 3, 4}), f);
  add(samples, op, "permuted", leaf({2, 3, 4}, kPermuted), f);
  add(samples, op, "narrowed", leaf({2, 3, 4}, kNarrowed), f);
  add(samples, op, "expanded", leaf({2, 3, 4}, kExpanded), f);
}

void add_views(Samples& samples) {
  add(samples, "view", "contiguous", leaf({2, 6}), [](const Tensor& x) { return view(x, {3, 4}); });
  add(samples, "view", "expanded", leaf({3, 4}, kExpanded), [](const Tensor& x) {
    return view(x, {3, 2, 2});
  });
  add(samples, "view", "zero-size", leaf({2, 0}), [](const Tensor& x) { return view(x, {0, 5}); });
  add_view(samples, "reshape", [](const Tensor& x) { return reshape(x, {4, -1}); });
  add(samples, "reshape", "zero-size", leaf({2, 0}), [](const Tensor& x) {
    return reshape(x, {0, 5});
  });
  const auto turned = [](const Tensor& x) { return permute(x, {2, 0, 1}); };
  add_view(samples, "permute", turned);
  add(samples, "permute", "zero-size", leaf({2, 0, 4}), turned);
  const auto swapped = [](const Tensor& x) { return transpose(x, 0, -1); };
  add_view(samples, "transpose", swapped);
  add(samples, "transpose", "zero-size", leaf({2, 0, 4}), swapped);
  const auto middle = [](const Tensor& x) { return narrow(x, 2, 1, 2); };
  add_view(samples, "narrow", middle);
  add(samples, "narrow", "zero-size", leaf({2, 0, 4}), middle);
  add(samples, "narrow", "nothing of it", leaf({2, 3}),
      [](const Tensor& x) { return narrow(x, 1, 3, 0); });
  const auto unsqueezed = [](const Tensor& x) { return unsqueeze(x, 1); };
  add_view(samples, "unsqueeze", unsqueezed);
  add(samples, "unsqueeze", "zero-size", leaf({2, 0, 4}), unsqueezed);
  const auto squeezed = [](const Tensor& x) { return squeeze(x, 1); };
  add(samples, "squeeze", "size 1", leaf({3, 1, 2}, kPermuted), squeezed);
  add(samples, "squeeze", "expanded", leaf({2, 1}, kExpanded), squeezed);
  add(samples, "squeeze", "zero-size", leaf({0, 1}), squeezed);
  const auto expanded = [](const Tensor& x) { return expand(x, {2, 3, 4}); };
  add(samples, "expand", "new axes", leaf({4}), expanded);
  add(samples, "expand", "axes of size 1", leaf({2, 1, 4}, kPermuted), expanded);
  add(samples, "expand", "0-dim", leaf({}), expanded);
  add(samples, "expand", "zero-size", leaf({0, 1}), [](const Tensor& x) {
    return expand(x, {0, 3});
  });
  add(samples, "expand", "to nothing", leaf({1, 3}), [](const Tensor& x) {
    return expand(x, {0, 3});
  });
  add_view(samples, "clone", clone);
  add(samples, "clone", "zero-size", leaf({2, 0}), clone);
  // To the device where it is, which the function to_device does not call the op for.
  const auto moved = [](const Tensor& x) {
    return apply1(get_op("to_device"), {x}, ToDeviceAttrs{kCpu});
  };
  add_view(samples, "to_device", moved);
  add(samples, "to_device", "zero-size", leaf({2, 0}), moved);
  // A contiguous operand is returned as it is, without a call.
  add(samples, "contiguous", "permuted", leaf({2, 3}, kPermuted), contiguous);
  add(samples, "contiguous", "expanded", leaf({2, 3}, kExpanded), contiguous);
  add(samples, "contiguous", "narrowed", leaf({2, 3, 2}, kNarrowed), contiguous);
  add(samples, "contiguous", "zero-size", leaf({2, 0}),
      [](const Tensor& x) { return apply1(get_op("contiguous"), {x}); });
}

void add_joins(Samples& samples) {
  const auto join = [](std::int64_t dim) {
    return [dim](const std::vector<Tensor>& in) { return std::vector{cat(in, dim)}; };
  };
  samples.push_back({"cat", "first axis", join(0), {leaf({2, 3}), leaf({1, 3}, kDense, 2)}});
  samples.push_back({"cat",
                     "three, one empty, strided",
                     join(-1),
                     {leaf({2, 2}, kPermuted), leaf({2, 0}), leaf({2, 3}, kNarrowed, 3)}});
  add(samples, "cat", "a tensor twice", leaf({2, 2}, kExpanded), [](const Tensor& x) {
    return cat({x, square(x), x}, 1);
  });
  samples.push_back({"cat", "zero-size", join(1), {leaf({0, 2}), leaf({0, 1})}});
  samples.push_back({"cat",
                     "stacked",
                     [](const std::vector<Tensor>& in) {
                       return std::vector{stack(in, 1), stack(in, 0)};
                     },
                     {leaf({2, 3}, kPermuted), leaf({2, 3}, kDense, 2)}});
  samples.push_back({"narrow",
                     "pieces of which one is not used",
                     [](const std::vector<Tensor>& in) {
                       const auto pieces = split(in[0], 2, 1);
                       return std::vector{pieces[0], square(pieces[2]), chunk(in[0], 2, 0)[1]};
                     },
                     {leaf({2, 5}, kPermuted)}});
  add(samples, "narrow", "selected", leaf({2, 3, 2}, kPermuted),
      [](const Tensor& x) { return select(x, 1, -1); });
}

void add_triangles(Samples& samples) {
  for (const std::int64_t diagonal : {-1, 0, 2}) {
    const auto lower = [=](const Tensor& x) { return tril(x, diagonal); };
    const auto upper = [=](const Tensor& x) { return triu(x, diagonal); };
    add(samples, "tril", "matrix", leaf({3, 4}, kPermuted), lower);
    add(samples, "tril", "batch", leaf({2, 3, 2}), lower);
    add(samples, "tril", "zero-size", leaf({2, 0, 3}), lower);
    add(samples, "triu", "matrix", leaf({3, 4}, kNarrowed), upper);
    add(samples, "triu", "batch", leaf({2, 3, 2}, kExpanded), upper);
    add(samples, "triu", "zero-size", leaf({2, 0, 3}), upper);
  }
}

void add_lookups(Samples& samples) {
  const auto rows = [](const std::vector<Tensor>& in) {
    return std::vector{embedding(in[1], in[0])};
  };
  samples.push_back(
      {"embedding", "repeated rows", rows, {leaf({4, 3}), indices({1, 3, 1, 0}, {2, 2})}});
  samples.push_back({"embedding", "strided", rows, {leaf({3, 2}, kPermuted), indices({2}, {})}});
  samples.push_back({"embedding", "zero-size", rows, {leaf({3, 2}), indices({}, {0, 2})}});
  const auto slices = [](std::int64_t dim) {
    return [dim](const std::vector<Tensor>& in) {
      return std::vector{index_select(in[0], dim, in[1])};
    };
  };
  const Tensor repeated = indices({2, 0, 2}, {3});
  samples.push_back({"index_select", "rows", slices(0), {leaf({3, 2}), repeated}});
  samples.push_back({"index_select", "columns", slices(-1), {leaf({2, 3}, kPermuted), repeated}});
  samples.push_back({"index_select", "zero-size", slices(1), {leaf({2, 3}), indices({}, {0})}});
  const auto picked = [](std::int64_t dim) {
    return [dim](const std::vector<Tensor>& in) { return std::vector{gather(in[0], dim, in[1])}; };
  };
  samples.push_back(
      {"gather", "rows", picked(0), {leaf({3, 2}), indices({2, 0, 2, 1, 0, 0, 2, 2}, {4, 2})}});
  samples.push_back(
      {"gather", "columns", picked(1), {leaf({2, 3}, kPermuted), indices({2, 2, 0, 1}, {2, 2})}});
  samples.push_back({"gather", "zero-size", picked(1), {leaf({2, 3}), indices({}, {2, 0})}});
}

/// Gradient ops by themselves: the gradient of a gradient goes through them.
void add_lookup_gradients(Samples& samples) {
  const auto embed = [](const Tensor& g) { return ops::narrow_backward(g, 1, 2, 5); };
  add(samples, "narrow_backward", "middle", leaf({2, 3}, kPermuted), embed);
  add(samples, "narrow_backward", "zero-size", leaf({0, 3}), embed);
  const auto scatter = [](const std::vector<Tensor>& in) {
    return std::vector{ops::index_select_backward(in[0], in[1], 0, 4)};
  };
  samples.push_back({"index_select_backward",
                     "repeated",
                     scatter,
                     {leaf({3, 2}, kPermuted), indices({2, 0, 2}, {3})}});
  samples.push_back(
      {"index_select_backward", "zero-size", scatter, {leaf({0, 2}), indices({}, {0})}});
  const auto spread = [](const std::vector<Tensor>& in) {
    return std::vector{ops::gather_backward(in[0], in[1], 1, {2, 3})};
  };
  samples.push_back({"gather_backward",
                     "repeated",
                     spread,
                     {leaf({2, 2}, kPermuted), indices({2, 2, 0, 1}, {2, 2})}});
  samples.push_back({"gather_backward", "zero-size", spread, {leaf({2, 0}), indices({}, {2, 0})}});
}

}  // namespace

Samples reduction_samples() {
  Samples samples;
  add_reduction(samples, "sum", sum);
  add_reduction(samples, "mean", mean);
  add_reduction(samples, "amax", amax);
  add_reduction(samples, "amin", amin);
  add_statistics(samples);
  return samples;
}

Samples shape_samples() {
  Samples samples;
  add_views(samples);
  add_joins(samples);
  add_triangles(samples);
  add_lookups(samples);
  add_lookup_gradients(samples);
  return samples;
}

}  // namespace tenon::test
