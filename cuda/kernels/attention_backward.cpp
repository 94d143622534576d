// The gradient of scaled dot-product attention on CUDA: from a call to launches.
#include "cuda/kernels/attention_backward.h"

#include <algorithm>

#include "cuda/context.h"
#include "cuda/kernels/register.h"

namespace tenon::cuda {
namespace {

enum Operand : std::uint8_t { kGrad, kQuery, kKey, kValue, kOutput, kMask };

struct Call {
  AttentionBackwardParams params;
  bool zero = false;  // nothing reaches the operands
};

void set_layout(AttentionBackwardParams& params, const KernelArgs& args) {
  const TensorView* mask = args.inputs[kMask].present ? &args.inputs[kMask] : nullptr;
  const TensorView* d_mask = args.outputs.size() > 3 ? &args.outputs[3] : nullptr;
  const OperandLayout operands[] = {{&args.inputs[kGrad], &params.grad_strides},
                                    {&args.inputs[kQuery], &params.query_strides},
                                    {&args.inputs[kKey], &params.key_strides},
                                    {&args.inputs[kValue], &params.value_strides},
                                    {&args.inputs[kOutput], &params.output_strides},
                                    {mask, &params.mask_strides},
                                    {&args.outputs[0], &params.d_query_strides},
                                    {&args.outputs[1], &params.d_key_strides},
                                    {&args.outputs[2], &params.d_value_strides},
                                    {d_mask, &params.d_mask_strides}};
  cuda::set_layout(params, args.inputs[kGrad].sizes, operands);
}

Call make_call(const KernelArgs& args) {
  AttentionBackwardParams params{};
  params.grad = args.inputs[kGrad].data;
  params.query = args.inputs[kQuery].data;
  params.key = args.inputs[kKey].data;
  params.value = args.inputs[kValue].data;
  params.output = args.inputs[kOutput].data;
  params.d_query = args.outputs[0].data;
  params.d_key = args.outputs[1].data;
  params.d_value = args.outputs[2].data;
  params.d_mask = args.outputs.size() > 3 ? args.outputs[3].data : nullptr;
  params.length = args.inputs[kQuery].size(-2);
  params.keys = args.inputs[kKey].size(-2);
  params.head = args.inputs[kQuery].size(-1);
  params.head_v = args.inputs[kValue].size(-1);
  set_layout(params, args);
  const auto& attributes = args.attributes<AttentionBackwardAttrs>();
  params.scale = attributes.scale.value();
  const bool dropped = set_attributes(params, attributes, args.inputs[kMask], args);
  return {params, dropped || params.batches * params.length * params.keys == 0};
}

void run_simt(const KernelArgs& args) {
  auto [params, zero] = make_call(args);
  const Stream stream = stream_of(args);
  if (zero) {
    for (const TensorView& output : args.outputs) write_zeros(output, stream);
    return;
  }
  const DType dtype = args.inputs[kQuery].dtype;
  const ScratchMemory statistics(stream.device, attention_statistics_bytes(params, dtype));
  params.statistics = statistics.data();
  launch_backward_simt(params, dtype, stream);
}

bool supports_simt(const KernelArgs& args) { return is_floating(args.inputs[kQuery].dtype); }

bool accepts_simt(int operand, const TensorView& view) {
  return operand == kMask || has_dense_rows(view);
}

}  // namespace

std::size_t attention_statistics_bytes(const AttentionParams& params, DType dtype) {
  return static_cast<std::size_t>(2 * params.batches * params.length) *
         size_of(accumulation_dtype(dtype));
}

void register_attention_backward_kernels() {
  register_kernel("scaled_dot_product_attention_backward", DeviceType::cuda,
                  {"cuda.flash_backward_simt", run_simt, supports_simt, accepts_simt, true});
}

}  // namespace tenon::cuda
