#include "tensor/rules/index_rules.h"

#include "tensor/ops/plain_attributes.h"
#include "tensor/rules/infer_rules.h"
#include "tensor/support/check.h"

namespace tenon::ops {

void require_index(const InferContext& context, int i) {
  const DType dtype = context[i].dtype;
  TENON_CHECK(dtype == DType::int64 || dtype == DType::int32, DTypeError,
              "[{}] operand '{}' is {}; needed int64 or int32", context.op().name,
              context.op().operands[static_cast<std::size_t>(i)].name, name(dtype));
}

Tensor wide_index(const Tensor& index) {
  if (in_pattern() || !index.defined() || !is_storage_only(index.dtype())) return index;
  return cast(index, DType::int32);
}

std::int64_t axis_attribute(const Attrs& attrs) { return attrs.as<AxisAttrs>().dim; }

}  // namespace tenon::ops
