#include "schedule/ready_made/repeated_heads.h"

#include <algorithm>
#include <optional>
#include <set>
#include <string_view>

namespace tenon::detail {
namespace {

/// What an axis runs over, slowest first: axes of another value, or repeats. Sizes of 1 are left out.
struct Factor {
  Dim size;
  int axis;  // kRepeat: the same elements again
};
constexpr int kRepeat = -1;
using Axis = std::vector<Factor>;
using Axes = std::vector<Axis>;

Axis whole(const Shape& shape, int axis) {
  return shape[axis].same_as(1) ? Axis{} : Axis{{shape[axis], axis}};
}

/// The same elements in the same order. Nothing where an axis is cut.
std::optional<Axes> regrouped(const Shape& from, const Shape& to) {
  Axes axes(static_cast<std::size_t>(to.rank()));
  int next = 0;
  for (int axis = 0; axis < to.rank(); ++axis) {
    Dim size = 1;
    for (; next < from.rank() && !size.same_as(to[axis]); ++next) {
      const Axis factor = whole(from, next);
      axes[static_cast<std::size_t>(axis)].insert(axes[static_cast<std::size_t>(axis)].end(),
                                                  factor.begin(), factor.end());
      size *= from[next];
    }
    if (!size.same_as(to[axis])) return std::nullopt;
  }
  for (; next < from.rank(); ++next) {
    if (!from[next].same_as(1)) return std::nullopt;
  }
  return axes;
}

std::optional<Axes> expanded(const Shape& from, const Shape& to) {
  Axes axes;
  for (int axis = 0; axis < to.rank(); ++axis) {
    const int source = axis - (to.rank() - from.rank());
    const bool kept = source >= 0 && from[source].same_as(to[axis]);
    if (!kept && source >= 0 && !from[source].same_as(1)) return std::nullopt;
    axes.push_back(kept ? whole(from, source) : Axis{{to[axis], kRepeat}});
  }
  return axes;
}

Axes permuted(const Shape& from, const std::vector<std::int64_t>& order) {
  Axes axes;
  for (const std::int64_t axis : order) {
    axes.push_back(whole(from, static_cast<int>((axis + from.rank()) % from.rank())));
  }
  return axes;
}

std::vector<std::int64_t> in_order(int rank) {
  std::vector<std::int64_t> order;
  for (int axis = 0; axis < rank; ++axis) order.push_back(axis);
  return order;
}

/// `indices` of an axis of m: each of 0, …, m-1 as often as the others, in that order.
std::optional<Axis> repeated(const std::vector<std::int64_t>& indices, const Dim& size, int axis) {
  const auto count = static_cast<std::int64_t>(indices.size());
  if (!size.is_constant() || size.value() == 0 || count % size.value() != 0) return std::nullopt;
  const std::int64_t times = count / size.value();
  for (std::int64_t i = 0; i < count; ++i) {
    if (indices[static_cast<std::size_t>(i)] != i / times) return std::nullopt;
  }
  Axis result;
  if (!size.same_as(1)) result.push_back({size, axis});
  if (times != 1) result.push_back({times, kRepeat});
  return result;
}

/// Where the elements of a value come from.
struct Origin {
  ValueId value;
  Axes axes;                  // of the value in question, by axes of this one
  std::vector<NodeId> nodes;  // between the two
};

class Walk {
 public:
  explicit Walk(const Graph& graph) : graph_(graph) {}

  /// One op back; nothing where it does more than move and repeat elements.
  std::optional<Origin> back(ValueId id) const {
    const NodeId producer = id == kNone ? kNone : graph_.value(id).producer;
    if (producer == kNone) return std::nullopt;
    const Node& node = graph_.node(producer);
    const std::string_view op = node.op->name;
    if (op == "cat") return joined(node);
    const ValueId source = node.inputs.at(0);
    if (source == kNone) return std::nullopt;
    const Shape& from = shape(source);
    std::optional<Axes> axes;
    if (op == "reshape" || op == "view" || op == "squeeze" || op == "unsqueeze" ||
        op == "contiguous" || op == "clone") {
      axes = regrouped(from, shape(id));
    } else if (op == "expand") {
      axes = expanded(from, shape(id));
    } else if (op == "permute") {
      axes = permuted(from, node.attrs.as<AxesAttrs>().dims);
    } else if (op == "transpose") {
      axes = permuted(from, exchanged(from.rank(), node.attrs.as<AxisPairAttrs>().dims));
    } else if (op == "index_select") {
      axes = selected(node, from);
    }
    if (!axes) return std::nullopt;
    return Origin{source, *axes, {producer}};
  }

 private:
  const Shape& shape(ValueId id) const { return graph_.value(id).spec.shape; }

