// cuda::gemm itself: every epilogue x dtype against a reference in double, addends that lie elsewhere,
// float32 results of 16-bit operands, and sums that are split.
#include <cuda_runtime_api.h>

#include "cuda/gemm.h"
#include "cuda/gemm_plan.h"
#include "tests/cuda/cuda_support.h"

namespace tenon::test {
namespace {

using cuda::GemmEpilogue;
using cuda::GemmProblem;

cuda::Stream cuda_stream() {
  return {static_cast<cudaStream_t>(device_backend(DeviceType::cuda).stream(0)), 0};
}

double gelu_tanh(double x) {
  return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}
double gelu_tanh_slope(double x) {
  const double factor = std::sqrt(2 / M_PI);
  const double t = std::tanh(factor * (x + 0.044715 * x * x * x));
  return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * factor * (1 + 3 * 0.044715 * x * x);
}

struct Case {
  const char* name;
  bool bias, addend, in_place, aux;
  GemmEpilogue epilogue;
};
constexpr Case kCases[] = {
    {"plain", false, false, false, false, GemmEpilogue::none},
    {"bias", true, false, false, false, GemmEpilogue::none},
    {"addend", false, true, false, false, GemmEpilogue::none},
    {"accumulation", false, true, true, false, GemmEpilogue::none},
    {"bias and addend", true, true, false, false, GemmEpilogue::none},
    {"gelu", false, false, false, false, GemmEpilogue::gelu_tanh},
    {"bias and gelu", true, false, false, false, GemmEpilogue::gelu_tanh},
    {"gelu and its input", false, false, false, true, GemmEpilogue::gelu_tanh},
    {"bias, gelu and its input", true, false, false, true, GemmEpilogue::gelu_tanh},
    {"gelu gradient", false, false, false, true, GemmEpilogue::gelu_tanh_gradient},
};

constexpr std::int64_t kM = 96;
constexpr std::int64_t kN = 72;

/// Operands of one problem on both devices: A (m, k), B (n, k)ᵀ, C with gaps between rows.
struct Operands {
  Operands(DType dtype, DType stored, std::int64_t depth, Generator& generator)
      : k(depth),
        a(make_operand({kM, k}, dtype, Placement::contiguous, generator, -1, 1)),
        b(make_operand({kN, k}, dtype, Placement::contiguous, generator, -1, 1)),
        c(make_operand({kM, kN + 8}, stored, Placement::contiguous, generator, -1, 1)),
        bias(make_operand({kN}, stored, Placement::contiguous, generator, -1, 1)),
        aux(make_operand({kM, kN}, stored, Placement::contiguous, generator, -3, 3)),
        d(empty({kM, kN}, {stored, kCuda})) {}

  GemmProblem problem(const Case& what) {
    GemmProblem p{.dtype = a.cpu.dtype(), .m = kM, .n = kN, .k = k};
    if (d.dtype() != p.dtype) p.result_dtype = d.dtype();
    p.a = {a.cuda.view_of_data().data, false, k, 0};
    p.b = {b.cuda.view_of_data().data, true, k, 0};
    p.d = d.view_of_data().data;
    p.d_leading = kN;
    if (what.in_place) {
      d.copy_(c.cuda.narrow(1, 0, kN));
      p.c = {p.d, false, kN, 0};
    } else if (what.addend) {
      p.c = {c.cuda.view_of_data().data, false, kN + 8, 0};
    }
    if (what.bias) p.bias = bias.cuda.view_of_data().data;
    p.epilogue = what.epilogue;
    if (what.aux) {
      p.aux = aux.cuda.view_of_data().data;
      p.aux_leading = kN;
    }
    return p;
  }

  /// A·Bᵀ + C + bias in double.
  std::vector<double> sums(const Case& what) const {
    const auto wide = [](const Tensor& tensor) { return tensor.to(DType::float64); };
    Tensor sum = matmul(wide(a.cpu), wide(b.cpu).transpose(0, 1));
    if (what.addend) sum = sum + wide(c.cpu).narrow(1, 0, kN);
    if (what.bias) sum = sum + wide(bias.cpu);
    return sum.to_doubles();
  }

