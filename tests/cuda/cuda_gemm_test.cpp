// matmul, linear and what is fused with them on CUDA against the CPU in float64: shapes, storage orders,
// batches and alignments; small integers exactly; the number of kernels.
#include "cuda/device_limits.h"
#include "tensor/ops/attributes.h"
#include "tests/cuda/cuda_outputs.h"
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

// The tanh of 16-bit results may be the hardware's, of 11 bits.
constexpr Tolerance kGeluTolerance{0x1p13, 4};

TEST(CudaGemm, LinearGelu) {
  SKIP_WITHOUT_GPU();
  Generator generator(36);
  const std::vector<std::pair<Sizes, std::int64_t>> shapes = {
      {{4, 16}, 8},    {{2, 3, 64}, 48}, {{128, 256}, 64}, {{7}, 16},  {{77, 33}, 5},
      {{3, 1, 40}, 1}, {{5, 0}, 8},      {{0, 8}, 8},      {{2, 8}, 0}};
  for (const Approximate form : {Approximate::none, Approximate::tanh}) {
    for (const DType dtype : kFloats) {
      for (const auto& [sizes, outputs] : shapes) {
        for (const Placement placement : kPlacements) {
          const Operand2 x = make_operand(sizes, dtype, placement, generator, -0.5, 0.5);
          const Operand2 weight =
              make_operand({outputs, sizes.back()}, dtype, placement, generator, -0.5, 0.5);
          const Operand2 bias = make_operand({outputs}, dtype, placement, generator, -1, 1);
          const std::string what = describe("linear_gelu", dtype, sizes, placement);
          // A decomposition rounds the activation's input, at most 8 here, as well.
          const double rounding =
              8 * unit_roundoff(dtype) / unit_roundoff(accumulation_dtype(dtype));
          const Tolerance tolerance{kGeluTolerance.roundings + rounding, kGeluTolerance.floor};
          for (const char* op : {"linear_gelu", "linear_gelu_aux"}) {
            check_outputs(op, {x, weight, bias}, GeluAttrs{form}, tolerance, what);
            check_outputs(op, {x, weight, {}}, GeluAttrs{form}, tolerance, what + ", no bias");
            if (HasFatalFailure()) return;
          }
        }
      }
    }
  }
}

TEST(CudaGemm, LinearGeluWritesItsResultsOnly) {
  SKIP_WITHOUT_GPU();
  Generator generator(37);
  for (const DType dtype : {DType::float16, DType::bfloat16}) {
    for (const Placement placement : kPlacements) {
      const Operand2 x = make_operand({33, 64}, dtype, placement, generator, -0.5, 0.5);
      const Operand2 weight = make_operand({24, 64}, dtype, placement, generator, -0.5, 0.5);
      const Operand2 bias = make_operand({24}, dtype, placement, generator, -1, 1);
      const double rounding = 8 * unit_roundoff(dtype) / unit_roundoff(DType::float32);
      for (const Approximate form : {Approximate::none, Approximate::tanh}) {
        // An exact form that lies unaligned is two ops.
        const auto check = form == Approximate::tanh ? check_op : check_outputs;
        check("linear_gelu", {x, weight, bias}, GeluAttrs{form},
              {kGeluTolerance.roundings + rounding, kGeluTolerance.floor},
              describe("linear_gelu", dtype, {33, 64}, placement));
      }
      if (HasFatalFailure()) return;
    }
  }
}

TEST(CudaGemm, MatmulGeluBackward) {
  SKIP_WITHOUT_GPU();
  Generator generator(41);
  for (const DType dtype : {DType::float16, DType::bfloat16}) {
    for (const Sizes& sizes : {Sizes{4, 16}, Sizes{2, 33, 64}, Sizes{0, 8}, Sizes{5, 0}}) {
      for (const Placement placement : kPlacements) {
        Sizes result = sizes;
        result.back() = 24;
        const Operand2 grad = make_operand(sizes, dtype, placement, generator, -0.5, 0.5);
        const Operand2 weight =
            make_operand({sizes.back(), 24}, dtype, placement, generator, -0.5, 0.5);
        const Operand2 input = make_operand(result, dtype, placement, generator, -4, 4);
        const double rounding = 4 * unit_roundoff(dtype) / unit_roundoff(DType::float32);
        for (const Approximate form : {Approximate::none, Approximate::tanh}) {
          const auto check = form == Approximate::tanh ? check_op : check_outputs;
          check("matmul_gelu_backward", {grad, weight, input}, GeluAttrs{form},
                {kGeluTolerance.roundings + rounding, kGeluTolerance.floor},
                describe("matmul_gelu_backward", dtype, sizes, placement));
          check_outputs("matmul_gelu_backward_again", {grad, weight, input}, GeluAttrs{form},
                        {kGeluTolerance.roundings + rounding, kGeluTolerance.floor},
                        describe("matmul_gelu_backward_again", dtype, sizes, placement));
        }
        if (HasFatalFailure()) return;
      }
    }
  }
}