  static std::vector<std::int64_t> exchanged(int rank, const std::vector<std::int64_t>& pair) {
    std::vector<std::int64_t> order = in_order(rank);
    std::swap(order.at(static_cast<std::size_t>((pair.at(0) + rank) % rank)),
              order.at(static_cast<std::size_t>((pair.at(1) + rank) % rank)));
    return order;
  }

  std::optional<Axes> selected(const Node& node, const Shape& from) const {
    const Value& index = graph_.value(node.inputs.at(1));
    constexpr std::int64_t kMostHeads = 1 << 16;
    if (index.kind != ValueKind::constant || index.tensor.layout().numel() > kMostHeads) {
      return std::nullopt;
    }
    std::vector<std::int64_t> indices;
    for (const double i : index.tensor.to_doubles()) {
      indices.push_back(static_cast<std::int64_t>(i));
    }
    return with_axis(node.attrs.as<AxisAttrs>().dim, from,
                     [&](const Dim& size, int axis) { return repeated(indices, size, axis); });
  }

  template <class F>
  static std::optional<Axes> with_axis(std::int64_t dim, const Shape& from, const F& f) {
    const int axis = static_cast<int>((dim + from.rank()) % from.rank());
    Axes axes = permuted(from, in_order(from.rank()));
    const std::optional<Axis> along = f(from[axis], axis);
    if (!along) return std::nullopt;
    axes[static_cast<std::size_t>(axis)] = *along;
    return axes;
  }

  /// Pieces that are all one value, or each one row of a value along the axis.
  std::optional<Origin> joined(const Node& node) const {
    const ValueId first = node.inputs.at(0);
    const std::int64_t dim = node.attrs.as<AxisAttrs>().dim;
    const auto all = [&](const auto& f) {
      return std::all_of(node.inputs.begin(), node.inputs.end(), f);
    };
    Origin origin{first, {}, {node.id}};
    if (all([&](ValueId id) { return collect_equal(first, id, origin.nodes); })) {
      const auto times = static_cast<std::int64_t>(node.inputs.size());
      origin.axes = *with_axis(dim, shape(first), [&](const Dim& size, int axis) {
        Axis axes{{times, kRepeat}};
        if (!size.same_as(1)) axes.push_back({size, axis});
        return std::optional(axes);
      });
      return origin;
    }
    const NodeId piece = graph_.value(first).producer;
    if (piece == kNone || graph_.node(piece).op->name != "narrow") return std::nullopt;
    origin = {graph_.node(piece).inputs.at(0), {}, {node.id}};
    std::vector<std::int64_t> indices;
    if (!all([&](ValueId id) { return is_row(id, origin.value, dim, indices, origin.nodes); })) {
      return std::nullopt;
    }
    const auto axes = with_axis(dim, shape(origin.value), [&](const Dim& size, int axis) {
      return repeated(indices, size, axis);
    });
    if (!axes) return std::nullopt;
    origin.axes = *axes;
    return origin;
  }

  /// Notes which row of `source` along axis `dim` the value is.
  bool is_row(ValueId id, ValueId source, std::int64_t dim, std::vector<std::int64_t>& indices,
              std::vector<NodeId>& nodes) const {
    const NodeId producer = graph_.value(id).producer;
    if (producer == kNone) return false;
    const Node& node = graph_.node(producer);
    if (node.op->name != "narrow" || node.inputs.at(0) != source) return false;
    const auto& attrs = node.attrs.as<NarrowAttrs>();
    const int rank = shape(source).rank();
    if ((attrs.dim + rank) % rank != (dim + rank) % rank) return false;
    if (!attrs.length.same_as(1) || !attrs.start.is_constant()) return false;
    indices.push_back(attrs.start.value());
    nodes.push_back(producer);
    return true;
  }

  /// Whether `b` is `a`, or computed by views of the same values alike, whose nodes it collects.
  bool collect_equal(ValueId a, ValueId b, std::vector<NodeId>& nodes) const {
    if (a == b) return true;
    const NodeId first = graph_.value(a).producer, second = graph_.value(b).producer;
    if (first == kNone || second == kNone) return false;
    const Node &x = graph_.node(first), &y = graph_.node(second);
    if (x.op != y.op || x.op->view == nullptr || !(x.attrs == y.attrs)) return false;
    if (x.inputs.size() != 1 || y.inputs.size() != 1) return false;
    nodes.push_back(second);
    return collect_equal(x.inputs[0], y.inputs[0], nodes);
  }

