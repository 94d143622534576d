#include "schedule/saving/attr_json.h"

#include <cctype>
#include <charconv>
#include <cmath>
#include <utility>

#include "tensor/support/check.h"

namespace tenon::detail {
namespace {

using nlohmann::json;

template <class... F>
struct Overloaded : F... {
  using F::operator()...;
};
template <class... F>
Overloaded(F...) -> Overloaded<F...>;

/// Reads what Dim::to_string and Scalar::to_string write.
class SizeParser {
 public:
  SizeParser(const std::string& text, const SizeSymbols& symbols)
      : text_(text), symbols_(symbols) {}

  Dim whole_dim() {
    const Dim dim = sum();
    if (at_ != text_.size()) fail_here();
    return dim;
  }

  /// c*(dim)^e*(dim)^e…
  Scalar whole_scalar() {
    Scalar scalar(coefficient());
    while (at_ < text_.size()) {
      take("*(");
      const Dim dim = sum();
      take(")^");
      scalar = scalar * pow(Scalar(dim), number<double>());
    }
    return scalar;
  }

 private:
  [[noreturn]] void fail_here() const {
    fail<ScheduleError>("'{}' is not a size expression (at character {})", text_.substr(0, 80),
                        at_);
  }
  bool skip(std::string_view token) {
    if (text_.compare(at_, token.size(), token) != 0) return false;
    at_ += token.size();
    return true;
  }
  void take(std::string_view token) {
    if (!skip(token)) fail_here();
  }

  template <class T>
  T number() {
    T value = 0;
    const char* first = text_.data() + at_;
    const auto [end, error] = std::from_chars(first, text_.data() + text_.size(), value);
    if (error != std::errc()) fail_here();
    at_ += static_cast<std::size_t>(end - first);
    return value;
  }

  /// An integer where it is written as one.
  Number coefficient() {
    const std::string text = text_.substr(at_, text_.find('*', at_) - at_);
    const bool is_integer = text != "-0" && text.find_first_not_of("-0123456789") == text.npos;
    return is_integer ? Number(number<std::int64_t>()) : Number(number<double>());
  }

  Dim sum() {
    if (++depth_ > kMaxDepth) fail_here();
    Dim total = product();
    for (;;) {
      if (skip(" + ")) {
        total += product();
      } else if (skip(" - ")) {
        total = total - product();
      } else {
        break;
      }
    }
    --depth_;
    return total;
  }

  Dim product() {
    Dim result = factor();
    while (at_ + 1 < text_.size() && text_[at_] == '*' && text_[at_ + 1] != '(') {
      ++at_;
      result *= factor();
    }
    // A quotient is a factor in double brackets.
    while (skip("*((")) result *= quotient();
    return result;
  }

  Dim quotient() {
    const Dim dividend = sum();
    take(")//(");
    const Dim divisor = sum();
    take("))");
    return dividend / divisor;
  }

  Dim factor() {
    if (skip("((")) return quotient();
    if (at_ < text_.size() &&
        (std::isdigit(static_cast<unsigned char>(text_[at_])) != 0 || text_[at_] == '-')) {
      return number<std::int64_t>();
    }
    std::size_t end = at_;
    while (end < text_.size() && std::isalnum(static_cast<unsigned char>(text_[end])) != 0) ++end;
    const auto symbol = symbols_.find(std::string_view(text_).substr(at_, end - at_));
    if (symbol == symbols_.end()) fail_here();
    at_ = end;
    return symbol->second;
  }

