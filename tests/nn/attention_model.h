// The attention of the schedule tutorial, as a user writes it: tests/data/attention holds its
// weights and a recorded call.
#pragma once

#include <cstdint>

#include "nn/nn.h"

namespace tenon::test {

inline Tensor scaled_dot_product(const Tensor& q, const Tensor& k, const Tensor& v) {
  const Tensor scores = matmul(q, k.transpose(-2, -1)) / sqrt(q.size(-1));
  return matmul(dropout(softmax(scores, -1), 0.1), v);
}

struct SelfAttention : nn::Module {
  SelfAttention(std::int64_t hidden, std::int64_t heads)
      : q_proj(add<nn::Linear>("q_proj", hidden, hidden)),
        k_proj(add<nn::Linear>("k_proj", hidden, hidden)),
        v_proj(add<nn::Linear>("v_proj", hidden, hidden)),
        dropout(add<nn::Dropout>("dropout", 0.1)),
        n_heads(heads) {}

  Tensor permute_for_scores(const Tensor& x) const {
    return x.view({x.size(0), x.size(1), n_heads, -1}).permute({0, 2, 1, 3});
  }

  Tensor forward(const Tensor& hidden_states) const {
    const Tensor q = permute_for_scores(q_proj(hidden_states));
    const Tensor k = permute_for_scores(k_proj(hidden_states));
    const Tensor v = permute_for_scores(v_proj(hidden_states));
    const Tensor output = scaled_dot_product(q, k, v).permute({0, 2, 1, 3});
    return output.reshape({output.size(0), output.size(1), -1});
  }

  nn::Child<nn::Linear> q_proj, k_proj, v_proj;
  nn::Child<nn::Dropout> dropout;
  std::int64_t n_heads;
};

struct Projection : nn::Module {
  explicit Projection(std::int64_t hidden)
      : dense(add<nn::Linear>("dense", hidden, hidden)),
        dropout(add<nn::Dropout>("dropout", 0.1)),
        layer_norm(add<nn::LayerNorm>("layer_norm", hidden)) {}

  Tensor forward(const Tensor& hidden_states, const Tensor& input_tensor) const {
    return layer_norm(dropout(dense(hidden_states)) + input_tensor);
  }

  nn::Child<nn::Linear> dense;
  nn::Child<nn::Dropout> dropout;
  nn::Child<nn::LayerNorm> layer_norm;
};

struct Attention : nn::Module {
  Attention(std::int64_t hidden, std::int64_t heads)
      : self_attn(add<SelfAttention>("self_attn", hidden, heads)),
        proj(add<Projection>("proj", hidden)) {}

  Tensor forward(const Tensor& hidden_states) const {
    return proj(self_attn(hidden_states), hidden_states);
  }

  nn::Child<SelfAttention> self_attn;
  nn::Child<Projection> proj;
};

}  // namespace tenon::test
