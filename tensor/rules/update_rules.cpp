#include "tensor/rules/update_rules.h"

#include "tensor/interpreter.h"
#include "tensor/rules/infer_rules.h"
#include "tensor/support/check.h"

namespace tenon {

std::string_view enum_name(RoundedCopy copy) {
  switch (copy) {
    case RoundedCopy::float16: return "float16";
    case RoundedCopy::bfloat16: return "bfloat16";
    default: return "none";
  }
}

RoundedCopy parse_enum(RoundedCopy, std::string_view text) {
  for (const auto copy : {RoundedCopy::none, RoundedCopy::float16, RoundedCopy::bfloat16}) {
    if (text == enum_name(copy)) return copy;
  }
  detail::fail<ValueError>("copies '{}'; needed none, float16 or bfloat16", text.substr(0, 80));
}

namespace ops {
namespace {

/// One operand of parameter `number`, for messages.
struct Named {
  const InferContext& context;
  const char* name;
  int number;
  int operand;
  const TensorSpec& spec() const { return context[operand]; }
};

void require_shape_of(const Named& given, const TensorSpec& param) {
  const Shape& shape = given.spec().shape;
  bool fits = shape.rank() == param.shape.rank();
  for (int axis = 0; fits && axis < shape.rank(); ++axis) {
    fits = unify(shape[axis], param.shape[axis]);
  }
  TENON_CHECK(fits, ShapeError, "[{}] '{}' of parameter {} has shape {}; needed {}",
              given.context.op().name, given.name, given.number, shape.to_string(),
              param.shape.to_string());
}

void require_one_element(const Named& given) {
  require_floating(given.context, given.operand);
  bool one = true;
  for (const Dim& size : given.spec().shape) one = one && unify(size, 1);
  TENON_CHECK(one, ShapeError, "[{}] '{}' has shape {}; needed one element",
              given.context.op().name, given.name, given.spec().shape.to_string());
}

void require_gradient(const Named& grad, const TensorSpec& param) {
  require_floating(grad.context, grad.operand);
  require_shape_of(grad, param);
  const DType given = grad.spec().dtype;
  const bool is_narrow = given == DType::float16 || given == DType::bfloat16;
  TENON_CHECK(
      given == param.dtype || (is_narrow && param.dtype == DType::float32), DTypeError,
      "[{}] a gradient of {} for parameter {} of {}; needed the same dtype, or a 16-bit one for "
      "float32",
      grad.context.op().name, name(given), grad.number, name(param.dtype));
}

void require_state(const Named& state, const TensorSpec& param) {
  require_shape_of(state, param);
  TENON_CHECK(state.spec().dtype == param.dtype, DTypeError,
              "[{}] the state of parameter {} is {} and the parameter {}; needed one dtype",
              state.context.op().name, state.number, name(state.spec().dtype), name(param.dtype));
}

}  // namespace

std::vector<TensorSpec> infer_updates(const InferContext& context, const UpdateLayout& layout) {
  const int count = layout.count(context.size());
  TENON_CHECK(count > 0, ValueError,
              "[{}] {} operands; needed lr, grad_scale and, for each parameter, param, grad, step "
              "and {} of state",
              context.op().name, context.size(), layout.states);
  require_one_element({context, "lr", 0, UpdateLayout::kLr});
  if (context.has(UpdateLayout::kGradScale)) {
    require_one_element({context, "grad_scale", 0, UpdateLayout::kGradScale});
  }
  std::vector<TensorSpec> results;
  for (int i = 0; i < count; ++i) {
    require_floating(context, layout.param(i));
    const TensorSpec& param = context[layout.param(i)];
    require_gradient({context, "grad", i, layout.grad(i)}, param);
    require_one_element({context, "step", i, layout.step(i)});
    for (int k = 0; k < layout.states; ++k) {
      require_state({context, "state", i, layout.state(i, k)}, param);
    }
    results.insert(results.end(), static_cast<std::size_t>(1 + layout.states), param);
    if (layout.copies == RoundedCopy::none) continue;
    results.push_back(param);
    results.back().dtype = layout.copies == RoundedCopy::float16 ? DType::float16 : DType::bfloat16;
  }
  return results;
}

std::vector<UpdatedParameter> apply_updates(const Op& op, const UpdateLayout& layout,
                                            const std::vector<ParameterUpdate>& updates,
                                            const Tensor& lr, const Tensor& grad_scale,
                                            const Attrs& attrs) {
  TENON_CHECK(!updates.empty(), ValueError, "[{}] there are no parameters", op.name);
  std::vector<Tensor> operands = {lr, grad_scale};
  for (const ParameterUpdate& update : updates) {
    TENON_CHECK(update.state.size() == static_cast<std::size_t>(layout.states), ValueError,
                "[{}] parameter {} comes with {} tensors of state; needed {}", op.name,
                &update - updates.data(), update.state.size(), layout.states);
    operands.insert(operands.end(), {update.param, update.grad, update.step});
    operands.insert(operands.end(), update.state.begin(), update.state.end());
  }
  const std::vector<Tensor> results = apply(op, operands, attrs);
  std::vector<UpdatedParameter> updated;
  for (std::size_t i = 0; i < updates.size(); ++i) {
    const Tensor* own = &results[i * static_cast<std::size_t>(layout.num_results())];
    updated.push_back({own[0], {own + 1, own + 1 + layout.states}, {}});
    if (layout.copies != RoundedCopy::none) updated.back().copy = own[1 + layout.states];
  }
  return updated;
}

}  // namespace ops
}  // namespace tenon
