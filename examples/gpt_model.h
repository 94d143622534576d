// A GPT as a user would write it: token and position embeddings, pre-norm blocks of causal
// self-attention and a GELU MLP, a final norm and a head.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>

#include "nn/nn.h"

namespace gpt {

using tenon::Tensor;

struct GptOptions {
  std::int64_t vocabulary = 0;
  std::int64_t context = 64;  // the longest sequence
  std::int64_t layers = 2;
  std::int64_t hidden = 128;
  std::int64_t heads = 4;
  double dropout = 0;
};

/// (batch, seq, hidden) -> (batch, head, seq, hidden/head).
inline Tensor split_heads(const Tensor& x, std::int64_t heads) {
  return x.view({x.size(0), x.size(1), heads, -1}).permute({0, 2, 1, 3});
}

/// (length, length) bool, true where a key comes after the query.
inline Tensor later_keys(const tenon::Dim& length, tenon::Device device) {
  const Tensor one = tenon::full({}, 1, {tenon::DType::float32, device});
  return gt(triu(one.expand({length, length}), 1), 0);
}

/// softmax(q·kᵀ/√d)·v over the keys that are not hidden, with dropout on the probabilities:
/// (batch, head, seq, d) each.
inline Tensor causal_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                               const Tensor& hidden, double dropout_p) {
  constexpr double kHidden = -std::numeric_limits<double>::infinity();
  const Tensor scores = matmul(q, k.transpose(-2, -1)) / sqrt(q.size(-1));
  const Tensor probabilities = softmax(masked_fill(scores, hidden, kHidden), -1);
  return matmul(dropout_p == 0 ? probabilities : dropout(probabilities, dropout_p), v);
}

struct CausalSelfAttention : tenon::nn::Module {
  explicit CausalSelfAttention(const GptOptions& options)
      : q_proj(add<tenon::nn::Linear>("q_proj", options.hidden, options.hidden)),
        k_proj(add<tenon::nn::Linear>("k_proj", options.hidden, options.hidden)),
        v_proj(add<tenon::nn::Linear>("v_proj", options.hidden, options.hidden)),
        out_proj(add<tenon::nn::Linear>("out_proj", options.hidden, options.hidden)),
        heads(options.heads),
        dropout_p(options.dropout) {
    if (heads < 1 || options.hidden % heads != 0) {
      throw tenon::ValueError("CausalSelfAttention: hidden size " + std::to_string(options.hidden) +
                              " is not divisible by " + std::to_string(heads) + " heads");
    }
  }

  Tensor forward(const Tensor& x) const {
    const Tensor q = split_heads(q_proj(x), heads);
    const Tensor k = split_heads(k_proj(x), heads);
    const Tensor v = split_heads(v_proj(x), heads);
    const Tensor hidden = later_keys(x.size(1), x.device());
    const Tensor y = causal_attention(q, k, v, hidden, dropout_p);
    // (batch, head, seq, hidden/head) -> (batch, seq, hidden)
    const Tensor merged = y.permute({0, 2, 1, 3});
    return out_proj(merged.reshape({merged.size(0), merged.size(1), -1}));
  }

  tenon::nn::Child<tenon::nn::Linear> q_proj, k_proj, v_proj, out_proj;
  std::int64_t heads;
  double dropout_p;
};

struct Mlp : tenon::nn::Module {
  explicit Mlp(std::int64_t hidden)
      : up(add<tenon::nn::Linear>("up", hidden, 4 * hidden)),
        act(add<tenon::nn::GELU>("act")),
        down(add<tenon::nn::Linear>("down", 4 * hidden, hidden)) {}

  Tensor forward(const Tensor& x) const { return down(act(up(x))); }

  tenon::nn::Child<tenon::nn::Linear> up;
  tenon::nn::Child<tenon::nn::GELU> act;
  tenon::nn::Child<tenon::nn::Linear> down;
};

struct Block : tenon::nn::Module {
  explicit Block(const GptOptions& options)
      : norm1(add<tenon::nn::LayerNorm>("norm1", options.hidden)),
        attn(add<CausalSelfAttention>("attn", options)),
        norm2(add<tenon::nn::LayerNorm>("norm2", options.hidden)),
        mlp(add<Mlp>("mlp", options.hidden)),
        dropout(add<tenon::nn::Dropout>("dropout", options.dropout)) {}

  Tensor forward(const Tensor& x) const {
    const Tensor y = x + dropout(attn(norm1(x)));
    return y + dropout(mlp(norm2(y)));
  }

  tenon::nn::Child<tenon::nn::LayerNorm> norm1;
  tenon::nn::Child<CausalSelfAttention> attn;
  tenon::nn::Child<tenon::nn::LayerNorm> norm2;
  tenon::nn::Child<Mlp> mlp;
  tenon::nn::Child<tenon::nn::Dropout> dropout;
};

struct Gpt : tenon::nn::Module {
  explicit Gpt(const GptOptions& o)
      : options(o),
        tokens(add<tenon::nn::Embedding>("tokens", o.vocabulary, o.hidden)),
        positions(add<tenon::nn::Embedding>("positions", o.context, o.hidden)),
        dropout(add<tenon::nn::Dropout>("dropout", o.dropout)),
        blocks(add<tenon::nn::ModuleList<Block>>("blocks")),
        norm(add<tenon::nn::LayerNorm>("norm", o.hidden)),
        head(add<tenon::nn::Linear>("head", o.hidden, o.vocabulary, /*bias=*/false)) {
    for (std::int64_t i = 0; i < o.layers; ++i) blocks->emplace_back(o);
  }

  /// Token numbers (batch, seq), seq <= context, to logits (batch, seq, vocabulary).
  Tensor forward(const Tensor& input) const {
    const Tensor places = positions->weight.narrow(0, 0, input.size(1));  // (seq, hidden)
    Tensor x = dropout(tokens(input) + places);
    for (const auto& block : *blocks) x = block(x);
    return head(norm(x));
  }

  /// GPT-2's initial values: normal of deviation 0.02, less where a block adds to the residual
  /// stream; biases zero (Radford et al., 2019).
  void initialize(std::uint64_t seed) {
    tenon::Generator generator(seed);
    const double residual = 0.02 / std::sqrt(2.0 * static_cast<double>(options.layers));
    for (const auto& [name, parameter] : named_parameters()) {
      if (parameter.dim() == 2) {
        const bool adds = name.ends_with("out_proj.weight") || name.ends_with("down.weight");
        tenon::nn::init::normal_(parameter, 0, adds ? residual : 0.02, &generator);
      } else if (name.ends_with("proj.bias") || name.ends_with("up.bias") ||
                 name.ends_with("down.bias")) {
        tenon::nn::init::zeros_(parameter);
      }
    }
  }

  const GptOptions options;
  tenon::nn::Child<tenon::nn::Embedding> tokens, positions;
  tenon::nn::Child<tenon::nn::Dropout> dropout;
  tenon::nn::Child<tenon::nn::ModuleList<Block>> blocks;
  tenon::nn::Child<tenon::nn::LayerNorm> norm;
  tenon::nn::Child<tenon::nn::Linear> head;
};

/// Mean cross entropy of logits (batch, seq, vocabulary) against the tokens that follow (batch, seq),
/// in float32 at least.
inline Tensor next_token_loss(const Tensor& logits, const Tensor& targets) {
  const tenon::Dim rows = logits.size(0) * logits.size(1);
  const Tensor wide =
      logits.dtype() == tenon::DType::float64 ? logits : logits.to(tenon::DType::float32);
  return cross_entropy(wide.view({rows, logits.size(2)}), targets.view({rows}));
}

}  // namespace gpt
