// What sum, mean, var, amax, amin and argmax share: axes and shapes.
#pragma once

#include <array>
#include <vector>

#include "tensor/op.h"

namespace tenon::ops {

/// For each of `rank` axes whether it is reduced; no axes given means all.
std::array<bool, kMaxRank> reduced_axes(std::string_view op, const std::vector<std::int64_t>& dim,
                                        int rank);
/// The input's spec with the reduced axes removed, or of size 1 where keepdim.
std::vector<TensorSpec> infer_reduction(const InferContext& context);
/// The same for given axes.
std::vector<TensorSpec> infer_reduction(const InferContext& context,
                                        const std::vector<std::int64_t>& dim, bool keepdim);
/// infer_reduction for ops that have no value for nothing: ShapeError when a reduced axis is empty,
/// as the example of a symbolic size says; no guard, for lowering infers again with numbers.
std::vector<TensorSpec> infer_extremum(const InferContext& context);

/// Op::Vjp of amax and amin; they save operand and output.
std::vector<Tensor> vjp_extremum(const VjpContext& call);

/// A call of a reduction op, its axes normalized.
Tensor call_reduction(const Op& op, const Tensor& input, const std::vector<std::int64_t>& dim,
                      bool keepdim);

/// The number of elements of `shape` that are combined into one.
Dim reduced_count(std::string_view op, const std::vector<std::int64_t>& dim, const Shape& shape);
/// For a vjp: `reduced`, of the shape of the output of a reduction of `input`, with the reduced axes
/// as axes of size 1, so that it broadcasts to the input.
Tensor with_reduced_axes(std::string_view op, const Tensor& reduced, const Shape& input,
                         const std::vector<std::int64_t>& dim);

/// An op of one operand and ReduceAttrs.
inline OpBuilder reduction_op(std::string_view name, std::string_view doc, Op::Infer infer,
                              const Kernel& cpu) {
  OpBuilder builder(name);
  builder.doc(doc).operand("input").infer(infer).cpu(cpu);
  return builder;
}

}  // namespace tenon::ops
