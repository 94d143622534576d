// cast: any dtype to any dtype, any strides, by the rules of device/convert.cuh. One kernel a target
// dtype; the source's is chosen at run time, once for the 8 elements that a thread converts: 8
// neighbouring ones by 16-byte accesses where both sides allow it, else single ones.
#include "cuda/device/memory.cuh"
#include "cuda/kernels/copy.h"
#include "cuda/kernels/register.h"
#include "cuda/launch.h"
#include "cuda/strides.h"

namespace tenon::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kItems = 8;

struct CastParams {
  void* target = nullptr;
  const void* source = nullptr;
  DType source_dtype = DType::float32;
  std::int64_t numel = 0;
  bool vectors = false;  // all but the last numel % 8 elements
  IndexMap<2> map{};     // target, source
};

/// Converts 8 neighbouring elements, or those at `offsets` of which `count` exist.
template <class To, class From>
__device__ __forceinline__ void convert_items(const CastParams& p, bool vector, int count,
                                              const std::int64_t (&offsets)[kItems],
                                              To (&results)[kItems]) {
  const From* source = static_cast<const From*>(p.source);
  if (vector) {
    constexpr int kLength = vector_length<From> < kItems ? vector_length<From> : kItems;
#pragma unroll
    for (int first = 0; first < kItems; first += kLength) {
      const auto pack = load_pack<From, kLength>(source + offsets[0] + first);
#pragma unroll
      for (int i = 0; i < kLength; ++i) results[first + i] = convert<To>(pack.item[i]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      if (i < count) results[i] = convert<To>(source[offsets[i]]);
    }
  }
}

template <class To>
__global__ void __launch_bounds__(kThreads) cast_kernel(const CastParams p) {
  const std::int64_t vector_count = p.vectors ? p.numel / kItems : 0;
  const std::int64_t vector_blocks = ceil_div(vector_count, kThreads);
  const std::int64_t block = block_index();
  const bool vector = block < vector_blocks;
  const std::int64_t begin =
      vector ? (block * kThreads + threadIdx.x) * kItems
             : vector_count * kItems + (block - vector_blocks) * (kThreads * kItems) + threadIdx.x;
  if (begin >= (vector ? vector_count * kItems : p.numel)) return;

  std::int64_t target_offsets[kItems];
  std::int64_t source_offsets[kItems];
  int count = 0;
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    const std::int64_t index = begin + i * kThreads;
    if (index >= p.numel || (vector && i > 0)) break;
    std::int64_t offsets[2];
    p.map.offsets(index, offsets);
    target_offsets[i] = offsets[0];
    source_offsets[i] = offsets[1];
    count = i + 1;
  }

  To results[kItems];
  const auto from = [&]<class From>() {
    convert_items<To, From>(p, vector, count, source_offsets, results);
  };
  switch (p.source_dtype) {
    case DType::float32: from.template operator()<float>(); break;
    case DType::float64: from.template operator()<double>(); break;
    case DType::float16: from.template operator()<Half>(); break;
    case DType::bfloat16: from.template operator()<BFloat16>(); break;
    case DType::int64: from.template operator()<std::int64_t>(); break;
    case DType::int32: from.template operator()<std::int32_t>(); break;
    case DType::int16: from.template operator()<std::int16_t>(); break;
    case DType::int8: from.template operator()<std::int8_t>(); break;
    case DType::uint8: from.template operator()<std::uint8_t>(); break;
    case DType::boolean: from.template operator()<bool>(); break;
  }

  To* target = static_cast<To*>(p.target);
  if (vector) {
    constexpr int kLength = vector_length<To> < kItems ? vector_length<To> : kItems;
#pragma unroll
    for (int first = 0; first < kItems; first += kLength) {
      Pack<To, kLength> pack;
#pragma unroll
      for (int i = 0; i < kLength; ++i) pack.item[i] = results[first + i];
      store_pack<To, kLength>(target + target_offsets[0] + first, pack);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      if (i < count) target[target_offsets[i]] = results[i];
    }
  }
}

/// Whether groups of kItems neighbouring elements of operand `i` can be accessed by 16 bytes.
bool has_aligned_groups(const StridedAxes& axes, int i, const void* data) {
  const int inner = axes.sizes.size() - 1;
  if (axes.strides[i][inner] != 1) return false;
  for (int axis = 0; axis < inner; ++axis) {
    if (axes.strides[i][axis] % kItems != 0) return false;
  }
  return is_aligned(data, kVectorBytes);
}

void run_cast(const KernelArgs& args) {
  const TensorView& source = args.inputs[0];
  const TensorView& target = args.outputs[0];
  if (source.dtype == target.dtype) return copy_strided(stream_of(args), "cast", source, target);
  CastParams p{target.data, source.data, source.dtype, target.numel()};
  if (p.numel == 0) return;
  const TensorView views[] = {target, source};
  const StridedAxes axes = collapse_axes(views, /*sort=*/true);
  p.map = IndexMap<2>(axes);
  const int inner = axes.sizes.size() - 1;
  p.vectors = (inner == 0 || axes.sizes[inner] % kItems == 0) &&
              has_aligned_groups(axes, 0, p.target) && has_aligned_groups(axes, 1, p.source);
  const std::int64_t vectors = p.vectors ? p.numel / kItems : 0;
  const std::int64_t blocks =
      ceil_div(vectors, kThreads) + ceil_div(p.numel - vectors * kItems, kThreads * kItems);
  dispatch_all(target.dtype, [&]<typename To>() {
    launch(stream_of(args), "cast", cast_kernel<To>, blocks, kThreads, 0, p);
  });
}

}  // namespace

void register_cast_kernels() {
  register_kernel(
      "cast", DeviceType::cuda,
      {.name = "cuda.cast", .run = run_cast, .accepts = any_layout, .strided_output = true});
}

}  // namespace tenon::cuda
