// Dropout masks on the CPU: the plan of one call and its application to a row. The mask itself is
// tensor/philox.h's; attention and bias_dropout_residual_layer_norm share these functions.
#pragma once

#include <cstdint>
#include <string_view>

#include "tensor/op.h"
#include "tensor/ops/attributes.h"
#include "tensor/philox.h"

namespace tenon::cpu {

/// What a dropout call does to the rows of its operand.
struct DropoutPlan {
  bool active = false;  // false: the identity
  DropoutKey key{};
  std::uint32_t threshold = 0;
  double scale = 1;  // of kept elements: 1/(1-p); 0 for p == 1, where none is kept
};

/// The plan of a call of `op` on (rows, cols) elements. ShapeError or ValueError when rows, cols or
/// the site exceed what the mask's counter can tell apart.
DropoutPlan plan_dropout(std::string_view op, const DropoutAttrs& attrs, const KernelArgs& args,
                         std::int64_t rows, std::int64_t cols);

/// x[i] = scale · x[i] where column `first_col` + i of `row` is kept, else 0, also for NaN and Inf.
/// `first_col` is a multiple of 8. `keep_bits`, where given, gets the decisions: ceil(n/8) bytes, bit i
/// of byte j for x[8j + i].
template <class C>
void dropout_row(C* x, std::int64_t n, const DropoutPlan& plan, C scale, std::int64_t row,
                 std::int64_t first_col, std::uint8_t* keep_bits = nullptr);

/// The kernel of op dropout: any shape whose last axis is dense -> row-major or permuted.
void dropout(const KernelArgs& args);

}  // namespace tenon::cpu
