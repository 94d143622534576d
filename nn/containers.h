// Sequential: modules called one after another. ModuleList: a typed list of modules of one class.
//
//   auto mlp = nn::make<nn::Sequential>(nn::make<nn::Linear>(8, 32), nn::make<nn::GELU>());
//   struct Stack : nn::Module {
//     Stack() : blocks(add<nn::ModuleList<Block>>("blocks")) { blocks->emplace_back(64); }
//     Tensor forward(Tensor x) { for (const auto& block : *blocks) x = block(x); return x; }
//     nn::Child<nn::ModuleList<Block>> blocks;
//   };
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "nn/module.h"

namespace tenon::nn {

namespace detail {
[[noreturn]] void throw_no_such_child(const Module& module, std::int64_t index, std::size_t size);
}  // namespace detail

/// Modules of any classes whose forward takes and returns one Tensor; children "0", "1", ….
class Sequential : public Module {
 public:
  template <class... T>
  explicit Sequential(const Child<T>&... modules) {
    (push_back(modules), ...);
  }

  /// ModuleError for an empty handle.
  template <class T>
  void push_back(const Child<T>& module) {
    register_module(std::to_string(steps_.size()), module);
    steps_.push_back([module](const Tensor& input) -> Tensor { return module(input); });
  }

  /// Without modules, the input.
  Tensor forward(Tensor input) const {
    for (const auto& step : steps_) input = step(input);
    return input;
  }
  std::size_t size() const { return steps_.size(); }
  /// ModuleError outside [0, size()).
  Module& operator[](std::int64_t index);

 private:
  std::vector<std::function<Tensor(const Tensor&)>> steps_;
};

/// Modules of class T; children "0", "1", …. It has no forward: the owner calls the elements.
template <class T>
class ModuleList : public Module {
 public:
  /// ModuleError for an empty handle.
  void push_back(const Child<T>& module) {
    modules_.push_back(register_module(std::to_string(modules_.size()), module));
  }
  /// Appends a T made of `args`.
  template <class... A>
  Child<T> emplace_back(A&&... args) {
    push_back(make<T>(std::forward<A>(args)...));
    return modules_.back();
  }

  /// ModuleError outside [0, size()).
  const Child<T>& operator[](std::int64_t index) const {
    if (index < 0 || static_cast<std::size_t>(index) >= modules_.size()) {
      detail::throw_no_such_child(*this, index, modules_.size());
    }
    return modules_[static_cast<std::size_t>(index)];
  }
  std::size_t size() const { return modules_.size(); }
  auto begin() const { return modules_.begin(); }
  auto end() const { return modules_.end(); }

 protected:
  bool folds_equal_children() const override { return true; }

 private:
  std::vector<Child<T>> modules_;
};

}  // namespace tenon::nn
