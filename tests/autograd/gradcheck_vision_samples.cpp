// Samples of convolution, pooling and batch_norm.
#include "tensor/rules/gradients.h"
#include "tests/autograd/gradcheck_samples.h"

namespace tenon::test {
namespace {

Shape shape_of(const Extents& sizes) { return Shape(std::vector<Dim>(sizes.begin(), sizes.end())); }

struct ConvSample {
  const char* what;
  Extents input, weight, output;
  Conv2dAttrs attrs;
  Memory memory;
};

void add_convolutions(Samples& samples) {
  const ConvSample convolutions[] = {
      {"plain", {1, 2, 3, 4}, {2, 2, 2, 2}, {1, 2, 2, 3}, {{1, 1}, {0, 0}, {1, 1}, 1}, kDense},
      {"groups", {1, 2, 4, 3}, {4, 1, 2, 3}, {1, 4, 3, 3}, {{2, 1}, {1, 1}, {1, 1}, 2}, kPermuted},
      {"dilation",
       {2, 1, 4, 4},
       {1, 1, 2, 2},
       {2, 1, 2, 3},
       {{1, 1}, {0, 0}, {2, 1}, 1},
       kExpanded},
      {"no samples", {0, 2, 3, 3}, {1, 2, 2, 2}, {0, 1, 2, 2}, {{1, 1}, {0, 0}, {1, 1}, 1}, kDense},
  };
  for (const ConvSample& c : convolutions) {
    const auto& a = c.attrs;
    const Tensor x = leaf(c.input, c.memory, 1), w = leaf(c.weight, kNarrowed, 2);
    const Tensor grad = leaf(c.output, c.memory, 4);
    const auto conv = [a](const std::vector<Tensor>& in) {
      return std::vector{ops::conv2d_with(in[0], in[1], in[2], a)};
    };
    samples.push_back({"conv2d", c.what, conv, {x, w, leaf({c.weight[0]}, kDense, 3)}});
    samples.push_back({"conv2d", c.what, conv, {x, w, {}}});
    const Conv2dBackwardAttrs of_input{a.stride, a.padding, a.dilation, a.groups,
                                       shape_of(c.input)};
    samples.push_back({"conv2d_backward_input",
                       c.what,
                       [of_input](const std::vector<Tensor>& in) {
                         return std::vector{ops::conv2d_backward_input(in[0], in[1], of_input)};
                       },
                       {grad, w}});
    const Conv2dBackwardAttrs of_weight{a.stride, a.padding, a.dilation, a.groups,
                                        shape_of(c.weight)};
    samples.push_back({"conv2d_backward_weight",
                       c.what,
                       [of_weight](const std::vector<Tensor>& in) {
                         return std::vector{ops::conv2d_backward_weight(in[0], in[1], of_weight)};
                       },
                       {grad, x}});
  }
}

void add_what_follows_convolutions(Samples& samples) {
  const ConvSample convolutions[] = {
      {"plain", {2, 2, 3, 4}, {2, 2, 2, 2}, {2, 2, 2, 3}, {{1, 1}, {0, 0}, {1, 1}, 1}, kDense},
      {"groups", {1, 2, 4, 3}, {4, 1, 2, 3}, {1, 4, 3, 3}, {{2, 1}, {1, 1}, {1, 1}, 2}, kPermuted},
      {"no samples", {0, 2, 3, 3}, {1, 2, 2, 2}, {0, 1, 2, 2}, {{1, 1}, {0, 0}, {1, 1}, 1}, kDense},
  };
  for (const ConvSample& c : convolutions) {
    const Extents vector = {c.weight[0]};
    const Tensor x = leaf(c.input, c.memory, 1), w = leaf(c.weight, kNarrowed, 2);
    const Tensor bias = leaf(vector, kDense, 3), residual = leaf(c.output, c.memory, 4);
    const auto activated = [a = c.attrs](const std::vector<Tensor>& in) {
      return apply(get_op("conv2d_relu"), in, a);
    };
    samples.push_back({"conv2d_relu", c.what, activated, {x, w, bias, residual}});
    samples.push_back({"conv2d_relu", c.what, activated, {x, w, {}, {}}});
  }
}

struct PoolSample {
  const char* what;
  Extents input, output;
  Pool2dAttrs attrs;
  Memory memory;
};

void add_pooling(Samples& samples) {
  const PoolSample pools[] = {
      {"apart", {1, 2, 4, 4}, {1, 2, 2, 2}, {{2, 2}, {2, 2}, {0, 0}}, kDense},
      {"overlapping", {2, 1, 3, 4}, {2, 1, 3, 2}, {{3, 2}, {1, 2}, {1, 0}}, kPermuted},
      {"repeated", {2, 1, 3, 3}, {2, 1, 2, 2}, {{2, 2}, {1, 1}, {0, 0}}, kExpanded},
      {"no samples", {0, 1, 3, 3}, {0, 1, 2, 2}, {{2, 2}, {1, 1}, {0, 0}}, kDense},
  };
  for (const PoolSample& p : pools) {
    const auto& a = p.attrs;
    const Tensor x = leaf(p.input, p.memory, 1), grad = leaf(p.output, p.memory, 2);
    samples.push_back({"max_pool2d",
                       p.what,
                       [a](const std::vector<Tensor>& in) {
                         return std::vector{apply(get_op("max_pool2d"), in, a)[0]};
                       },
                       {x}});
    samples.push_back(
        {"avg_pool2d",
         p.what,
         [a](const std::vector<Tensor>& in) { return std::vector{ops::avg_pool2d_with(in[0], a)}; },
         {x}});
    const Pool2dBackwardAttrs back{a.kernel_size, a.stride, a.padding, shape_of(p.input)};
    const Tensor operands[] = {x.detach()};
    const Tensor indices = apply(get_op("max_pool2d"), operands, a)[1];
    samples.push_back({"max_pool2d_backward",
                       p.what,
                       [back](const std::vector<Tensor>& in) {
                         return std::vector{ops::max_pool2d_backward(in[0], in[1], back)};
                       },
                       {grad, indices}});
    samples.push_back({"avg_pool2d_backward",
                       p.what,
                       [back](const std::vector<Tensor>& in) {
                         return std::vector{ops::avg_pool2d_backward(in[0], back)};
                       },
                       {grad}});
  }
}

void add_batch_norms(Samples& samples) {
  const auto add = [&](const char* what, const Extents& sizes, Memory memory, DropoutMode mode) {
    const Extents vector = {sizes[1]};
    const Tensor mean = leaf(vector, kDense, 8).detach();
    const Tensor var = leaf_in(0.5, 2, vector, kDense, 9).detach();
    // The statistics are outputs too, whose gradients second derivatives ask for.
    const auto norm = [mode](const std::vector<Tensor>& in) {
      std::vector<Tensor> outputs = apply(get_op("batch_norm"), in, BatchNormAttrs{mode, 0.1, 0.1});
      outputs.resize(mode == DropoutMode::train ? 3 : 1);
      return outputs;
    };
    const Tensor x = leaf(sizes, memory, 1), w = leaf(vector, kNarrowed, 2);
    samples.push_back({"batch_norm", what, norm, {x, mean, var, w, leaf(vector, kDense, 3)}});
    samples.push_back({"batch_norm", what, norm, {x, mean, var, {}, {}}});
    for (const char* op : {"batch_norm_relu", "batch_norm_add_relu"}) {
      const auto fused = [mode, op](const std::vector<Tensor>& in) {
        std::vector<Tensor> outputs = apply(get_op(op), in, BatchNormAttrs{mode, 0.1, 0.1});
        outputs.resize(mode == DropoutMode::train ? 3 : 1);
        return outputs;
      };
      std::vector<Tensor> operands = {x, mean, var, w, leaf(vector, kDense, 3)};
      if (std::string(op) == "batch_norm_add_relu") operands.push_back(leaf(sizes, memory, 7));
      samples.push_back({op, what, fused, operands});
    }
    const auto gradients = [mode](const std::vector<Tensor>& in) {
      const ops::NormGradients found =
          ops::batch_norm_backward(in[0], in[1], in[2], in[3], in[4], {mode, true, true, true});
      return std::vector{found.input, found.weight, found.bias};
    };
    samples.push_back({"batch_norm_backward",
                       what,
                       gradients,
                       {leaf(sizes, memory, 4), x, w, leaf(vector, kDense, 5),
                        leaf_in(0.5, 2, vector, kDense, 6)}});
    // Of the forward result only signs count.
    const Tensor signs = leaf(sizes, memory, 7).detach();
    const Tensor grad = leaf(sizes, memory, 4);
    const Tensor used_mean = leaf(vector, kDense, 5), factor = leaf_in(0.5, 2, vector, kDense, 6);
    const auto through_relu = [mode](const std::vector<Tensor>& in) {
      const bool adds = in.size() == 6;
      const BatchNormBackwardAttrs all{mode, true, true, true};
      if (adds) {
        return apply(get_op("batch_norm_add_relu_backward"), in,
                     BatchNormAddBackwardAttrs{all, true});
      }
      return apply(get_op("batch_norm_relu_backward"), in, all);
    };
    samples.push_back({"batch_norm_relu_backward",
                       what,
                       through_relu,
                       {grad, x, signs, w, {}, used_mean, factor}});
    samples.push_back({"batch_norm_add_relu_backward",
                       what,
                       through_relu,
                       {grad, x, signs, w, used_mean, factor}});
  };
  add("training", {3, 2, 2}, kDense, DropoutMode::train);
  add("training, strided", {2, 2, 2, 3}, kPermuted, DropoutMode::train);
  add("training, narrowed rows", {4, 2}, kNarrowed, DropoutMode::train);
  add("evaluation", {3, 2, 2}, kDense, DropoutMode::eval);
  add("evaluation, repeated", {2, 3}, kExpanded, DropoutMode::eval);
  add("evaluation of nothing", {0, 2, 3}, kDense, DropoutMode::eval);
}

}  // namespace

Samples vision_samples() {
  Samples samples;
  add_convolutions(samples);
  add_what_follows_convolutions(samples);
  add_pooling(samples);
  add_batch_norms(samples);
  return samples;
}

}  // namespace tenon::test
