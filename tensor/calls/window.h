// Windows that slide over (H, W): convolution and pooling. The numbers that kernels on every device
// loop over, and the shape rule.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "tensor/dim.h"
#include "tensor/ops/vision_attributes.h"
#include "tensor/tensor_view.h"

namespace tenon::ops {

/// One axis: output position o sees inputs o·stride - padding + k·dilation for 0 <= k < kernel.
struct WindowAxis {
  std::int64_t input = 0;
  std::int64_t output = 0;
  std::int64_t kernel = 1;
  std::int64_t stride = 1;
  std::int64_t padding = 0;
  std::int64_t dilation = 1;
};

/// A convolution of (samples, channels, H, W) with (filters, channels/groups, KH, KW).
struct ConvGeometry {
  std::int64_t samples = 0;
  std::int64_t channels = 0;
  std::int64_t filters = 0;
  std::int64_t groups = 1;
  WindowAxis h, w;

  /// `attrs` is Conv2dAttrs or Conv2dBackwardAttrs.
  template <class A>
  ConvGeometry(const A& attrs, const TensorView& input, const TensorView& weight,
               const TensorView& output)
      : samples(input.size(0)),
        channels(input.size(1)),
        filters(weight.size(0)),
        groups(attrs.groups),
        h{input.size(2),   output.size(2),   weight.size(2),
          attrs.stride[0], attrs.padding[0], attrs.dilation[0]},
        w{input.size(3),   output.size(3),   weight.size(3),
          attrs.stride[1], attrs.padding[1], attrs.dilation[1]} {}
  std::int64_t channels_of_group() const { return channels / groups; }
  std::int64_t filters_of_group() const { return filters / groups; }
  /// Products of one output element.
  std::int64_t depth() const { return channels_of_group() * h.kernel * w.kernel; }
  std::int64_t positions() const { return h.output * w.output; }
  std::int64_t input_plane() const { return h.input * w.input; }
};

/// Pooling of `planes` planes (H, W).
struct PoolGeometry {
  std::int64_t planes = 0;
  WindowAxis h, w;

  /// `attrs` is Pool2dAttrs or Pool2dBackwardAttrs.
  template <class A>
  PoolGeometry(const A& attrs, const TensorView& input, const TensorView& output)
      : planes(input.size(0) * input.size(1)),
        h{input.size(2), output.size(2), attrs.kernel_size[0], attrs.stride[0], attrs.padding[0]},
        w{input.size(3), output.size(3), attrs.kernel_size[1], attrs.stride[1], attrs.padding[1]} {}
  std::int64_t input_plane() const { return h.input * w.input; }
  std::int64_t output_plane() const { return h.output * w.output; }
};

/// Positions of a window along one axis; ShapeError when it does not fit once.
Dim window_positions(std::string_view op, const Dim& input, const Dim& kernel, std::int64_t stride,
                     std::int64_t padding, std::int64_t dilation);
/// ValueError unless every number is at least `least`.
void require_at_least(std::string_view op, std::string_view what,
                      const std::vector<std::int64_t>& values, std::int64_t least);

}  // namespace tenon::ops