  const Graph& graph_;
};

/// The axes of a value by those of its origin's origin.
Axes composed(const Axes& axes, const Axes& of_origin) {
  Axes result;
  for (const Axis& axis : axes) {
    Axis& made = result.emplace_back();
    for (const Factor& factor : axis) {
      if (factor.axis == kRepeat) {
        made.push_back(factor);
        continue;
      }
      const Axis& inner = of_origin[static_cast<std::size_t>(factor.axis)];
      made.insert(made.end(), inner.begin(), inner.end());
    }
  }
  return result;
}

/// The heads of a value, each repeated for a group.
struct RepeatedHeads {
  ValueId source = kNone;
  std::vector<std::int64_t> order;  // of the source's axes
  std::vector<NodeId> nodes;
};

/// The order of the source's axes in which its heads, axis -3, are each repeated and nothing else is.
std::optional<std::vector<std::int64_t>> order_of_heads(const Axes& axes, const Shape& source) {
  const auto rank = static_cast<int>(axes.size());
  if (rank < 3 || source.rank() != rank) return std::nullopt;
  std::vector<std::int64_t> order(axes.size(), -1);
  std::vector<bool> taken(axes.size(), false);
  for (int i = 0; i < rank; ++i) {
    const Axis& axis = axes[static_cast<std::size_t>(i)];
    std::size_t repeats = 0;
    for (const Factor& factor : axis) {
      if (factor.axis == kRepeat) {
        ++repeats;
      } else if (&factor == axis.data() && !taken[static_cast<std::size_t>(factor.axis)]) {
        order[static_cast<std::size_t>(i)] = factor.axis;
        taken[static_cast<std::size_t>(factor.axis)] = true;
      } else {
        return std::nullopt;  // before it a repeat, or another axis
      }
    }
    if ((repeats > 0) != (i == rank - 3)) return std::nullopt;
  }
  for (int free = 0; std::int64_t & axis : order) {
    if (axis >= 0) continue;
    while (taken[static_cast<std::size_t>(free)]) ++free;
    if (!source[free].same_as(1)) return std::nullopt;
    axis = free++;
  }
  return order;
}

/// The nearest value that the heads of this one are repeated of.
std::optional<RepeatedHeads> find_repeated_heads(const Graph& graph, ValueId id) {
  const Walk walk(graph);
  const Shape& shape = graph.value(id).spec.shape;
  Axes axes = permuted(shape, in_order(shape.rank()));
  RepeatedHeads found{id, {}, {}};
  while (const auto origin = walk.back(found.source)) {
    axes = composed(axes, origin->axes);
    found.source = origin->value;
    found.nodes.insert(found.nodes.end(), origin->nodes.begin(), origin->nodes.end());
    if (const auto order = order_of_heads(axes, graph.value(found.source).spec.shape)) {
      found.order = *order;
      return found;
    }
  }
  return std::nullopt;
}

/// A match of these nodes, which lie below `path`.
std::optional<Subgraph> match_of(const Graph& graph, const std::set<NodeId>& nodes,
                                 const std::string& path) {
  const Matches each = find_nodes(
      graph, [&](const Node& node) { return nodes.contains(node.id); }, path);
  if (each.size() != nodes.size()) return std::nullopt;
  Subgraph match;
  for (const Subgraph& node : each) {
    match.nodes.push_back(node.nodes.at(0));
    match.operands.push_back(node.operands.at(0));
    match.names.push_back(node.names.at(0));
    match.ops.insert(node.ops.begin(), node.ops.end());
  }
  return match;
}

}  // namespace

std::vector<GroupedAttention> find_grouped_attention(const Graph& graph, const std::string& path) {
  static const Op& op = get_op("scaled_dot_product_attention");
  std::vector<GroupedAttention> found;
  for (NodeId id : graph.order()) {
    const Node& node = graph.node(id);
    if (node.op != &op) continue;
    const auto key = find_repeated_heads(graph, node.inputs.at(1));
    const auto value = key ? find_repeated_heads(graph, node.inputs.at(2)) : std::nullopt;
    if (!value) continue;
    const auto heads = [&](const RepeatedHeads& of) {
      return graph.value(of.source).spec.shape[static_cast<int>(of.order[of.order.size() - 3])];
    };
    if (!heads(*key).same_as(heads(*value))) continue;
    std::set<NodeId> nodes{id};
    nodes.insert(key->nodes.begin(), key->nodes.end());
    nodes.insert(value->nodes.begin(), value->nodes.end());
    std::optional<Subgraph> match = match_of(graph, nodes, path);
    if (!match) continue;
    match->inputs = {node.inputs[0], key->source, value->source};
    if (node.inputs[3] != kNone) match->inputs.push_back(node.inputs[3]);
    match->outputs = node.outputs;
    found.push_back({std::move(*match), node.attrs.as<AttentionAttrs>(), key->order, value->order});
  }
  return found;
}

}  // namespace tenon::detail
