// cuda::gemm_split: few and odd rows x columns x sums x every plan x layout of B x epilogue x dtype,
// against sums and the epilogue in double; the same bits in every run; the plans.
#include <cuda_runtime_api.h>

#include "cuda/kernels/gemm_split.h"
#include "tests/cuda/cuda_support.h"

namespace tenon::test {
namespace cuda_gemm_split_test {

using cuda::GemmEpilogue;
using cuda::GemmProblem;
using cuda::SplitPlan;

constexpr cuda::DeviceLimits kH200{9, 0, 132, 227 << 10, 228 << 10};

cuda::Stream cuda_stream() {
  return {static_cast<cudaStream_t>(device_backend(DeviceType::cuda).stream(0)), 0};
}

#define SKIP_WITHOUT_SPLIT() \
  SKIP_WITHOUT_GPU();        \
  if (!cuda::has_wgmma(cuda::device_limits(0))) GTEST_SKIP() << "no wgmma"

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
double sigmoid_of_gelu(double x) {
  return sigmoid(2 * std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x));
}
double normal_cdf(double x) { return 0.5 * std::erfc(-x * std::sqrt(0.5)); }

double activation(GemmEpilogue epilogue, double x) {
  switch (epilogue) {
    case GemmEpilogue::gelu_tanh:
    case GemmEpilogue::gelu_tanh_gradient: return x * sigmoid_of_gelu(x);
    case GemmEpilogue::gelu:
    case GemmEpilogue::gelu_gradient: return x * normal_cdf(x);
    case GemmEpilogue::relu:
    case GemmEpilogue::relu_gradient: return std::max(x, 0.0);
    case GemmEpilogue::silu:
    case GemmEpilogue::silu_gradient: return x * sigmoid(x);
    case GemmEpilogue::none: break;
  }
  return x;
}

double slope(GemmEpilogue epilogue, double x) {
  if (epilogue == GemmEpilogue::relu_gradient) return x > 0 ? 1 : 0;
  if (epilogue == GemmEpilogue::silu_gradient) return sigmoid(x) * (1 + x * (1 - sigmoid(x)));
  if (epilogue == GemmEpilogue::gelu_gradient) {
    return normal_cdf(x) + x * std::exp(-0.5 * x * x) / std::sqrt(2 * M_PI);
  }
  const double s = sigmoid_of_gelu(x);
  return s + 2 * x * s * (1 - s) * std::sqrt(2 / M_PI) * (1 + 3 * 0.044715 * x * x);
}

struct Form {
  const char* name;
  GemmEpilogue epilogue;
  bool bias;
  bool second;  // aux of an activation; activation of a gradient
  bool addend = false;
};
constexpr Form kForms[] = {
    {"plain", GemmEpilogue::none, false, false},
    {"bias", GemmEpilogue::none, true, false},
    {"bias and addend", GemmEpilogue::none, true, false, true},
    {"gelu", GemmEpilogue::gelu_tanh, false, false},
    {"bias, gelu and its input", GemmEpilogue::gelu_tanh, true, true},
    {"exact gelu", GemmEpilogue::gelu, false, false},
    {"bias, exact gelu and its input", GemmEpilogue::gelu, true, true},
    {"bias and relu", GemmEpilogue::relu, true, false},
    {"relu gradient", GemmEpilogue::relu_gradient, false, false},
    {"silu and its input", GemmEpilogue::silu, false, true},
    {"silu gradient and silu", GemmEpilogue::silu_gradient, false, true},
    {"gelu gradient", GemmEpilogue::gelu_tanh_gradient, false, false},
    {"gelu gradient and gelu", GemmEpilogue::gelu_tanh_gradient, false, true},
    {"exact gelu gradient", GemmEpilogue::gelu_gradient, false, false},
    {"exact gelu gradient and gelu", GemmEpilogue::gelu_gradient, false, true}};

struct Sample {
  std::int64_t m, n, k;
};

/// One problem with results of its own.
struct Product {
  Product(const Sample& size, DType dtype, bool by_columns, Generator& generator)
      : m(size.m), n(size.n), k(size.k), transposed(by_columns) {
    const auto make = [&](const Sizes& sizes, double bound) {
      return make_operand(sizes, dtype, Placement::contiguous, generator, -bound, bound).cuda;
    };
    a = make({m, k}, 1);
    b = make(transposed ? Sizes{n, k} : Sizes{k, n}, 1);
    bias = make({n}, 1);
    addend = make({m, n}, 1);
    input = make({m, n}, 6);
    sums_of_products = products();
  }

