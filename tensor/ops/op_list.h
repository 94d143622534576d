// The explicit list of Tenon's ops. Each is defined by `Op define_<name>()` in tensor/ops/<name>.cpp.
#pragma once

#include "tensor/op.h"

// clang-format off
#define TENON_FOR_EACH_OP(X) \
  X(add) \
  X(sub) \
  X(rsub) \
  X(mul) \
  X(div) \
  X(rdiv) \
  X(maximum) \
  X(minimum) \
  X(neg) \
  X(abs) \
  X(exp) \
  X(log) \
  X(sqrt) \
  X(rsqrt) \
  X(reciprocal) \
  X(square) \
  X(sin) \
  X(cos) \
  X(tanh) \
  X(sigmoid) \
  X(erf) \
  X(relu) \
  X(silu) \
  X(gelu) \
  X(pow) \
  X(softplus) \
  X(eq) \
  X(ne) \
  X(lt) \
  X(le) \
  X(gt) \
  X(ge) \
  X(masked_fill) \
  X(where) \
  X(matmul) \
  X(matmul_add) \
  X(matmul_gelu_backward) \
  X(matmul_gelu_backward_again) \
  X(linear) \
  X(linear_gelu) \
  X(linear_gelu_aux) \
  X(linear_residual) \
  X(sum) \
  X(mean) \
  X(amax) \
  X(amin) \
  X(softmax) \
  X(softmax_backward) \
  X(log_softmax) \
  X(log_softmax_backward) \
  X(layer_norm) \
  X(layer_norm_backward) \
  X(layer_norm_backward_add) \
  X(rms_norm) \
  X(rms_norm_backward) \
  X(rms_norm_backward_add) \
  X(batch_norm) \
  X(batch_norm_backward) \
  X(batch_norm_relu) \
  X(batch_norm_relu_backward) \
  X(batch_norm_add_relu) \
  X(batch_norm_add_relu_backward) \
  X(conv2d) \
  X(conv2d_relu) \
  X(conv2d_backward_input) \
  X(conv2d_backward_weight) \
  X(max_pool2d) \
  X(max_pool2d_backward) \
  X(avg_pool2d) \
  X(avg_pool2d_backward) \
  X(cross_entropy) \
  X(cross_entropy_backward) \
  X(linear_cross_entropy) \
  X(linear_cross_entropy_with_gradients) \
  X(dropout) \
  X(scaled_dot_product_attention) \
  X(scaled_dot_product_attention_lse) \
  X(scaled_dot_product_attention_backward) \
  X(bias_dropout_residual_layer_norm) \
  X(bias_dropout_residual_layer_norm_backward) \
  X(bias_gelu) \
  X(view) \
  X(reshape) \
  X(permute) \
  X(transpose) \
  X(expand) \
  X(narrow) \
  X(unsqueeze) \
  X(squeeze) \
  X(contiguous) \
  X(clone) \
  X(to_device) \
  X(detach) \
  X(print) \
  X(cat) \
  X(cast) \
  X(embedding) \
  X(global_norm) \
  X(adam_step) \
  X(sgd_step) \
  X(abs_backward) \
  X(tanh_backward) \
  X(sigmoid_backward) \
  X(erf_backward) \
  X(relu_backward) \
  X(silu_backward) \
  X(gelu_backward) \
  X(bias_gelu_backward) \
  X(softplus_backward) \
  X(index_select) \
  X(index_select_backward) \
  X(gather) \
  X(gather_backward) \
  X(narrow_backward) \
  X(var) \
  X(argmax) \
  X(cumsum) \
  X(tril) \
  X(triu) \
  X(randn) \
  X(uniform) \
  X(randint) \
  X(randperm)

// clang-format on

namespace tenon::ops {
#define TENON_DECLARE_OP(name) Op define_##name();
TENON_FOR_EACH_OP(TENON_DECLARE_OP)
#undef TENON_DECLARE_OP
}  // namespace tenon::ops
