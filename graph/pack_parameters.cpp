// Packing: parameters that a weight expression joins become slices of one storage, laid out so that the
// expression is an alias of it.
//
//   q.weight [n]   k.weight [n]   v.weight [n]        |  q.weight  |  k.weight  |  v.weight  |
//       \\              |              /        =>      \\__________ cat: an alias ___________/
//        `------------ cat -----------'
//
// A weight expression is made of concatenations and views of parameters. Its result is given a
// contiguous layout, and layouts are derived backwards: a concatenation hands a slice to each operand,
// a view hands its operand the layout that it views as the wanted one. What has no such layout (a part
// of a parameter, a parameter in two places) is put together at run time. Parameters are moved once the
// bytes of all of them were found in the new storage.
#include <algorithm>
#include <map>
#include <optional>
#include <unordered_map>

#include "graph/detail/concatenation_axis.h"
#include "graph/program.h"
#include "tensor/functional.h"
#include "tensor/interpreter.h"
#include "tensor/ops/attributes.h"
#include "tensor/support/check.h"

namespace tenon {
namespace {

Extents sizes_of(const Graph& graph, ValueId id) {
  Extents sizes;
  for (const Dim& dim : graph.value(id).spec.shape) sizes.push_back(detail::hint_of(dim));
  return sizes;
}

/// Equal up to the strides of axes of size 1.
bool same_places(const Layout& a, const Layout& b) {
  if (a.sizes != b.sizes || a.offset != b.offset) return false;
  for (int axis = 0; axis < a.rank(); ++axis) {
    if (a.sizes[axis] > 1 && a.strides[axis] != b.strides[axis]) return false;
  }
  return true;
}

/// The layout of a view's operand, of `sizes`, that it views as `wanted`; nothing when there is none.
std::optional<Layout> layout_before(const Node& view, const Extents& sizes, const Layout& wanted) {
  // The rest of an operand that is seen in part has no place, nor has one that is seen repeatedly.
  if (sizes.product() != wanted.numel()) return std::nullopt;
  const auto fits = [&](const Layout& layout) {
    const auto seen = view.op->view(layout, wanted.sizes, view.attrs);
    return seen && same_places(*seen, wanted);
  };
  // A view that moves axes: each is found again by its stride in a plain layout.
  const Layout plain = Layout::contiguous(sizes);
  if (const auto seen = view.op->view(plain, wanted.sizes, view.attrs)) {
    Layout moved = plain;
    moved.offset = wanted.offset;
    for (int axis = 0; axis < plain.rank(); ++axis) {
      for (int to = 0; to < seen->rank(); ++to) {
        const bool same = seen->sizes[to] == sizes[axis] && sizes[axis] > 1;
        if (same && seen->strides[to] == plain.strides[axis]) {
          moved.strides[axis] = wanted.strides[to];
        }
      }
    }
    if (fits(moved)) return moved;
  }
  // A view that splits or merges axes: the same the other way round.
  static const Op& reshape = get_op("reshape");
  const Shape shape(std::vector<Dim>(sizes.begin(), sizes.end()));
  const auto merged = reshape.view(wanted, sizes, ShapeAttrs{shape});
  return merged && fits(*merged) ? merged : std::nullopt;
}

/// One storage and where the parameters lie in it.
struct Packing {
  std::map<ValueId, Layout> layouts;
  std::int64_t numel = 0;
  friend bool operator==(const Packing&, const Packing&) = default;
};

class PackingPlanner {
 public:
  explicit PackingPlanner(const Graph& graph) : graph_(graph) {
    for (NodeId id : graph.order()) {
      const Node& node = graph.node(id);
      const bool joins = node.op->has(Trait::concatenation);
      if (!joins && (node.op->view == nullptr || node.inputs.size() != 1)) continue;
      int concatenations = joins ? 1 : 0;
      const bool of_parameters =
          std::all_of(node.inputs.begin(), node.inputs.end(), [&](ValueId input) {
            if (graph.value(input).kind == ValueKind::parameter) return true;
            const auto known = expressions_.find(input);
            if (known == expressions_.end()) return false;
            concatenations += known->second;
            return true;
          });
      if (of_parameters) expressions_.emplace(node.outputs[0], concatenations);
    }
  }

  std::vector<Packing> run() {
    for (NodeId id : graph_.order()) {
      const ValueId result = graph_.node(id).outputs[0];
      const auto known = expressions_.find(result);
      if (known == expressions_.end() || known->second == 0 || !is_root(result)) continue;
      plan_root(result);
    }
    return std::move(packings_);
  }

 private:
  /// Read by something else than a larger weight expression.
  bool is_root(ValueId id) const {
    const auto& uses = graph_.value(id).uses;
    return std::any_of(uses.begin(), uses.end(), [&](const Use& use) {
      return !expressions_.contains(graph_.node(use.node).outputs[0]);
    });
  }

  void plan_root(ValueId id) {
    Packing packing;
    const Layout layout = Layout::contiguous(sizes_of(graph_, id));
    packing.numel = layout.numel();
    if (place(id, layout, packing)) {
      packings_.push_back(std::move(packing));
      return;
    }
    // What cannot be one alias is copied at run time; the expressions in it may be aliases still.
    for (ValueId input : graph_.node(graph_.value(id).producer).inputs) {
      if (expressions_.contains(input) && expressions_.at(input) > 0) plan_root(input);
    }
  }

