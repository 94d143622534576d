// embedding: rows of a contiguous weight (V, D) by contiguous indices, moved in units of up to 16
// bytes. An index outside [0, V) gives a row of NaN: a kernel cannot throw.
#include "cuda/device/memory.cuh"
#include "cuda/kernels/element_size.h"
#include "cuda/kernels/register.h"
#include "cuda/launch.h"

namespace tenon::cuda {
namespace {

constexpr int kThreads = 256;

struct alignas(16) Unit16 {
  std::uint64_t half[2];
};

struct EmbeddingParams {
  const void* indices = nullptr;
  bool narrow_indices = false;  // int32
  const void* weight = nullptr;
  void* output = nullptr;
  std::int64_t count = 0;         // of indices
  std::int64_t vocabulary = 0;    // V
  std::int64_t units = 0;         // of a row
  std::uint64_t nan_pattern = 0;  // the dtype's NaN, repeated over 8 bytes
};

template <class U>
__device__ __forceinline__ U filled_unit(std::uint64_t pattern) {
  if constexpr (std::is_same_v<U, Unit16>)
    return {pattern, pattern};
  else
    return static_cast<U>(pattern);
}

template <class U>
__global__ void __launch_bounds__(kThreads) embedding_kernel(const EmbeddingParams p) {
  const std::int64_t number = block_index() * kThreads + threadIdx.x;
  if (number >= p.count * p.units) return;
  const std::int64_t i = number / p.units;
  const std::int64_t unit = number - i * p.units;
  const std::int64_t index = p.narrow_indices ? static_cast<const std::int32_t*>(p.indices)[i]
                                              : static_cast<const std::int64_t*>(p.indices)[i];
  const bool valid = index >= 0 && index < p.vocabulary;
  static_cast<U*>(p.output)[number] = valid
                                          ? static_cast<const U*>(p.weight)[index * p.units + unit]
                                          : filled_unit<U>(p.nan_pattern);
}

std::uint64_t nan_pattern(DType dtype) {
  switch (dtype) {
    case DType::float16: return 0x7e007e007e007e00U;
    case DType::bfloat16: return 0x7fc07fc07fc07fc0U;
    case DType::float32: return 0x7fc000007fc00000U;
    default: return 0x7ff8000000000000U;
  }
}

template <class U>
void run_units(Stream stream, EmbeddingParams p, std::int64_t row_bytes) {
  p.units = row_bytes / static_cast<std::int64_t>(sizeof(U));
  launch(stream, "embedding", embedding_kernel<U>, ceil_div(p.count * p.units, kThreads), kThreads,
         0, p);
}

void run_embedding(const KernelArgs& args) {
  const TensorView& indices = args.inputs[0];
  const TensorView& weight = args.inputs[1];
  EmbeddingParams p{indices.data,    indices.dtype == DType::int32,
                    weight.data,     args.outputs[0].data,
                    indices.numel(), weight.sizes[0]};
  p.nan_pattern = nan_pattern(weight.dtype);
  const auto element_bytes = static_cast<std::int64_t>(size_of(weight.dtype));
  const std::int64_t row_bytes = weight.sizes[1] * element_bytes;
  if (p.count == 0 || row_bytes == 0) return;
  if (row_bytes % kVectorBytes == 0 && is_aligned(p.weight, kVectorBytes) &&
      is_aligned(p.output, kVectorBytes)) {
    return run_units<Unit16>(stream_of(args), p, row_bytes);
  }
  dispatch_size(size_of(weight.dtype),
                [&]<typename U>() { run_units<U>(stream_of(args), p, row_bytes); });
}

}  // namespace

void register_embedding_kernels() {
  register_kernel("embedding", DeviceType::cuda, {.name = "cuda.embedding", .run = run_embedding});
}

}  // namespace tenon::cuda