  static constexpr int kMaxDepth = 64;
  const std::string& text_;
  const SizeSymbols& symbols_;
  std::size_t at_ = 0;
  int depth_ = 0;
};

json number_to_json(double value) {
  if (std::isfinite(value)) return value;
  return std::isnan(value) ? "nan" : value > 0 ? "inf" : "-inf";
}

double number_from_json(const json& value) {
  if (value.is_number()) return value.get<double>();
  if (value == "nan") return std::nan("");
  if (value == "inf") return HUGE_VAL;
  if (value == "-inf") return -HUGE_VAL;
  fail<ScheduleError>("{} is not a number", value.dump().substr(0, 80));
}

json dim_to_json(const Dim& dim) {
  if (dim.is_constant()) return detail::hint_of(dim);
  return dim.to_string();
}

Dim dim_from_json(const json& value, const SizeSymbols& symbols) {
  if (!value.is_string()) return integer_from_json(value);
  const std::string text = value.get<std::string>();
  return SizeParser(text, symbols).whole_dim();
}

json scalar_to_json(const Scalar& scalar) {
  if (!scalar.is_constant()) return scalar.to_string();
  const Number number = scalar.number();
  return number.is_integer() ? json(number.integer()) : number_to_json(number.to_double());
}

Scalar scalar_from_json(const json& value, const SizeSymbols& symbols) {
  const bool symbolic =
      value.is_string() && value.get<std::string>().find('(') != std::string::npos;
  if (value.is_number_unsigned()) return value.get<std::uint64_t>();
  if (value.is_number_integer()) return value.get<std::int64_t>();
  if (!symbolic) return number_from_json(value);
  const std::string text = value.get<std::string>();
  return SizeParser(text, symbols).whole_scalar();
}

json value_to_json(const AttrValue& value) {
  return std::visit(Overloaded{[](std::monostate) { return json(); },
                               [](double number) { return number_to_json(number); },
                               [](DType dtype) { return json(std::string(name(dtype))); },
                               [](const Dim& dim) { return dim_to_json(dim); },
                               [](const Shape& shape) { return shape_to_json(shape); },
                               [](const Scalar& scalar) { return scalar_to_json(scalar); },
                               [](const Device& device) { return json(device.to_string()); },
                               [](const auto& plain) { return json(plain); }},
                    value);
}

/// A value of the type that `like` holds.
AttrValue value_from_json(const json& value, const AttrValue& like, const SizeSymbols& symbols) {
  return std::visit(
      Overloaded{[](std::monostate) { return AttrValue(); },
                 [&](bool) { return AttrValue(value.get<bool>()); },
                 [&](std::int64_t) { return AttrValue(integer_from_json(value)); },
                 [&](double) { return AttrValue(number_from_json(value)); },
                 [&](const std::string&) { return AttrValue(value.get<std::string>()); },
                 [&](DType) { return AttrValue(parse_dtype(value.get<std::string>())); },
                 [&](const std::vector<std::int64_t>&) {
                   std::vector<std::int64_t> list;
                   for (const json& element : value) list.push_back(integer_from_json(element));
                   return AttrValue(std::move(list));
                 },
                 [&](const Dim&) { return AttrValue(dim_from_json(value, symbols)); },
                 [&](const Shape&) { return AttrValue(shape_from_json(value, symbols)); },
                 [&](const Scalar&) { return AttrValue(scalar_from_json(value, symbols)); },
                 [&](const Device&) { return AttrValue(Device::parse(value.get<std::string>())); }},
      like);
}

}  // namespace

std::int64_t integer_from_json(const json& value) {
  const bool fits = value.is_number_unsigned()
                        ? std::in_range<std::int64_t>(value.get<std::uint64_t>())
                        : value.is_number_integer();
  TENON_CHECK(fits, ScheduleError, "{} is not an integer of 64 bits", value.dump().substr(0, 80));
  return value.get<std::int64_t>();
}

SizeSymbols size_symbols(const Graph& graph) {
  SizeSymbols symbols;
  for (ValueId id : graph.inputs()) {
    for (const Dim& dim : graph.value(id).spec.shape) {
      const Dim now = dim.resolved();
      std::vector<std::int64_t> ids;
      now.collect_symbols(ids);
      if (ids.size() == 1) symbols.emplace(now.to_string(), now);
    }
  }
  return symbols;
}

json shape_to_json(const Shape& shape) {
  json sizes = json::array();
  for (const Dim& dim : shape) sizes.push_back(dim_to_json(dim));
  return sizes;
}

Shape shape_from_json(const json& value, const SizeSymbols& symbols) {
  TENON_CHECK(value.is_array(), ScheduleError, "{} is not a shape", value.dump().substr(0, 80));
  Shape shape;
  for (const json& size : value) shape.push_back(dim_from_json(size, symbols));
  return shape;
}

json attrs_to_json(const Attrs& attrs) {
  if (attrs.type_name().empty()) return {};
  json result = {{"type", std::string(attrs.type_name())}};
  for (std::size_t i = 0; i < attrs.size(); ++i) {
    result[attrs.name(i)] = value_to_json(attrs.value(i));
  }
  return result;
}

Attrs attrs_from_json(const json& value, const SizeSymbols& symbols) {
  if (value.is_null()) return {};
  Attrs attrs = Attrs::of_type(value.at("type").get<std::string>());
  for (std::size_t i = 0; i < attrs.size(); ++i) {
    attrs = attrs.with(i, value_from_json(value.at(attrs.name(i)), attrs.value(i), symbols));
  }
  return attrs;
}

}  // namespace tenon::detail
