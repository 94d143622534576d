// Declaring an op; see the header.
#include "tensor/op.h"

#include <algorithm>
#include <utility>

#include "tensor/op_options.h"

namespace tenon {

std::string TensorSpec::to_string() const {
  return std::string(name(dtype)) + shape.to_string() + (device.is_cpu() ? "" : " on cuda");
}

const char* KernelArgs::name() const { return op->name.c_str(); }

const void* KernelArgs::attributes_of_type(const std::type_info& type) const {
  return attrs->data_of_type(type);
}

namespace {

/// A random op that drops nothing: its probability is 0.
bool drops_nothing(const Op& op, const Attrs& attrs) {
  if (!op.has(Trait::random)) return false;
  const std::size_t p = std::min(attrs.find("p"), attrs.find("dropout_p"));
  return p != attrs.size() && std::get<double>(attrs.value(p)) == 0;
}

}  // namespace

std::size_t find_mode(const Attrs& attrs) {
  for (std::size_t i = 0; i < attrs.size(); ++i) {
    if (attrs.kind(i) == FieldKind::mode) return i;
  }
  return attrs.size();
}

std::optional<DropoutMode> mode_of(const Op& op, const Attrs& attrs) {
  const std::size_t field = find_mode(attrs);
  if (field == attrs.size() || drops_nothing(op, attrs)) return std::nullopt;
  return parse_enum(DropoutMode{}, std::get<std::string>(attrs.value(field)));
}

bool draws(const Op& op, const Attrs& attrs, bool training) {
  if (!op.has(Trait::random) || drops_nothing(op, attrs)) return false;
  const auto mode = mode_of(op, attrs);
  return !mode || acts(*mode, training);
}

OpBuilder::OpBuilder(std::string_view name) : op_(std::make_unique<Op>()) { op_->name = name; }
OpBuilder::~OpBuilder() = default;
OpBuilder::OpBuilder(OpBuilder&&) noexcept = default;

OpBuilder& OpBuilder::doc(std::string_view text) {
  op_->doc = text;
  return *this;
}
OpBuilder& OpBuilder::operand(std::string_view name) {
  op_->operands.push_back({std::string(name)});
  return *this;
}
OpBuilder& OpBuilder::optional(std::string_view name) {
  op_->operands.push_back({std::string(name), true});
  return *this;
}
OpBuilder& OpBuilder::variadic(std::string_view name) {
  op_->operands.push_back({std::string(name), false, true});
  return *this;
}
OpBuilder& OpBuilder::trait(Trait trait) {
  op_->traits |= static_cast<std::uint32_t>(trait);
  return *this;
}
OpBuilder& OpBuilder::infer(Op::Infer f) {
  op_->infer = f;
  return *this;
}
OpBuilder& OpBuilder::view(Op::View f) {
  op_->view = f;
  return trait(Trait::view);
}
OpBuilder& OpBuilder::decompose(Op::Decompose f) {
  op_->decompose = f;
  return *this;
}
OpBuilder& OpBuilder::pattern_attrs(std::vector<Attrs> (*f)()) {
  op_->pattern_attrs = f;
  return *this;
}
OpBuilder& OpBuilder::identity(Op::Identity f) {
  op_->identity = f;
  return *this;
}
OpBuilder& OpBuilder::repeats(Op::Repeats f) {
  op_->repeats = f;
  return *this;
}
OpBuilder& OpBuilder::range(Op::Range f) {
  op_->range = f;
  return *this;
}
OpBuilder& OpBuilder::flops(Op::Flops f) {
  op_->flops = f;
  return *this;
}
OpBuilder& OpBuilder::vjp(Op::Vjp f) {
  op_->vjp = f;
  return *this;
}
OpBuilder& OpBuilder::saves_inputs(std::initializer_list<int> operands) {
  for (int i : operands) op_->saved_inputs |= 1U << i;
  return *this;
}
OpBuilder& OpBuilder::saves_outputs(std::initializer_list<int> outputs) {
  for (int i : outputs) op_->saved_outputs |= 1U << i;
  return *this;
}
OpBuilder& OpBuilder::recorded_as(std::string_view op) {
  op_->recorded_as = op;
  return *this;
}
OpBuilder& OpBuilder::accumulates_as(std::string_view op) {
  op_->accumulates_as = op;
  return *this;
}
OpBuilder& OpBuilder::rederived_by(std::string_view op) {
  op_->rederived_by = op;
  return *this;
}
OpBuilder& OpBuilder::not_differentiable() {
  op_->not_differentiable = true;
  return *this;
}
OpBuilder& OpBuilder::selects_by(const IndexOperand& operand) {
  op_->selects_by = operand;
  return *this;
}
OpBuilder& OpBuilder::cpu(const Kernel& kernel) {
  op_->add_kernel(DeviceType::cpu, kernel);
  return *this;
}
Op OpBuilder::done() { return std::move(*op_); }

}  // namespace tenon
