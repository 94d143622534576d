// The attribute structs of Tenon's ops, shared by op definitions and their kernels on every device: here
// those with symbolic sizes in them, the others in plain_attributes.h.
#pragma once

#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

#include "tensor/attrs.h"
#include "tensor/functional.h"
#include "tensor/ops/plain_attributes.h"

namespace tenon {

/// A binary op whose second operand may be a number: then operand 1 is absent.
struct BinaryAttrs {
  Scalar other;  // used when operand 1 is absent
  static constexpr auto fields() { return std::tuple{field("other", &BinaryAttrs::other)}; }
};

struct FillAttrs {
  Scalar value;
  static constexpr auto fields() { return std::tuple{field("value", &FillAttrs::value)}; }
};

struct PrintAttrs {
  std::string label;
  static constexpr auto fields() { return std::tuple{field("label", &PrintAttrs::label)}; }
};

/// to_device
struct ToDeviceAttrs {
  Device device = {};
  static constexpr auto fields() {
    return std::tuple{field("device", &ToDeviceAttrs::device, FieldKind::device)};
  }
};

/// scaled_dot_product_attention; the mask drawn for (…, L, S) probabilities.
struct AttentionAttrs {
  double dropout_p = 0;
  bool is_causal = false;
  Scalar scale = 1.0;
  DropoutMode mode = DropoutMode::follow;
  std::int64_t site = 0;
  static constexpr auto fields() {
    return std::tuple{field("dropout_p", &AttentionAttrs::dropout_p),
                      field("is_causal", &AttentionAttrs::is_causal),
                      field("scale", &AttentionAttrs::scale), field("mode", &AttentionAttrs::mode),
                      field("site", &AttentionAttrs::site, FieldKind::site)};
  }
};

/// randn, randperm. A Graph may hold symbolic sizes.
struct RandomTensorAttrs {
  Shape shape;
  DType dtype = DType::float32;
  Device device = {};
  std::int64_t site = 0;
  static constexpr auto fields() {
    using A = RandomTensorAttrs;
    return std::tuple{field("shape", &A::shape), field("dtype", &A::dtype),
                      field("device", &A::device, FieldKind::device),
                      field("site", &A::site, FieldKind::site)};
  }
};

struct UniformAttrs : RandomTensorAttrs {
  double low = 0;
  double high = 1;
  static constexpr auto fields() {
    return std::tuple_cat(
        std::tuple{field("low", &UniformAttrs::low), field("high", &UniformAttrs::high)},
        RandomTensorAttrs::fields());
  }
};

struct RandintAttrs : RandomTensorAttrs {
  Dim low;
  Dim high = 1;
  static constexpr auto fields() {
    return std::tuple_cat(
        std::tuple{field("low", &RandintAttrs::low), field("high", &RandintAttrs::high)},
        RandomTensorAttrs::fields());
  }
};

/// view, reshape, expand; a Graph holds the full shape, a pattern may hold -1.
struct ShapeAttrs {
  Shape shape;
  static constexpr auto fields() { return std::tuple{field("shape", &ShapeAttrs::shape)}; }
};

struct NarrowAttrs {
  std::int64_t dim = 0;
  Dim start;
  Dim length;
  static constexpr auto fields() {
    return std::tuple{field("dim", &NarrowAttrs::dim, FieldKind::axis),
                      field("start", &NarrowAttrs::start), field("length", &NarrowAttrs::length)};
  }
};

/// scaled_dot_product_attention_backward: the attributes of the call that it differentiates.
struct AttentionBackwardAttrs : AttentionAttrs {
  bool mask_gradient = false;  // a fourth output, for an additive mask
  static constexpr auto fields() {
    return std::tuple_cat(
        AttentionAttrs::fields(),
        std::tuple{field("mask_gradient", &AttentionBackwardAttrs::mask_gradient)});
  }
};

}  // namespace tenon
