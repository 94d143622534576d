// Products of a few rows with a weight stored by rows, as generating one token after another has them:
// what counts is the rate at which the weight is read.
#pragma once

#include "cuda/gemm.h"

namespace tenon::cuda {

/// Whether gemm_skinny can take the problem: at most 8 rows, 16-bit floats or float32, B stored as
/// (n, k), k and the strides of A's and B's rows multiples of 16 bytes, no second matrix beside D.
bool gemm_skinny_takes(const GemmProblem& problem);

/// Whether it is taken before others: beside cuBLASLt's best of 16 algorithms an H200 takes 0.55 to 1
/// times as long there, in bfloat16.
bool gemm_skinny_prefers(const GemmProblem& problem);

/// Queues a product that gemm_skinny_takes.
void gemm_skinny(Stream stream, const char* name, const GemmProblem& problem);

}  // namespace tenon::cuda
