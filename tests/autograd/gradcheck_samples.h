// Samples of differentiable ops for gradcheck: a table per family of ops. Add an entry here with
// each new op; the coverage test names the ops that have none.
#pragma once

#include <string>
#include <vector>

#include "autograd/gradcheck.h"
#include "tensor/interpreter.h"
#include "tests/tensor/layouts.h"

namespace tenon::test {

inline constexpr Memory kDense = Memory::contiguous;
inline constexpr Memory kPermuted = Memory::permuted;
inline constexpr Memory kNarrowed = Memory::narrowed;
inline constexpr Memory kExpanded = Memory::expanded;

struct GradcheckSample {
  std::string op;    // the name of the op that it calls
  std::string what;  // what is particular about the sample
  TensorFunction f;
  std::vector<Tensor> inputs;  // gradients are checked for those that require one
  GradcheckOptions options = {};
};
using Samples = std::vector<GradcheckSample>;

/// Away from 0 and 1, where many functions have kinks or poles: both signs, 0.2 <= |x| < 2 without
/// (0.9, 1.1). Values of different seeds differ.
Tensor leaf(const Extents& sizes, Memory memory = Memory::contiguous, unsigned seed = 1);
/// Uniform in [low, high).
Tensor leaf_in(double low, double high, const Extents& sizes, Memory memory = Memory::contiguous,
               unsigned seed = 1);
/// A bool constant, about half of it true.
Tensor mask(const Extents& sizes, unsigned seed = 1);
/// An int64 constant of these values.
Tensor indices(const std::vector<std::int64_t>& values, const Extents& sizes);

Samples pointwise_samples();
Samples matrix_samples();  // products, normalization, dropout
Samples reduction_samples();
Samples shape_samples();   // views, copies, lookups
Samples model_samples();   // attention, losses
Samples vision_samples();  // convolution, pooling, batch_norm

}  // namespace tenon::test
