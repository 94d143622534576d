// Activations and their slopes far from 0 (tests/support/saturation.h) on CUDA, and those of the
// ops that they are fused into, by every implementation.
#include "tests/support/saturation.h"

#include "tests/cuda/cuda_support.h"

namespace tenon::test {
namespace cuda_saturation_test {

TEST(CudaSaturation, ActivationsAreStraightLinesFarFromZero) {
  SKIP_WITHOUT_GPU();
  for (const SaturatedOp& op : saturated_ops()) {
    for (const DType dtype : kFloats) check_saturation(op, dtype, kCuda);
  }
}

TEST(CudaSaturation, BiasGeluHasTheSameSlopes) {
  SKIP_WITHOUT_GPU();
  for (const SaturatedOp& op : saturated_ops()) {
    if (std::string(op.op) != "gelu") continue;
    for (const DType dtype : kFloats) {
      const SaturatedCase expected(op, dtype);
      const auto size = static_cast<std::int64_t>(expected.inputs.size());
      const TensorOptions options{dtype, kCuda};
      const Tensor x = tensor(expected.inputs, {size, 1}, {dtype}).to(kCuda);
      const Tensor one = ones({size, 1}, options), none = zeros({1}, options);
      const std::string what = op.attrs.to_string() + " " + std::string(name(dtype));
      const std::vector<Tensor> forward = {x, none}, backward = {one, x, none};
      expect_line(apply(get_op("bias_gelu"), forward, op.attrs).at(0), expected.values,
                  expected.inputs, "bias_gelu " + what);
      expect_line(apply(get_op("bias_gelu_backward"), backward, op.attrs).at(0), expected.slopes,
                  expected.inputs, "bias_gelu_backward " + what);
    }
  }
}

constexpr std::int64_t kColumns = 64;  // a multiple of all that kernels ask for

/// A matrix (rows, kColumns) whose product with selector() repeats `values` along its rows.
Tensor in_first_column(const std::vector<double>& values, DType dtype) {
  std::vector<double> elements(values.size() * kColumns);
  for (std::size_t i = 0; i < values.size(); ++i) elements[i * kColumns] = values[i];
  return tensor(elements, {static_cast<std::int64_t>(values.size()), kColumns}, {dtype}).to(kCuda);
}

/// (kColumns, kColumns), 1 in its first column, or row, and 0 elsewhere.
Tensor selector(bool first_row, DType dtype) {
  std::vector<double> elements(kColumns * kColumns);
  for (std::size_t i = 0; i < kColumns; ++i) elements[first_row ? i : i * kColumns] = 1;
  return tensor(elements, {kColumns, kColumns}, {dtype}).to(kCuda);
}

/// The first and the last column.
void expect_columns(const Tensor& got, const std::vector<double>& want,
                    const std::vector<double>& at, const std::string& what) {
  for (const std::int64_t column : {std::int64_t{0}, kColumns - 1}) {
    expect_line(got.narrow(1, column, 1), want, at, what);
  }
}

/// An activation fused with a product, and its slope, by one implementation: at inputs up to `largest`
/// and NaN. `form` counts in saturated_ops(), tanh's GELU first.
void check_products(const std::string& kernel, double largest, std::size_t form = 0) {
  const SaturatedOp& activation = saturated_ops()[form];
  const std::string forward_op = std::string("linear_") + activation.op;
  const std::string backward_op = std::string("matmul_") + activation.op + "_backward";
  for (const DType dtype : {DType::float16, DType::bfloat16}) {
    SaturatedCase expected(activation, dtype);
    for (std::size_t i = expected.inputs.size(); i-- > 0;) {
      if (!(std::abs(expected.inputs[i]) > largest)) continue;
      for (auto* list : {&expected.inputs, &expected.values, &expected.slopes}) {
        list->erase(list->begin() + static_cast<std::ptrdiff_t>(i));
      }
    }
    const auto& at = expected.inputs;
    const Shape shape{static_cast<std::int64_t>(at.size()), kColumns};
    const TensorOptions options{dtype, kCuda};
    const auto results = [&] {
      return std::vector<Tensor>{empty(shape, options), empty(shape, options)};
    };
    const Attrs attrs = activation.attrs;
    const std::string what = " by " + kernel + ", " + std::string(name(dtype));
    const std::vector<Tensor> forward = {in_first_column(at, dtype), selector(false, dtype),
                                         zeros({kColumns}, options)};
    for (const std::string& op : {forward_op, forward_op + "_aux"}) {
      if (find_op(op) == nullptr) continue;
      auto outputs = results();
      if (op == forward_op) outputs.pop_back();
      if (!run_kernel(op.c_str(), kernel, forward, outputs, attrs)) continue;
      expect_columns(outputs[0], expected.values, at, op + what);
      if (outputs.size() > 1) expect_columns(outputs[1], at, at, op + what + ", its input");
    }
    const std::vector<double>& kept = activation.slope_from_output ? expected.values : at;
    const std::vector<double> ones_(at.size(), 1.0);
    const std::vector<Tensor> backward = {
        in_first_column(ones_, dtype), selector(true, dtype),
        tensor(kept, {shape[0].value(), 1}, {dtype}).to(kCuda).expand(shape).contiguous()};
    for (const std::string& op : {backward_op, backward_op + "_again"}) {
      const bool again = op != backward_op;
      if (again && (find_op(op) == nullptr || kernel == "cuda.cublaslt")) continue;
      auto outputs = results();
      if (!again) outputs.pop_back();
      if (!run_kernel(op.c_str(), kernel, backward, outputs, attrs)) continue;
      expect_columns(outputs[0], expected.slopes, at, op + what);
      if (again) expect_columns(outputs[1], expected.values, at, op + what + ", the value");
    }
  }
}

TEST(CudaSaturation, ProductsByCublasLt) {
  SKIP_WITHOUT_GPU();
  // The library's own epilogue: farther away its slope is NaN, as PyTorch's is.
  check_products("cuda.cublaslt", 5e19);
}

TEST(CudaSaturation, ProductsByWgmma) {
  SKIP_WITHOUT_GPU();
  for (const char* kernel : {"cuda.wgmma", "cuda.wgmma_split"}) {
    for (std::size_t form = 0; form < saturated_ops().size(); ++form) {
      if (find_op(std::string("linear_") + saturated_ops()[form].op) == nullptr) continue;
      check_products(kernel, std::numeric_limits<double>::max(), form);
    }
  }
}

}  // namespace cuda_saturation_test
}  // namespace tenon::test
