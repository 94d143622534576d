#include "tensor/cpu/attention_tiles.h"

#include <limits>

#include "tensor/rules/attention_rules.h"

namespace tenon::cpu {

TensorView broadcast_mask(const TensorView& mask, const Extents& scores) {
  TensorView result = mask;
  if (!mask.present) return result;
  result.sizes = scores;
  result.strides = Extents::filled(scores.size(), 0);
  const int missing = scores.size() - mask.rank();
  for (int axis = 0; axis < mask.rank(); ++axis) {
    if (mask.sizes[axis] != 1) result.strides[axis + missing] = mask.strides[axis];
  }
  return result;
}

AttentionProblem attention_problem(std::string_view op, const KernelArgs& args,
                                   const AttentionAttrs& attrs,
                                   std::span<const TensorView> operands, const TensorView& mask) {
  const TensorView& query = operands[0];
  const TensorView& key = operands[1];
  Extents scores = query.sizes;
  scores[scores.size() - 1] = key.size(-2);
  AttentionProblem p{.query = query,
                     .key = key,
                     .value = operands[2],
                     .mask = broadcast_mask(mask, scores),
                     .heads = first_axes(query.sizes, query.rank() - 2),
                     .key_heads = first_axes(key.sizes, key.rank() - 2),
                     .group = ops::heads_of_a_key(query, key),
                     .queries = query.size(-2),
                     .keys = key.size(-2),
                     .depth = query.size(-1),
                     .value_depth = operands[2].size(-1),
                     .scale = attrs.scale.value(),
                     .causal = attrs.is_causal,
                     .dropout = {}};
  p.dropout = plan_dropout(op, {attrs.dropout_p, attrs.mode, attrs.site}, args,
                           p.heads.product() * p.queries, p.keys);
  return p;
}

template <class T>
void mask_row(const AttentionProblem& p, std::int64_t head, std::int64_t query,
              std::int64_t first_key, std::int64_t n, compute_type<T>* scores) {
  using C = compute_type<T>;
  constexpr std::int64_t kChunk = 128;
  const std::int64_t stride = p.mask.stride(-1);
  const std::int64_t offset =
      p.offset(p.mask, head) + query * p.mask.stride(-2) + first_key * stride;
  if (p.mask.dtype == DType::boolean) {
    const auto* visible = p.mask.as<const std::uint8_t>() + offset;
    for (std::int64_t j = 0; j < n; ++j) {
      scores[j] = visible[j * stride] != 0 ? scores[j] : -std::numeric_limits<C>::infinity();
    }
    return;
  }
  for (std::int64_t j = 0; j < n; j += kChunk) {
    C added[kChunk];
    const std::int64_t size = std::min(kChunk, n - j);
    load_row(p.mask.as<const T>() + offset + j * stride, stride, size, added);
    add_row(scores + j, added, size);
  }
}

#define TENON_INSTANTIATE_MASK_ROW(T)                                                          \
  template void mask_row<T>(const AttentionProblem&, std::int64_t, std::int64_t, std::int64_t, \
                            std::int64_t, compute_type<T>*);
TENON_INSTANTIATE_MASK_ROW(float)
TENON_INSTANTIATE_MASK_ROW(double)
TENON_INSTANTIATE_MASK_ROW(Half)
TENON_INSTANTIATE_MASK_ROW(BFloat16)

}  // namespace tenon::cpu
