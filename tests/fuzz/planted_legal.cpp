// Counterparts of the planted wrong rewrites that are right, which verification must accept.
#include <cmath>

#include "tests/fuzz/planted.h"

namespace tenon::fuzz {
namespace {

using E = GraphEdit;
using X = GraphEdit::Operands;

Tensor number_of(const Tensor& x) {
  return cumsum(full({}, 1, {DType::int64, kCpu}).expand({x.size(-1)}), 0);
}

/// The weight is read transposed, and transposed back in the product.
void split_linear(E& e, std::size_t n) {
  e.replace(e.nth("linear", n),
            [](const X& x) { return matmul(x[0], x[1].transpose(0, 1)) + x[2]; });
}

Tensor hidden_beyond(const Dim& n, std::int64_t window) {
  const Tensor number = cumsum(full({}, 1, {DType::int64, kCpu}).expand({n}), 0);
  const Tensor ahead = number.unsqueeze(0) - number.unsqueeze(1);
  return gt(cast(gt(ahead, 0), DType::float32) + cast(le(ahead, -window), DType::float32), 0);
}

/// Joins v, q, k and takes the product apart in that order, as the node behind `cat` number n reads it.
Tensor rejoined(const X& x) {
  const Tensor other = cat({x[2], x[0], x[1]}, 0);
  const Dim rows = x[0].size(0);
  return cat(
      {other.narrow(0, rows, rows), other.narrow(0, rows * 2, rows), other.narrow(0, 0, rows)}, 0);
}

const std::vector<Planted> kList = {
    {"layers: a product and a bias in one layer", scenes::layers, [](E& e) { split_linear(e, 1); }},
    {"layers: a product and a bias in every layer", scenes::layers,
     [](E& e) {
       // Each split takes one linear out of the order: q, k and v of all layers.
       for (const std::size_t n : {std::size_t{0}, std::size_t{3}, std::size_t{6}}) {
         split_linear(e, n);
       }
     }},
    {"layers: residuals added the other way round", scenes::layers,
     [](E& e) {
       for (std::size_t n = 0; n < 3; ++n) {
         e.replace(e.nth("add", n), [](const X& x) { return x[1] + x[0]; });
       }
     }},
    {"layers: dropout through views", scenes::layers,
     [](E& e) {
       for (std::size_t n = 0; n < 6; n += 2) {
         e.feed(e.nth("dropout", n), 0, [](const Tensor& p) { return p.unsqueeze(0).squeeze(0); });
       }
     }},
    {"layers: masks compared the other way round", scenes::two_masks,
     [](E& e) {
       for (std::size_t n = 0; n < 2; ++n) {
         e.feed(e.nth("masked_fill", n), 1, [](const Tensor& mask) { return eq(eq(mask, 0), 0); });
       }
     }},
    {"layers: masks by a choice", scenes::two_masks,
     [](E& e) {
       for (int n = 0; n < 2; ++n) {
         e.replace(e.nth("masked_fill"),
                   [](const X& x) { return where(x[1], full({}, -HUGE_VAL), x[0]); });
       }
     }},
    {"layers: norm's weight as a factor behind", scenes::layers,
     [](E& e) {
       for (std::size_t n = 0; n < 3; ++n) {
         e.replace(e.nth("layer_norm", n),
                   [](const X& x) { return layer_norm(x[0], {12}) * x[1] + x[2]; });
       }
     }},
    {"layers: convolution's bias behind it", scenes::norms,
     [](E& e) {
       for (std::size_t n = 0; n < 2; ++n) {
         e.replace(e.nth("conv2d", n), [](const X& x) {
           return conv2d(x[0], x[1]) + x[2].view({1, 3, 1, 1});
         });
       }
     }},
    {"packed: another order, taken apart in it", scenes::fused_layers,
     [](E& e) {
       e.replace(e.nth("cat", 5), rejoined);
       e.replace(e.nth("cat", 2), rejoined);
     }},
    {"packed: joined in two steps", scenes::fused_layers,
     [](E& e) {
       e.replace(e.nth("cat", 0), [](const X& x) { return cat({cat({x[0], x[1]}, 0), x[2]}, 0); });
     }},
    {"window by comparisons", scenes::window,
     [](E& e) {
       e.replace(e.nth("masked_fill"), [](const X& x) {
         return masked_fill(x[0], hidden_beyond(x[0].size(-1), 16), -HUGE_VAL);
       });
     }},
    {"window in two steps", scenes::window,
     [](E& e) {
       e.replace(e.nth("masked_fill"), [](const X& x) {
         const Dim n = x[0].size(-1);
         const Tensor one = full({}, 1).expand({n, n});
         const Tensor past = masked_fill(x[0], gt(triu(one, 1), 0), -HUGE_VAL);
         return masked_fill(past, gt(tril(one, -16), 0), -HUGE_VAL);
       });
     }},
    {"long rows: mean by the sum", scenes::rows,
     [](E& e) {
       e.replace(e.nth("mean"), [](const X& x) { return sum(x[0], {-1}) / x[0].size(-1); });
     }},
    {"long rows: the first 64 by the others", scenes::rows,
     [](E& e) {
       e.replace(e.nth("where"),
                 [](const X& x) { return where(gt(number_of(x[2]), 64), x[2], x[1]); });
     }},
    {"long rows: softmax's logarithm by its maximum", scenes::rows,
     [](E& e) {
       e.replace(e.nth("log_softmax"), [](const X& x) {
         const Tensor moved = x[0] - detach(amax(x[0], {-1}, true));
         return moved - log(sum(exp(moved), {-1}, true));
       });
     }},
    {"constant: 150 cleared by a choice", scenes::numbered,
     [](E& e) {
       e.replace(e.nth("masked_fill"),
                 [](const X& x) { return where(eq(x[1], 0), x[0], full({}, 0.0)); });
     }},
    {"index: a minimum that no row meets", scenes::numbered,
     [](E& e) {
       e.feed(e.nth("embedding"), 0, [](const Tensor& ids) {
         return minimum(ids, full({}, 199, {DType::int64, kCpu}));
       });
     }},
    {"index: numbers through int32", scenes::numbered,
     [](E& e) {
       e.feed(e.nth("embedding"), 0, [](const Tensor& ids) { return cast(ids, DType::int32); });
     }},
    {"tiny: eps on the other side", scenes::rows,
     [](E& e) {
       e.replace(e.nth("div"), [](const X& x) { return x[0] * reciprocal(abs(x[0]) + 1e-15); });
     }},
    {"loud: relu by a choice", scenes::loud,
     [](E& e) {
       e.replace(e.nth("relu"),
                 [](const X& x) { return where(gt(x[0], 0), x[0], detach(x[0]) * 0.0); });
     }},
    {"loud: silu by a sigmoid", scenes::loud,
     [](E& e) { e.replace(e.nth("silu"), [](const X& x) { return x[0] * sigmoid(x[0]); }); }},
    {"loud: tanh by a sigmoid", scenes::loud,
     [](E& e) {
       e.replace(e.nth("tanh"), [](const X& x) { return sigmoid(x[0] * 2.0) * 2.0 - 1.0; });
     }},
    {"fused: attention's scale written out", scenes::fused_attention,
     [](E& e) {
       e.set(e.nth("scaled_dot_product_attention"), "scale", Scalar(1 / std::sqrt(6.0)));
     }},
    {"scale in front of the product", scenes::attention,
     [](E& e) {
       e.feed(e.nth("matmul", 0), 0, [](const Tensor& q) { return q / std::sqrt(6.0); });
       e.replace(e.nth("div"), [](const X& x) { return x[0]; });
     }},
    {"tied weight through a view", scenes::tied,
     [](E& e) {
       e.feed(e.nth("linear", 2), 1,
              [](const Tensor& w) { return w.transpose(0, 1).transpose(0, 1); });
     }},
    {"maximum by its ties", scenes::kinks,
     [](E& e) { e.replace(e.nth("maximum"), [](const X& x) { return maximum(x[1], x[0]); }); }},
};

}  // namespace

std::vector<Planted> planted_legal() { return kList; }

}  // namespace tenon::fuzz
