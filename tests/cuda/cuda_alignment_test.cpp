// Operands and results that start between multiples of 16 bytes, in every implementation that would
// read or write them by vectors: of attention, its gradient, and products with a bias. A kernel is
// selected before addresses are known, so each must look for itself. A program of its own: an
// access that is not aligned takes the device away from all tests after it.
#include <string>
#include <vector>

#include "tensor/functional.h"
#include "tensor/ops/attributes.h"
#include "tests/cuda/cuda_support.h"

namespace tenon::test {
namespace {

constexpr const char* kLseOp = "scaled_dot_product_attention_lse";
constexpr const char* kBackwardOp = "scaled_dot_product_attention_backward";

// --- what is copied before a call: no GPU is needed to ask ---------------------------------------

struct Acceptance {
  const char* op;
  const char* kernel;
  int operand;
  DType dtype;
  std::uintptr_t address;
  bool accepted;
};
constexpr Acceptance kAcceptances[] = {
    {kBackwardOp, "cuda.flash_backward_mma", 7, DType::uint8, 0x1010, true},
    {kBackwardOp, "cuda.flash_backward_mma", 7, DType::uint8, 0, true},  // not known yet
    {kBackwardOp, "cuda.flash_backward_mma", 7, DType::uint8, 0x1001, false},
    {kBackwardOp, "cuda.flash_backward_mma", 7, DType::uint8, 0x1004, false},
    {kBackwardOp, "cuda.flash_backward_wgmma", 7, DType::uint8, 0x1004, false},
    {kBackwardOp, "cuda.flash_backward_wgmma", 7, DType::uint8, 0x1008, false},
    {kBackwardOp, "cuda.flash_backward_tf32x3", 7, DType::uint8, 0x1001, false},
    {kBackwardOp, "cuda.flash_backward_simt", 7, DType::uint8, 0x1001, true},
    {kBackwardOp, "cuda.flash_backward_mma", 6, DType::float32, 0x1004, true},
    {kBackwardOp, "cudnn", 6, DType::float32, 0x1004, false},
    {kBackwardOp, "cudnn", 6, DType::float32, 0x1010, true},
    {"linear", "cuda.cublaslt", 2, DType::float16, 0x1002, false},
    {"linear", "cuda.cublaslt", 2, DType::float16, 0x1010, true},
    {"linear", "cuda.cublaslt", 2, DType::float64, 0x1008, false},
    {"linear_gelu", "cuda.cublaslt", 2, DType::bfloat16, 0x1002, false},
    {"linear_gelu_aux", "cuda.wgmma", 2, DType::bfloat16, 0x1002, false},
    {"linear_residual", "cuda.cublaslt", 2, DType::float32, 0x1004, false},
    {"linear_residual", "cuda.wgmma_split", 2, DType::bfloat16, 0x1002, false},
    {"linear", "cuda.skinny", 2, DType::bfloat16, 0x1010, true},
};

TEST(CudaAlignment, OperandsOfVectorCopiesAreAccepted) {
  static_cast<void>(is_available(kCuda));  // the first question registers the kernels
  for (const Acceptance& test : kAcceptances) {
    const Extents sizes = test.operand == 7 ? Extents{2, 64, 16} : Extents{128};
    const TensorView view{reinterpret_cast<void*>(test.address),
                          test.dtype,
                          kCuda,
                          sizes,
                          contiguous_strides(sizes),
                          true};
    bool exists = std::string(test.kernel) == "cudnn";  // a build may lack it
    for (const Kernel& kernel : get_op(test.op).kernels(DeviceType::cuda)) {
      if (kernel.name != test.kernel) continue;
      exists = true;
      EXPECT_EQ(kernel.accepts(test.operand, view), test.accepted)
          << test.op << " by " << test.kernel << ", operand " << test.operand << " at "
          << test.address;
    }
    EXPECT_TRUE(exists) << test.op << " has no kernel " << test.kernel;
  }
}

// --- calls as Programs make them -----------------------------------------------------------------

/// An operand, or a result, that starts so many elements late.
struct Shift {
  int index;
  std::int64_t elements;
};

std::vector<Tensor> with_shift(std::vector<Tensor> tensors, const Shift& shift) {
  Tensor& tensor = tensors[static_cast<std::size_t>(shift.index)];
  tensor = shifted(tensor, shift.elements);
  return tensors;
}

std::vector<Tensor> like(const std::vector<Tensor>& tensors) {
  std::vector<Tensor> result;
  for (const Tensor& t : tensors) result.push_back(empty(t.shape(), {t.dtype(), kCuda}));
  return result;
}

/// Within some roundings of the largest element of each tensor, as other kernels add in another
/// order; integers are equal.
void expect_close(const std::vector<Tensor>& got, const std::vector<Tensor>& want,
                  const std::string& what) {
  for (std::size_t i = 0; i < want.size(); ++i) {
    const auto values = got[i].to_doubles(), expected = want[i].to_doubles();
    ASSERT_EQ(values.size(), expected.size()) << what;
    double largest = 0;
    for (const double value : expected) largest = std::max(largest, std::abs(value));
    const DType dtype = want[i].dtype();
    const double roundings = size_of(dtype) == 2 ? 16 : 512;
    const double allowed = is_floating(dtype) ? roundings * unit_roundoff(dtype) * largest : 0;
    for (std::size_t k = 0; k < expected.size(); ++k) {
      ASSERT_NEAR(values[k], expected[k], allowed) << what << ", result " << i << ", element " << k;
    }
  }
}

/// A call with each of its operands and results shifted in turn, by every implementation of its op
/// and eagerly, against `expected`.
void check_shifts(const char* op_name, const std::vector<Tensor>& inputs, const Attrs& attrs,
                  const std::vector<Tensor>& expected, const std::vector<Shift>& of_inputs,
                  const std::vector<Shift>& of_outputs, const std::string& call) {
  const Op& op = get_op(op_name);
  const auto text = [&](std::string_view kernel, const char* side, const Shift& shift) {
    return std::string(op_name) + " by " + std::string(kernel) + ", " + call + ", " + side + " " +
           std::to_string(shift.index) + " " + std::to_string(shift.elements) + " late";
  };
  for (const Kernel& kernel : op.kernels(DeviceType::cuda)) {
    for (const Shift& shift : of_inputs) {
      const std::vector<Tensor> outputs = like(expected);
      if (!run_kernel(op_name, kernel.name, with_shift(inputs, shift), outputs, attrs)) break;
      expect_close(outputs, expected, text(kernel.name, "operand", shift));
      if (testing::Test::HasFatalFailure()) return;
    }
    for (const Shift& shift : of_outputs) {
      const std::vector<Tensor> outputs = with_shift(like(expected), shift);
      if (!run_kernel(op_name, kernel.name, inputs, outputs, attrs)) break;
      expect_close(outputs, expected, text(kernel.name, "result", shift));
      if (testing::Test::HasFatalFailure()) return;
    }
  }
  for (const Shift& shift : of_inputs) {
    expect_close(apply(op, with_shift(inputs, shift), attrs), expected,
                 text("the chosen kernel", "operand", shift));
    if (testing::Test::HasFatalFailure()) return;
  }
}

class CudaAlignment : public testing::TestWithParam<DType> {
 protected:
  void SetUp() override {
    SKIP_WITHOUT_GPU();
    manual_seed(7);
  }
  Tensor random(const Sizes& sizes) {
    return randn(to_shape(sizes), {DType::float64}, &generator_).to(GetParam()).to(kCuda);
  }
  Generator generator_{29};
};
INSTANTIATE_TEST_SUITE_P(DTypes, CudaAlignment, testing::ValuesIn(kFloats),
                         [](const auto& test) { return std::string(name(test.param)); });

TEST_P(CudaAlignment, OfAttentionAndItsGradient) {
  constexpr std::int64_t kLength = 130, kKeys = 256;  // decisions fill whole words
  for (const std::int64_t head : {64, 128}) {
    for (const double p : {0.0, 0.3}) {
      const AttentionAttrs attrs{p, false, Scalar(0.15), DropoutMode::train, 7};
      const std::vector<Tensor> operands = {random({2, 2, kLength, head}),
                                            random({2, 2, kKeys, head}),
                                            random({2, 2, kKeys, head}), Tensor()};
      const std::string call = std::string(name(GetParam())) + ", head " + std::to_string(head) +
                               ", dropout " + std::to_string(p);
      const std::vector<Tensor> kept = apply(get_op(kLseOp), operands, attrs);
      std::vector<Shift> of_results = {{0, 1}, {1, 1}};
      if (p > 0) of_results.insert(of_results.end(), {{2, 1}, {2, 4}, {2, 8}});
      check_shifts(kLseOp, operands, attrs, kept, {{0, 1}, {1, 1}, {2, 1}}, of_results, call);
      if (HasFatalFailure()) return;

      const std::vector<Tensor> inputs = {random({2, 2, kLength, head}),
                                          operands[0],
                                          operands[1],
                                          operands[2],
                                          kept[0],
                                          Tensor(),
                                          kept[1],
                                          kept[2]};
      const AttentionBackwardAttrs backward{attrs, false};
      const std::vector<Tensor> expected = like({inputs[1], inputs[2], inputs[3]});
      ASSERT_TRUE(run_kernel(kBackwardOp, "cuda.flash_backward_simt", inputs, expected, backward));
      std::vector<Shift> of_operands = {{6, 1}, {0, 1}, {1, 1}, {2, 1}, {3, 1}, {4, 1}};
      if (p > 0) of_operands.insert(of_operands.begin(), {{7, 1}, {7, 4}, {7, 8}});
      check_shifts(kBackwardOp, inputs, backward, expected, of_operands, {{0, 1}, {1, 1}, {2, 1}},
                   call);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(CudaAlignment, OfProductsWithABias) {
  // One row, and tiles of several sizes.
  for (const auto& [m, n, k] : {std::tuple{1, 64, 64},
                                {64, 256, 128},
                                {300, 1000, 520},
                                {129, 3080, 768},
                                {600, 1544, 512}}) {
    const Tensor x = random({m, k}) * (1 / std::sqrt(static_cast<double>(k)));
    const Tensor weight = random({n, k}), bias = random({n}), residual = random({m, n});
    const std::string call = std::string(name(GetParam())) + " " + std::to_string(m) + " x " +
                             std::to_string(n) + " x " + std::to_string(k);
    const GeluAttrs gelu{Approximate::tanh}, exact{Approximate::none};
    const struct {
      const char* op;
      std::vector<Tensor> inputs;
      Attrs attrs;
      int results;
    } samples[] = {{"linear", {x, weight, bias}, {}, 1},
                   {"linear_residual", {x, weight, bias, residual}, {}, 1},
                   {"linear_gelu", {x, weight, bias}, gelu, 1},
                   {"linear_gelu_aux", {x, weight, bias}, gelu, 2},
                   {"matmul_gelu_backward", {residual, weight, x}, gelu, 1},
                   {"matmul_gelu_backward_again", {residual, weight, x}, gelu, 2},
                   {"linear_gelu", {x, weight, bias}, exact, 1},
                   {"linear_gelu_aux", {x, weight, bias}, exact, 2},
                   {"matmul_gelu_backward_again", {residual, weight, x}, exact, 2}};
    for (const auto& sample : samples) {
      const std::vector<Tensor> expected = apply(get_op(sample.op), sample.inputs, sample.attrs);
      std::vector<Shift> of_inputs, of_results;
      // Biases come first: what else starts late makes kernels fall back that would read them.
      for (const int i : {2, 0, 1, 3}) {
        if (i < static_cast<int>(sample.inputs.size())) of_inputs.push_back({i, 1});
      }
      for (int i = 0; i < sample.results; ++i) of_results.push_back({i, 1});
      check_shifts(sample.op, sample.inputs, sample.attrs, expected, of_inputs, of_results, call);
      if (HasFatalFailure()) return;
    }
  }
}

}  // namespace
}  // namespace tenon::test
