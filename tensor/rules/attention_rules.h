// What the definitions of attention and of its gradient share.
#pragma once

#include <cstdint>
#include <vector>

#include "tensor/op.h"
#include "tensor/ops/attributes.h"
#include "tensor/tensor.h"

namespace tenon::ops {

/// The operands of attention's gradient, in their order. lse and keep_bits are of
/// scaled_dot_product_attention_lse, or absent.
namespace attention_backward {
enum Operand : std::uint8_t { kGrad, kQuery, kKey, kValue, kOutput, kMask, kLse, kKeepBits };
}  // namespace attention_backward

/// The output's spec from those of (query, key, value, attn_mask); refuses operands that do not fit.
std::vector<TensorSpec> infer_attention(const InferContext& context);

/// Bytes of one query's dropout decisions, a bit for each key: rows start at multiples of 16 bytes.
inline Dim keep_bits_columns(const Dim& keys) { return (keys + 127) / 128 * 16; }

/// softmax(query·keyᵀ·scale + mask), (…, L, S), before dropout, by plain ops; attn_mask may be
/// undefined. Rows that the mask hides whole are zeros, but for a pattern, which is a plain softmax.
Tensor attention_probabilities(const Tensor& query, const Tensor& key, const Tensor& attn_mask,
                               const AttentionAttrs& attrs);

/// softmax along `dim`, whose rows of -inf, and rows of no elements, are zeros with zero gradients.
Tensor softmax_or_zeros(const Tensor& scores, std::int64_t dim);

/// How many heads of the query read each head of the key.
std::int64_t heads_of_a_key(const TensorView& query, const TensorView& key);

/// A key or value with each head repeated for its group, as this query reads it. In a pattern, itself.
Tensor repeat_heads(const Tensor& key, const Tensor& query);

/// How many (query, key) pairs one call of attention scores, over all heads.
double attention_pairs(const TensorView& query, const TensorView& key, bool is_causal);

/// Floating-point operations of the forward pass.
double attention_flops(const KernelArgs& args);

}  // namespace tenon::ops
