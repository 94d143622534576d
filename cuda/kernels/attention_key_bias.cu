// Masks that are the same for all queries of a batch, such as those of padding, as the attention kernels on
// tensor cores read them: what is added to the scores of each key, and which keys are hidden from all
// queries. A block for each batch.
#include <cfloat>

#include "cuda/device/reduce.cuh"
#include "cuda/kernels/attention_common.cuh"
#include "cuda/launch.h"

namespace tenon::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kTileThreads = 1024;

/// Keys whose mask lies below this get no weight, whatever their scores, where the largest is `largest`.
/// A causal query may see no key but hidden ones, which then count: only -inf hides from all.
__device__ __forceinline__ float least_live(const AttentionParams& params, float largest) {
  constexpr float kFarBelow = 7.9228162514264337593543950336e28F;  // 2^96
  return params.is_causal ? -FLT_MAX : fmaxf(largest - kFarBelow, -FLT_MAX);
}

/// In units of log2; -inf past the keys.
template <class T>
__device__ __forceinline__ float bias_of(const AttentionParams& params, const char* mask,
                                         std::int64_t key) {
  if (key >= params.keys) return -INFINITY;
  return apply_mask<T>(params, mask, 0, key, 0.0F);
}

template <class T>
__global__ void __launch_bounds__(kThreads) key_bias_kernel(const AttentionParams params) {
  __shared__ float scratch[kWarp];
  const std::int64_t batch = block_index();
  if (batch >= params.batches) return;
  const std::int64_t element =
      params.mask_kind == AttentionMask::additive ? static_cast<std::int64_t>(sizeof(T)) : 1;
  const char* mask = static_cast<const char*>(params.mask) +
                     batch_offset(params, params.mask_strides, batch) * element;
  float* target = const_cast<float*>(params.key_bias) + batch * params.key_bias_stride;
  float largest = -INFINITY;
  for (std::int64_t key = threadIdx.x; key < params.key_bias_stride; key += kThreads) {
    const float bias = bias_of<T>(params, mask, key);
    target[key] = bias;
    largest = fmaxf(largest, bias);
  }
  largest = group_reduce(largest, kThreads, scratch, NumberMax{});
  const float least = least_live(params, largest);
  const auto keys = static_cast<float>(params.keys);  // exact: there are at most 2^24
  float first = keys, end = 0;
  for (std::int64_t key = threadIdx.x; key < params.keys; key += kThreads) {
    if (target[key] < least) continue;
    first = fminf(first, static_cast<float>(key));
    end = static_cast<float>(key + 1);
  }
  first = -group_reduce(-first, kThreads, scratch, NumberMax{});
  end = group_reduce(end, kThreads, scratch, NumberMax{});
  float plain_end = keys;
  for (std::int64_t key = threadIdx.x; key < params.keys; key += kThreads) {
    if (static_cast<float>(key) >= first && target[key] != 0) {
      plain_end = fminf(plain_end, static_cast<float>(key));
    }
  }
  plain_end = -group_reduce(-plain_end, kThreads, scratch, NumberMax{});
  if (threadIdx.x != 0) return;
  auto* live = reinterpret_cast<int4*>(const_cast<std::int32_t*>(params.live_keys)) + batch;
  *live = end > first ? make_int4(static_cast<int>(first), static_cast<int>(end),
                                  static_cast<int>(plain_end), 0)
                      : make_int4(0, 0, 0, 0);
}

/// What KeyTiles has of a key.
template <class T>
__device__ __forceinline__ float tile_value(const AttentionParams& params, const char* mask,
                                            std::int64_t key) {
  const float bias = bias_of<T>(params, mask, key);
  return params.mask_kind == AttentionMask::boolean && bias == 0 ? INFINITY : bias;
}

/// Where the mask of that number starts, in elements: masks count along the axes where they differ.
__device__ __forceinline__ std::int64_t mask_offset(const AttentionParams& params,
                                                    std::int64_t number) {
  std::int64_t offset = 0;
  for (int axis = params.batch_axes - 1; axis >= 0; --axis) {
    if (params.mask_strides.batch[axis] == 0) continue;
    offset += number % params.batch_sizes[axis] * params.mask_strides.batch[axis];
    number /= params.batch_sizes[axis];
  }
  return offset;
}

