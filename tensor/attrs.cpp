#include "tensor/attrs.h"

#include <bit>
#include <cmath>

#include "tensor/support/check.h"

namespace tenon {
namespace {

// Wildcards travel through double and int64 parameters as values no user writes: a quiet NaN with
// this payload, and integers next to this one. The low 16 bits hold capture + 1.
constexpr std::uint64_t kWildcardNan = 0x7ff87e3a6e790000ULL;
constexpr std::int64_t kWildcardInt = -0x7e3a6e79510000LL;

template <class... F>
struct Overloaded : F... {
  using F::operator()...;
};
template <class... F>
Overloaded(F...) -> Overloaded<F...>;

std::string number_text(double value) {
  if (wildcard_info(value).is_wildcard) return "any()";
  return fmt::format("{}", value);
}

}  // namespace

Any::operator double() const {
  return std::bit_cast<double>(kWildcardNan | static_cast<std::uint64_t>(capture_ + 1));
}
Any::operator std::int64_t() const { return kWildcardInt + capture_ + 1; }

WildcardInfo wildcard_info(const AttrValue& value) {
  if (const auto* number = std::get_if<double>(&value)) {
    const auto bits = std::bit_cast<std::uint64_t>(*number);
    if ((bits & ~0xffffULL) == kWildcardNan) return {true, static_cast<int>(bits & 0xffffU) - 1};
  } else if (const auto* integer = std::get_if<std::int64_t>(&value)) {
    if (*integer >= kWildcardInt && *integer < kWildcardInt + 0x10000) {
      return {true, static_cast<int>(*integer - kWildcardInt) - 1};
    }
  } else if (const auto* list = std::get_if<std::vector<std::int64_t>>(&value)) {
    if (list->size() == 1) return wildcard_info(list->front());  // {any()} stands for a whole list
  } else if (const auto* dim = std::get_if<Dim>(&value)) {
    if (dim->is_wildcard()) return {true, dim->capture()};
  } else if (const auto* scalar = std::get_if<Scalar>(&value)) {
    if (scalar->is_wildcard()) return {true, scalar->capture()};
  }
  return {};
}

std::string to_string(const AttrValue& value) {
  return std::visit(
      Overloaded{[](std::monostate) { return std::string("none"); },
                 [](bool b) { return std::string(b ? "true" : "false"); },
                 [](std::int64_t i) {
                   return wildcard_info(i).is_wildcard ? std::string("any()") : std::to_string(i);
                 },
                 [](double d) { return number_text(d); }, [](const std::string& s) { return s; },
                 [](DType d) { return std::string(name(d)); },
                 [](const std::vector<std::int64_t>& v) {
                   return fmt::format("({})", fmt::join(v, ", "));
                 },
                 [](const Dim& d) { return d.to_string(); },
                 [](const Shape& s) { return s.to_string(); },
                 [](const Scalar& s) { return s.to_string(); },
                 [](const Device& d) { return d.to_string(); }},
      value);
}

bool equal(const AttrValue& a, const AttrValue& b) {
  if (a.index() != b.index()) return false;
  return std::visit(Overloaded{[&](std::monostate) { return true; },
                               [&](double d) {
                                 return std::bit_cast<std::uint64_t>(d) ==
                                            std::bit_cast<std::uint64_t>(std::get<double>(b)) ||
                                        d == std::get<double>(b);
                               },
                               [&](const Dim& d) { return d.same_as(std::get<Dim>(b)); },
                               [&](const Shape& s) { return s.same_as(std::get<Shape>(b)); },
                               [&](const Scalar& s) { return s.same_as(std::get<Scalar>(b)); },
                               [&]<class T>(const T& x) { return x == std::get<T>(b); }},
                    a);
}

namespace detail {
namespace {

std::shared_ptr<void> make(const AttrsType& type, const void* source) {
  return {type.make(source), type.destroy};
}

}  // namespace
}  // namespace detail

Attrs Attrs::of_type(std::string_view type_name) {
  Attrs attrs;
  if (type_name.empty()) return attrs;
  for (const detail::AttrsType* type : detail::all_attrs_types()) {
    if (type->name != type_name) continue;
    attrs.type_ = type;
    attrs.data_ = detail::make(*type, nullptr);
    return attrs;
  }
  detail::fail<ValueError>("no op has attributes called '{}'", type_name.substr(0, 80));
}

AttrValue Attrs::value(std::size_t i) const {
  const detail::FieldInfo& field = type_->fields[i];
  return field.read(static_cast<const char*>(data_.get()) + field.offset);
}

Attrs Attrs::with(std::size_t i, const AttrValue& value) const {
  const detail::FieldInfo& field = type_->fields[i];
  const std::shared_ptr<void> data = detail::make(*type_, data_.get());
  field.write(static_cast<char*>(data.get()) + field.offset, value, field.name);
  Attrs copy;
  copy.type_ = type_;
  copy.data_ = data;
  return copy;
}

std::size_t Attrs::find(std::string_view field_name) const {
  for (std::size_t i = 0; i < size(); ++i) {
    if (name(i) == field_name) return i;
  }
  return size();
}

std::string Attrs::to_string() const {
  std::string text;
  for (std::size_t i = 0; i < size(); ++i) {
    if (i > 0) text += ", ";
    text += name(i) + "=" + tenon::to_string(value(i));
  }
  return text;
}

bool operator==(const Attrs& a, const Attrs& b) {
  if (a.size() != b.size()) return false;
  if (a.type_ && b.type_ && *a.type_->id != *b.type_->id) return false;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (!equal(a.value(i), b.value(i))) return false;
  }
  return true;
}

const void* Attrs::data_of_type(const std::type_info& type) const {
  TENON_CHECK(type_ && *type_->id == type, ValueError,
              "attributes of another op: {}, not those that it has", type_ ? type_->name : "none");
  return data_.get();
}

}  // namespace tenon
