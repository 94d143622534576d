// The attribute structs of ops that index, scan or cut, and of their gradients; see attributes.h.
#pragma once

#include "tensor/ops/attributes.h"

namespace tenon {

/// narrow_backward: `size` elements along axis `dim`, the gradient's first at `start`.
struct NarrowBackwardAttrs {
  std::int64_t dim = 0;
  Dim start;
  Dim size;
  static constexpr auto fields() {
    return std::tuple{field("dim", &NarrowBackwardAttrs::dim, FieldKind::axis),
                      field("start", &NarrowBackwardAttrs::start),
                      field("size", &NarrowBackwardAttrs::size)};
  }
};

/// index_select_backward: `size` slices along axis `dim`.
struct IndexSelectBackwardAttrs {
  std::int64_t dim = 0;
  Dim size;
  static constexpr auto fields() {
    return std::tuple{field("dim", &IndexSelectBackwardAttrs::dim, FieldKind::axis),
                      field("size", &IndexSelectBackwardAttrs::size)};
  }
};

/// gather_backward: the shape of what was gathered from.
struct GatherBackwardAttrs {
  std::int64_t dim = 0;
  Shape shape;
  static constexpr auto fields() {
    return std::tuple{field("dim", &GatherBackwardAttrs::dim, FieldKind::axis),
                      field("shape", &GatherBackwardAttrs::shape)};
  }
};

}  // namespace tenon
