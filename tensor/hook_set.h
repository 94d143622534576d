// HookSet: which hooks a module or a tensor has, for what recorded them and must notice a change.
#pragma once

#include <cstdint>
#include <vector>

namespace tenon {

/// Numbers of hooks, in the order they were added. No number comes twice.
class HookSet {
 public:
  /// Adds a hook and returns its number.
  std::int64_t add() {
    numbers_.push_back(next_);
    return next_++;
  }
  void remove(std::int64_t number) { std::erase(numbers_, number); }
  const std::vector<std::int64_t>& numbers() const { return numbers_; }

 private:
  std::vector<std::int64_t> numbers_;
  std::int64_t next_ = 1;
};

}  // namespace tenon