/// ReLU's and SiLU's products, and their gradients'.
TEST(CudaGemm, ReluAndSilu) {
  SKIP_WITHOUT_GPU();
  Generator generator(43);
  const std::vector<std::pair<Sizes, std::int64_t>> shapes = {
      {{4, 16}, 8},    {{2, 3, 64}, 48}, {{128, 256}, 64}, {{7}, 16},
      {{77, 33}, 5},   {{300, 72}, 200}, {{5, 0}, 8},      {{0, 8}, 8}};
  for (const DType dtype : kFloats) {
    // A decomposition rounds the activation's input, at most 8 here, as well.
    const double rounding = 8 * unit_roundoff(dtype) / unit_roundoff(accumulation_dtype(dtype));
    const Tolerance tolerance{kGeluTolerance.roundings + rounding, kGeluTolerance.floor};
    for (const auto& [sizes, outputs] : shapes) {
      for (const Placement placement : kPlacements) {
        const Operand2 x = make_operand(sizes, dtype, placement, generator, -0.5, 0.5);
        const Operand2 weight =
            make_operand({outputs, sizes.back()}, dtype, placement, generator, -0.5, 0.5);
        const Operand2 bias = make_operand({outputs}, dtype, placement, generator, -1, 1);
        for (const char* op : {"linear_relu", "linear_silu", "linear_silu_aux"}) {
          const std::string what = describe(op, dtype, sizes, placement);
          check_outputs(op, {x, weight, bias}, {}, tolerance, what);
          check_outputs(op, {x, weight, {}}, {}, tolerance, what + ", no bias");
          if (HasFatalFailure()) return;
        }
        Sizes result = sizes;
        result.back() = outputs;
        const Operand2 other =
            make_operand({sizes.back(), outputs}, dtype, placement, generator, -0.5, 0.5);
        const Operand2 kept = make_operand(result, dtype, placement, generator, -4, 4);
        for (const char* op : {"matmul_relu_backward", "matmul_silu_backward"}) {
          if (sizes.size() < 2) continue;
          check_outputs(op, {x, other, kept}, {}, tolerance,
                        describe(op, dtype, sizes, placement));
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST(CudaGemm, LinearResidual) {
  SKIP_WITHOUT_GPU();
  Generator generator(38);
  const std::vector<std::pair<Sizes, std::int64_t>> shapes = {
      {{4, 16}, 8}, {{77, 40}, 24}, {{2, 3, 64}, 48}, {{128, 256}, 64}, {{7}, 16}, {{3, 1, 40}, 8}};
  const std::vector<std::pair<Sizes, std::int64_t>> odd_shapes = {
      {{77, 33}, 5}, {{3, 1, 40}, 1}, {{5, 0}, 6}, {{0, 5}, 6}, {{2, 5}, 0}, {{1, 1}, 1}};
  for (const DType dtype : kFloats) {
    for (const bool odd : {false, true}) {
      for (const auto& [sizes, outputs] : odd ? odd_shapes : shapes) {
        for (const Placement placement : kPlacements) {
          Sizes result = sizes;
          result.back() = outputs;
          const auto operand = [&](const Sizes& of) {
            return make_operand(of, dtype, placement, generator, kLow, kHigh);
          };
          const Operand2 x = operand(sizes);
          const Operand2 weight = operand({outputs, sizes.back()});
          const Operand2 bias = operand({outputs});
          const Operand2 residual = operand(result);
          const std::string what = describe("linear_residual", dtype, sizes, placement);
          // Two roundings where it is computed in parts.
          const double parts = 64 + unit_roundoff(dtype) / unit_roundoff(accumulation_dtype(dtype));
          check_outputs("linear_residual", {x, weight, {}, residual}, {}, {parts, 0}, what);
          check_outputs("linear_residual", {x, weight, bias, residual}, {}, {parts, 0}, what);
          if (!odd && dtype != DType::float64) {
            check_op("linear_residual", {x, weight, bias, residual}, {}, {parts, 0}, what);
          }
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST(CudaGemm, MatmulAdd) {
  SKIP_WITHOUT_GPU();
  Generator generator(39);
  struct Sample {
    Sizes left, right, result;
  };
  const std::vector<Sample> samples = {
      {{4, 16}, {16, 8}, {4, 8}},       {{1, 1}, {1, 1}, {1, 1}},
      {{33, 7}, {7, 65}, {33, 65}},     {{3, 8, 16}, {3, 16, 4}, {3, 8, 4}},
      {{3, 8, 16}, {16, 4}, {3, 8, 4}}, {{2, 1, 5, 6}, {3, 6, 7}, {2, 3, 5, 7}},
      {{4, 1, 9}, {9, 3}, {4, 1, 3}},   {{5, 0}, {0, 6}, {5, 6}},
      {{0, 5}, {5, 6}, {0, 6}},         {{2, 3, 1, 64}, {2, 3, 64, 1}, {2, 3, 1, 1}}};
  for (const DType dtype : kFloats) {
    for (const Sample& sample : samples) {
      for (const Placement placement : kPlacements) {
        const auto operand = [&](const Sizes& of) {
          return make_operand(of, dtype, placement, generator, kLow, kHigh);
        };
        check_op("matmul_add",
                 {operand(sample.left), operand(sample.right), operand(sample.result)}, {},
                 kTolerance, describe("matmul_add", dtype, sample.left, placement));
        if (HasFatalFailure()) return;
      }
    }
  }
}

/// What a layer's backward multiplies: a third of a fused QKV gradient, as it lies.
TEST(CudaGemm, WeightGradientsReadSlicesInPlace) {
  SKIP_WITHOUT_GPU();
  DeviceBackend& backend = device_backend(DeviceType::cuda);
  Generator generator(40);
  for (const DType dtype : {DType::bfloat16, DType::float32}) {
    const Operand2 packed =
        make_operand({2, 64, 96}, dtype, Placement::contiguous, generator, kLow, kHigh);
    const Operand2 x =
        make_operand({128, 64}, dtype, Placement::contiguous, generator, kLow, kHigh);
    const auto slice = [](const Tensor& qkv) {
      return qkv.narrow(2, 32, 32).reshape({128, 32}).transpose(0, 1);
    };
    const Operand2 gradient{slice(packed.cpu), slice(packed.cuda)};
    check_op("matmul", {gradient, x}, {}, kTolerance, "weight gradient of a slice");
    if (HasFatalFailure()) return;
    Tensor result;
    EXPECT_EQ(backend.count_kernels(0, [&] { result = matmul(gradient.cuda, x.cuda); }), 1);
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
  const Tensor residual = ones({512, 1024}, {DType::bfloat16, kCuda});
  result = linear_residual(x, weight, bias, residual);
  EXPECT_EQ(backend.count_kernels(0, [&] { result = linear_residual(x, weight, bias, residual); }),
            1);
  const Tensor operands[] = {x, weight, bias};
  for (const char* op : {"linear_gelu", "linear_gelu_aux"}) {
    const auto call = [&] {
      result = apply(get_op(op), operands, GeluAttrs{Approximate::tanh}).at(0);
    };
    call();
    EXPECT_EQ(backend.count_kernels(0, call), 1) << op;
  }
  if (cuda::has_wgmma(cuda::device_limits(0))) {
    for (const char* op : {"linear_relu", "linear_silu", "linear_silu_aux"}) {
      const auto call = [&] { result = apply(get_op(op), operands, {}).at(0); };
      call();
      EXPECT_EQ(backend.count_kernels(0, call), 1) << op;
    }
  }
  if (cuda::has_wgmma(cuda::device_limits(0))) {
    const Tensor many = ones({4096, 1024}, {DType::bfloat16, kCuda});
    const Tensor wide = ones({3072, 1024}, {DType::bfloat16, kCuda});
    result = linear_gelu(many, wide, {});
    EXPECT_EQ(backend.count_kernels(0, [&] { result = linear_gelu(many, wide, {}); }), 1);
  }
  const Tensor left = ones({6, 64, 64}, {DType::float32, kCuda});
  result = matmul(left, left);
  EXPECT_EQ(backend.count_kernels(0, [&] { result = matmul(left, left); }), 1);
}

}  // namespace
}  // namespace tenon::test
