// matmul, linear and what is fused with them: strides to products of cuBLASLt. A matrix may be stored by
// rows or by columns; batch axes may have any strides, and are merged into one strided batch, or into
// the rows where the right-hand matrix is shared, before what is left is looped over. Where cuBLASLt
// cannot fuse at the addresses of a call, the parts run one after another.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <initializer_list>
#include <optional>

#include "cuda/check.h"
#include "cuda/gemm.h"
#include "cuda/kernels/copy.h"
#include "cuda/kernels/gemm_choice.h"
#include "cuda/kernels/gemm_skinny.h"
#include "cuda/kernels/gemm_split.h"
#include "cuda/kernels/gemm_wgmma.h"
#include "cuda/kernels/register.h"
#include "cuda/strides.h"
#include "tensor/ops/attributes.h"
#include "tensor/support/check.h"

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

/// All axes but the last as the rows of a matrix that cuBLAS can read.
std::optional<GemmOperand> as_row_operand(const TensorView& view) {
  const std::int64_t cols = view.size(-1);
  if (view.numel() == 0) return GemmOperand{view.data, false, std::max<std::int64_t>(1, cols), 0};
  const auto rows = merged_rows(view);
  if (!rows) return std::nullopt;
  return as_operand(view.data, rows->count, cols, rows->stride, view.stride(-1));
}

/// What an addend may be: rows of neighbours.
bool is_addend(const std::optional<GemmOperand>& operand) {
  return operand && !operand->transposed;
}

/// Stands for an address at selection, when there is none yet.
void* const kAlignedAddress = reinterpret_cast<void*>(std::uintptr_t{256});

void* address_of(const TensorView& view) {
  return view.data != nullptr ? view.data : kAlignedAddress;
}

/// The problem at aligned addresses: the choice of a kernel must not depend on where operands happen
/// to lie.
GemmProblem aligned_problem(GemmProblem p) {
  p.a.data = p.b.data = p.d = kAlignedAddress;
  if (p.c.data != nullptr) p.c.data = kAlignedAddress;
  if (p.bias != nullptr) p.bias = kAlignedAddress;
  if (p.aux != nullptr) p.aux = kAlignedAddress;
  return p;
}

bool has_aligned_algorithm(const KernelArgs& args, const GemmProblem& p) {
  return has_algorithm(stream_of(args), aligned_problem(p));
}

/// C = 0 for a product over nothing.
void clear(Stream stream, const TensorView& output) {
  const std::size_t bytes = static_cast<std::size_t>(output.numel()) * size_of(output.dtype);
  TENON_CUDA_CHECK(cudaMemsetAsync(output.data, 0, bytes, stream.handle));
}

bool accepts_matmul(int operand, const TensorView& view) {
  return operand == 2 ? is_addend(as_operand(view)) : as_operand(view).has_value();
}

/// Whether epilogues and the copy engine can access it; before addresses are known they can.
bool allows_vectors(const void* data) { return reinterpret_cast<std::uintptr_t>(data) % 16 == 0; }

bool accepts_linear(int operand, const TensorView& view) {
  switch (operand) {
    case 0: return as_row_operand(view).has_value();
    case 1: return as_operand(view).has_value();
    case 2: return view.is_contiguous() && allows_vectors(view.data);
    default: return is_addend(as_row_operand(view));
  }
}

/// The batch axes of output, input, other and addend, broadcast and merged.
StridedAxes batch_axes(std::span<const TensorView> operands) {
  std::array<TensorView, 4> views;
  for (std::size_t i = 0; i < views.size(); ++i) {
    views[i] = operands[i];
    for (int axis = 0; axis < 2; ++axis) {
      views[i].sizes.erase(views[i].rank() - 1);
      views[i].strides.erase(views[i].strides.size() - 1);
    }
  }
  return collapse_axes(views, /*sort=*/false);
}

/// Whether matrix after matrix continues the rows of one taller matrix, `cols` wide.
bool continues_rows(const GemmProblem& p, std::int64_t leading, std::int64_t batch_stride,
                    std::int64_t cols) {
  return p.m > 1 ? batch_stride == p.m * leading : batch_stride >= cols;
}

/// A shared right-hand matrix makes a batch of products one taller product, where rows allow it.
void merge_batch_into_rows(GemmProblem& p) {
  if (p.batch == 1 || p.b.batch_stride != 0 || p.a.transposed) return;
  const bool adds = p.c.data != nullptr;
  if (!continues_rows(p, p.a.leading, p.a.batch_stride, p.k) ||
      !continues_rows(p, p.d_leading, p.d_batch_stride, p.n) ||
      (adds && !continues_rows(p, p.c.leading, p.c.batch_stride, p.n))) {
    return;
  }
  if (p.m == 1) {
    p.a.leading = p.a.batch_stride;
    p.d_leading = p.d_batch_stride;
    if (adds) p.c.leading = p.c.batch_stride;
  }
  p.m *= p.batch;
  p.batch = 1;
}

