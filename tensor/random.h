// The generator behind dropout and random tensors. Dropout masks are a function of (seed, forward
// number, site, element index); see philox.h for the exact counter layout.
#pragma once

#include <cstdint>

#include "tensor/op.h"

namespace tenon {

/// Seed and forward number of the dropout sequence, plus a counter for random tensors. One mutating
/// thread at a time.
class Generator {
 public:
  explicit Generator(std::uint64_t seed = 0) : seed_(seed) {}
  void manual_seed(std::uint64_t seed) { *this = Generator(seed); }
  std::uint64_t seed() const { return seed_; }
  /// The state that the current forward's masks are drawn with.
  RandomState state() const { return {seed_, forward_}; }
  void set_forward(std::uint32_t forward) { forward_ = forward; }
  /// Starts the next forward; two forwards of one seed never share a mask.
  void advance_forward() { ++forward_; }
  /// A counter block no other random tensor of this generator uses.
  std::uint64_t next_tensor_stream() { return tensor_stream_++; }

 private:
  std::uint64_t seed_;
  std::uint32_t forward_ = 0;
  std::uint64_t tensor_stream_ = 0;
};

/// The generator that eager calls, Programs and factories use unless given another.
Generator& default_generator();
/// Seeds the default generator and restarts its forward numbers.
void manual_seed(std::uint64_t seed);

}  // namespace tenon
