// What would be launched on GPUs that are not here: the shared memory of every kernel that sizes
// its own, and which kernels are taken, over columns x dtypes x a table of GPUs. What the compiler
// lays out is bounded by it (48 KiB); tests/cuda/device_code_test.py looks at that.
#include <gtest/gtest.h>

#include <cuda_runtime_api.h>

#include <algorithm>
#include <string>
#include <thread>
#include <vector>

#include "cuda/device_limits.h"
#include "cuda/kernels/attention.h"
#include "cuda/kernels/attention_backward.h"
#include "cuda/kernels/gemm_wgmma.h"
#include "cuda/kernels/row_plan.h"
#include "cuda/launch.h"
#include "tests/cuda/cuda_support.h"

namespace tenon::cuda {
namespace {

/// From the CUDA programming guide's table of compute capabilities, and the largest GPU of each.
constexpr DeviceLimits kH200{9, 0, 132, 227 << 10, 228 << 10};
constexpr DeviceLimits kDevices[] = {{8, 0, 108, 163 << 10, 164 << 10},  // A100
                                     {8, 6, 84, 99 << 10, 100 << 10},    // RTX 3090 Ti
                                     {8, 9, 142, 99 << 10, 100 << 10},   // RTX 6000 Ada
                                     kH200,
                                     {10, 0, 148, 227 << 10, 228 << 10},  // B200
                                     {12, 0, 188, 99 << 10, 100 << 10}};  // RTX PRO 6000

std::string name_of(const DeviceLimits& limits) {
  return "on " + std::to_string(limits.major) + "." + std::to_string(limits.minor);
}

struct RowKernel {
  const char* name;
  RowStreamNeeds needs;
};

/// Every kernel on device/row_stream.cuh, for elements of so many bytes.
std::vector<RowKernel> row_kernels(int bytes) {
  return {{"softmax", softmax_needs(bytes)},
          {"softmax_backward", softmax_backward_needs(bytes)},
          {"layer_norm", norm_needs(bytes, false)},
          {"bias_dropout_residual_layer_norm", norm_needs(bytes, true)},
          {"layer_norm_backward", norm_backward_needs(bytes, 2, false)},
          {"layer_norm_backward_add", norm_backward_needs(bytes, 3, false)},
          {"bias_dropout_residual_layer_norm_backward", norm_backward_needs(bytes, 3, true)}};
}

TEST(CudaLimits, RowsThatAreHeldFitEveryGpu) {
  for (const DeviceLimits& limits : kDevices) {
    for (const int bytes : {2, 4, 8}) {
      for (const RowKernel& kernel : row_kernels(bytes)) {
        for (std::int64_t cols = 8; cols <= 20000; cols += 8) {
          const RowStreamPlan plan = plan_row_stream(8, cols, kernel.needs, limits);
          if (!plan.fits) continue;
          ASSERT_LE(plan.shared_bytes + row_stream_other_bytes(bytes),
                    static_cast<std::size_t>(limits.shared_of_block))
              << kernel.name << " of (8, " << cols << "), " << bytes << " bytes an element, "
              << name_of(limits);
        }
      }
    }
  }
}

/// Sums are split by sizes alone, so that GPUs that take the same kernel give the same bits.
TEST(CudaLimits, RowsAreLaidOutAlikeOnEveryGpu) {
  for (const DeviceLimits& limits : kDevices) {
    for (const int bytes : {2, 4, 8}) {
      for (const RowKernel& kernel : row_kernels(bytes)) {
        for (std::int64_t cols = 8; cols <= 20000; cols += 56) {
          for (const std::int64_t rows : {1, 8, 1000, 32768}) {
            const RowStreamPlan plan = plan_row_stream(rows, cols, kernel.needs, limits);
            const RowStreamPlan known = plan_row_stream(rows, cols, kernel.needs, kH200);
            const std::string what = kernel.name + (" of (" + std::to_string(rows)) + ", " +
                                     std::to_string(cols) + ") " + name_of(limits);
            ASSERT_LE(plan.fits, known.fits) << what;
            ASSERT_EQ(plan.blocks, known.blocks) << what;
            ASSERT_EQ(plan.threads, known.threads) << what;
            ASSERT_EQ(plan.lanes, known.lanes) << what;
            ASSERT_EQ(plan.chunks, known.chunks) << what;
          }
        }
      }
    }
  }
}

TEST(CudaLimits, LongRowsAreReadAgainWhereTheyDoNotFit) {
  struct Sample {
    const char* what;
    std::int64_t cols;
    RowStreamNeeds needs;
    int smallest;  // of kDevices' KiB of a block: where there is less, rows are read again
  };
  const Sample samples[] = {
      {"softmax backward", 12288, softmax_backward_needs(4), 227},
      {"softmax backward", 8192, softmax_backward_needs(4), 163},
      {"softmax backward", 4096, softmax_backward_needs(4), 99},
      {"fused norm backward", 8192, norm_backward_needs(4, 3, true), 227},
      {"fused norm backward", 4096, norm_backward_needs(4, 3, true), 163},
      {"norm backward", 8192, norm_backward_needs(4, 2, false), 163},
      {"norm backward", 4096, norm_backward_needs(4, 2, false), 99},
      {"norm backward", 8192, norm_backward_needs(2, 2, false), 99},
      {"softmax", 16384, softmax_needs(4), 163},
      {"softmax", 16384, softmax_needs(2), 99},
      {"norm", 768, norm_needs(4, true), 99},
  };
  for (const Sample& s : samples) {
    for (const DeviceLimits& limits : kDevices) {
      EXPECT_EQ(plan_row_stream(8, s.cols, s.needs, limits).fits,
                limits.shared_of_block >= s.smallest << 10)
          << s.what << " of (8, " << s.cols << "), " << s.needs.element_bytes
          << " bytes an element, " << name_of(limits);
    }
  }
}

TEST(CudaLimits, RowsOfLogitsFitEveryGpu) {
  for (const DeviceLimits& limits : kDevices) {
    for (const int bytes : {2, 4, 8}) {
      for (std::int64_t classes = 0; classes <= 130000; classes += classes < 1000 ? 1 : 97) {
        for (const std::int64_t rows : {1, 8, 32768}) {
          const LossRowsPlan plan = plan_loss_rows(rows, classes, bytes, limits);
          const std::string what = "(" + std::to_string(rows) + ", " + std::to_string(classes) +
                                   "), " + std::to_string(bytes) + " bytes an element, " +
                                   name_of(limits);
          // Beside the rows lie 32 values of a reduction.
          ASSERT_LE(plan.shared_bytes + 32 * 8, static_cast<std::size_t>(limits.shared_of_block))
              << what;
          ASSERT_EQ(plan.held, plan.shared_bytes > 0 || (bytes < 8 && classes == 0)) << what;
          ASSERT_GE(plan.blocks, 1) << what;
          ASSERT_LE(plan.blocks, plan.row_blocks) << what;
        }
      }
    }
  }
  EXPECT_TRUE(plan_loss_rows(4096, 50304, 2, kH200).held);
  EXPECT_TRUE(plan_loss_rows(4096, 50304, 2, kDevices[0]).held);
  EXPECT_FALSE(plan_loss_rows(4096, 50304, 2, kDevices[1]).held);
}

AttentionBackwardParams attention_call(std::int64_t head, std::int64_t head_v, int form) {
  AttentionBackwardParams params{};
  params.batches = 64;
  params.length = params.keys = form / 8 % 2 == 0 ? 4096 : 64;  // tiles of 128 rows, and of 64
  params.head = head;
  params.head_v = head_v;
  params.scale_log2 = form % 2 == 0 ? 0.18 : -0.18;
  params.mask_kind = form / 2 % 2 == 0 ? AttentionMask::none : AttentionMask::additive;
  params.has_dropout = form / 4 % 2 == 1;
  static const float bias = 0;
  if (params.mask_kind != AttentionMask::none && form / 16 == 1) params.key_bias = &bias;
  return params;
}
constexpr int kForms = 32;  // of attention_call

/// Bytes of the forward kernel that a call would take.
std::int64_t forward_bytes(const AttentionParams& params, DType dtype, const DeviceLimits& limits) {
  if (flash_mma_takes(dtype, params.head, params.head_v) && has_tensor_cores(limits)) {
    const auto tiling = choose_flash_mma_tiling(params, limits.multiprocessors);
    EXPECT_EQ(tiling.shared_bytes, flash_mma_shared_bytes(tiling)) << params.head;
    return flash_mma_shared_bytes(tiling);
  }
  if (flash_tf32x3_takes(dtype, params.head, params.head_v) && has_tf32x3(limits)) {
    const auto tiling = choose_flash_tf32x3_tiling(params, limits.multiprocessors);
    EXPECT_EQ(tiling.shared_bytes, flash_tf32x3_shared_bytes(tiling)) << params.head;
    return flash_tf32x3_shared_bytes(tiling);
  }
  const auto tiling = choose_flash_simt_tiling(dtype, params.head_v);
  EXPECT_GE(tiling.shared_bytes, flash_simt_shared_bytes(dtype, tiling)) << params.head;
  return flash_simt_shared_bytes(dtype, tiling);
}

/// The same of the gradient's kernels, that of a mask included; wgmma has a test of its own.
std::int64_t backward_bytes(const AttentionBackwardParams& params, DType dtype,
                            const DeviceLimits& limits) {
  if (backward_mma_takes(dtype, params.head, params.head_v) && has_tensor_cores(limits)) {
    return std::max({backward_queries_shared_bytes(params, dtype),
                     backward_keys_shared_bytes(params, dtype),
                     backward_mask_mma_shared_bytes(plan_mask_gradient(params, dtype, limits))});
  }
  if (flash_tf32x3_takes(dtype, params.head, params.head_v) && has_tf32x3(limits)) {
    return std::max({backward_tf32x3_queries_shared_bytes(params),
                     backward_tf32x3_keys_shared_bytes(params),
                     backward_mask_tf32x3_shared_bytes(params)});
  }
  return backward_simt_shared_bytes(dtype);
}

TEST(CudaLimits, AttentionFitsEveryGpu) {
  for (const DeviceLimits& limits : kDevices) {
    for (const DType dtype : test::kFloats) {
      for (std::int64_t head = 1; head <= 264; ++head) {
        for (const std::int64_t head_v : {head, std::int64_t{64}, std::int64_t{8}}) {
          for (int form = 0; form < kForms; ++form) {
            const AttentionBackwardParams params = attention_call(head, head_v, form);
            ASSERT_LE(forward_bytes(params, dtype, limits), limits.shared_of_block)
                << name(dtype) << ", heads of " << head << " and " << head_v << " "
                << name_of(limits);
            ASSERT_LE(backward_bytes(params, dtype, limits), limits.shared_of_block)
                << name(dtype) << ", heads of " << head << " and " << head_v << " "
                << name_of(limits);
            // Where a call's rows are not aligned.
            ASSERT_LE(backward_simt_shared_bytes(dtype), limits.shared_of_block);
          }
        }
      }
    }
  }
}

GemmProblem product(std::int64_t m, std::int64_t n, std::int64_t k) {
  alignas(16) static char memory[16];
  GemmProblem p{.dtype = DType::bfloat16, .m = m, .n = n, .k = k};
  p.a = {memory, false, k, 0};
  p.b = {memory, true, k, 0};
  p.d = memory;
  p.d_leading = n;
  return p;
}

TEST(CudaLimits, WgmmaOnComputeCapability90Only) {
  for (const DeviceLimits& limits : kDevices) {
    const bool hopper = limits.major == 9 && limits.minor == 0;
    if (!hopper) {
      EXPECT_FALSE(has_wgmma(limits)) << name_of(limits);
    }
    EXPECT_EQ(gemm_wgmma_takes(product(4096, 3072, 1024), limits), has_wgmma(limits))
        << name_of(limits);
    for (const std::int64_t head : {8, 64, 72, 128}) {
      EXPECT_EQ(backward_wgmma_takes(DType::bfloat16, head, head, limits), has_wgmma(limits))
          << name_of(limits);
    }
    EXPECT_EQ(backward_wgmma_takes(DType::bfloat16, 128, 40, limits), has_wgmma(limits));
    EXPECT_FALSE(backward_wgmma_takes(DType::bfloat16, 136, 64, limits)) << name_of(limits);
    EXPECT_FALSE(backward_wgmma_takes(DType::bfloat16, 64, 100, limits)) << name_of(limits);
    EXPECT_FALSE(backward_wgmma_takes(DType::float32, 64, 64, limits)) << name_of(limits);
  }
  // Code for 9.0 with wgmma runs on no other number.
  EXPECT_FALSE(has_wgmma({9, 1, 132, 227 << 10, 228 << 10}));
}

TEST(CudaLimits, ProductsAreCountedInTiles) {
  struct Sample {
    std::int64_t m, n, k;
    bool preferred;
  };
  const Sample samples[] = {
      // As measured on an H200 (benchmarks/bench_kernels.cpp and a GPT-2 step).
      {4096, 3072, 1024, true},
      {16384, 3072, 1024, true},
      {16384, 1024, 1024, false},  // 768 tiles are six waves, the last nearly empty
      {32768, 2304, 768, true},
      {32768, 768, 3072, true},
      {32768, 3072, 768, true},
      {32768, 768, 768, true},
      {32768, 50304, 768, true},
      {4096, 50304, 768, true},
      {4096, 4096, 4096, false},  // 704 tiles are 5.3 waves
      {8192, 8192, 8192, true},
      {4096, 768, 3072, false},   // 128 tiles
      {4096, 1024, 1024, false},  // 192 tiles
      {32768, 3072, 256, false},  // the sum is short
      // Tiles that are mostly empty.
      {48, 151936, 4096, false},
      {64, 151936, 4096, false},
      {1, 8 << 20, 4096, false},
      {132, 50304, 768, false},
      {1 << 20, 8, 4096, false},
      {1 << 20, 72, 768, false},
      // The last tiles of a side may be.
      {120, 151936, 4096, true},
      {32768, 960, 768, true},
      {1027, 6152, 768, false},  // 297 tiles are 2.25 waves
  };
  for (const Sample& s : samples) {
    EXPECT_EQ(gemm_wgmma_prefers(product(s.m, s.n, s.k)), s.preferred)
        << s.m << " x " << s.n << " x " << s.k;
  }
}

TEST(CudaLimits, AskingForTooMuchIsAnInternalError) {
  EXPECT_NO_THROW(require_shared_memory("softmax", 99 << 10, kDevices[1]));
  try {
    require_shared_memory("softmax", (99 << 10) + 1, kDevices[1]);
    FAIL() << "nothing was thrown";
  } catch (const InternalError& error) {
    EXPECT_NE(
        std::string(error.what())
            .find("[softmax] a block asks for 101377 bytes of shared memory; a GPU of compute "
                  "capability 8.6 has 101376"),
        std::string::npos)
        << error.what();
  }
}

TEST(CudaLimits, LaunchesThatAskForTooMuchAreRefused) {
  if (!is_available(kCuda)) GTEST_SKIP() << "no CUDA device on this machine";
  const LaunchShape shape{1, 32, std::size_t{1} << 20};
  EXPECT_THROW(launch_kernel({nullptr, 0}, "too_large", nullptr, shape, nullptr), InternalError);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess) << "the driver was not asked";
}

TEST(CudaLimits, AnyThreadMayAskForThem) {
  if (!is_available(kCuda)) GTEST_SKIP() << "no CUDA device on this machine";
  const DeviceLimits* found[8] = {};
  {
    std::vector<std::jthread> threads;
    for (const DeviceLimits*& limits : found) {
      threads.emplace_back([&limits] { limits = &device_limits(0); });
    }
  }
  cudaDeviceProp properties;
  ASSERT_EQ(cudaGetDeviceProperties(&properties, 0), cudaSuccess);
  for (const DeviceLimits* limits : found) {
    EXPECT_EQ(limits, found[0]);
    EXPECT_EQ(limits->major, properties.major);
    EXPECT_EQ(limits->minor, properties.minor);
    EXPECT_EQ(limits->multiprocessors, properties.multiProcessorCount);
    EXPECT_EQ(static_cast<std::size_t>(limits->shared_of_block), properties.sharedMemPerBlockOptin);
    EXPECT_EQ(static_cast<std::size_t>(limits->shared_of_multiprocessor),
              properties.sharedMemPerMultiprocessor);
  }
}

}  // namespace
}  // namespace tenon::cuda
