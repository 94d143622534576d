// Maps matmul's operands to one MatrixProduct.
#include "tensor/cpu/matmul.h"

#include <utility>

#include "tensor/cpu/gemm.h"
#include "tensor/cpu/rows.h"

namespace tenon::cpu {
namespace {

/// Strides of `view`'s batch axes along the output's batch axes: 0 where `view` is broadcast.
Extents batch_strides(const TensorView& view, const Extents& batch) {
  Extents result = Extents::filled(batch.size(), 0);
  const int missing = batch.size() - (view.rank() - 2);
  for (int axis = missing; axis < batch.size(); ++axis) {
    if (view.sizes[axis - missing] != 1) result[axis] = view.strides[axis - missing];
  }
  return result;
}

bool all_zero(const Extents& strides, const Extents& sizes) {
  for (int i = 0; i < strides.size(); ++i) {
    if (strides[i] != 0 && sizes[i] != 1) return false;
  }
  return true;
}

}  // namespace

void matmul(const KernelArgs& args) {
  const TensorView& a = args.inputs[0];
  const TensorView& b = args.inputs[1];
  const TensorView& c = args.outputs[0];
  const int batch_axes = c.rank() - 2;
  MatrixProduct p;
  p.a = a.data;
  p.b = b.data;
  p.c = c.data;
  p.batch = first_axes(c.sizes, batch_axes);
  p.a_batch = batch_strides(a, p.batch);
  p.b_batch = batch_strides(b, p.batch);
  p.c_batch = first_axes(c.strides, batch_axes);
  if (all_zero(p.b_batch, p.batch)) {  // one matrix for all: the batch axes are further rows
    p.rows = std::exchange(p.batch, {});
    p.a_rows = std::exchange(p.a_batch, {});
    p.c_rows = std::exchange(p.c_batch, {});
    p.b_batch = {};
  }
  p.rows.push_back(c.size(-2));
  p.a_rows.push_back(a.stride(-2));
  p.c_rows.push_back(c.stride(-2));
  p.columns = c.size(-1);
  p.depth = a.size(-1);
  p.a_depth = a.stride(-1);
  p.b_depth = b.stride(-2);
  p.b_column = b.stride(-1);
  p.c_column = c.stride(-1);
  dispatch_float(c.dtype, [&]<typename T>() { gemm<T>(p); });
}

}  // namespace tenon::cpu
