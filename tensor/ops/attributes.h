// The attribute structs of Tenon's ops, shared by op definitions and their kernels on every device.
#pragma once

#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

#include "tensor/attrs.h"
#include "tensor/functional.h"

namespace tenon {

/// A binary op whose second operand may be a number: then operand 1 is absent.
struct BinaryAttrs {
  Scalar other;  // used when operand 1 is absent
  static constexpr auto fields() { return std::tuple{field("other", &BinaryAttrs::other)}; }
};

struct PowAttrs {
  double exponent = 1;
  static constexpr auto fields() { return std::tuple{field("exponent", &PowAttrs::exponent)}; }
};

struct GeluAttrs {
  Approximate approximate = Approximate::none;
  static constexpr auto fields() {
    return std::tuple{field("approximate", &GeluAttrs::approximate)};
  }
};

struct PrintAttrs {
  std::string label;
  static constexpr auto fields() { return std::tuple{field("label", &PrintAttrs::label)}; }
};

struct FillAttrs {
  double value = 0;
  static constexpr auto fields() { return std::tuple{field("value", &FillAttrs::value)}; }
};

/// Reductions; `dim` is sorted and non-negative in a Graph, empty for all axes.
struct ReduceAttrs {
  std::vector<std::int64_t> dim;
  bool keepdim = false;
  static constexpr auto fields() {
    return std::tuple{field("dim", &ReduceAttrs::dim, FieldKind::axis_set),
                      field("keepdim", &ReduceAttrs::keepdim)};
  }
};

/// softmax, unsqueeze, squeeze, cat.
struct AxisAttrs {
  std::int64_t dim = -1;
  static constexpr auto fields() {
    return std::tuple{field("dim", &AxisAttrs::dim, FieldKind::axis)};
  }
};

/// permute.
struct AxesAttrs {
  std::vector<std::int64_t> dims;
  static constexpr auto fields() {
    return std::tuple{field("dims", &AxesAttrs::dims, FieldKind::axes)};
  }
};

/// transpose: the two axes, in ascending order in a Graph.
struct AxisPairAttrs {
  std::vector<std::int64_t> dims;
  static constexpr auto fields() {
    return std::tuple{field("dims", &AxisPairAttrs::dims, FieldKind::axis_set)};
  }
};

/// Normalizes the last `axes` axes, whose sizes are the weight's.
struct LayerNormAttrs {
  std::int64_t axes = 1;
  double eps = 1e-5;
  static constexpr auto fields() {
    return std::tuple{field("axes", &LayerNormAttrs::axes), field("eps", &LayerNormAttrs::eps)};
  }
};

struct DropoutAttrs {
  double p = 0.5;
  DropoutMode mode = DropoutMode::follow;
  std::int64_t site = 0;
  static constexpr auto fields() {
    return std::tuple{field("p", &DropoutAttrs::p), field("mode", &DropoutAttrs::mode),
                      field("site", &DropoutAttrs::site, FieldKind::site)};
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

struct BiasDropoutResidualLayerNormAttrs {
  double p = 0;
  double eps = 1e-5;
  DropoutMode mode = DropoutMode::follow;
  std::int64_t site = 0;
  static constexpr auto fields() {
    using A = BiasDropoutResidualLayerNormAttrs;
    return std::tuple{field("p", &A::p), field("eps", &A::eps), field("mode", &A::mode),
                      field("site", &A::site, FieldKind::site)};
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

struct CastAttrs {
  DType dtype = DType::float32;
  static constexpr auto fields() { return std::tuple{field("dtype", &CastAttrs::dtype)}; }
};

struct SoftplusAttrs {
  double beta = 1;
  double threshold = 20;
  static constexpr auto fields() {
    return std::tuple{field("beta", &SoftplusAttrs::beta),
                      field("threshold", &SoftplusAttrs::threshold)};
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
