#include "cuda/tensor_map.h"

#include <cuda_runtime_api.h>

#include "cuda/check.h"
#include "tensor/support/check.h"

namespace tenon::cuda {
namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

/// From the driver that is loaded: programs link to the runtime only.
Encode encode_function() {
  static const Encode function = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result{};
    constexpr unsigned kVersion = 12000;  // which brought it
    TENON_CUDA_CHECK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, kVersion,
                                                      cudaEnableDefault, &result));
    TENON_INTERNAL(result == cudaDriverEntryPointSuccess, "the driver has no tensor maps");
    return reinterpret_cast<Encode>(found);
  }();
  return function;
}

/// `strides` are those of the axes behind the columns, in bytes.
CUtensorMap encode(const void* data, DType dtype, cuuint32_t axes, const cuuint64_t* sizes,
                   const cuuint64_t* strides, int box_rows) {
  const bool is_bool = dtype == DType::boolean;
  const cuuint32_t columns = is_bool ? 128 : 64;
  const cuuint32_t box[] = {columns, static_cast<cuuint32_t>(box_rows), 1, 1, 1};
  const cuuint32_t steps[] = {1, 1, 1, 1, 1};
  CUtensorMap map{};
  const CUresult status = encode_function()(
      &map,
      is_bool                   ? CU_TENSOR_MAP_DATA_TYPE_UINT8
      : dtype == DType::float16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
      axes, const_cast<void*>(data), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
      CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  TENON_INTERNAL(status == CUDA_SUCCESS, "tensor map of {} x {}, {} bytes apart: CUresult {}",
                 sizes[1], sizes[0], strides[0], static_cast<int>(status));
  return map;
}

}  // namespace

CUtensorMap make_tensor_map(const void* data, DType dtype, std::int64_t rows, std::int64_t columns,
                            std::int64_t leading, int box_rows) {
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(leading) * 2};
  return encode(data, dtype, 2, sizes, strides, box_rows);
}

CUtensorMap make_tensor_map(const void* data, DType dtype, const std::int64_t (&sizes)[5],
                            const std::int64_t (&strides)[4], int box_rows) {
  cuuint64_t counts[5];
  cuuint64_t bytes[4];
  for (int axis = 0; axis < 5; ++axis) counts[axis] = static_cast<cuuint64_t>(sizes[axis]);
  for (int axis = 0; axis < 4; ++axis) {
    bytes[axis] = static_cast<cuuint64_t>(strides[axis]) * size_of(dtype);
  }
  return encode(data, dtype, 5, counts, bytes, box_rows);
}

}  // namespace tenon::cuda
