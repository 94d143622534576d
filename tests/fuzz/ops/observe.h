// What there is to see of a tensor, read without Tenon's own copies and conversions, and comparing
// it with what the reference says.
#pragma once

#include <string>

#include "tensor/tensor.h"
#include "tests/fuzz/ops/reference.h"

namespace tenon::op_fuzz {

/// The elements, row-major.
Numbers read(const Tensor& tensor);
/// "" when dtype and sizes are the array's.
std::string compare_spec(const Tensor& tensor, const Array& array);
/// "" when the values are within what the check allows; NaN is NaN.
std::string compare_values(const Numbers& found, const Check& check);
/// "" when they are the same; zeros of both signs are.
std::string compare_exactly(const Numbers& found, const Numbers& wanted, bool signed_zero);
/// "" when none differs by more than its error.
std::string compare_within(const Numbers& found, const Numbers& wanted, const Numbers& errors);
/// "" when they are where `draw` says.
std::string compare_draw(const Numbers& found, const Draw& draw,
                         const std::map<std::string, Numbers>& drawn);

}  // namespace tenon::op_fuzz
