#include "schedule/regions/region_graph.h"

#include <algorithm>

#include "graph/evaluate_attrs.h"
#include "graph/tracer.h"
#include "tensor/ops/attributes.h"
#include "tensor/rules/attention_rules.h"
#include "tensor/support/check.h"

namespace tenon::detail {
namespace {

TensorSpec at_sizes(TensorSpec spec, const RegionSizes& sizes) {
  Shape shape;
  for (const Dim& dim : spec.shape) shape.push_back(sizes.at(dim));
  spec.shape = std::move(shape);
  return spec;
}

Attrs at_sizes(const Attrs& attrs, const RegionSizes& sizes) {
  Attrs result = evaluated(attrs, sizes.symbols);
  if (sizes.divisor == 1 && sizes.replaced.empty()) return result;
  for (std::size_t i = 0; i < attrs.size(); ++i) {
    if (attrs.kind(i) != FieldKind::value) continue;
    const AttrValue value = attrs.value(i);
    if (const auto* dim = std::get_if<Dim>(&value)) {
      result = result.with(i, Dim(sizes.at(*dim)));
    } else if (const auto* shape = std::get_if<Shape>(&value)) {
      Shape numbers;
      for (const Dim& size : *shape) numbers.push_back(sizes.at(size));
      result = result.with(i, numbers);
    } else if (const auto* list = std::get_if<std::vector<std::int64_t>>(&value)) {
      std::vector<std::int64_t> numbers;
      for (const std::int64_t size : *list) numbers.push_back(sizes.width(size));
      result = result.with(i, numbers);
    }
  }
  return result;
}

std::vector<ValueId> outputs_of(const Region& region, ValueId ValuePair::*side) {
  std::vector<ValueId> outputs;
  for (const ValuePair& output : region.outputs) outputs.push_back(output.*side);
  return outputs;
}

double numel_of(const TensorSpec& spec) { return static_cast<double>(spec.shape.numel().value()); }

TensorView view_of(const TensorSpec& spec) {
  TensorView view;
  view.dtype = spec.dtype;
  view.device = spec.device;
  for (const Dim& dim : spec.shape) view.sizes.push_back(dim.value());
  view.strides = Layout::contiguous(view.sizes).strides;
  view.present = true;
  return view;
}

double flops_of(const Graph& graph, const Node& node) {
  if (!node.op->flops) return 0;
  std::vector<TensorView> inputs(std::max(node.inputs.size(), node.op->operands.size()));
  std::vector<TensorView> outputs;
  for (std::size_t i = 0; i < node.inputs.size(); ++i) {
    if (node.inputs[i] != kNone) inputs[i] = view_of(graph.value(node.inputs[i]).spec);
  }
  for (const ValueId id : node.outputs) outputs.push_back(view_of(graph.value(id).spec));
  const KernelArgs args{.op = node.op, .inputs = inputs, .outputs = outputs, .attrs = &node.attrs};
  return node.op->flops(args);
}

}  // namespace

std::int64_t RegionSizes::width(std::int64_t fixed) const {
  if (const auto found = replaced.find(fixed); found != replaced.end()) return found->second;
  return fixed >= 4 * divisor && fixed % divisor == 0 ? fixed / divisor : fixed;
}

std::int64_t RegionSizes::at(const Dim& dim) const {
  if (dim.is_constant()) return width(hint_of(dim));
  const std::int64_t size = dim.evaluate(symbols);
  if (divisor == 1 && replaced.empty()) return size;
  // Of a product, 768·s0, the factor is a width.
  DimBindings ones = symbols;
  for (auto& [id, number] : ones) number = 1;
  const std::int64_t factor = dim.evaluate(ones);
  return factor > 0 && size % factor == 0 ? size / factor * width(factor) : size;
}

RegionSide side_before(const Region& region, const Graph& before) {
  return {before, region.before, region.inputs_before, outputs_of(region, &ValuePair::before)};
}

RegionSide side_after(const Region& region, const Graph& after) {
  return {after, region.after, region.inputs_after, outputs_of(region, &ValuePair::after)};
}

std::vector<TensorSpec> input_specs(const Region& region, const Graph& before, const Graph& after,
                                    const RegionSizes& sizes) {
  std::vector<TensorSpec> specs;
  for (const RegionInput& input : region.inputs) {
    const Value& value =
        input.before != kNone ? before.value(input.before) : after.value(input.after);
    specs.push_back(at_sizes(value.spec, sizes));
  }
  return specs;
}

Graph region_graph(const RegionSide& side, const std::vector<TensorSpec>& inputs,
                   const RegionSizes& sizes, const Graph* rewritten) {
  static const Op& softmax = get_op("softmax");
  Graph graph;
  ModuleCall root;
  root.type = "Region";
  const CallId call = graph.add_call(std::move(root));
  std::vector<ValueId> given;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    given.push_back(graph.add_input(fmt::format("{}", i), inputs[i]));
  }
  std::unordered_map<ValueId, ValueId> values;
  for (const auto& [id, index] : side.inputs) values[id] = given[static_cast<std::size_t>(index)];
  // A claimed value may be computed here and, for what reads it, come from outside.
  std::unordered_map<ValueId, ValueId> results;
  for (const NodeId id : side.nodes) {
    const Node& node = side.graph.node(id);
    std::vector<ValueId> operands;
    for (const ValueId operand : node.inputs) {
      operands.push_back(operand == kNone ? kNone : values.at(operand));
    }
    if (rewritten != nullptr && node.op == &softmax && !rewritten->has_node(id)) {
      GraphBuilder builder(graph, SIZE_MAX, call);
      const InterpreterGuard guard(builder);
      const Tensor zeroed =
          ops::softmax_or_zeros(builder.tensor(operands[0]), node.attrs.as<AxisAttrs>().dim);
      results[node.outputs[0]] = builder.value_of(zeroed, "softmax");
      values.try_emplace(node.outputs[0], results[node.outputs[0]]);
      continue;
    }
    const NodeId copy =
        graph.add_node(*node.op, std::move(operands), at_sizes(node.attrs, sizes), call);
    if (!node.kernel.empty()) graph.bind_kernel(copy, node.kernel);
    for (std::size_t k = 0; k < node.outputs.size(); ++k) {
      results[node.outputs[k]] = graph.node(copy).outputs[k];
      values.try_emplace(node.outputs[k], results[node.outputs[k]]);
    }
  }
  std::vector<ValueId> outputs;
  for (const ValueId id : side.outputs) {
    const auto result = results.find(id);
    outputs.push_back(result != results.end() ? result->second : values.at(id));
  }
  graph.set_outputs(std::move(outputs));
  return graph;
}

RunCost cost_of(const Graph& graph) {
  constexpr double kBytes = 8;
  RunCost cost;
  for (const NodeId id : graph.order()) {
    const Node& node = graph.node(id);
    cost.flops += flops_of(graph, node);
    for (const ValueId output : node.outputs) {
      const double bytes = kBytes * numel_of(graph.value(output).spec);
      cost.largest_bytes = std::max(cost.largest_bytes, bytes);
      if (node.op->view == nullptr) cost.bytes += bytes;
    }
  }
  return cost;
}

}  // namespace tenon::detail
