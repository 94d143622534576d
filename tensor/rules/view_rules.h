// What the ops that only rearrange axes share: resolving a requested shape, and strides of a
// reshape.
#pragma once

#include <optional>
#include <string_view>

#include "tensor/op.h"

namespace tenon::ops {

/// `requested` with its -1, if any, replaced by the size that keeps the number of elements;
/// ShapeError when there is none. Symbolic sizes unify.
Shape resolve_reshape(std::string_view op, const Shape& input, const Shape& requested);

/// The strides that show `input` with other sizes, or nothing where no strides can.
std::optional<Layout> reshape_layout(const Layout& input, const Extents& sizes);

/// Op::Infer of view and reshape.
std::vector<TensorSpec> infer_reshape(const InferContext& context);
/// Op::View of view and reshape.
std::optional<Layout> view_reshape(const Layout& input, const Extents& sizes, const Attrs&);

/// Op::Vjp of the ops that keep the elements in row-major order: the gradient with operand 0's shape.
std::vector<Tensor> vjp_reshape(const VjpContext& call);

/// `input` with another shape.
inline std::vector<TensorSpec> with_shape(const TensorSpec& input, Shape shape) {
  return {{input.dtype, std::move(shape), input.device}};
}

}  // namespace tenon::ops
