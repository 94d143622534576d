// scaled_dot_product_attention_backward: the gradients of attention, without storing its scores.
#include "tensor/calls/dropout_call.h"
#include "tensor/cpu/attention_backward.h"
#include "tensor/interpreter.h"
#include "tensor/ops/op_list.h"
#include "tensor/rules/attention_rules.h"
#include "tensor/rules/gradients.h"
#include "tensor/rules/infer_rules.h"
#include "tensor/support/check.h"

namespace tenon::ops {

std::vector<Tensor> scaled_dot_product_attention_backward(const Tensor& grad, const Tensor& query,
                                                          const Tensor& key, const Tensor& value,
                                                          const Tensor& output,
                                                          const Tensor& attn_mask,
                                                          const AttentionBackwardAttrs& attrs,
                                                          const AttentionStatistics& statistics) {
  static const Op& op = get_op("scaled_dot_product_attention_backward");
  const Tensor inputs[] = {
      grad, query, key, value, output, attn_mask, statistics.lse, statistics.keep_bits};
  return apply(op, inputs, attrs);
}

namespace {

using namespace attention_backward;

/// lse and keep_bits are of scaled_dot_product_attention_lse, or absent.
void check_statistics(const InferContext& context) {
  const std::string& op = context.op().name;
  const Shape& query = context[kQuery].shape;
  const auto has_rows_of_query = [&](const Shape& shape, int axes) {
    bool fits = shape.rank() == axes;
    for (int axis = 0; fits && axis < query.rank() - 1; ++axis)
      fits = unify(shape[axis], query[axis]);
    return fits;
  };
  if (context.has(kLse)) {
    const TensorSpec& lse = context[kLse];
    TENON_CHECK(has_rows_of_query(lse.shape, query.rank() - 1) &&
                    lse.dtype == accumulation_dtype(context[kQuery].dtype),
                ShapeError, "[{}] lse {} for query {}; needed (…, L) in {}", op, lse.to_string(),
                query.to_string(), name(accumulation_dtype(context[kQuery].dtype)));
  }
  if (context.has(kKeepBits)) {
    const TensorSpec& bits = context[kKeepBits];
    const bool may_drop = context.attributes<AttentionBackwardAttrs>().dropout_p != 0;
    const Dim columns = may_drop ? keep_bits_columns(context[kKey].shape[-2]) : Dim(0);
    TENON_CHECK(has_rows_of_query(bits.shape, query.rank()) && unify(bits.shape[-1], columns) &&
                    bits.dtype == DType::uint8,
                ShapeError, "[{}] keep_bits {} for query {}; needed (…, L, {}) in uint8", op,
                bits.to_string(), query.to_string(), columns.to_string());
  }
}

std::vector<TensorSpec> infer_backward(const InferContext& context) {
  const std::string& op = context.op().name;
  const Shape& grad = context[kGrad].shape;
  const Shape& output = context[kOutput].shape;
  bool fits = grad.rank() == output.rank() && grad.rank() == context[kQuery].shape.rank();
  for (int axis = 0; fits && axis < grad.rank(); ++axis) fits = unify(grad[axis], output[axis]);
  TENON_CHECK(fits, ShapeError, "[{}] grad {} and output {}; needed equal shapes (…, L, Ev)", op,
              grad.to_string(), output.to_string());
  for (const int i : {kQuery, kKey, kValue, kOutput}) {
    require_same_dtype(context, kGrad, i);
  }
  check_statistics(context);
  std::vector<TensorSpec> specs{context[kQuery], context[kKey], context[kValue]};
  if (context.attributes<AttentionBackwardAttrs>().mask_gradient) {
    TENON_CHECK(context.has(kMask) && is_floating(context[kMask].dtype), DTypeError,
                "[{}] only an additive attn_mask has a gradient", op);
    specs.push_back(context[kMask]);
  }
  return specs;
}

/// The gradient of heads that repeat_heads repeated.
Tensor sum_heads(const Tensor& gradient, const Tensor& key) {
  const Shape& heads = key.shape();
  if (heads.rank() < 3 || gradient.shape()[-3].same_as(heads[-3])) return gradient;
  Shape apart = heads;
  apart.insert(apart.rank() - 2, gradient.shape()[-3] / heads[-3]);
  return sum(reshape(gradient, apart), {-3});
}

/// The same by plain ops, with all scores in memory: what second derivatives go through. lse and
/// keep_bits are functions of the other operands, so they are not read.
std::vector<Tensor> decompose_attention_backward(std::span<const Tensor> inputs,
                                                 const Attrs& attributes) {
  const auto& attrs = attributes.as<AttentionBackwardAttrs>();
  const Tensor& grad = inputs[kGrad];
  const Tensor mask = inputs.size() > kMask ? inputs[kMask] : Tensor();
  const auto drop = [&](const Tensor& x) {
    return attrs.dropout_p == 0 ? x : dropout_with(x, {attrs.dropout_p, attrs.mode, attrs.site});
  };
  const Tensor p = attention_probabilities(inputs[kQuery], inputs[kKey], mask, attrs);
  const Tensor key = repeat_heads(inputs[kKey], inputs[kQuery]);
  const Tensor value = repeat_heads(inputs[kValue], inputs[kQuery]);
  // [L,Ev] x [S,Ev]^T -> [L,S]
  const Tensor d_p = drop(matmul(grad, transpose(value, -2, -1)));
  const Tensor d_scores = p * (d_p - sum(d_p * p, {-1}, /*keepdim=*/true));
  std::vector<Tensor> gradients{
      matmul(d_scores, key) * attrs.scale,                                // [L,S] x [S,E]
      matmul(transpose(d_scores, -2, -1), inputs[kQuery]) * attrs.scale,  // [L,S]^T x [L,E]
      matmul(transpose(drop(p), -2, -1), grad),                           // [L,S]^T x [L,Ev]
  };
  gradients[1] = sum_heads(gradients[1], inputs[kKey]);
  gradients[2] = sum_heads(gradients[2], inputs[kValue]);
  if (attrs.mask_gradient) gradients.push_back(sum_to(d_scores, mask.shape()));
  return gradients;
}

/// Five products of (L, S) scores; what a kernel computes again is not counted.
double count_flops(const KernelArgs& args) {
  const TensorView& query = args.inputs[kQuery];
  return 2 *
         attention_pairs(query, args.inputs[kKey],
                         args.attributes<AttentionBackwardAttrs>().is_causal) *
         static_cast<double>(3 * query.size(-1) + 2 * args.inputs[kValue].size(-1));
}

}  // namespace

Op define_scaled_dot_product_attention_backward() {
  return OpBuilder("scaled_dot_product_attention_backward")
      .doc(
          "The gradients of scaled_dot_product_attention: grad and output (…, L, Ev), query "
          "(…, L, E), key (…, S, E), value (…, S, Ev) -> d_query, d_key, d_value and, with "
          "mask_gradient, that of an additive attn_mask, summed to its shape. lse and keep_bits "
          "are those of scaled_dot_product_attention_lse; without them they are computed again. No "
          "kernel stores an (L, S) matrix of floats. A query whose keys are all masked has a zero "
          "gradient and adds nothing to the others.")
      .operand("grad")
      .operand("query")
      .operand("key")
      .operand("value")
      .operand("output")
      .optional("attn_mask")
      .optional("lse")
      .optional("keep_bits")
      .trait(Trait::random)
      .infer(infer_backward)
      .decompose(decompose_attention_backward)
      .flops(count_flops)
      .cpu({.name = "cpu.flash_backward",
            .run = cpu::attention_backward,
            .accepts = any_layout,
            .strided_output = true})
      .done();
}

}  // namespace tenon::ops
