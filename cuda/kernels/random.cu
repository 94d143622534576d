// Random tensors, contiguous: a thread makes four neighbouring elements, which share a Philox call
// (two for what needs 64 bits), and stores them at once where they are aligned. A permutation is
// the indices in the order of 64 random bits each, by a bitonic sort (K. E. Batcher, 1968) in the
// workspace, its steps within kBlock entries in shared memory.
#include <bit>

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

struct Entry {
  std::uint64_t bits;
  std::int64_t index;
};

constexpr int kBlock = 1024;  // entries that a block sorts in shared memory

/// Entries behind the n real ones come last: their bits are the largest, and so are their indices.
__global__ void __launch_bounds__(kThreads)
    draw_entries_kernel(Entry* entries, std::int64_t n, std::int64_t size, const DropoutKey key) {
  const std::int64_t group = block_index() * kThreads + threadIdx.x;
  if (group * kGroup >= size) return;
  const PhiloxBlock words = tensor_random4(key, group);
  const PhiloxBlock second = tensor_random4(key, group, true);
#pragma unroll
  for (int i = 0; i < kGroup; ++i) {
    const std::int64_t index = group * kGroup + i;
    const std::uint64_t bits = std::uint64_t{words.word[i]} << 32 | second.word[i];
    entries[index] = {index < n ? bits : ~std::uint64_t{0}, index};
  }
}

__device__ __forceinline__ void put_in_order(Entry& a, Entry& b, bool ascending) {
  const bool after = a.bits != b.bits ? a.bits > b.bits : a.index > b.index;
  if (after != ascending) return;
  const Entry first = a;
  a = b;
  b = first;
}

/// The first of the two entries that thread `number` compares at distance `step`, a power of two.
__device__ __forceinline__ std::int64_t first_of_pair(std::int64_t number, std::int64_t step) {
  return 2 * number - (number & (step - 1));
}

/// All steps below kBlock of the merges of runs of first_run … last_run entries.
__global__ void __launch_bounds__(kBlock / 2)
    sort_blocks_kernel(Entry* entries, std::int64_t size, std::int64_t first_run,
                       std::int64_t last_run) {
  __shared__ Entry block[kBlock];
  const std::int64_t begin = block_index() * kBlock;
  if (begin >= size) return;
  const int thread = static_cast<int>(threadIdx.x);
  block[thread] = entries[begin + thread];
  block[thread + kBlock / 2] = entries[begin + thread + kBlock / 2];
  for (std::int64_t run = first_run; run <= last_run; run *= 2) {
    std::int64_t step = run / 2 < kBlock / 2 ? run / 2 : kBlock / 2;
    for (; step > 0; step /= 2) {
      __syncthreads();
      const std::int64_t place = first_of_pair(thread, step);
      put_in_order(block[place], block[place + step], ((begin + place) & run) == 0);
    }
  }
  __syncthreads();
  entries[begin + thread] = block[thread];
  entries[begin + thread + kBlock / 2] = block[thread + kBlock / 2];
}

__global__ void __launch_bounds__(kThreads)
    merge_step_kernel(Entry* entries, std::int64_t size, std::int64_t run, std::int64_t step) {
  const std::int64_t number = block_index() * kThreads + threadIdx.x;
  if (number >= size / 2) return;
  const std::int64_t place = first_of_pair(number, step);
  put_in_order(entries[place], entries[place + step], (place & run) == 0);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    take_indices_kernel(const Entry* entries, T* target, std::int64_t n) {
  const std::int64_t number = block_index() * kThreads + threadIdx.x;
  if (number < n) target[number] = convert<T>(entries[number].index);
}

std::int64_t sorted_size(std::int64_t n) {
  const auto power = static_cast<std::int64_t>(std::bit_ceil(static_cast<std::uint64_t>(n)));
  return power < kBlock ? kBlock : power;
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

std::size_t permutation_workspace(std::int64_t n) {
  return n == 0 ? 0 : static_cast<std::size_t>(sorted_size(n)) * sizeof(Entry);
}

void fill_permutation(const KernelArgs& args, const DropoutKey& key) {
  const TensorView& output = args.outputs[0];
  const std::int64_t n = output.numel();
  if (n == 0) return;
  const std::int64_t size = sorted_size(n);
  auto* entries = static_cast<Entry*>(args.workspace);
  const Stream stream = stream_of(args);
  launch(stream, args.name(), draw_entries_kernel, ceil_div(size / kGroup, kThreads), kThreads, 0,
         entries, n, size, key);
  const auto sort_blocks = [&](std::int64_t first_run, std::int64_t last_run) {
    launch(stream, args.name(), sort_blocks_kernel, size / kBlock, kBlock / 2, 0, entries, size,
           first_run, last_run);
  };
  sort_blocks(2, kBlock);
  for (std::int64_t run = 2 * kBlock; run <= size; run *= 2) {
    for (std::int64_t step = run / 2; step >= kBlock; step /= 2) {
      launch(stream, args.name(), merge_step_kernel, ceil_div(size / 2, kThreads), kThreads, 0,
             entries, size, run, step);
    }
    sort_blocks(run, run);
  }
  dispatch_all(output.dtype, [&]<typename T>() {
    launch(stream, args.name(), take_indices_kernel<T>, ceil_div(n, kThreads), kThreads, 0, entries,
           output.as<T>(), n);
  });
}

}  // namespace tenon::cuda
