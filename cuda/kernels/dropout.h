// What every kernel with dropout in it needs; the masks themselves are tensor/philox.h's.
#pragma once

#include "tensor/kernel.h"
#include "tensor/ops/plain_attributes.h"
#include "tensor/philox.h"

namespace tenon::cuda {

struct DropoutParams {
  DropoutKey key{};
  std::uint32_t threshold = 0;  // of dropout_bits8; unused when inactive
  double scale = 1;             // of kept values: 1/(1 - p)
  bool active = false;
};

/// Inactive in evaluation and for p == 0: then every value is kept as it is.
inline DropoutParams dropout_params(double p, DropoutMode mode, std::int64_t site,
                                    const KernelArgs& args) {
  if (!drops(mode, p, args.training)) return {};
  const DropoutKey key{args.random.seed, args.random.forward, static_cast<std::uint32_t>(site),
                       args.random.forward_cell};
  return {key, dropout_threshold(p), p < 1 ? 1 / (1 - p) : 0, true};
}

#if defined(__CUDACC__)
/// Bit i is set when column 8·group + i of `row` is kept.
__device__ __forceinline__ std::uint32_t kept_bits(const DropoutParams& dropout, std::int64_t row,
                                                   std::int64_t group) {
  return dropout.active ? dropout_bits8(dropout.key, row, group, dropout.threshold) : 0xffU;
}
#endif

}  // namespace tenon::cuda
