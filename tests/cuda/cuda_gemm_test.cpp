// matmul and linear on CUDA against the CPU in float64: shapes, storage orders, batches and
// alignments; small integers exactly; the number of kernels.
#include "tensor/ops/attributes.h"
#include "tests/cuda/cuda_support.h"

namespace tenon::test {
namespace {

// Positive operands: the error of a sum of K terms is relative to the sum itself.
constexpr double kLow = 0.5;
constexpr double kHigh = 1.5;
constexpr Tolerance kTolerance{64, 0};

TEST(CudaGemm, Linear) {
  SKIP_WITHOUT_GPU();
  Generator generator(31);
  const std::vector<std::pair<Sizes, std::int64_t>> shapes = {
      {{4, 16}, 8},    {{1, 1}, 1},   {{77, 33}, 5}, {{2, 3, 64}, 48}, {{128, 256}, 64}, {{7}, 9},
      {{3, 1, 40}, 1}, {{64, 1}, 64}, {{5, 0}, 6},   {{0, 5}, 6},      {{2, 5}, 0}};
  for (const DType dtype : kFloats) {
    for (const auto& [sizes, outputs] : shapes) {
      for (const Placement placement : kPlacements) {
        const Operand2 x = make_operand(sizes, dtype, placement, generator, kLow, kHigh);
        const Operand2 weight =
            make_operand({outputs, sizes.back()}, dtype, placement, generator, kLow, kHigh);
        const Operand2 bias = make_operand({outputs}, dtype, placement, generator, kLow, kHigh);
        const std::string what = describe("linear", dtype, sizes, placement);
        check_op("linear", {x, weight, bias}, {}, kTolerance, what);
        check_op("linear", {x, weight, {}}, {}, kTolerance, what + ", no bias");
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST(CudaGemm, Matmul) {
  SKIP_WITHOUT_GPU();
  Generator generator(32);
  const std::vector<std::pair<Sizes, Sizes>> shapes = {
      {{4, 16}, {16, 8}},        {{1, 1}, {1, 1}},
      {{33, 7}, {7, 65}},        {{3, 8, 16}, {3, 16, 4}},
      {{3, 8, 16}, {16, 4}},     {{8, 16}, {3, 16, 4}},
      {{2, 1, 5, 6}, {3, 6, 7}}, {{2, 3, 5, 6}, {2, 1, 6, 7}},
      {{4, 1, 9}, {9, 3}},       {{2, 3, 1, 64}, {2, 3, 64, 1}},
      {{5, 0}, {0, 6}},          {{0, 5}, {5, 6}},
      {{0, 2, 3}, {0, 3, 4}},    {{6, 1, 8}, {1, 8, 8}}};
  for (const DType dtype : kFloats) {
    for (const auto& [left, right] : shapes) {
      for (const Placement placement : kPlacements) {
        const Operand2 a = make_operand(left, dtype, placement, generator, kLow, kHigh);
        const Operand2 b = make_operand(right, dtype, placement, generator, kLow, kHigh);
        check_op("matmul", {a, b}, {}, kTolerance, describe("matmul", dtype, left, placement));
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST(CudaGemm, ReadsPackedProjectionsInPlace) {
  SKIP_WITHOUT_GPU();
  Generator generator(33);
  for (const DType dtype : kFloats) {
    // (B, S, 3, H, D): query and key as (B, H, S, D) views of one packed result.
    const Operand2 packed =
        make_operand({2, 24, 3, 4, 16}, dtype, Placement::contiguous, generator, kLow, kHigh);
    const auto head = [](const Tensor& x, std::int64_t which) {
      return x.narrow(2, which, 1).squeeze(2).transpose(1, 2);
    };
    const Operand2 query{head(packed.cpu, 0), head(packed.cuda, 0)};
    const Operand2 key{head(packed.cpu, 1).transpose(2, 3), head(packed.cuda, 1).transpose(2, 3)};
    check_op("matmul", {query, key}, {}, kTolerance, "scores of packed projections");
    if (HasFatalFailure()) return;
  }
}

TEST(CudaGemm, LargeBatches) {
  SKIP_WITHOUT_GPU();
  Generator generator(34);
  for (const std::int64_t batch : {65535, 65536, 70000}) {
    const Operand2 a =
        make_operand({batch, 2, 3}, DType::float32, Placement::contiguous, generator, kLow, kHigh);
    const Operand2 b =
        make_operand({batch, 3, 2}, DType::float32, Placement::contiguous, generator, kLow, kHigh);
    expect_near(matmul(a.cuda, b.cuda), exact_result("matmul", {a.cpu, b.cpu}, {}), kTolerance,
                "matmul");
    if (HasFatalFailure()) return;
  }
}

TEST(CudaGemm, SmallIntegersAreExact) {
  SKIP_WITHOUT_GPU();
  Generator generator(35);
  for (const DType dtype : kFloats) {
    for (const std::int64_t k : {1, 31, 200, 512}) {
      // |sum| <= 512 · 2 · 2 stays exact in all compute types, and below 256·8 in the 16-bit results'
      // reach only where rounded once: compare with the rounded exact value.
      const Operand2 a =
          make_operand({48, k}, DType::int32, Placement::contiguous, generator, -2, 3);
      const Operand2 w =
          make_operand({40, k}, DType::int32, Placement::contiguous, generator, -2, 3);
      const Operand2 bias =
          make_operand({40}, DType::int32, Placement::contiguous, generator, -4, 5);
      const auto typed = [&](const Tensor& x) { return x.to(dtype); };
      const Tensor got = linear(typed(a.cuda), typed(w.cuda), typed(bias.cuda));
      const Tensor exact =
          linear(a.cpu.to(DType::float64), w.cpu.to(DType::float64), bias.cpu.to(DType::float64));
      expect_bit_equal(got, exact.to(dtype), "linear of integers");
      if (HasFatalFailure()) return;
    }
  }
}

TEST(CudaGemm, PropagatesNanAndInf) {
  SKIP_WITHOUT_GPU();
  for (const DType dtype : kFloats) {
    Tensor x = ones({4, 32}, {dtype});
    x.narrow(0, 1, 1).narrow(1, 5, 1).copy_(full({1, 1}, std::nan(""), {dtype}));
    x.narrow(0, 2, 1).narrow(1, 5, 1).copy_(full({1, 1}, HUGE_VAL, {dtype}));
    const Tensor weight = ones({8, 32}, {dtype});
    check_op("linear", {from_cpu(x), from_cpu(weight), {}}, {}, kTolerance,
             "linear of NaN and Inf");
  }
}

TEST(CudaGemm, IsOneKernel) {
  SKIP_WITHOUT_GPU();
  DeviceBackend& backend = device_backend(DeviceType::cuda);
  const Tensor x = ones({512, 1024}, {DType::bfloat16, kCuda});
  const Tensor weight = ones({1024, 1024}, {DType::bfloat16, kCuda});
  const Tensor bias = ones({1024}, {DType::bfloat16, kCuda});
  Tensor result = linear(x, weight, bias);
  EXPECT_EQ(backend.count_kernels(0, [&] { result = linear(x, weight, bias); }), 1);
  const Tensor left = ones({6, 64, 64}, {DType::float32, kCuda});
  result = matmul(left, left);
  EXPECT_EQ(backend.count_kernels(0, [&] { result = matmul(left, left); }), 1);
}

}  // namespace
}  // namespace tenon::test
