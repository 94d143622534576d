// The ceiling that CPU figures are compared with: a bare Eigen product, without anything of ours.
#pragma once

#include <cstdint>

namespace tenon::cpu {

/// GFLOP/s of a float32 product of two n x n matrices by Eigen on all threads (each computes a band
/// of rows): the median of `repeats` timings after a warm-up.
double bare_product_gflops(std::int64_t n, int repeats = 9);

}  // namespace tenon::cpu
