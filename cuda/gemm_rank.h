// How long cuBLASLt's algorithms for Hopper are expected to take: its own order goes by how many
// multiprocessors tiles fill, and is up to twice as slow as another of its candidates.
#pragma once

#include <optional>
#include <span>

#include "cuda/gemm.h"
#include "cuda/gemm_table.h"

namespace tenon::cuda {

/// What the time of an algorithm depends on; sizes are in elements, along n and along m.
struct TileShape {
  int n = 0, m = 0;
  int cluster_n = 1, cluster_m = 1;  // blocks that share what they read
  int parts = 1;                     // of the sum over k
  bool wide_along_n = true;          // the tensor cores' 64 rows lie along n
  bool cooperates = false;           // two warpgroups compute one tile: no epilogue beside products
};

/// Nothing for another kind of algorithm.
std::optional<TileShape> tile_shape_of(const GemmAlgorithm& algorithm);

/// Microseconds on an H200, to some 7%. A pure function, fitted to 300 products of 16-bit floats.
double expected_us(const GemmProblem& problem, const TileShape& shape, int multiprocessors);

/// Which of the algorithms, the library's favourite first, is to be taken: the one that is expected to
/// be fastest among those whose shape is known, else the first.
std::size_t choose_algorithm(const GemmProblem& problem, std::span<const GemmAlgorithm> algorithms,
                             int multiprocessors);

}  // namespace tenon::cuda
