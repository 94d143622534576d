// Maps linear's operands to one MatrixProduct; the bias is added as each tile is written.
#include "tensor/cpu/linear.h"

#include "tensor/cpu/gemm.h"
#include "tensor/cpu/rows.h"

namespace tenon::cpu {

void linear(const KernelArgs& args) {
  const TensorView& input = args.inputs[0];
  const TensorView& weight = args.inputs[1];
  const TensorView& bias = args.inputs[2];
  const TensorView& output = args.outputs[0];
  const int row_axes = output.rank() - 1;
  MatrixProduct p;
  p.a = input.data;
  p.b = weight.data;
  p.c = output.data;
  p.rows = first_axes(output.sizes, row_axes);
  p.a_rows = first_axes(input.strides, row_axes);
  p.c_rows = first_axes(output.strides, row_axes);
  p.columns = weight.size(0);
  p.depth = weight.size(1);
  p.a_depth = input.stride(-1);
  p.b_column = weight.stride(0);
  p.b_depth = weight.stride(1);
  p.c_column = output.stride(-1);
  if (bias.present) {
    p.bias = bias.data;
    p.bias_column = bias.stride(0);
  }
  dispatch_float(output.dtype, [&]<typename T>() { gemm<T>(p); });
}

}  // namespace tenon::cpu
