// The rules of view and reshape.
#include "tensor/rules/view_rules.h"

#include "tensor/ops/attributes.h"
#include "tensor/support/check.h"

namespace tenon::ops {

Shape resolve_reshape(std::string_view op, const Shape& input, const Shape& requested) {
  Shape shape = requested;
  Dim known = 1;
  int unknown = -1;
  for (int axis = 0; axis < shape.rank(); ++axis) {
    const Dim& size = shape[axis];
    if (!size.is_constant() || size.value() >= 0) {
      known *= size;
      continue;
    }
    TENON_CHECK(size.value() == -1 && unknown == -1, ShapeError,
                "[{}] shape {}; needed sizes >= 0 and at most one -1", op, requested.to_string());
    unknown = axis;
  }
  const Dim total = input.numel();
  if (unknown < 0) {
    TENON_CHECK(unify(known, total), ShapeError,
                "[{}] shape {} has {} elements; the input {} has {}", op, requested.to_string(),
                known.to_string(), input.to_string(), total.to_string());
    return shape;
  }
  TENON_CHECK(detail::hint_of(known) != 0, ShapeError,
              "[{}] shape {}: beside a size of 0, -1 could be any size; needed a number", op,
              requested.to_string());
  shape[unknown] = total / known;
  TENON_CHECK(unify(known * shape[unknown], total), ShapeError,
              "[{}] shape {} needs a multiple of {} elements; the input {} has {}", op,
              requested.to_string(), known.to_string(), input.to_string(), total.to_string());
  return shape;
}

std::optional<Layout> reshape_layout(const Layout& input, const Extents& sizes) {
  Layout result = Layout::contiguous(sizes);
  result.offset = input.offset;
  if (input.numel() == 0) return result;
  // From the last axis on: a run of input axes that one stride covers must hold whole output axes.
  int out = sizes.size() - 1;
  std::int64_t run = 1;          // elements of the run so far
  std::int64_t covered = 1;      // elements of the output axes placed in it
  std::int64_t base_stride = 1;  // stride of the run's last axis
  bool empty_run = true;
  for (int in = input.rank() - 1; in >= 0; --in) {
    if (input.sizes[in] == 1) continue;
    if (empty_run) base_stride = input.strides[in];
    empty_run = false;
    run *= input.sizes[in];
    int next = in - 1;
    while (next >= 0 && input.sizes[next] == 1) --next;
    if (next >= 0 && input.strides[next] == run * base_stride) continue;
    while (out >= 0 && (covered < run || sizes[out] == 1)) {
      result.strides[out] = covered * base_stride;
      covered *= sizes[out--];
    }
    if (covered != run) return std::nullopt;
    run = covered = 1;
    empty_run = true;
  }
  return result;
}

std::vector<TensorSpec> infer_reshape(const InferContext& context) {
  return with_shape(context[0], resolve_reshape(context.op().name, context[0].shape,
                                                context.attributes<ShapeAttrs>().shape));
}

std::optional<Layout> view_reshape(const Layout& input, const Extents& sizes, const Attrs&) {
  return reshape_layout(input, sizes);
}

std::vector<Tensor> vjp_reshape(const VjpContext& call) {
  return {reshape(call.cotangent(0), call.input_spec(0).shape)};
}

}  // namespace tenon::ops
