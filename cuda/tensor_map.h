// Descriptions of matrices for the Tensor Memory Accelerator.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "tensor/dtype.h"

namespace tenon::cuda {

/// Describes a matrix of 16-bit floats, (rows, columns) with `leading` elements from row to row, whose
/// boxes of `box_rows` x 64 elements are copied to shared memory as rows of 128 bytes with 16-byte
/// chunks swizzled by an exclusive or with row mod 8: what cuda/device/wgmma.cuh multiplies. The
/// matrix is aligned to 16 bytes, `leading` is a multiple of 8, `box_rows` at most 256.
CUtensorMap make_tensor_map(const void* data, DType dtype, std::int64_t rows, std::int64_t columns,
                            std::int64_t leading, int box_rows);

/// The same of an array of five axes, columns first, whose boxes are rows of one matrix: `strides`, in
/// elements, are those of the axes behind the columns; they are positive multiples of 16
/// bytes. Boxes of booleans have 128 columns.
CUtensorMap make_tensor_map(const void* data, DType dtype, const std::int64_t (&sizes)[5],
                            const std::int64_t (&strides)[4], int box_rows);

}  // namespace tenon::cuda
