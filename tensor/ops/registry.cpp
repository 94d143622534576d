// The table of all ops, built once from the explicit list in op_list.h.
#include <algorithm>
#include <unordered_map>

#include "tensor/interpreter.h"
#include "tensor/ops/op_list.h"
#include "tensor/support/check.h"

namespace tenon {
namespace {

struct Registry {
  Registry() {
    ops.reserve(64);
#define TENON_DEFINITION(name) ops::define_##name,
    for (Op (*define)() : {TENON_FOR_EACH_OP(TENON_DEFINITION)}) {
      ops.push_back(std::make_unique<Op>(define()));
    }
#undef TENON_DEFINITION
    for (const auto& op : ops) {
      by_name.emplace(op->name, op.get());
      listed.push_back(op.get());
    }
  }
  std::vector<std::unique_ptr<Op>> ops;
  std::vector<const Op*> listed;
  std::unordered_map<std::string_view, Op*> by_name;
};

Registry& registry() {
  static Registry& instance = *new Registry;  // never destroyed: threads may outlive main
  return instance;
}

}  // namespace

const std::vector<const Op*>& all_ops() { return registry().listed; }

const Op* find_op(std::string_view name) {
  const auto found = registry().by_name.find(name);
  return found == registry().by_name.end() ? nullptr : found->second;
}

const Op& get_op(std::string_view name) {
  const Op* op = find_op(name);
  TENON_CHECK(op != nullptr, ValueError, "there is no op called '{}'", name.substr(0, 80));
  return *op;
}

void register_kernel(std::string_view op, DeviceType device, Kernel kernel) {
  const auto found = registry().by_name.find(op);
  TENON_INTERNAL(found != registry().by_name.end(), "kernel {} for an unknown op '{}'", kernel.name,
                 op);
  found->second->add_kernel(device, kernel);
}

const Kernel* select_kernel(const Op& op, DeviceType device, const KernelArgs& args) {
  const auto supports = [&](const Kernel& kernel) {
    return kernel.supports == nullptr || kernel.supports(args);
  };
  for (const Kernel& kernel : op.kernels(device)) {
    if (kernel.preferred != nullptr && kernel.preferred(args) && supports(kernel)) return &kernel;
  }
  for (const Kernel& kernel : op.kernels(device)) {
    if (supports(kernel)) return &kernel;
  }
  return nullptr;
}

namespace {

[[noreturn]] void refuse_storage_dtype(const Op& op, std::size_t i, DType dtype) {
  const std::string& operand = op.operands[std::min(i, op.operands.size() - 1)].name;
  detail::fail<DTypeError>(
      "[{}] operand '{}' is {}, which is for storage, casts, comparisons and indices; convert with "
      "cast, to int32 for instance",
      op.name, operand, name(dtype));
}

}  // namespace

std::vector<TensorSpec> infer(const Op& op, std::span<const TensorSpec* const> inputs,
                              const Attrs& attrs) {
  const TensorSpec* first = nullptr;
  const bool computes = !op.has(Trait::storage_dtypes) && !op.has(Trait::view);
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    const TensorSpec* spec = inputs[i];
    if (spec == nullptr) continue;
    if (computes && is_storage_only(spec->dtype)) refuse_storage_dtype(op, i, spec->dtype);
    if (first == nullptr) first = spec;
    TENON_CHECK(spec->device == first->device, DeviceError,
                "[{}] operands are on different devices, {} and {}; move them with to(device)",
                op.name, first->device.to_string(), spec->device.to_string());
  }
  if (op.infer == nullptr) return infer_by_decomposition(op, inputs, attrs);
  return op.infer(InferContext(op, inputs, attrs));
}

}  // namespace tenon
