// linear_cross_entropy on CUDA: against the CPU in float64, in one chunk; against cross_entropy of linear
// where there are several; and the joint Graph that needs no pass for a loss gradient of 1.
#include "autograd/autograd.h"
#include "cuda/kernels/linear_cross_entropy.h"
#include "graph/program.h"
#include "schedule/training.h"
#include "tensor/ops/norm_attributes.h"
#include "tests/cuda/cuda_support.h"
#include "tests/support/compare.h"
#include "tests/support/models.h"

namespace tenon::test {
namespace {

struct Problem {
  Tensor input, weight, target;
};

/// Class numbers that wrap around; every fifth row is ignored.
Tensor targets(std::int64_t rows, std::int64_t classes) {
  std::vector<std::int64_t> values;
  for (std::int64_t row = 0; row < rows; ++row) {
    values.push_back(row % 5 == 3 ? -100 : row * 31 % classes);
  }
  return from_vector(values, {rows});
}

Problem make_problem(std::int64_t rows, std::int64_t depth, std::int64_t classes, DType dtype) {
  Generator generator(41);
  return {randn({rows, depth}, {dtype}, &generator), randn({classes, depth}, {dtype}, &generator),
          targets(rows, classes)};
}

/// Loss, gradient of the input, gradient of the weight.
std::vector<Tensor> with_gradients(const Problem& problem, Device device, DType dtype,
                                   const CrossEntropyAttrs& attrs) {
  const Tensor operands[] = {problem.input.to(dtype).to(device),
                             problem.weight.to(dtype).to(device), problem.target.to(device)};
  return apply(get_op("linear_cross_entropy_with_gradients"), operands, attrs);
}

struct Sample {
  DType dtype;
  double loss;       // what it may be off
  double gradients;  // relative to the largest element
};
constexpr Sample kSamples[] = {{DType::float64, 1e-12, 1e-12},
                               {DType::float32, 1e-5, 1e-5},
                               {DType::float16, 2e-2, 4e-3},
                               {DType::bfloat16, 1e-1, 3e-2}};

double largest(const Tensor& tensor) {
  double result = 0;
  for (const double x : tensor.to_doubles()) result = std::max(result, std::abs(x));
  return result;
}

/// Loss and gradients near those in float64, and the same bits in a second run and without gradients.
void check_against_double(const Sample& sample, const Sizes& sizes,
                          const CrossEntropyAttrs& attrs) {
  SCOPED_TRACE(std::string(name(sample.dtype)) + " " + std::to_string(sizes[0]) + " rows, " +
               std::to_string(sizes[2]) + " classes");
  const Problem problem = make_problem(sizes[0], sizes[1], sizes[2], sample.dtype);
  const auto exact = with_gradients(problem, kCpu, DType::float64, attrs);
  const auto got = with_gradients(problem, kCuda, sample.dtype, attrs);
  const auto again = with_gradients(problem, kCuda, sample.dtype, attrs);
  const double rows = attrs.reduction == Reduction::sum ? static_cast<double>(sizes[0]) : 1;
  EXPECT_NEAR(got[0].item(), exact[0].item(), rows * sample.loss);
  for (std::size_t i = 1; i < 3; ++i) {
    EXPECT_LE(max_difference(got[i], exact[i]), sample.gradients * largest(exact[i]));
    expect_bit_equal(got[i], again[i], "second run");
  }
  const Tensor plain = linear_cross_entropy(problem.input.to(kCuda), problem.weight.to(kCuda),
                                            problem.target.to(kCuda),
                                            {-100, attrs.reduction, attrs.label_smoothing});
  expect_bit_equal(plain, got[0], "without gradients");
}

TEST(CudaLinearCrossEntropy, MatchesTheCpuInDouble) {
  SKIP_WITHOUT_GPU();
  for (const Sample& sample : kSamples) {
    for (const Sizes& sizes : std::vector<Sizes>{
             {1, 1, 1}, {7, 16, 3}, {130, 24, 33}, {65, 64, 1000}, {20, 9, 50257}, {3, 8, 70001}}) {
      for (const Reduction reduction : {Reduction::mean, Reduction::sum}) {
        for (const double smoothing : {0.0, 0.1}) {
          check_against_double(sample, sizes, {-100, reduction, smoothing});
        }
      }
    }
  }
}

/// Rows of lanes, of warps and of blocks, and more of the latter than blocks that stay.
TEST(CudaLinearCrossEntropy, SmallRowsOfEveryKind) {
  SKIP_WITHOUT_GPU();
  for (const Sample& sample : kSamples) {
    for (const Sizes& sizes : std::vector<Sizes>{{7, 8, 3}, {9, 8, 260}, {600, 8, 2051}}) {
      check_against_double(sample, sizes, {-100, Reduction::mean, 0.1});
    }
  }
}

TEST(CudaLinearCrossEntropy, ChunksAddUp) {
  SKIP_WITHOUT_GPU();
  constexpr std::int64_t kRows = 5000, kDepth = 64, kClasses = 50304;
  for (const DType dtype : {DType::bfloat16, DType::float32}) {
    ASSERT_GT(cuda::plan_linear_cross_entropy({kRows, kDepth, kClasses, dtype, true}).chunks, 1);
    const Problem problem = make_problem(kRows, kDepth, kClasses, dtype);
    const auto got = with_gradients(problem, kCuda, dtype, {});
    const Tensor x = problem.input.to(kCuda).to(DType::float32).requires_grad_();
    const Tensor w = problem.weight.to(kCuda).to(DType::float32).requires_grad_();
    const Tensor loss = cross_entropy(linear(x, w), problem.target.to(kCuda));
    backward(loss);
    const bool narrow = dtype == DType::bfloat16;
    EXPECT_NEAR(got[0].item(), loss.item(), narrow ? 2e-2 : 1e-4);
    EXPECT_LE(max_difference(got[1], x.grad()), (narrow ? 6e-2 : 3e-5) * largest(x.grad()));
    EXPECT_LE(max_difference(got[2], w.grad()), (narrow ? 6e-2 : 3e-5) * largest(w.grad()));
    const auto again = with_gradients(problem, kCuda, dtype, {});
    expect_bit_equal(got[2], again[2], "second run");
  }
}

TEST(CudaLinearCrossEntropy, OfNothing) {
  SKIP_WITHOUT_GPU();
  const TensorOptions options{DType::float32, kCuda};
  const Tensor none = from_vector(std::vector<std::int64_t>{}, {0}).to(kCuda);
  const Tensor w = zeros({3, 2}, options).requires_grad_();
  EXPECT_TRUE(std::isnan(linear_cross_entropy(zeros({0, 2}, options), w, none).item()));
  const Tensor sum =
      linear_cross_entropy(zeros({0, 2}, options), w, none, {.reduction = Reduction::sum});
  backward(sum);
  EXPECT_EQ(max_difference(w.grad(), zeros({3, 2})), 0);
}

}  // namespace
}  // namespace tenon::test
