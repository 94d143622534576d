// silu_mul = silu(gate)·other and its two gradients in one pass over memory each, in float32 (float64 for
// float64), any strides; see device/pointwise.cuh. Forward moves 3 times an operand's bytes, backward 5;
// gradients whose elements lie in different orders are two passes.
#include "cuda/device/math.cuh"
#include "cuda/device/pointwise.cuh"
#include "cuda/kernels/register.h"

namespace tenon::cuda {
namespace {

struct SiluMul {
  template <class C>
  __device__ C operator()(C gate, C other) const {
    return gate * sigmoid_of(gate) * other;
  }
};

struct GateGradient {
  template <class C>
  __device__ C operator()(C grad, C gate, C other) const {
    const C s = sigmoid_of(gate);
    return grad * other * (s * (C(1) + gate * (C(1) - s)));
  }
};

/// A vector of each operand; both gradients lie at the same offset of their own memory.
template <class T, int kLength>
__global__ void __launch_bounds__(kPointwiseThreads)
    backward_kernel(const PointwiseParams<3> p, T* d_other) {
  using C = compute_type<T>;
  const std::int64_t index = (block_index() * kPointwiseThreads + threadIdx.x) * kLength;
  if (index >= p.numel) return;
  std::int64_t offsets[4];
  p.map.offsets(index, offsets);
  Fragment<T, kLength, 1> grad, gate, other;
  grad.load_vector(p, 0, 0, offsets[1]);
  gate.load_vector(p, 1, 0, offsets[2]);
  other.load_vector(p, 2, 0, offsets[3]);
  C of_gate[kLength], of_other[kLength];
#pragma unroll
  for (int i = 0; i < kLength; ++i) {
    const C x = gate.values[i], s = sigmoid_of(x);
    of_gate[i] = grad.values[i] * other.values[i] * (s * (C(1) + x * (C(1) - s)));
    of_other[i] = grad.values[i] * (x * s);
  }
  store_narrowed<kLength>(static_cast<T*>(p.output) + offsets[0], of_gate);
  store_narrowed<kLength>(d_other + offsets[0], of_other);
}

/// Two vectors of each operand a thread: with one, too few loads are under way to fill the memory's rate.
void run_silu_mul(const KernelArgs& args) {
  dispatch_float(args.outputs[0].dtype, [&]<typename T>() {
    constexpr int kLength = vector_length<T>, kChunks = 2;
    PointwiseParams<2> p;
    const std::int64_t blocks =
        plan_call<2>({kLength, kLength * kChunks * kPointwiseThreads}, args.outputs[0],
                     {args.inputs[0], args.inputs[1]}, {}, p);
    launch(stream_of(args), "silu_mul", pointwise_kernel<kLength, kChunks, SiluMul, T, T, T>,
           blocks, kPointwiseThreads, 0, p, SiluMul{});
  });
}

/// Both gradients at once, where vectors cover them all; false where they do not.
template <class T>
bool run_together(const KernelArgs& args) {
  constexpr int kLength = vector_length<T>;
  const TensorView &d_gate = args.outputs[0], &d_other = args.outputs[1];
  const bool alike = d_gate.strides == d_other.strides && is_aligned(d_other.data, kVectorBytes);
  PointwiseParams<3> p;
  const std::int64_t blocks =
      alike ? plan_call<3>({kLength, kLength * kPointwiseThreads}, d_gate,
                           {args.inputs[0], args.inputs[1], args.inputs[2]}, {}, p)
            : 0;
  if (blocks == 0 || p.first_single != p.numel) return false;
  launch(stream_of(args), "silu_mul_backward", backward_kernel<T, kLength>, blocks,
         kPointwiseThreads, 0, p, static_cast<T*>(d_other.data));
  return true;
}

void run_silu_mul_backward(const KernelArgs& args) {
  dispatch_float(args.outputs[0].dtype, [&]<typename T>() {
    if (run_together<T>(args)) return;
    const TensorView &grad = args.inputs[0], &gate = args.inputs[1];
    run_pointwise<T, T, T, T>(stream_of(args), "silu_mul_backward", args.outputs[0],
                              {grad, gate, args.inputs[2]}, GateGradient{});
    run_pointwise<T, T, T>(stream_of(args), "silu_mul_backward", args.outputs[1], {gate, grad},
                           SiluMul{});
  });
}

}  // namespace

void register_silu_mul_kernels() {
  register_kernel("silu_mul", DeviceType::cuda,
                  {.name = "cuda.silu_mul",
                   .run = run_silu_mul,
                   .accepts = any_layout,
                   .strided_output = true});
  register_kernel("silu_mul_backward", DeviceType::cuda,
                  {.name = "cuda.silu_mul_backward",
                   .run = run_silu_mul_backward,
                   .accepts = any_layout,
                   .strided_output = true,
                   .sliced_output = true});
}

}  // namespace tenon::cuda
