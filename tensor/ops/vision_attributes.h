// The attribute structs of convolution and pooling, and of their gradients; see attributes.h.
#pragma once

#include <cstdint>
#include <tuple>
#include <vector>

#include "tensor/attr_field.h"
#include "tensor/dim.h"
#include "tensor/ops/plain_attributes.h"

namespace tenon {

/// conv2d; each list has the values for H and W.
struct Conv2dAttrs {
  std::vector<std::int64_t> stride = {1, 1};
  std::vector<std::int64_t> padding = {0, 0};
  std::vector<std::int64_t> dilation = {1, 1};
  std::int64_t groups = 1;
  static constexpr auto fields() {
    using A = Conv2dAttrs;
    return std::tuple{field("stride", &A::stride), field("padding", &A::padding),
                      field("dilation", &A::dilation), field("groups", &A::groups)};
  }
};

/// Gradients of conv2d's input and weight; `shape` is that of the result.
struct Conv2dBackwardAttrs {
  std::vector<std::int64_t> stride = {1, 1};
  std::vector<std::int64_t> padding = {0, 0};
  std::vector<std::int64_t> dilation = {1, 1};
  std::int64_t groups = 1;
  Shape shape;
  static constexpr auto fields() {
    using A = Conv2dBackwardAttrs;
    return std::tuple{field("stride", &A::stride), field("padding", &A::padding),
                      field("dilation", &A::dilation), field("groups", &A::groups),
                      field("shape", &A::shape)};
  }
};

struct Pool2dAttrs {
  std::vector<std::int64_t> kernel_size = {1, 1};
  std::vector<std::int64_t> stride = {1, 1};
  std::vector<std::int64_t> padding = {0, 0};
  static constexpr auto fields() {
    using A = Pool2dAttrs;
    return std::tuple{field("kernel_size", &A::kernel_size), field("stride", &A::stride),
                      field("padding", &A::padding)};
  }
};

/// Gradients of pooling's input, whose shape is `shape`.
struct Pool2dBackwardAttrs {
  std::vector<std::int64_t> kernel_size = {1, 1};
  std::vector<std::int64_t> stride = {1, 1};
  std::vector<std::int64_t> padding = {0, 0};
  Shape shape;
  static constexpr auto fields() {
    using A = Pool2dBackwardAttrs;
    return std::tuple{field("kernel_size", &A::kernel_size), field("stride", &A::stride),
                      field("padding", &A::padding), field("shape", &A::shape)};
  }
};

}  // namespace tenon
