// Replacement: what `replace` puts in place of matched nodes: a module or a function, with its
// tensor parameters in order and the rest bound by name.
//
// A module whose forward takes more than tensors names its parameters:
//
//   struct FlashAttention : nn::Module {
//     static constexpr std::array kForwardArgs = {"query", "key", "value", "p"};
//     Tensor forward(const Tensor& query, const Tensor& key, const Tensor& value, double p);
//   };
//   sch.replace(nn::make<FlashAttention>(), matches, {.concrete_args = {{"p", 0.1}}});
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <tuple>
#include <type_traits>
#include <variant>
#include <vector>

#include "nn/module.h"
#include "schedule/weight_map.h"
#include "tensor/tensor.h"

namespace tenon {

/// A value given by name to a parameter of a replacement; monostate is an absent tensor or option.
using Argument =
    std::variant<std::monostate, bool, std::int64_t, double, std::string, DType, Tensor>;
using Arguments = std::map<std::string, Argument>;

struct ReplaceOptions {
  /// Names the new module call; default: the module's class name, or "function".
  std::string name = {};
  /// Values for parameters of the replacement, by name.
  Arguments concrete_args = {};
  /// Where parameters of the replacement come from. Those not listed are derived, or refused: from
  /// the replaced module's parameter of the same name, or from the i-th parameter of every match.
  WeightMap weights = {};
};

struct Replacement {
  std::string name;                    // of the new call
  std::shared_ptr<nn::Module> module;  // null for a function
  int tensor_parameters = 0;           // how many tensors `call` takes
  std::function<std::vector<Tensor>(std::span<const Tensor>)> call;
};

namespace detail {

template <class F>
struct Signature;
template <class R, class... A>
struct Signature<R(A...)> {
  static constexpr std::size_t size = sizeof...(A);
  using Parameters = std::tuple<std::decay_t<A>...>;
};
template <class R, class... A>
struct Signature<R (*)(A...)> : Signature<R(A...)> {};
template <class C, class R, class... A>
struct Signature<R (C::*)(A...)> : Signature<R(A...)> {};
template <class C, class R, class... A>
struct Signature<R (C::*)(A...) const> : Signature<R(A...)> {};
template <class F>
requires requires { &F::operator(); }
struct Signature<F> : Signature<decltype(&F::operator())> {};

[[noreturn]] void throw_missing_argument(const std::string& replacement, const std::string& name);
[[noreturn]] void throw_wrong_argument(const std::string& replacement, const std::string& name);
/// ScheduleError when an argument names no parameter.
void check_argument_names(const std::string& replacement, const Arguments& arguments,
                          const std::vector<std::string>& parameters);

template <class T>
struct IsOptional : std::false_type {};
template <class T>
struct IsOptional<std::optional<T>> : std::true_type {};

/// Nothing where P, a type of numbers, does not hold the integer.
template <class P>
std::optional<P> exactly(std::int64_t integer) {
  const auto converted = static_cast<P>(integer);
  // Which holds all int64.
  const bool same = static_cast<long double>(converted) == static_cast<long double>(integer);
  return same ? std::optional<P>(converted) : std::nullopt;
}

/// The argument as the type that the parameter has; integers convert where nothing is lost.
template <class P>
P convert_argument(const std::string& replacement, const std::string& name, const Argument& value) {
  if constexpr (IsOptional<P>::value) {
    if (std::holds_alternative<std::monostate>(value)) return std::nullopt;
    return convert_argument<typename P::value_type>(replacement, name, value);
  } else if constexpr (std::is_same_v<P, Tensor>) {
    if (std::holds_alternative<std::monostate>(value)) return Tensor();
    if (const auto* tensor = std::get_if<Tensor>(&value)) return *tensor;
  } else if constexpr (std::is_same_v<P, bool> || std::is_same_v<P, std::string> ||
                       std::is_same_v<P, DType>) {
    if (const auto* same = std::get_if<P>(&value)) return *same;
  } else if constexpr (std::is_arithmetic_v<P>) {
    if (const auto* integer = std::get_if<std::int64_t>(&value)) {
      if (const auto converted = exactly<P>(*integer)) return *converted;
    }
    if constexpr (std::is_floating_point_v<P>) {
      if (const auto* number = std::get_if<double>(&value)) return static_cast<P>(*number);
    }
  }
  throw_wrong_argument(replacement, name);
}

/// The parameters' names: declared by the module, or arg0, arg1, …
template <class Owner>
std::vector<std::string> parameter_names(std::size_t count) {
  std::vector<std::string> names;
  if constexpr (requires { Owner::kForwardArgs; }) {
    for (const auto& name : Owner::kForwardArgs) names.emplace_back(name);
  }
  while (names.size() < count) names.push_back("arg" + std::to_string(names.size()));
  return names;
}

/// Takes tensor parameters that are not given by name from `tensors`, in order.
template <class P>
P take_parameter(const std::string& replacement, const std::string& name,
                 const Arguments& arguments, std::span<const Tensor> tensors, std::size_t& next) {
  const auto given = arguments.find(name);
  if (given != arguments.end()) return convert_argument<P>(replacement, name, given->second);
  if constexpr (std::is_same_v<P, Tensor>) {
    return tensors[next++];
  } else {
    throw_missing_argument(replacement, name);
  }
}

template <class Parameters, class Call, std::size_t... I>
Replacement bind_parameters(Replacement replacement, std::vector<std::string> names,
                            Arguments arguments, Call call, std::index_sequence<I...>) {
  names.resize(sizeof...(I));
  check_argument_names(replacement.name, arguments, names);
  replacement.tensor_parameters =
      (0 + ... +
       static_cast<int>(std::is_same_v<std::tuple_element_t<I, Parameters>, Tensor> &&
                        !arguments.contains(names[I])));
  replacement.call = [label = replacement.name, names = std::move(names),
                      arguments = std::move(arguments),
                      call](std::span<const Tensor> tensors) mutable -> std::vector<Tensor> {
    std::size_t next = 0;
    // Braces evaluate in order, so tensors are taken in the parameters' order.
    Parameters parameters{take_parameter<std::tuple_element_t<I, Parameters>>(
        label, names[I], arguments, tensors, next)...};
    auto result = std::apply(call, parameters);
    std::vector<Tensor> outputs;
    nn::detail::append_tensors(outputs, result);
    return outputs;
  };
  return replacement;
}

}  // namespace detail

/// A replacement from a module, called through its handle so that its scope is recorded.
template <class T>
Replacement make_replacement(const nn::Child<T>& module, const ReplaceOptions& options) {
  Replacement replacement;
  replacement.name = options.name.empty() ? module->type_name() : options.name;
  replacement.module = module.shared();
  using Parameters = typename detail::Signature<decltype(&T::forward)>::Parameters;
  constexpr std::size_t kCount = std::tuple_size_v<Parameters>;
  return detail::bind_parameters<Parameters>(
      std::move(replacement), detail::parameter_names<T>(kCount), options.concrete_args,
      [module](const auto&... arguments) { return module(arguments...); },
      std::make_index_sequence<kCount>{});
}

/// A replacement from a function or a callable object with one call operator.
template <class F>
Replacement make_replacement(F function, const ReplaceOptions& options) {
  Replacement replacement;
  replacement.name = options.name.empty() ? "function" : options.name;
  using Parameters = typename detail::Signature<F>::Parameters;
  constexpr std::size_t kCount = std::tuple_size_v<Parameters>;
  return detail::bind_parameters<Parameters>(
      std::move(replacement), detail::parameter_names<F>(kCount), options.concrete_args,
      [function](const auto&... arguments) mutable { return function(arguments...); },
      std::make_index_sequence<kCount>{});
}

}  // namespace tenon