template <class T>
__global__ void __launch_bounds__(kTileThreads)
    key_tiles_kernel(const __grid_constant__ AttentionParams params, const KeyTiles target) {
  constexpr int kWarpsOfTile = kWgmmaKeys / kWarp;
  __shared__ float scratch[kWarp];
  __shared__ bool shows[kTileThreads / kWarp], changes[kTileThreads / kWarp];
  const std::int64_t number = block_index();
  const bool is_bool = params.mask_kind == AttentionMask::boolean;
  const char* mask =
      static_cast<const char*>(params.mask) +
      mask_offset(params, number) * (is_bool ? 1 : static_cast<std::int64_t>(sizeof(T)));
  float* values = target.values + number * target.tiles * kWgmmaKeys;
  int* list = target.lists + number * target.list_size;
  const int thread = static_cast<int>(threadIdx.x);
  const int padded = target.tiles * kWgmmaKeys;
  float largest = -INFINITY;
  for (int key = thread; key < padded; key += kTileThreads) {
    const float value = tile_value<T>(params, mask, key);
    values[key] = value;
    largest = fmaxf(largest, value);
  }
  largest = group_reduce(largest, kTileThreads, scratch, NumberMax{});
  const float least = least_live(params, largest), neutral = is_bool ? INFINITY : 0.0F;
  int count = 0;
  for (int base = 0; base < padded; base += kTileThreads) {
    const int key = base + thread;
    const float value = key < padded ? values[key] : -INFINITY;
    const bool any_shown = __any_sync(0xffffffffU, !(value < least));
    const bool any_change = __any_sync(0xffffffffU, key < params.keys && value != neutral);
    if (thread % kWarp == 0) {
      shows[thread / kWarp] = any_shown;
      changes[thread / kWarp] = any_change;
    }
    __syncthreads();
    for (int i = 0; thread == 0 && i < kTileThreads / kWarp; i += kWarpsOfTile) {
      bool shown = false, changed = false;
      for (int warp = i; warp < i + kWarpsOfTile; ++warp) {
        shown |= shows[warp];
        changed |= changes[warp];
      }
      if (shown) list[++count] = base + i * kWarp + (changed ? 0 : 1);
    }
    __syncthreads();
  }
  if (thread == 0) list[0] = count;
}

/// Calls f with the type of an additive mask's elements.
template <class F>
void dispatch_type(DType dtype, const F& f) {
  if (dtype == DType::float16) return f.template operator()<Half>();
  if (dtype == DType::bfloat16) return f.template operator()<BFloat16>();
  f.template operator()<float>();
}

}  // namespace

void launch_key_bias(const AttentionParams& params, DType dtype, Stream stream) {
  dispatch_type(dtype, [&]<class T> {
    launch(stream, "attention_key_bias", key_bias_kernel<T>, params.batches, kThreads, 0, params);
  });
}

namespace {

/// How many masks of keys there are; and what batch indices count for among them.
std::int64_t count_masks(const AttentionParams& params, KeyTiles& tiles) {
  std::int64_t masks = 1;
  for (int axis = params.batch_axes - 1; axis >= 0; --axis) {
    if (params.mask_strides.batch[axis] == 0) continue;
    if (axis < kWgmmaBatchAxes) tiles.batch_steps[axis] = masks;
    masks *= params.batch_sizes[axis];
  }
  return masks;
}

std::int64_t list_size(std::int64_t tiles) { return ceil_div(1 + tiles, 4) * 4; }

}  // namespace

std::size_t key_tiles_bytes(const AttentionParams& params) {
  if (params.mask_kind == AttentionMask::none || params.mask_strides.row != 0) return 0;
  KeyTiles unused{};
  const std::int64_t tiles = ceil_div(params.keys, kWgmmaKeys);
  return static_cast<std::size_t>(count_masks(params, unused) *
                                  (tiles * kWgmmaKeys + list_size(tiles))) *
         sizeof(float);
}

KeyTiles launch_key_tiles(const AttentionParams& params, DType dtype, void* workspace,
                          Stream stream) {
  KeyTiles result{};
  const std::int64_t masks = count_masks(params, result);
  result.tiles = static_cast<int>(ceil_div(params.keys, kWgmmaKeys));
  result.list_size = static_cast<int>(list_size(result.tiles));
  result.values = static_cast<float*>(workspace);
  result.lists = reinterpret_cast<int*>(result.values + masks * result.tiles * kWgmmaKeys);
  dispatch_type(dtype, [&]<class T> {
    launch(stream, "attention_key_tiles", key_tiles_kernel<T>, masks, kTileThreads, 0, params,
           result);
  });
  return result;
}

}  // namespace tenon::cuda
