// Attributes of an op call: a plain struct with a field list. Printing, equality, hash and pattern
// matching all follow from the list, so no op writes them by hand; tensor/ops/attributes.cpp names the
// struct once more.
//
//   struct SoftmaxAttrs {
//     std::int64_t dim = -1;
//     static constexpr auto fields() {
//       return std::tuple{field("dim", &SoftmaxAttrs::dim, FieldKind::axis)};
//     }
//   };
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <tuple>
#include <typeinfo>
#include <variant>
#include <vector>

#include "tensor/attr_field.h"
#include "tensor/device.h"
#include "tensor/dim.h"
#include "tensor/dtype.h"

namespace tenon {

/// Every type that a field may have, seen through one variant. Enums appear as their names.
using AttrValue = std::variant<std::monostate, bool, std::int64_t, double, std::string, DType,
                               std::vector<std::int64_t>, Dim, Shape, Scalar, Device>;

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

namespace detail {

struct FieldInfo {
  std::string name;
  FieldKind kind;
  std::size_t offset;  // in the struct
  AttrValue (*read)(const void* member);
  void (*write)(void* member, const AttrValue& value, std::string_view name);
};

/// The type-erased description of one attributes struct.
struct AttrsType {
  const std::type_info* id;
  std::string name;  // "SoftmaxAttrs"
  std::vector<FieldInfo> fields;
  /// A new struct: a copy of `source`, or of default values where that is null.
  void* (*make)(const void* source);
  void (*destroy)(void* attrs);
};

/// Of each struct that tensor/ops/attributes.cpp lists: what follows from a field list is compiled there
/// and nowhere else.
template <class A>
const AttrsType& attrs_type();

/// All of them.
const std::vector<const AttrsType*>& all_attrs_types();

}  // namespace detail

/// The attributes of one op call, type-erased and immutable; cheap to copy.
class Attrs {
 public:
  Attrs() = default;
  template <class A>
  requires requires { A::fields(); }
  Attrs(A attrs)
      : data_(std::make_shared<const A>(std::move(attrs))), type_(&detail::attrs_type<A>()) {}
  /// Default values of the struct of that name, as type_name() gives it; ValueError when no op has it.
  static Attrs of_type(std::string_view type_name);
  /// "SoftmaxAttrs"; "" for an op without attributes.
  std::string_view type_name() const { return type_ ? std::string_view(type_->name) : ""; }

  /// The struct; ValueError when it is another one.
  template <class A>
  const A& as() const {
    return *static_cast<const A*>(data_of_type(typeid(A)));
  }
  const void* data_of_type(const std::type_info& type) const;
  std::size_t size() const { return type_ ? type_->fields.size() : 0; }
  const std::string& name(std::size_t i) const { return type_->fields[i].name; }
  FieldKind kind(std::size_t i) const { return type_->fields[i].kind; }
  AttrValue value(std::size_t i) const;
  /// A copy with field i replaced; the value must hold the field's type.
  Attrs with(std::size_t i, const AttrValue& value) const;
  /// The index of a field, or size() when there is none of that name.
  std::size_t find(std::string_view name) const;

  /// "dim=3, p=0.1".
  std::string to_string() const;
  friend bool operator==(const Attrs& a, const Attrs& b);

 private:
  std::shared_ptr<const void> data_;
  const detail::AttrsType* type_ = nullptr;
};

}  // namespace tenon
