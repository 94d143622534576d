// Patterns: an ordinary function on Tensors, run once on values of unknown shape. What it calls is
// what a match must consist of; its parameters are what a match must be fed with.
//
//   auto qkv = [](const Tensor& x) {
//     Tensor y = call_module("[qkv]_proj", x);
//     return y.view({y.size(0), y.size(1), 16, -1}).permute({0, 2, 1, 3});
//   };
//
// Sizes taken with size() match whatever the matched value has there; -1 in a shape matches any
// size; any() matches any constant; everything else must be equal.
#pragma once

#include <cstddef>
#include <functional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

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

/// A recorded pattern function. Values are numbered: the parameters first, then one a call.
struct Pattern {
  struct Call {
    const Op* op = nullptr;  // null: a call_module
    Attrs attrs;
    std::string regex;
    std::vector<int> inputs;  // values, -1 for an absent operand
    int output = 0;           // the first of its values
    int num_outputs = 1;
  };
  int parameters = 0;
  std::vector<Call> calls;
  int output = 0;

  /// The call that makes a value, or null for a parameter.
  const Call* maker(int value) const;
  /// "permute(view(call_module("[qkv]_proj", %0)))"
  std::string to_string() const;
};

/// Runs `function` on `parameters` values of unknown shape. ScheduleError when it calls no op, does
/// not use a parameter, or returns anything but one tensor.
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
  using R = std::invoke_result_t<F&, TensorParameter<I>...>;
  if constexpr (std::is_same_v<std::decay_t<R>, std::vector<Tensor>>) {
    return function(tensors[I]...);
  } else {
    return {function(tensors[I]...)};
  }
}

}  // namespace detail

/// A pattern from any callable on 1 to 10 tensors that returns one tensor.
template <class F>
Pattern record_pattern(F&& function) {
  constexpr int kParameters = detail::tensor_arity<std::remove_reference_t<F>>();
  static_assert(kParameters > 0, "a pattern is callable with 1 to 10 Tensors");
  return record_pattern(kParameters, [&](std::span<const Tensor> tensors) {
    return detail::invoke_with(function, tensors, std::make_index_sequence<kParameters>{});
  });
}

}  // namespace tenon
