// Attributes with numbers in place of the sizes that they are made of.
#pragma once

#include <optional>

#include "tensor/attrs.h"

namespace tenon {

/// Dims, Shapes and Scalars evaluated for these values of the symbols.
Attrs evaluated(const Attrs& attrs, const DimBindings& sizes);
/// The same attributes for another device and, if given, another floating dtype.
Attrs converted(const Attrs& attrs, std::optional<DType> float_dtype, Device device);

}  // namespace tenon
