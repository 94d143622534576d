// Attributes of an op call: a plain struct with a field list. Printing, equality, hash and pattern
// matching all follow from the list, so no op writes them by hand:
//
//   struct SoftmaxAttrs {
//     std::int64_t dim = -1;
//     static constexpr auto fields() {
//       return std::tuple{field("dim", &SoftmaxAttrs::dim, FieldKind::axis)};
//     }
//   };
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <typeinfo>
#include <variant>
#include <vector>

#include "tensor/dim.h"
#include "tensor/dtype.h"

namespace tenon {

/// How a field takes part in matching.
enum class FieldKind : std::uint8_t {
  value,     ///< must be equal
  axis,      ///< an axis of operand 0, negative values count from the end
  axes,      ///< a list of axes of operand 0, its order counts
  axis_set,  ///< axes of operand 0 in any order
  site,      ///< identifies the call (a dropout site): never compared, carried by rewrites
};

/// Every type that a field may have, seen through one variant. Enums appear as their names.
using AttrValue = std::variant<std::monostate, bool, std::int64_t, double, std::string, DType,
                               std::vector<std::int64_t>, Dim, Shape, Scalar>;

std::string to_string(const AttrValue& value);
bool equal(const AttrValue& a, const AttrValue& b);

/// Wildcard for a constant in a pattern: `dropout(x, any())`. It converts to whatever number an op
/// takes. `capture` >= 0 names what it matched; the schedule uses that to read attributes back.
class Any {
 public:
  explicit Any(int capture = -1) : capture_(capture) {}
  operator double() const;
  operator std::int64_t() const;
  operator Dim() const { return Dim::wildcard(capture_); }
  operator Scalar() const { return Scalar::wildcard(capture_); }

 private:
  int capture_;
};
inline Any any() { return Any(); }

/// If `value` is a wildcard made by Any, its capture (-1: unnamed).
struct WildcardInfo {
  bool is_wildcard = false;
  int capture = -1;
};
WildcardInfo wildcard_info(const AttrValue& value);

template <class A, class M>
using MemberOf = M A::*;

template <class A, class M>
struct Field {
  std::string_view name;
  MemberOf<A, M> member;
  FieldKind kind;
};
template <class A, class M>
constexpr Field<A, M> field(std::string_view name, M A::*member,
                            FieldKind kind = FieldKind::value) {
  return {name, member, kind};
}

namespace detail {

struct FieldInfo {
  std::string name;
  FieldKind kind;
};

/// The type-erased description of one attributes struct.
struct AttrsType {
  const std::type_info* id;
  std::string name;  // "SoftmaxAttrs"
  std::vector<FieldInfo> fields;
  std::shared_ptr<const void> (*make)();
  AttrValue (*get)(const void* attrs, std::size_t index);
  std::shared_ptr<const void> (*with)(const void* attrs, std::size_t index, const AttrValue& value);
};

[[noreturn]] void throw_wrong_attribute_type(std::string_view field_name);
/// The struct's name without namespaces.
std::string attrs_type_name(const std::type_info& id);
void register_attrs_type(const AttrsType& type);

template <class M>
AttrValue to_attr_value(const M& member) {
  if constexpr (std::is_enum_v<M> && !std::is_same_v<M, DType>) {
    return std::string(enum_name(member));
  } else {
    return AttrValue(member);
  }
}

template <class M>
M from_attr_value(const AttrValue& value, std::string_view field_name) {
  if constexpr (std::is_enum_v<M> && !std::is_same_v<M, DType>) {
    if (const auto* text = std::get_if<std::string>(&value)) return parse_enum(M{}, *text);
  } else {
    if (const auto* typed = std::get_if<M>(&value)) return *typed;
  }
  throw_wrong_attribute_type(field_name);
}

template <class A>
const AttrsType& attrs_type() {
  static const AttrsType type = [] {
    AttrsType result{&typeid(A), attrs_type_name(typeid(A)), {}, nullptr, nullptr, nullptr};
    result.make = []() -> std::shared_ptr<const void> { return std::make_shared<const A>(); };
    std::apply(
        [&](const auto&... f) {
          (result.fields.push_back({std::string(f.name), f.kind}), ...);
        },
        A::fields());
    result.get = [](const void* attrs, std::size_t index) {
      AttrValue value;
      std::size_t i = 0;
      std::apply(
          [&](const auto&... f) {
            ((i++ == index ? void(value = to_attr_value(static_cast<const A*>(attrs)->*(f.member)))
                           : void()),
             ...);
          },
          A::fields());
      return value;
    };
    result.with = [](const void* attrs, std::size_t index,
                     const AttrValue& value) -> std::shared_ptr<const void> {
      auto copy = std::make_shared<A>(*static_cast<const A*>(attrs));
      std::size_t i = 0;
      std::apply(
          [&](const auto&... f) {
            ((i++ == index ? void((*copy).*(f.member) =
                                      from_attr_value<std::decay_t<decltype((*copy).*(f.member))>>(
                                          value, f.name))
                           : void()),
             ...);
          },
          A::fields());
      return copy;
    };
    return result;
  }();
  return type;
}

/// Makes every struct that is used as attributes anywhere known by its name when the program starts.
template <class A>
struct AttrsRegistration {
  static inline const bool done = (register_attrs_type(attrs_type<A>()), true);
};

}  // namespace detail

/// The attributes of one op call, type-erased and immutable; cheap to copy.
class Attrs {
 public:
  Attrs() = default;
  template <class A>
  requires requires { A::fields(); }
  Attrs(A attrs)
      : data_(std::make_shared<const A>(std::move(attrs))), type_(&detail::attrs_type<A>()) {
    (void)&detail::AttrsRegistration<A>::done;
  }
  /// Default values of the struct of that name, as type_name() gives it; ValueError when no op has it.
  static Attrs of_type(std::string_view type_name);
  /// "SoftmaxAttrs"; "" for an op without attributes.
  std::string_view type_name() const { return type_ ? std::string_view(type_->name) : ""; }

  /// The struct; InternalError when it is another one.
  template <class A>
  const A& as() const {
    check_type(typeid(A));
    return *static_cast<const A*>(data_.get());
  }
  std::size_t size() const { return type_ ? type_->fields.size() : 0; }
  const std::string& name(std::size_t i) const { return type_->fields[i].name; }
  FieldKind kind(std::size_t i) const { return type_->fields[i].kind; }
  AttrValue value(std::size_t i) const { return type_->get(data_.get(), i); }
  /// A copy with field i replaced; the value must hold the field's type.
  Attrs with(std::size_t i, const AttrValue& value) const;
  /// The index of a field, or size() when there is none of that name.
  std::size_t find(std::string_view name) const;

  /// "dim=3, p=0.1".
  std::string to_string() const;
  friend bool operator==(const Attrs& a, const Attrs& b);

 private:
  void check_type(const std::type_info& wanted) const;
  std::shared_ptr<const void> data_;
  const detail::AttrsType* type_ = nullptr;
};

}  // namespace tenon
