// Activations as modules: ReLU, GELU, SiLU, Tanh, Sigmoid, Softmax; and Print. Shapes are kept.
#pragma once

#include <cstdint>
#include <string>

#include "nn/module.h"

namespace tenon::nn {

class ReLU : public Module {
 public:
  Tensor forward(const Tensor& input) const { return relu(input); }
  bool is_leaf() const override { return true; }
};

class GELU : public Module {
 public:
  explicit GELU(Approximate form = Approximate::none) : approximate(form) {}
  Tensor forward(const Tensor& input) const { return gelu(input, approximate); }
  std::string extra_repr() const override;
  bool is_leaf() const override { return true; }

  const Approximate approximate;
};

class SiLU : public Module {
 public:
  Tensor forward(const Tensor& input) const { return silu(input); }
  bool is_leaf() const override { return true; }
};

class Tanh : public Module {
 public:
  Tensor forward(const Tensor& input) const { return tanh(input); }
  bool is_leaf() const override { return true; }
};

class Sigmoid : public Module {
 public:
  Tensor forward(const Tensor& input) const { return sigmoid(input); }
  bool is_leaf() const override { return true; }
};

/// Along `dim`, negative from the end.
class Softmax : public Module {
 public:
  explicit Softmax(std::int64_t axis) : dim(axis) {}
  Tensor forward(const Tensor& input) const { return softmax(input, dim); }
  std::string extra_repr() const override;
  bool is_leaf() const override { return true; }

  const std::int64_t dim;
};

/// Returns its input, after a line about it on print_stream(); see print().
class Print : public Module {
 public:
  explicit Print(std::string text = "") : label(std::move(text)) {}
  Tensor forward(const Tensor& input) const { return print(input, label); }
  std::string extra_repr() const override;
  bool is_leaf() const override { return true; }

  const std::string label;
};

}  // namespace tenon::nn
