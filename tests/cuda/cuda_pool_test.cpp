// Pooling and its gradients on CUDA against the CPU's in float64, row-major and channels-last: windows that
// are read at once and larger ones, overlapping or with gaps, channels of any number.
#include "tensor/ops/vision_attributes.h"
#include "tests/cuda/cuda_layouts.h"

namespace tenon::test {
namespace {

struct PoolCase {
  Sizes input, output;
  Pool2dAttrs attrs;
};

const std::vector<PoolCase> kCases = {
    {{1, 1, 1, 1}, {1, 1, 1, 1}, {{1, 1}, {1, 1}, {0, 0}}},
    {{3, 64, 12, 13}, {3, 64, 6, 7}, {{3, 3}, {2, 2}, {1, 1}}},
    {{2, 24, 7, 7}, {2, 24, 1, 1}, {{7, 7}, {1, 1}, {0, 0}}},
    {{2, 16, 9, 8}, {2, 16, 9, 8}, {{3, 3}, {1, 1}, {1, 1}}},
    {{2, 8, 11, 10}, {2, 8, 3, 3}, {{2, 3}, {4, 3}, {0, 0}}},
    {{1, 40, 15, 6}, {1, 40, 8, 3}, {{5, 2}, {2, 2}, {2, 0}}},
    {{2, 5, 9, 7}, {2, 5, 5, 4}, {{3, 3}, {2, 2}, {1, 1}}},
    {{2, 16, 8, 11}, {2, 16, 3, 5}, {{4, 3}, {2, 2}, {0, 0}}},
    {{2, 16, 8, 11}, {2, 16, 4, 6}, {{2, 1}, {2, 2}, {0, 0}}},
    {{2, 3, 9, 10}, {2, 3, 5, 5}, {{3, 3}, {2, 2}, {1, 1}}},
    {{300, 3, 4, 4}, {300, 3, 2, 2}, {{2, 2}, {2, 2}, {0, 0}}},
    {{0, 8, 5, 5}, {0, 8, 2, 2}, {{2, 2}, {2, 2}, {0, 0}}},
};

void check_pooling(const PoolCase& c, DType dtype, Generator& generator) {
  const Pool2dBackwardAttrs backward{c.attrs.kernel_size, c.attrs.stride, c.attrs.padding,
                                     to_shape(c.input)};
  const Operand2 x = make_operand(c.input, dtype, Placement::contiguous, generator);
  const Operand2 grad = make_operand(c.output, dtype, Placement::contiguous, generator);
  const std::string what = describe("pooling", dtype, c.input, Placement::contiguous);
  check_ordered("max_pool2d", "cuda.max_pool2d", {x}, c.attrs, {0, 0}, what);
  const Tensor operands[] = {x.cpu};
  const Operand2 indices = from_cpu(apply(get_op("max_pool2d"), operands, c.attrs).at(1));
  check_ordered("max_pool2d_backward", "cuda.max_pool2d_backward", {grad, indices}, backward,
                {8, 8}, what + ", max gradient");
  check_ordered("avg_pool2d", "cuda.avg_pool2d", {x}, c.attrs, {64, 2}, what + ", mean");
  check_ordered("avg_pool2d_backward", "cuda.avg_pool2d_backward", {grad}, backward, {8, 8},
                what + ", mean gradient");
}

TEST(CudaPool, BothOrders) {
  SKIP_WITHOUT_GPU();
  Generator generator(61);
  for (const PoolCase& c : kCases) {
    for (const DType dtype : kFloats) {
      check_pooling(c, dtype, generator);
      if (HasFatalFailure()) return;
    }
  }
}

/// In little work, for tools/sanitize_cuda.py: each case in one dtype.
TEST(CudaPool, EachCaseOnce) {
  SKIP_WITHOUT_GPU();
  Generator generator(62);
  for (std::size_t i = 0; i < kCases.size(); ++i) {
    check_pooling(kCases[i], i % 2 == 0 ? DType::bfloat16 : DType::float32, generator);
    if (HasFatalFailure()) return;
  }
}

TEST(CudaPool, NanAndTiesChannelsLast) {
  SKIP_WITHOUT_GPU();
  const double nan = std::nan("");
  std::vector<double> values;
  for (int channel = 0; channel < 8; ++channel) {
    for (const double value : {1.0, nan, 3.0, channel * 1.0}) values.push_back(value);
    for (int i = 0; i < 4; ++i) values.push_back(5);
  }
  const Tensor x = tensor(values, {2, 8, 2, 2});
  check_ordered("max_pool2d", "cuda.max_pool2d", {from_cpu(x)}, Pool2dAttrs{{2, 2}, {2, 2}, {0, 0}},
                {0, 0}, "special");
}

}  // namespace
}  // namespace tenon::test
