// Random numbers of dropout for many rows and columns: what tensor/philox.h defines, bit for bit, with the
// work of the first three rounds shared between calls. For host and device code.
//
// A call's counter is (group of columns, row, high | site, forward number); the third word is the same
// for rows that agree in their high bits. With M0·x and M1·x standing for 64-bit products, (hi, lo):
//
//   word       counter     after round 1           after round 2             after round 3
//   0          group       hi(M1·c2)^row^k  [r]    hi(M1·w2)^w1^k  [c]       hi(M1·w2)^w1^k
//   1          row         lo(M1·c2)        [-]    lo(M1·w2)       [c]       lo(M1·w2)
//   2          c2          hi(M0·c0)^c3^k   [c]    hi(M0·w0)^w3^k  [r^c]     hi(M0·w0)^w3^k  [c^r]
//   3          forward     lo(M0·c0)        [c]    lo(M0·w0)       [r]       lo(M0·w0)       [c]
//
// [c] depends on the column group alone, [r] on the row alone, [-] on neither. So of the six products of
// three rounds a call is left with one, M1·w2 of round 3; what the others give is a DropoutColumns or a
// DropoutRow, and round 3 reads w1^k, w3^k, hi(M0·w0)^k and lo(M0·w0) of the column.
#pragma once

#include <cstdint>

#include "tensor/philox.h"

namespace tenon::cuda {

/// Philox's keys of all rounds, made once a launch.
struct PhiloxKeys {
  std::uint32_t low[10];
  std::uint32_t high[10];

  explicit PhiloxKeys(std::uint64_t seed) {
    for (std::uint32_t round = 0; round < 10; ++round) {
      low[round] = static_cast<std::uint32_t>(seed) + round * 0x9E3779B9U;
      high[round] = static_cast<std::uint32_t>(seed >> 32) + round * 0xBB67AE85U;
    }
  }
};

/// The two products of a round, as high and low words.
struct PhiloxProduct {
  std::uint32_t high, low;
};
TENON_HOST_DEVICE PhiloxProduct philox_product0(std::uint32_t word) {
  const std::uint64_t product = std::uint64_t{0xD2511F53U} * word;
  return {static_cast<std::uint32_t>(product >> 32), static_cast<std::uint32_t>(product)};
}
TENON_HOST_DEVICE PhiloxProduct philox_product1(std::uint32_t word) {
  const std::uint64_t product = std::uint64_t{0xCD9E8D57U} * word;
  return {static_cast<std::uint32_t>(product >> 32), static_cast<std::uint32_t>(product)};
}

/// What rounds 1 to 3 make of the row. `high`: the row's bits from 32 on.
struct DropoutRow {
  PhiloxProduct round2;  // M0·w0

  TENON_HOST_DEVICE DropoutRow(const PhiloxKeys& keys, const DropoutKey& key, std::uint32_t row,
                               std::uint32_t high)
      : round2(philox_product0(philox_product1((high << 24) | key.site).high ^ row ^ keys.low[0])) {
  }
};

/// What rounds 1 to 3 make of a group of 8 columns; all rows it meets have the same bits from 32 on.
struct DropoutColumns {
  std::uint32_t round2_word3, round3_word1;  // with the key of the round that reads them
  PhiloxProduct round3;                      // M0·w0, high with the round's key

  DropoutColumns() = default;
  TENON_HOST_DEVICE DropoutColumns(const PhiloxKeys& keys, const DropoutKey& key,
                                   std::uint32_t group, std::uint32_t high) {
    const PhiloxProduct of_group = philox_product0(group);
    const PhiloxProduct of_site = philox_product1((high << 24) | key.site);
    const PhiloxProduct round2 = philox_product1(of_group.high ^ key.forward ^ keys.high[0]);
    round2_word3 = of_group.low ^ keys.high[1];
    round3_word1 = round2.low ^ keys.low[2];
    round3 = philox_product0(round2.high ^ of_site.low ^ keys.low[1]);
    round3.high ^= keys.high[2];
  }
};

/// dropout_random8 of one row and group of columns; key.forward of both is the forward number itself.
TENON_HOST_DEVICE PhiloxBlock dropout_random8(const PhiloxKeys& keys, const DropoutRow& row,
                                              const DropoutColumns& columns) {
  const PhiloxProduct round3 = philox_product1(row.round2.high ^ columns.round2_word3);
  PhiloxBlock block{{round3.high ^ columns.round3_word1, round3.low,
                     columns.round3.high ^ row.round2.low, columns.round3.low}};
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
  for (int round = 3; round < 10; ++round) {
    const PhiloxProduct product0 = philox_product0(block.word[0]);
    const PhiloxProduct product1 = philox_product1(block.word[2]);
    block = {{product1.high ^ block.word[1] ^ keys.low[round], product1.low,
              product0.high ^ block.word[3] ^ keys.high[round], product0.low}};
  }
  return block;
}

}  // namespace tenon::cuda
