// What the definitions of attention and of its gradient share.
#pragma once

#include "tensor/ops/attributes.h"
#include "tensor/tensor.h"

namespace tenon::ops {

/// softmax(query·keyᵀ·scale + mask), (…, L, S), before dropout, by plain ops; attn_mask may be
/// undefined.
Tensor attention_probabilities(const Tensor& query, const Tensor& key, const Tensor& attn_mask,
                               const AttentionAttrs& attrs);

/// How many (query, key) pairs one call of attention scores, over all heads.
double attention_pairs(const TensorView& query, const TensorView& key, bool is_causal);

}  // namespace tenon::ops
