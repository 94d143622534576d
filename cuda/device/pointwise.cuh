// Elementwise kernels: f applied to broadcast operands of any strides.
//
//   run_pointwise<T, T, T>(stream, "add", output, {a, b}, Add{});
//
// Axes are merged on the host. Where the innermost axis is contiguous in the output and in each input
// contiguous or repeated, and everything is aligned, a thread computes 16-byte vectors; otherwise, and
// for what remains of a flat call, single elements, neighbours in neighbouring threads. Operands are
// widened to the compute type, so f sees float for 16-bit floats. An input without data is a number.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <utility>

#include "cuda/device/memory.cuh"
#include "cuda/kernels/pointwise_plan.h"
#include "cuda/launch.h"

namespace tenon::cuda {

inline constexpr int kPointwiseThreads = 256;

template <int kInputs>
struct PointwiseParams {
  std::int64_t numel = 0;
  std::int64_t vector_blocks = 0;  // these compute vectors, the blocks after them single elements
  std::int64_t first_single = 0;   // the first element that no vector covers
  void* output = nullptr;
  const void* inputs[kInputs] = {};
  std::int64_t numbers[kInputs] = {};  // bits of a double, or an integer, where inputs[i] is null
  IndexMap<kInputs + 1> map;
};

/// `value` as PointwiseParams::numbers holds it for an operand whose values are of type C.
template <class C>
std::int64_t encode_number(C value) {
  if constexpr (std::is_floating_point_v<C>) {
    return std::bit_cast<std::int64_t>(static_cast<double>(value));
  } else {
    return static_cast<std::int64_t>(value);
  }
}

/// The number in `bits` as a compute type.
template <class C>
__device__ __forceinline__ C decode_number(std::int64_t bits) {
  if constexpr (std::is_floating_point_v<C>) {
    return static_cast<C>(std::bit_cast<double>(bits));
  } else {
    return static_cast<C>(bits);
  }
}

/// A thread's elements of one operand, widened: kChunks vectors of kLength, or that many single ones.
template <class T, int kLength, int kChunks>
struct Fragment {
  compute_type<T> values[kChunks * kLength];

  template <int kInputs>
  __device__ __forceinline__ void load_vector(const PointwiseParams<kInputs>& p, int input,
                                              int chunk, std::int64_t offset) {
    const T* source = static_cast<const T*>(p.inputs[input]);
    const std::int64_t stride = p.map.inner_stride(input + 1);
    compute_type<T>* target = values + chunk * kLength;
    if (source == nullptr || stride == 0) {
      const compute_type<T> value = load_one(p, input, offset);
#pragma unroll
      for (int i = 0; i < kLength; ++i) target[i] = value;
    } else if (stride == 1) {
      const Pack<T, kLength> pack = load_pack<T, kLength>(source + offset);
#pragma unroll
      for (int i = 0; i < kLength; ++i) target[i] = widen(pack.item[i]);
    } else {
#pragma unroll
      for (int i = 0; i < kLength; ++i) target[i] = widen(source[offset + i * stride]);
    }
  }

  template <int kInputs>
  __device__ __forceinline__ compute_type<T> load_one(const PointwiseParams<kInputs>& p, int input,
                                                      std::int64_t offset) {
    const T* source = static_cast<const T*>(p.inputs[input]);
    return source != nullptr ? widen(source[offset])
                             : decode_number<compute_type<T>>(p.numbers[input]);
  }
};

/// Result i = f(inputs i...), for each i; an f that switches over ops does so once, in apply(),
/// which leaves the results in place of its first argument.
template <class Out, int kCount, class F, class First, class... Rest>
__device__ __forceinline__ void apply_function(const F& f, Out (&results)[kCount],
                                               First (&first)[kCount], Rest (&... rest)[kCount]) {
  if constexpr (std::is_invocable_v<const F&, First, Rest...>) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) results[i] = convert<Out>(f(first[i], rest[i]...));
  } else {
    f.apply(first, rest...);
#pragma unroll
    for (int i = 0; i < kCount; ++i) results[i] = convert<Out>(first[i]);
  }
}

