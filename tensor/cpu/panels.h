// Products of packed panels: the inner loops of every matrix product on the CPU. They exist for
// vectors of 32 and of 64 bytes and run as the processor allows; each element is the same chain of
// multiply-adds in both, so results do not depend on the processor's vectors.
#pragma once

#include <cstdint>

#include "tensor/cpu/vector.h"

namespace tenon::cpu {

inline constexpr int kPanelRows = 6;
template <class C>
inline constexpr int kPanelColumns = 2 * kLanes<C>;

/// out (rows, columns) = or += A (rows, depth)·B (depth, columns); rows and columns in whole panels.
/// Element (r, k) of A is a[r / kPanelRows · a_panel + r % kPanelRows · a_row + k · a_depth], element
/// (k, n) of B is b[n / kPanelColumns · b_panel + k · kPanelColumns + n % kPanelColumns].
template <class C>
struct PanelProduct {
  const C* a;
  std::int64_t a_panel, a_row, a_depth;
  const C* b;
  std::int64_t b_panel;
  std::int64_t depth, rows, columns;
  C* out;
  std::int64_t out_row;
  bool accumulate;
};

/// C: float or double.
template <class C>
void multiply_panels(const PanelProduct<C>& product);

namespace detail {
void multiply_panels_64_bytes(const PanelProduct<float>& product);
void multiply_panels_64_bytes(const PanelProduct<double>& product);
}  // namespace detail

}  // namespace tenon::cpu
