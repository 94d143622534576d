// Wrong rewrites of attention. Nodes of the plain block in program order: linear, view and permute for
// q, k and v (0, 1, 2), transpose, matmul 0, div, softmax, dropout 0, matmul 1, permute 3, reshape,
// linear 3, dropout 1, add, layer_norm.
#include <cmath>

#include "tests/fuzz/planted.h"

namespace tenon::fuzz {
namespace {

using E = GraphEdit;
using X = GraphEdit::Operands;

void feed_result(E& e, NodeId node, std::size_t operand, NodeId source, std::size_t output = 0) {
  e.feed(node, operand, [&](const Tensor&) { return e.result(source, output); });
}

Tensor without_maximum(const Tensor& x) {
  const Tensor numerators = exp(x);
  return numerators / sum(numerators, {-1}, true);
}

/// Heads as the fast axis: (batch, seq, d·heads) -> (batch, heads, seq, d).
Tensor interleaved_heads(const Tensor& x) {
  return x.view({x.size(0), x.size(1), -1, 2}).permute({0, 3, 1, 2});
}

const std::vector<Planted> kList = {
    {"k and v swapped", scenes::attention,
     [](E& e) {
       const NodeId k = e.nth("permute", 1);
       const NodeId v = e.nth("permute", 2);
       feed_result(e, e.nth("matmul", 1), 1, k);
       e.feed(e.nth("matmul", 0), 1, [&](const Tensor&) { return e.result(v).transpose(-2, -1); });
     }},
    {"q and k swapped", scenes::attention,
     [](E& e) {
       const NodeId q = e.nth("permute", 0);
       const NodeId k = e.nth("permute", 1);
       e.replace(e.nth("matmul", 0),
                 [&](const X&) { return matmul(e.result(k), e.result(q).transpose(-2, -1)); });
     }},
    {"v taken from q", scenes::attention,
     [](E& e) { feed_result(e, e.nth("matmul", 1), 1, e.nth("permute", 0)); }},
    {"bias of q dropped", scenes::attention,
     [](E& e) { e.replace(e.nth("linear", 0), [](const X& x) { return linear(x[0], x[1]); }); }},
    {"bias of v dropped", scenes::attention,
     [](E& e) { e.replace(e.nth("linear", 2), [](const X& x) { return linear(x[0], x[1]); }); }},
    {"bias of q dropped where all biases are zero", scenes::zero_biases,
     [](E& e) { e.replace(e.nth("linear", 0), [](const X& x) { return linear(x[0], x[1]); }); }},
    {"biases of q and v exchanged where all are zero", scenes::zero_biases,
     [](E& e) {
       const Tensor q = e.state("self_attn.q_proj.bias");
       const Tensor v = e.state("self_attn.v_proj.bias");
       e.feed(e.nth("linear", 0), 2, [&](const Tensor&) { return v; });
       e.feed(e.nth("linear", 2), 2, [&](const Tensor&) { return q; });
     }},
    {"weight of q transposed", scenes::attention,
     [](E& e) {
       e.feed(e.nth("linear", 0), 1, [](const Tensor& w) { return w.transpose(0, 1); });
     }},
    {"weight of the output projection transposed", scenes::attention,
     [](E& e) {
       e.feed(e.nth("linear", 3), 1, [](const Tensor& w) { return w.transpose(0, 1); });
     }},
    {"scale dropped", scenes::attention,
     [](E& e) { e.replace(e.nth("div"), [](const X& x) { return x[0]; }); }},
    {"scaled by d instead of its root", scenes::attention,
     [](E& e) { e.replace(e.nth("div"), [](const X& x) { return x[0] / 6.0; }); }},
    {"scaled by the root of the hidden size", scenes::attention,
     [](E& e) { e.replace(e.nth("div"), [](const X& x) { return x[0] / std::sqrt(12.0); }); }},
    {"scale off in the seventh digit", scenes::attention,
     [](E& e) { e.wrap(e.nth("div"), [](const Tensor& y) { return y * 1.0000004; }); }},
    {"scaled twice in one head", scenes::attention,
     [](E& e) {
       e.wrap(e.nth("div"), [](const Tensor& y) {
         return cat({y.narrow(1, 0, 1), y.narrow(1, 1, 1) / std::sqrt(6.0)}, 1);
       });
     }},
    {"wrong head stride in q", scenes::attention,
     [](E& e) {
       e.replace(e.nth("permute", 0),
                 [&](const X&) { return interleaved_heads(e.result(e.nth("linear", 0))); });
     }},
    {"wrong head stride in q, k and v alike", scenes::attention,
     [](E& e) {
       for (std::size_t i = 0; i < 3; ++i) {
         e.replace(e.nth("permute", i),
                   [&](const X&) { return interleaved_heads(e.result(e.nth("linear", i))); });
       }
     }},
    {"heads merged without the permute", scenes::attention,
     [](E& e) {
       e.replace(e.nth("permute", 3), [](const X& x) {
         return x[0].reshape({x[0].size(0), x[0].size(2), x[0].size(1), x[0].size(3)});
       });
     }},
    {"heads merged in reverse", scenes::attention,
     [](E& e) {
       e.wrap(e.nth("matmul", 1), [](const Tensor& y) {
         return cat({y.narrow(1, 1, 1), y.narrow(1, 0, 1)}, 1);
       });
     }},
    {"softmax over the queries", scenes::attention,
     [](E& e) { e.replace(e.nth("softmax"), [](const X& x) { return softmax(x[0], -2); }); }},
    {"softmax over the heads", scenes::attention,
     [](E& e) { e.replace(e.nth("softmax"), [](const X& x) { return softmax(x[0], 1); }); }},
    {"softmax without its maximum", scenes::attention,
     [](E& e) { e.replace(e.nth("softmax"), [](const X& x) { return without_maximum(x[0]); }); }},
    {"gradient of the probabilities counted twice", scenes::attention,
     [](E& e) { e.wrap(e.nth("softmax"), [](const Tensor& p) { return p * 2.0 - detach(p); }); }},
    {"dropout of the probabilities lost", scenes::attention,
     [](E& e) { e.replace(e.nth("dropout", 0), [](const X& x) { return x[0]; }); }},
    {"dropout sites exchanged", scenes::attention,
     [](E& e) {
       e.set(e.nth("dropout", 0), "site", std::int64_t{1});
       e.set(e.nth("dropout", 1), "site", std::int64_t{0});
     }},
    {"a new dropout site", scenes::attention,
     [](E& e) { e.set(e.nth("dropout", 0), "site", std::int64_t{7}); }},
    {"another dropout probability", scenes::attention,
     [](E& e) { e.set(e.nth("dropout", 0), "p", 0.12); }},
    {"a dropout probability that rounds to the same mask", scenes::attention,
     [](E& e) { e.set(e.nth("dropout", 1), "p", 0.1 + 1e-9); }},
    {"dropout that always acts", scenes::attention,
     [](E& e) { e.set(e.nth("dropout", 1), "mode", std::string("train")); }},
    {"dropout that never acts", scenes::attention,
     [](E& e) { e.set(e.nth("dropout", 1), "mode", std::string("eval")); }},
    {"dropout of the product instead of the probabilities", scenes::attention,
     [](E& e) {
       const Node drop = e.graph().node(e.nth("dropout", 0));
       e.replace(e.nth("matmul", 1), [&](const X& x) {
         const Tensor p = e.result(e.nth("softmax"));
         return apply1(*drop.op, {matmul(p, x[1])}, drop.attrs);
       });
     }},
    {"dropout of the transposed probabilities", scenes::attention,
     [](E& e) {
       const Node drop = e.graph().node(e.nth("dropout", 0));
       e.replace(e.nth("dropout", 0), [&](const X& x) {
         return apply1(*drop.op, {x[0].transpose(-2, -1)}, drop.attrs).transpose(-2, -1);
       });
     }},
    {"gradient of v cut off", scenes::attention,
     [](E& e) { e.feed(e.nth("matmul", 1), 1, [](const Tensor& v) { return detach(v); }); }},
    {"gradient of the probabilities cut off", scenes::attention,
     [](E& e) { e.feed(e.nth("matmul", 1), 0, [](const Tensor& p) { return detach(p); }); }},
    {"gradient of v's bias counted twice", scenes::attention,
     [](E& e) {
       e.feed(e.nth("linear", 2), 2, [](const Tensor& b) { return b * 2.0 - detach(b); });
     }},
    {"gradient of one head counted twice", scenes::attention,
     [](E& e) {
       e.wrap(e.nth("matmul", 1), [](const Tensor& y) {
         const Tensor head = y.narrow(1, 0, 1);
         return cat({head * 2.0 - detach(head), y.narrow(1, 1, 1)}, 1);
       });
     }},
    {"fused: q and k weights joined in another order", scenes::fused_attention,
     [](E& e) {
       e.replace(e.nth("cat", 0), [](const X& x) { return cat({x[1], x[0], x[2]}, 0); });
     }},
    {"fused: biases joined in another order", scenes::fused_attention,
     [](E& e) {
       e.replace(e.nth("cat", 1), [](const X& x) { return cat({x[0], x[2], x[1]}, 0); });
     }},
    {"fused: a gradient of the joined weight forgotten", scenes::fused_attention,
     [](E& e) {
       e.replace(e.nth("cat", 0), [](const X& x) { return cat({x[0], x[1], detach(x[2])}, 0); });
     }},
    {"fused: attention without its dropout", scenes::fused_attention,
     [](E& e) { e.set(e.nth("scaled_dot_product_attention"), "dropout_p", 0.0); }},
    {"fused: attention with another probability", scenes::fused_attention,
     [](E& e) { e.set(e.nth("scaled_dot_product_attention"), "dropout_p", 0.11); }},
    {"fused: attention made causal", scenes::fused_attention,
     [](E& e) { e.set(e.nth("scaled_dot_product_attention"), "is_causal", true); }},
    {"fused: attention's scale of 1", scenes::fused_attention,
     [](E& e) { e.set(e.nth("scaled_dot_product_attention"), "scale", Scalar(1.0)); }},
    {"fused: attention gets k for v", scenes::fused_attention,
     [](E& e) {
       e.replace(e.nth("scaled_dot_product_attention"), [&](const X& x) {
         const Node node = e.graph().node(e.nth("scaled_dot_product_attention"));
         return tenon::apply(*node.op, X{x[0], x[1], x[1], x[3]}, node.attrs)[0];
       });
     }},
    {"fused: attention keeps its dropout in eval", scenes::fused_attention,
     [](E& e) { e.set(e.nth("scaled_dot_product_attention"), "mode", std::string("train")); }},
    {"fused: the tail's eps", scenes::fused_attention,
     [](E& e) { e.set(e.nth("bias_dropout_residual_layer_norm"), "eps", 1e-6); }},
    {"fused: the tail's bias forgotten", scenes::fused_attention,
     [](E& e) {
       e.feed(e.nth("bias_dropout_residual_layer_norm"), 1,
              [](const Tensor& b) { return b * 0.0; });
     }},
    {"fused: the tail's bias without gradient", scenes::fused_attention,
     [](E& e) {
       e.feed(e.nth("bias_dropout_residual_layer_norm"), 1,
              [](const Tensor& b) { return detach(b); });
     }},
    {"fused: the tail's residual and input exchanged", scenes::fused_attention,
     [](E& e) {
       e.replace(e.nth("bias_dropout_residual_layer_norm"), [&](X x) {
         const Node node = e.graph().node(e.nth("bias_dropout_residual_layer_norm"));
         std::swap(x[0], x[2]);
         return tenon::apply(*node.op, x, node.attrs)[0];
       });
     }},
};

}  // namespace

std::vector<Planted> planted_in_attention() { return kList; }

}  // namespace tenon::fuzz
