// Wrong rewrites that show at special values only: kinks, ties, rows without keys, large numbers; and
// those of results and outputs.
#include <cmath>

#include "tests/fuzz/planted.h"

namespace tenon::fuzz {
namespace {

using E = GraphEdit;
using X = GraphEdit::Operands;

Tensor zero_like(const Tensor& x) { return detach(x) * 0.0; }

const std::vector<Planted> kList = {
    {"relu's gradient of 1 at 0", scenes::kinks,
     [](E& e) {
       e.replace(e.nth("relu"),
                 [](const X& x) { return where(ge(x[0], 0), x[0], zero_like(x[0])); });
     }},
    {"relu by a maximum that shares its ties", scenes::kinks,
     [](E& e) {
       e.replace(e.nth("relu"), [](const X& x) { return maximum(x[0], zero_like(x[0])); });
     }},
    {"maximum's ties given to one side", scenes::kinks,
     [](E& e) {
       e.replace(e.nth("maximum"), [](const X& x) { return where(ge(x[0], x[1]), x[0], x[1]); });
     }},
    {"absolute value by a root", scenes::kinks,
     [](E& e) { e.replace(e.nth("abs"), [](const X& x) { return sqrt(square(x[0])); }); }},
    {"absolute value with a slope at 0", scenes::kinks,
     [](E& e) {
       e.replace(e.nth("abs"), [](const X& x) { return where(ge(x[0], 0), x[0], -x[0]); });
     }},
    {"largest element without gradient", scenes::kinks,
     [](E& e) { e.wrap(e.nth("amax"), [](const Tensor& y) { return detach(y); }); }},
    {"largest element by a soft maximum", scenes::kinks,
     [](E& e) {
       e.replace(e.nth("amax"),
                 [](const X& x) { return log(sum(exp(x[0] * 64.0), {-1}, true)) / 64.0; });
     }},
    {"mask the other way round", scenes::masked,
     [](E& e) { e.feed(e.nth("masked_fill"), 1, [](const Tensor& mask) { return eq(mask, 0); }); }},
    {"mask by a large number: rows without keys are even", scenes::masked,
     [](E& e) {
       e.replace(e.nth("masked_fill"), [](const X& x) { return masked_fill(x[0], x[1], -1e30); });
     }},
    {"rows without keys give zeros", scenes::masked,
     [](E& e) {
       e.wrap(e.nth("softmax"), [](const Tensor& p) { return masked_fill(p, ne(p, p), 0); });
     }},
    {"mask behind the softmax", scenes::masked,
     [](E& e) {
       e.replace(e.nth("softmax"), [&](const X&) {
         const Tensor p = softmax(e.result(e.nth("mul")), -1);
         const Tensor kept = masked_fill(p, e.input(1), 0);
         return kept / sum(kept, {-1}, true);
       });
     }},
    {"softmax of scores without their maximum", scenes::masked,
     [](E& e) {
       e.replace(e.nth("softmax"), [](const X& x) {
         const Tensor numerators = exp(x[0]);
         return numerators / sum(numerators, {-1}, true);
       });
     }},
    {"softmax of scores cut at 50", scenes::masked,
     [](E& e) {
       e.feed(e.nth("softmax"), 0,
              [](const Tensor& x) { return where(gt(x, 50), x * 0.0 + 50.0, x); });
     }},
    {"outputs exchanged", scenes::outputs,
     [](E& e) {
       auto outputs = e.graph().outputs();
       std::swap(outputs[0], outputs[1]);
       e.graph().set_outputs(outputs);
     }},
    {"one output twice", scenes::outputs,
     [](E& e) {
       auto outputs = e.graph().outputs();
       outputs[1] = outputs[0];
       e.graph().set_outputs(outputs);
       e.graph().eliminate_dead_code();
     }},
    {"an output missing", scenes::outputs,
     [](E& e) {
       auto outputs = e.graph().outputs();
       outputs.pop_back();
       e.graph().set_outputs(outputs);
       e.graph().eliminate_dead_code();
     }},
    {"an output without gradient", scenes::outputs,
     [](E& e) { e.wrap(e.nth("mul"), [](const Tensor& y) { return detach(y); }); }},
    {"all outputs without gradient", scenes::outputs,
     [](E& e) {
       e.wrap(e.nth("tanh"), [](const Tensor& y) { return detach(y); });
       e.wrap(e.nth("linear", 1), [](const Tensor& y) { return detach(y); });
     }},
    {"an intermediate that another output needs", scenes::outputs,
     [](E& e) {
       e.wrap(e.nth("tanh"), [](const Tensor& y) { return y * 2.0; });
       e.feed(e.nth("linear", 1), 0, [](const Tensor& y) { return y * 0.5; });
     }},
    {"sum for mean", scenes::outputs,
     [](E& e) { e.replace(e.nth("mean"), [](const X& x) { return sum(x[0], {1}); }); }},
    {"a gradient through the other samples", scenes::outputs,
     [](E& e) {
       e.replace(e.nth("mean"), [](const X& x) {
         return mean(x[0] + mean(x[0], {0}, true) - detach(mean(x[0], {0}, true)), {1});
       });
     }},
    {"mean divided by the traced length", scenes::outputs,
     [](E& e) { e.replace(e.nth("mean"), [](const X& x) { return sum(x[0], {1}) / 5.0; }); }},
};

}  // namespace

std::vector<Planted> planted_in_values() { return kList; }

}  // namespace tenon::fuzz