  GemmProblem problem(const Form& form) const {
    GemmProblem p{.dtype = a.dtype(), .m = m, .n = n, .k = k};
    p.a = {a.view_of_data().data, false, k, 0};
    p.b = {b.view_of_data().data, transposed, transposed ? k : n, 0};
    if (form.bias) p.bias = bias.view_of_data().data;
    if (form.addend) p.c = {addend.view_of_data().data, false, n, 0};
    p.epilogue = form.epilogue;
    return p;
  }

  /// D, then aux or activation.
  std::pair<Tensor, Tensor> results(const Form& form, const SplitPlan& plan) const {
    const TensorOptions like{a.dtype(), kCuda};
    Tensor d = full({m, n}, -7, like), second = full({m, n}, -7, like);
    GemmProblem p = problem(form);
    p.d = d.view_of_data().data;
    p.d_leading = n;
    const bool gradient = cuda::is_gradient(form.epilogue);
    if (gradient) p.aux = input.view_of_data().data;
    if (form.second && !gradient) p.aux = second.view_of_data().data;
    if (p.aux != nullptr) p.aux_leading = n;
    EXPECT_TRUE(cuda::gemm_split_takes(p, cuda::device_limits(0)));
    void* activation = form.second && gradient ? second.view_of_data().data : nullptr;
    cuda::gemm_split(cuda_stream(), "gemm_split", p, plan, activation);
    return {d, second};
  }

  std::vector<double> products() const {
    const Tensor rows = a.to(DType::float64).to(Device{}), columns = b.to(DType::float64).to(Device{});
    return matmul(rows, transposed ? columns.transpose(0, 1) : columns).to_doubles();
  }

  std::vector<double> sums(const Form& form) const {
    std::vector<double> sums = sums_of_products;
    const std::vector<double> of_columns = bias.to_doubles(), added = addend.to_doubles();
    for (std::size_t i = 0; i < sums.size(); ++i) {
      if (form.bias) sums[i] += of_columns[i % static_cast<std::size_t>(n)];
      if (form.addend) sums[i] += added[i];
    }
    return sums;
  }

