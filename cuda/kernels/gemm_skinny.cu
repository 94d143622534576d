// D = epilogue(A·Bᵀ + C + bias) for A (m, k) of at most 8 rows and B (n, k), float32 sums.
//
// A block computes four columns of D, for which its warps share k: each lane reads 16 bytes of four rows
// of B, and of A, which stays in the caches. Lanes add up their sums in a tree, then one thread per
// result adds those of the warps, in order: the same bits in every run.
#include "cuda/kernels/gemm_skinny.h"

#include <algorithm>

#include "cuda/device/gelu.cuh"
#include "cuda/device/memory.cuh"

namespace tenon::cuda {
namespace {

constexpr int kMostWarps = 6;
constexpr int kColumns = 4;  // of D, a block
constexpr std::int64_t kMostRows = 8;

struct SkinnyParams {
  const void* a;
  const void* b;
  const void* bias;
  const void* addend;
  void* d;
  std::int64_t a_leading, b_leading, addend_leading, d_leading;
  int m, n;
  int k;
  GemmEpilogue epilogue;
};

__device__ __forceinline__ float activated(GemmEpilogue epilogue, float x) {
  switch (epilogue) {
    case GemmEpilogue::gelu_tanh: return gelu_tanh(x);
    case GemmEpilogue::gelu: return gelu(x);
    case GemmEpilogue::relu: return nan_max(x, 0.0F);
    case GemmEpilogue::silu: return x * sigmoid_of(x);
    default: return x;
  }
}

template <class T, int kRows>
using Sums = float[kRows][kColumns];

/// Adds the products of one vector of k.
template <class T, int kRows>
__device__ __forceinline__ void add_products(const SkinnyParams& p, Sums<T, kRows>& sums,
                                             int column, int at) {
  constexpr int kVector = vector_length<T>;
  Pack<T, kVector> b[kColumns];
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
    const std::int64_t row = min(column + c, p.n - 1);
    b[c] = load_pack<T, kVector>(static_cast<const T*>(p.b) + row * p.b_leading + at);
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const std::int64_t row = min(r, p.m - 1);
    const auto a = load_pack<T, kVector>(static_cast<const T*>(p.a) + row * p.a_leading + at);
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      const float x = widen(a.item[i]);
#pragma unroll
      for (int c = 0; c < kColumns; ++c) sums[r][c] = fmaf(x, widen(b[c].item[i]), sums[r][c]);
    }
  }
}

/// What follows the sum, for one result.
template <class T>
__device__ __forceinline__ void finish(const SkinnyParams& p, int row, int column, float x) {
  if (p.addend != nullptr) {
    x += widen(static_cast<const T*>(p.addend)[row * p.addend_leading + column]);
  }
  if (p.bias != nullptr) x += widen(static_cast<const T*>(p.bias)[column]);
  static_cast<T*>(p.d)[row * p.d_leading + column] = convert<T>(activated(p.epilogue, x));
}

template <class T, int kRows>
__global__ void __launch_bounds__(32 * kMostWarps) gemm_skinny_kernel(const SkinnyParams p) {
  constexpr int kVector = vector_length<T>;
  __shared__ float parts[kMostWarps][kRows * kColumns];
  const int column = static_cast<int>(blockIdx.x) * kColumns;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  Sums<T, kRows> sums = {};
  const int step = static_cast<int>(blockDim.x) * kVector;
#pragma unroll(kRows <= 2 ? 2 : 1)
  for (int at = thread * kVector; at < p.k; at += step) {
    add_products<T, kRows>(p, sums, column, at);
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      float sum = sums[r][c];
#pragma unroll
      for (int other = 16; other > 0; other /= 2) {
        sum += __shfl_xor_sync(0xffffffffU, sum, other);
      }
      if (lane == 0) parts[warp][r * kColumns + c] = sum;
    }
  }
  __syncthreads();
  const int row = thread / kColumns, of_row = column + thread % kColumns;
  if (thread >= kRows * kColumns || row >= p.m || of_row >= p.n) return;
  float sum = 0;
  for (int i = 0; i < static_cast<int>(blockDim.x) / 32; ++i) sum += parts[i][thread];
  finish<T>(p, row, of_row, sum);
}

