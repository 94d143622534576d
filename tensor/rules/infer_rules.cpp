// Shape rules that several ops share; see the header for what each promises.
#include "tensor/rules/infer_rules.h"

#include <algorithm>

#include "tensor/support/check.h"

namespace tenon::ops {
namespace {

/// The broadcast size of two sizes, or nothing when they do not fit. A symbolic size counts as 1
/// only where nothing else fits, and then a guard says so.
std::optional<Dim> broadcast_sizes(const Dim& a, const Dim& b) {
  const Dim one = 1;
  if (a.same_as(one)) return b;
  if (b.same_as(one)) return a;
  if (unify(a, b)) return b.is_constant() ? b : a;
  if (!a.is_constant() && detail::hint_of(a) == 1 && a == one) return b;
  if (!b.is_constant() && detail::hint_of(b) == 1 && b == one) return a;
  return std::nullopt;
}

/// "input", or "tensors[1]" for one of several.
std::string operand_name(const InferContext& context, int i) {
  const auto& operands = context.op().operands;
  const std::size_t last = operands.size() - 1;
  const Operand& operand = operands[std::min(static_cast<std::size_t>(i), last)];
  if (!operand.variadic) return operand.name;
  return fmt::format("{}[{}]", operand.name, static_cast<std::size_t>(i) - last);
}

/// Whether `dtype` should rather be converted to `other` than the other way round.
bool is_narrower(DType dtype, DType other) {
  if (is_floating(dtype) != is_floating(other)) return is_floating(other);
  if (dtype == DType::boolean || other == DType::boolean) return dtype == DType::boolean;
  return size_of(dtype) < size_of(other);
}

}  // namespace

Shape broadcast_shapes(std::string_view op, const Shape& a, const Shape& b) {
  const int rank = std::max(a.rank(), b.rank());
  std::vector<Dim> result(static_cast<std::size_t>(rank));
  for (int axis = 1; axis <= rank; ++axis) {
    Dim& out = result[static_cast<std::size_t>(rank - axis)];
    if (axis > a.rank()) {
      out = b[-axis];
    } else if (axis > b.rank()) {
      out = a[-axis];
    } else {
      const std::optional<Dim> size = broadcast_sizes(a[-axis], b[-axis]);
      TENON_CHECK(
          size.has_value(), ShapeError,
          "[{}] shapes {} and {} do not broadcast: axis -{} has sizes {} and {}; they must be "
          "equal, or one of them 1",
          op, a.to_string(), b.to_string(), axis, a[-axis].to_string(), b[-axis].to_string());
      out = *size;
    }
  }
  return Shape(std::move(result));
}

std::int64_t normalize_axis(std::string_view op, std::int64_t axis, int rank) {
  const std::int64_t count = std::max(rank, 1);
  TENON_CHECK(axis >= -count && axis < count, ShapeError,
              "[{}] axis {} of a tensor of rank {}; needed an axis from {} to {}", op, axis, rank,
              -count, count - 1);
  return axis < 0 ? axis + count : axis;
}

std::int64_t axis_of(std::string_view op, const Tensor& input, std::int64_t axis) {
  return in_pattern() ? axis : normalize_axis(op, axis, input.dim());
}

std::vector<std::int64_t> axes_of(std::string_view op, const Tensor& input,
                                  std::vector<std::int64_t> axes) {
  if (in_pattern()) return axes;
  const int rank = input.dim();
  for (std::int64_t& axis : axes) axis = normalize_axis(op, axis, rank);
  std::sort(axes.begin(), axes.end());
  const auto repeated = std::adjacent_find(axes.begin(), axes.end());
  TENON_CHECK(repeated == axes.end(), ShapeError,
              "[{}] axis {} is given twice for the input {}; needed different axes", op, *repeated,
              input.shape().to_string());
  return axes;
}

void require_same_dtype(const InferContext& context) {
  for (int i = 1; i < context.size(); ++i) {
    if (context.has(i)) require_same_dtype(context, 0, i);
  }
}

void require_same_dtype(const InferContext& context, int i, int j) {
  const TensorSpec& a = context[i];
  const TensorSpec& b = context[j];
  if (a.dtype == b.dtype) return;
  const bool convert_first = is_narrower(a.dtype, b.dtype);
  detail::fail<DTypeError>(
      "[{}] operand '{}' is {} and operand '{}' is {}, of shapes {} and {}; they must have one "
      "dtype: convert '{}' with .to(DType::{})",
      context.op().name, operand_name(context, i), name(a.dtype), operand_name(context, j),
      name(b.dtype), a.shape.to_string(), b.shape.to_string(),
      operand_name(context, convert_first ? i : j), name(convert_first ? b.dtype : a.dtype));
}

bool same_sizes(const Shape& a, const Shape& b) {
  bool same = a.rank() == b.rank();
  for (int axis = 0; same && axis < a.rank(); ++axis) same = unify(a[axis], b[axis]);
  return same;
}

void require_same_shape(const InferContext& context, int i, int j) {
  const Shape& a = context[i].shape;
  const Shape& b = context[j].shape;
  TENON_CHECK(same_sizes(a, b), ShapeError,
              "[{}] operands '{}' {} and '{}' {}; needed equal shapes", context.op().name,
              operand_name(context, i), a.to_string(), operand_name(context, j), b.to_string());
}

void require_floating(const InferContext& context, int i) {
  TENON_CHECK(is_floating(context[i].dtype), DTypeError,
              "[{}] operand '{}' is {}; needed float32, float64, float16 or bfloat16",
              context.op().name, operand_name(context, i), name(context[i].dtype));
}

std::vector<TensorSpec> infer_like_input(const InferContext& context) { return {context[0]}; }

std::vector<TensorSpec> infer_float_like_input(const InferContext& context) {
  require_floating(context, 0);
  return {context[0]};
}

bool last_axis_dense(int, const TensorView& view) {
  return view.rank() == 0 || view.sizes.back() <= 1 || view.strides.back() == 1;
}

}  // namespace tenon::ops
