// The attention block of the schedule tutorial, written as a user would write it.
#pragma once

#include <cstdint>

#include "nn/nn.h"

namespace tutorial {

using tenon::Tensor;

/// softmax(q·kᵀ/√d_k)·v with dropout on the probabilities: (bs, head, seq, d_k) each.
inline Tensor scaled_dot_product(const Tensor& q, const Tensor& k, const Tensor& v) {
  const tenon::Dim d_k = q.size(-1);
  const Tensor attn_score = matmul(q, k.transpose(-2, -1)) / sqrt(d_k);  // (bs, head, seq, seq)
  const Tensor attn_probs = dropout(softmax(attn_score, -1), 0.1);
  return matmul(attn_probs, v);
}

struct SelfAttention : tenon::nn::Module {
  SelfAttention(std::int64_t hidden, std::int64_t heads)
      : q_proj(add<tenon::nn::Linear>("q_proj", hidden, hidden)),
        k_proj(add<tenon::nn::Linear>("k_proj", hidden, hidden)),
        v_proj(add<tenon::nn::Linear>("v_proj", hidden, hidden)),
        dropout(add<tenon::nn::Dropout>("dropout", 0.1)),
        n_heads(heads) {
    if (heads < 1 || hidden % heads != 0) {
      throw tenon::ValueError("SelfAttention: hidden size " + std::to_string(hidden) +
                              " is not divisible by " + std::to_string(heads) + " heads");
    }
  }

  Tensor permute_for_scores(const Tensor& x) const {
    // (bs, seq, hidden) -> (bs, head, seq, d_k)
    return x.view({x.size(0), x.size(1), n_heads, -1}).permute({0, 2, 1, 3});
  }

  Tensor forward(const Tensor& hidden_states) const {
    const Tensor q = permute_for_scores(q_proj(hidden_states));
    const Tensor k = permute_for_scores(k_proj(hidden_states));
    const Tensor v = permute_for_scores(v_proj(hidden_states));
    const Tensor output = scaled_dot_product(q, k, v).permute({0, 2, 1, 3});
    return output.reshape({output.size(0), output.size(1), -1});
  }

  tenon::nn::Child<tenon::nn::Linear> q_proj, k_proj, v_proj;
  tenon::nn::Child<tenon::nn::Dropout> dropout;
  std::int64_t n_heads;
};

struct Projection : tenon::nn::Module {
  explicit Projection(std::int64_t hidden)
      : dense(add<tenon::nn::Linear>("dense", hidden, hidden)),
        dropout(add<tenon::nn::Dropout>("dropout", 0.1)),
        layer_norm(add<tenon::nn::LayerNorm>("layer_norm", hidden)) {}

  Tensor forward(const Tensor& hidden_states, const Tensor& input_tensor) const {
    return layer_norm(dropout(dense(hidden_states)) + input_tensor);
  }

  tenon::nn::Child<tenon::nn::Linear> dense;
  tenon::nn::Child<tenon::nn::Dropout> dropout;
  tenon::nn::Child<tenon::nn::LayerNorm> layer_norm;
};

struct Attention : tenon::nn::Module {
  Attention(std::int64_t hidden, std::int64_t heads)
      : self_attn(add<SelfAttention>("self_attn", hidden, heads)),
        proj(add<Projection>("proj", hidden)) {}

  Tensor forward(const Tensor& hidden_states) const {
    return proj(self_attn(hidden_states), hidden_states);
  }

  tenon::nn::Child<SelfAttention> self_attn;
  tenon::nn::Child<Projection> proj;
};

// --- what the schedule puts in ------------------------------------------------------------------

/// One product instead of three; the i-th result stands for the i-th match.
struct FusedQKV : tenon::nn::Module {
  FusedQKV(std::int64_t hidden, std::int64_t heads)
      : fused_linear(add<tenon::nn::Linear>("fused_linear", hidden, 3 * hidden)), n_heads(heads) {}

  std::vector<Tensor> forward(const Tensor& hidden_states) const {
    std::vector<Tensor> qkv;
    for (const Tensor& x : chunk(fused_linear(hidden_states), 3, -1)) {
      qkv.push_back(x.view({x.size(0), x.size(1), n_heads, -1}).permute({0, 2, 1, 3}));
    }
    return qkv;
  }

  tenon::nn::Child<tenon::nn::Linear> fused_linear;
  std::int64_t n_heads;
};

/// Attention that never stores the scores; `p` is given by name when it is put in.
struct FlashAttention : tenon::nn::Module {
  static constexpr std::array kForwardArgs = {"query", "key", "value", "attention_mask", "p"};

  Tensor forward(const Tensor& query, const Tensor& key, const Tensor& value,
                 const Tensor& attention_mask, double p) const {
    return scaled_dot_product_attention(query, key, value, attention_mask, {.dropout_p = p});
  }
};

}  // namespace tutorial
