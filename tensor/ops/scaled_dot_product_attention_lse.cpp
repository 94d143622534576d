// scaled_dot_product_attention_lse: attention, with what its gradient reads of the softmax and of the
// dropout mask, so that backward neither sums the exponentials nor draws random numbers again.
#include "tensor/cpu/attention.h"
#include "tensor/ops/op_list.h"
#include "tensor/rules/attention_rules.h"
#include "tensor/rules/gradients.h"
#include "tensor/rules/infer_rules.h"
#include "tensor/support/check.h"

namespace tenon::ops {
namespace {

std::vector<TensorSpec> infer_attention_lse(const InferContext& context) {
  std::vector<TensorSpec> specs = infer_attention(context);
  const TensorSpec output = specs[0];
  Shape rows = output.shape;
  rows.erase(rows.rank() - 1);
  specs.push_back({accumulation_dtype(output.dtype), rows, output.device});
  const bool may_drop = context.attributes<AttentionAttrs>().dropout_p != 0;
  Shape bits = output.shape;
  bits[-1] = may_drop ? keep_bits_columns(context[1].shape[-2]) : Dim(0);
  specs.push_back({DType::uint8, std::move(bits), output.device});
  return specs;
}

std::vector<Tensor> vjp_attention_lse(const VjpContext& call) {
  TENON_CHECK(!call.cotangent(1), ValueError,
              "[{}] lse has no gradient; take a logsumexp of the scores instead", call.op().name);
  const bool mask_gradient = call.has(3) && call.needs(3);
  return scaled_dot_product_attention_backward(
      call.cotangent(0), call.input(0), call.input(1), call.input(2), call.output(0), call.input(3),
      {call.attributes<AttentionAttrs>(), mask_gradient}, {call.output(1), call.output(2)});
}

}  // namespace

Op define_scaled_dot_product_attention_lse() {
  return OpBuilder("scaled_dot_product_attention_lse")
      .doc(
          "scaled_dot_product_attention as autograd records it: output (…, L, Ev), lse and "
          "keep_bits. "
          "lse (…, L), in float32 or, for float64, float64, is the natural log of the sum of "
          "exp(scaled and masked score) over the keys: -inf where none is seen. keep_bits is "
          "uint8 "
          "(…, L, 16·ceil(S/128)), so that rows are 16-byte aligned: bit i of byte j is set when "
          "dropout keeps key 8j + i; bits of keys that causality hides, and of those past S, are "
          "unspecified. All bits are set in eval mode; for dropout_p = 0 the last axis is empty.")
      .operand("query")
      .operand("key")
      .operand("value")
      .optional("attn_mask")
      .trait(Trait::random)
      .infer(infer_attention_lse)
      .flops(attention_flops)
      .vjp(vjp_attention_lse)
      .saves_inputs({0, 1, 2, 3})
      .saves_outputs({0, 1, 2})
      .cpu({.name = "cpu.flash",
            .run = cpu::attention,
            .accepts = any_layout,
            .strided_output = true})
      .done();
}

}  // namespace tenon::ops
