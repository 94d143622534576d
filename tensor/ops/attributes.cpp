// The list of all attribute structs, and what follows from their field lists: reading, writing and copying
// them without knowing their type.
#include "tensor/ops/attributes.h"

#include <cxxabi.h>

#include <cstdlib>
#include <type_traits>

#include "tensor/ops/indexing_attributes.h"
#include "tensor/ops/norm_attributes.h"
#include "tensor/ops/optimizer_attributes.h"
#include "tensor/ops/vision_attributes.h"
#include "tensor/support/check.h"

namespace tenon::detail {
namespace {

template <class M>
constexpr bool has_enum_name = std::is_enum_v<M> && !std::is_same_v<M, DType>;

template <class M>
AttrValue read_member(const void* member) {
  const M& typed = *static_cast<const M*>(member);
  if constexpr (has_enum_name<M>) {
    return std::string(enum_name(typed));
  } else {
    return typed;
  }
}

template <class M>
void write_member(void* member, const AttrValue& value, std::string_view name) {
  M& typed = *static_cast<M*>(member);
  if constexpr (has_enum_name<M>) {
    if (const auto* text = std::get_if<std::string>(&value)) {
      typed = parse_enum(M{}, *text);
      return;
    }
  } else {
    if (const auto* given = std::get_if<M>(&value)) {
      typed = *given;
      return;
    }
  }
  fail<ValueError>("attribute '{}' cannot hold a value of that type", name);
}

void add_field(AttrsType& type, FieldInfo field) { type.fields.push_back(std::move(field)); }

/// `Owner` is A or a base of it.
template <class A, class Owner, class M>
void add_field(AttrsType& type, const A& attrs, const Field<Owner, M>& field) {
  const auto* member = reinterpret_cast<const char*>(&(attrs.*field.member));
  const auto offset = static_cast<std::size_t>(member - reinterpret_cast<const char*>(&attrs));
  add_field(type, {std::string(field.name), field.kind, offset, read_member<M>, write_member<M>});
}

/// The struct's name without namespaces.
std::string name_of_type(const std::type_info& id) {
  const std::unique_ptr<char, void (*)(void*)> text(
      abi::__cxa_demangle(id.name(), nullptr, nullptr, nullptr), std::free);
  const std::string whole = text ? text.get() : id.name();
  const std::size_t scope = whole.rfind("::");
  return scope == std::string::npos ? whole : whole.substr(scope + 2);
}

template <class A>
AttrsType describe() {
  AttrsType type{&typeid(A), name_of_type(typeid(A)), {}, nullptr, nullptr};
  const A attrs{};
  std::apply([&](const auto&... f) { (add_field(type, attrs, f), ...); }, A::fields());
  type.make = [](const void* source) -> void* {
    return source == nullptr ? new A{} : new A(*static_cast<const A*>(source));
  };
  type.destroy = [](void* made) { delete static_cast<A*>(made); };
  return type;
}

}  // namespace

template <class A>
const AttrsType& attrs_type() {
  // Never destroyed: threads may outlive main.
  static const AttrsType& type = *new AttrsType(describe<A>());
  return type;
}

namespace {

constexpr const AttrsType& (*kTypes[])() = {attrs_type<AdamAttrs>,
                                            attrs_type<AttentionAttrs>,
                                            attrs_type<AttentionBackwardAttrs>,
                                            attrs_type<AxesAttrs>,
                                            attrs_type<AxisAttrs>,
                                            attrs_type<AxisPairAttrs>,
                                            attrs_type<BatchNormAddBackwardAttrs>,
                                            attrs_type<BatchNormAttrs>,
                                            attrs_type<BatchNormBackwardAttrs>,
                                            attrs_type<BiasDropoutResidualLayerNormAttrs>,
                                            attrs_type<BinaryAttrs>,
                                            attrs_type<CastAttrs>,
                                            attrs_type<Conv2dAttrs>,
                                            attrs_type<Conv2dBackwardAttrs>,
                                            attrs_type<CrossEntropyAttrs>,
                                            attrs_type<CumsumAttrs>,
                                            attrs_type<DiagonalAttrs>,
                                            attrs_type<DropoutAttrs>,
                                            attrs_type<FillAttrs>,
                                            attrs_type<GatherBackwardAttrs>,
                                            attrs_type<GeluAttrs>,
                                            attrs_type<GlobalNormAttrs>,
                                            attrs_type<IndexSelectBackwardAttrs>,
                                            attrs_type<LayerNormAttrs>,
                                            attrs_type<NarrowAttrs>,
                                            attrs_type<NarrowBackwardAttrs>,
                                            attrs_type<NormBackwardAttrs>,
                                            attrs_type<Pool2dAttrs>,
                                            attrs_type<Pool2dBackwardAttrs>,
                                            attrs_type<PowAttrs>,
                                            attrs_type<PrintAttrs>,
                                            attrs_type<RandintAttrs>,
                                            attrs_type<RandomTensorAttrs>,
                                            attrs_type<ReduceAttrs>,
                                            attrs_type<ResidualNormBackwardAttrs>,
                                            attrs_type<SgdAttrs>,
                                            attrs_type<ShapeAttrs>,
                                            attrs_type<SoftplusAttrs>,
                                            attrs_type<ToDeviceAttrs>,
                                            attrs_type<UniformAttrs>,
                                            attrs_type<VarAttrs>};

}  // namespace

const std::vector<const AttrsType*>& all_attrs_types() {
  // Never destroyed: threads may outlive main.
  static const std::vector<const AttrsType*>& types = *[] {
    auto* list = new std::vector<const AttrsType*>;
    for (const auto& type : kTypes) list->push_back(&type());
    return list;
  }();
  return types;
}

}  // namespace tenon::detail
