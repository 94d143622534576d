// silu_mul and rotary_embedding, forward and gradient, against the CPU in float64: dtypes, placements,
// tails of vectors, broadcast tables, slices of a larger tensor, repetitions.
#include <gtest/gtest.h>

#include "autograd/autograd.h"
#include "tests/cuda/cuda_support.h"

namespace tenon::test {
namespace {

class CudaRotary : public testing::TestWithParam<DType> {
 protected:
  void SetUp() override { SKIP_WITHOUT_GPU(); }
};
INSTANTIATE_TEST_SUITE_P(DTypes, CudaRotary, testing::ValuesIn(kFloats),
                         [](const auto& info) { return std::string(name(info.param)); });

TEST_P(CudaRotary, Rotations) {
  Generator generator(5);
  const std::vector<std::pair<Sizes, Sizes>> shapes = {
      {{2, 3, 5, 64}, {5, 64}},
      {{2, 3, 7, 64}, {2, 1, 7, 64}},
      {{300, 6}, {300, 6}},
      {{4, 2}, {2}},
      {{1, 130, 2, 128}, {130, 1, 128}},
      {{3, 40}, {1, 1}},
      {{2, 2, 3, 48}, {3, 48}},
      {{0, 8}, {8}},
      {{3, 0}, {1, 1}},
  };
  for (const auto& [sizes, table] : shapes) {
    for (const Placement placement : kPlacements) {
      const Operand2 x = make_operand(sizes, GetParam(), placement, generator);
      const Operand2 cos = make_operand(table, GetParam(), Placement::contiguous, generator);
      const Operand2 sin = make_operand(table, GetParam(), placement, generator);
      for (const char* op : {"rotary_embedding", "rotary_embedding_backward"}) {
        check_op(op, {x, cos, sin}, {}, {4, 8}, describe(op, GetParam(), sizes, placement));
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_P(CudaRotary, Gates) {
  Generator generator(6);
  for (const Sizes& sizes : {Sizes{4, 128}, {3, 77}, {2, 3, 64}, {1}, {0, 4}, {300, 1000}}) {
    for (const Placement placement : kPlacements) {
      const Operand2 gate = make_operand(sizes, GetParam(), placement, generator, -8, 8);
      const Operand2 other = make_operand(sizes, GetParam(), Placement::contiguous, generator);
      check_op("silu_mul", {gate, other}, {}, {8, 8},
               describe("silu_mul", GetParam(), sizes, placement));
      if (HasFatalFailure()) return;
    }
  }
}

/// Gradients of a gate and what it gates, as parts of one product: slices of one tensor.
TEST_P(CudaRotary, GateGradientsAreWrittenAsSlices) {
  Generator generator(7);
  for (const auto& [rows, width] :
       {std::pair<std::int64_t, std::int64_t>{5, 64}, {3, 33}, {257, 2048}}) {
    const Operand2 grad = make_operand({rows, width}, GetParam(), Placement::contiguous, generator);
    const Operand2 both =
        make_operand({rows, 2 * width}, GetParam(), Placement::contiguous, generator, -6, 6);
    const auto half = [&, w = width](const Tensor& x, int i) { return x.narrow(1, i * w, w); };
    std::vector<Tensor> wide;
    for (const Tensor& x : {grad.cpu, half(both.cpu, 1), half(both.cpu, 0)}) {
      wide.push_back(x.to(DType::float64));
    }
    const auto want = apply(get_op("silu_mul_backward"), wide, {});
    const std::vector<Tensor> inputs = {grad.cuda, half(both.cuda, 1), half(both.cuda, 0)};
    const Tensor joined = full({rows, 2 * width + 3}, 77.0, {GetParam(), kCuda});
    const Tensor apart = full({width, rows}, 77.0, {GetParam(), kCuda});
    const std::vector<std::vector<Tensor>> places = {
        {half(joined, 1), half(joined, 0)},         // at one distance
        {half(joined, 0), apart.transpose(0, 1)}};  // not alike
    for (const auto& outputs : places) {
      ASSERT_TRUE(run_kernel("silu_mul_backward", "cuda.silu_mul_backward", inputs, outputs, {}));
      for (std::size_t i = 0; i < 2; ++i) {
        expect_near(outputs[i], want[i].to_doubles(), {16, 16}, "gradient " + std::to_string(i));
      }
    }
    for (const double x : joined.narrow(1, 2 * width, 3).to_doubles()) EXPECT_EQ(x, 77);
  }
}

}  // namespace
}  // namespace tenon::test