/// matmul, and matmul_add, whose third operand is the addend.
void run_matmul(const KernelArgs& args) {
  const TensorView& a = args.inputs[0];
  const TensorView& b = args.inputs[1];
  const TensorView& d = args.outputs[0];
  const bool adds = args.inputs.size() > 2;
  const TensorView& c = adds ? args.inputs[2] : d;
  const Stream stream = stream_of(args);
  if (d.numel() == 0) return;
  GemmProblem problem{.dtype = d.dtype, .m = d.size(-2), .n = d.size(-1), .k = a.size(-1)};
  if (problem.k == 0) return adds ? copy_strided(stream, "matmul_add", c, d) : clear(stream, d);
  problem.d_leading = problem.n;
  problem.a = *as_operand(a);
  problem.b = *as_operand(b);
  if (adds) problem.c = *as_operand(c);
  const TensorView operands[] = {d, a, b, c};
  const StridedAxes batch = batch_axes(operands);
  const int inner = batch.sizes.size() - 1;
  StridedAxes outer = batch;
  outer.sizes[inner] = 1;  // one strided batch; the axes before it are looped over
  const IndexMap<4> map(outer);
  const std::int64_t calls = outer.numel();
  const auto element = static_cast<std::int64_t>(size_of(d.dtype));
  const auto batch_stride = [&](int operand) {
    return batch.sizes[inner] > 1 ? batch.strides[operand][inner] : 0;
  };
  for (std::int64_t call = 0; call < calls; ++call) {
    std::int64_t offsets[4];
    map.offsets(call, offsets);
    const auto address = [&](int operand) {
      return static_cast<char*>(operands[operand].data) + offsets[operand] * element;
    };
    GemmProblem p = problem;
    p.batch = batch.sizes[inner];
    p.d = address(0);
    p.d_batch_stride = batch_stride(0);
    p.a.data = address(1);
    p.a.batch_stride = batch_stride(1);
    p.b.data = address(2);
    p.b.batch_stride = batch_stride(2);
    if (adds) {
      p.c.data = address(3);
      p.c.batch_stride = batch_stride(3);
    }
    merge_batch_into_rows(p);
    gemm(stream, p);
  }
}

bool has_bias(const KernelArgs& args) { return args.inputs.size() > 2 && args.inputs[2].present; }

/// Nothing to compute, or nothing to sum up.
bool is_empty(const KernelArgs& args) {
  return args.outputs[0].numel() == 0 || args.inputs[1].size(1) == 0;
}

/// input·weightᵀ + bias into `output`, for sizes of at least 1. Operands that are not accepted as they
/// are will be packed, so at selection they count as such.
GemmProblem linear_problem(const KernelArgs& args, const TensorView& output) {
  const TensorView& input = args.inputs[0];
  const TensorView& weight = args.inputs[1];
  GemmProblem p{.dtype = output.dtype, .n = weight.size(0), .k = weight.size(1)};
  p.m = output.numel() / p.n;
  p.a = as_row_operand(input).value_or(GemmOperand{input.data, false, p.k});
  p.b = as_operand(weight.data, p.k, p.n, weight.stride(1), weight.stride(0))
            .value_or(GemmOperand{weight.data, true, p.k});
  p.d = output.data;
  p.d_leading = p.n;
  if (has_bias(args)) p.bias = address_of(args.inputs[2]);
  return p;
}

/// linear in one call or two. Where cuBLASLt has no bias epilogue, for float64 and for a bias that
/// is not aligned, the bias is written first and the product added to it.
void linear_into(const KernelArgs& args, const TensorView& output) {
  const Stream stream = stream_of(args);
  if (is_empty(args)) {  // a product over nothing is the bias
    if (!has_bias(args)) return clear(stream, output);
    return copy_strided(stream, "linear", args.inputs[2], output);
  }
  GemmProblem p = linear_problem(args, output);
  if (p.bias != nullptr && !has_algorithm(stream, p)) {
    copy_strided(stream, "linear", args.inputs[2], output);
    p.bias = nullptr;
    p.c = {output.data, false, p.d_leading, 0};
  }
  gemm(stream, p);
}

void run_linear(const KernelArgs& args) {
  if (args.outputs[0].numel() > 0) linear_into(args, args.outputs[0]);
}