  std::int64_t k;
  Operand2 a, b, c, bias, aux;
  Tensor d;
};

void check_case(const Case& what, DType dtype, DType stored, std::int64_t k) {
  Generator generator(51);
  Operands operands(dtype, stored, k, generator);
  const std::string label = std::string(what.name) + ", " + std::string(name(dtype)) + " to " +
                            std::string(name(stored)) + ", k = " + std::to_string(k);
  const GemmProblem p = operands.problem(what);
  const bool plain = what.epilogue == GemmEpilogue::none;
  if (!cuda::has_algorithm(cuda_stream(), p)) {
    EXPECT_TRUE(dtype == DType::float64 || (!plain && size_of(dtype) != 2)) << label;
    return;
  }
  cuda::gemm(cuda_stream(), p);
  const std::vector<double> sums = operands.sums(what);
  const std::vector<double> aux = operands.aux.cpu.to_doubles();
  std::vector<double> expected;
  for (std::size_t i = 0; i < sums.size(); ++i) {
    expected.push_back(plain                                 ? sums[i]
                       : what.epilogue == GemmEpilogue::gelu_tanh ? gelu_tanh(sums[i])
                                                             : sums[i] * gelu_tanh_slope(aux[i]));
  }
  // k terms of at most 1: what is lost in adding them, many at a time, stays well below 4k roundings.
  // A 16-bit product may be rounded before the addend joins it.
  const bool rounds_twice = what.addend && size_of(stored) == 2;
  const Tolerance of_sums =
      rounds_twice ? Tolerance{2 * unit_roundoff(stored) / unit_roundoff(DType::float32), 2}
                   : Tolerance{4, static_cast<double>(k)};
  const Tolerance of_gelu{0x1p15, 8};
  expect_near(operands.d, expected, plain ? of_sums : of_gelu, label);
  if (what.epilogue == GemmEpilogue::gelu_tanh && what.aux) {
    expect_near(operands.aux.cuda, sums, of_sums, label + ", input of gelu");
  }
  const Tensor first = operands.d.clone();
  cuda::gemm(cuda_stream(), operands.problem(what));
  expect_bit_equal(operands.d, first, label + ", second run");
}

TEST(CudaGemmProblem, EveryEpilogue) {
  SKIP_WITHOUT_GPU();
  for (const Case& what : kCases) {
    for (const DType dtype : kFloats) {
      check_case(what, dtype, dtype, 64);
      if (HasFatalFailure()) return;
    }
  }
}

TEST(CudaGemmProblem, Float32ResultsOf16BitOperands) {
  SKIP_WITHOUT_GPU();
  for (const Case& what : kCases) {
    if (what.epilogue != GemmEpilogue::none) continue;
    for (const DType dtype : {DType::float16, DType::bfloat16}) {
      check_case(what, dtype, DType::float32, 64);
      if (HasFatalFailure()) return;
    }
  }
}

/// A weight gradient of many tokens: what is split must not depend on the run.
TEST(CudaGemmProblem, SplitSumsAreExactEnoughAndTheSameInEveryRun) {
  SKIP_WITHOUT_GPU();
  for (const Case& what : {kCases[0], kCases[2], kCases[3]}) {
    for (const DType dtype : kFloats) {
      check_case(what, dtype, dtype, 32768);
      if (dtype == DType::bfloat16) check_case(what, dtype, DType::float32, 32768);
      if (HasFatalFailure()) return;
    }
  }
}

TEST(CudaGemmProblem, MisalignedAuxHasNoAlgorithm) {
  SKIP_WITHOUT_GPU();
  Generator generator(52);
  Operands operands(DType::bfloat16, DType::bfloat16, 64, generator);
  GemmProblem p = operands.problem(kCases[8]);
  EXPECT_TRUE(cuda::has_algorithm(cuda_stream(), p));
  p.aux_leading = kN + 1;
  EXPECT_FALSE(cuda::has_algorithm(cuda_stream(), p));
  EXPECT_THROW(cuda::gemm(cuda_stream(), p), DeviceError);
  p = operands.problem(kCases[8]);
  p.aux = static_cast<char*>(p.aux) + 2;
  EXPECT_FALSE(cuda::has_algorithm(cuda_stream(), p));
}

/// The heuristic is told how matrices are aligned, but not of a bias: it may choose a kernel that
/// reads it by vectors. Descriptors are made without a GPU.
TEST(CudaGemmProblem, MisalignedBiasIsNotDescribed) {
  alignas(16) static char memory[64];
  for (const DType dtype : {DType::float32, DType::float16, DType::bfloat16}) {
    for (const GemmEpilogue epilogue : {GemmEpilogue::none, GemmEpilogue::gelu_tanh}) {
      GemmProblem p{.dtype = dtype, .m = 8, .n = 8, .k = 8};
      p.a = p.b = {memory, false, 8, 0};
      p.d = memory;
      p.d_leading = 8;
      p.epilogue = epilogue;
      for (std::size_t offset = 0; offset <= 16; offset += size_of(dtype)) {
        p.bias = memory + offset;
        EXPECT_EQ(cuda::describe(p).has_value(), offset % 16 == 0)
            << name(dtype) << ", " << offset << " bytes";
      }
    }
  }
}

}  // namespace
}  // namespace tenon::test
