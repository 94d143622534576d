// log_softmax, rms_norm, cross_entropy, batch_norm and the gradients of normalizations and softmax on CUDA
// against the CPU's in float64: rows from 1 element to beyond what a block holds in registers.
#include <limits>

#include "cuda/kernels/row_plan.h"
#include "tensor/ops/attributes.h"
#include "tensor/ops/norm_attributes.h"
#include "tests/cuda/cuda_outputs.h"

namespace tenon::test {
namespace {

// Lanes of a warp, a warp's registers (1024), a block's (16384; 8192 for float64), and beyond.
const std::vector<Sizes> kRowShapes = {{3, 1},    {5, 7},    {4, 8},     {9, 77},    {2, 3, 64},
                                       {6, 256},  {3, 1000}, {70, 1024}, {2, 1032},  {2, 4096},
                                       {2, 8200}, {1, 9001}, {1, 16384}, {2, 16392}, {1, 20011}};

/// More rows than blocks that stay: rows of part of a warp, of a warp (2, 3 and 4 chunks) and of blocks.
const std::vector<Sizes> kTallShapes = {{6000, 24},   {1000, 104},  {3000, 512}, {1000, 768},
                                        {2000, 1000}, {2000, 1024}, {700, 1600}, {300, 4096}};

constexpr Placement kRowPlacements[] = {Placement::contiguous, Placement::unaligned,
                                        Placement::transposed, Placement::expanded};

TEST(CudaNorm, LogSoftmax) {
  SKIP_WITHOUT_GPU();
  Generator generator(31);
  for (const DType dtype : kFloats) {
    for (const Sizes& sizes : kRowShapes) {
      for (const Placement placement : kRowPlacements) {
        const Operand2 x = make_operand(sizes, dtype, placement, generator, -8, 8);
        const std::string what = describe("log_softmax", dtype, sizes, placement);
        check_op("log_softmax", {x}, AxisAttrs{-1}, {16, 16}, what);
        check_op("log_softmax", {x}, AxisAttrs{0}, {16, 16}, what + ", axis 0");
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST(CudaNorm, LogSoftmaxOfSpecialValues) {
  SKIP_WITHOUT_GPU();
  const double inf = std::numeric_limits<double>::infinity();
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (const DType dtype : kFloats) {
    for (const std::int64_t cols : {4, 104, 2000, 20000}) {
      for (const double first : {-inf, inf, nan, 3.0}) {
        for (const double rest : {-inf, 0.0}) {
          std::vector<double> row(static_cast<std::size_t>(cols), rest);
          row[0] = first;
          const Tensor x = tensor(row, {1, cols}, {dtype});
          check_op("log_softmax", {from_cpu(x)}, AxisAttrs{1}, {16, 16}, "special values");
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST(CudaNorm, SoftmaxGradients) {
  SKIP_WITHOUT_GPU();
  Generator generator(32);
  for (const DType dtype : kFloats) {
    for (const Sizes& sizes : kRowShapes) {
      // Sums of up to 20000 terms below 1.
      const Tolerance tolerance{8, static_cast<double>(sizes.back())};
      for (const Placement placement : kRowPlacements) {
        const Operand2 grad = make_operand(sizes, dtype, placement, generator, -1, 1);
        const Operand2 output = make_operand(sizes, dtype, Placement::contiguous, generator, 0, 1);
        const Operand2 logs = make_operand(sizes, dtype, Placement::contiguous, generator, -5, 0);
        for (const std::int64_t axis : {-1, 0}) {
          const std::string what = describe("softmax gradient", dtype, sizes, placement) +
                                   " axis " + std::to_string(axis);
          check_op("softmax_backward", {grad, output}, AxisAttrs{axis}, tolerance, what);
          check_op("log_softmax_backward", {grad, logs}, AxisAttrs{axis}, tolerance, "log " + what);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST(CudaNorm, RmsNorm) {
  SKIP_WITHOUT_GPU();
  Generator generator(33);
  for (const DType dtype : kFloats) {
    for (const Sizes& sizes : kRowShapes) {
      for (const Placement placement : kRowPlacements) {
        const Operand2 x = make_operand(sizes, dtype, placement, generator);
        const Operand2 w = make_operand({sizes.back()}, dtype, Placement::contiguous, generator);
        const std::string what = describe("rms_norm", dtype, sizes, placement);
        check_op("rms_norm", {x, w}, LayerNormAttrs{1, 1e-6}, {64, 0}, what);
        check_op("rms_norm", {x, {}}, LayerNormAttrs{1, 1e-6}, {64, 0}, what + ", no weight");
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST(CudaNorm, NormalizationGradients) {
  SKIP_WITHOUT_GPU();
  Generator generator(34);
  for (const DType dtype : kFloats) {
    for (const Sizes& sizes : kRowShapes) {
      for (const Placement placement : kRowPlacements) {
        const Operand2 grad = make_operand(sizes, dtype, placement, generator);
        const Operand2 x = make_operand(sizes, dtype, placement, generator);
        const Operand2 w = make_operand({sizes.back()}, dtype, Placement::contiguous, generator);
        const Tolerance tolerance{64, 64};
        const std::string what = describe("norm gradient", dtype, sizes, placement);
        // A large eps keeps the short rows, whose variance may be nothing, well-conditioned.
        check_outputs("layer_norm_backward", {grad, x, w},
                      NormBackwardAttrs{1, 0.1, true, true, true}, tolerance, what);
        check_outputs("layer_norm_backward", {grad, x, {}},
                      NormBackwardAttrs{1, 0.1, true, false, true}, tolerance,
                      what + ", no weight");
        check_outputs("layer_norm_backward", {grad, x, w},
                      NormBackwardAttrs{1, 0.1, false, true, false}, tolerance,
                      what + ", weight only");
        check_outputs("rms_norm_backward", {grad, x, w},
                      NormBackwardAttrs{1, 0.1, true, true, false}, tolerance, "rms " + what);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST(CudaNorm, GradientsOfTallMatricesAndSums) {
  SKIP_WITHOUT_GPU();
  Generator generator(38);
  for (const DType dtype : kFloats) {
    for (const Sizes& sizes : kTallShapes) {
      const Sizes vector = {sizes.back()};
      const Tolerance tolerance{64, 4 * static_cast<double>(sizes[0])};
      for (const Placement placement : {Placement::contiguous, Placement::unaligned}) {
        const Operand2 grad = make_operand(sizes, dtype, placement, generator);
        const Operand2 x = make_operand(sizes, dtype, placement, generator);
        const Operand2 w = make_operand(vector, dtype, Placement::contiguous, generator);
        const Operand2 added = make_operand(sizes, dtype, placement, generator);
        const Operand2 row = make_operand(vector, dtype, placement, generator);
        const std::string what = describe("norm gradient", dtype, sizes, placement);
        check_outputs("layer_norm_backward", {grad, x, w},
                      NormBackwardAttrs{1, 0.1, true, true, true}, tolerance, what);
        check_outputs("layer_norm_backward_add", {grad, x, w, added},
                      NormBackwardAttrs{1, 0.1, true, true, true}, tolerance, "add " + what);
        check_outputs("layer_norm_backward_add", {grad, x, {}, row},
                      NormBackwardAttrs{1, 0.1, false, false, true}, tolerance, "row " + what);
        check_outputs("rms_norm_backward_add", {grad, x, w, added},
                      NormBackwardAttrs{1, 0.1, true, true, false}, tolerance, "rms " + what);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST(CudaNorm, ResidualNormGradients) {
  SKIP_WITHOUT_GPU();
  Generator generator(39);
  std::vector<Sizes> shapes = kRowShapes;
  shapes.insert(shapes.end(), kTallShapes.begin(), kTallShapes.end());
  for (const DType dtype : kFloats) {
    for (const Sizes& sizes : shapes) {
      const Sizes vector = {sizes.back()};
      const Tolerance tolerance{64, 4 * static_cast<double>(sizes[0] + 16)};
      for (const Placement placement : {Placement::contiguous, Placement::unaligned}) {
        const Operand2 grad = make_operand(sizes, dtype, placement, generator);
        const Operand2 x = make_operand(sizes, dtype, placement, generator);
        const Operand2 residual = make_operand(sizes, dtype, placement, generator);
        const Operand2 bias = make_operand(vector, dtype, Placement::contiguous, generator);
        const Operand2 w = make_operand(vector, dtype, Placement::contiguous, generator);
        const std::string what = describe("residual norm gradient", dtype, sizes, placement);
        for (const DropoutMode mode : {DropoutMode::train, DropoutMode::eval}) {
          const BiasDropoutResidualLayerNormAttrs call{0.3, 0.1, mode, 4};
          check_outputs("bias_dropout_residual_layer_norm_backward", {grad, x, bias, residual, w},
                        ResidualNormBackwardAttrs{call, true, true, true, true, true}, tolerance,
                        what);
          check_outputs("bias_dropout_residual_layer_norm_backward", {grad, x, bias, residual, w},
                        ResidualNormBackwardAttrs{call, true, false, true, false, false}, tolerance,
                        what + ", no vectors");
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST(CudaNorm, GradientsOverManyRowsAndSeveralAxes) {
  SKIP_WITHOUT_GPU();
  Generator generator(35);
  for (const DType dtype : kFloats) {
    const Operand2 grad = make_operand({20000, 40}, dtype, Placement::contiguous, generator);
    const Operand2 x = make_operand({20000, 40}, dtype, Placement::contiguous, generator);
    const Operand2 w = make_operand({40}, dtype, Placement::contiguous, generator);
    check_outputs("layer_norm_backward", {grad, x, w}, NormBackwardAttrs{1, 1e-5, true, true, true},
                  {64, 4000}, "many rows");
    const Operand2 grad3 = make_operand({6, 5, 24}, dtype, Placement::gapped, generator);
    const Operand2 x3 = make_operand({6, 5, 24}, dtype, Placement::gapped, generator);
    const Operand2 w3 = make_operand({5, 24}, dtype, Placement::contiguous, generator);
    check_outputs("layer_norm_backward", {grad3, x3, w3},
                  NormBackwardAttrs{2, 1e-5, true, true, true}, {64, 64}, "two axes");
    const Operand2 none = make_operand({0, 40}, dtype, Placement::contiguous, generator);
    check_outputs("layer_norm_backward", {none, none, w},
                  NormBackwardAttrs{1, 1e-5, true, true, true}, {0, 0}, "no rows");
    if (HasFatalFailure()) return;
  }
}

TEST(CudaNorm, CrossEntropy) {
  SKIP_WITHOUT_GPU();
  Generator generator(36);
  for (const DType dtype : kFloats) {
    // Rows of parts of a warp and of blocks: once, and more of them than blocks that stay; rows too long.
    for (const Sizes& sizes : std::vector<Sizes>{{1, 1},
                                                 {4, 3},
                                                 {700, 65},
                                                 {9, 1024},
                                                 {5001, 264},
                                                 {600, 2056},
                                                 {3, 50257},
                                                 {2, 120008},
                                                 {0, 5}}) {
      std::vector<std::int64_t> classes;
      for (std::int64_t row = 0; row < sizes[0]; ++row) {
        classes.push_back(row % 5 == 3 ? -100 : row * 31 % sizes[1]);
      }
      const Operand2 target = from_cpu(from_vector(classes, {sizes[0]}));
      const Operand2 x = make_operand(sizes, dtype, Placement::unaligned, generator, -8, 8);
      for (const Reduction reduction : {Reduction::none, Reduction::mean, Reduction::sum}) {
        for (const double smoothing : {0.0, 0.1}) {
          const CrossEntropyAttrs attrs{-100, reduction, smoothing};
          const std::string what = describe("cross_entropy", dtype, sizes, Placement::unaligned) +
                                   " " + std::string(enum_name(reduction));
          check_op("cross_entropy", {x, target}, attrs, {64, 16}, what);
          const Sizes loss = reduction == Reduction::none ? Sizes{sizes[0]} : Sizes{};
          const Operand2 grad = make_operand(loss, dtype, Placement::contiguous, generator);
          check_op("cross_entropy_backward", {grad, x, target}, attrs, {64, 1}, what + " gradient");
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST(CudaNorm, CrossEntropyOfWrongTargetsIsNan) {
  SKIP_WITHOUT_GPU();
  const Tensor x = zeros({3, 4}, {DType::float32, kCuda});
  const Tensor target = from_vector(std::vector<std::int64_t>{0, 4, -1}, {3}).to(kCuda);
  const std::vector<double> losses =
      cross_entropy(x, target, {.reduction = Reduction::none}).to_doubles();
  EXPECT_NEAR(losses[0], std::log(4.0), 1e-6);
  EXPECT_TRUE(std::isnan(losses[1]));
  EXPECT_TRUE(std::isnan(losses[2]));
  const Tensor ignored = from_vector(std::vector<std::int64_t>(3, -100), {3}).to(kCuda);
  EXPECT_TRUE(std::isnan(cross_entropy(x, ignored).item()));
}

TEST(CudaNorm, BatchNorm) {
  SKIP_WITHOUT_GPU();
  Generator generator(37);
  for (const DType dtype : kFloats) {
    for (const Sizes& sizes : std::vector<Sizes>{
             {2, 1}, {33, 5}, {4, 3, 2, 2}, {3, 8, 33, 31}, {1, 2, 4099}, {2, 0, 3}}) {
      const Sizes vector = {sizes[1]};
      const Operand2 x = make_operand(sizes, dtype, Placement::unaligned, generator);
      const Operand2 grad = make_operand(sizes, dtype, Placement::contiguous, generator);
      const Operand2 mean = make_operand(vector, dtype, Placement::contiguous, generator);
      const Operand2 var = make_operand(vector, dtype, Placement::contiguous, generator, 0.5, 2);
      const Operand2 w = make_operand(vector, dtype, Placement::contiguous, generator);
      const Operand2 b = make_operand(vector, dtype, Placement::contiguous, generator);
      const DType statistic = accumulation_dtype(dtype);
      const Operand2 used_mean = make_operand(vector, statistic, Placement::contiguous, generator);
      const Operand2 factor =
          make_operand(vector, statistic, Placement::contiguous, generator, 0.5, 2);
      for (const DropoutMode mode : {DropoutMode::train, DropoutMode::eval}) {
        const std::string what = describe("batch_norm", dtype, sizes, Placement::unaligned) + " " +
                                 std::string(enum_name(mode));
        check_outputs("batch_norm", {x, mean, var, w, b}, BatchNormAttrs{mode, 0.1, 0.1}, {128, 8},
                      what);
        check_outputs("batch_norm_backward", {grad, x, w, used_mean, factor},
                      BatchNormBackwardAttrs{mode, true, true, true}, {128, 512},
                      what + " gradient");
        if (HasFatalFailure()) return;
      }
      check_outputs("batch_norm", {x, {}, {}, {}, {}}, BatchNormAttrs{DropoutMode::train, 0.1, 0.1},
                    {128, 8}, "batch_norm without vectors");
      if (HasFatalFailure()) return;
    }
  }
}

/// Every op of this file over rows of lanes, of warps, of blocks, and too long for one: for the race detector.
TEST(CudaNorm, SmallRowsOfEveryOp) {
  SKIP_WITHOUT_GPU();
  Generator generator(42);
  for (const DType dtype : {DType::float32, DType::bfloat16}) {
    for (const Sizes& sizes :
         std::vector<Sizes>{{5, 7}, {4, 24}, {9, 264}, {3, 1032}, {3, 1100}, {2, 20011}}) {
      const Sizes vector = {sizes.back()};
      const auto make = [&](const Sizes& of, double low, double high) {
        return make_operand(of, dtype, Placement::contiguous, generator, low, high);
      };
      const Operand2 x = make(sizes, -2, 2), grad = make(sizes, -1, 1), w = make(vector, -2, 2);
      const Operand2 probabilities = make(sizes, 0, 1), logs = make(sizes, -5, 0);
      const Operand2 target =
          from_cpu(from_vector(std::vector<std::int64_t>(sizes[0], sizes[1] - 1), {sizes[0]}));
      const std::string what = describe("small rows", dtype, sizes, Placement::contiguous);
      const Tolerance sums{64, 4 * static_cast<double>(sizes.back())};
      check_op("log_softmax", {x}, AxisAttrs{-1}, {16, 16}, what);
      check_op("softmax_backward", {grad, probabilities}, AxisAttrs{-1}, sums, what);
      check_op("log_softmax_backward", {grad, logs}, AxisAttrs{-1}, sums, what);
      check_op("rms_norm", {x, w}, LayerNormAttrs{1, 1e-6}, {64, 0}, what);
      check_outputs("layer_norm_backward", {grad, x, w},
                    NormBackwardAttrs{1, 0.1, true, true, true}, {64, 64}, what);
      check_outputs("rms_norm_backward", {grad, x, w}, NormBackwardAttrs{1, 0.1, true, true, false},
                    {64, 64}, what);
      const BiasDropoutResidualLayerNormAttrs call{0.3, 0.1, DropoutMode::train, 4};
      check_outputs("bias_dropout_residual_layer_norm_backward", {grad, x, w, grad, w},
                    ResidualNormBackwardAttrs{call, true, true, true, true, true}, {64, 80}, what);
      const CrossEntropyAttrs loss{-100, Reduction::sum, 0.1};
      check_op("cross_entropy", {x, target}, loss, {64, 16}, what);
      check_op("cross_entropy_backward", {make({}, -2, 2), x, target}, loss, {64, 1}, what);
      check_outputs("batch_norm", {x, {}, {}, {}, {}}, BatchNormAttrs{DropoutMode::train, 0.1, 0.1},
                    {128, 8}, what);
      if (HasFatalFailure()) return;
    }
  }
}

/// More rows than blocks at a time: what a block keeps of a row is used again for the next.
TEST(CudaNorm, SeveralRowsOfEveryBlock) {
  SKIP_WITHOUT_GPU();
  Generator generator(43);
  const Sizes sizes = {3300, 1032}, vector = {1032};
  const auto make = [&](const Sizes& of, double low, double high) {
    return make_operand(of, DType::bfloat16, Placement::contiguous, generator, low, high);
  };
  const Operand2 x = make(sizes, -2, 2), grad = make(sizes, -1, 1), w = make(vector, -2, 2);
  const Operand2 probabilities = make(sizes, 0, 1);
  const std::string what = "several rows of every block";
  check_outputs("softmax", {x}, AxisAttrs{-1}, {64, 1e-3}, what);
  check_outputs("softmax_backward", {grad, probabilities}, AxisAttrs{-1}, {64, 4 * 1032.0}, what);
  check_outputs("layer_norm", {x, w, w}, LayerNormAttrs{1, 1e-5}, {32, 4}, what);
  // Sums over 3300 rows are of that many terms of at most 8.
  check_outputs("layer_norm_backward", {grad, x, w}, NormBackwardAttrs{1, 0.1, true, true, true},
                {64, 3300 * 8.0}, what);
}

TEST(ColumnSumPlan, CoversEveryRowOnce) {
  for (const std::int64_t rows : {1, 63, 64, 65, 1000, 100000, 10000000}) {
    for (const std::int64_t cols : {1, 31, 32, 33, 1024, 50000}) {
      const cuda::ColumnSumPlan plan = cuda::plan_column_sums(rows, cols);
      EXPECT_GE(plan.splits * plan.rows_of_split, rows);
      EXPECT_LT((plan.splits - 1) * plan.rows_of_split, rows);
      EXPECT_EQ(plan.blocks, (cols + 31) / 32 * plan.splits);
    }
  }
}

}  // namespace
}  // namespace tenon::test