  bool place(ValueId id, const Layout& layout, Packing& packing) const {
    const Value& value = graph_.value(id);
    if (value.kind == ValueKind::parameter) {
      const auto [known, inserted] = packing.layouts.emplace(id, layout);
      return inserted || same_places(known->second, layout);
    }
    const Node& node = graph_.node(value.producer);
    if (!node.op->has(Trait::concatenation)) {
      const auto before = layout_before(node, sizes_of(graph_, node.inputs[0]), layout);
      return before && place(node.inputs[0], *before, packing);
    }
    const int axis = detail::concatenation_axis(node.attrs, layout.rank());
    Layout piece = layout;
    for (ValueId input : node.inputs) {
      piece.sizes = sizes_of(graph_, input);
      if (!place(input, piece, packing)) return false;
      piece.offset += piece.sizes[axis] * piece.strides[axis];
    }
    return true;
  }

  const Graph& graph_;
  std::unordered_map<ValueId, int> expressions_;  // how many concatenations they contain
  std::vector<Packing> packings_;
};

/// The parameters lie as wanted already, in this or a larger storage.
bool is_packed(const Graph& graph, const Packing& packing) {
  const auto& [first, first_layout] = *packing.layouts.begin();
  const Tensor& anchor = graph.value(first).tensor;
  const std::int64_t shift = anchor.layout().offset - first_layout.offset;
  return std::all_of(packing.layouts.begin(), packing.layouts.end(), [&](const auto& entry) {
    Layout wanted = entry.second;
    wanted.offset += shift;
    const Tensor& tensor = graph.value(entry.first).tensor;
    return tensor.storage() == anchor.storage() && same_places(tensor.layout(), wanted);
  });
}

/// Each parameter in one packing, and its storage not shared with anything else.
void check_packings(const Graph& graph, const std::vector<Packing>& packings) {
  std::unordered_map<ValueId, const Packing*> member;
  for (const Packing& packing : packings) {
    for (const auto& [id, layout] : packing.layouts) {
      const Value& value = graph.value(id);
      const auto [known, inserted] = member.emplace(id, &packing);
      TENON_CHECK(inserted || *known->second == packing, ScheduleError,
                  "parameter '{}' would have to lie in two places of packed storage; a weight that "
                  "is shared (tied) cannot be packed twice",
                  value.name);
      const std::size_t own =
          static_cast<std::size_t>(value.tensor.layout().numel()) * size_of(value.tensor.dtype());
      TENON_CHECK(is_packed(graph, packing) || value.tensor.storage()->bytes() == own,
                  ScheduleError,
                  "parameter '{}' is part of another packing already; a model has one packing of "
                  "its parameters at a time",
                  value.name);
    }
  }
}

bool same_bytes(const Tensor& a, const Tensor& b) {
  const auto bytes = static_cast<std::size_t>(a.layout().numel()) * size_of(a.dtype());
  if (bytes == 0) return true;
  // Compared as whole numbers, on the device: NaN equals NaN there, and -0 is not 0.
  const auto numbers = [&](const Tensor& tensor, DType dtype) {
    const auto size = static_cast<std::int64_t>(size_of(dtype));
    const std::int64_t offset =
        tensor.layout().offset * static_cast<std::int64_t>(size_of(tensor.dtype()));
    if (offset % size != 0) return Tensor();
    Layout layout = Layout::contiguous({static_cast<std::int64_t>(bytes) / size});
    layout.offset = offset / size;
    return Tensor(tensor.storage(), dtype, layout);
  };
  const Tensor plain_a = a.contiguous();
  const Tensor plain_b = b.contiguous();
  for (const DType dtype : {DType::int64, DType::int32, DType::uint8}) {
    if (bytes % size_of(dtype) != 0) continue;
    const Tensor own = numbers(plain_a, dtype);
    const Tensor other = numbers(plain_b, dtype);
    if (own && other) return !amax(ne(own, other)).item<bool>();
  }
  return false;
}

/// Fills the new storage, then lets the parameters, if all arrived, lie in it.
void pack(const Graph& graph, const Packing& packing) {
  const Tensor& first = graph.value(packing.layouts.begin()->first).tensor;
  const Tensor packed = empty(Extents{packing.numel}, {first.dtype(), first.device()});
  const NoGradGuard no_grad;
  const auto slice_of = [&](const auto& entry) {
    return Tensor(packed.storage(), first.dtype(), entry.second);
  };
  for (const auto& entry : packing.layouts) {
    slice_of(entry).copy_(graph.value(entry.first).tensor);
  }
  for (const auto& entry : packing.layouts) {
    const Value& parameter = graph.value(entry.first);
    TENON_CHECK(same_bytes(slice_of(entry), parameter.tensor), VerificationError,
                "parameter '{}' is not the same in packed storage; it keeps its own",
                parameter.name);
  }
  for (const auto& entry : packing.layouts) {
    Tensor parameter = graph.value(entry.first).tensor;
    parameter.set_data_(slice_of(entry));
  }
}

}  // namespace

void pack_parameters(const Graph& graph) {
  const std::vector<Packing> packings = PackingPlanner(graph).run();
  check_packings(graph, packings);
  for (const Packing& packing : packings) {
    if (!is_packed(graph, packing)) pack(graph, packing);
  }
}

}  // namespace tenon
