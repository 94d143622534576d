// The loops of multiply_panels for one width of vectors. All of it is local to the source that
// includes it, which may be compiled for a processor that others are not: it calls nothing inline.
#pragma once

#include "tensor/cpu/panels.h"

namespace tenon::cpu {
namespace {

template <class C, int kBytes>
struct WideTypes;
template <>
struct WideTypes<float, 32> {
  typedef float Values __attribute__((vector_size(32)));
};
template <>
struct WideTypes<float, 64> {
  typedef float Values __attribute__((vector_size(64)));
};
template <>
struct WideTypes<double, 32> {
  typedef double Values __attribute__((vector_size(32)));
};
template <>
struct WideTypes<double, 64> {
  typedef double Values __attribute__((vector_size(64)));
};
/// A vector of kBytes.
template <class C, int kBytes>
using Wide = typename WideTypes<C, kBytes>::Values;

template <class V, class C>
__attribute__((always_inline)) inline V load_wide(const C* source) {
  V result;
  __builtin_memcpy(&result, source, sizeof result);
  return result;
}

/// kRowPanels x kColumnPanels panels of the result, held in registers. With kPacked, a_row is 1.
template <class C, int kBytes, int kRowPanels, int kColumnPanels, bool kPacked>
__attribute__((always_inline)) inline void multiply_block(const PanelProduct<C>& p, const C* a,
                                                          const C* b, C* out) {
  using V = Wide<C, kBytes>;
  constexpr int kVectorLanes = kBytes / static_cast<int>(sizeof(C));
  constexpr int kPanelVectors = kPanelColumns<C> / kVectorLanes;
  constexpr int kVectors = kColumnPanels * kPanelVectors;
  const std::int64_t a_row = kPacked ? 1 : p.a_row;
  V sums[kRowPanels * kPanelRows][kVectors] = {};
  for (std::int64_t k = 0; k < p.depth; ++k) {
    V columns[kVectors];
    for (int j = 0; j < kVectors; ++j) {
      const C* source = b + j / kPanelVectors * p.b_panel + j % kPanelVectors * kVectorLanes;
      columns[j] = load_wide<V>(source);
    }
    for (int i = 0; i < kRowPanels * kPanelRows; ++i) {
      const C value = a[i / kPanelRows * p.a_panel + i % kPanelRows * a_row];
      for (int j = 0; j < kVectors; ++j) sums[i][j] += value * columns[j];
    }
    a += p.a_depth;
    b += kPanelColumns<C>;
  }
  for (int i = 0; i < kRowPanels * kPanelRows; ++i) {
    for (int j = 0; j < kVectors; ++j) {
      C* target = out + i * p.out_row + j * kVectorLanes;
      const V result = p.accumulate ? sums[i][j] + load_wide<V>(target) : sums[i][j];
      __builtin_memcpy(target, &result, sizeof result);
    }
  }
}

/// Whole blocks of the result, then the panels that are left of its rows and columns.
template <class C, int kBytes, int kRowPanels, int kColumnPanels, bool kPacked>
void multiply_blocks(const PanelProduct<C>& p) {
  constexpr std::int64_t kColumns = kColumnPanels * kPanelColumns<C>;
  constexpr std::int64_t kRows = kRowPanels * kPanelRows;
  for (std::int64_t j = 0; j < p.columns;) {
    const bool whole_columns = j + kColumns <= p.columns;
    const C* b = p.b + j / kPanelColumns<C> * p.b_panel;
    for (std::int64_t i = 0; i < p.rows;) {
      const bool whole_rows = i + kRows <= p.rows;
      const C* a = p.a + i / kPanelRows * p.a_panel;
      C* out = p.out + i * p.out_row + j;
      if (whole_rows && whole_columns) {
        multiply_block<C, kBytes, kRowPanels, kColumnPanels, kPacked>(p, a, b, out);
      } else if (whole_rows) {
        multiply_block<C, kBytes, kRowPanels, 1, kPacked>(p, a, b, out);
      } else if (whole_columns) {
        multiply_block<C, kBytes, 1, kColumnPanels, kPacked>(p, a, b, out);
      } else {
        multiply_block<C, kBytes, 1, 1, kPacked>(p, a, b, out);
      }
      i += whole_rows ? kRows : kPanelRows;
    }
    j += whole_columns ? kColumns : kPanelColumns<C>;
  }
}

/// kRowPanels x kColumnPanels: as many as fill the registers.
template <int kBytes, int kRowPanels, int kColumnPanels, class C>
void multiply_all(const PanelProduct<C>& p) {
  if (p.a_row == 1) return multiply_blocks<C, kBytes, kRowPanels, kColumnPanels, true>(p);
  multiply_blocks<C, kBytes, kRowPanels, kColumnPanels, false>(p);
}

}  // namespace
}  // namespace tenon::cpu
