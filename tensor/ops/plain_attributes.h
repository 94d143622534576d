// The attribute structs that hold plain numbers only: all that the sources of most kernels need.
#pragma once

#include <cstdint>
#include <tuple>
#include <vector>

#include "tensor/attr_field.h"
#include "tensor/dtype.h"
#include "tensor/op_options.h"

namespace tenon {

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

/// cumsum; `reverse` sums from the end.
struct CumsumAttrs {
  std::int64_t dim = 0;
  bool reverse = false;
  static constexpr auto fields() {
    return std::tuple{field("dim", &CumsumAttrs::dim, FieldKind::axis),
                      field("reverse", &CumsumAttrs::reverse)};
  }
};

/// tril, triu.
struct DiagonalAttrs {
  std::int64_t diagonal = 0;
  static constexpr auto fields() { return std::tuple{field("diagonal", &DiagonalAttrs::diagonal)}; }
};

/// var; `dim` as in ReduceAttrs.
struct VarAttrs {
  std::vector<std::int64_t> dim;
  double correction = 1;
  bool keepdim = false;
  static constexpr auto fields() {
    return std::tuple{field("dim", &VarAttrs::dim, FieldKind::axis_set),
                      field("correction", &VarAttrs::correction),
                      field("keepdim", &VarAttrs::keepdim)};
  }
};

}  // namespace tenon
