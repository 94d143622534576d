#include "schedule/primitives/print.h"

#include "schedule/rewriting/state.h"
#include "tensor/ops/attributes.h"
#include "tensor/support/check.h"

namespace tenon {

void print_matches(Graph& graph, const Matches& matches, const std::string& label) {
  detail::check_current(graph, matches);
  for (const Subgraph& match : matches) {
    detail::check_results(graph, match);
    for (ValueId value : match.outputs) {
      const NodeId producer = graph.value(value).producer;
      const CallId call = producer == kNone ? 0 : graph.visible_call(producer);
      const std::string text = label.empty() ? graph.value_name(value)
                                             : fmt::format("{} {}", label, graph.value_name(value));
      const NodeId node = graph.add_node(get_op("print"), {value}, PrintAttrs{text}, call,
                                         detail::position_after(graph, {value}));
      graph.rename(node, "print");
    }
  }
}

}  // namespace tenon
