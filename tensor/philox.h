// Philox4x32-10, the dropout mask and the words of random tensors, for host and device code. This
// file alone fixes the counter layouts; CPU and CUDA kernels, eager and scheduled, forward and
// backward, all call dropout_bits8 and tensor_random4.
//
// Philox4x32-10: J. K. Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.
//
// Dropout, layout version 1. An operand of shape (..., cols) as traced is seen as rows x cols with
// row = index / cols. One Philox call serves 8 neighbouring columns, 16 bits an element:
//   key      = the 64-bit seed (low word, high word)
//   counter0 = col / 8
//   counter1 = row, low 32 bits
//   counter2 = row, high 8 bits << 24 | site (24 bits)
//   counter3 = forward number
//   element  = the (col % 8)-th 16-bit half-word, low half of each output word first
// An element is kept when its half-word >= dropout_threshold(p).
//
// Random tensors (randn, uniform, randint, randperm), layout version 1. Elements are numbered in
// row-major order; one Philox call serves 4 neighbours, 32 bits an element:
//   key      = the 64-bit seed (low word, high word)
//   counter0 = element / 4, low 32 bits
//   counter1 = element / 4, high 31 bits; its top bit is set for the second 32 bits of an element,
//              which 64-bit dtypes, randint and randperm have behind the first: more digits of it
//   counter2 = in a module call the site; outside of modules the stream, low 32 bits
//   counter3 = in a module call the forward number; outside the stream's high 30 bits, top bit set
//   element  = word element % 4
// One call of a forward has a site, dropout or random tensor, and forward numbers are below 2^31:
// so no two calls of one seed share a counter.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define TENON_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define TENON_HOST_DEVICE inline
#endif

namespace tenon {

struct PhiloxBlock {
  std::uint32_t word[4];
};

/// Ten rounds of Philox4x32.
TENON_HOST_DEVICE PhiloxBlock philox4x32_10(PhiloxBlock counter, std::uint32_t key0,
                                            std::uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t product0 = std::uint64_t{0xD2511F53U} * counter.word[0];
    const std::uint64_t product1 = std::uint64_t{0xCD9E8D57U} * counter.word[2];
    const PhiloxBlock next{{static_cast<std::uint32_t>(product1 >> 32) ^ counter.word[1] ^ key0,
                            static_cast<std::uint32_t>(product1),
                            static_cast<std::uint32_t>(product0 >> 32) ^ counter.word[3] ^ key1,
                            static_cast<std::uint32_t>(product0)}};
    counter = next;
    key0 += 0x9E3779B9U;
    key1 += 0xBB67AE85U;
  }
  return counter;
}

/// Limits of the counter layout; larger operands or sites are refused.
inline constexpr std::int64_t kMaxDropoutRows = std::int64_t{1} << 40;
inline constexpr std::int64_t kMaxDropoutCols = std::int64_t{1} << 35;
inline constexpr std::int64_t kMaxDropoutSites = std::int64_t{1} << 24;
/// Sites from here on are those of calls outside of modules.
inline constexpr std::int64_t kFirstOuterSite = kMaxDropoutSites / 2;
inline constexpr std::uint32_t kMaxForward = 0x7fffffff;
/// Marks the site of a random tensor that has a stream of its own: the other bits are its number.
inline constexpr std::int64_t kStreamSite = std::int64_t{1} << 62;

/// Which mask a dropout call, or which words a random tensor draws: the generator's state and the
/// site.
struct DropoutKey {
  std::uint64_t seed;
  std::uint32_t forward;
  std::uint32_t site;
  const std::uint32_t* forward_cell = nullptr;  // device memory that overrides `forward`
};

/// The forward number that the key stands for, read where it is used.
TENON_HOST_DEVICE std::uint32_t forward_of(const DropoutKey& key) {
#if defined(__CUDA_ARCH__)
  if (key.forward_cell != nullptr) return *key.forward_cell;
#endif
  return key.forward;
}

/// Half-words below this are dropped: round(p · 2^16).
TENON_HOST_DEVICE std::uint32_t dropout_threshold(double p) {
  return static_cast<std::uint32_t>(p * 65536.0 + 0.5);
}

/// The 8 half-words of columns 8·group … 8·group + 7 of `row`.
TENON_HOST_DEVICE PhiloxBlock dropout_random8(const DropoutKey& key, std::int64_t row,
                                              std::int64_t group) {
  const auto high = static_cast<std::uint32_t>(static_cast<std::uint64_t>(row) >> 32);
  return philox4x32_10({{static_cast<std::uint32_t>(group), static_cast<std::uint32_t>(row),
                         (high << 24) | key.site, forward_of(key)}},
                       static_cast<std::uint32_t>(key.seed),
                       static_cast<std::uint32_t>(key.seed >> 32));
}

/// Bit i is set when column 8·group + i of `row` is kept.
TENON_HOST_DEVICE std::uint32_t dropout_bits8(const DropoutKey& key, std::int64_t row,
                                              std::int64_t group, std::uint32_t threshold) {
  const PhiloxBlock random = dropout_random8(key, row, group);
  std::uint32_t bits = 0;
  for (int i = 0; i < 4; ++i) {
    bits |= static_cast<std::uint32_t>((random.word[i] & 0xffffU) >= threshold) << (2 * i);
    bits |= static_cast<std::uint32_t>((random.word[i] >> 16) >= threshold) << (2 * i + 1);
  }
  return bits;
}

/// Whether one element is kept; for kernels that visit single elements.
TENON_HOST_DEVICE bool dropout_keep(const DropoutKey& key, std::int64_t row, std::int64_t col,
                                    std::uint32_t threshold) {
  return ((dropout_bits8(key, row, col / 8, threshold) >> (col % 8)) & 1U) != 0;
}

/// The key of a random tensor. A stream has its number in place of site and forward number.
inline DropoutKey random_tensor_key(std::uint64_t seed, std::uint32_t forward,
                                    const std::uint32_t* forward_cell, std::int64_t site) {
  const auto low = static_cast<std::uint32_t>(site);
  if ((site & kStreamSite) == 0) return {seed, forward, low, forward_cell};
  return {seed, static_cast<std::uint32_t>((site & ~kStreamSite) >> 32) | 0x80000000U, low};
}

/// The first 32 bits of elements 4·group … 4·group + 3 of a random tensor, or their second ones.
TENON_HOST_DEVICE PhiloxBlock tensor_random4(const DropoutKey& key, std::int64_t group,
                                             bool second = false) {
  const auto number = static_cast<std::uint64_t>(group);
  return philox4x32_10({{static_cast<std::uint32_t>(number),
                         static_cast<std::uint32_t>(number >> 32) | (second ? 0x80000000U : 0U),
                         key.site, forward_of(key)}},
                       static_cast<std::uint32_t>(key.seed),
                       static_cast<std::uint32_t>(key.seed >> 32));
}

}  // namespace tenon
