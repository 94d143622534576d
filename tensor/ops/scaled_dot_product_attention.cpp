// scaled_dot_product_attention: softmax(query·keyᵀ·scale + mask)·value in one kernel.
#include <algorithm>
#include <limits>

#include "tensor/calls/dropout_call.h"
#include "tensor/calls/move_data.h"
#include "tensor/calls/taken_numbers.h"
#include "tensor/cpu/attention.h"
#include "tensor/interpreter.h"
#include "tensor/ops/op_list.h"
#include "tensor/rules/attention_rules.h"
#include "tensor/rules/gradients.h"
#include "tensor/rules/infer_rules.h"
#include "tensor/support/check.h"

namespace tenon {

Tensor scaled_dot_product_attention(const Tensor& query, const Tensor& key, const Tensor& value,
                                    const Tensor& attn_mask, const AttentionOptions& options) {
  constexpr auto kName = "scaled_dot_product_attention";
  static const Op& op = get_op(kName);
  TENON_CHECK(!(attn_mask && options.is_causal), ValueError,
              "[{}] attn_mask and is_causal are both given; needed at most one", kName);
  if (!ops::in_pattern()) {
    TENON_CHECK(query.dim() >= 2, ShapeError, "[{}] query {}; needed (…, L, E)", kName,
                query.shape().to_string());
  }
  const Scalar scale = options.scale ? Scalar(*options.scale) : Scalar(1) / sqrt(query.size(-1));
  const ops::TakenNumbers taken;
  const DropoutAttrs dropout = ops::dropout_call(kName, options.dropout_p, options.mode);
  return apply1(op, {query, key, value, attn_mask},
                AttentionAttrs{dropout.p, options.is_causal, scale, dropout.mode, dropout.site});
}

namespace ops {
namespace {

/// Each size of `shape` is the size of `target` on that axis, or 1. Symbolic sizes unify.
bool broadcasts_to(const Shape& shape, const Shape& target) {
  if (shape.rank() > target.rank()) return false;
  for (int axis = 1; axis <= shape.rank(); ++axis) {
    const Dim& size = shape[-axis];
    if (!size.same_as(1) && !unify(size, target[-axis]) && !(size == 1)) return false;
  }
  return true;
}

/// Whether heads of these numbers can attend: as many keys, or some for each group of queries.
bool pairs_heads(const Dim& query, const Dim& key) {
  return unify(query, key) || (key > 0 && query > 0 && query % key == 0);
}

}  // namespace

std::int64_t heads_of_a_key(const TensorView& query, const TensorView& key) {
  if (query.rank() < 3 || query.size(-3) == key.size(-3)) return 1;
  return query.size(-3) / key.size(-3);
}

Tensor repeat_heads(const Tensor& key, const Tensor& query) {
  if (in_pattern() || query.dim() < 3) return key;
  const Dim& heads = query.shape()[-3];
  Shape merged = key.shape();
  if (merged[-3].same_as(heads)) return key;
  Shape repeated = merged;
  repeated.insert(repeated.rank() - 2, heads / merged[-3]);
  merged[-3] = heads;
  return reshape(expand(unsqueeze(key, -3), repeated), merged);
}

std::vector<TensorSpec> infer_attention(const InferContext& context) {
  const std::string& op = context.op().name;
  require_floating(context, 0);
  for (int i = 1; i <= 2; ++i) require_same_dtype(context, 0, i);
  const Shape& query = context[0].shape;
  const Shape& key = context[1].shape;
  const Shape& value = context[2].shape;
  bool fits = query.rank() >= 2 && key.rank() == query.rank() && value.rank() == query.rank();
  for (int axis = 0; fits && axis < query.rank() - 2; ++axis) {
    fits = axis < query.rank() - 3
               ? unify(query[axis], key[axis]) && unify(query[axis], value[axis])
               : pairs_heads(query[axis], key[axis]) && unify(key[axis], value[axis]);
  }
  fits = fits && unify(query[-1], key[-1]) && unify(key[-2], value[-2]);
  TENON_CHECK(
      fits, ShapeError,
      "[{}] query {}, key {} and value {}; needed (…, L, E), (…, S, E) and (…, S, Ev) with "
      "equal leading axes, or a whole number of the query's heads (axis -3) for each of key and "
      "value",
      op, query.to_string(), key.to_string(), value.to_string());
  if (context.has(3)) {
    const TensorSpec& mask = context[3];
    TENON_CHECK(
        mask.dtype == DType::boolean || mask.dtype == context[0].dtype, DTypeError,
        "[{}] operand 'attn_mask' is {} and operand 'query' is {}, of shapes {} and {}; the "
        "mask must be bool or of the query's dtype: convert it with .to(DType::{})",
        op, name(mask.dtype), name(context[0].dtype), mask.shape.to_string(), query.to_string(),
        name(context[0].dtype));
    Shape scores = query;
    scores[-1] = key[-2];
    TENON_CHECK(broadcasts_to(mask.shape, scores), ShapeError,
                "[{}] attn_mask {} for scores {}; it must broadcast to them", op,
                mask.shape.to_string(), scores.to_string());
  }
  Shape shape = query;
  shape[-1] = value[-1];
  return {{context[0].dtype, std::move(shape), context[0].device}};
}

namespace {

/// Bool, true where key j <= query i: (L, S), or like the scores (…, L, S) where sizes are symbols.
Tensor causal_mask(const Tensor& scores, Device device) {
  const Dim &queries = scores.shape()[-2], &keys = scores.shape()[-1];
  if (!queries.is_constant() || !keys.is_constant()) return tril(ne(scores * 0, 1));  // all true
  const std::int64_t rows = queries.value();
  const std::int64_t cols = keys.value();
  Tensor mask = zeros({rows, cols}, {DType::boolean, kCpu});
  bool* values = mask.data<bool>();
  for (std::int64_t i = 0; i < rows; ++i) {
    std::fill_n(values + i * cols, std::min(i + 1, cols), true);
  }
  return detail::moved_to(mask, device);
}

std::vector<Tensor> decompose_attention(std::span<const Tensor> inputs, const Attrs& attributes) {
  const auto& attrs = attributes.as<AttentionAttrs>();
  const Tensor mask = inputs.size() > 3 ? inputs[3] : Tensor();
  Tensor probabilities = attention_probabilities(inputs[0], inputs[1], mask, attrs);
  if (attrs.dropout_p != 0) {
    probabilities = dropout_with(probabilities, {attrs.dropout_p, attrs.mode, attrs.site});
  }
  return {matmul(probabilities, repeat_heads(inputs[2], inputs[0]))};
}

std::vector<Attrs> attention_patterns() {
  return {AttentionAttrs{Any(0), false, Any(2), DropoutMode::follow, Any(4)}};
}

}  // namespace

double attention_flops(const KernelArgs& args) {
  const TensorView& query = args.inputs[0];
  return 2 * attention_pairs(query, args.inputs[1], args.attributes<AttentionAttrs>().is_causal) *
         static_cast<double>(query.size(-1) + args.inputs[2].size(-1));
}

Tensor softmax_or_zeros(const Tensor& scores, std::int64_t dim) {
  const Tensor seen = ne(scores, -std::numeric_limits<double>::infinity());  // NaN is seen
  // Counted, not compared by the maximum, which a row of no elements has not.
  const Tensor none = eq(sum(cast(seen, DType::float32), {dim}, /*keepdim=*/true), 0);
  return masked_fill(softmax(masked_fill(scores, none, 0), dim), none, 0);
}

Tensor attention_probabilities(const Tensor& query, const Tensor& key, const Tensor& attn_mask,
                               const AttentionAttrs& attrs) {
  Tensor mask = attn_mask;
  Tensor scores = matmul(query, transpose(repeat_heads(key, query), -2, -1)) * attrs.scale;
  if (attrs.is_causal) mask = causal_mask(scores, query.device());
  if (mask && mask.dtype() == DType::boolean) {
    constexpr double kHidden = -std::numeric_limits<double>::infinity();
    scores = where(mask, scores, full({}, kHidden, {scores.dtype(), scores.device()}));
  } else if (mask) {
    scores = scores + mask;
  }
  // What a model writes down, and with it the pattern, is a plain softmax.
  return attn_mask && !in_pattern() ? softmax_or_zeros(scores, -1) : softmax(scores, -1);
}

double attention_pairs(const TensorView& query, const TensorView& key, bool is_causal) {
  const auto queries = static_cast<double>(query.size(-2));
  const auto keys = static_cast<double>(key.size(-2));
  double pairs = queries * keys;
  if (is_causal) {
    const double triangle = std::min(queries, keys);  // query i sees min(i + 1, keys) keys
    pairs = triangle * (triangle + 1) / 2 + (queries - triangle) * keys;
  }
  for (int axis = 0; axis < query.rank() - 2; ++axis) {
    pairs *= static_cast<double>(query.sizes[axis]);
  }
  return pairs;
}

Op define_scaled_dot_product_attention() {
  return OpBuilder("scaled_dot_product_attention")
      .doc(
          "softmax(query·keyᵀ·scale + attn_mask)·value: (…, L, E), (…, S, E), (…, S, Ev) -> "
          "(…, L, Ev), with dropout on the probabilities. Key and value may have fewer heads (axis "
          "-3), each for a group of the query's: of H, head h reads head h / (H / Hkv), as with "
          "PyTorch's enable_gqa. A bool mask lets through where true, a floating one is added; it "
          "broadcasts to (…, L, S). is_causal: query i sees keys j <= i. A query that sees no key, "
          "because the mask hides all or S = 0, gives zeros, and a log-sum-exp of -inf. The CPU "
          "kernel is FlashAttention's online softmax; a NaN in the value of a masked key may or "
          "may "
          "not reach the output.")
      .operand("query")
      .operand("key")
      .operand("value")
      .optional("attn_mask")
      .trait(Trait::random)
      .infer(infer_attention)
      .decompose(decompose_attention)
      .pattern_attrs(attention_patterns)
      .flops(attention_flops)
      .recorded_as("scaled_dot_product_attention_lse")
      .cpu({.name = "cpu.flash",
            .run = cpu::attention,
            .accepts = any_layout,
            .strided_output = true})
      .done();
}

}  // namespace ops
}  // namespace tenon
