// A text as training data: one token a byte, the last tenth held out for validation. Batches are a
// function of (seed, step), so a resumed run sees the batches that the interrupted one would have.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "tensor/tensor.h"

namespace gpt {

struct Batch {
  tenon::Tensor inputs;   // int64 (batch, seq)
  tenon::Tensor targets;  // the tokens that follow
};

class CharText {
 public:
  /// ValueError when the file cannot be read, is empty, or is too short for sequences of `seq`.
  CharText(const std::string& path, std::int64_t seq);

  /// The different bytes of the text, ascending; a token is an index into it.
  const std::string& vocabulary() const { return vocabulary_; }
  const std::vector<std::int64_t>& train() const { return train_; }
  const std::vector<std::int64_t>& validation() const { return validation_; }
  /// FNV-1a over the whole text.
  std::uint64_t hash() const { return hash_; }

  /// Sequences at random places of the training text.
  Batch training_batch(std::uint64_t seed, std::int64_t step, std::int64_t batch) const;
  std::int64_t validation_windows() const;
  /// Neighbouring windows [first, first + count) of the validation text.
  Batch validation_batch(std::int64_t first, std::int64_t count) const;
  /// Mean -log p(b|a) over the validation text, p counted on the training text with one added.
  double bigram_validation_loss() const;

  std::vector<std::int64_t> encode(const std::string& text) const;
  char decode(std::int64_t token) const { return vocabulary_[static_cast<std::size_t>(token)]; }

 private:
  std::int64_t seq_;
  std::string vocabulary_;
  std::vector<std::int64_t> train_, validation_;
  std::uint64_t hash_ = 0;
};

}  // namespace gpt
