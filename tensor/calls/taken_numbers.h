// What a random call has taken when it is refused: nothing.
#pragma once

#include <cstdint>
#include <optional>

#include "tensor/random.h"

namespace tenon::ops {

/// Lives while a random call takes its site, is checked and runs: outside of modules it draws with
/// the state that its site belongs to, whatever other threads take meanwhile. Where an exception
/// ends it, the module call, the recording and `generator` number the next call as if this one had
/// not been.
class TakenNumbers {
 public:
  explicit TakenNumbers(Generator& generator = default_generator());
  ~TakenNumbers();
  TakenNumbers(const TakenNumbers&) = delete;
  TakenNumbers& operator=(const TakenNumbers&) = delete;

 private:
  const RandomCallNumbers before_;
  const std::optional<RandomState> outer_call_;
  const std::int64_t site_;
  const bool forward_begun_;
  const int exceptions_;
};

}  // namespace tenon::ops