  std::int64_t m, n, k;
  bool transposed;
  Tensor a, b, bias, addend, input;
  std::vector<double> sums_of_products;
};

void check(const Product& run, const Form& form, const SplitPlan& plan, int repeats = 2) {
  const std::string label =
      std::string(form.name) + ", " + std::string(name(run.a.dtype())) + ", m " +
      std::to_string(run.m) + ", n " + std::to_string(run.n) + ", k " + std::to_string(run.k) +
      (run.transposed ? ", B by columns, " : ", ") + std::to_string(plan.rows) + " x " +
      std::to_string(plan.columns) + " / " + std::to_string(plan.parts);
  const auto [d, second] = run.results(form, plan);
  const std::vector<double> sums = run.sums(form), input = run.input.to_doubles();
  const bool gradient = cuda::is_gradient(form.epilogue);
  std::vector<double> expected, other;
  for (std::size_t i = 0; i < sums.size(); ++i) {
    expected.push_back(gradient ? sums[i] * slope(form.epilogue, input[i])
                                : activation(form.epilogue, sums[i]));
    other.push_back(gradient ? activation(form.epilogue, input[i]) : sums[i]);
  }
  // Both sums of k terms of at most 1 are off by less than 4k roundings; a slope is at most 1.13.
  const Tolerance tolerance{64, 4.6 * static_cast<double>(run.k)};
  expect_near(d, expected, tolerance, label);
  if (form.second) expect_near(second, other, tolerance, label + ", second result");
  if (::testing::Test::HasFatalFailure()) return;
  for (int repeat = 1; repeat < repeats; ++repeat) {
    const auto [again, second_again] = run.results(form, plan);
    expect_bit_equal(again, d, label + ", another run");
    expect_bit_equal(second_again, second, label + ", another run");
    if (::testing::Test::HasFatalFailure()) return;
  }
}

std::vector<SplitPlan> plans_for(std::int64_t k) {
  std::vector<SplitPlan> plans;
  for (const auto& [rows, columns] : {std::pair{64, 64}, {64, 128}, {128, 128}}) {
    for (const int parts : {1, 2, 3, 5, 8}) {
      if (parts <= cuda::ceil_div(k, 64)) plans.push_back({rows, columns, parts});
    }
  }
  return plans;
}

TEST(CudaGemmSplit, EveryPlanLayoutAndEpilogue) {
  SKIP_WITHOUT_SPLIT();
  Generator generator(71);
  for (const Sample& size : {Sample{1, 8, 8}, {7, 200, 72}, {130, 136, 712}}) {
    for (const DType dtype : {DType::float16, DType::bfloat16}) {
      for (const bool transposed : {false, true}) {
        const Product run(size, dtype, transposed, generator);
        for (const Form& form : kForms) {
          for (const SplitPlan& plan : plans_for(size.k)) {
            check(run, form, plan);
            if (HasFatalFailure()) return;
          }
        }
      }
    }
  }
}

TEST(CudaGemmSplit, ChosenPlansForManySizes) {
  SKIP_WITHOUT_SPLIT();
  Generator generator(72);
  for (const std::int64_t m : {1, 2, 3, 7, 16, 17, 64, 127, 128, 129, 500}) {
    for (const std::int64_t n : {8, 72, 136, 776}) {
      for (const std::int64_t k : {8, 200, 1032}) {
        const Product run({m, n, k}, m % 2 == 0 ? DType::float16 : DType::bfloat16, true,
                          generator);
        for (const Form& form : {kForms[1], kForms[2], kForms[6]}) {
          check(run, form, cuda::plan_split(m, n, k, 132));
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

/// In little work, for compute-sanitizer: rings go round, and clusters share sums.
TEST(CudaGemmSplit, SmallSizes) {
  SKIP_WITHOUT_SPLIT();
  Generator generator(75);
  for (const bool transposed : {false, true}) {
    const Product run({130, 136, 520}, DType::bfloat16, transposed, generator);
    for (const SplitPlan& plan : {SplitPlan{64, 64, 3}, {64, 128, 1}, {128, 128, 2}}) {
      check(run, kForms[4], plan);
      if (HasFatalFailure()) return;
    }
    check(run, kForms[12], {64, 64, 8});
  }
  check(Product({1, 8, 1800}, DType::float16, true, generator), kForms[1], {64, 64, 1});
}

TEST(CudaGemmSplit, TwentyRunsAreBitEqual) {
  SKIP_WITHOUT_SPLIT();
  Generator generator(73);
  const Product run({128, 768, 3072}, DType::bfloat16, true, generator);
  for (const SplitPlan& plan : plans_for(3072)) check(run, kForms[6], plan, 20);
}

/// Rows beyond those of D and A stay what they were.
TEST(CudaGemmSplit, NothingIsWrittenBesideTheResult) {
  SKIP_WITHOUT_SPLIT();
  Generator generator(74);
  const Product run({5, 72, 200}, DType::bfloat16, true, generator);
  const Tensor d = full({9, 80}, -7, {DType::bfloat16, kCuda});
  GemmProblem p = run.problem(kForms[1]);
  p.d = d.view_of_data().data;
  p.d_leading = 80;
  cuda::gemm_split(cuda_stream(), "gemm_split", p, {64, 64, 3});
  const std::vector<double> values = d.to_doubles();
  const std::vector<double> expected = run.results(kForms[1], {64, 64, 3}).first.to_doubles();
  for (std::size_t row = 0; row < 9; ++row) {
    for (std::size_t column = 0; column < 80; ++column) {
      const bool inside = row < 5 && column < 72;
      EXPECT_EQ(values[row * 80 + column], inside ? expected[row * 72 + column] : -7.0);
    }
  }
}

TEST(CudaGemmSplit, RefusesWhatItCannotRead) {
  alignas(16) static char memory[32];
  const auto takes = [&](auto change) {
    GemmProblem p{.dtype = DType::bfloat16, .m = 8, .n = 8, .k = 8};
    p.a = p.b = p.c = {memory, false, 8, 0};
    p.d = memory;
    p.d_leading = 8;
    change(p);
    return cuda::gemm_split_takes(p, kH200);
  };
  if (!takes([](GemmProblem&) {})) GTEST_SKIP() << "no code for compute capability 9.0";
  EXPECT_FALSE(takes([](GemmProblem& p) { p.dtype = DType::float32; }));
  EXPECT_FALSE(takes([](GemmProblem& p) { p.result_dtype = DType::float32; }));
  EXPECT_FALSE(takes([](GemmProblem& p) { p.batch = 2; }));
  EXPECT_FALSE(takes([](GemmProblem& p) { p.a.transposed = true; }));
  EXPECT_FALSE(takes([](GemmProblem& p) { p.n = 4; }));
  EXPECT_FALSE(takes([](GemmProblem& p) { p.a.data = memory + 2; }));
  EXPECT_FALSE(takes([](GemmProblem& p) { p.b.leading = 9; }));
  EXPECT_FALSE(takes([](GemmProblem& p) { p.c.leading = 12; }));
  EXPECT_FALSE(takes([](GemmProblem& p) { p.bias = memory + 2; }));
}

/// Every plan is one that a cluster can run, and no block is without work.
TEST(CudaGemmSplit, PlansAreInBounds) {
  for (std::int64_t m = 1; m < 40000; m = m * 5 / 4 + 1) {
    for (const std::int64_t n : {8, 384, 768, 3072, 4096, 12288}) {
      for (const std::int64_t k : {8, 64, 200, 768, 3072, 11008}) {
        const SplitPlan plan = cuda::plan_split(m, n, k, 132);
        EXPECT_TRUE(plan.rows == 64 || plan.rows == 128);
        EXPECT_TRUE(plan.columns == 64 || plan.columns == 128);
        EXPECT_LE(plan.rows, plan.columns);
        EXPECT_GE(plan.parts, 1);
        EXPECT_LE(plan.parts, std::min<std::int64_t>(8, cuda::ceil_div(k, 64)));
      }
    }
  }
}

TEST(CudaGemmSplit, PlansFillTheGpu) {
  const auto plan = [](std::int64_t m, std::int64_t n, std::int64_t k) {
    return cuda::plan_split(m, n, k, 132);
  };
  EXPECT_EQ(plan(128, 768, 3072), (SplitPlan{64, 64, 4}));
  EXPECT_EQ(plan(128, 3072, 768), (SplitPlan{64, 64, 1}));
  EXPECT_EQ(plan(512, 4096, 1024), (SplitPlan{128, 128, 1}));
  EXPECT_EQ(plan(8, 8, 8), (SplitPlan{64, 64, 1}));
  for (const auto& [m, n, k] : {std::tuple{16, 768, 3072}, {128, 512, 2048}, {64, 1024, 4096}}) {
    const SplitPlan chosen = plan(m, n, k);
    const std::int64_t blocks =
        cuda::ceil_div(m, chosen.rows) * cuda::ceil_div(n, chosen.columns) * chosen.parts;
    EXPECT_GE(blocks, 48);
    EXPECT_LE(blocks, 132);
  }
}

}  // namespace cuda_gemm_split_test
}  // namespace tenon::test
