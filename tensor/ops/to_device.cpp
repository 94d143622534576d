// to_device: the same values on another device.
#include "tensor/calls/move_data.h"
#include "tensor/device_backend.h"
#include "tensor/interpreter.h"
#include "tensor/ops/attributes.h"
#include "tensor/ops/op_list.h"
#include "tensor/rules/infer_rules.h"
#include "tensor/support/check.h"

namespace tenon {

Tensor to_device(const Tensor& input, Device device) {
  static const Op& op = get_op("to_device");
  if (input.device() == device) return input;
  TENON_CHECK(!ops::in_pattern(), TraceError,
              "[to_device] in a pattern: a Graph runs on one device, so nothing in it is moved");
  return apply1(op, {input}, ToDeviceAttrs{device});
}

namespace detail {

void run_to_device(const KernelArgs& args) {
  const TensorView& source = args.inputs[0];
  const TensorView& target = args.outputs[0];
  const std::size_t bytes = static_cast<std::size_t>(target.numel()) * size_of(target.dtype);
  if (bytes == 0) return;
  const DeviceType mover = target.device.is_cuda() ? target.device.type : source.device.type;
  device_backend(mover).copy(target.data, target.device, source.data, source.device, bytes);
}

Tensor moved_to(const Tensor& tensor, Device device) {
  static const Op& op = get_op("to_device");
  if (tensor.device() == device) return tensor;
  return apply_eager(op, {&tensor, 1}, ToDeviceAttrs{device}).at(0);
}

Tensor host_data_of(const Tensor& tensor) {
  static const Op& contiguous = get_op("contiguous");
  const Tensor host = moved_to(tensor, kCpu);
  return host.is_contiguous() ? host : apply_eager(contiguous, {&host, 1}, {}).at(0);
}

}  // namespace detail

namespace ops {
namespace {

std::vector<TensorSpec> infer_to_device(const InferContext& context) {
  TensorSpec output = context[0];
  output.device = context.attributes<ToDeviceAttrs>().device;
  return {output};
}

std::vector<Tensor> vjp_to_device(const VjpContext& call) {
  return {to_device(call.cotangent(0), call.input_spec(0).device)};
}

}  // namespace

Op define_to_device() {
  return OpBuilder("to_device")
      .doc("A contiguous copy on the device; its gradient is moved back.")
      .operand("input")
      .trait(Trait::storage_dtypes)
      .infer(infer_to_device)
      .vjp(vjp_to_device)
      .cpu({.name = "cpu.to_device", .run = detail::run_to_device})
      .done();
}

}  // namespace ops
}  // namespace tenon
