// What sum, mean, amax and amin share: axes and shapes.
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
/// infer_reduction for ops that have no value for nothing: ShapeError when a reduced axis is empty.
std::vector<TensorSpec> infer_extremum(const InferContext& context);

/// A call of a reduction op, its axes normalized.
Tensor call_reduction(const Op& op, const Tensor& input, const std::vector<std::int64_t>& dim,
                      bool keepdim);

/// An op of one operand and ReduceAttrs.
inline Op reduction_op(std::string name, std::string doc, Op::Infer infer, Kernel cpu) {
  return OpBuilder(std::move(name))
      .doc(std::move(doc))
      .operand("input")
      .infer(infer)
      .cpu(cpu)
      .done();
}

}  // namespace tenon::ops
