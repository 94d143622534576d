// What the vjps of tensor/ops share: gradient ops that users do not call, and shape bookkeeping.
#pragma once

#include <vector>

#include "tensor/ops/attributes.h"
#include "tensor/ops/norm_attributes.h"
#include "tensor/ops/vision_attributes.h"
#include "tensor/tensor.h"

namespace tenon::ops {

/// The gradient of a broadcast operand of shape `shape`: `gradient` summed over the axes along which
/// the operand was repeated.
Tensor sum_to(const Tensor& gradient, const Shape& shape);

/// (…, N) as a matrix (R, N), its leading axes merged into rows; without any, one row.
Tensor as_rows(const Tensor& tensor);

/// dim is non-negative; `output` is what the forward op returned.
Tensor softmax_backward(const Tensor& grad, const Tensor& output, std::int64_t dim);
Tensor log_softmax_backward(const Tensor& grad, const Tensor& output, std::int64_t dim);

/// Gradients of a normalization's operands; undefined where not asked for.
struct NormGradients {
  Tensor input;
  Tensor weight;
  Tensor bias;
};
/// `weight` may be undefined; attrs says which gradients are wanted.
NormGradients layer_norm_backward(const Tensor& grad, const Tensor& input, const Tensor& weight,
                                  const NormBackwardAttrs& attrs);
NormGradients rms_norm_backward(const Tensor& grad, const Tensor& input, const Tensor& weight,
                                const NormBackwardAttrs& attrs);
/// The gradients of bias_dropout_residual_layer_norm that attrs asks for, in its order; none when it asks
/// for none.
std::vector<Tensor> bias_dropout_residual_layer_norm_backward(
    const Tensor& grad, const Tensor& input, const Tensor& bias, const Tensor& residual,
    const Tensor& weight, const ResidualNormBackwardAttrs& attrs);

// Gradients of unary ops, one kernel each: the cotangent times the slope at the op's input, or, where
// the slope is cheaper so, from its output.
Tensor abs_backward(const Tensor& grad, const Tensor& input);
Tensor erf_backward(const Tensor& grad, const Tensor& input);
Tensor gelu_backward(const Tensor& grad, const Tensor& input, Approximate approximate);
/// The gradient of bias_gelu's sum: grad times the slope of gelu at input + bias.
Tensor bias_gelu_backward(const Tensor& grad, const Tensor& input, const Tensor& bias,
                          Approximate approximate);
/// The gradients of silu_mul by gate and by other.
std::vector<Tensor> silu_mul_backward(const Tensor& grad, const Tensor& gate, const Tensor& other);
/// The gradient of rotary_embedding by its input.
Tensor rotary_embedding_backward(const Tensor& grad, const Tensor& cos, const Tensor& sin);
Tensor relu_backward(const Tensor& grad, const Tensor& output);
Tensor sigmoid_backward(const Tensor& grad, const Tensor& output);
Tensor silu_backward(const Tensor& grad, const Tensor& input);
Tensor softplus_backward(const Tensor& grad, const Tensor& input, double beta, double threshold);
Tensor tanh_backward(const Tensor& grad, const Tensor& output);

/// What scaled_dot_product_attention_lse keeps beside its output; undefined: computed again.
struct AttentionStatistics {
  Tensor lse;
  Tensor keep_bits;
};
/// The gradients of query, key, value and, with attrs.mask_gradient, attn_mask, from that of `output`.
std::vector<Tensor> scaled_dot_product_attention_backward(
    const Tensor& grad, const Tensor& query, const Tensor& key, const Tensor& value,
    const Tensor& output, const Tensor& attn_mask, const AttentionBackwardAttrs& attrs,
    const AttentionStatistics& statistics = {});

/// The gradient of narrow: `gradient` at `start` along axis `dim` of `size` elements, zeros elsewhere.
Tensor narrow_backward(const Tensor& gradient, std::int64_t dim, const Dim& start, const Dim& size);

/// The gradient of embedding and index_select: zeros of `size` slices along axis `dim`, to slice
/// index[i] of which slice i of `gradient` is added, in the order of i. `index` is 1-D.
Tensor index_select_backward(const Tensor& gradient, const Tensor& index, std::int64_t dim,
                             const Dim& size);

/// The gradient of gather: zeros of `shape`, where element (…, index[…, k, …], …) gets the sum of the
/// elements (…, k, …) of `gradient` along axis `dim`, in the order of k.
Tensor gather_backward(const Tensor& gradient, const Tensor& index, std::int64_t dim,
                       const Shape& shape);

/// `grad` is that of the loss: () or, without a reduction, (N).
Tensor cross_entropy_backward(const Tensor& grad, const Tensor& input, const Tensor& target,
                              const CrossEntropyAttrs& attrs);

/// conv2d with its attributes as they are.
Tensor conv2d_with(const Tensor& input, const Tensor& weight, const Tensor& bias,
                   const Conv2dAttrs& attrs);
Tensor conv2d_backward_input(const Tensor& grad, const Tensor& weight,
                             const Conv2dBackwardAttrs& attrs);
Tensor conv2d_backward_weight(const Tensor& grad, const Tensor& input,
                              const Conv2dBackwardAttrs& attrs);

/// `indices` are max_pool2d's second output.
Tensor max_pool2d_backward(const Tensor& grad, const Tensor& indices,
                           const Pool2dBackwardAttrs& attrs);
/// avg_pool2d with its attributes as they are.
Tensor avg_pool2d_with(const Tensor& input, const Pool2dAttrs& attrs);
Tensor avg_pool2d_backward(const Tensor& grad, const Pool2dBackwardAttrs& attrs);

/// `mean` and `factor` are batch_norm's second and third outputs; `weight` may be undefined.
NormGradients batch_norm_backward(const Tensor& grad, const Tensor& input, const Tensor& weight,
                                  const Tensor& mean, const Tensor& factor,
                                  const BatchNormBackwardAttrs& attrs);

}  // namespace tenon::ops
