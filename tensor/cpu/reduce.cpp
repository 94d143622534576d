// How reductions are walked; see the header.
#include "tensor/cpu/reduce.h"

#include "tensor/detail/check.h"
#include "tensor/detail/reduction.h"

namespace tenon::cpu {
namespace {

/// Appends an axis, merged into the last one where that continues it in all stride lists.
void append_axis(Extents& sizes, std::int64_t size,
                 std::initializer_list<std::pair<Extents*, std::int64_t>> strides) {
  const int last = sizes.size() - 1;
  bool merges = last >= 0;
  for (const auto& [list, stride] : strides) merges = merges && (*list)[last] == stride * size;
  if (merges) {
    sizes[last] *= size;
    for (const auto& [list, stride] : strides) (*list)[last] = stride;
    return;
  }
  sizes.push_back(size);
  for (const auto& [list, stride] : strides) list->push_back(stride);
}

struct Axis {
  std::int64_t size, stride, output_stride;
};

}  // namespace

std::int64_t offset_of(std::int64_t position, const Extents& sizes, const Extents& strides) {
  std::int64_t offset = 0;
  for (int axis = sizes.size() - 1; axis > 0; --axis) {
    offset += position % sizes[axis] * strides[axis];
    position /= sizes[axis];
  }
  return sizes.empty() ? 0 : offset + position * strides[0];
}

ReducePlan plan_reduction(const KernelArgs& args) {
  const auto& attrs = args.attributes<ReduceAttrs>();
  return plan_reduction(args, attrs.dim, attrs.keepdim);
}

ReducePlan plan_reduction(const KernelArgs& args, const std::vector<std::int64_t>& dim,
                          bool keepdim) {
  const TensorView& input = args.inputs[0];
  const TensorView& output = args.outputs[0];
  const auto is_reduced = ops::reduced_axes(args.op->name, dim, input.rank());
  std::vector<Axis> kept;
  std::vector<Axis> reduced;
  int out = 0;
  for (int axis = 0; axis < input.rank(); ++axis) {
    const bool drop = is_reduced[static_cast<std::size_t>(axis)];
    if (input.sizes[axis] != 1) {
      (drop ? reduced : kept)
          .push_back({input.sizes[axis], input.strides[axis], drop ? 0 : output.strides[out]});
    }
    out += drop && !keepdim ? 0 : 1;
  }
  std::stable_sort(reduced.begin(), reduced.end(),
                   [](const Axis& a, const Axis& b) { return a.stride > b.stride; });

  ReducePlan plan;
  for (const Axis& axis : reduced) {
    append_axis(plan.reduced_sizes, axis.size, {{&plan.reduced_strides, axis.stride}});
  }
  if (plan.reduced_sizes.empty()) append_axis(plan.reduced_sizes, 1, {{&plan.reduced_strides, 0}});
  for (const Axis& axis : kept) {
    append_axis(plan.kept_sizes, axis.size,
                {{&plan.kept_strides, axis.stride}, {&plan.output_strides, axis.output_stride}});
  }
  // The densest kept axis gives the rows unless a reduced axis is denser.
  int column = -1;
  for (int axis = 0; axis < plan.kept_sizes.size(); ++axis) {
    if (plan.kept_strides[axis] == 0) continue;
    if (column < 0 || plan.kept_strides[axis] < plan.kept_strides[column]) column = axis;
  }
  const bool reduced_is_dense =
      plan.reduced() > 1 && column >= 0 && plan.reduced_strides.back() < plan.kept_strides[column];
  if (column >= 0 && !reduced_is_dense) {
    plan.by_columns = true;
    plan.columns = plan.kept_sizes[column];
    plan.column_stride = plan.kept_strides[column];
    plan.column_output_stride = plan.output_strides[column];
    plan.kept_sizes.erase(column);
    plan.kept_strides.erase(column);
    plan.output_strides.erase(column);
  }
  return plan;
}

void require_elements(const KernelArgs& args) {
  const TensorView& input = args.inputs[0];
  TENON_CHECK(args.outputs[0].numel() == 0 || input.numel() > 0, ShapeError,
              "[{}] an empty axis is reduced; needed at least one element", args.op->name);
}

}  // namespace tenon::cpu
