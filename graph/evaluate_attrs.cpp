#include "graph/evaluate_attrs.h"

namespace tenon {

Attrs evaluated(const Attrs& attrs, const DimBindings& sizes) {
  Attrs result = attrs;
  for (std::size_t i = 0; i < attrs.size(); ++i) {
    const AttrValue value = attrs.value(i);
    if (const auto* dim = std::get_if<Dim>(&value)) {
      if (!dim->is_constant()) result = result.with(i, Dim(dim->evaluate(sizes)));
    } else if (const auto* scalar = std::get_if<Scalar>(&value)) {
      if (!scalar->is_constant()) result = result.with(i, Scalar(scalar->evaluate_number(sizes)));
    } else if (const auto* shape = std::get_if<Shape>(&value)) {
      Shape numbers;
      for (const Dim& size : *shape) numbers.push_back(size.evaluate(sizes));
      result = result.with(i, numbers);
    }
  }
  return result;
}

Attrs converted(const Attrs& attrs, std::optional<DType> float_dtype, Device device) {
  Attrs result = attrs;
  for (std::size_t i = 0; i < attrs.size(); ++i) {
    const AttrValue value = attrs.value(i);
    if (const auto* dtype = std::get_if<DType>(&value)) {
      if (float_dtype && is_floating(*dtype)) result = result.with(i, *float_dtype);
    } else if (attrs.kind(i) == FieldKind::device) {
      result = result.with(i, device);
    }
  }
  return result;
}

}  // namespace tenon
