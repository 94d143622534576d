// The schedule of the GPT: in every block the three projections become one product, and attention one
// kernel that never stores the scores.
#pragma once

#include <string>

#include "examples/gpt_model.h"
#include "schedule/schedule.h"

namespace gpt {

/// One product instead of three; the i-th result stands for the i-th match.
struct FusedQkv : tenon::nn::Module {
  FusedQkv(std::int64_t hidden, std::int64_t n_heads)
      : fused_linear(add<tenon::nn::Linear>("fused_linear", hidden, 3 * hidden)), heads(n_heads) {}

  std::vector<Tensor> forward(const Tensor& x) const {
    std::vector<Tensor> qkv;
    for (const Tensor& part : chunk(fused_linear(x), 3, -1)) {
      qkv.push_back(split_heads(part, heads));
    }
    return qkv;
  }

  tenon::nn::Child<tenon::nn::Linear> fused_linear;
  std::int64_t heads;
};

inline void schedule_gpt(tenon::Schedule& sch, const GptOptions& options) {
  const auto projection = [heads = options.heads](const Tensor& x) {
    return split_heads(tenon::call_module("[qkv]_proj", x), heads);
  };
  const auto attention = [p = options.dropout](const Tensor& q, const Tensor& k, const Tensor& v,
                                               const Tensor& hidden) {
    return causal_attention(q, k, v, hidden, p);
  };
  const auto flash = [p = options.dropout](const Tensor& q, const Tensor& k, const Tensor& v,
                                           const Tensor&) {
    return scaled_dot_product_attention(q, k, v, {}, {.dropout_p = p, .is_causal = true});
  };
  for (std::int64_t i = 0; i < options.layers; ++i) {
    tenon::Schedule attn = sch["blocks." + std::to_string(i) + ".attn"];
    attn.replace(tenon::nn::make<FusedQkv>(options.hidden, options.heads), attn.find(projection));
    attn.replace(flash, attn.find(attention));
  }
}

}  // namespace gpt
