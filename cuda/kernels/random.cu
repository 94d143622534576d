// Random tensors, contiguous: a thread makes four neighbouring elements, which share a Philox call
// (two for what needs 64 bits), and stores them at once where they are aligned. A permutation is
// the indices in the order of 64 random bits each, by CUB's radix sort.
#include <cub/device/device_radix_sort.cuh>

#include "cuda/check.h"
#include "cuda/device/memory.cuh"
#include "cuda/kernels/random.h"
#include "cuda/launch.h"

namespace tenon::cuda {
namespace {

using namespace random_values;

constexpr int kThreads = 256;
constexpr int kGroup = 4;

template <class T>
struct Target {
  T* data = nullptr;
  std::int64_t numel = 0;
  bool vectors = false;
};

template <class T>
constexpr int pack_bytes = sizeof(T) * kGroup < kVectorBytes ? sizeof(T) * kGroup : kVectorBytes;

template <class T>
__device__ __forceinline__ void store_group(const Target<T>& target, std::int64_t first,
                                            const T (&values)[kGroup]) {
  constexpr int kLength = pack_bytes<T> / static_cast<int>(sizeof(T));
  if (target.vectors && first + kGroup <= target.numel) {
#pragma unroll
    for (int begin = 0; begin < kGroup; begin += kLength) {
      Pack<T, kLength> pack;
#pragma unroll
      for (int i = 0; i < kLength; ++i) pack.item[i] = values[begin + i];
      store_pack<T, kLength>(target.data + first + begin, pack);
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kGroup; ++i) {
    if (first + i < target.numel) target.data[first + i] = values[i];
  }
}

template <class T>
struct Normal {
  __device__ void operator()(const DropoutKey& key, std::int64_t group, T (&values)[kGroup]) const {
    const PhiloxBlock words = tensor_random4(key, group);
    const PhiloxBlock second = sizeof(T) == 8 ? tensor_random4(key, group, true) : PhiloxBlock{};
#pragma unroll
    for (int i = 0; i < kGroup; i += 2) {
      double u = unit_interval(words.word[i]);
      double t = unit_interval(words.word[i + 1]);
      if constexpr (sizeof(T) == 8) {
        u = unit_interval(words.word[i], second.word[i]) + 0x1p-53;
        t = unit_interval(words.word[i + 1], second.word[i + 1]);
      }
      const Pair pair = normal_pair(u, t);
      values[i] = convert<T>(pair.first);
      values[i + 1] = convert<T>(pair.second);
    }
  }
};

/// A value within T's range, as T.
template <class T>
__device__ __forceinline__ T rounded_down(double value) {
  if constexpr (std::is_same_v<T, double>) {
    return value;
  } else if constexpr (std::is_same_v<T, float>) {
    return float_below(value);
  } else if constexpr (is_16_bit_float<T>) {
    const float whole = float_below(value);
    const T nearest = convert<T>(whole);
    return lowered(nearest, widen(nearest) > whole);
  } else {
    return static_cast<T>(::floor(value));
  }
}

template <class T>
struct Uniform {
  UniformRange range;
  __device__ void operator()(const DropoutKey& key, std::int64_t group, T (&values)[kGroup]) const {
    const PhiloxBlock words = tensor_random4(key, group);
    const PhiloxBlock second = sizeof(T) == 8 ? tensor_random4(key, group, true) : PhiloxBlock{};
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      const double u = sizeof(T) == 8 ? unit_interval(words.word[i], second.word[i])
                                      : unit_interval(words.word[i]);
      values[i] = rounded_down<T>(uniform_value(range, u));
    }
  }
};

template <class T>
struct Integers {
  std::int64_t low;
  std::uint64_t range;
  __device__ void operator()(const DropoutKey& key, std::int64_t group, T (&values)[kGroup]) const {
    const PhiloxBlock words = tensor_random4(key, group);
    const PhiloxBlock second = tensor_random4(key, group, true);
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      values[i] = convert<T>(integer_value(low, range, words.word[i], second.word[i]));
    }
  }
};

template <class T, class Make>
__global__ void __launch_bounds__(kThreads)
    fill_kernel(const Target<T> target, const DropoutKey key, const Make make) {
  const std::int64_t group = block_index() * kThreads + threadIdx.x;
  if (group * kGroup >= target.numel) return;
  T values[kGroup];
  make(key, group, values);
  store_group(target, group * kGroup, values);
}

template <class T, class Make>
void fill(const KernelArgs& args, const DropoutKey& key, const Make& make) {
  T* data = args.outputs[0].as<T>();
  const std::int64_t numel = args.outputs[0].numel();
  const Target<T> target{data, numel, is_aligned(data, pack_bytes<T>)};
  launch(stream_of(args), args.name(), fill_kernel<T, Make>,
         ceil_div(ceil_div(numel, kGroup), kThreads), kThreads, 0, target, key, make);
}

// --- permutations ---------------------------------------------------------------------------------

/// Sorts indices by keys, stably; without memory, only sets `bytes`.
void sort_entries(void* memory, std::size_t& bytes, std::uint64_t* lists, std::int64_t n,
                  cudaStream_t stream) {
  constexpr int kBits = 64;
  TENON_CUDA_CHECK(cub::DeviceRadixSort::SortPairs(memory, bytes, lists, lists + n, lists + 2 * n,
                                                   lists + 3 * n, n, 0, kBits, stream));
}

/// Two lists of n keys and two of n indices, to sort from and to; then CUB's own memory.
struct SortMemory {
  std::size_t lists = 0;  // bytes, a multiple of 256
  std::size_t sort = 0;

