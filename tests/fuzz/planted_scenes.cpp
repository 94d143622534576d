#include <cmath>

#include "examples/attention_model.h"
#include "examples/gpt_model.h"
#include "tensor/random.h"
#include "tests/fuzz/planted.h"
#include "tests/support/attention_pattern.h"
#include "tests/support/models.h"

namespace tenon::fuzz::scenes {
namespace {

constexpr std::int64_t kHidden = 12;
constexpr std::int64_t kHeads = 2;

/// The same weights in every run.
struct Seeded {
  Seeded() { manual_seed(20261122); }
};

Tensor example(const Shape& shape) { return zeros(shape); }
Tensor tokens_example() { return zeros({2, 5}, {DType::int64, kCpu}); }

struct Vision : nn::Module {
  Vision() : conv(add<nn::Conv2d>("conv", 2, 3, 3)), norm(add<nn::BatchNorm2d>("norm", 3)) {}
  Tensor forward(const Tensor& image) const { return relu(norm(conv(image))); }
  nn::Child<nn::Conv2d> conv;
  nn::Child<nn::BatchNorm2d> norm;
};

struct Tied : nn::Module {
  Tied()
      : tokens(add<nn::Embedding>("tokens", 11, kHidden)),
        frozen(add<nn::Linear>("frozen", kHidden, kHidden)),
        mix(add<nn::Linear>("mix", kHidden, kHidden)) {
    frozen->requires_grad_(false);
  }
  Tensor forward(const Tensor& input) const {
    return linear(mix(tanh(frozen(tokens(input)))), tokens->weight);
  }
  nn::Child<nn::Embedding> tokens;
  nn::Child<nn::Linear> frozen, mix;
};

struct Masked : nn::Module {
  Tensor forward(const Tensor& x, const Tensor& hidden) const {
    const Tensor scores = matmul(x, x.transpose(-2, -1)) * 0.5;
    return matmul(softmax(masked_fill(scores, hidden, -HUGE_VAL), -1), x);
  }
};

struct Kinks : nn::Module {
  Kinks() : scale(register_parameter("scale", ones({6}).requires_grad_())) {}
  std::vector<Tensor> forward(const Tensor& x, const Tensor& y) const {
    return {relu(x) * scale, maximum(x, y), abs(y), x - amax(x, {-1}, true)};
  }
  Tensor scale;
};

struct Outputs : nn::Module {
  Outputs()
      : first(add<nn::Linear>("first", kHidden, kHidden)),
        second(add<nn::Linear>("second", kHidden, kHidden)) {}
  std::vector<Tensor> forward(const Tensor& x) const {
    const Tensor h = tanh(first(x));
    return {second(h), h * 0.5, mean(h, {1})};
  }
  nn::Child<nn::Linear> first, second;
};

}  // namespace

Schedule attention() {
  const Seeded seeded;
  return create_schedule(nn::make<tutorial::Attention>(kHidden, kHeads),
                         {{"hidden_states", example({2, 5, kHidden})}});
}

Schedule zero_biases() {
  const Seeded seeded;
  const auto model = nn::make<tutorial::Attention>(kHidden, kHeads);
  const NoGradGuard no_grad;
  for (auto& [name, parameter] : model->named_parameters()) {
    if (name.ends_with("proj.bias") || name.ends_with("dense.bias")) Tensor(parameter).zero_();
  }
  return create_schedule(model, {{"hidden_states", example({2, 5, kHidden})}});
}

Schedule fused_attention() {
  Schedule sch = attention();
  sch.replace(nn::make<tutorial::FusedQKV>(kHidden, kHeads), sch.find(test::qkv_pattern(kHeads)));
  sch.replace(nn::make<tutorial::FlashAttention>(), sch.find(tutorial::scaled_dot_product),
              {.concrete_args = {{"attention_mask", std::monostate{}}, {"p", 0.1}}});
  Schedule proj = sch["proj"];
  proj["dense"].decompose();
  proj.trace({.flatten = true});
  proj.fuse(proj.find([](const Tensor& x, const Tensor& bias, const Tensor& residual,
                         const Tensor& weight, const Tensor& norm_bias) {
    return layer_norm(dropout(x + bias, any()) + residual, weight, norm_bias);
  }));
  return sch;
}

Schedule mlp() {
  const Seeded seeded;
  return create_schedule(nn::make<test::ResidualMlp>(kHidden), {example({2, 5, kHidden})});
}

Schedule cross_attention() {
  const Seeded seeded;
  return create_schedule(nn::make<test::CrossAttention>(kHidden, kHeads),
                         {{"x", example({2, 5, kHidden})}, {"memory", example({2, 3, kHidden})}});
}

Schedule gpt() {
  const Seeded seeded;
  ::gpt::GptOptions options;
  options.vocabulary = 11;
  options.context = 16;
  options.layers = 1;
  options.hidden = kHidden;
  options.heads = kHeads;
  options.dropout = 0.1;
  return create_schedule(nn::make<::gpt::Gpt>(options), {{"tokens", tokens_example()}});
}

Schedule vision() {
  const Seeded seeded;
  return create_schedule(nn::make<Vision>(), {{"image", example({2, 2, 6, 6})}});
}

Schedule tied() {
  const Seeded seeded;
  return create_schedule(nn::make<Tied>(), {{"tokens", tokens_example()}});
}

Schedule masked() {
  const Seeded seeded;
  return create_schedule(nn::make<Masked>(), {{"x", example({2, 5, 6})},
                                              {"hidden", zeros({5, 5}, {DType::boolean, kCpu})}});
}

Schedule kinks() {
  const Seeded seeded;
  return create_schedule(nn::make<Kinks>(), {{"x", example({2, 6})}, {"y", example({2, 6})}});
}

Schedule outputs() {
  const Seeded seeded;
  return create_schedule(nn::make<Outputs>(), {{"x", example({2, 5, kHidden})}});
}

}  // namespace tenon::fuzz::scenes
