// batch_norm and its gradients on CUDA against the CPU's in float64: row-major and channels-last, shapes
// from one value a plane to many splits, and sums whose order never changes.
#include "cuda/kernels/channel_plan.h"
#include "tensor/ops/norm_attributes.h"
#include "tests/cuda/cuda_layouts.h"

namespace tenon::test {
namespace {

/// Ranks 2 to 5; one value a plane and many; odd and even channels; few and many rows, planes, channels.
const std::vector<Sizes> kShapes = {
    {2, 1},           {33, 5},         {300, 64},     {5, 1000},      {3000, 3},
    {4, 3, 2},        {7, 8, 5},       {4, 3, 2, 2},  {3, 8, 33, 31}, {2, 64, 7, 7},
    {8, 256, 4, 4},   {1, 16, 56, 56}, {1, 2, 4099},  {1, 1, 70001},  {40000, 2, 3},
    {9, 2056, 1, 1},  {2, 24, 14, 14}, {5, 12, 2, 2}, {3, 6, 50, 20}, {2, 3, 2, 5, 7},
    {2, 16, 3, 4, 4}, {3, 1030, 3, 3}, {2, 0, 3},     {0, 3, 2}};

struct Call {
  Operand2 x, grad, mean, var, w, b, used_mean, factor;
};

Call make_call(const Sizes& sizes, DType dtype, Generator& generator) {
  const auto make = [&](const Sizes& of, DType type, double low, double high) {
    return make_operand(of, type, Placement::contiguous, generator, low, high);
  };
  const Sizes vector = {sizes[1]};
  const DType statistic = accumulation_dtype(dtype);
  return {make(sizes, dtype, -2, 2),      make(sizes, dtype, -1, 1),
          make(vector, dtype, -2, 2),     make(vector, dtype, 0.5, 2),
          make(vector, dtype, -2, 2),     make(vector, dtype, -2, 2),
          make(vector, statistic, -1, 1), make(vector, statistic, 0.5, 2)};
}

TEST(CudaBatchNorm, ForwardAndGradients) {
  SKIP_WITHOUT_GPU();
  Generator generator(51);
  for (const DType dtype : kFloats) {
    for (const Sizes& sizes : kShapes) {
      const Call call = make_call(sizes, dtype, generator);
      for (const DropoutMode mode : {DropoutMode::train, DropoutMode::eval}) {
        const std::string what = describe("batch_norm", dtype, sizes, Placement::contiguous) + " " +
                                 std::string(enum_name(mode));
        const BatchNormAttrs attrs{mode, 0.1, 0.1};
        check_ordered("batch_norm", "cuda.batch_norm",
                      {call.x, call.mean, call.var, call.w, call.b}, attrs, {128, 8}, what);
        // A sum's error grows with the terms of the longest chain, of some hundred.
        check_ordered("batch_norm_backward", "cuda.batch_norm_backward",
                      {call.grad, call.x, call.w, call.used_mean, call.factor},
                      BatchNormBackwardAttrs{mode, true, true, true}, {128, 512},
                      what + " gradient");
        if (HasFatalFailure()) return;
      }
      if (sizes[0] == 0) continue;
      check_ordered("batch_norm", "cuda.batch_norm", {call.x, {}, {}, {}, {}},
                    BatchNormAttrs{DropoutMode::train, 0.1, 0.1}, {128, 8},
                    "batch_norm without vectors");
      if (HasFatalFailure()) return;
    }
  }
}

TEST(CudaBatchNorm, GradientsThatAreNotWanted) {
  SKIP_WITHOUT_GPU();
  Generator generator(52);
  for (const Sizes& sizes : std::vector<Sizes>{{5, 24, 6, 6}, {5, 7, 3, 3}}) {
    const Call call = make_call(sizes, DType::bfloat16, generator);
    for (const DropoutMode mode : {DropoutMode::train, DropoutMode::eval}) {
      for (int wanted = 1; wanted < 8; ++wanted) {
        const BatchNormBackwardAttrs attrs{mode, (wanted & 1) != 0, (wanted & 2) != 0,
                                           (wanted & 4) != 0};
        check_ordered("batch_norm_backward", "cuda.batch_norm_backward",
                      {call.grad, call.x, call.w, call.used_mean, call.factor}, attrs, {128, 512},
                      "gradients " + std::to_string(wanted));
        check_ordered("batch_norm_backward", "cuda.batch_norm_backward",
                      {call.grad, call.x, {}, call.used_mean, call.factor}, attrs, {128, 512},
                      "gradients without weight " + std::to_string(wanted));
        if (HasFatalFailure()) return;
      }
    }
  }
}

/// A fused call's results, and its gradients with the statistics and the signs that it found.
void check_fused(const Sizes& sizes, DType dtype, DropoutMode mode, bool adds, int wanted,
                 Generator& generator) {
  const Call call = make_call(sizes, dtype, generator);
  const Operand2 residual = make_operand(sizes, dtype, Placement::contiguous, generator, -2, 2);
  const std::string op = adds ? "batch_norm_add_relu" : "batch_norm_relu";
  const std::string what = describe(op.c_str(), dtype, sizes, Placement::contiguous) + " " +
                           std::string(enum_name(mode)) + " wanted " + std::to_string(wanted);
  std::vector<Operand2> operands = {call.x, call.mean, call.var, call.w, call.b};
  if (adds) operands.push_back(residual);
  const BatchNormAttrs attrs{mode, 0.1, 0.1};
  check_ordered(op.c_str(), ("cuda." + op).c_str(), operands, attrs, {128, 8}, what);
  if (::testing::Test::HasFatalFailure()) return;
  const std::vector<Tensor> results =
      run_ordered(op.c_str(), ("cuda." + op).c_str(), operands, attrs, Order::row_major);
  std::vector<Operand2> given = {call.grad, call.x, {results[0].cpu(), results[0]}, call.w};
  if (!adds) given.push_back(call.b);
  given.push_back({results[1].cpu(), results[1]});
  given.push_back({results[2].cpu(), results[2]});
  const BatchNormBackwardAttrs gradients{mode, (wanted & 1) != 0, (wanted & 2) != 0,
                                         (wanted & 4) != 0};
  const std::string backward = op + "_backward";
  const auto check = [&](const Attrs& of) {
    check_ordered(backward.c_str(), ("cuda." + backward).c_str(), given, of, {128, 512},
                  what + " gradient");
  };
  if (adds) {
    check(BatchNormAddBackwardAttrs{gradients, (wanted & 8) != 0});
  } else {
    check(gradients);
  }
}

TEST(CudaBatchNorm, WithRelu) {
  SKIP_WITHOUT_GPU();
  Generator generator(56);
  for (const DType dtype : kFloats) {
    for (const Sizes& sizes : kShapes) {
      if (sizes[0] * sizes[1] * sizes.back() > 20000) continue;
      for (const DropoutMode mode : {DropoutMode::train, DropoutMode::eval}) {
        if (sizes[0] == 0 && mode == DropoutMode::train) continue;
        for (const bool adds : {false, true}) {
          check_fused(sizes, dtype, mode, adds, adds ? 15 : 7, generator);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

/// In little work, for tools/sanitize_cuda.py: planes and columns, of one split and of several.
TEST(CudaBatchNorm, SmallShapesOfEveryOp) {
  SKIP_WITHOUT_GPU();
  Generator generator(58);
  for (const Sizes& sizes : std::vector<Sizes>{{2, 24, 6, 6}, {3, 5, 7}, {70, 16}, {2, 1, 4099}}) {
    const DType dtype = sizes.size() == 3 ? DType::float32 : DType::bfloat16;
    for (const DropoutMode mode : {DropoutMode::train, DropoutMode::eval}) {
      const Call call = make_call(sizes, dtype, generator);
      check_ordered("batch_norm", "cuda.batch_norm", {call.x, call.mean, call.var, call.w, call.b},
                    BatchNormAttrs{mode, 0.1, 0.1}, {128, 8}, "small");
      check_ordered("batch_norm_backward", "cuda.batch_norm_backward",
                    {call.grad, call.x, call.w, call.used_mean, call.factor},
                    BatchNormBackwardAttrs{mode, true, true, true}, {128, 512}, "small gradient");
      const bool adds = mode == DropoutMode::train;
      check_fused(sizes, dtype, mode, adds, adds ? 15 : 7, generator);
      check_fused(sizes, dtype, mode, !adds, adds ? 7 : 15, generator);
      if (HasFatalFailure()) return;
    }
  }
}

TEST(CudaBatchNorm, GradientsWithReluThatAreNotWanted) {
  SKIP_WITHOUT_GPU();
  Generator generator(57);
  for (const DropoutMode mode : {DropoutMode::train, DropoutMode::eval}) {
    for (int wanted = 1; wanted < 16; ++wanted) {
      if (wanted < 8) check_fused({5, 24, 6, 6}, DType::float16, mode, false, wanted, generator);
      check_fused({5, 24, 6, 6}, DType::float32, mode, true, wanted, generator);
      if (HasFatalFailure()) return;
    }
  }
}

/// A variance that sums of squares would lose, and a channel without any.
TEST(CudaBatchNorm, LargeMeansKeepTheVariance) {
  SKIP_WITHOUT_GPU();
  Generator generator(53);
  for (const Sizes& sizes : std::vector<Sizes>{{16, 8, 20, 20}, {5, 3, 31, 31}, {20000, 16}}) {
    for (const double mean : {3000.0, 1e20}) {
      Operand2 x = make_operand(sizes, DType::float32, Placement::contiguous, generator, -1, 1);
      x = from_cpu(mean > 1e10 ? full(x.cpu.shape(), mean, {DType::float32}) : x.cpu + mean);
      for (const Order order : kOrders) {
        const BatchNormAttrs attrs{DropoutMode::train, 0.1, 1e-5};
        const std::vector<Operand2> operands = {x, {}, {}, {}, {}};
        const std::vector<Tensor> exact = exact_outputs("batch_norm", operands, attrs);
        const std::vector<Tensor> got =
            run_ordered("batch_norm", "cuda.batch_norm", operands, attrs, order);
        // The mean is known to some of its last places, 2^-13 of the deviations.
        expect_near(got[1], exact[1].to_doubles(), {8, 0}, "mean");
        if (mean > 1e10) continue;
        // E[x²] - E[x]² would lose all digits: 3000² is 2^24.7 times the variance.
        expect_near(got[2], exact[2].to_doubles(), {1024, 0}, "factor");
        expect_near(got[0], exact[0].to_doubles(), {16 * 3000, 1}, "result");
      }
    }
  }
}

TEST(CudaBatchNorm, NotANumberStaysInItsChannel) {
  SKIP_WITHOUT_GPU();
  Generator generator(54);
  const double infinity = std::numeric_limits<double>::infinity();
  for (const double value : {std::numeric_limits<double>::quiet_NaN(), infinity, -infinity}) {
    Operand2 x = make_operand({3, 8, 5, 5}, DType::float32, Placement::contiguous, generator);
    x.cpu.view({3 * 8 * 25}).narrow(0, 8 * 25 + 2 * 25 + 16, 1).copy_(full({1}, value));
    x = from_cpu(x.cpu);
    const Call call = make_call({3, 8, 5, 5}, DType::float32, generator);
    check_ordered("batch_norm", "cuda.batch_norm", {x, call.mean, call.var, call.w, call.b},
                  BatchNormAttrs{DropoutMode::train, 0.1, 0.1}, {128, 8}, "not finite");
    if (HasFatalFailure()) return;
  }
}

TEST(CudaBatchNorm, TwentyRunsAreBitEqual) {
  SKIP_WITHOUT_GPU();
  Generator generator(55);
  for (const DType dtype : {DType::float32, DType::bfloat16}) {
    for (const Sizes& sizes : std::vector<Sizes>{{16, 64, 40, 40}, {16, 37, 19, 19}}) {
      const Call call = make_call(sizes, dtype, generator);
      for (const Order order : kOrders) {
        const auto run = [&] {
          auto results = run_ordered("batch_norm", "cuda.batch_norm",
                                     {call.x, call.mean, call.var, call.w, call.b},
                                     BatchNormAttrs{DropoutMode::train, 0.1, 0.1}, order);
          for (const Tensor& gradient :
               run_ordered("batch_norm_backward", "cuda.batch_norm_backward",
                           {call.grad, call.x, call.w, call.used_mean, call.factor},
                           BatchNormBackwardAttrs{DropoutMode::train, true, true, true}, order)) {
            results.push_back(gradient);
          }
          return results;
        };
        const std::vector<Tensor> first = run();
        for (int repeat = 0; repeat < 20; ++repeat) {
          const std::vector<Tensor> again = run();
          for (std::size_t i = 0; i < first.size(); ++i) {
            expect_bit_equal(first[i], again[i], "output " + std::to_string(i));
          }
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST(ChannelPlan, CoversEveryUnitOnce) {
  for (const bool columns : {false, true}) {
    for (const std::int64_t samples : {1, 3, 64, 100000}) {
      for (const std::int64_t channels : {1, 3, 64, 2056}) {
        for (const std::int64_t inner : {1, 2, 49, 12544}) {
          const cuda::ChannelExtents extents{samples, channels, inner, columns};
          for (const int vector : {1, 8}) {
            if (!extents.divides(vector)) continue;
            const cuda::ChannelPlan plan = cuda::plan_channels(extents, vector, 2);
            const std::int64_t units = columns ? samples * inner : samples * plan.chunks;
            EXPECT_EQ(plan.units, units);
            EXPECT_GE(plan.splits * plan.units_of_split, units);
            EXPECT_LT((plan.splits - 1) * plan.units_of_split, units);
            EXPECT_GE(plan.channel_blocks * (columns ? plan.lanes * vector : 1), channels);
            EXPECT_GE(plan.chunks * plan.lanes * vector, columns ? 1 : inner);
            EXPECT_EQ(plan.step_samples * plan.chunks + plan.step_chunks, plan.unit_lanes());
            // 2 · 132 blocks at a time: nearly all busy wherever there is so much to do.
            if (units >= 600 * plan.unit_lanes()) {
              EXPECT_GE(plan.blocks(), 230);
            }
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace tenon::test
