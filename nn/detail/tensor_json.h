// Shapes and values of tensors in JSON: read straight from the text into a tensor, written so that
// every bit comes back.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "tensor/support/json_stream.h"
#include "tensor/tensor.h"

namespace tenon::nn::detail {

/// "(2, 3)"; "(2,)" for one axis.
std::string shape_text(const Extents& sizes);

/// An array of at most kMaxRank integers >= 0 whose product, zeros taken as one, fits an int64.
Extents read_shape(text::JsonReader& reader);
/// Bytes of such a tensor; fails when they do not fit an int64.
std::uint64_t byte_size(const text::JsonReader& reader, DType dtype, const Extents& sizes);
/// The same for elements of `element` bytes of a dtype by any name.
std::uint64_t byte_size(const text::JsonReader& reader, std::string_view dtype, std::size_t element,
                        const Extents& sizes);

/// A flat array of exactly the shape's number of values. Floats: decimal numbers, rounded once to
/// nearest, or "nan", "inf", "-inf"; what would overflow is refused, what underflows becomes 0.
/// Integers: integers in range. bool: true and false.
Tensor read_values(text::JsonReader& reader, DType dtype, const Extents& sizes);
/// A base64 string of exactly the tensor's little-endian bytes.
Tensor read_base64(text::JsonReader& reader, DType dtype, const Extents& sizes);
/// Fails unless every byte of a bool tensor is 0 or 1; other dtypes take any bytes.
bool bytes_are_valid(const Tensor& tensor);

/// The value nearest to a JSON number, as a double; fails on overflow.
double read_double(text::JsonReader& reader);
/// An integer in [0, 2^63).
std::int64_t read_size(text::JsonReader& reader, std::string_view what);

/// Whether append_values would lose bits: a NaN other than the one that "nan" stands for.
bool needs_bytes(const Tensor& tensor);
/// "[0.5,-0,\"nan\"]": the shortest decimals that read back to the same value.
void append_values(std::string& out, const Tensor& tensor);
void append_double(std::string& out, double value);
/// A JSON string.
void append_string(std::string& out, std::string_view text);

}  // namespace tenon::nn::detail
