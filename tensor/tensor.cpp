#include "tensor/tensor.h"

#include "tensor/calls/move_data.h"
#include "tensor/interpreter.h"
#include "tensor/rules/infer_rules.h"
#include "tensor/support/check.h"

namespace tenon {
namespace {

const TensorImpl& impl_of(const std::shared_ptr<TensorImpl>& impl) {
  TENON_CHECK(impl != nullptr, ValueError, "an undefined tensor was used");
  return *impl;
}

const TensorImpl& eager_impl(const std::shared_ptr<TensorImpl>& impl) {
  const TensorImpl& result = impl_of(impl);
  TENON_CHECK(result.storage != nullptr, TraceError,
              "the data of a traced tensor was asked for; a trace has shapes but no numbers");
  return result;
}

Shape to_shape(const Extents& sizes) {
  std::vector<Dim> dims(sizes.begin(), sizes.end());
  return Shape(std::move(dims));
}

}  // namespace

Tensor::Tensor(std::shared_ptr<Storage> storage, DType dtype, const Layout& layout)
    : impl_(std::make_shared<TensorImpl>()) {
  impl_->spec = {dtype, to_shape(layout.sizes), storage->device()};
  impl_->layout = layout;
  impl_->storage = std::move(storage);
}

Tensor Tensor::symbolic(TensorSpec spec, std::shared_ptr<const TracedPayload> payload) {
  auto impl = std::make_shared<TensorImpl>();
  impl->spec = std::move(spec);
  impl->payload = std::move(payload);
  return Tensor(std::move(impl));
}

const TensorSpec& Tensor::spec() const { return impl_of(impl_).spec; }

const Shape& Tensor::shape() const {
  TENON_CHECK(!(impl_of(impl_).payload && in_pattern_value()), TraceError,
              "a pattern function asked for a whole shape or rank, which is unknown until the "
              "pattern is matched; use size(axis)");
  return impl_->spec.shape;
}

int Tensor::dim() const { return shape().rank(); }

Dim Tensor::size(std::int64_t axis) const {
  const TensorImpl& impl = impl_of(impl_);
  if (impl.payload && in_pattern_value()) return impl.payload->size(static_cast<int>(axis));
  const int rank = impl.spec.shape.rank();
  TENON_CHECK(axis >= -rank && axis < rank, ShapeError,
              "size({}) of a tensor of shape {}; needed an axis in [{}, {})", axis,
              impl.spec.shape.to_string(), -rank, rank);
  return impl.spec.shape[static_cast<int>(axis)];
}

bool Tensor::in_pattern_value() const { return impl_->payload->is_pattern(); }

const Layout& Tensor::layout() const { return eager_impl(impl_).layout; }
const std::shared_ptr<Storage>& Tensor::storage() const { return eager_impl(impl_).storage; }

TensorView Tensor::view_of_data() const {
  const TensorImpl& impl = eager_impl(impl_);
  TensorView view;
  auto* base = static_cast<std::byte*>(impl.storage->data());
  if (base != nullptr) {
    view.data = base + impl.layout.offset * static_cast<std::int64_t>(size_of(impl.spec.dtype));
  }
  view.dtype = impl.spec.dtype;
  view.device = impl.spec.device;
  view.sizes = impl.layout.sizes;
  view.strides = impl.layout.strides;
  view.present = true;
  return view;
}

void* Tensor::host_data(DType wanted) const {
  TENON_CHECK(device().is_cpu(), DeviceError,
              "the data of a tensor on {} was read on the host; copy it with cpu() first",
              device().to_string());
  TENON_CHECK(dtype() == wanted, DTypeError, "the data of a {} tensor was read as {}",
              name(dtype()), name(wanted));
  return view_of_data().data;
}

Tensor Tensor::to_host_contiguous(DType wanted) const {
  TENON_CHECK(dtype() == wanted, DTypeError, "the data of a {} tensor was read as {}",
              name(dtype()), name(wanted));
  return on_host();
}

Tensor Tensor::on_host() const {
  eager_impl(impl_);
  return detail::host_data_of(*this);
}

std::vector<double> Tensor::to_doubles() const {
  const Tensor host = on_host();
  std::vector<double> values(static_cast<std::size_t>(host.layout().numel()));
  dispatch_all(host.dtype(), [&]<typename T>() {
    const T* source = host.data<T>();
    for (std::size_t i = 0; i < values.size(); ++i) {
      values[i] = static_cast<double>(static_cast<compute_type<T>>(source[i]));
    }
  });
  return values;
}

Number Tensor::only_element() const {
  TENON_CHECK(is_eager(), TraceError,
              "item() under the tracer: a Graph serves all inputs, so a number computed from one "
              "of them cannot steer it");
  TENON_CHECK(layout().numel() == 1, ShapeError, "item() of a tensor of shape {}; needed 1 element",
              shape().to_string());
  const Tensor host = on_host();
  return dispatch_all(host.dtype(), [&]<typename T>() {
    return Number(static_cast<compute_type<T>>(*host.data<T>()));
  });
}

double Tensor::item() const { return only_element().to_double(); }

void Tensor::fail_item(const Number& value, DType wanted) {
  detail::fail<ValueError>("item() of {} as {}, which does not hold that value; needed {}",
                           value.to_string(), name(wanted),
                           value.is_integer() ? "a wider type" : "float or double");
}

void Tensor::copy_(const Tensor& source) {
  // A pattern knows neither shapes nor dtypes: the matched nodes had to fit.
  if (ops::in_pattern()) return current_interpreter().assign(*this, source);
  TENON_CHECK(ops::same_sizes(source.shape(), shape()), ShapeError,
              "copy_ of a tensor of shape {} into one of shape {}", source.shape().to_string(),
              shape().to_string());
  TENON_CHECK(!is_eager() || !overlaps_itself(impl_->layout), ValueError,
              "[copy_] into a tensor of shape {} and strides ({}), some of whose elements lie in "
              "one place, as those of an expanded tensor do; write into a clone(), or into the "
              "tensor that it is a view of",
              shape().to_string(), fmt::join(impl_->layout.strides, ", "));
  Tensor typed = source.dtype() == dtype() ? source : cast(source, dtype());
  if (typed.device() != device()) typed = typed.to(device());
  const bool tracked = detail::grad_mode() && (requires_grad() || typed.requires_grad());
  if (tracked) {
    TENON_CHECK(!(requires_grad() && is_leaf()), ValueError,
                "a leaf that requires a gradient was changed in place; do it under NoGradGuard");
    TENON_CHECK(
        !impl_->is_recorded_view, ValueError,
        "a view of a tensor with a gradient was changed in place; change the tensor itself, "
        "or a clone()");
    TENON_CHECK(requires_grad() || !is_eager() || impl_->storage.use_count() == 1, ValueError,
                "values with a gradient were written into memory that several constants share, a "
                "tensor and its views: the others would not know; write into a clone()");
    if (typed.requires_grad() && typed.is_leaf()) typed = typed.view(typed.shape());
  }
  current_interpreter().assign(*this, typed);
  if (!tracked) return;
  impl_->requires_grad = typed.requires_grad();
  impl_->producer = typed.impl_->producer;
  impl_->output_index = typed.impl_->output_index;
  impl_->version = is_eager() ? impl_->storage->version() : 0;
}

Tensor& Tensor::assign_result(const char* op, const Tensor& result) {
  TENON_CHECK(
      ops::in_pattern() || ops::same_sizes(result.shape(), shape()), ShapeError,
      "[{}] the result has shape {} and the tensor that is to hold it {}; needed an operand "
      "that broadcasts to the tensor",
      op, result.shape().to_string(), shape().to_string());
  copy_(result);
  return *this;
}

Tensor& Tensor::add_(const Tensor& other) { return assign_result("add_", add(*this, other)); }
Tensor& Tensor::add_(const Scalar& other) { return assign_result("add_", add(*this, other)); }
Tensor& Tensor::sub_(const Tensor& other) { return assign_result("sub_", sub(*this, other)); }
Tensor& Tensor::sub_(const Scalar& other) { return assign_result("sub_", sub(*this, other)); }
Tensor& Tensor::mul_(const Tensor& other) { return assign_result("mul_", mul(*this, other)); }
Tensor& Tensor::mul_(const Scalar& other) { return assign_result("mul_", mul(*this, other)); }
Tensor& Tensor::div_(const Tensor& other) { return assign_result("div_", div(*this, other)); }
Tensor& Tensor::div_(const Scalar& other) { return assign_result("div_", div(*this, other)); }
void Tensor::zero_() { copy_(tenon::expand(full({}, 0, {dtype(), device()}), shape())); }

Tensor& Tensor::requires_grad_(bool on) {
  TENON_CHECK(is_leaf(), ValueError,
              "requires_grad_ of a computed tensor; only leaves can be changed, see detach()");
  TENON_CHECK(!on || is_floating(dtype()), DTypeError,
              "requires_grad_ of a {} tensor; only floats have gradients", name(dtype()));
  impl_->requires_grad = on;
  return *this;
}

void Tensor::set_grad(const Tensor& gradient) {
  impl_of(impl_);
  for (const TensorImpl* other = gradient.impl().get(); other; other = other->grad.get()) {
    TENON_CHECK(other != impl_.get(), ValueError,
                "set_grad: a tensor cannot be its own gradient, nor its gradient's; "
                "give detach().clone()");
  }
  if (gradient) {
    TENON_CHECK(gradient.shape().same_as(shape()) && gradient.dtype() == dtype() &&
                    gradient.device() == device(),
                ShapeError, "set_grad: a gradient {} for a tensor {}", gradient.spec().to_string(),
                spec().to_string());
  }
  impl_->grad = gradient.impl();
}

Tensor Tensor::detach() const { return tenon::detach(*this); }

void Tensor::set_data_(const Tensor& other) {
  const TensorImpl& source = eager_impl(other.impl_);
  eager_impl(impl_);
  TENON_CHECK(!current_interpreter().is_recording(), TraceError,
              "[set_data_] under the tracer: a Graph cannot give a tensor other storage; change it "
              "with copy_, or call set_data_ outside of forward");
  impl_->spec = source.spec;
  impl_->layout = source.layout;
  impl_->storage = source.storage;
}

Tensor Tensor::to(DType dtype) const { return this->dtype() == dtype ? *this : cast(*this, dtype); }

Tensor Tensor::to(Device device) const { return to_device(*this, device); }
Tensor Tensor::clone() const { return tenon::clone(*this); }
Tensor Tensor::contiguous() const { return tenon::contiguous(*this); }
Tensor Tensor::view(const Shape& shape) const { return tenon::view(*this, shape); }
Tensor Tensor::reshape(const Shape& shape) const { return tenon::reshape(*this, shape); }
Tensor Tensor::permute(const std::vector<std::int64_t>& dims) const {
  return tenon::permute(*this, dims);
}
Tensor Tensor::transpose(std::int64_t dim0, std::int64_t dim1) const {
  return tenon::transpose(*this, dim0, dim1);
}
Tensor Tensor::expand(const Shape& shape) const { return tenon::expand(*this, shape); }
Tensor Tensor::narrow(std::int64_t dim, const Dim& start, const Dim& length) const {
  return tenon::narrow(*this, dim, start, length);
}
Tensor Tensor::unsqueeze(std::int64_t dim) const { return tenon::unsqueeze(*this, dim); }
Tensor Tensor::squeeze(std::int64_t dim) const { return tenon::squeeze(*this, dim); }

std::string Tensor::to_string(std::int64_t max_elements) const {
  if (!defined()) return "undefined";
  std::string text = spec().to_string();
  if (!is_eager() || layout().numel() > max_elements) return text;
  const Tensor host = on_host();
  std::vector<std::string> values;
  dispatch_all(host.dtype(), [&]<typename T>() {
    using Shown = std::conditional_t<std::is_integral_v<T>, std::int64_t, double>;
    const T* source = host.data<T>();
    for (std::int64_t i = 0; i < host.layout().numel(); ++i) {
      const auto value = static_cast<compute_type<T>>(source[i]);
      values.push_back(fmt::format("{}", static_cast<Shown>(value)));
    }
  });
  return text + fmt::format(" [{}]", fmt::join(values, ", "));
}

}  // namespace tenon
