// Exact, locale-independent conversion by std::from_chars and std::to_chars.
#include "nn/detail/tensor_json.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <concepts>
#include <cstring>
#include <limits>
#include <type_traits>

#include "nn/detail/tensor_bytes.h"
#include "tensor/support/base64.h"
#include "tensor/support/check.h"
#include "tensor/support/convert.h"
#include "tensor/support/text.h"

namespace tenon::nn::detail {

static_assert(std::endian::native == std::endian::little, "checkpoint bytes are little-endian");

std::string shape_text(const Extents& sizes) {
  return fmt::format("({}{})", text::join(sizes), sizes.size() == 1 ? "," : "");
}

namespace {

bool is_integer_text(std::string_view token) {
  return token.find_first_of(".eE") == std::string_view::npos;
}

// Whether a decimal that from_chars calls out of range is too small rather than too large.
bool is_tiny(std::string_view token) {
  const std::size_t e = token.find_first_of("eE");
  const std::string_view mantissa = token.substr(0, e);
  long long exponent = 0;
  if (e != std::string_view::npos) {
    std::string_view digits = token.substr(e + 1);
    if (digits.front() == '+') digits.remove_prefix(1);
    const auto result = std::from_chars(digits.data(), digits.data() + digits.size(), exponent);
    // No text is long enough to make up for an exponent that does not fit.
    if (result.ec != std::errc()) return digits.front() == '-';
  }
  const std::size_t first = std::min(mantissa.find_first_of("123456789"), mantissa.size());
  const std::size_t point = std::min(mantissa.find('.'), mantissa.size());
  const auto magnitude = static_cast<long long>(point) - static_cast<long long>(first);
  return magnitude < -exponent;
}

template <std::floating_point F>
F to_float(const text::JsonReader& reader, std::string_view token, DType dtype) {
  F value = 0;
  const auto result = std::from_chars(token.data(), token.data() + token.size(), value);
  if (result.ec == std::errc()) return value;
  if (is_tiny(token)) return token.front() == '-' ? -F(0) : F(0);
  reader.fail(fmt::format("{} is out of range for {}", text::escape(token), name(dtype)));
}

template <class T>
T to_floating(const text::JsonReader& reader, std::string_view token) {
  // 16-bit floats are read as doubles: through a float they would be rounded twice.
  using F = std::conditional_t<cpu::is_16_bit_float<T>, double, T>;
  const T converted = cpu::convert<T>(to_float<F>(reader, token, dtype_of<T>));
  if (std::isinf(static_cast<compute_type<T>>(converted))) {
    reader.fail(fmt::format("{} is out of range for {}", text::escape(token), name(dtype_of<T>)));
  }
  return converted;
}

template <class T>
T non_finite(text::JsonReader& reader) {
  using F = compute_type<T>;
  const std::string text = reader.string();
  if (text == "nan") return T(std::numeric_limits<F>::quiet_NaN());
  if (text == "inf") return T(std::numeric_limits<F>::infinity());
  if (text == "-inf") return T(-std::numeric_limits<F>::infinity());
  reader.fail(
      fmt::format(R"({} in data; needed a number, "nan", "inf" or "-inf")", text::quote(text)));
}

template <class T>
T read_value(text::JsonReader& reader) {
  constexpr DType kDType = dtype_of<T>;
  const text::JsonKind kind = reader.peek();
  if constexpr (std::is_same_v<T, bool>) {
    reader.expect(text::JsonKind::boolean, "a value of a bool tensor");
    return reader.boolean();
  } else if constexpr (std::integral<T>) {
    reader.expect(text::JsonKind::number, fmt::format("a value of a {} tensor", name(kDType)));
    const std::string_view token = reader.number();
    std::int64_t value = 0;
    if (!is_integer_text(token)) {
      reader.fail(
          fmt::format("{} in data; needed an integer for {}", text::escape(token), name(kDType)));
    }
    const auto result = std::from_chars(token.data(), token.data() + token.size(), value);
    if (result.ec != std::errc() || !std::in_range<T>(value)) {
      reader.fail(fmt::format("{} is out of range for {}", text::escape(token), name(kDType)));
    }
    return static_cast<T>(value);
  } else {
    if (kind == text::JsonKind::number) return to_floating<T>(reader, reader.number());
    if (kind == text::JsonKind::string) return non_finite<T>(reader);
    if (kind == text::JsonKind::null) {
      reader.fail(R"(null in data; non-finite values are the strings "nan", "inf" and "-inf")");
    }
    reader.fail(fmt::format("{} in data; needed numbers, not nested", describe(kind)));
  }
}

}  // namespace

std::int64_t read_size(text::JsonReader& reader, std::string_view what) {
  reader.expect(text::JsonKind::number, what);
  const std::string_view token = reader.number();
  std::int64_t value = 0;
  const auto result = std::from_chars(token.data(), token.data() + token.size(), value);
  if (token.front() == '-' || !is_integer_text(token) || result.ec != std::errc()) {
    reader.fail(fmt::format("{} is {}; needed an integer in [0, 2^63)", what, text::escape(token)));
  }
  return value;
}

Extents read_shape(text::JsonReader& reader) {
  reader.expect(text::JsonKind::array, "shape");
  Extents sizes;
  std::int64_t product = 1;
  reader.begin_array();
  while (reader.next_element()) {
    if (sizes.size() == kMaxRank) {
      reader.fail(fmt::format("shape has more than {} sizes", kMaxRank));
    }
    sizes.push_back(read_size(reader, "a size of shape"));
    if (__builtin_mul_overflow(product, std::max<std::int64_t>(sizes.back(), 1), &product)) {
      reader.fail(fmt::format("shape {} has more than 2^63 elements", shape_text(sizes)));
    }
  }
  return sizes;
}

std::uint64_t byte_size(const text::JsonReader& reader, DType dtype, const Extents& sizes) {
  return byte_size(reader, name(dtype), size_of(dtype), sizes);
}

std::uint64_t byte_size(const text::JsonReader& reader, std::string_view dtype, std::size_t element,
                        const Extents& sizes) {
  std::int64_t bytes = 0;
  if (__builtin_mul_overflow(sizes.product(), static_cast<std::int64_t>(element), &bytes)) {
    reader.fail(fmt::format("{}{} has more than 2^63 bytes", dtype, shape_text(sizes)));
  }
  return static_cast<std::uint64_t>(bytes);
}

Tensor read_values(text::JsonReader& reader, DType dtype, const Extents& sizes) {
  reader.expect(text::JsonKind::array, "data");
  byte_size(reader, dtype, sizes);
  const std::int64_t count = sizes.product();
  // Each value takes a character and a separator: nothing is allocated on a mere claim.
  if (static_cast<std::uint64_t>(count) > reader.remaining() / 2) {
    reader.fail(fmt::format("shape {} needs {} values; the text ends before that",
                            shape_text(sizes), count));
  }
  Tensor tensor = empty(sizes, TensorOptions{dtype, kCpu});
  dispatch_all(dtype, [&]<typename T>() {
    T* out = tensor.data<T>();
    std::int64_t i = 0;
    reader.begin_array();
    for (; reader.next_element(); ++i) {
      if (i == count) {
        reader.fail(
            fmt::format("data has more values than the {} of shape {}", count, shape_text(sizes)));
      }
      out[i] = read_value<T>(reader);
    }
    if (i != count) {
      reader.fail(
          fmt::format("data has {} values; shape {} needs {}", i, shape_text(sizes), count));
    }
  });
  return tensor;
}

Tensor read_base64(text::JsonReader& reader, DType dtype, const Extents& sizes) {
  const std::uint64_t bytes = byte_size(reader, dtype, sizes);
  reader.expect(text::JsonKind::string, "base64");
  std::string_view text = reader.raw_string();
  std::string unescaped;
  if (text.find('\\') != std::string_view::npos) {  // some writers escape the alphabet's '/'
    for (std::size_t i = 0; i < text.size(); ++i) {
      if (text[i] != '\\' || text.substr(i, 2) != "\\/") unescaped += text[i];
    }
    text = unescaped;
  }
  // Compared without arithmetic on the claim: bytes near 2^64 must not wrap.
  if (bytes / 3 > text.size() || text.size() != text::base64_size(bytes)) {
    reader.fail(fmt::format("base64 has {} characters; {}{} is {} bytes", text.size(), name(dtype),
                            shape_text(sizes), bytes));
  }
  Tensor tensor = empty(sizes, TensorOptions{dtype, kCpu});
  auto* out = static_cast<std::byte*>(tensor.view_of_data().data);
  if (!text::base64_decode(text, {out, static_cast<std::size_t>(bytes)})) {
    reader.fail("base64 is malformed; needed the standard alphabet, padded, nothing else");
  }
  if (!bytes_are_valid(tensor)) reader.fail("a byte of a bool tensor is neither 0 nor 1");
  return tensor;
}

bool bytes_are_valid(const Tensor& tensor) {
  if (tensor.dtype() != DType::boolean) return true;
  const TensorBytes bytes(tensor);
  return std::ranges::all_of(bytes.span(), [](std::byte b) { return b <= std::byte{1}; });
}

double read_double(text::JsonReader& reader) {
  reader.expect(text::JsonKind::number, "the value");
  return to_float<double>(reader, reader.number(), DType::float64);
}

bool needs_bytes(const Tensor& tensor) {
  if (!is_floating(tensor.dtype())) return false;
  const TensorBytes bytes(tensor);
  return dispatch_float(tensor.dtype(), [&]<typename T>() {
    const T canonical(std::numeric_limits<compute_type<T>>::quiet_NaN());
    for (std::size_t i = 0; i < bytes.span().size(); i += sizeof(T)) {
      T value;
      std::memcpy(&value, bytes.span().data() + i, sizeof(T));
      const bool is_nan = std::isnan(static_cast<compute_type<T>>(value));
      if (is_nan && std::memcmp(&value, &canonical, sizeof(T)) != 0) return true;
    }
    return false;
  });
}

namespace {

template <class N>
void append_number(std::string& out, N value) {
  char text[40];
  const auto result = std::to_chars(text, text + sizeof(text), value);
  out.append(text, result.ptr);
}

template <std::floating_point F>
void append_float(std::string& out, F value) {
  if (std::isnan(value)) {
    out += "\"nan\"";
  } else if (std::isinf(value)) {
    out += value > 0 ? "\"inf\"" : "\"-inf\"";
  } else {
    append_number(out, value);
  }
}

}  // namespace

void append_double(std::string& out, double value) { append_float(out, value); }

void append_values(std::string& out, const Tensor& tensor) {
  const TensorBytes bytes(tensor);
  dispatch_all(tensor.dtype(), [&]<typename T>() {
    out += '[';
    for (std::size_t i = 0; i < bytes.span().size(); i += sizeof(T)) {
      if (i > 0) out += ',';
      T value;
      std::memcpy(&value, bytes.span().data() + i, sizeof(T));
      if constexpr (std::is_same_v<T, bool>) {
        out += value ? "true" : "false";
      } else if constexpr (std::integral<T>) {
        append_number(out, static_cast<std::int64_t>(value));
      } else {
        append_float(out, static_cast<compute_type<T>>(value));
      }
    }
    out += ']';
  });
}

void append_string(std::string& out, std::string_view text) {
  out += '"';
  for (char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      out += fmt::format("\\u{:04x}", static_cast<unsigned>(c));
    } else {
      out += c;
    }
  }
  out += '"';
}

}  // namespace tenon::nn::detail
