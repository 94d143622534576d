// The attention block of the schedule tutorial (examples/attention_model.h) with its dropout as an
// option: softmax(q·kᵀ/√d)·v between four Linears, then norm(dropout(·) + input).
#pragma once

#include <cstdint>

#include "nn/nn.h"

namespace tenon::bench {

struct AttentionBlockOptions {
  std::int64_t hidden = 1024;
  std::int64_t heads = 16;
  double dropout = 0.1;
};

struct AttentionBlock : nn::Module {
  explicit AttentionBlock(const AttentionBlockOptions& o)
      : options(o),
        q_proj(add<nn::Linear>("q_proj", o.hidden, o.hidden)),
        k_proj(add<nn::Linear>("k_proj", o.hidden, o.hidden)),
        v_proj(add<nn::Linear>("v_proj", o.hidden, o.hidden)),
        dense(add<nn::Linear>("dense", o.hidden, o.hidden)),
        layer_norm(add<nn::LayerNorm>("layer_norm", o.hidden)) {
    if (o.heads < 1 || o.hidden % o.heads != 0) {
      throw ValueError("AttentionBlock: hidden size " + std::to_string(o.hidden) +
                       " is not divisible by " + std::to_string(o.heads) + " heads");
    }
  }

  /// (batch, seq, hidden) -> (batch, head, seq, hidden/head).
  Tensor split_heads(const Tensor& x) const {
    return x.view({x.size(0), x.size(1), options.heads, -1}).permute({0, 2, 1, 3});
  }

  Tensor forward(const Tensor& x) const {
    const Tensor q = split_heads(q_proj(x));
    const Tensor k = split_heads(k_proj(x));
    const Tensor v = split_heads(v_proj(x));
    const Tensor scores = matmul(q, k.transpose(-2, -1)) / sqrt(q.size(-1));
    const Tensor probabilities = dropout(softmax(scores, -1), options.dropout);
    const Tensor merged = matmul(probabilities, v).permute({0, 2, 1, 3});
    const Tensor y = dense(merged.reshape({x.size(0), x.size(1), -1}));
    return layer_norm(dropout(y, options.dropout) + x);
  }

  const AttentionBlockOptions options;
  nn::Child<nn::Linear> q_proj, k_proj, v_proj, dense;
  nn::Child<nn::LayerNorm> layer_norm;
};

}  // namespace tenon::bench
