// matmul and linear: strides to products of cuBLASLt. A matrix may be stored by rows or by columns;
// batch axes may have any strides, and are merged into one strided batch, or into the rows where the
// right-hand matrix is shared, before what is left is looped over.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <optional>

#include "cuda/check.h"
#include "cuda/gemm.h"
#include "cuda/kernels/copy.h"
#include "cuda/kernels/register.h"
#include "cuda/strides.h"

namespace tenon::cuda {
namespace {

/// A matrix (rows, cols) as cuBLAS can read it: one axis of stride 1, the other not overlapping.
std::optional<GemmOperand> as_operand(const void* data, std::int64_t rows, std::int64_t cols,
                                      std::int64_t row_stride, std::int64_t col_stride) {
  // The stride of an axis of size 1 is free: take the one that fits.
  if ((cols <= 1 || col_stride == 1) &&
      (rows <= 1 || row_stride >= std::max<std::int64_t>(1, cols))) {
    const std::int64_t leading = rows <= 1 ? std::max<std::int64_t>(1, cols) : row_stride;
    return GemmOperand{data, false, leading, 0};
  }
  if ((rows <= 1 || row_stride == 1) &&
      (cols <= 1 || col_stride >= std::max<std::int64_t>(1, rows))) {
    const std::int64_t leading = cols <= 1 ? std::max<std::int64_t>(1, rows) : col_stride;
    return GemmOperand{data, true, leading, 0};
  }
  return std::nullopt;
}

std::optional<GemmOperand> as_operand(const TensorView& view) {
  return as_operand(view.data, view.size(-2), view.size(-1), view.stride(-2), view.stride(-1));
}

/// All axes but the last as one axis of rows; nothing when their strides do not allow it.
struct Rows {
  std::int64_t count = 1;
  std::int64_t stride = 0;
};
std::optional<Rows> merged_rows(const TensorView& view) {
  Extents sizes, strides[1];
  for (int axis = 0; axis + 1 < view.rank(); ++axis) {
    sizes.push_back(view.sizes[axis]);
    strides[0].push_back(view.strides[axis]);
  }
  const StridedAxes axes = collapse_axes(sizes, strides, /*sort=*/false);
  if (axes.sizes.size() != 1) return std::nullopt;
  return Rows{axes.sizes[0], axes.strides[0][0]};
}

/// C = 0 for a product over nothing.
void clear(Stream stream, const TensorView& output) {
  const std::size_t bytes = static_cast<std::size_t>(output.numel()) * size_of(output.dtype);
  TENON_CUDA_CHECK(cudaMemsetAsync(output.data, 0, bytes, stream.handle));
}

bool accepts_matmul(int, const TensorView& view) { return as_operand(view).has_value(); }

bool accepts_linear(int operand, const TensorView& view) {
  if (operand == 2) return view.is_contiguous();
  if (operand == 1) return as_operand(view).has_value();
  if (view.numel() == 0) return true;
  const auto rows = merged_rows(view);
  return rows && as_operand(nullptr, rows->count, view.size(-1), rows->stride, view.stride(-1));
}

/// The batch axes of output, input and other (in this order), broadcast and merged.
StridedAxes batch_axes(const TensorView& output, const TensorView& a, const TensorView& b) {
  const auto leading = [](TensorView view) {
    for (int i = 0; i < 2; ++i) {
      view.sizes.erase(view.rank() - 1);
      view.strides.erase(view.strides.size() - 1);
    }
    return view;
  };
  const TensorView views[] = {leading(output), leading(a), leading(b)};
  return collapse_axes(views, /*sort=*/false);
}

/// A shared right-hand matrix makes a batch of products one taller product, where A's rows allow it.
void merge_batch_into_rows(GemmProblem& p) {
  if (p.batch == 1 || p.b.batch_stride != 0 || p.a.transposed) return;
  if (p.m > 1 && p.a.batch_stride != p.m * p.a.leading) return;
  if (p.c_batch_stride != p.m * p.c_leading || p.a.batch_stride < p.k) return;
  if (p.m == 1) p.a.leading = p.a.batch_stride;
  p.m *= p.batch;
  p.batch = 1;
}

void run_matmul(const KernelArgs& args) {
  const TensorView& a = args.inputs[0];
  const TensorView& b = args.inputs[1];
  const TensorView& c = args.outputs[0];
  const Stream stream = stream_of(args);
  if (c.numel() == 0) return;
  GemmProblem problem{.dtype = c.dtype, .m = c.size(-2), .n = c.size(-1), .k = a.size(-1)};
  if (problem.k == 0) return clear(stream, c);
  problem.c_leading = problem.n;
  const StridedAxes batch = batch_axes(c, a, b);
  const int inner = batch.sizes.size() - 1;
  StridedAxes outer = batch;
  outer.sizes[inner] = 1;  // one strided batch; the axes before it are looped over
  const IndexMap<3> map(outer);
  const std::int64_t calls = outer.numel();
  const auto element = static_cast<std::int64_t>(size_of(c.dtype));
  for (std::int64_t call = 0; call < calls; ++call) {
    std::int64_t offsets[3];
    map.offsets(call, offsets);
    GemmProblem p = problem;
    p.a = *as_operand(a);
    p.b = *as_operand(b);
    p.c = static_cast<char*>(c.data) + offsets[0] * element;
    p.a.data = static_cast<const char*>(a.data) + offsets[1] * element;
    p.b.data = static_cast<const char*>(b.data) + offsets[2] * element;
    p.batch = batch.sizes[inner];
    p.c_batch_stride = p.batch > 1 ? batch.strides[0][inner] : 0;
    p.a.batch_stride = p.batch > 1 ? batch.strides[1][inner] : 0;
    p.b.batch_stride = p.batch > 1 ? batch.strides[2][inner] : 0;
    merge_batch_into_rows(p);
    gemm(stream, p);
  }
}

void run_linear(const KernelArgs& args) {
  const TensorView& input = args.inputs[0];
  const TensorView& weight = args.inputs[1];
  const TensorView& output = args.outputs[0];
  const Stream stream = stream_of(args);
  const bool has_bias = args.inputs.size() > 2 && args.inputs[2].present;
  if (output.numel() == 0) return;
  GemmProblem p{.dtype = output.dtype, .n = weight.size(0), .k = weight.size(1)};
  p.m = output.numel() / p.n;
  if (p.k == 0) {  // a product over nothing is the bias
    if (!has_bias) return clear(stream, output);
    return copy_strided(stream, "linear", args.inputs[2], output);
  }
  const Rows rows = *merged_rows(input);
  p.a = *as_operand(input.data, rows.count, p.k, rows.stride, input.stride(-1));
  p.b = *as_operand(weight.data, p.k, p.n, weight.stride(1), weight.stride(0));
  p.c = output.data;
  p.c_leading = p.n;
  p.bias = has_bias ? args.inputs[2].data : nullptr;
  // float64 has no bias epilogue: the bias is written first and the product added to it.
  if (has_bias && (p.dtype == DType::float64 || !has_algorithm(stream, p))) {
    copy_strided(stream, "linear", args.inputs[2], output);
    p.bias = nullptr;
    p.accumulates = true;
  }
  gemm(stream, p);
}

}  // namespace

void register_matmul_kernels() {
  register_kernel("matmul", DeviceType::cuda,
                  {.name = "cuda.cublaslt", .run = run_matmul, .accepts = accepts_matmul});
  register_kernel("linear", DeviceType::cuda,
                  {.name = "cuda.cublaslt", .run = run_linear, .accepts = accepts_linear});
}

}  // namespace tenon::cuda
