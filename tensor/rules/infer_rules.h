// Shape rules that several ops share. Errors name the op in brackets and print the shapes.
#pragma once

#include <string_view>

#include "tensor/interpreter.h"
#include "tensor/op.h"
#include "tensor/tensor.h"

namespace tenon::ops {

/// NumPy's rule, from the last axis on: equal sizes, or one of them 1. Symbolic sizes unify.
Shape broadcast_shapes(std::string_view op, const Shape& a, const Shape& b);
/// An axis in [-rank, rank) made non-negative; ShapeError otherwise. Rank 0 counts as rank 1.
std::int64_t normalize_axis(std::string_view op, std::int64_t axis, int rank);
/// normalize_axis for a front end: in a pattern, where ranks are unknown, the axis as it is.
std::int64_t axis_of(std::string_view op, const Tensor& input, std::int64_t axis);
/// Each axis normalized, sorted, without repeats (ShapeError); in a pattern as they are.
std::vector<std::int64_t> axes_of(std::string_view op, const Tensor& input,
                                  std::vector<std::int64_t> axes);
/// DTypeError unless all present operands have the dtype of operand 0. It names the two that differ,
/// their dtypes and shapes, and which to convert.
void require_same_dtype(const InferContext& context);
/// The same of operands i and j, which are present.
void require_same_dtype(const InferContext& context, int i, int j);
/// Whether two shapes are equal; symbolic sizes unify.
bool same_sizes(const Shape& a, const Shape& b);
/// ShapeError unless operands i and j have one shape.
void require_same_shape(const InferContext& context, int i, int j);
/// DTypeError unless operand i is float32, float64, float16 or bfloat16.
void require_floating(const InferContext& context, int i);
/// The output of a pointwise op with one operand: its spec.
std::vector<TensorSpec> infer_like_input(const InferContext& context);
/// infer_like_input for floating operands only.
std::vector<TensorSpec> infer_float_like_input(const InferContext& context);

/// For Kernel::accepts: any strides.
inline bool any_layout(int, const TensorView&) { return true; }
/// For Kernel::accepts: the last axis has stride 1 (or size <= 1), the others are free.
bool last_axis_dense(int operand, const TensorView& view);
/// True inside a pattern, where ranks and sizes are unknown.
inline bool in_pattern() { return current_interpreter().is_pattern(); }

}  // namespace tenon::ops
