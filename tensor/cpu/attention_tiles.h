// What attention's forward and backward kernels share on the CPU: the sizes of a call, masks, and
// products of small row-major blocks with packed panels.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <string_view>

#include "tensor/cpu/dropout.h"
#include "tensor/cpu/gemm.h"
#include "tensor/cpu/rows.h"
#include "tensor/ops/attributes.h"

namespace tenon::cpu {

inline constexpr std::int64_t kQueryBlock = 48;  // queries that one task holds; whole panels

constexpr std::int64_t round_up(std::int64_t n, std::int64_t unit) {
  return (n + unit - 1) / unit * unit;
}

/// Sizes and strides of one call. "Head" is one index of all leading axes together; `group` heads that follow
/// each other read the same head of key and value.
struct AttentionProblem {
  TensorView query, key, value;
  TensorView mask;  // broadcast to the scores' rank, stride 0 along broadcast axes
  Extents heads;    // sizes of the leading axes
  Extents key_heads;  // of key and value
  std::int64_t group;
  std::int64_t queries, keys, depth, value_depth;
  double scale;
  bool causal;
  DropoutPlan dropout;

  std::int64_t offset(const TensorView& view, std::int64_t head) const {
    return offset_of(head, heads, view.strides);
  }
  /// Of key, value or their gradients.
  std::int64_t key_offset(const TensorView& view, std::int64_t key_head) const {
    return offset_of(key_head, key_heads, view.strides);
  }
  /// Keys that queries before `end` see, counted from the first.
  std::int64_t visible_keys(std::int64_t end) const { return causal ? std::min(keys, end) : keys; }
};

/// `mask` with the sizes of the scores and stride 0 where it is repeated.
TensorView broadcast_mask(const TensorView& mask, const Extents& scores);

/// The problem of `operands` (query, key, value) and `mask`, which may be absent; `op` is for errors.
AttentionProblem attention_problem(std::string_view op, const KernelArgs& args,
                                   const AttentionAttrs& attrs,
                                   std::span<const TensorView> operands, const TensorView& mask);

/// Adds the mask to the scores of one row: keys [first_key, first_key + n).
template <class T>
void mask_row(const AttentionProblem& p, std::int64_t head, std::int64_t query,
              std::int64_t first_key, std::int64_t n, compute_type<T>* scores);

/// Packs `count` lines (rows or columns of a matrix) of `depth` elements into panels of
/// kPanelColumns lines: the right-hand operand of `multiply`.
template <class T>
void pack_lines(const T* data, std::int64_t count, std::int64_t line_stride, std::int64_t depth,
                std::int64_t depth_stride, compute_type<T>* out) {
  constexpr int kWidth = kPanelColumns<compute_type<T>>;
  for (std::int64_t first = 0; first < count; first += kWidth) {
    const int present = static_cast<int>(std::min<std::int64_t>(kWidth, count - first));
    std::int64_t offsets[kWidth];
    for (int i = 0; i < present; ++i) offsets[i] = (first + i) * line_stride;
    pack_panel<kWidth, T>(data, offsets, present, depth, depth_stride, out + first * depth);
  }
}

/// The left-hand operand of `multiply`: element (r, k) is at data[r · row + k · depth].
template <class C>
struct Strided {
  const C* data;
  std::int64_t row;
  std::int64_t depth = 1;
};

/// out (rows, columns) = or += a (rows, depth)·packed panels, rows and columns in whole panels.
template <class C>
void multiply(Strided<C> a, const C* panels, std::int64_t panel_stride, std::int64_t depth,
              std::int64_t rows, std::int64_t columns, C* out, std::int64_t out_stride,
              bool accumulate) {
  multiply_panels<C>({.a = a.data,
                      .a_panel = kPanelRows * a.row,
                      .a_row = a.row,
                      .a_depth = a.depth,
                      .b = panels,
                      .b_panel = panel_stride,
                      .depth = depth,
                      .rows = rows,
                      .columns = columns,
                      .out = out,
                      .out_row = out_stride,
                      .accumulate = accumulate});
}

}  // namespace tenon::cpu
