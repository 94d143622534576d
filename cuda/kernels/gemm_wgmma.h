// Matrix products of 16-bit floats by Tenon's own kernel for compute capability 9.0, whose epilogues run
// beside the next tile's products.
#pragma once

#include "cuda/device_limits.h"
#include "cuda/gemm.h"

namespace tenon::cuda {

/// Whether gemm_wgmma can take the problem on such a GPU: 16-bit floats in and out, a batch of 1,
/// no addend, A not transposed, rows of all matrices aligned to 16 bytes.
bool gemm_wgmma_takes(const GemmProblem& problem, const DeviceLimits& limits);

/// Whether rows of A and B begin at multiples of 32 bytes: of others the copy engine reads a fifth more,
/// and takes up to twice as long.
bool reads_whole_sectors(const GemmProblem& problem);

/// Whether that is so and its tiles fill half of an H200's multiprocessors: with fewer, a kernel with smaller tiles and
/// an activation of its own take less time.
bool gemm_wgmma_fills(const GemmProblem& problem);

/// Whether it is taken before cuBLASLt: where every multiprocessor of an H200 has tiles for both
/// warpgroups, and at most a tenth, with an activation a quarter, of what whole waves of tiles cover lies
/// outside of D. Beside it there, 3%
/// slower (32768 x 768 by 3072 with a bias) to 14% faster (32768 x 3072 by 768).
bool gemm_wgmma_prefers(const GemmProblem& problem);

/// Queues a product that gemm_wgmma_takes. With gelu_gradient, `activation`, if given, is (m, n) and
/// gets gelu(aux), which costs little here as aux is read anyway.
void gemm_wgmma(Stream stream, const char* name, const GemmProblem& problem,
                void* activation = nullptr);

}  // namespace tenon::cuda