template <int kLength, int kChunks, class Out, class F, int kInputs, std::size_t... I, class... In>
__device__ __forceinline__ void compute_elements(const PointwiseParams<kInputs>& p, const F& f,
                                                 std::index_sequence<I...>,
                                                 Fragment<In, kLength, kChunks>... inputs) {
  constexpr int kCount = kLength * kChunks;
  const std::int64_t block = block_index();
  const bool by_vectors = block < p.vector_blocks;
  // First index and distance of this thread's vectors or elements.
  const std::int64_t step = by_vectors ? kPointwiseThreads * kLength : kPointwiseThreads;
  const std::int64_t begin =
      by_vectors
          ? (block * kChunks * kPointwiseThreads + threadIdx.x) * kLength
          : p.first_single + (block - p.vector_blocks) * (kPointwiseThreads * kCount) + threadIdx.x;
  const std::int64_t end = by_vectors ? p.first_single : p.numel;
#pragma unroll
  for (int c = 0; c < kCount; ++c) {
    const std::int64_t index = begin + c * step;
    if (index >= end || (by_vectors && c >= kChunks)) break;
    std::int64_t offsets[kInputs + 1];
    p.map.offsets(index, offsets);
    if (by_vectors && c < kChunks) {
      (inputs.load_vector(p, static_cast<int>(I), c, offsets[I + 1]), ...);
    } else {
      ((inputs.values[c] = inputs.load_one(p, static_cast<int>(I), offsets[I + 1])), ...);
    }
  }
  Out results[kCount];
  apply_function<Out>(f, results, inputs.values...);
  Out* output = static_cast<Out*>(p.output);
#pragma unroll
  for (int c = 0; c < kCount; ++c) {
    const std::int64_t index = begin + c * step;
    if (index >= end || (by_vectors && c >= kChunks)) break;
    // Computed again: keeping the offsets would cost registers, and so loads in flight.
    std::int64_t offsets[kInputs + 1];
    p.map.offsets(index, offsets);
    if (by_vectors && c < kChunks) {
      Pack<Out, kLength> pack;
#pragma unroll
      for (int i = 0; i < kLength; ++i) pack.item[i] = results[c * kLength % kCount + i];
      store_pack<Out, kLength>(output + offsets[0], pack);
    } else {
      output[offsets[0]] = results[c];
    }
  }
}

template <int kLength, int kChunks, class F, class Out, class... In>
__global__ void __launch_bounds__(kPointwiseThreads)
    pointwise_kernel(const PointwiseParams<sizeof...(In)> p, const F f) {
  compute_elements<kLength, kChunks, Out>(p, f, std::index_sequence_for<In...>{},
                                          Fragment<In, kLength, kChunks>{}...);
}

/// A scalar operand's place in the list of inputs.
inline TensorView absent_operand() { return {}; }

/// Bytes of the largest of these types.
template <class... T>
inline constexpr std::size_t largest_size = [] {
  std::size_t largest = 0;
  ((largest = sizeof(T) > largest ? sizeof(T) : largest), ...);
  return largest;
}();

/// Fills `p` for a call; the number of blocks.
template <std::size_t kInputs>
std::int64_t plan_call(const PointwiseShape& shape, const TensorView& output,
                       const std::array<TensorView, kInputs>& inputs,
                       const std::array<std::int64_t, kInputs>& numbers,
                       PointwiseParams<static_cast<int>(kInputs)>& p) {
  TensorView views[kInputs + 1] = {output};
  p.output = output.data;
  for (std::size_t i = 0; i < kInputs; ++i) {
    views[i + 1] = inputs[i];
    p.inputs[i] = inputs[i].data;
    p.numbers[i] = numbers[i];
  }
  const PointwisePlan plan = plan_pointwise(views, shape);
  if (plan.blocks == 0) return 0;
  p.numel = output.numel();
  p.first_single = plan.first_single;
  p.vector_blocks = plan.vector_blocks;
  p.map = IndexMap<static_cast<int>(kInputs) + 1>(plan.axes);
  return plan.blocks;
}

/// Applies f: (compute types of In...) -> Out or its compute type. Inputs broadcast to the output's
/// sizes; where one has no data, its value is the number in `numbers`.
template <class Out, class... In, class F>
void run_pointwise(Stream stream, const char* name, const TensorView& output,
                   const std::array<TensorView, sizeof...(In)>& inputs, const F& f,
                   const std::array<std::int64_t, sizeof...(In)>& numbers = {}) {
  constexpr int kInputs = sizeof...(In);
  constexpr int kWidest = static_cast<int>(largest_size<Out, In...>);
  constexpr int kLength = kVectorBytes / kWidest;
  constexpr int kChunks = kWidest >= 4 ? 2 : 1;
  constexpr PointwiseShape kShape{kLength, kLength * kChunks * kPointwiseThreads};
  PointwiseParams<kInputs> p;
  const std::int64_t blocks = plan_call(kShape, output, inputs, numbers, p);
  launch(stream, name, pointwise_kernel<kLength, kChunks, F, Out, In...>, blocks, kPointwiseThreads,
         0, p, f);
}

}  // namespace tenon::cuda
