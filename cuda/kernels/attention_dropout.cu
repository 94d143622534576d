// The decisions of attention's dropout: a bit for each score, drawn before the kernels that read them. A
// kernel of its own keeps every multiprocessor full of warps, which hide the latency of Philox's chain of
// multiplications; beside a tile of products there are too few.
//
// A thread owns 32 columns, one word of a row, and goes down kRowsOfThread rows: what Philox makes of
// the columns alone is computed once (cuda/device/dropout_rounds.h).
#include "cuda/check.h"
#include "cuda/device/dropout_rounds.h"
#include "cuda/kernels/attention_common.cuh"
#include "cuda/launch.h"

namespace tenon::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kAcross = 4;  // threads along a row: 128 columns, what keep_bits_stride is counted in
constexpr int kCalls = 4;   // of Philox, 8 columns each, for the 32 columns of a thread
constexpr int kRowsAtOnce = kThreads / kAcross;
constexpr int kRowsOfThread = 8;
constexpr int kRowsOfBlock = kRowsAtOnce * kRowsOfThread;
// The rows of a block agree in their bits from 32 on.
static_assert((kRowsOfBlock & (kRowsOfBlock - 1)) == 0);

/// What random half-words are compared with: threshold - 1, and its negative, in both halves.
struct Below {
  std::uint32_t value, negative;
};

/// Bits 0 and 16: whether the half-words of x are above `below`.
__device__ __forceinline__ std::uint32_t compare_halves(std::uint32_t x, const Below& below) {
  return __viaddmin_u16x2(__vmaxu2(x, below.value), below.negative, 0x10001U);
}

/// The decisions of one row, bit i for column i of the thread's 32.
__device__ __forceinline__ std::uint32_t draw_word(const PhiloxKeys& keys, const DropoutRow& row,
                                                   const DropoutColumns (&columns)[kCalls],
                                                   const Below& below) {
  // Of 16 columns each: bits 2n and 16 + 2n are columns 2n and 2n + 1.
  std::uint32_t decisions[kCalls / 2] = {};
#pragma unroll
  for (int call = 0; call < kCalls; ++call) {
    const PhiloxBlock random = dropout_random8(keys, row, columns[call]);
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      decisions[call / 2] += compare_halves(random.word[w], below) << (8 * (call % 2) + 2 * w);
    }
  }
  return __byte_perm(decisions[0] | (decisions[0] >> 15), decisions[1] | (decisions[1] >> 15),
                     0x5410);
}

__global__ __launch_bounds__(kThreads) void draw_keep_bits_kernel(
    const __grid_constant__ AttentionParams params, const __grid_constant__ PhiloxKeys keys,
    Below below, std::int64_t column_tiles) {
  const std::int64_t row_tile = divide(block_index(), column_tiles);
  const int thread = static_cast<int>(threadIdx.x);
  const std::int64_t word = (block_index() - row_tile * column_tiles) * kAcross + thread % kAcross;
  const std::int64_t first = row_tile * kRowsOfBlock;
  const std::int64_t end = min(first + kRowsOfBlock, params.batches * params.length);
  if (32 * word >= params.keys) return;

  const DropoutKey key = with_forward(params.dropout_key, forward_of(params.dropout_key));
  const auto high = static_cast<std::uint32_t>(static_cast<std::uint64_t>(first) >> 32);
  DropoutColumns columns[kCalls];
#pragma unroll
  for (int call = 0; call < kCalls; ++call) {
    columns[call] =
        DropoutColumns(keys, key, static_cast<std::uint32_t>(kCalls * word) + call, high);
  }
#pragma unroll 1
  for (std::int64_t row = first + thread / kAcross; row < end; row += kRowsAtOnce) {
    // Nobody reads the decisions on keys that causality hides.
    if (params.is_causal && 32 * word > row - divide(row, params.length) * params.length) continue;
    auto* bits = reinterpret_cast<std::uint32_t*>(params.keep_bits + row * params.keep_bits_stride);
    bits[word] = draw_word(keys, DropoutRow(keys, key, static_cast<std::uint32_t>(row), high),
                           columns, below);
  }
}

}  // namespace

void launch_draw_keep_bits(const AttentionParams& params, Stream stream) {
  const std::int64_t rows = params.batches * params.length;
  if (params.dropout_threshold == 0) {  // p rounds to 0: no half-word is below
    use_device(stream.device);
    TENON_CUDA_CHECK(cudaMemsetAsync(params.keep_bits, 0xff,
                                     static_cast<std::size_t>(rows * params.keep_bits_stride),
                                     stream.handle));
    return;
  }
  const std::int64_t column_tiles = ceil_div(params.keys, 32 * kAcross);
  const std::uint32_t below = params.dropout_threshold - 1;
  launch(stream, "attention_dropout", draw_keep_bits_kernel,
         ceil_div(rows, kRowsOfBlock) * column_tiles, kThreads, 0, params,
         PhiloxKeys(params.dropout_key.seed),
         {below * 0x10001U, (0x10000U - below) % 0x10000U * 0x10001U}, column_tiles);
}

}  // namespace tenon::cuda
