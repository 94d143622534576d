// The shape rule of a bias that a fused op adds to every row.
#pragma once

#include "tensor/op.h"
#include "tensor/support/check.h"

namespace tenon::ops {

/// ShapeError unless operand `vector` is (N) and operand `input` is (…, N).
inline void require_last_axis_vector(const InferContext& context, int input, int vector) {
  const auto operand = [&](int i) {
    return context.op().operands[static_cast<std::size_t>(i)].name;
  };
  const Shape& of_input = context[input].shape;
  const Shape& of_vector = context[vector].shape;
  TENON_CHECK(of_input.rank() >= 1, ShapeError, "[{}] {} {}; needed (…, N)", context.op().name,
              operand(input), of_input.to_string());
  TENON_CHECK(of_vector.rank() == 1 && unify(of_vector[0], of_input[-1]), ShapeError,
              "[{}] {} {} and {} {}; needed the shape ({},)", context.op().name, operand(input),
              of_input.to_string(), operand(vector), of_vector.to_string(),
              of_input[-1].to_string());
}

}  // namespace tenon::ops
