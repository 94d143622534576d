// Wrong rewrites out of the reach of small sizes and numbers of order one: lengths, constants, large
// indices, large and tiny numbers, and what only the model's own activations show.
#include <cmath>

#include "tests/fuzz/planted.h"

namespace tenon::fuzz {
namespace {

using E = GraphEdit;
using X = GraphEdit::Operands;

/// 1, 2, … along the last axis of x.
Tensor number_of(const Tensor& x) {
  return cumsum(full({}, 1, {DType::int64, kCpu}).expand({x.size(-1)}), 0);
}

void hide_by(E& e, std::int64_t above, std::int64_t below) {
  e.replace(e.nth("masked_fill"), [&](const X& x) {
    const Dim n = x[0].size(-1);
    const Tensor one = full({}, 1).expand({n, n});
    const Tensor later = triu(one, above);
    const Tensor hidden = below == 0 ? later : later + tril(one, below);
    return masked_fill(x[0], gt(hidden, 0), -HUGE_VAL);
  });
}

void feed_ids(E& e, Tensor (*change)(const Tensor&)) {
  e.feed(e.nth("embedding"), 0, [&](const Tensor& ids) { return change(ids); });
}

const std::vector<Planted> kList = {
    // sizes
    {"window of 16 lost", scenes::window, [](E& e) { hide_by(e, 1, 0); }},
    {"window of 17", scenes::window, [](E& e) { hide_by(e, 1, -17); }},
    {"window of 32", scenes::window, [](E& e) { hide_by(e, 1, -32); }},
    {"keys 20 behind the query seen", scenes::window,
     [](E& e) {
       e.feed(e.nth("masked_fill"), 1, [](const Tensor& hidden) {
         const Dim n = hidden.size(-1);
         return gt(cast(hidden, DType::float32) - tril(full({}, 1).expand({n, n}), -20), 0);
       });
     }},
    {"long rows: mean of the first 100", scenes::rows,
     [](E& e) {
       e.replace(e.nth("mean"), [](const X& x) {
         return sum(masked_fill(x[0], gt(number_of(x[0]), 100), 0), {-1}) / x[0].size(-1);
       });
     }},
    {"long rows: logarithms beyond 1,000 not normalized", scenes::rows,
     [](E& e) {
       e.wrap(e.nth("log_softmax"),
              [&](const Tensor& y) { return where(gt(number_of(y), 1000), e.input(0), y); });
     }},
    {"long rows: the first 63 doubled", scenes::rows,
     [](E& e) {
       e.replace(e.nth("where"),
                 [](const X& x) { return where(le(number_of(x[2]), 63), x[1], x[2]); });
     }},
    {"long rows: all doubled", scenes::rows,
     [](E& e) { e.replace(e.nth("where"), [](const X& x) { return x[1]; }); }},
    // constants
    {"constant: 150 not cleared", scenes::numbered,
     [](E& e) { e.replace(e.nth("masked_fill"), [](const X& x) { return x[0]; }); }},
    {"constant: 151 cleared as well", scenes::numbered,
     [](E& e) {
       e.feed(e.nth("masked_fill"), 1, [&](const Tensor& own) {
         const Tensor other = eq(e.input(0), 151).unsqueeze(-1);
         return gt(cast(own, DType::float32) + cast(other, DType::float32), 0);
       });
     }},
    {"constant: relu of -17 is 1", scenes::loud,
     [](E& e) {
       e.replace(e.nth("relu"),
                 [](const X& x) { return masked_fill(relu(x[0]), eq(x[0], -17), 1); });
     }},
    // indices
    {"index: rows beyond 100 taken for the 100th", scenes::numbered,
     [](E& e) {
       feed_ids(e, [](const Tensor& ids) {
         return minimum(ids, full({}, 100, {DType::int64, kCpu}));
       });
     }},
    {"index: numbers through int8", scenes::numbered,
     [](E& e) {
       feed_ids(e,
                [](const Tensor& ids) { return abs(cast(cast(ids, DType::int8), DType::int64)); });
     }},
    {"index: the last row taken for the first", scenes::numbered,
     [](E& e) {
       feed_ids(e, [](const Tensor& ids) {
         return where(eq(ids, 199), full({}, 0, {DType::int64, kCpu}), ids);
       });
     }},
    // magnitudes
    {"tiny: eps of 1e-14", scenes::rows,
     [](E& e) { e.replace(e.nth("div"), [](const X& x) { return x[0] / (abs(x[0]) + 1e-14); }); }},
    {"tiny: no eps", scenes::rows,
     [](E& e) { e.replace(e.nth("div"), [](const X& x) { return x[0] / abs(x[0]); }); }},
    {"tiny: numbers below 1e-9 flushed", scenes::rows,
     [](E& e) {
       e.feed(e.nth("log_softmax"), 0,
              [](const Tensor& x) { return masked_fill(x, lt(abs(x), 1e-9), 0); });
     }},
    {"large: numbers beyond 1e6 cut", scenes::rows,
     [](E& e) {
       e.feed(e.nth("mean"), 0, [](const Tensor& x) { return minimum(x, full({}, 1e6)); });
     }},
    {"large: logarithm of a sum of exponentials", scenes::rows,
     [](E& e) {
       e.replace(e.nth("log_softmax"),
                 [](const X& x) { return x[0] - log(sum(exp(x[0]), {-1}, true)); });
     }},
    // activations
    {"loud: relu halved above 30", scenes::loud,
     [](E& e) {
       e.replace(e.nth("relu"),
                 [](const X& x) { return where(gt(x[0], 30), x[0] * 0.5, relu(x[0])); });
     }},
    {"loud: relu's gradient lost above 30", scenes::loud,
     [](E& e) {
       e.replace(e.nth("relu"),
                 [](const X& x) { return where(gt(x[0], 30), detach(x[0]), relu(x[0])); });
     }},
    {"loud: tanh by exponentials", scenes::loud,
     [](E& e) {
       e.replace(e.nth("tanh"), [](const X& x) {
         const Tensor squared = exp(x[0] * 2.0);
         return (squared - 1.0) / (squared + 1.0);
       });
     }},
    {"loud: silu by an exponential", scenes::loud,
     [](E& e) { e.replace(e.nth("silu"), [](const X& x) { return x[0] / (exp(-x[0]) + 1.0); }); }},
    {"loud: relu through float16", scenes::loud,
     [](E& e) {
       e.feed(e.nth("relu"), 0, [](const Tensor& h) {
         return cast(cast(h * 1024.0, DType::float16), DType::float32) / 1024.0;
       });
     }},
};

}  // namespace

std::vector<Planted> planted_out_of_reach() { return kList; }

}  // namespace tenon::fuzz