/// Three warps to six, so that the last step along k leaves as few of them idle as can be; fewer where
/// there is no more to read.
int warps_for(std::int64_t k, int vector) {
  const std::int64_t vectors = ceil_div(k, std::int64_t{32} * vector);  // of a warp
  int best = 4;
  for (const int warps : {4, 5, 6, 3}) {
    if (ceil_div(vectors, warps) * warps < ceil_div(vectors, best) * best) best = warps;
  }
  return static_cast<int>(std::min<std::int64_t>(best, vectors));
}

/// Rows that a kernel computes.
std::int64_t rows_for(std::int64_t m) { return m <= 2 ? m : m <= 4 ? 4 : kMostRows; }

template <class T>
void launch_rows(Stream stream, const char* name, const SkinnyParams& p) {
  const auto launch_for = [&](auto kernel) {
    launch(stream, name, kernel, ceil_div(p.n, kColumns), 32 * warps_for(p.k, vector_length<T>), 0,
           p);
  };
  switch (rows_for(p.m)) {
    case 1: return launch_for(gemm_skinny_kernel<T, 1>);
    case 2: return launch_for(gemm_skinny_kernel<T, 2>);
    case 4: return launch_for(gemm_skinny_kernel<T, 4>);
    default: return launch_for(gemm_skinny_kernel<T, kMostRows>);
  }
}

}  // namespace

bool gemm_skinny_takes(const GemmProblem& p) {
  if (p.dtype != DType::float16 && p.dtype != DType::bfloat16 && p.dtype != DType::float32) {
    return false;
  }
  constexpr std::int64_t kMost = std::int64_t{1} << 30;
  const auto is_vector = [&](std::int64_t elements) {
    return elements * static_cast<std::int64_t>(size_of(p.dtype)) % kVectorBytes == 0;
  };
  const auto is_aligned_row = [&](const void* data, std::int64_t leading) {
    return reinterpret_cast<std::uintptr_t>(data) % kVectorBytes == 0 && is_vector(leading);
  };
  return p.m <= kMostRows && p.n < kMost && p.k < kMost && p.stored_dtype() == p.dtype &&
         p.batch == 1 && !p.a.transposed && p.b.transposed && is_vector(p.k) &&
         is_aligned_row(p.a.data, p.m == 1 ? 0 : p.a.leading) &&
         is_aligned_row(p.b.data, p.n == 1 ? 0 : p.b.leading) && p.aux == nullptr &&
         !is_gradient(p.epilogue) && (p.c.data == nullptr || !p.c.transposed);
}

bool gemm_skinny_prefers(const GemmProblem& p) {
  // A block reads its columns alone: a long sum of few columns would leave the GPU idle.
  constexpr std::int64_t kFewestColumns = 256, kLongestOfFewer = 6144;
  if (p.n < kFewestColumns && p.k > kLongestOfFewer) return false;
  // Without tensor cores as much work for any kernel.
  if (p.m == 1 || p.dtype == DType::float32) return true;
  // More rows are more work for the multiprocessors than the weight is to read.
  constexpr std::int64_t kMostOfTwo = 4096, kMostColumns = 2048, kMostProducts = 12 << 20;
  if (p.m == 2) return p.n <= kMostOfTwo;
  return p.n <= kMostColumns && rows_for(p.m) * p.n * p.k <= kMostProducts;
}

void gemm_skinny(Stream stream, const char* name, const GemmProblem& problem) {
  const SkinnyParams p{.a = problem.a.data,
                       .b = problem.b.data,
                       .bias = problem.bias,
                       .addend = problem.c.data,
                       .d = problem.d,
                       .a_leading = problem.a.leading,
                       .b_leading = problem.b.leading,
                       .addend_leading = problem.c.leading,
                       .d_leading = problem.d_leading,
                       .m = static_cast<int>(problem.m),
                       .n = static_cast<int>(problem.n),
                       .k = static_cast<int>(problem.k),
                       .epilogue = problem.epilogue};
  switch (problem.dtype) {
    case DType::float16: return launch_rows<Half>(stream, name, p);
    case DType::bfloat16: return launch_rows<BFloat16>(stream, name, p);
    default: return launch_rows<float>(stream, name, p);
  }
}

}  // namespace tenon::cuda
