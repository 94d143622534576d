// Wrong rewrites of residual blocks, multilayer perceptrons, a GPT and cross attention.
#include <cmath>

#include "tests/fuzz/planted.h"

namespace tenon::fuzz {
namespace {

using E = GraphEdit;
using X = GraphEdit::Operands;

const std::vector<Planted> kList = {
    {"residual dropped", scenes::attention,
     [](E& e) { e.replace(e.nth("add"), [](const X& x) { return x[0]; }); }},
    {"residual taken behind attention", scenes::attention,
     [](E& e) {
       e.feed(e.nth("add"), 1, [&](const Tensor&) { return e.result(e.nth("reshape")); });
     }},
    {"residual dropped out as well", scenes::attention,
     [](E& e) {
       const Node drop = e.graph().node(e.nth("dropout", 1));
       e.replace(e.nth("add"), [&](const X& x) {
         return apply1(*drop.op, {e.result(e.nth("linear", 3)) + x[1]}, drop.attrs);
       });
     }},
    {"residual without gradient", scenes::attention,
     [](E& e) { e.feed(e.nth("add"), 1, [](const Tensor& r) { return detach(r); }); }},
    {"norm of the branch, not of the sum", scenes::attention,
     [](E& e) {
       e.replace(e.nth("layer_norm"), [&](const X& x) {
         return layer_norm(e.result(e.nth("dropout", 1)), {12}, x[1], x[2]) + e.input(0);
       });
     }},
    {"norm's weight of 1 dropped", scenes::mlp,
     [](E& e) {
       e.replace(e.nth("layer_norm"), [](const X& x) { return layer_norm(x[0], {12}, {}, x[2]); });
     }},
    {"norm's bias of 0 dropped", scenes::mlp,
     [](E& e) {
       e.replace(e.nth("layer_norm"), [](const X& x) { return layer_norm(x[0], {12}, x[1]); });
     }},
    {"gradient of the norm's weight counted twice", scenes::mlp,
     [](E& e) {
       e.feed(e.nth("layer_norm"), 1, [](const Tensor& w) { return w * w / detach(w); });
     }},
    {"norm's weight without gradient", scenes::mlp,
     [](E& e) { e.feed(e.nth("layer_norm"), 1, [](const Tensor& w) { return detach(w); }); }},
    {"norm's eps changed", scenes::mlp, [](E& e) { e.set(e.nth("layer_norm"), "eps", 1e-6); }},
    {"norm's eps off in the fifth digit", scenes::mlp,
     [](E& e) {
       e.replace(e.nth("layer_norm"),
                 [](const X& x) { return layer_norm(x[0], {12}, x[1], x[2], 1e-5 * (1 + 1e-4)); });
     }},
    {"norm by the unbiased variance", scenes::mlp,
     [](E& e) {
       e.replace(e.nth("layer_norm"), [](const X& x) {
         const Tensor centred = x[0] - mean(x[0], {-1}, true);
         return centred * rsqrt(var(x[0], {-1}, 1, true) + 1e-5) * x[1] + x[2];
       });
     }},
    {"norm without the mean", scenes::mlp,
     [](E& e) {
       e.replace(e.nth("layer_norm"),
                 [](const X& x) { return rms_norm(x[0], {12}, x[1], 1e-5) + x[2]; });
     }},
    {"gelu by its tanh form", scenes::mlp,
     [](E& e) {
       e.replace(e.nth("gelu"), [](const X& x) { return gelu(x[0], Approximate::tanh); });
     }},
    {"gelu by a sigmoid", scenes::mlp,
     [](E& e) {
       e.replace(e.nth("gelu"), [](const X& x) { return x[0] * sigmoid(x[0] * 1.702); });
     }},
    {"gelu before the bias", scenes::mlp,
     [](E& e) {
       e.replace(e.nth("gelu"), [&](const X&) {
         return gelu(linear(e.input(0), e.state("up.weight"))) + e.state("up.bias");
       });
     }},
    {"gelu's gradient taken as that of relu", scenes::mlp,
     [](E& e) {
       e.wrap(e.nth("gelu"), [&](const Tensor& y) {
         const Tensor r = relu(e.result(e.nth("linear", 0)));
         return detach(y) + r - detach(r);
       });
     }},
    {"bias of the way down dropped", scenes::mlp,
     [](E& e) { e.replace(e.nth("linear", 1), [](const X& x) { return linear(x[0], x[1]); }); }},
    {"bias of the way up without gradient", scenes::mlp,
     [](E& e) { e.feed(e.nth("linear", 0), 2, [](const Tensor& b) { return detach(b); }); }},
    {"input without gradient", scenes::mlp,
     [](E& e) { e.feed(e.nth("linear", 0), 0, [](const Tensor& x) { return detach(x); }); }},
    {"branch in bfloat16", scenes::mlp,
     [](E& e) {
       e.wrap(e.nth("gelu"),
              [](const Tensor& y) { return cast(cast(y, DType::bfloat16), DType::float32); });
     }},
    {"branch a little too large", scenes::mlp,
     [](E& e) { e.wrap(e.nth("gelu"), [](const Tensor& y) { return y * (1 + 1e-7); }); }},
    {"dropout before the way down", scenes::mlp,
     [](E& e) {
       const Node drop = e.graph().node(e.nth("dropout"));
       e.replace(e.nth("dropout"), [&](const X&) {
         const Tensor act = apply1(*drop.op, {e.result(e.nth("gelu"))}, drop.attrs);
         return linear(act, e.state("down.weight"), e.state("down.bias"));
       });
     }},
    {"k and v from the queries' input", scenes::cross_attention,
     [](E& e) {
       e.replace(e.nth("matmul", 1), [&](const X&) {
         const Tensor x = e.input(0);
         const auto heads = [&](const std::string& name) {
           const Tensor y = linear(x, e.state(name + ".weight"), e.state(name + ".bias"));
           return y.view({y.size(0), y.size(1), 2, -1}).permute({0, 2, 1, 3});
         };
         const Tensor scores =
             matmul(e.result(e.nth("permute", 0)), heads("k_proj").transpose(-2, -1));
         return matmul(softmax(scores / std::sqrt(6.0), -1), heads("v_proj"));
       });
     }},
    {"k and v weights exchanged", scenes::cross_attention,
     [](E& e) {
       const Tensor k = e.state("k_proj.weight");
       const Tensor v = e.state("v_proj.weight");
       e.feed(e.nth("linear", 1), 1, [&](const Tensor&) { return v; });
       e.feed(e.nth("linear", 2), 1, [&](const Tensor&) { return k; });
     }},
    {"gpt: causal mask lost", scenes::gpt,
     [](E& e) { e.replace(e.nth("masked_fill"), [](const X& x) { return x[0]; }); }},
    {"gpt: mask the other way round", scenes::gpt,
     [](E& e) {
       e.feed(e.nth("masked_fill"), 1, [](const Tensor& mask) { return mask.transpose(0, 1); });
     }},
    {"gpt: one later key is seen", scenes::gpt,
     [](E& e) {
       e.replace(e.nth("masked_fill"), [](const X& x) {
         const Dim length = x[0].size(-1);
         const Tensor later = triu(full({}, 1).expand({length, length}), 2);
         return masked_fill(x[0], gt(later, 0), -HUGE_VAL);
       });
     }},
    {"gpt: positions off by one", scenes::gpt,
     [](E& e) {
       e.replace(e.nth("narrow"), [&](const X& x) {
         const Tensor shifted = cat({x[0].narrow(0, 1, 15), x[0].narrow(0, 0, 1)}, 0);
         return shifted.narrow(0, 0, e.input(0).size(1));
       });
     }},
    {"gpt: embeddings scaled", scenes::gpt,
     [](E& e) { e.wrap(e.nth("embedding"), [](const Tensor& y) { return y * std::sqrt(12.0); }); }},
    {"gpt: second norm's input without the first branch", scenes::gpt,
     [](E& e) {
       e.feed(e.nth("layer_norm", 1), 0,
              [&](const Tensor&) { return e.result(e.nth("dropout", 0)); });
     }},
    {"gpt: final norm's weight taken from another norm", scenes::gpt,
     [](E& e) {
       const Tensor other = e.state("blocks.0.norm1.weight");
       e.feed(e.nth("layer_norm", 2), 1, [&](const Tensor&) { return other; });
     }},
    {"gpt: indices above 1 read as 1", scenes::gpt,
     [](E& e) {
       e.feed(e.nth("embedding"), 0,
              [](const Tensor& index) { return cast(gt(index, 0), DType::int64); });
     }},
};

}  // namespace

std::vector<Planted> planted_in_models() { return kList; }

}  // namespace tenon::fuzz
