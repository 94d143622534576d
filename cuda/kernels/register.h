// The explicit list of CUDA kernels: each file of this folder has one function that registers what
// it implements with the ops of tensor/ops.
#pragma once

#include "tensor/kernel.h"

namespace tenon::cuda {

void register_unary_kernels();
void register_unary_backward_kernels();
void register_binary_kernels();
void register_bias_gelu_kernels();
void register_silu_mul_kernels();
void register_rotary_embedding_kernels();
void register_comparison_kernels();
void register_select_kernels();
void register_cast_kernels();
void register_copy_kernels();
void register_cat_kernels();
void register_reduce_kernels();
void register_softmax_kernels();
void register_softmax_backward_kernels();
void register_layer_norm_kernels();
void register_layer_norm_backward_kernels();
void register_batch_norm_kernels();
void register_conv2d_kernels();
void register_conv2d_cudnn_kernels();  // where cuDNN was found
void register_pool2d_kernels();
void register_print_kernel();
void register_cross_entropy_kernels();
void register_linear_cross_entropy_kernels();
void register_dropout_kernels();
void register_random_kernels();
void register_argmax_kernels();
void register_cumsum_kernels();
void register_triangle_kernels();
void register_indexing_kernels();
void register_indexing_backward_kernels();
void register_narrow_backward_kernels();
void register_matmul_kernels();
void register_attention_kernels();
void register_attention_cudnn_kernels();  // where cuDNN was found
void register_optimizer_kernels();
void register_attention_backward_kernels();

/// Calls all of the above; once, at start-up.
void register_all_kernels();

/// For Kernel::accepts: any strides.
inline bool any_layout(int, const TensorView&) { return true; }

}  // namespace tenon::cuda
