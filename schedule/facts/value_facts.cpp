#include "schedule/facts/value_facts.h"

#include <algorithm>
#include <cmath>

#include "tensor/support/check.h"

namespace tenon::detail {
namespace {

ValueFacts& at(std::vector<ValueFacts>& facts, ValueId id) {
  return facts[static_cast<std::size_t>(id)];
}

bool is_last_axis(const Node& node, const TensorSpec& spec) {
  for (std::size_t i = 0; i < node.attrs.size(); ++i) {
    if (node.attrs.kind(i) != FieldKind::axis) continue;
    const auto axis = std::get<std::int64_t>(node.attrs.value(i));
    return axis == -1 || axis == spec.shape.rank() - 1;
  }
  return false;
}

ValueRange moved_range(const Graph& graph, const Node& node, std::vector<ValueFacts>& facts) {
  ValueRange hull{0, 0};
  const DType dtype = graph.value(node.outputs[0]).spec.dtype;
  const auto given = static_cast<std::size_t>(std::count_if(
      node.inputs.begin(), node.inputs.end(), [](ValueId id) { return id != kNone; }));
  for (const ValueId id : node.inputs) {
    // Beside others of the result's dtype an operand of another one selects: a mask, an index.
    if (id == kNone || (given > 1 && graph.value(id).spec.dtype != dtype)) continue;
    hull.low = std::min(hull.low, at(facts, id).range.low);
    hull.high = std::max(hull.high, at(facts, id).range.high);
  }
  return hull;
}

void find_range(const Graph& graph, const Node& node, std::vector<ValueFacts>& facts) {
  ValueFacts& result = at(facts, node.outputs[0]);
  const TensorSpec& spec = graph.value(node.outputs[0]).spec;
  if (node.op->range != nullptr) {
    std::vector<std::optional<ValueRange>> operands;
    for (const ValueId id : node.inputs) {
      operands.push_back(id == kNone ? std::nullopt : std::optional(at(facts, id).range));
    }
    result.range = node.op->range(operands, node.attrs);
    result.rows_sum_to_one = result.range.sums_to_one && is_last_axis(node, spec);
    result.range.sums_to_one = false;
  } else if (node.op->view != nullptr) {
    result.range = at(facts, node.inputs[0]).range;
  } else if (node.op->has(Trait::storage_dtypes) && spec.dtype != DType::boolean) {
    result.range = moved_range(graph, node, facts);
  }
}

bool fills_infinity(const Node& node) {
  for (std::size_t i = 0; i < node.attrs.size(); ++i) {
    const AttrValue value = node.attrs.value(i);
    const auto* number = std::get_if<Scalar>(&value);
    if (number && number->is_constant() && number->value() == -HUGE_VAL) return true;
  }
  return false;
}

/// Where hidden elements are, and rows of which all were.
void find_hidden(const Graph& graph, const Node& node, std::vector<ValueFacts>& facts) {
  ValueFacts& result = at(facts, node.outputs[0]);
  if (!is_floating(graph.value(node.outputs[0]).spec.dtype)) return;
  const auto any = [&](bool ValueFacts::*fact) {
    return std::any_of(node.inputs.begin(), node.inputs.end(),
                       [&](ValueId id) { return id != kNone && at(facts, id).*fact; });
  };
  // What elements are moved, scaled or shifted by keeps their infinity; what sums them does not.
  const bool moves = node.op->view != nullptr || node.op->has(Trait::elementwise) ||
                     node.op->has(Trait::storage_dtypes);
  const bool hidden = any(&ValueFacts::may_be_hidden);
  result.may_be_hidden =
      std::isinf(result.range.low) && (fills_infinity(node) || (moves && hidden));
  result.may_be_nan = moves ? any(&ValueFacts::may_be_nan) : hidden;
}

/// An index is in its table, and so is what it is a view or a cast of.
void find_tables(const Graph& graph, const Node& node, std::vector<ValueFacts>& facts) {
  if (!node.op->selects_by || node.op->selects_by->ignored != nullptr) return;
  const IndexOperand& selects = *node.op->selects_by;
  const Shape& table = graph.value(node.inputs[static_cast<std::size_t>(selects.table)]).spec.shape;
  const auto axis = static_cast<int>(selects.axis ? selects.axis(node.attrs) : 0);
  ValueId id = node.inputs[static_cast<std::size_t>(selects.index)];
  while (true) {
    ValueFacts& fact = at(facts, id);
    if (fact.table_size.same_as(-1) || hint_of(table[axis]) < hint_of(fact.table_size)) {
      fact.table_size = table[axis];
    }
    const NodeId producer = graph.value(id).producer;
    if (producer == kNone || graph.node(producer).op->view == nullptr) return;
    id = graph.node(producer).inputs[0];
  }
}

}  // namespace

std::string ValueFacts::to_string() const {
  return fmt::format("[{}, {}]{}{}{}{} of {}", range.low, range.high,
                     rows_sum_to_one ? " rows" : "", is_differentiable ? " d" : "",
                     may_be_hidden ? " -inf" : "", may_be_nan ? " nan" : "",
                     table_size.to_string());
}

std::vector<ValueFacts> facts_of(const Graph& graph) {
  const std::vector<ValueId> values = graph.values();
  std::vector<ValueFacts> facts(values.empty() ? 0 : static_cast<std::size_t>(values.back()) + 1);
  for (const ValueId id : values) {
    const Value& value = graph.value(id);
    const bool is_input = value.kind == ValueKind::input && is_floating(value.spec.dtype);
    at(facts, id).is_differentiable = is_input || (value.tensor && value.tensor.requires_grad());
    if (value.spec.dtype == DType::boolean) at(facts, id).range = {0, 1};
  }
  for (const NodeId id : graph.order()) {
    const Node& node = graph.node(id);
    const bool differentiable =
        !node.op->not_differentiable &&
        std::any_of(node.inputs.begin(), node.inputs.end(), [&](ValueId operand) {
          return operand != kNone && at(facts, operand).is_differentiable;
        });
    for (const ValueId output : node.outputs) {
      at(facts, output).is_differentiable =
          differentiable && is_floating(graph.value(output).spec.dtype);
    }
    if (node.outputs.empty()) continue;
    find_range(graph, node, facts);
    find_hidden(graph, node, facts);
  }
  for (const NodeId id : graph.order()) find_tables(graph, graph.node(id), facts);
  return facts;
}

}  // namespace tenon::detail
