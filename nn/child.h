// Child<T>: the handle by which a module is held and called. Included by nn/module.h.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <tuple>
#include <type_traits>
#include <typeinfo>
#include <utility>
#include <vector>

#include "nn/module.h"
#include "tensor/interpreter.h"

namespace tenon::nn {

namespace detail {

[[noreturn]] void throw_null_child(const char* mangled_type);
[[noreturn]] void throw_wrong_arity(const Module& module, std::size_t given);

/// One module call: the scope that interpreters see, and the hooks around forward.
class ModuleCall {
 public:
  ModuleCall(Module& module, std::vector<Tensor>& inputs);
  /// Runs the forward hooks on `outputs`, then reports them.
  void finish(std::span<const Tensor> inputs, std::vector<Tensor>& outputs);

 private:
  Module& module_;
  ModuleScope scope_;
};

template <class T>
inline constexpr bool is_tensor = std::is_same_v<std::remove_cvref_t<T>, Tensor>;
template <class T>
inline constexpr bool is_tensors = std::is_same_v<std::remove_cvref_t<T>, std::vector<Tensor>>;

template <class T>
concept TensorTuple = requires {
  std::tuple_size<std::remove_cvref_t<T>>::value;
};

template <class A>
void append_tensors(std::vector<Tensor>& list, const A& argument) {
  if constexpr (is_tensor<A>) {
    list.push_back(argument);
  } else if constexpr (is_tensors<A>) {
    list.insert(list.end(), argument.begin(), argument.end());
  } else if constexpr (TensorTuple<A>) {
    std::apply([&](const auto&... element) { (append_tensors(list, element), ...); }, argument);
  }
}

/// An argument as forward gets it: tensors come from the list, which hooks may have changed.
template <class A>
using Taken = std::conditional_t<is_tensor<A>, Tensor,
                                 std::conditional_t<is_tensors<A>, std::vector<Tensor>, A&&>>;

template <class A>
Taken<A> take(std::remove_reference_t<A>& argument, const std::vector<Tensor>& list,
              std::size_t& next) {
  if constexpr (is_tensor<A>) {
    return list[next++];
  } else if constexpr (is_tensors<A>) {
    const auto first = list.begin() + static_cast<std::ptrdiff_t>(next);
    next += argument.size();
    return {first, first + static_cast<std::ptrdiff_t>(argument.size())};
  } else {
    if constexpr (TensorTuple<A>) {  // its tensors were reported, so they are passed over here
      std::vector<Tensor> own;
      append_tensors(own, argument);
      next += own.size();
    }
    return std::forward<A>(argument);
  }
}

/// Puts the (possibly replaced) tensors of `list` back into forward's result.
template <class R>
void restore(R& result, const std::vector<Tensor>& list, std::size_t& next) {
  if constexpr (is_tensor<R>) {
    result = list[next++];
  } else if constexpr (is_tensors<R>) {
    for (Tensor& element : result) element = list[next++];
  } else {
    std::apply([&](auto&... element) { (restore(element, list, next), ...); }, result);
  }
}

/// Stands for one tensor argument when asking how many of them a forward takes.
template <std::size_t>
using TensorAt = const Tensor&;

template <class T, std::size_t... I>
constexpr bool takes_tensors(std::index_sequence<I...>) {
  return requires(T & module, TensorAt<I>... tensor) { module.forward(tensor...); };
}

}  // namespace detail

/// Shared ownership of a module; copies refer to the same one.
template <class T>
class Child {
 public:
  Child() = default;
  explicit Child(std::shared_ptr<T> module) : module_(std::move(module)) {}

  T* get() const { return module_.get(); }
  const std::shared_ptr<T>& shared() const { return module_; }
  operator std::shared_ptr<Module>() const { return module_; }
  explicit operator bool() const { return module_ != nullptr; }
  /// ModuleError when the handle is empty.
  T& operator*() const {
    if (!module_) detail::throw_null_child(typeid(T).name());
    return *module_;
  }
  T* operator->() const { return &**this; }

  /// Calls the module: enters its scope, runs pre-hooks, forward and hooks. Tensors, vectors and
  /// tuples of tensors among the arguments are reported as inputs; others are passed on.
  /// forward returns a Tensor, a std::vector<Tensor> or a tuple of these.
  template <class... A>
  auto operator()(A&&... args) const {
    T& module = **this;
    std::vector<Tensor> inputs;
    (detail::append_tensors(inputs, args), ...);
    detail::ModuleCall call(module, inputs);
    std::size_t next = 0;
    std::tuple<detail::Taken<A>...> taken{detail::take<A>(args, inputs, next)...};
    auto result =
        std::apply([&](auto&&... a) { return module.forward(std::forward<decltype(a)>(a)...); },
                   std::move(taken));
    using R = decltype(result);
    static_assert(detail::is_tensor<R> || detail::is_tensors<R> || detail::TensorTuple<R>,
                  "forward must return a Tensor, a std::vector<Tensor> or a tuple of these");
    std::vector<Tensor> outputs;
    detail::append_tensors(outputs, result);
    call.finish(inputs, outputs);
    next = 0;
    detail::restore(result, outputs, next);
    return result;
  }

  /// The same call with any number of tensors that forward takes, up to 8; results flattened.
  /// ModuleError for another number.
  std::vector<Tensor> call(std::span<const Tensor> inputs) const { return call_with<0>(inputs); }

 private:
  template <std::size_t N>
  std::vector<Tensor> call_with(std::span<const Tensor> inputs) const {
    if constexpr (N > 8) {
      detail::throw_wrong_arity(**this, inputs.size());
    } else {
      if constexpr (detail::takes_tensors<T>(std::make_index_sequence<N>{})) {
        if (inputs.size() == N) return spread(inputs, std::make_index_sequence<N>{});
      }
      return call_with<N + 1>(inputs);
    }
  }
  template <std::size_t... I>
  std::vector<Tensor> spread(std::span<const Tensor> inputs, std::index_sequence<I...>) const {
    std::vector<Tensor> outputs;
    detail::append_tensors(outputs, (*this)(inputs[I]...));
    return outputs;
  }

  std::shared_ptr<T> module_;
};

/// A root module: `auto model = nn::make<Attention>(1024, 16)`.
template <class T, class... A>
Child<T> make(A&&... args) {
  return Child<T>(std::make_shared<T>(std::forward<A>(args)...));
}

template <class T>
Child<T> Module::register_module(std::string name, std::shared_ptr<T> module) {
  add_child(std::move(name), module);
  return Child<T>(std::move(module));
}

template <class T>
Child<T> Module::register_module(std::string name, const Child<T>& module) {
  return register_module(std::move(name), module.shared());
}

template <class T, class... A>
Child<T> Module::add(std::string name, A&&... args) {
  return register_module(std::move(name), std::make_shared<T>(std::forward<A>(args)...));
}

template <class T>
std::ostream& operator<<(std::ostream& stream, const Child<T>& child) {
  return stream << static_cast<const Module&>(*child);
}

}  // namespace tenon::nn
