// cuda::gemm_skinny: up to 8 rows x odd columns x sums x dtype x what follows, against sums in double;
// the same bits in every run; what it refuses.
#include "cuda/kernels/gemm_skinny.h"
#include "tests/cuda/cuda_support.h"

namespace tenon::test {
namespace cuda_gemm_skinny_test {

using cuda::GemmEpilogue;
using cuda::GemmProblem;

struct Form {
  const char* name;
  GemmEpilogue epilogue;
  bool bias, addend;
};
constexpr Form kForms[] = {{"plain", GemmEpilogue::none, false, false},
                           {"bias", GemmEpilogue::none, true, false},
                           {"bias and addend", GemmEpilogue::none, true, true},
                           {"gelu", GemmEpilogue::gelu_tanh, true, false},
                           {"exact gelu", GemmEpilogue::gelu, false, false},
                           {"relu", GemmEpilogue::relu, true, false},
                           {"silu", GemmEpilogue::silu, true, false}};

double activation(GemmEpilogue epilogue, double x) {
  switch (epilogue) {
    case GemmEpilogue::gelu_tanh:
      return x / (1 + std::exp(-2 * std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case GemmEpilogue::gelu: return x * 0.5 * std::erfc(-x * std::sqrt(0.5));
    case GemmEpilogue::relu: return std::max(x, 0.0);
    case GemmEpilogue::silu: return x / (1 + std::exp(-x));
    default: return x;
  }
}

void check(std::int64_t m, std::int64_t n, std::int64_t k, DType dtype, Generator& generator) {
  const auto make = [&](const Sizes& sizes) {
    return make_operand(sizes, dtype, Placement::contiguous, generator, -1, 1).cuda;
  };
  const Tensor a = make({m, k}), b = make({n, k}), bias = make({n}), addend = make({m, n});
  const std::vector<double> x = a.to_doubles(), w = b.to_doubles(), of_columns = bias.to_doubles(),
                            added = addend.to_doubles();
  for (const Form& form : kForms) {
    GemmProblem p{.dtype = dtype, .m = m, .n = n, .k = k};
    p.a = {a.view_of_data().data, false, k, 0};
    p.b = {b.view_of_data().data, true, k, 0};
    if (form.bias) p.bias = bias.view_of_data().data;
    if (form.addend) p.c = {addend.view_of_data().data, false, n, 0};
    p.epilogue = form.epilogue;
    p.d_leading = n;
    std::vector<double> expected;
    for (std::int64_t i = 0; i < m * n; ++i) {
      double sum = form.bias ? of_columns[static_cast<std::size_t>(i % n)] : 0;
      if (form.addend) sum += added[static_cast<std::size_t>(i)];
      for (std::int64_t j = 0; j < k; ++j) {
        sum +=
            x[static_cast<std::size_t>(i / n * k + j)] * w[static_cast<std::size_t>(i % n * k + j)];
      }
      expected.push_back(activation(form.epilogue, sum));
    }
    const std::string label = std::string(form.name) + ", " + std::string(name(dtype)) + ", " +
                              std::to_string(m) + " x " + std::to_string(n) + " x " +
                              std::to_string(k);
    Tensor first;
    for (int repeat = 0; repeat < 3; ++repeat) {
      const Tensor d = full({m, n}, -7, {dtype, kCuda});
      p.d = d.view_of_data().data;
      ASSERT_TRUE(cuda::gemm_skinny_takes(p)) << label;
      cuda::gemm_skinny({static_cast<cudaStream_t>(device_backend(DeviceType::cuda).stream(0)), 0},
                        "gemm_skinny", p);
      if (repeat == 0) {
        expect_near(d, expected, {64, 4.6 * static_cast<double>(k)}, label);
        first = d;
      } else {
        expect_bit_equal(d, first, label + ", another run");
      }
      if (::testing::Test::HasFatalFailure()) return;
    }
  }
}

TEST(CudaGemmSkinny, EverySizeAndEpilogue) {
  SKIP_WITHOUT_GPU();
  Generator generator(81);
  for (std::int64_t m = 1; m <= 8; ++m) {
    for (const std::int64_t n : {1, 3, 17, 130}) {
      for (const std::int64_t k : {8, 72, 1032}) {
        for (const DType dtype : {DType::float16, DType::bfloat16, DType::float32}) {
          check(m, n, k, dtype, generator);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

/// In little work, for compute-sanitizer.
TEST(CudaGemmSkinny, SmallSizes) {
  SKIP_WITHOUT_GPU();
  Generator generator(82);
  check(1, 17, 1032, DType::bfloat16, generator);
  check(3, 9, 72, DType::float32, generator);
  check(8, 6, 264, DType::float16, generator);
}

TEST(CudaGemmSkinny, RefusesWhatItCannotRead) {
  alignas(16) static char memory[64];
  const auto takes = [&](auto change) {
    GemmProblem p{.dtype = DType::float32, .m = 2, .n = 4, .k = 4};
    p.a = {memory, false, 4, 0};
    p.b = {memory, true, 4, 0};
    p.d = memory;
    p.d_leading = 4;
    change(p);
    return cuda::gemm_skinny_takes(p);
  };
  EXPECT_TRUE(takes([](GemmProblem&) {}));
  EXPECT_TRUE(takes([](GemmProblem& p) { p.n = 3; }));
  EXPECT_FALSE(takes([](GemmProblem& p) { p.dtype = DType::float64; }));
  EXPECT_FALSE(takes([](GemmProblem& p) { p.dtype = DType::float16; }));  // rows of 8 bytes
  EXPECT_FALSE(takes([](GemmProblem& p) { p.m = 9; }));
  EXPECT_FALSE(takes([](GemmProblem& p) { p.k = 3; }));
  EXPECT_FALSE(takes([](GemmProblem& p) { p.batch = 2; }));
  EXPECT_FALSE(takes([](GemmProblem& p) { p.a.transposed = true; }));
  EXPECT_FALSE(takes([](GemmProblem& p) { p.b.transposed = false; }));
  EXPECT_FALSE(takes([](GemmProblem& p) { p.b.leading = 5; }));
  EXPECT_FALSE(takes([](GemmProblem& p) { p.a.data = memory + 4; }));
  EXPECT_FALSE(takes([](GemmProblem& p) { p.aux = memory; }));
  EXPECT_FALSE(takes([](GemmProblem& p) { p.epilogue = GemmEpilogue::gelu_tanh_gradient; }));
}

TEST(CudaGemmSkinny, IsPreferredWhereReadingTheWeightTakesLongest) {
  const auto prefers = [](std::int64_t m, std::int64_t n, std::int64_t k) {
    return cuda::gemm_skinny_prefers({.dtype = DType::bfloat16, .m = m, .n = n, .k = k});
  };
  EXPECT_TRUE(prefers(1, 768, 768));
  EXPECT_TRUE(prefers(1, 11008, 4096));
  EXPECT_TRUE(prefers(2, 4096, 4096));
  EXPECT_FALSE(prefers(2, 4800, 1600));
  EXPECT_TRUE(prefers(4, 1280, 1280));
  EXPECT_FALSE(prefers(4, 3072, 768));
  EXPECT_FALSE(prefers(5, 3712, 648));
  EXPECT_TRUE(prefers(8, 768, 768));
  EXPECT_FALSE(prefers(4, 4096, 4096));
  EXPECT_FALSE(prefers(8, 2304, 768));
  EXPECT_TRUE(prefers(1, 1, 768));
  EXPECT_FALSE(prefers(1, 1, 1 << 20));
}

}  // namespace cuda_gemm_skinny_test
}  // namespace tenon::test
