// bias_gelu = gelu(input + bias) and its gradient: one pass over memory each, in float32 (float64 for
// float64), any strides, the bias read by column; see device/pointwise.cuh. Forward moves 2 and
// backward 3 times the input's bytes.
#include "cuda/device/gelu.cuh"
#include "cuda/device/pointwise.cuh"
#include "cuda/kernels/register.h"
#include "tensor/ops/plain_attributes.h"

namespace tenon::cuda {
namespace {

struct BiasGelu {
  Approximate form;

  /// x: inputs, replaced by the results; b: biases.
  template <class C, int kCount>
  __device__ void apply(C (&x)[kCount], C (&b)[kCount]) const {
    if (form == Approximate::tanh) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) x[i] = gelu_tanh(x[i] + b[i]);
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i) x[i] = gelu(x[i] + b[i]);
    }
  }
};

struct BiasGeluGradient {
  Approximate form;

  /// g: cotangents, replaced by the gradients; x: inputs; b: biases.
  template <class C, int kCount>
  __device__ void apply(C (&g)[kCount], C (&x)[kCount], C (&b)[kCount]) const {
    if (form == Approximate::tanh) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) g[i] *= gelu_tanh_slope(x[i] + b[i]);
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i) g[i] *= gelu_slope(x[i] + b[i]);
    }
  }
};

void run_bias_gelu(const KernelArgs& args) {
  const BiasGelu f{args.attributes<GeluAttrs>().approximate};
  dispatch_float(args.outputs[0].dtype, [&]<typename T>() {
    run_pointwise<T, T, T>(stream_of(args), "bias_gelu", args.outputs[0],
                           {args.inputs[0], args.inputs[1]}, f);
  });
}

void run_bias_gelu_backward(const KernelArgs& args) {
  const BiasGeluGradient f{args.attributes<GeluAttrs>().approximate};
  dispatch_float(args.outputs[0].dtype, [&]<typename T>() {
    run_pointwise<T, T, T, T>(stream_of(args), "bias_gelu_backward", args.outputs[0],
                              {args.inputs[0], args.inputs[1], args.inputs[2]}, f);
  });
}

}  // namespace

void register_bias_gelu_kernels() {
  register_kernel("bias_gelu", DeviceType::cuda,
                  {.name = "cuda.bias_gelu",
                   .run = run_bias_gelu,
                   .accepts = any_layout,
                   .strided_output = true});
  register_kernel("bias_gelu_backward", DeviceType::cuda,
                  {.name = "cuda.bias_gelu_backward",
                   .run = run_bias_gelu_backward,
                   .accepts = any_layout,
                   .strided_output = true});
}

}  // namespace tenon::cuda
