// Patterns: an ordinary function on Tensors, run once on values of unknown shape. What it calls is
// what a match must consist of; its parameters are what a match must be fed with.
//
//   auto qkv = [](const Tensor& x) {
//     Tensor y = call_module("[qkv]_proj", x);
//     return y.view({y.size(0), y.size(1), 16, -1}).permute({0, 2, 1, 3});
//   };
//
// Sizes taken with size() match whatever the matched value has there; -1 in a shape matches any
// size; any() matches any constant; everything else must be equal. A module that the pattern calls
// is the ops that it consists of: its parameters and buffers match any state of the model.
#pragma once

#include <concepts>
#include <cstddef>
#include <functional>
#include <span>
#include <string>
#include <type_traits>
#include <typeinfo>
#include <utility>
#include <vector>

#include "nn/module.h"
#include "tensor/op.h"
#include "tensor/tensor.h"

namespace tenon {

/// In a pattern: a call of a module whose whole name, or whole path below the schedule, matches
/// `regex` (ECMAScript). TraceError outside of a pattern, ScheduleError for an invalid regex.
Tensor call_module(const std::string& regex, const std::vector<Tensor>& inputs);
template <class... T>
Tensor call_module(const std::string& regex, const Tensor& first, const T&... rest) {
  return call_module(regex, std::vector<Tensor>{first, rest...});
}

namespace detail {
/// The class name that modules of this type have in a Graph.
std::string module_type_name(const std::type_info& type);
Tensor call_module_of_type(const std::string& type, const std::vector<Tensor>& inputs);
}  // namespace detail

/// In a pattern: a call of any module whose class is M. TraceError outside of a pattern.
template <std::derived_from<nn::Module> M, class... T>
Tensor call_module(const Tensor& first, const T&... rest) {
  return detail::call_module_of_type(detail::module_type_name(typeid(M)), {first, rest...});
}

/// A recorded pattern function. Values are numbered in the order in which they came up, the
/// parameters first.
struct Pattern {
  struct Call {
    const Op* op = nullptr;  // null: a call_module
    Attrs attrs;
    std::string regex;        // of the module's name, if not empty
    std::string type;         // else its class
    std::vector<int> inputs;  // values, -1 for an absent operand
    int output = 0;           // the first of its values
    int num_outputs = 1;      // an op may turn out to have fewer
    /// "relu", "call_module".
    const std::string& name() const;
  };
  struct Value {
    enum class Kind { parameter, state, result } kind = Kind::parameter;
    int call = -1;  // results: which call's
    int index = 0;  // results: which one of the call
    int uses = 0;   // operands and results of the pattern that it is
  };
  int parameters = 0;
  std::vector<Value> values;
  std::vector<Call> calls;
  std::vector<int> outputs;

  /// The call that makes a value, or null for a parameter or a state.
  const Call* maker(int value) const;
  /// "permute(view(call_module("[qkv]_proj", %0)))"; a value with several uses is named first.
  std::string to_string() const;
};

/// Runs `function` on `parameters` values of unknown shape. ScheduleError when it calls no op, does
/// not use a parameter or the result of a call, or returns what is no result of an op, or results
/// that nothing connects.
Pattern record_pattern(int parameters,
                       const std::function<std::vector<Tensor>(std::span<const Tensor>)>& function);
/// The pattern of a fused op: its decomposition with every operand present and these attributes, one
/// of its pattern_attrs().
Pattern pattern_of_decomposition(const Op& op, const Attrs& attrs);

namespace detail {

template <std::size_t>
using TensorParameter = const Tensor&;

template <class F, std::size_t... I>
constexpr bool takes_tensors(std::index_sequence<I...>) {
  return std::is_invocable_v<F&, TensorParameter<I>...>;
}

/// How many tensors F can be called with: the smallest number from 1 to 10, or -1.
template <class F, int N = 1>
constexpr int tensor_arity() {
  if constexpr (N > 10) {
    return -1;
  } else if constexpr (takes_tensors<F>(std::make_index_sequence<N>{})) {
    return N;
  } else {
    return tensor_arity<F, N + 1>();
  }
}

template <class F, std::size_t... I>
std::vector<Tensor> invoke_with(F& function, std::span<const Tensor> tensors,
                                std::index_sequence<I...>) {
  const auto result = function(tensors[I]...);
  using R = std::remove_cv_t<decltype(result)>;
  static_assert(nn::detail::is_tensor<R> || nn::detail::is_tensors<R> || nn::detail::TensorTuple<R>,
                "a pattern returns a Tensor, or a vector, array, pair or tuple of Tensors");
  std::vector<Tensor> outputs;
  nn::detail::append_tensors(outputs, result);
  return outputs;
}

}  // namespace detail

/// A pattern from any callable on 1 to 10 tensors that returns one or several tensors.
template <class F>
Pattern record_pattern(F&& function) {
  constexpr int kParameters = detail::tensor_arity<std::remove_reference_t<F>>();
  static_assert(kParameters > 0, "a pattern is callable with 1 to 10 Tensors");
  return record_pattern(kParameters, [&](std::span<const Tensor> tensors) {
    return detail::invoke_with(function, tensors, std::make_index_sequence<kParameters>{});
  });
}

}  // namespace tenon
