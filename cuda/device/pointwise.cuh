// Elementwise kernels: f applied to broadcast operands of any strides.
//
//   run_pointwise<T, T, T>(stream, "add", output, {a, b}, Add{});
//
// Axes are merged on the host. Where the innermost axis is contiguous in the output and in each input
// contiguous or repeated, and everything is aligned, a thread computes 16-byte vectors; otherwise, and
// for what remains of a flat call, single elements, neighbours in neighbouring threads. Operands are
// widened to the compute type, so f sees float for 16-bit floats. An input without data is a number.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <utility>

#include "cuda/device/memory.cuh"
#include "cuda/launch.h"
#include "cuda/strides.h"

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

/// `value` as PointwiseParams::numbers holds it for an operand of type T.
template <class T>
std::int64_t encode_number(double value) {
  if constexpr (std::is_floating_point_v<compute_type<T>>) {
    return std::bit_cast<std::int64_t>(value);
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

/// Result i = f(inputs i...), for each i; an f that switches over ops does so once, in apply().
template <class Out, int kCount, class F, class First, class... Rest>
__device__ __forceinline__ void apply_function(const F& f, Out (&results)[kCount],
                                               First (&first)[kCount], Rest (&... rest)[kCount]) {
  if constexpr (requires { F::kInPlace; }) {
    f.apply(first, rest...);  // in place
#pragma unroll
    for (int i = 0; i < kCount; ++i) results[i] = convert<Out>(first[i]);
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) results[i] = convert<Out>(f(first[i], rest[i]...));
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

/// Whether vectors of `length` elements of `element_bytes` of operand `i` start at aligned addresses.
inline bool has_aligned_vectors(const StridedAxes& axes, int i, const void* data, int length,
                                std::size_t element_bytes) {
  const int inner = axes.sizes.size() - 1;
  if (axes.strides[i][inner] != 1) return true;  // read one by one
  for (int axis = 0; axis < inner; ++axis) {
    if (axes.strides[i][axis] % length != 0) return false;
  }
  return is_aligned(data, static_cast<std::size_t>(length) * element_bytes);
}

/// A scalar operand's place in the list of inputs.
inline TensorView absent_operand() { return {}; }

/// Applies f: (compute types of In...) -> Out or its compute type. Inputs broadcast to the output's
/// sizes; where one has no data, its value is the number in `numbers`.
template <class Out, class... In, class F>
void run_pointwise(Stream stream, const char* name, const TensorView& output,
                   const std::array<TensorView, sizeof...(In)>& inputs, const F& f,
                   const std::array<std::int64_t, sizeof...(In)>& numbers = {}) {
  constexpr int kInputs = sizeof...(In);
  constexpr int kWidest = static_cast<int>(std::max({sizeof(Out), sizeof(In)...}));
  constexpr int kLength = kVectorBytes / kWidest;
  constexpr int kChunks = kWidest >= 4 ? 2 : 1;
  TensorView views[kInputs + 1] = {output};
  PointwiseParams<kInputs> p;
  p.numel = output.numel();
  if (p.numel == 0) return;
  p.output = output.data;
  for (int i = 0; i < kInputs; ++i) {
    views[i + 1] = inputs[static_cast<std::size_t>(i)];
    p.inputs[i] = views[i + 1].data;
    p.numbers[i] = numbers[static_cast<std::size_t>(i)];
  }
  const StridedAxes axes = collapse_axes(views, /*sort=*/true);
  p.map = IndexMap<kInputs + 1>(axes);
  const int inner = axes.sizes.size() - 1;
  constexpr std::size_t kBytes[] = {sizeof(Out), sizeof(In)...};
  bool vectors = axes.strides[0][inner] == 1 && (inner == 0 || axes.sizes[inner] % kLength == 0);
  for (int i = 0; i <= kInputs; ++i) {
    const void* data = i == 0 ? p.output : p.inputs[i - 1];
    vectors = vectors && has_aligned_vectors(axes, i, data, kLength, kBytes[i]);
  }
  constexpr std::int64_t kPerBlock = kPointwiseThreads * kLength * kChunks;
  p.first_single = vectors ? p.numel / kLength * kLength : 0;
  p.vector_blocks = ceil_div(p.first_single, kPerBlock);
  launch(stream, name, pointwise_kernel<kLength, kChunks, F, Out, In...>,
         p.vector_blocks + ceil_div(p.numel - p.first_single, kPerBlock), kPointwiseThreads, 0, p,
         f);
}

}  // namespace tenon::cuda