/// An elementwise op on the results of a call, with that call's attributes.
void run_elementwise(const char* name, const KernelArgs& args, std::span<const TensorView> inputs,
                     const TensorView& output) {
  KernelArgs call = args;
  call.op = &get_op(name);
  call.inputs = inputs;
  call.outputs = std::span(&output, 1);
  const Kernel* kernel = select_kernel(*call.op, DeviceType::cuda, call);
  TENON_INTERNAL(kernel != nullptr, "[{}] no kernel for the results of {}", name, args.op->name);
  kernel->run(call);
}

bool has_tanh(const KernelArgs& args) {
  return args.attributes<GeluAttrs>().approximate == Approximate::tanh;
}

/// An activation that products end in: its op, that of its slope, and what products do for it.
struct Activation {
  const char* value;
  const char* slope;
  GemmEpilogue (*epilogue)(const KernelArgs&);
};
constexpr Activation kGelu = {"gelu", "gelu_backward", [](const KernelArgs& args) {
                                return has_tanh(args) ? GemmEpilogue::gelu_tanh
                                                      : GemmEpilogue::gelu;
                              }};
constexpr Activation kRelu = {"relu", "relu_backward",
                              [](const KernelArgs&) { return GemmEpilogue::relu; }};
constexpr Activation kSilu = {"silu", "silu_backward",
                              [](const KernelArgs&) { return GemmEpilogue::silu; }};

/// linear_gelu and its like, and linear_gelu_aux, whose second result is the activation's input.
template <const Activation& kActivation>
GemmProblem linear_activation_problem(const KernelArgs& args) {
  GemmProblem p = linear_problem(args, args.outputs[0]);
  p.epilogue = kActivation.epilogue(args);
  if (args.outputs.size() > 1) {
    p.aux = address_of(args.outputs[1]);
    p.aux_leading = p.n;
  }
  return p;
}

/// The tanh form is cuBLASLt's only one, and it is approximated well enough for 16 bits only.
bool supports_linear_gelu(const KernelArgs& args) {
  if (!has_tanh(args)) return false;
  if (size_of(args.outputs[0].dtype) != 2) return false;
  return is_empty(args) || has_aligned_algorithm(args, linear_activation_problem<kGelu>(args));
}

template <const Activation& kActivation>
void run_linear_activation(const KernelArgs& args) {
  if (args.outputs[0].numel() == 0) return;
  const Stream stream = stream_of(args);
  if (!is_empty(args)) {
    const GemmProblem p = linear_activation_problem<kActivation>(args);
    if (has_algorithm(stream, p)) return gemm(stream, p);
  }
  const TensorView& activation_input = args.outputs.back();
  linear_into(args, activation_input);
  run_elementwise(kActivation.value, args, std::span(&activation_input, 1), args.outputs[0]);
}

GemmProblem linear_residual_problem(const KernelArgs& args) {
  const TensorView& residual = args.inputs[3];
  GemmProblem p = linear_problem(args, args.outputs[0]);
  const auto rows = as_row_operand(residual);
  p.c = is_addend(rows) ? *rows : GemmOperand{residual.data, false, p.n};
  p.c.data = address_of(residual);
  return p;
}

bool supports_linear_residual(const KernelArgs& args) {
  return is_empty(args) || has_aligned_algorithm(args, linear_residual_problem(args));
}

void run_linear_residual(const KernelArgs& args) {
  const TensorView& output = args.outputs[0];
  if (output.numel() == 0) return;
  const Stream stream = stream_of(args);
  if (!is_empty(args)) {
    const GemmProblem p = linear_residual_problem(args);
    if (has_algorithm(stream, p)) return gemm(stream, p);
  }
  linear_into(args, output);
  const TensorView terms[] = {output, args.inputs[3]};
  run_elementwise("add", args, terms, output);
}

/// matmul(grad, weight), of sizes of at least 1, as one product of rows.
GemmProblem row_product(const KernelArgs& args) {
  const TensorView& grad = args.inputs[0];
  const TensorView& weight = args.inputs[1];
  const TensorView& output = args.outputs[0];
  GemmProblem p{.dtype = output.dtype, .n = weight.size(1), .k = weight.size(0)};
  p.m = output.numel() / p.n;
  p.a = as_row_operand(grad).value_or(GemmOperand{grad.data, false, p.k});
  p.b = as_operand(weight).value_or(GemmOperand{weight.data, false, p.n});
  p.d = output.data;
  p.d_leading = p.n;
  return p;
}

