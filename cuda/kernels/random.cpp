// randn, uniform, randint and randperm: attributes to launches.
#include "cuda/kernels/random.h"

#include "cuda/kernels/register.h"
#include "tensor/calls/random_call.h"

namespace tenon::cuda {
namespace {

void run_randn(const KernelArgs& args) {
  fill_normal(args, ops::random_tensor_key(args, args.attributes<RandomTensorAttrs>().site));
}

void run_uniform(const KernelArgs& args) {
  const auto& attrs = args.attributes<UniformAttrs>();
  fill_uniform(args, ops::random_tensor_key(args, attrs.site),
               ops::uniform_range(attrs.low, attrs.high, args.outputs[0].dtype));
}

void run_randint(const KernelArgs& args) {
  const auto& attrs = args.attributes<RandintAttrs>();
  const std::int64_t low = attrs.low.value();
  fill_integers(args, ops::random_tensor_key(args, attrs.site), low,
                static_cast<std::uint64_t>(attrs.high.value()) - static_cast<std::uint64_t>(low));
}

void run_randperm(const KernelArgs& args) {
  fill_permutation(args, ops::random_tensor_key(args, args.attributes<RandomTensorAttrs>().site));
}

std::size_t randperm_workspace(const KernelArgs& args) {
  return permutation_workspace(args.outputs[0].numel());
}

}  // namespace

void register_random_kernels() {
  register_kernel("randn", DeviceType::cuda, {.name = "cuda.randn", .run = run_randn});
  register_kernel("uniform", DeviceType::cuda, {.name = "cuda.uniform", .run = run_uniform});
  register_kernel("randint", DeviceType::cuda, {.name = "cuda.randint", .run = run_randint});
  register_kernel(
      "randperm", DeviceType::cuda,
      {.name = "cuda.randperm", .run = run_randperm, .workspace_bytes = randperm_workspace});
}

}  // namespace tenon::cuda
