#include "tests/autograd/gradcheck_samples.h"

#include "tensor/rules/gradients.h"

namespace tenon::test {

Tensor leaf(const Extents& sizes, Memory memory, unsigned seed) {
  std::mt19937 generator(seed);
  std::uniform_real_distribution<double> uniform(0.2, 1.8);
  return make_tensor(sizes, DType::float64, memory,
                     [&] {
                       double value = uniform(generator);
                       if (value >= 0.9) value += 0.2;
                       return generator() % 2 == 0 ? value : -value;
                     })
      .requires_grad_();
}

Tensor leaf_in(double low, double high, const Extents& sizes, Memory memory, unsigned seed) {
  return random_tensor(sizes, DType::float64, memory, seed, low, high).requires_grad_();
}

Tensor mask(const Extents& sizes, unsigned seed) {
  return random_tensor(sizes, DType::boolean, Memory::contiguous, seed);
}

Tensor indices(const std::vector<std::int64_t>& values, const Extents& sizes) {
  return from_vector(values, Shape(std::vector<Dim>(sizes.begin(), sizes.end())));
}

namespace {

/// The layouts and sizes that every unary op is checked with.
void add_unary(Samples& samples, const char* op, Tensor (*f)(const Tensor&), double low,
               double high) {
  const TensorFunction call = [f](const std::vector<Tensor>& in) { return std::vector{f(in[0])}; };
  const auto add = [&](const char* what, const Extents& sizes, Memory memory) {
    const Tensor x = low < 0 ? leaf(sizes, memory) : leaf_in(low, high, sizes, memory);
    samples.push_back({op, what, call, {x}});
  };
  add("contiguous", {2, 5}, Memory::contiguous);
  add("0-dim", {}, Memory::contiguous);
  add("permuted", {3, 2, 2}, Memory::permuted);
  add("narrowed", {2, 3}, Memory::narrowed);
  add("expanded", {3, 2}, Memory::expanded);
  add("zero-size", {2, 0, 3}, Memory::contiguous);
}

void add_binary(Samples& samples, const char* op, Tensor (*f)(const Tensor&, const Tensor&),
                double low = -2) {
  const TensorFunction call = [f](const std::vector<Tensor>& in) {
    return std::vector{f(in[0], in[1])};
  };
  const auto add = [&](const char* what, const Extents& a, Memory a_memory, const Extents& b,
                       Memory b_memory) {
    const auto make = [&](const Extents& sizes, Memory memory, unsigned seed) {
      return low < 0 ? leaf(sizes, memory, seed) : leaf_in(low, 2, sizes, memory, seed);
    };
    samples.push_back({op, what, call, {make(a, a_memory, 11), make(b, b_memory, 22)}});
  };
  add("same shape", {2, 3}, Memory::contiguous, {2, 3}, Memory::contiguous);
  add("broadcast both ways", {2, 1, 3}, Memory::permuted, {4, 1}, Memory::contiguous);
  add("broadcast of lower rank", {2, 3}, Memory::narrowed, {3}, Memory::narrowed);
  add("0-dim operand", {}, Memory::contiguous, {2, 2}, Memory::permuted);
  add("expanded", {3, 2}, Memory::expanded, {3, 2}, Memory::expanded);
  add("zero-size", {0, 3}, Memory::contiguous, {1, 3}, Memory::contiguous);
  Tensor constant = leaf({2, 3}, Memory::contiguous, 33);
  constant.requires_grad_(false);
  const Tensor variable =
      low < 0 ? leaf({3}, Memory::contiguous, 44) : leaf_in(low, 2, {3}, Memory::contiguous, 44);
  if (low < 0) samples.push_back({op, "only the second operand", call, {constant, variable}});
  samples.push_back(
      {op,
       "an operand twice",
       [f](const std::vector<Tensor>& in) { return std::vector{f(in[0], mul(in[0], 0.7))}; },
       {variable}});
}

void add_gradient(Samples& samples, const char* op, Tensor (*f)(const Tensor&, const Tensor&),
                  double low = -2, double high = 2) {
  const TensorFunction call = [f](const std::vector<Tensor>& in) {
    return std::vector{f(in[0], in[1])};
  };
  const auto add = [&](const char* what, const Extents& sizes, Memory grad, Memory saved) {
    const Tensor x = low < -1 ? leaf(sizes, saved, 7) : leaf_in(low, high, sizes, saved, 7);
    samples.push_back({op, what, call, {leaf(sizes, grad, 5), x}});
  };
  add("contiguous", {2, 4}, Memory::contiguous, Memory::contiguous);
  add("strided", {2, 3}, Memory::permuted, Memory::narrowed);
  add("expanded cotangent", {2, 3}, Memory::expanded, Memory::contiguous);
  add("zero-size", {0, 2}, Memory::contiguous, Memory::contiguous);
}

void add_numbers(Samples& samples) {
  const auto add = [&](const char* op, const char* what, auto f) {
    samples.push_back({op,
                       what,
                       [f](const std::vector<Tensor>& in) { return std::vector{f(in[0])}; },
                       {leaf({2, 3}, Memory::permuted)}});
  };
  add("add", "a number", [](const Tensor& x) { return tenon::add(x, 3); });
  add("sub", "a number", [](const Tensor& x) { return sub(x, 3); });
  add("mul", "a number", [](const Tensor& x) { return mul(x, -2.5); });
  add("div", "a number", [](const Tensor& x) { return div(x, -2.5); });
  add("pow", "square", [](const Tensor& x) { return pow(x, 2); });
  add("pow", "cube", [](const Tensor& x) { return pow(x, 3); });
  add("pow", "exponent 0", [](const Tensor& x) { return pow(x, 0); });
  add("pow", "exponent 1", [](const Tensor& x) { return pow(x, 1); });
  add("pow", "negative exponent", [](const Tensor& x) { return pow(x, -1); });
  samples.push_back({"pow",
                     "fractional exponent",
                     [](const std::vector<Tensor>& in) { return std::vector{pow(in[0], 1.7)}; },
                     {leaf_in(0.3, 2, {2, 3}, Memory::narrowed)}});
}

void add_selections(Samples& samples) {
  const auto fill = [](const std::vector<Tensor>& in) {
    return std::vector{masked_fill(in[0], in[1], 7)};
  };
  samples.push_back({"masked_fill", "same shape", fill, {leaf({3, 4}), mask({3, 4})}});
  samples.push_back(
      {"masked_fill", "mask broadcast", fill, {leaf({3, 4}, Memory::permuted), mask({4})}});
  samples.push_back({"masked_fill", "input broadcast", fill, {leaf({1, 4}), mask({3, 1})}});
  samples.push_back({"masked_fill", "zero-size", fill, {leaf({0, 4}), mask({1, 4})}});
  const auto choose = [](const std::vector<Tensor>& in) {
    return std::vector{where(in[0], in[1], in[2])};
  };
  samples.push_back({"where",
                     "same shape",
                     choose,
                     {mask({2, 3}), leaf({2, 3}), leaf({2, 3}, Memory::permuted, 2)}});
  samples.push_back({"where",
                     "all broadcast",
                     choose,
                     {mask({2, 1, 1}), leaf({3, 1}), leaf({2}, Memory::contiguous, 2)}});
  samples.push_back({"where", "zero-size", choose, {mask({0, 1}), leaf({}), leaf({1, 3})}});
}

/// Sixteenths and eighths: exact in every floating dtype, so that rounding plays no part.
void add_casts(Samples& samples) {
  for (const DType dtype : {DType::float32, DType::float16, DType::bfloat16}) {
    for (const Extents& sizes : {Extents{2, 3}, Extents{0, 2}, Extents{}}) {
      double next = -0.5;
      Tensor x =
          make_tensor(sizes, DType::float64, Memory::permuted, [&] { return next += 0.0625; });
      samples.push_back(
          {"cast",
           std::string(name(dtype)),
           [dtype](const std::vector<Tensor>& in) { return std::vector{cast(in[0], dtype)}; },
           {x.requires_grad_()},
           {.step = 0.125}});
    }
  }
}

void add_bias_gelu(Samples& samples) {
  for (const Approximate form : {Approximate::none, Approximate::tanh}) {
    const auto add = [&](const char* what, const Extents& sizes, Memory memory, Memory of_bias) {
      const Tensor x = leaf(sizes, memory, 7);
      const Tensor bias = leaf({sizes.back()}, of_bias, 9);
      samples.push_back({"bias_gelu",
                         what,
                         [form](const std::vector<Tensor>& in) {
                           return std::vector{bias_gelu(in[0], in[1], form)};
                         },
                         {x, bias}});
      samples.push_back({"bias_gelu_backward",
                         what,
                         [form](const std::vector<Tensor>& in) {
                           return std::vector{ops::bias_gelu_backward(in[0], in[1], in[2], form)};
                         },
                         {leaf(sizes, memory, 5), x, bias}});
    };
    add("rows", {3, 4}, Memory::contiguous, Memory::contiguous);
    add("one row", {3}, Memory::contiguous, Memory::narrowed);
    add("more axes, strided", {2, 2, 3}, Memory::permuted, Memory::narrowed);
    add("expanded", {3, 2}, Memory::expanded, Memory::expanded);
    add("no rows", {0, 3}, Memory::contiguous, Memory::contiguous);
    add("no columns", {2, 0}, Memory::contiguous, Memory::contiguous);
  }
}

void add_gates(Samples& samples) {
  for (const Extents& sizes : {Extents{3, 4}, {2, 2, 3}, {0, 3}}) {
    const std::vector<Tensor> both = {leaf(sizes, Memory::permuted, 7),
                                      leaf(sizes, Memory::contiguous, 9)};
    samples.push_back(
        {"silu_mul", "gates",
         [](const std::vector<Tensor>& in) { return std::vector{silu_mul(in[0], in[1])}; }, both});
    samples.push_back(
        {"silu_mul_backward",
         "gates",
         [](const std::vector<Tensor>& in) { return ops::silu_mul_backward(in[0], in[1], in[2]); },
         {leaf(sizes, Memory::contiguous, 5), both[0], both[1]}});
  }
}

void add_rotations(Samples& samples) {
  for (const Extents& table : {Extents{2, 3, 4}, {3, 4}, {2, 1, 4}, {1}, {3, 0}}) {
    const std::int64_t width = table.back() == 1 ? 4 : table.back();
    const std::vector<Tensor> operands = {leaf({2, 3, width}, Memory::permuted, 7),
                                          leaf(table, Memory::contiguous, 8),
                                          leaf(table, Memory::contiguous, 9)};
    samples.push_back({"rotary_embedding", "tables",
                       [](const std::vector<Tensor>& in) {
                         return std::vector{rotary_embedding(in[0], in[1], in[2])};
                       },
                       operands});
    samples.push_back({"rotary_embedding_backward", "tables",
                       [](const std::vector<Tensor>& in) {
                         return std::vector{ops::rotary_embedding_backward(in[0], in[1], in[2])};
                       },
                       operands});
  }
}

void add_activations(Samples& samples) {
  add_unary(samples, "tanh", tanh, -2, 2);
  add_unary(samples, "sigmoid", sigmoid, -2, 2);
  add_unary(samples, "erf", erf, -2, 2);
  add_unary(samples, "relu", relu, -2, 2);
  add_unary(samples, "silu", silu, -2, 2);
  add_unary(
      samples, "gelu", [](const Tensor& x) { return gelu(x); }, -2, 2);
  add_unary(
      samples, "gelu", [](const Tensor& x) { return gelu(x, Approximate::tanh); }, -2, 2);
  add_unary(
      samples, "softplus", [](const Tensor& x) { return softplus(x); }, -2, 2);
  // Below and above the threshold, where the function has a jump that no element is near.
  add_unary(
      samples, "softplus", [](const Tensor& x) { return softplus(x, -3, 1); }, -2, 2);
  add_gradient(samples, "tanh_backward", ops::tanh_backward, -0.9, 0.9);
  add_gradient(samples, "sigmoid_backward", ops::sigmoid_backward, 0.1, 0.9);
  add_gradient(samples, "erf_backward", ops::erf_backward);
  add_gradient(samples, "relu_backward", ops::relu_backward);
  add_gradient(samples, "abs_backward", ops::abs_backward);
  add_gradient(samples, "silu_backward", ops::silu_backward);
  add_gradient(samples, "gelu_backward", [](const Tensor& g, const Tensor& x) {
    return ops::gelu_backward(g, x, Approximate::none);
  });
  add_gradient(samples, "gelu_backward", [](const Tensor& g, const Tensor& x) {
    return ops::gelu_backward(g, x, Approximate::tanh);
  });
  add_gradient(samples, "softplus_backward", [](const Tensor& g, const Tensor& x) {
    return ops::softplus_backward(g, x, 2, 1.01);
  });
}

}  // namespace

Samples pointwise_samples() {
  Samples samples;
  add_binary(samples, "add", add);
  add_binary(samples, "sub", sub);
  add_binary(samples, "mul", mul);
  add_binary(samples, "div", div);
  add_binary(samples, "maximum", maximum);
  add_binary(samples, "minimum", minimum);
  add_binary(samples, "pow", pow, 0.3);
  add_numbers(samples);
  add_unary(samples, "neg", neg, -2, 2);
  add_unary(samples, "abs", abs, -2, 2);
  add_unary(samples, "exp", exp, -2, 2);
  add_unary(samples, "log", log, 0.3, 2);
  add_unary(samples, "sqrt", sqrt, 0.3, 2);
  add_unary(samples, "rsqrt", rsqrt, 0.3, 2);
  add_unary(samples, "reciprocal", reciprocal, 0.3, 2);
  add_unary(samples, "square", square, -2, 2);
  add_unary(
      samples, "rsub", [](const Tensor& x) { return 3 - x; }, -2, 2);
  add_unary(
      samples, "rdiv", [](const Tensor& x) { return -2.5 / x; }, 0.3, 2);
  add_unary(samples, "sin", sin, -2, 2);
  add_unary(samples, "cos", cos, -2, 2);
  add_activations(samples);
  add_bias_gelu(samples);
  add_gates(samples);
  add_rotations(samples);
  add_selections(samples);
  add_casts(samples);
  return samples;
}

}  // namespace tenon::test
