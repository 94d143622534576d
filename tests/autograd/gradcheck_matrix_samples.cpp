// Samples of products, normalizations and dropout.
#include "tensor/ops/attributes.h"
#include "tensor/rules/gradients.h"
#include "tests/autograd/gradcheck_samples.h"

namespace tenon::test {
namespace {

void add_products(Samples& samples) {
  const auto product = [&](const char* what, Tensor a, Tensor b) {
    samples.push_back(
        {"matmul",
         what,
         [](const std::vector<Tensor>& in) { return std::vector{matmul(in[0], in[1])}; },
         {std::move(a), std::move(b)}});
  };
  product("matrices", leaf({2, 3}, kDense, 1), leaf({3, 4}, kDense, 2));
  product("transposed matrices", leaf({2, 3}, kPermuted, 1), leaf({3, 4}, kPermuted, 2));
  product("narrowed and expanded", leaf({2, 3}, kNarrowed, 1), leaf({3, 2}, kExpanded, 2));
  product("vectors", leaf({3}, kDense, 1), leaf({3}, kNarrowed, 2));
  product("matrix and vector", leaf({2, 3}, kPermuted, 1), leaf({3}, kDense, 2));
  product("vector and matrix", leaf({3}, kDense, 1), leaf({3, 2}, kPermuted, 2));
  product("batches", leaf({2, 2, 3}, kPermuted, 1), leaf({2, 3, 2}, kDense, 2));
  product("broadcast batches", leaf({2, 1, 2, 2}, kDense, 1), leaf({3, 2, 1}, kPermuted, 2));
  product("vector and batch", leaf({2}, kDense, 1), leaf({2, 2, 2}, kDense, 2));
  product("no rows", leaf({0, 3}, kDense, 1), leaf({3, 2}, kDense, 2));
  product("no depth", leaf({2, 0}, kDense, 1), leaf({0, 2}, kDense, 2));
  const auto layer = [&](const char* what, Tensor x, Tensor w, Tensor b) {
    samples.push_back(
        {"linear",
         what,
         [](const std::vector<Tensor>& in) { return std::vector{linear(in[0], in[1], in[2])}; },
         {std::move(x), std::move(w), std::move(b)}});
  };
  layer("matrix", leaf({2, 3}), leaf({4, 3}, kDense, 2), leaf({4}, kDense, 3));
  layer("without bias", leaf({2, 3}, kPermuted), leaf({2, 3}, kPermuted, 2), {});
  layer("leading axes", leaf({2, 2, 3}, kPermuted), leaf({2, 3}, kDense, 2),
        leaf({2}, kNarrowed, 3));
  layer("one row", leaf({3}), leaf({2, 3}, kNarrowed, 2), leaf({2}, kDense, 3));
  layer("no rows", leaf({0, 3}), leaf({2, 3}, kDense, 2), leaf({2}, kDense, 3));
}

/// The ops that begin with a product, by name: their second results are differentiated too.
void add_fused_products(Samples& samples) {
  const auto add = [&](const char* op, const char* what, std::vector<Tensor> operands,
                       const Attrs& attrs = {}) {
    samples.push_back(
        {op, what,
         [op, attrs](const std::vector<Tensor>& in) { return apply(get_op(op), in, attrs); },
         std::move(operands)});
  };
  for (const Approximate form : {Approximate::none, Approximate::tanh}) {
    for (const char* op : {"linear_gelu", "linear_gelu_aux"}) {
      const GeluAttrs attrs{form};
      add(op, "leading axes",
          {leaf({2, 2, 3}, kPermuted), leaf({2, 3}, kDense, 2), leaf({2}, kNarrowed, 3)}, attrs);
      add(op, "without bias", {leaf({2, 3}), leaf({4, 3}, kPermuted, 2), {}}, attrs);
      add(op, "no rows", {leaf({0, 3}), leaf({2, 3}, kDense, 2), leaf({2}, kDense, 3)}, attrs);
    }
  }
  for (const char* op : {"linear_relu", "linear_silu", "linear_silu_aux"}) {
    add(op, "leading axes",
        {leaf({2, 2, 3}, kPermuted), leaf({2, 3}, kDense, 2), leaf({2}, kNarrowed, 3)});
    add(op, "without bias", {leaf({2, 3}), leaf({4, 3}, kPermuted, 2), {}});
    add(op, "no rows", {leaf({0, 3}), leaf({2, 3}, kDense, 2), leaf({2}, kDense, 3)});
  }
  for (const char* slope : {"matmul_relu_backward", "matmul_silu_backward"}) {
    add(slope, "leading axes",
        {leaf({2, 2, 3}, kPermuted), leaf({3, 2}, kPermuted, 2), leaf({2, 2, 2}, kDense, 3)});
    add(slope, "no rows", {leaf({0, 3}), leaf({3, 2}, kDense, 2), leaf({0, 2}, kDense, 3)});
  }
  for (const Approximate form : {Approximate::none, Approximate::tanh}) {
    for (const char* slope : {"matmul_gelu_backward", "matmul_gelu_backward_again"}) {
      add(slope, "leading axes",
          {leaf({2, 2, 3}, kPermuted), leaf({3, 2}, kPermuted, 2), leaf({2, 2, 2}, kDense, 3)},
          GeluAttrs{form});
      add(slope, "no rows", {leaf({0, 3}), leaf({3, 2}, kDense, 2), leaf({0, 2}, kDense, 3)},
          GeluAttrs{form});
    }
  }
  const char* residual = "linear_residual";
  add(residual, "leading axes",
      {leaf({2, 2, 3}, kPermuted), leaf({2, 3}, kDense, 2), leaf({2}, kNarrowed, 3),
       leaf({2, 2, 2}, kPermuted, 4)});
  add(residual, "without bias",
      {leaf({2, 3}), leaf({4, 3}, kPermuted, 2), {}, leaf({2, 4}, kExpanded, 4)});
  add(residual, "no rows",
      {leaf({0, 3}), leaf({2, 3}, kDense, 2), leaf({2}, kDense, 3), leaf({0, 2}, kDense, 4)});
  const char* sum = "matmul_add";
  add(sum, "broadcast batches",
      {leaf({2, 1, 2, 2}, kDense, 1), leaf({3, 2, 1}, kPermuted, 2),
       leaf({2, 3, 2, 1}, kDense, 3)});
  add(sum, "matrices",
      {leaf({2, 3}, kPermuted, 1), leaf({3, 2}, kDense, 2), leaf({2, 2}, kNarrowed, 3)});
  add(sum, "no depth", {leaf({2, 0}, kDense, 1), leaf({0, 2}, kDense, 2), leaf({2, 2}, kDense, 3)});
}

void add_softmaxes(Samples& samples) {
  const auto add = [&](const char* op, Tensor (*f)(const Tensor&, std::int64_t), const char* what,
                       const Tensor& x, std::int64_t dim) {
    samples.push_back(
        {op, what, [=](const std::vector<Tensor>& in) { return std::vector{f(in[0], dim)}; }, {x}});
  };
  const auto add_gradient =
      [&](const char* op, Tensor (*f)(const Tensor&, const Tensor&, std::int64_t), const char* what,
          const Extents& sizes, Memory memory, std::int64_t dim) {
        samples.push_back(
            {op,
             what,
             [=](const std::vector<Tensor>& in) { return std::vector{f(in[0], in[1], dim)}; },
             {leaf(sizes, memory, 1), leaf(sizes, kDense, 2)}});
      };
  for (const bool logarithm : {false, true}) {
    const char* op = logarithm ? "log_softmax" : "softmax";
    const auto f = logarithm ? &log_softmax : &softmax;
    add(op, f, "last axis", leaf({2, 4}), -1);
    add(op, f, "first axis of a permuted tensor", leaf({3, 2, 2}, kPermuted), 0);
    add(op, f, "middle axis", leaf({2, 3, 2}, kNarrowed), 1);
    add(op, f, "expanded", leaf({3, 2}, kExpanded), 0);
    add(op, f, "one element", leaf({2, 1}), 1);
    add(op, f, "zero-size", leaf({0, 3}), 1);
    const char* backward = logarithm ? "log_softmax_backward" : "softmax_backward";
    const auto g = logarithm ? &ops::log_softmax_backward : &ops::softmax_backward;
    add_gradient(backward, g, "last axis", {2, 3}, kDense, 1);
    add_gradient(backward, g, "first axis, strided", {3, 2}, kPermuted, 0);
    add_gradient(backward, g, "zero-size", {0, 2}, kDense, 1);
  }
}

void add_norms(Samples& samples) {
  const auto layer = [&](const char* what, Tensor x, Tensor w, Tensor b,
                         std::vector<std::int64_t> shape) {
    samples.push_back({"layer_norm",
                       what,
                       [shape](const std::vector<Tensor>& in) {
                         return std::vector{layer_norm(in[0], shape, in[1], in[2], 1e-3)};
                       },
                       {std::move(x), std::move(w), std::move(b)}});
  };
  layer("weight and bias", leaf({2, 4}), leaf({4}, kDense, 2), leaf({4}, kDense, 3), {4});
  layer("two axes", leaf({2, 3, 2}, kPermuted), leaf({3, 2}, kPermuted, 2), leaf({3, 2}, kDense, 3),
        {3, 2});
  layer("weight only", leaf({3, 3}, kNarrowed), leaf({3}, kNarrowed, 2), {}, {3});
  layer("bias only", leaf({2, 3}), {}, leaf({3}, kDense, 3), {3});
  layer("neither", leaf({2, 5}, kPermuted), {}, {}, {5});
  layer("expanded", leaf({2, 3}, kExpanded), leaf({3}, kExpanded, 2), {}, {3});
  layer("one row", leaf({4}), leaf({4}, kDense, 2), leaf({4}, kDense, 3), {4});
  layer("no rows", leaf({0, 3}), leaf({3}, kDense, 2), leaf({3}, kDense, 3), {3});
  const auto rms = [&](const char* what, Tensor x, Tensor w, std::vector<std::int64_t> shape) {
    samples.push_back({"rms_norm",
                       what,
                       [shape](const std::vector<Tensor>& in) {
                         return std::vector{rms_norm(in[0], shape, in[1], 1e-3)};
                       },
                       {std::move(x), std::move(w)}});
  };
  rms("weight", leaf({2, 4}), leaf({4}, kDense, 2), {4});
  rms("two axes", leaf({2, 3, 2}, kPermuted), leaf({3, 2}, kPermuted, 2), {3, 2});
  rms("without weight", leaf({3, 3}, kNarrowed), {}, {3});
  rms("no rows", leaf({0, 3}), leaf({3}, kDense, 2), {3});
}

void add_norm_gradients(Samples& samples) {
  const auto add = [&](const char* op, bool centers, const char* what, Tensor grad, Tensor x,
                       Tensor w, std::int64_t axes) {
    const TensorFunction f = [=](const std::vector<Tensor>& in) {
      const NormBackwardAttrs attrs{axes, 1e-3, true, bool(in[2]), centers && bool(in[2])};
      const ops::NormGradients gradients =
          centers ? ops::layer_norm_backward(in[0], in[1], in[2], attrs)
                  : ops::rms_norm_backward(in[0], in[1], in[2], attrs);
      std::vector<Tensor> outputs = {gradients.input};
      if (gradients.weight) outputs.push_back(gradients.weight);
      if (gradients.bias) outputs.push_back(gradients.bias);
      return outputs;
    };
    samples.push_back({op, what, f, {std::move(grad), std::move(x), std::move(w)}});
  };
  for (const bool centers : {true, false}) {
    const char* op = centers ? "layer_norm_backward" : "rms_norm_backward";
    add(op, centers, "with weight", leaf({2, 3}), leaf({2, 3}, kPermuted, 2), leaf({3}, kDense, 3),
        1);
    add(op, centers, "two axes without weight", leaf({2, 2, 2}, kNarrowed),
        leaf({2, 2, 2}, kDense, 2), {}, 2);
    add(op, centers, "no rows", leaf({0, 3}), leaf({0, 3}, kDense, 2), leaf({3}, kDense, 3), 1);
    const char* sum = centers ? "layer_norm_backward_add" : "rms_norm_backward_add";
    for (const std::int64_t rows : {0, 2}) {
      samples.push_back({sum,
                         rows == 0 ? "no rows" : "rows",
                         [=](const std::vector<Tensor>& in) {
                           const NormBackwardAttrs attrs{1, 1e-3, true, true, centers};
                           return apply(get_op(sum), in, attrs);
                         },
                         {leaf({rows, 3}), leaf({rows, 3}, kPermuted, 2), leaf({3}, kDense, 3),
                          leaf({rows, 3}, kDense, 4)}});
    }
  }
}

/// The site is given, so that each evaluation draws the same mask.
void add_dropouts(Samples& samples) {
  const auto drop = [&](const char* what, Tensor x) {
    samples.push_back({"dropout",
                       what,
                       [](const std::vector<Tensor>& in) {
                         const DropoutAttrs attrs{0.4, DropoutMode::train, 3};
                         return std::vector{apply1(get_op("dropout"), {in[0]}, attrs)};
                       },
                       {std::move(x)}});
  };
  drop("contiguous", leaf({3, 9}));
  drop("permuted", leaf({2, 3, 2}, kPermuted));
  drop("expanded", leaf({3, 2}, kExpanded));
  drop("zero-size", leaf({0, 3}));
  const auto tail = [&](const char* what, const Extents& sizes, Memory memory) {
    const Extents row = {sizes.back()};
    samples.push_back(
        {"bias_dropout_residual_layer_norm",
         what,
         [](const std::vector<Tensor>& in) {
           const BiasDropoutResidualLayerNormAttrs attrs{0.4, 1e-3, DropoutMode::train, 5};
           return apply(get_op("bias_dropout_residual_layer_norm"), in, attrs);
         },
         {leaf(sizes, memory, 1), leaf(row, kDense, 2), leaf(sizes, kPermuted, 3),
          leaf(row, kNarrowed, 4), leaf(row, kDense, 5)}});
  };
  for (const std::int64_t rows : {0, 3}) {
    samples.push_back({"bias_dropout_residual_layer_norm_backward",
                       rows == 0 ? "no rows" : "rows",
                       [](const std::vector<Tensor>& in) {
                         const ResidualNormBackwardAttrs attrs{{0.4, 1e-3, DropoutMode::train, 5}};
                         return apply(get_op("bias_dropout_residual_layer_norm_backward"), in,
                                      attrs);
                       },
                       {leaf({rows, 4}), leaf({rows, 4}, kPermuted, 2), leaf({4}, kDense, 3),
                        leaf({rows, 4}, kDense, 4), leaf({4}, kDense, 5)}});
  }
  tail("rows", {3, 4}, kDense);
  tail("leading axes", {2, 2, 3}, kPermuted);
  tail("no rows", {0, 4}, kDense);
}

}  // namespace

Samples matrix_samples() {
  Samples samples;
  add_products(samples);
  add_fused_products(samples);
  add_softmaxes(samples);
  add_norms(samples);
  add_norm_gradients(samples);
  add_dropouts(samples);
  return samples;
}

}  // namespace tenon::test