  explicit SortMemory(std::int64_t n) {
    constexpr std::size_t kAlignment = 256;
    lists = (static_cast<std::size_t>(n) * 32 + kAlignment - 1) / kAlignment * kAlignment;
    if (n > 0) sort_entries(nullptr, sort, nullptr, n, nullptr);
  }
  std::size_t bytes() const { return lists + sort; }
};

__global__ void __launch_bounds__(kThreads)
    draw_entries_kernel(std::uint64_t* lists, std::int64_t n, const DropoutKey key) {
  const std::int64_t group = block_index() * kThreads + threadIdx.x;
  if (group * kGroup >= n) return;
  const PhiloxBlock words = tensor_random4(key, group);
  const PhiloxBlock second = tensor_random4(key, group, true);
#pragma unroll
  for (int i = 0; i < kGroup; ++i) {
    const std::int64_t index = group * kGroup + i;
    if (index >= n) return;
    lists[index] = std::uint64_t{words.word[i]} << 32 | second.word[i];
    lists[2 * n + index] = static_cast<std::uint64_t>(index);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    take_indices_kernel(const std::uint64_t* indices, T* target, std::int64_t n) {
  const std::int64_t number = block_index() * kThreads + threadIdx.x;
  if (number < n) target[number] = convert<T>(static_cast<std::int64_t>(indices[number]));
}

}  // namespace

void fill_normal(const KernelArgs& args, const DropoutKey& key) {
  dispatch_float(args.outputs[0].dtype, [&]<typename T>() { fill<T>(args, key, Normal<T>{}); });
}

void fill_uniform(const KernelArgs& args, const DropoutKey& key, const UniformRange& range) {
  dispatch_all(args.outputs[0].dtype, [&]<typename T>() { fill<T>(args, key, Uniform<T>{range}); });
}

void fill_integers(const KernelArgs& args, const DropoutKey& key, std::int64_t low,
                   std::uint64_t range) {
  dispatch_all(args.outputs[0].dtype, [&]<typename T>() {
    fill<T>(args, key, Integers<T>{low, range});
  });
}

std::size_t permutation_workspace(std::int64_t n) { return SortMemory(n).bytes(); }

void fill_permutation(const KernelArgs& args, const DropoutKey& key) {
  const TensorView& output = args.outputs[0];
  const std::int64_t n = output.numel();
  if (n == 0) return;
  const Stream stream = stream_of(args);
  const SortMemory memory(n);
  auto* lists = static_cast<std::uint64_t*>(args.workspace);
  launch(stream, args.name(), draw_entries_kernel, ceil_div(ceil_div(n, kGroup), kThreads),
         kThreads, 0, lists, n, key);
  std::size_t bytes = memory.sort;
  sort_entries(static_cast<std::byte*>(args.workspace) + memory.lists, bytes, lists, n,
               stream.handle);
  dispatch_all(output.dtype, [&]<typename T>() {
    launch(stream, args.name(), take_indices_kernel<T>, ceil_div(n, kThreads), kThreads, 0,
           lists + 3 * n, output.as<T>(), n);
  });
}

}  // namespace tenon::cuda
