#include "tensor/detail/update_rules.h"

#include "tensor/detail/check.h"
#include "tensor/ops/infer_rules.h"

namespace tenon::ops {
namespace {

const std::string& operand_name(const InferContext& context, int i) {
  return context.op().operands[static_cast<std::size_t>(i)].name;
}

}  // namespace

void require_gradient_of(const InferContext& context, int grad, int param) {
  require_floating(context, param);
  require_floating(context, grad);
  require_same_shape(context, grad, param);
  const DType given = context[grad].dtype;
  const DType needed = context[param].dtype;
  const bool is_narrow = given == DType::float16 || given == DType::bfloat16;
  TENON_CHECK(given == needed || (is_narrow && needed == DType::float32), DTypeError,
              "[{}] a gradient of {} for a parameter of {}; needed the same dtype, or a 16-bit one "
              "for float32",
              context.op().name, name(given), name(needed));
}

void require_state_of(const InferContext& context, int state, int param) {
  require_same_shape(context, state, param);
  TENON_CHECK(context[state].dtype == context[param].dtype, DTypeError,
              "[{}] operand '{}' is {} and the parameter {}; needed one dtype", context.op().name,
              operand_name(context, state), name(context[state].dtype), name(context[param].dtype));
}

void require_one_element(const InferContext& context, int i) {
  if (!context.has(i)) return;
  require_floating(context, i);
  bool one = true;
  for (const Dim& size : context[i].shape) one = one && unify(size, 1);
  TENON_CHECK(one, ShapeError, "[{}] operand '{}' has shape {}; needed one element",
              context.op().name, operand_name(context, i), context[i].shape.to_string());
}

}  // namespace tenon::ops
