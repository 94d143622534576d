// Small models that rewrites are tried on, beside the tutorial's (examples/attention_model.h).
#pragma once

#include <cstdint>

#include "nn/nn.h"

namespace tenon::test {

/// x + down(gelu(up(x))), then a norm.
struct ResidualMlp : nn::Module {
  explicit ResidualMlp(std::int64_t hidden)
      : up(add<nn::Linear>("up", hidden, 4 * hidden)),
        act(add<nn::GELU>("act")),
        down(add<nn::Linear>("down", 4 * hidden, hidden)),
        drop(add<nn::Dropout>("drop", 0.2)),
        norm(add<nn::LayerNorm>("norm", hidden)) {}
  Tensor forward(const Tensor& x) const { return norm(drop(down(act(up(x)))) + x); }
  nn::Child<nn::Linear> up;
  nn::Child<nn::GELU> act;
  nn::Child<nn::Linear> down;
  nn::Child<nn::Dropout> drop;
  nn::Child<nn::LayerNorm> norm;
};

/// Queries from one input, keys and values from another.
struct CrossAttention : nn::Module {
  CrossAttention(std::int64_t hidden, std::int64_t heads)
      : q_proj(add<nn::Linear>("q_proj", hidden, hidden)),
        k_proj(add<nn::Linear>("k_proj", hidden, hidden)),
        v_proj(add<nn::Linear>("v_proj", hidden, hidden)),
        out(add<nn::Linear>("out", hidden, hidden)),
        n_heads(heads) {}

  Tensor split_heads(const Tensor& x) const {
    return x.view({x.size(0), x.size(1), n_heads, -1}).permute({0, 2, 1, 3});
  }
  Tensor forward(const Tensor& x, const Tensor& memory) const {
    const Tensor q = split_heads(q_proj(x));
    const Tensor k = split_heads(k_proj(memory));
    const Tensor v = split_heads(v_proj(memory));
    const Tensor p = softmax(matmul(q, k.transpose(-2, -1)) / sqrt(q.size(-1)), -1);
    const Tensor y = matmul(p, v).permute({0, 2, 1, 3});
    return out(y.reshape({y.size(0), y.size(1), -1}));
  }
  nn::Child<nn::Linear> q_proj, k_proj, v_proj, out;
  std::int64_t n_heads;
};

/// A post-norm encoder layer as in BERT: attention written out, then a GELU MLP; names and layout are
/// not the tutorial's.
struct EncoderLayer : nn::Module {
  explicit EncoderLayer(std::int64_t hidden, std::int64_t heads = 4, double p = 0.1)
      : query(add<nn::Linear>("query", hidden, hidden)),
        key(add<nn::Linear>("key", hidden, hidden)),
        value(add<nn::Linear>("value", hidden, hidden)),
        out(add<nn::Linear>("out", hidden, hidden)),
        attention_norm(add<nn::LayerNorm>("attention_norm", hidden)),
        up(add<nn::Linear>("up", hidden, 4 * hidden)),
        act(add<nn::GELU>("act")),
        down(add<nn::Linear>("down", 4 * hidden, hidden)),
        mlp_norm(add<nn::LayerNorm>("mlp_norm", hidden)),
        drop(add<nn::Dropout>("drop", p)),
        n_heads(heads),
        dropout_p(p) {}

  Tensor forward(const Tensor& x) const {
    const auto split = [&](const Tensor& y) {  // (bs, seq, hidden) -> (bs, head, seq, d)
      return y.view({y.size(0), y.size(1), n_heads, -1}).permute({0, 2, 1, 3});
    };
    const Tensor q = split(query(x)) * 0.5;  // scaled before the keys are there
    const Tensor k = split(key(x));
    const Tensor p = dropout(softmax(matmul(q, k.transpose(-2, -1)), -1), dropout_p);
    const Tensor y = matmul(p, split(value(x))).permute({0, 2, 1, 3});
    const Tensor z = attention_norm(drop(out(y.reshape({y.size(0), y.size(1), -1}))) + x);
    return mlp_norm(drop(down(act(up(z)))) + z);
  }
  nn::Child<nn::Linear> query, key, value, out;
  nn::Child<nn::LayerNorm> attention_norm;
  nn::Child<nn::Linear> up;
  nn::Child<nn::GELU> act;
  nn::Child<nn::Linear> down;
  nn::Child<nn::LayerNorm> mlp_norm;
  nn::Child<nn::Dropout> drop;
  std::int64_t n_heads;
  double dropout_p;
};

/// A stack of equal blocks in a ModuleList.
template <class Block>
struct Stack : nn::Module {
  template <class... A>
  explicit Stack(int layers, const A&... arguments) : layer(add<nn::ModuleList<Block>>("layer")) {
    for (int i = 0; i < layers; ++i) layer->push_back(nn::make<Block>(arguments...));
  }
  Tensor forward(const Tensor& x) const {
    Tensor y = x;
    for (const auto& block : *layer) y = block(y);
    return y;
  }
  nn::Child<nn::ModuleList<Block>> layer;
};

/// A model from a function of one to three tensors, for graphs that need no module.
template <class F>
struct FunctionModel : nn::Module {
  explicit FunctionModel(F f) : function(std::move(f)) {}
  Tensor forward(const Tensor& x) const requires std::is_invocable_v<F, const Tensor&> {
    return function(x);
  }
  Tensor forward(const Tensor& x, const Tensor& y)
      const requires std::is_invocable_v<F, const Tensor&, const Tensor&> {
    return function(x, y);
  }
  Tensor forward(const Tensor& x, const Tensor& y, const Tensor& z)
      const requires std::is_invocable_v<F, const Tensor&, const Tensor&, const Tensor&> {
    return function(x, y, z);
  }
  F function;
};
template <class F>
auto function_model(F f) {
  return nn::make<FunctionModel<F>>(std::move(f));
}

}  // namespace tenon::test
