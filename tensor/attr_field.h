// The field list of an attributes struct; see tensor/attrs.h.
#pragma once

#include <cstdint>
#include <string_view>

namespace tenon {

/// How a field takes part in matching.
enum class FieldKind : std::uint8_t {
  value,     ///< must be equal
  axis,      ///< an axis of operand 0, negative values count from the end
  axes,      ///< a list of axes of operand 0, its order counts
  axis_set,  ///< axes of operand 0 in any order
  site,      ///< identifies the call (a dropout site): never compared, carried by rewrites
  device,    ///< where the call runs: never compared, that of the Program where one was lowered
  mode,      ///< whether the call acts as in training; a tracer pins one that follows its module
};

enum class DropoutMode : std::uint8_t;
/// A mode is one by its type, so that no op forgets to say so.
template <class M>
inline constexpr FieldKind kDefaultKind = FieldKind::value;
template <>
inline constexpr FieldKind kDefaultKind<DropoutMode> = FieldKind::mode;

template <class A, class M>
using MemberOf = M A::*;

template <class A, class M>
struct Field {
  std::string_view name;
  MemberOf<A, M> member;
  FieldKind kind;
};
template <class A, class M>
constexpr Field<A, M> field(std::string_view name, M A::*member, FieldKind kind = kDefaultKind<M>) {
  return {name, member, kind};
}

}  // namespace tenon
