// The tokens that a language model trains on: a file, or uniform random numbers.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tensor/tensor.h"

namespace tenon::bench {

struct TokenBatch {
  Tensor inputs;   // int64 (batch, seq)
  Tensor targets;  // the tokens that follow
};

class TokenStream {
 public:
  /// `count` tokens below `vocabulary`.
  static TokenStream random(std::int64_t count, std::int64_t vocabulary, std::uint64_t seed);
  /// A .bin file: little-endian 16-bit numbers. Any other: each byte is a token. ValueError when it
  /// cannot be read or holds a token that is not below `vocabulary`.
  static TokenStream read(const std::string& path, std::int64_t vocabulary);

  /// Row r of batch number `step` starts at token (step·batch + r)·seq mod (size - seq). ValueError
  /// when the stream is not longer than seq.
  TokenBatch batch(std::int64_t step, std::int64_t batch, std::int64_t seq) const;

 private:
  explicit TokenStream(std::vector<std::int64_t> tokens) : tokens_(std::move(tokens)) {}
  std::vector<std::int64_t> tokens_;
};

}  // namespace tenon::bench
