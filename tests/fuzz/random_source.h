// Where random programs take their choices from: a seeded generator, or the bytes that libFuzzer
// mutates. Everything that is drawn follows from the choices, so a pair can be repeated exactly.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <iterator>
#include <span>
#include <vector>

namespace tenon::fuzz {

class RandomSource {
 public:
  virtual ~RandomSource() = default;
  /// A number in [0, bound), bound >= 1.
  virtual std::uint64_t below(std::uint64_t bound) = 0;

  /// A number in [low, high].
  std::int64_t between(std::int64_t low, std::int64_t high) {
    return low + static_cast<std::int64_t>(below(static_cast<std::uint64_t>(high - low + 1)));
  }
  /// True in `percent` of 100 cases.
  bool chance(int percent) { return below(100) < static_cast<std::uint64_t>(percent); }
  template <class T>
  T one_of(std::initializer_list<T> choices) {
    return *std::next(choices.begin(), static_cast<std::ptrdiff_t>(below(choices.size())));
  }
  template <class T>
  const T& one_of(const std::vector<T>& choices) {
    return choices[static_cast<std::size_t>(below(choices.size()))];
  }
};

/// SplitMix64 (Steele, Lea, Flood 2014): one stream for each (seed, index).
class SplitMix64 final : public RandomSource {
 public:
  SplitMix64(std::uint64_t seed, std::uint64_t index)
      : state_(mix(seed) ^ mix(index + 0x632be59bd9b4e019U)) {}

  std::uint64_t next() { return mix(state_ += kGamma); }
  /// The remainder's bias is below 2^-50 for the bounds used here.
  std::uint64_t below(std::uint64_t bound) override { return next() % bound; }

 private:
  static constexpr std::uint64_t kGamma = 0x9e3779b97f4a7c15U;
  static std::uint64_t mix(std::uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
    return z ^ (z >> 31);
  }
  std::uint64_t state_;
};

/// A byte a choice, two where the bound needs them; zeros once the bytes are used up.
class ByteSource final : public RandomSource {
 public:
  explicit ByteSource(std::span<const std::uint8_t> bytes) : bytes_(bytes) {}
  std::uint64_t below(std::uint64_t bound) override {
    std::uint64_t value = take();
    for (std::uint64_t reach = 256; reach < bound; reach <<= 8) value = value << 8 | take();
    return value % bound;
  }

 private:
  std::uint64_t take() { return next_ < bytes_.size() ? bytes_[next_++] : 0; }
  std::span<const std::uint8_t> bytes_;
  std::size_t next_ = 0;
};

}  // namespace tenon::fuzz
