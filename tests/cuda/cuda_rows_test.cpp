// softmax, layer_norm, dropout and the fused residual tail on CUDA against the CPU ops in float64, for
// rows from 1 element to beyond what a block holds in registers; dropout masks bit for bit.
#include <limits>

#include "tensor/ops/attributes.h"
#include "tests/cuda/cuda_support.h"

namespace tenon::test {
namespace cuda_rows_test {

// Lanes of a warp, a warp's registers (1024), a block's (16384; 8192 for float64), and beyond.
const std::vector<Sizes> kRowShapes = {{3, 1},    {5, 7},    {4, 8},     {9, 77},    {2, 3, 64},
                                       {6, 256},  {3, 1000}, {2, 1024},  {2, 1032},  {2, 4096},
                                       {2, 8200}, {1, 9001}, {1, 16384}, {2, 16392}, {1, 20011}};

TEST(CudaRows, Softmax) {
  SKIP_WITHOUT_GPU();
  Generator generator(21);
  for (const DType dtype : kFloats) {
    for (const Sizes& sizes : kRowShapes) {
      for (const Placement placement :
           {Placement::contiguous, Placement::unaligned, Placement::transposed}) {
        const Operand2 x = make_operand(sizes, dtype, placement, generator, -8, 8);
        check_op("softmax", {x}, AxisAttrs{-1}, {64, 1e-3},
                 describe("softmax", dtype, sizes, placement));
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST(CudaRows, SoftmaxAlongOtherAxes) {
  SKIP_WITHOUT_GPU();
  Generator generator(22);
  const std::vector<std::pair<Sizes, std::int64_t>> shapes = {
      {{5, 33}, 0},      {{2, 50, 40}, 1}, {{3, 1, 9}, 1}, {{1000, 3}, 0},
      {{2, 3, 4, 5}, 2}, {{4}, 0},         {{}, 0}};
  for (const DType dtype : kFloats) {
    for (const auto& [sizes, axis] : shapes) {
      const Operand2 x = make_operand(sizes, dtype, Placement::contiguous, generator, -8, 8);
      check_op("softmax", {x}, AxisAttrs{axis}, {64, 1e-3},
               describe("softmax", dtype, sizes, Placement::contiguous));
      if (HasFatalFailure()) return;
    }
  }
}

TEST(CudaRows, SoftmaxOfSpecialValues) {
  SKIP_WITHOUT_GPU();
  const double inf = std::numeric_limits<double>::infinity();
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const std::vector<std::vector<double>> heads = {{-inf, -inf, -inf, -inf}, {-inf, 0, 1, -inf},
                                                  {inf, 0, 1, 2},           {nan, 0, 1, 2},
                                                  {nan, -inf, -inf, nan},   {1e4, -1e4, 1e4, 0}};
  for (const DType dtype : kFloats) {
    for (const std::int64_t cols : {4, 100, 2000, 20000}) {
      for (const std::vector<double>& head : heads) {
        std::vector<double> row(static_cast<std::size_t>(cols), head.back());
        std::copy(head.begin(), head.end(), row.begin());
        const Tensor x = tensor(row, {1, cols}, {dtype});
        check_op("softmax", {from_cpu(x)}, AxisAttrs{1}, {64, 1e-3}, "softmax of special values");
        check_op("softmax", {from_cpu(x.reshape({cols, 1}).expand({cols, 2}).contiguous())},
                 AxisAttrs{0}, {64, 1e-3}, "softmax of special columns");
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST(CudaRows, LayerNorm) {
  SKIP_WITHOUT_GPU();
  Generator generator(23);
  for (const DType dtype : kFloats) {
    for (const Sizes& sizes : kRowShapes) {
      for (const Placement placement :
           {Placement::contiguous, Placement::unaligned, Placement::transposed}) {
        const Sizes vector = {sizes.back()};
        const Operand2 x = make_operand(sizes, dtype, placement, generator);
        const Operand2 weight = make_operand(vector, dtype, placement, generator);
        const Operand2 bias = make_operand(vector, dtype, Placement::contiguous, generator);
        const std::string what = describe("layer_norm", dtype, sizes, placement);
        check_op("layer_norm", {x, weight, bias}, LayerNormAttrs{1, 1e-5}, {32, 4}, what);
        check_op("layer_norm", {x, {}, bias}, LayerNormAttrs{1, 1e-5}, {32, 4},
                 what + ", no weight");
        check_op("layer_norm", {x, weight, {}}, LayerNormAttrs{1, 1e-5}, {32, 4},
                 what + ", no bias");
        if (HasFatalFailure()) return;
      }
    }
    const Operand2 x = make_operand({3, 4, 5, 6}, dtype, Placement::contiguous, generator);
    const Operand2 weight = make_operand({5, 6}, dtype, Placement::contiguous, generator);
    check_op("layer_norm", {x, weight, {}}, LayerNormAttrs{2, 1e-3}, {32, 4},
             "layer_norm, two axes");
  }
}

// A large mean beside a small spread: a single pass over squares would lose the variance.
TEST(CudaRows, LayerNormKeepsSmallVariances) {
  SKIP_WITHOUT_GPU();
  Generator generator(24);
  for (const std::int64_t cols : {64, 1000, 5000, 20000}) {
    const Operand2 x =
        make_operand({2, cols}, DType::float32, Placement::contiguous, generator, 4096, 4097);
    check_op("layer_norm", {x, {}, {}}, LayerNormAttrs{1, 1e-5}, {1 << 15, 4},
             "layer_norm of a large mean");
  }
  const Tensor constant = full({4, 100}, 3, {DType::float32, kCuda});
  for (const double value : layer_norm(constant, {100}).to_doubles()) EXPECT_EQ(value, 0);
}

TEST(CudaRows, ManyRows) {
  SKIP_WITHOUT_GPU();
  Generator generator(25);
  for (const std::int64_t rows : {65535, 65536, 70000}) {
    const Operand2 x = make_operand({rows, 8}, DType::bfloat16, Placement::contiguous, generator);
    const Operand2 wide =
        make_operand({rows, 3, 2}, DType::float32, Placement::contiguous, generator);
    expect_near(softmax(x.cuda, -1), exact_result("softmax", {x.cpu}, AxisAttrs{-1}), {64, 1e-3},
                "softmax");
    expect_near(softmax(wide.cuda, 1), exact_result("softmax", {wide.cpu}, AxisAttrs{1}),
                {64, 1e-3}, "softmax");
    expect_near(layer_norm(x.cuda, {8}),
                exact_result("layer_norm", {x.cpu, {}, {}}, LayerNormAttrs{1, 1e-5}), {32, 4},
                "layer_norm");
    if (HasFatalFailure()) return;
  }
}

TEST(CudaRows, EmptyRows) {
  SKIP_WITHOUT_GPU();
  for (const Sizes& sizes : std::vector<Sizes>{{0, 5}, {4, 0}, {0}}) {
    const Tensor x = zeros(to_shape(sizes), {DType::float32, kCuda});
    EXPECT_EQ(softmax(x, -1).shape().hints(), sizes);
    EXPECT_EQ(layer_norm(x, {sizes.back()}).shape().hints(), sizes);
    EXPECT_EQ(dropout(x, 0.5, DropoutMode::train).shape().hints(), sizes);
  }
}

struct DropoutCase {
  Sizes sizes;
  double p;
};
const std::vector<DropoutCase> kDropout = {{{}, 0.5},      {{5}, 0.5},          {{40, 64}, 0.1},
                                           {{7, 77}, 0.3}, {{3, 5, 1024}, 0.1}, {{2, 20000}, 0.9},
                                           {{4, 9}, 1.0},  {{70000, 3}, 0.2}};

TEST(CudaRows, DropoutMasksAreTheCpus) {
  SKIP_WITHOUT_GPU();
  Generator generator(26);
  manual_seed(0x123456789abcdef0U);
  for (const DType dtype : kFloats) {
    for (const DropoutCase& test : kDropout) {
      for (const Placement placement : kPlacements) {
        const Operand2 x = make_operand(test.sizes, dtype, placement, generator, 1, 2);
        const DropoutAttrs attrs{test.p, DropoutMode::train, 17};
        check_op("dropout", {x}, attrs, {2, 0}, describe("dropout", dtype, test.sizes, placement));
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST(CudaRows, DropoutDropsNanAndFollowsTheMode) {
  SKIP_WITHOUT_GPU();
  const Tensor x = full({64}, std::nan(""), {DType::float32, kCuda});
  for (const double value : dropout(x, 1.0, DropoutMode::train).to_doubles()) EXPECT_EQ(value, 0);
  const Tensor y = ones({64}, {DType::float32, kCuda});
  const Attrs attrs = DropoutAttrs{0.5, DropoutMode::follow, 3};
  expect_bit_equal(run_guarded("dropout", {y}, attrs, 1, /*training=*/false), y, "evaluation");
  const double kept = sum(run_guarded("dropout", {y}, attrs, 1, /*training=*/true)).item();
  EXPECT_NE(kept, 64);
}

TEST(CudaRows, BiasDropoutResidualLayerNorm) {
  SKIP_WITHOUT_GPU();
  Generator generator(27);
  manual_seed(99);
  for (const DType dtype : kFloats) {
    for (const Sizes& sizes : kRowShapes) {
      if (sizes.back() == 1) continue;  // a row of one element is its own mean: all noise
      for (const Placement placement : {Placement::contiguous, Placement::unaligned}) {
        const Sizes vector = {sizes.back()};
        const Operand2 x = make_operand(sizes, dtype, placement, generator);
        const Operand2 bias = make_operand(vector, dtype, placement, generator);
        const Operand2 residual = make_operand(sizes, dtype, Placement::contiguous, generator);
        const Operand2 weight = make_operand(vector, dtype, Placement::contiguous, generator);
        const Operand2 norm_bias = make_operand(vector, dtype, Placement::contiguous, generator);
        for (const double p : {0.0, 0.1, 0.5}) {
          const BiasDropoutResidualLayerNormAttrs attrs{p, 1e-5, DropoutMode::train, 4};
          check_op("bias_dropout_residual_layer_norm", {x, bias, residual, weight, norm_bias},
                   attrs, {64, 6}, describe("fused tail", dtype, sizes, placement));
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

}  // namespace cuda_rows_test
}  // namespace tenon::test
