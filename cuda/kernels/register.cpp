#include "cuda/kernels/register.h"

namespace tenon::cuda {

void register_all_kernels() {
  register_unary_kernels();
  register_unary_backward_kernels();
  register_binary_kernels();
  register_bias_gelu_kernels();
  register_silu_mul_kernels();
  register_rotary_embedding_kernels();
  register_comparison_kernels();
  register_select_kernels();
  register_cast_kernels();
  register_copy_kernels();
  register_cat_kernels();
  register_reduce_kernels();
  register_softmax_kernels();
  register_softmax_backward_kernels();
  register_layer_norm_kernels();
  register_layer_norm_backward_kernels();
  register_batch_norm_kernels();
#if defined(TENON_HAS_CUDNN)
  register_conv2d_cudnn_kernels();  // preferred where it supports the call
#endif
  register_conv2d_kernels();
  register_pool2d_kernels();
  register_print_kernel();
  register_cross_entropy_kernels();
  register_linear_cross_entropy_kernels();
  register_dropout_kernels();
  register_random_kernels();
  register_argmax_kernels();
  register_cumsum_kernels();
  register_triangle_kernels();
  register_indexing_kernels();
  register_indexing_backward_kernels();
  register_narrow_backward_kernels();
  register_matmul_kernels();
  register_attention_kernels();
  register_optimizer_kernels();
  register_attention_backward_kernels();
#if defined(TENON_HAS_CUDNN)
  register_attention_cudnn_kernels();
#endif
}

}  // namespace tenon::cuda
