// Launches of the kernels that make random tensors; random.cpp reads the attributes, random.cu
// computes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tensor/calls/random_values.h"
#include "tensor/kernel.h"

namespace tenon::cuda {

// Each fills args.outputs[0], which is contiguous.
void fill_normal(const KernelArgs& args, const DropoutKey& key);
void fill_uniform(const KernelArgs& args, const DropoutKey& key,
                  const random_values::UniformRange& range);
/// Integers of [low, low + range).
void fill_integers(const KernelArgs& args, const DropoutKey& key, std::int64_t low,
                   std::uint64_t range);
void fill_permutation(const KernelArgs& args, const DropoutKey& key);
/// Bytes of workspace that fill_permutation needs for n elements.
std::size_t permutation_workspace(std::int64_t n);

}  // namespace tenon::cuda
