#include "cuda/tensor_map.h"

#include <cuda_runtime_api.h>

#include "cuda/check.h"
#include "tensor/detail/check.h"

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

}  // namespace

CUtensorMap make_tensor_map(const void* data, DType dtype, std::int64_t rows, std::int64_t columns,
                            std::int64_t leading, int box_rows) {
  constexpr cuuint32_t kBoxColumns = 64;
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  const cuuint64_t row_bytes[] = {static_cast<cuuint64_t>(leading) * 2};
  const cuuint32_t box[] = {kBoxColumns, static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t steps[] = {1, 1};
  CUtensorMap map{};
  const CUresult status = encode_function()(
      &map,
      dtype == DType::float16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
      2, const_cast<void*>(data), sizes, row_bytes, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
      CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  TENON_INTERNAL(status == CUDA_SUCCESS, "tensor map of {} x {}, {} apart: CUresult {}", rows,
                 columns, leading, static_cast<int>(status));
  return map;
}

}  // namespace tenon::cuda
