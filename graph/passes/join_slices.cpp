#include "graph/passes/join_slices.h"

#include <algorithm>
#include <optional>

#include "tensor/ops/attributes.h"
#include "tensor/ops/indexing_attributes.h"

namespace tenon {
namespace {

struct Piece {
  ValueId gradient = kNone;
  Dim start;
  Dim length;
};

struct Tiling {
  std::int64_t dim = 0;
  Dim size;
  std::vector<Piece> pieces;
};

class SliceJoiner {
 public:
  explicit SliceJoiner(Graph& graph)
      : graph_(graph), add_(get_op("add")), pad_(get_op("narrow_backward")), cat_(get_op("cat")) {}

  int run() {
    int joined = 0;
    const std::vector<NodeId> order = graph_.order();
    // Sums of sums come later in program order: the outermost is tried first.
    for (auto id = order.rbegin(); id != order.rend(); ++id) {
      if (!graph_.has_node(*id) || !is_sum(*id)) continue;
      Tiling tiling;
      if (collect(*id, tiling, /*outermost=*/true) && in_order(tiling)) {
        replace(*id, tiling);
        ++joined;
      }
    }
    return joined;
  }

 private:
  bool is_sum(NodeId id) const {
    const Node& node = graph_.node(id);
    return node.op == &add_ && node.inputs[0] != kNone && node.inputs[1] != kNone;
  }

  /// Adds the padded pieces that `id` sums up; false when it sums anything else.
  bool collect(NodeId id, Tiling& tiling, bool outermost) const {
    const Node& node = graph_.node(id);
    const Value& result = graph_.value(node.outputs[0]);
    if (!outermost && result.uses.size() != 1) return false;
    if (node.op == &pad_) return add_piece(node, tiling);
    if (!is_sum(id)) return false;
    return std::all_of(node.inputs.begin(), node.inputs.end(), [&](ValueId operand) {
      const Value& term = graph_.value(operand);
      return term.producer != kNone && term.spec.shape.same_as(result.spec.shape) &&
             collect(term.producer, tiling, false);
    });
  }

  bool add_piece(const Node& node, Tiling& tiling) const {
    const auto& attrs = node.attrs.as<NarrowBackwardAttrs>();
    const Shape& shape = graph_.value(node.inputs[0]).spec.shape;
    const std::int64_t dim = attrs.dim < 0 ? attrs.dim + shape.rank() : attrs.dim;
    if (tiling.pieces.empty()) {
      tiling.dim = dim;
      tiling.size = attrs.size;
    } else if (tiling.dim != dim || !tiling.size.same_as(attrs.size)) {
      return false;
    }
    tiling.pieces.push_back({node.inputs[0], attrs.start, shape[static_cast<int>(dim)]});
    return true;
  }

  /// Sorts the pieces along the axis; false when they do not tile it.
  static bool in_order(Tiling& tiling) {
    Dim end(0);
    for (std::size_t i = 0; i < tiling.pieces.size(); ++i) {
      const auto next =
          std::find_if(tiling.pieces.begin() + static_cast<std::ptrdiff_t>(i), tiling.pieces.end(),
                       [&](const Piece& piece) { return piece.start.same_as(end); });
      if (next == tiling.pieces.end()) return false;
      end = end + next->length;
      std::iter_swap(tiling.pieces.begin() + static_cast<std::ptrdiff_t>(i), next);
    }
    return end.same_as(tiling.size);
  }

  void replace(NodeId id, const Tiling& tiling) {
    std::vector<ValueId> gradients;
    for (const Piece& piece : tiling.pieces) gradients.push_back(piece.gradient);
    const std::vector<ValueId> terms = graph_.node(id).inputs;
    const NodeId joined =
        graph_.replace_node(id, cat_, std::move(gradients), AxisAttrs{tiling.dim});
    graph_.rename(joined, "cat_grad");
    for (ValueId term : terms) erase_unused(term);
  }

  /// Takes out what makes a term that nothing uses any more, and the terms of that.
  void erase_unused(ValueId value) {
    if (value == kNone) return;
    const Value& term = graph_.value(value);
    if (term.producer == kNone || !term.uses.empty() || graph_.is_output(value)) return;
    const Node node = graph_.node(term.producer);
    if (node.op != &add_ && node.op != &pad_) return;
    graph_.erase_node(node.id);
    for (ValueId operand : node.inputs) erase_unused(operand);
  }

  Graph& graph_;
  const Op& add_;
  const Op& pad_;
  const Op& cat_;
};

}  // namespace

int join_slices(Graph& graph) { return SliceJoiner(graph).run(); }

}  // namespace tenon