template <const Activation& kActivation>
GemmProblem slope_problem(const KernelArgs& args) {
  GemmProblem p = row_product(args);
  p.epilogue = gradient_of(kActivation.epilogue(args));
  p.aux = address_of(args.inputs[2]);
  p.aux_leading = p.n;
  return p;
}

bool accepts_slope(int operand, const TensorView& view) {
  if (operand == 0) return as_row_operand(view).has_value();
  return operand == 1 ? as_operand(view).has_value() : view.is_contiguous();
}

/// See supports_linear_gelu; the matrix on the right must serve all rows.
bool supports_gelu_slope(const KernelArgs& args) {
  const TensorView& output = args.outputs[0];
  if (!has_tanh(args)) return false;
  if (size_of(output.dtype) != 2 || args.inputs[1].rank() != 2) return false;
  if (args.inputs[2].sizes != output.sizes) return false;
  return output.numel() == 0 || args.inputs[1].size(0) == 0 ||
         has_aligned_algorithm(args, slope_problem<kGelu>(args));
}

/// With a second result that is gelu(input).
template <const Activation& kActivation>
void run_slope(const KernelArgs& args) {
  const TensorView& output = args.outputs[0];
  const Stream stream = stream_of(args);
  if (output.numel() == 0) return;
  if (args.outputs.size() > 1) {
    run_elementwise(kActivation.value, args, args.inputs.subspan(2, 1), args.outputs[1]);
  }
  if (args.inputs[1].size(0) == 0) return clear(stream, output);
  const GemmProblem p = slope_problem<kActivation>(args);
  if (has_algorithm(stream, p)) return gemm(stream, p);
  gemm(stream, row_product(args));
  const TensorView factors[] = {output, args.inputs[2]};
  run_elementwise(kActivation.slope, args, factors, output);
}

/// An op as one product for Tenon's own kernels.
struct ProductCall {
  bool (*fits)(const KernelArgs&);
  GemmProblem (*problem)(const KernelArgs&);
  void (*otherwise)(const KernelArgs&);  // where operands lie unaligned
};

/// One of those kernels.
struct ProductKernel {
  const char* name;
  ProductChoice choice;
  bool (*takes)(const GemmProblem&, const DeviceLimits&);
  void (*run)(Stream, const char*, const GemmProblem&, void*);
};

constexpr ProductKernel kWgmma = {"cuda.wgmma", ProductChoice::wgmma, gemm_wgmma_takes,
                                  gemm_wgmma};
constexpr ProductKernel kSkinny = {
    "cuda.skinny", ProductChoice::skinny,
    [](const GemmProblem& p, const DeviceLimits&) { return gemm_skinny_takes(p); },
    [](Stream stream, const char* name, const GemmProblem& p, void*) {
      gemm_skinny(stream, name, p);
    }};
constexpr ProductKernel kSplit = {
    "cuda.wgmma_split", ProductChoice::split, gemm_split_takes,
    [](Stream stream, const char* name, const GemmProblem& p, void* activation) {
      const int multiprocessors = device_limits(stream.device).multiprocessors;
      gemm_split(stream, name, p, plan_split(p.m, p.n, p.k, multiprocessors), activation);
    }};

/// One matrix on the right for all rows.
bool is_row_product(const KernelArgs& args) {
  return args.inputs[1].rank() == 2 && args.outputs[0].numel() > 0 && args.inputs[1].size(0) > 0;
}

bool is_something(const KernelArgs& args) { return !is_empty(args); }

constexpr ProductCall kMatmulCall = {is_row_product, row_product, run_matmul};
constexpr ProductCall kLinearCall = {
    is_something, [](const KernelArgs& args) { return linear_problem(args, args.outputs[0]); },
    run_linear};
template <const Activation& kActivation>
constexpr ProductCall kActivationCall = {is_something, linear_activation_problem<kActivation>,
                                         run_linear_activation<kActivation>};
template <const Activation& kActivation>
constexpr ProductCall kSlopeCall = {[](const KernelArgs& args) {
                                      return is_row_product(args) &&
                                             args.inputs[2].sizes == args.outputs[0].sizes;
                                    },
                                    slope_problem<kActivation>, run_slope<kActivation>};
constexpr ProductCall kLinearResidualCall = {is_something, linear_residual_problem,
                                             run_linear_residual};

template <const ProductCall& kCall, const ProductKernel& kKernel>
bool prefers_product(const KernelArgs& args) {
  return kCall.fits(args) &&
         choose_product(aligned_problem(kCall.problem(args)),
                        device_limits(args.outputs[0].device.index)) == kKernel.choice;
}

