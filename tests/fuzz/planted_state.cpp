// Wrong rewrites of state: tied, frozen and copied parameters, batch statistics, state that is written.
#include "tests/fuzz/planted.h"

namespace tenon::fuzz {
namespace {

using E = GraphEdit;
using X = GraphEdit::Operands;

Tensor copy_of(const Tensor& state, bool requires_grad) {
  const NoGradGuard no_grad;
  Tensor copy = state.clone().detach();
  return copy.requires_grad_(requires_grad);
}

/// Every use of a state becomes one of another tensor under the same name.
void rename_to_copy(E& e, const std::string& name) {
  Graph& graph = e.graph();
  const Tensor copy = copy_of(e.state(name), true);
  for (const ValueId id : graph.values()) {
    if (graph.value(id).name != name) continue;
    const ValueId other = graph.add_state(ValueKind::parameter, name, copy);
    graph.replace_all_uses(id, other);
  }
  graph.eliminate_dead_code();
}

const std::vector<Planted> kList = {
    {"tied weight replaced by a copy", scenes::tied,
     [](E& e) {
       const Tensor copy = copy_of(e.state("tokens.weight"), true);
       e.feed(e.nth("linear", 2), 1, [&](const Tensor&) { return copy; });
     }},
    {"tied weight without the head's gradient", scenes::tied,
     [](E& e) { e.feed(e.nth("linear", 2), 1, [](const Tensor& w) { return detach(w); }); }},
    {"tied weight without the embedding's gradient", scenes::tied,
     [](E& e) { e.feed(e.nth("embedding"), 1, [](const Tensor& w) { return detach(w); }); }},
    {"frozen weight thawed", scenes::tied,
     [](E& e) {
       const Tensor copy = copy_of(e.state("frozen.weight"), true);
       e.feed(e.nth("linear", 0), 1, [&](const Tensor&) { return copy; });
     }},
    {"weight frozen", scenes::tied,
     [](E& e) { e.feed(e.nth("linear", 1), 1, [](const Tensor& w) { return detach(w); }); }},
    {"weight as a constant", scenes::tied,
     [](E& e) {
       const Tensor copy = copy_of(e.state("mix.weight"), false);
       e.feed(e.nth("linear", 1), 1, [&](const Tensor&) { return copy; });
     }},
    {"weight's copy under its name", scenes::tied, [](E& e) { rename_to_copy(e, "mix.weight"); }},
    {"frozen weight as a constant", scenes::tied,
     [](E& e) {
       const Tensor copy = copy_of(e.state("frozen.weight"), false);
       e.feed(e.nth("linear", 0), 1, [&](const Tensor&) { return copy; });
     }},
    {"batch statistics in eval", scenes::vision,
     [](E& e) { e.set(e.nth("batch_norm"), "mode", std::string("train")); }},
    {"running statistics in training", scenes::vision,
     [](E& e) { e.set(e.nth("batch_norm"), "mode", std::string("eval")); }},
    {"batch norm's eps", scenes::vision, [](E& e) { e.set(e.nth("batch_norm"), "eps", 1e-6); }},
    {"batch norm's momentum", scenes::vision,
     [](E& e) { e.set(e.nth("batch_norm"), "momentum", 0.2); }},
    {"statistics not written", scenes::vision,
     [](E& e) {
       e.graph().drop_writes();
       e.graph().eliminate_dead_code();
     }},
    {"one statistic not written", scenes::vision,
     [](E& e) {
       const auto writes = e.graph().writes();
       e.graph().drop_writes();
       e.graph().set_write(writes[0].state, writes[0].value);
       e.graph().eliminate_dead_code();
     }},
    {"statistics written into each other", scenes::vision,
     [](E& e) {
       const auto writes = e.graph().writes();
       e.graph().drop_writes();
       e.graph().set_write(writes[0].state, writes[1].value);
       e.graph().set_write(writes[1].state, writes[0].value);
     }},
    {"running mean of 0 ignored", scenes::vision,
     [](E& e) {
       const Tensor zero = zeros({3});
       e.feed(e.nth("batch_norm"), 1, [&](const Tensor&) { return zero; });
     }},
    {"batch norm's weight of 1 ignored", scenes::vision,
     [](E& e) {
       const Tensor one = ones({3});
       e.feed(e.nth("batch_norm"), 3, [&](const Tensor&) { return one; });
     }},
    {"convolution's bias dropped in front of the norm", scenes::vision,
     [](E& e) { e.feed(e.nth("conv2d"), 2, [](const Tensor& b) { return b * 0.0; }); }},
};

}  // namespace

std::vector<Planted> planted_in_state() { return kList; }

}  // namespace tenon::fuzz
