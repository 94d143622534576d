// Products of packed panels: the same bits with vectors of either width, and the naive sums.
#include "tensor/cpu/panels.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "tensor/dtype.h"

namespace tenon::cpu {
namespace {

template <class C>
std::vector<C> random_values(std::int64_t n, unsigned seed) {
  std::mt19937 engine(seed);
  std::uniform_real_distribution<double> uniform(-1, 1);
  std::vector<C> values(static_cast<std::size_t>(n));
  for (C& value : values) value = static_cast<C>(uniform(engine));
  return values;
}

/// Every combination of whole and left-over panels, packed and strided, stored and accumulated.
template <class C>
void check() {
  constexpr std::int64_t kColumns = kPanelColumns<C>;
  for (const std::int64_t rows : {6, 12, 18, 30}) {
    for (const std::int64_t columns : {kColumns, 2 * kColumns, 3 * kColumns}) {
      for (const std::int64_t depth : {0, 1, 7, 64}) {
        for (const bool packed : {true, false}) {
          for (const bool accumulate : {true, false}) {
            const auto a = random_values<C>(rows * depth + 1, 1);
            const auto b = random_values<C>(columns * depth + 1, 2);
            const std::int64_t out_row = columns + 3;
            const auto before = random_values<C>(rows * out_row, 3);
            auto out = before;
            const PanelProduct<C> p{.a = a.data(),
                                    .a_panel = kPanelRows * depth,
                                    .a_row = packed ? 1 : depth,
                                    .a_depth = packed ? kPanelRows : 1,
                                    .b = b.data(),
                                    .b_panel = depth * kColumns,
                                    .depth = depth,
                                    .rows = rows,
                                    .columns = columns,
                                    .out = out.data(),
                                    .out_row = out_row,
                                    .accumulate = accumulate};
            multiply_panels(p);
            for (std::int64_t r = 0; r < rows; ++r) {
              for (std::int64_t n = 0; n < out_row; ++n) {
                const auto at = static_cast<std::size_t>(r * out_row + n);
                C sum = 0;
                for (std::int64_t k = 0; n < columns && k < depth; ++k) {
                  const C x = a[static_cast<std::size_t>(r / kPanelRows * p.a_panel +
                                                         r % kPanelRows * p.a_row + k * p.a_depth)];
                  const C y = b[static_cast<std::size_t>(n / kColumns * p.b_panel + k * kColumns +
                                                         n % kColumns)];
                  sum += x * y;
                }
                if (n >= columns) {
                  ASSERT_EQ(out[at], before[at]) << "beside the result";
                } else {
                  const C expected = accumulate ? sum + before[at] : sum;
                  ASSERT_NEAR(out[at], expected,
                              64 * unit_roundoff(dtype_of<C>) * (1 + static_cast<double>(depth)));
                }
              }
            }
          }
        }
      }
    }
  }
}

TEST(Panels, AgreeWithTheNaiveSums) {
  check<float>();
  check<double>();
}

}  // namespace
}  // namespace tenon::cpu