/// What cuBLASLt cannot end in is two ops where that is expected to take less time.
template <const ProductCall& kCall, const ProductKernel& kKernel>
bool supports_product(const KernelArgs& args) {
  if (!kCall.fits(args)) return false;
  const GemmProblem p = aligned_problem(kCall.problem(args));
  return kKernel.takes(p, device_limits(args.outputs[0].device.index)) &&
         (is_plain_or_gelu_tanh(p.epilogue) || prefers_product<kCall, kKernel>(args));
}

template <const ProductCall& kCall, const ProductKernel& kKernel>
void run_product(const KernelArgs& args) {
  const GemmProblem p = kCall.problem(args);
  const Stream stream = stream_of(args);
  const bool again = is_gradient(p.epilogue) && args.outputs.size() > 1;
  void* activation = again ? args.outputs[1].data : nullptr;
  if (!kKernel.takes(p, device_limits(stream.device)) || !allows_vectors(activation)) {
    return kCall.otherwise(args);
  }
  kKernel.run(stream, args.op->name.c_str(), p, activation);
}

template <const ProductCall& kCall, const ProductKernel& kKernel>
void register_product(std::initializer_list<const char*> ops,
                      bool (*accepts)(int, const TensorView&)) {
  for (const char* op : ops) {
    register_kernel(op, DeviceType::cuda,
                    {.name = kKernel.name,
                     .run = run_product<kCall, kKernel>,
                     .supports = supports_product<kCall, kKernel>,
                     .accepts = accepts,
                     .preferred = prefers_product<kCall, kKernel>});
  }
}

template <const ProductCall& kCall>
void register_products(std::initializer_list<const char*> ops,
                       bool (*accepts)(int, const TensorView&)) {
  register_product<kCall, kSkinny>(ops, accepts);
  register_product<kCall, kWgmma>(ops, accepts);
  register_product<kCall, kSplit>(ops, accepts);
}

}  // namespace

/// 16-bit rows that vectors cannot read.
std::string unaligned_reason(const KernelArgs& args) {
  const TensorView& weight = args.inputs[1];
  if (size_of(weight.dtype) != 2 || (weight.size(0) % 8 == 0 && weight.size(1) % 8 == 0)) return "";
  return fmt::format("a weight ({}, {}) of 16-bit floats; rows of multiples of 8 elements are read by "
                     "vectors: pad it",
                     weight.size(0), weight.size(1));
}

void register_matmul_kernels() {
  for (const char* op : {"matmul", "matmul_add"}) {
    register_kernel(op, DeviceType::cuda,
                    {.name = "cuda.cublaslt", .run = run_matmul, .accepts = accepts_matmul});
  }
  register_kernel("linear", DeviceType::cuda,
                  {.name = "cuda.cublaslt",
                   .run = run_linear,
                   .accepts = accepts_linear,
                   .slow_because = unaligned_reason});
  for (const char* op : {"linear_gelu", "linear_gelu_aux"}) {
    register_kernel(op, DeviceType::cuda,
                    {.name = "cuda.cublaslt",
                     .run = run_linear_activation<kGelu>,
                     .supports = supports_linear_gelu,
                     .accepts = accepts_linear});
  }
  register_kernel("linear_residual", DeviceType::cuda,
                  {.name = "cuda.cublaslt",
                   .run = run_linear_residual,
                   .supports = supports_linear_residual,
                   .accepts = accepts_linear});
  register_kernel("matmul_gelu_backward", DeviceType::cuda,
                  {.name = "cuda.cublaslt",
                   .run = run_slope<kGelu>,
                   .supports = supports_gelu_slope,
                   .accepts = accepts_slope});
  register_products<kMatmulCall>({"matmul"}, accepts_slope);
  register_products<kLinearCall>({"linear"}, accepts_linear);
  register_products<kLinearResidualCall>({"linear_residual"}, accepts_linear);
  register_products<kActivationCall<kGelu>>({"linear_gelu", "linear_gelu_aux"}, accepts_linear);
  register_products<kActivationCall<kRelu>>({"linear_relu"}, accepts_linear);
  register_products<kActivationCall<kSilu>>({"linear_silu", "linear_silu_aux"}, accepts_linear);
  register_products<kSlopeCall<kGelu>>({"matmul_gelu_backward", "matmul_gelu_backward_again"},
                                       accepts_slope);
  register_products<kSlopeCall<kRelu>>({"matmul_relu_backward"}, accepts_slope);
  register_products<kSlopeCall<kSilu>>({"matmul_silu_backward"}, accepts_slope);
}

}  // namespace tenon::cuda
