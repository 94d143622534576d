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
};

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

}  // namespace tenon
