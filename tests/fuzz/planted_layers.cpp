// Wrong rewrites of layers that have one structure: each layer by itself is right, but what it reads,
// writes or draws is another's. Nodes of a layer of attention in program order: planted_attention.cpp.
#include "tests/fuzz/planted.h"

namespace tenon::fuzz {
namespace {

using E = GraphEdit;
using X = GraphEdit::Operands;

/// Two nodes of an op read each other's state as operand `i`.
void swap_states(E& e, const char* op, std::size_t i, std::size_t a, std::size_t b) {
  const auto read = [&](std::size_t n) {
    return e.graph().value(e.graph().node(e.nth(op, n)).inputs.at(i)).tensor;
  };
  const Tensor first = read(a);
  const Tensor second = read(b);
  e.feed(e.nth(op, a), i, [&](const Tensor&) { return second; });
  e.feed(e.nth(op, b), i, [&](const Tensor&) { return first; });
}

void swap_sites(E& e, std::size_t a, std::size_t b) {
  const auto read = [&](std::size_t n) {
    const Attrs& attrs = e.graph().node(e.nth("dropout", n)).attrs;
    return attrs.value(attrs.find("site"));
  };
  const AttrValue first = read(a);
  const AttrValue second = read(b);
  e.set(e.nth("dropout", a), "site", second);
  e.set(e.nth("dropout", b), "site", first);
}

/// `cat` number n joins its operands in another order.
void rejoin(E& e, std::size_t n, const std::vector<std::size_t>& order) {
  e.replace(e.nth("cat", n), [&](const X& x) {
    X joined;
    for (const std::size_t i : order) joined.push_back(x[i]);
    return cat(joined, 0);
  });
}

const std::vector<Planted> kList = {
    {"layers: weights of k in two layers exchanged", scenes::layers,
     [](E& e) { swap_states(e, "linear", 1, 1, 5); }},
    {"layers: biases of v in two layers exchanged", scenes::layers,
     [](E& e) { swap_states(e, "linear", 2, 2, 10); }},
    {"layers: output projections of the last two exchanged", scenes::layers,
     [](E& e) { swap_states(e, "linear", 1, 7, 11); }},
    {"layers: weight of q read in all", scenes::layers,
     [](E& e) {
       const Tensor q = e.state("layer.0.self_attn.q_proj.weight");
       e.feed(e.nth("linear", 4), 1, [&](const Tensor&) { return q; });
       e.feed(e.nth("linear", 8), 1, [&](const Tensor&) { return q; });
     }},
    {"layers: norms' weights of 1 exchanged", scenes::layers,
     [](E& e) { swap_states(e, "layer_norm", 1, 0, 1); }},
    {"layers: sites of the probabilities exchanged", scenes::layers,
     [](E& e) { swap_sites(e, 0, 2); }},
    {"layers: sites of the tails exchanged", scenes::layers, [](E& e) { swap_sites(e, 3, 5); }},
    {"layers: residual of the layer before", scenes::layers,
     [](E& e) {
       const NodeId first = e.nth("layer_norm", 0);
       e.feed(e.nth("add", 2), 1, [&](const Tensor&) { return e.result(first); });
     }},
    {"layers: one layer left out", scenes::layers,
     [](E& e) {
       const NodeId first = e.nth("layer_norm", 0);
       for (std::size_t i = 8; i < 11; ++i) {
         e.feed(e.nth("linear", i), 0, [&](const Tensor&) { return e.result(first); });
       }
       e.feed(e.nth("add", 2), 1, [&](const Tensor&) { return e.result(first); });
     }},
    {"layers: masks exchanged", scenes::two_masks,
     [](E& e) {
       e.feed(e.nth("masked_fill", 0), 1, [&](const Tensor&) { return e.input(2); });
       e.feed(e.nth("masked_fill", 1), 1, [&](const Tensor&) { return e.input(1); });
     }},
    {"layers: the first mask in both", scenes::two_masks,
     [](E& e) { e.feed(e.nth("masked_fill", 1), 1, [&](const Tensor&) { return e.input(1); }); }},
    {"layers: running means exchanged", scenes::norms,
     [](E& e) { swap_states(e, "batch_norm", 1, 0, 1); }},
    {"layers: running variances exchanged", scenes::norms,
     [](E& e) { swap_states(e, "batch_norm", 2, 0, 1); }},
    {"layers: statistics written into each other's", scenes::norms,
     [](E& e) {
       const auto writes = e.graph().writes();
       e.graph().drop_writes();
       for (std::size_t i = 0; i < writes.size(); ++i) {
         e.graph().set_write(writes[i].state, writes[(i + 2) % writes.size()].value);
       }
     }},
    {"layers: weights of the norms exchanged", scenes::norms,
     [](E& e) { swap_states(e, "batch_norm", 3, 0, 1); }},
    {"packed: k before q in the second layer", scenes::fused_layers,
     [](E& e) {
       rejoin(e, 2, {1, 0, 2});
     }},
    {"packed: biases turned round in the third layer", scenes::fused_layers,
     [](E& e) {
       rejoin(e, 5, {2, 1, 0});
     }},
    {"packed: weights of v for k in the first layer", scenes::fused_layers,
     [](E& e) {
       rejoin(e, 1, {0, 2, 2});
     }},
    {"packed: v of another layer", scenes::fused_layers,
     [](E& e) {
       const Tensor other = e.state("layer.1.self_attn.v_proj.weight");
       e.replace(e.nth("cat", 1), [&](const X& x) { return cat({x[0], x[1], other}, 0); });
     }},
    {"packed: rows of the heads interleaved", scenes::fused_layers,
     [](E& e) {
       e.wrap(e.nth("cat", 3), [](const Tensor& w) {
         return w.view({3, 12, 12}).transpose(0, 1).reshape({36, 12});
       });
     }},
};

}  // namespace

std::vector<Planted> planted_in_layers() { return kList; }

}  // namespace tenon::fuzz
