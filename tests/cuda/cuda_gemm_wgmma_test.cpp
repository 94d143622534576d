// cuda::gemm_wgmma: sizes with tails in every direction x layout of B x epilogue x dtype, against sums
// in float32 by cuBLASLt and the epilogue in double; what it refuses; the same bits in every run.
#include <cuda_runtime_api.h>

#include "cuda/kernels/gemm_wgmma.h"
#include "tests/cuda/cuda_support.h"

namespace tenon::test {
namespace cuda_gemm_wgmma_test {

using cuda::GemmEpilogue;
using cuda::GemmProblem;

cuda::Stream cuda_stream() {
  return {static_cast<cudaStream_t>(device_backend(DeviceType::cuda).stream(0)), 0};
}

bool has_kernel() {
  alignas(16) static char memory[16];
  GemmProblem p{.dtype = DType::bfloat16, .m = 8, .n = 8, .k = 8};
  p.a = p.b = {memory, false, 8, 0};
  p.d = memory;
  p.d_leading = 8;
  return cuda::gemm_wgmma_takes(p, cuda::device_limits(0));
}

#define SKIP_WITHOUT_WGMMA() \
  SKIP_WITHOUT_GPU();        \
  if (!has_kernel()) GTEST_SKIP() << "no wgmma"

double sigmoid_of_gelu(double x) {
  return 1 / (1 + std::exp(-2 * std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}
double gelu_tanh(double x) { return x * sigmoid_of_gelu(x); }
double gelu_tanh_slope(double x) {
  const double s = sigmoid_of_gelu(x);
  return s + 2 * x * s * (1 - s) * std::sqrt(2 / M_PI) * (1 + 3 * 0.044715 * x * x);
}

struct Sample {
  std::int64_t m, n, k;
};
// The last has several tiles for each of a multiprocessor's warpgroups.
constexpr Sample kSamples[] = {{1, 8, 8},       {7, 200, 72},     {128, 192, 64},
                               {129, 384, 128}, {300, 1000, 40},  {257, 136, 712},
                               {70, 600, 4104}, {2183, 3080, 136}};

struct Form {
  const char* name;
  GemmEpilogue epilogue;
  bool bias;
  bool second;  // aux of gelu; activation of gelu_gradient
};
constexpr Form kForms[] = {{"plain", GemmEpilogue::none, false, false},
                           {"bias", GemmEpilogue::none, true, false},
                           {"gelu", GemmEpilogue::gelu_tanh, false, false},
                           {"bias, gelu and its input", GemmEpilogue::gelu_tanh, true, true},
                           {"gelu gradient", GemmEpilogue::gelu_tanh_gradient, false, false},
                           {"gelu gradient and gelu", GemmEpilogue::gelu_tanh_gradient, false, true},
                           {"exact gelu", GemmEpilogue::gelu, false, false},
                           {"bias, exact gelu and its input", GemmEpilogue::gelu, true, true},
                           {"exact gelu gradient", GemmEpilogue::gelu_gradient, false, false},
                           {"exact gelu gradient and gelu", GemmEpilogue::gelu_gradient, false, true},
                           {"bias and relu", GemmEpilogue::relu, true, false},
                           {"relu gradient", GemmEpilogue::relu_gradient, false, false},
                           {"bias, silu and its input", GemmEpilogue::silu, true, true},
                           {"silu gradient", GemmEpilogue::silu_gradient, false, false}};

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
double normal_cdf(double x) { return std::erfc(-x / std::sqrt(2.0)) / 2; }

double activation_of(GemmEpilogue epilogue, double x) {
  switch (epilogue) {
    case GemmEpilogue::gelu:
    case GemmEpilogue::gelu_gradient: return x * normal_cdf(x);
    case GemmEpilogue::relu: return std::max(x, 0.0);
    case GemmEpilogue::silu: return x * sigmoid(x);
    default: return gelu_tanh(x);
  }
}

double slope_of(GemmEpilogue epilogue, double x) {
  switch (epilogue) {
    case GemmEpilogue::gelu_gradient:
      return normal_cdf(x) + x * std::exp(-x * x / 2) / std::sqrt(2 * std::acos(-1.0));
    case GemmEpilogue::relu_gradient: return x > 0 ? 1 : 0;
    case GemmEpilogue::silu_gradient: return sigmoid(x) * (1 + x * (1 - sigmoid(x)));
    default: return gelu_tanh_slope(x);
  }
}

/// One problem with results of its own.
struct Run {
  Run(const Sample& size, DType dtype, bool transposed, Generator& generator)
      : m(size.m), n(size.n), k(size.k), transposed(transposed) {
    const auto make = [&](const Sizes& sizes, double bound) {
      return make_operand(sizes, dtype, Placement::contiguous, generator, -bound, bound).cuda;
    };
    a = make({m, k}, 1);
    b = make(transposed ? Sizes{n, k} : Sizes{k, n}, 1);
    bias = make({n}, 1);
    input = make({m, n}, 6);
  }

  GemmProblem problem(const Form& form) {
    GemmProblem p{.dtype = a.dtype(), .m = m, .n = n, .k = k};
    p.a = {a.view_of_data().data, false, k, 0};
    p.b = {b.view_of_data().data, transposed, transposed ? k : n, 0};
    if (form.bias) p.bias = bias.view_of_data().data;
    p.epilogue = form.epilogue;
    return p;
  }

  /// D, then aux or activation.
  std::pair<Tensor, Tensor> results(const Form& form) {
    const TensorOptions like{a.dtype(), kCuda};
    Tensor d = full({m, n}, -7, like), second = full({m, n}, -7, like);
    GemmProblem p = problem(form);
    p.d = d.view_of_data().data;
    p.d_leading = n;
    const bool gradient = cuda::is_gradient(form.epilogue);
    if (gradient) p.aux = input.view_of_data().data;
    if (form.second && !gradient) p.aux = second.view_of_data().data;
    if (p.aux != nullptr) p.aux_leading = n;
    EXPECT_TRUE(cuda::gemm_wgmma_takes(p, cuda::device_limits(0)));
    void* activation = form.second && gradient ? second.view_of_data().data : nullptr;
    cuda::gemm_wgmma(cuda_stream(), "gemm_wgmma", p, activation);
    return {d, second};
  }

  std::vector<double> sums(const Form& form) {
    GemmProblem p = problem({"", GemmEpilogue::none, false, false});
    const Tensor d = empty({m, n}, {DType::float32, kCuda});
    p.result_dtype = DType::float32;
    p.d = d.view_of_data().data;
    p.d_leading = n;
    cuda::gemm(cuda_stream(), p);
    std::vector<double> sums = d.to_doubles();
    if (!form.bias) return sums;
    const std::vector<double> addend = bias.to_doubles();
    for (std::size_t i = 0; i < sums.size(); ++i) {
      sums[i] += addend[i % static_cast<std::size_t>(n)];
    }
    return sums;
  }

  std::int64_t m, n, k;
  bool transposed;
  Tensor a, b, bias, input;
};

void check(const Sample& size, const Form& form, DType dtype, bool transposed,
           Generator& generator) {
  const std::string label = std::string(form.name) + ", " + std::string(name(dtype)) + ", m " +
                            std::to_string(size.m) + ", n " + std::to_string(size.n) + ", k " +
                            std::to_string(size.k) + (transposed ? ", B by columns" : "");
  Run run(size, dtype, transposed, generator);
  const auto [d, second] = run.results(form);
  const std::vector<double> sums = run.sums(form);
  const std::vector<double> input = run.input.to_doubles();
  const bool gradient = cuda::is_gradient(form.epilogue);
  std::vector<double> expected, other;
  for (std::size_t i = 0; i < sums.size(); ++i) {
    expected.push_back(gradient ? sums[i] * slope_of(form.epilogue, input[i])
                       : form.epilogue != GemmEpilogue::none
                           ? activation_of(form.epilogue, sums[i])
                           : sums[i]);
    other.push_back(gradient ? activation_of(form.epilogue, input[i]) : sums[i]);
  }
  // Both sums of k terms of at most 1 are off by less than 4k roundings; a slope is at most 1.13.
  const Tolerance tolerance{64, 4.6 * static_cast<double>(size.k)};
  expect_near(d, expected, tolerance, label);
  if (form.second) expect_near(second, other, tolerance, label + ", second result");
  if (::testing::Test::HasFatalFailure()) return;
  const auto [again, second_again] = run.results(form);
  expect_bit_equal(again, d, label + ", second run");
  expect_bit_equal(second_again, second, label + ", second run");
}

TEST(CudaGemmWgmma, EverySizeLayoutAndEpilogue) {
  SKIP_WITHOUT_WGMMA();
  Generator generator(61);
  for (const Sample& size : kSamples) {
    for (const Form& form : kForms) {
      for (const DType dtype : {DType::float16, DType::bfloat16}) {
        for (const bool transposed : {false, true}) {
          check(size, form, dtype, transposed, generator);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST(CudaGemmWgmma, SmallSizes) {
  SKIP_WITHOUT_WGMMA();
  Generator generator(62);
  for (const Form& form : kForms) {
    check({130, 200, 136}, form, DType::bfloat16, true, generator);
    check({130, 200, 136}, form, DType::float16, false, generator);
    if (HasFatalFailure()) return;
  }
}

/// In little work, for the race detector: warpgroups take turns, and rings go round.
TEST(CudaGemmWgmma, SeveralTilesOfEveryBlock) {
  SKIP_WITHOUT_WGMMA();
  Generator generator(63);
  for (const Form& form : {kForms[3], kForms[5]}) {
    check({2183, 3080, 136}, form, DType::bfloat16, form.bias, generator);
    if (HasFatalFailure()) return;
  }
}

/// Beside a plan that holds: what else has one thing wrong.
TEST(CudaGemmWgmma, RefusesWhatItCannotRead) {
  SKIP_WITHOUT_WGMMA();
  alignas(16) static char memory[32];
  const GemmProblem good = [] {
    GemmProblem p{.dtype = DType::bfloat16, .m = 8, .n = 8, .k = 8};
    p.a = p.b = {memory, false, 8, 0};
    p.d = memory;
    p.d_leading = 8;
    return p;
  }();
  const auto takes = [&](auto change) {
    GemmProblem p = good;
    change(p);
    return cuda::gemm_wgmma_takes(p, cuda::device_limits(0));
  };
  EXPECT_TRUE(takes([](GemmProblem&) {}));
  EXPECT_FALSE(takes([](GemmProblem& p) { p.dtype = DType::float32; }));
  EXPECT_FALSE(takes([](GemmProblem& p) { p.result_dtype = DType::float32; }));
  EXPECT_FALSE(takes([](GemmProblem& p) { p.batch = 2; }));
  EXPECT_FALSE(takes([](GemmProblem& p) { p.c.data = memory; }));
  EXPECT_FALSE(takes([](GemmProblem& p) { p.a.transposed = true; }));
  EXPECT_FALSE(takes([](GemmProblem& p) { p.n = 4; }));
  EXPECT_FALSE(takes([](GemmProblem& p) { p.a.data = memory + 2; }));
  EXPECT_FALSE(takes([](GemmProblem& p) { p.b.leading = 9; }));
  EXPECT_FALSE(takes([](GemmProblem& p) { p.bias = memory + 2; }));
  EXPECT_FALSE(takes([](GemmProblem& p) {
    p.aux = memory;
    p.aux_leading = 12;
  }));
}

}  // namespace cuda_gemm_wgmma_test
}  // namespace tenon::test
