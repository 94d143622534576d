// GPT-2 (Radford et al., 2019) as a user would write it, from tokens and targets to the mean loss: tied
// head, GELU in its tanh form, no dropout. 124M parameters by default.
#pragma once

#include <cmath>
#include <cstdint>

#include "examples/gpt_model.h"
#include "nn/nn.h"

namespace tenon::bench {

struct Gpt2Options {
  std::int64_t vocabulary = 50257;
  std::int64_t context = 1024;  // the longest sequence
  std::int64_t layers = 12;
  std::int64_t hidden = 768;
  std::int64_t heads = 12;

  /// Rows of the token table: a multiple of 128, so that products of the head have full tiles. No
  /// target is among those that are added.
  std::int64_t padded_vocabulary() const { return (vocabulary + 127) / 128 * 128; }
};

struct Gpt2Attention : nn::Module {
  explicit Gpt2Attention(const Gpt2Options& o)
      : q_proj(add<nn::Linear>("q_proj", o.hidden, o.hidden)),
        k_proj(add<nn::Linear>("k_proj", o.hidden, o.hidden)),
        v_proj(add<nn::Linear>("v_proj", o.hidden, o.hidden)),
        heads(o.heads) {
    if (heads < 1 || o.hidden % heads != 0) {
      throw ValueError("Gpt2Attention: hidden size " + std::to_string(o.hidden) +
                       " is not divisible by " + std::to_string(heads) + " heads");
    }
  }

  /// (batch, seq, hidden) -> the same.
  Tensor forward(const Tensor& x) const {
    const Tensor q = gpt::split_heads(q_proj(x), heads);
    const Tensor k = gpt::split_heads(k_proj(x), heads);
    const Tensor v = gpt::split_heads(v_proj(x), heads);
    const Tensor y = gpt::causal_attention(q, k, v, gpt::later_keys(x.size(1), x.device()), 0);
    return y.permute({0, 2, 1, 3}).reshape({x.size(0), x.size(1), -1});
  }

  nn::Child<nn::Linear> q_proj, k_proj, v_proj;
  std::int64_t heads;
};

struct Gpt2Block : nn::Module {
  explicit Gpt2Block(const Gpt2Options& o)
      : norm1(add<nn::LayerNorm>("norm1", o.hidden)),
        attn(add<Gpt2Attention>("attn", o)),
        proj(add<nn::Linear>("proj", o.hidden, o.hidden)),
        norm2(add<nn::LayerNorm>("norm2", o.hidden)),
        up(add<nn::Linear>("up", o.hidden, 4 * o.hidden)),
        act(add<nn::GELU>("act", Approximate::tanh)),
        down(add<nn::Linear>("down", 4 * o.hidden, o.hidden)) {}

  Tensor forward(const Tensor& x) const {
    const Tensor y = x + proj(attn(norm1(x)));
    return y + down(act(up(norm2(y))));
  }

  nn::Child<nn::LayerNorm> norm1;
  nn::Child<Gpt2Attention> attn;
  nn::Child<nn::Linear> proj;
  nn::Child<nn::LayerNorm> norm2;
  nn::Child<nn::Linear> up;
  nn::Child<nn::GELU> act;
  nn::Child<nn::Linear> down;
};

struct Gpt2 : nn::Module {
  explicit Gpt2(const Gpt2Options& o)
      : options(o),
        tokens(add<nn::Embedding>("tokens", o.padded_vocabulary(), o.hidden)),
        positions(add<nn::Embedding>("positions", o.context, o.hidden)),
        blocks(add<nn::ModuleList<Gpt2Block>>("blocks")),
        norm(add<nn::LayerNorm>("norm", o.hidden)),
        head(add<nn::Linear>("head", tokens->weight)) {
    for (std::int64_t i = 0; i < o.layers; ++i) blocks->emplace_back(o);
  }

  /// Tokens and the tokens that follow, int64 (batch, seq) with seq <= context, to the mean loss, a
  /// number in float32 at least.
  Tensor forward(const Tensor& input, const Tensor& targets) const {
    Tensor x = tokens(input) + positions->weight.narrow(0, 0, input.size(1));
    for (const auto& block : *blocks) x = block(x);
    return gpt::next_token_loss(head(norm(x)), targets);
  }

  /// Normal of deviation 0.02, less where a block adds to the residual stream; biases zero.
  void initialize(std::uint64_t seed) {
    Generator generator(seed);
    const double residual = 0.02 / std::sqrt(2.0 * static_cast<double>(options.layers));
    for (const auto& [name, parameter] : named_parameters()) {
      if (parameter.dim() == 2) {
        const bool adds = name.ends_with(".proj.weight") || name.ends_with("down.weight");
        nn::init::normal_(parameter, 0, adds ? residual : 0.02, &generator);
      } else if (name.find("norm") == std::string::npos) {
        nn::init::zeros_(parameter);
      }
    }
  }

  /// Operations of a training step a token: 6 for every parameter that multiplies activations (the
  /// position table does not) and 12·layers·hidden·seq in attention, masked scores counted (Chowdhery
  /// et al., "PaLM", 2022, appendix B).
  double flops_per_token(std::int64_t seq) const {
    double multiplying = 0;
    for (const auto& [name, parameter] : named_parameters()) {
      if (!name.starts_with("positions")) {
        multiplying += static_cast<double>(parameter.layout().numel());
      }
    }
    return 6 * multiplying +
           12 * static_cast<double>(options.layers * options.hidden) * static_cast<double>(seq);
  }

  const Gpt2Options options;
  nn::Child<nn::Embedding> tokens, positions;
  nn::Child<nn::ModuleList<Gpt2Block>> blocks;
  nn::Child<nn::LayerNorm> norm;
  nn::Child<nn::Linear> head;
};

}  // namespace tenon::bench
