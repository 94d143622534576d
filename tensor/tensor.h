// Tensor: a handle on strided data, or, under a tracer, on a value of a Graph. Copies share.
//
//   Tensor x = tenon::randn({2, 128, 1024});
//   Tensor y = softmax(x, -1).to(DType::bfloat16);
//
// Threads: any number may compute with one tensor, copy its handle and take gradients by it (grad).
// One thread, while no other uses the tensor, may change it: its values in place, requires_grad_,
// set_data_, hooks, and grad(), which backward adds to. Grad mode, interpreters, GeneratorScope
// (random.h) and the number of CPU threads (parallel.h) concern the thread that sets them. No
// result depends on how many threads compute. For modules and schedules see nn/module.h and
// schedule/schedule.h.
#pragma once

#include <concepts>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "tensor/device.h"
#include "tensor/dim.h"
#include "tensor/dtype.h"
#include "tensor/exclusive_use.h"
#include "tensor/number.h"
#include "tensor/op.h"
#include "tensor/storage.h"
#include "tensor/tensor_view.h"

namespace tenon {

class Generator;

/// What a tracer hangs on the tensors it hands out; it identifies a value of its recording.
class TracedPayload {
 public:
  virtual ~TracedPayload() = default;
  /// The size along `axis` where the shape is not known (patterns).
  virtual Dim size(int axis) const = 0;
  /// True for a value of a pattern, whose shape is unknown.
  virtual bool is_pattern() const = 0;
};

/// What autograd hangs on a tensor; only autograd/ looks inside.
class AutogradRecord {
 public:
  virtual ~AutogradRecord() = default;
};

struct TensorImpl {
  TensorSpec spec;
  Layout layout;                     // eager tensors
  std::shared_ptr<Storage> storage;  // null: traced or spec-only
  std::shared_ptr<const TracedPayload> payload;
  /// Gradients flow to or through it: a leaf that asks for one (a parameter that is not frozen), or
  /// computed from one while grad mode was on.
  bool requires_grad = false;
  std::shared_ptr<AutogradRecord> producer;  // the recorded call that made it; null: a leaf
  int output_index = 0;                      // which output of `producer`
  bool is_recorded_view = false;             // made by a recorded view op
  std::uint64_t version = 0;                 // the storage's when `producer` was recorded
  std::shared_ptr<TensorImpl> grad;          // a leaf's accumulated gradient; null: undefined
  std::shared_ptr<AutogradRecord> hooks;     // gradient hooks
  ExclusiveUse grad_in_use;                  // by a backward that adds to `grad`
};

/// Dtype, device and how to fill, for the factories below.
struct TensorOptions {
  DType dtype = DType::float32;
  Device device = {};
};

class Tensor {
 public:
  /// The undefined tensor: an absent optional operand.
  Tensor() = default;
  explicit Tensor(std::shared_ptr<TensorImpl> impl) : impl_(std::move(impl)) {}
  /// An eager tensor over existing storage.
  Tensor(std::shared_ptr<Storage> storage, DType dtype, const Layout& layout);
  /// A tensor without data: a spec for inference, or, with a payload, a traced value.
  static Tensor symbolic(TensorSpec spec, std::shared_ptr<const TracedPayload> payload = nullptr);

  bool defined() const { return impl_ != nullptr; }
  explicit operator bool() const { return defined(); }
  /// True when it holds data (neither traced nor spec-only).
  bool is_eager() const { return impl_ && impl_->storage; }
  bool is_same(const Tensor& other) const { return impl_ == other.impl_; }
  const std::shared_ptr<TensorImpl>& impl() const { return impl_; }

  const TensorSpec& spec() const;
  DType dtype() const { return spec().dtype; }
  Device device() const { return spec().device; }
  const Shape& shape() const;
  /// Rank; TraceError in a pattern, where it is unknown.
  int dim() const;
  /// The size along `axis` (negative: from the end).
  Dim size(std::int64_t axis) const;
  Dim numel() const { return shape().numel(); }

  // Eager tensors only; TraceError for others.
  const Layout& layout() const;
  const std::shared_ptr<Storage>& storage() const;
  bool is_contiguous() const { return layout().is_contiguous(); }
  TensorView view_of_data() const;
  /// Pointer to the first element of a CPU tensor of this type; strides are the caller's business.
  template <Element T>
  T* data() const {
    return static_cast<T*>(host_data(dtype_of<T>));
  }
  /// The elements in row-major order, from any device and layout; DTypeError when T is another type.
  template <Element T>
  std::vector<T> to_vector() const {
    const Tensor host = to_host_contiguous(dtype_of<T>);
    const T* first = host.data<T>();
    return std::vector<T>(first, first + host.layout().numel());
  }
  /// The elements as doubles, from any dtype, device and layout.
  std::vector<double> to_doubles() const;
  /// The only element, as the nearest double; an error under the tracer, which has no numbers.
  double item() const;
  /// The only element as a T, of any dtype: integers and bool exactly, ValueError for a value that T
  /// does not hold; floats rounded to nearest.
  template <Element T>
  T item() const {
    const Number number = only_element();
    if (!number.is_value_of<T>()) fail_item(number, dtype_of<T>);
    return number.to<T>();
  }

  // Changes in place. Eagerly they write this storage and bump its version, so that backward notices
  // a changed saved value; under the tracer the handle stands for a new value from here on. Refused
  // with ValueError: a tensor that has several elements in one place (expand makes such) and, while
  // grad mode is on, a leaf that requires a gradient, and a view where gradients flow. Under the
  // tracer refused with TraceError: an input, a view, and what has views; and later a read of another
  // tensor that eagerly may have changed with it.
  /// Copies values from `source` (same shape; layout, dtype and device may differ), as they were
  /// before where the two share memory. Differentiable.
  void copy_(const Tensor& source);
  // Arithmetic by the rules of add and so on, the result in this tensor's shape (ShapeError otherwise):
  // `x += y` is add_. They return this tensor.
  Tensor& add_(const Tensor& other);
  Tensor& add_(const Scalar& other);
  Tensor& sub_(const Tensor& other);
  Tensor& sub_(const Scalar& other);
  Tensor& mul_(const Tensor& other);
  Tensor& mul_(const Scalar& other);
  Tensor& div_(const Tensor& other);
  Tensor& div_(const Scalar& other);
  Tensor& operator+=(const Tensor& other) { return add_(other); }
  Tensor& operator+=(const Scalar& other) { return add_(other); }
  Tensor& operator-=(const Tensor& other) { return sub_(other); }
  Tensor& operator-=(const Scalar& other) { return sub_(other); }
  Tensor& operator*=(const Tensor& other) { return mul_(other); }
  Tensor& operator*=(const Scalar& other) { return mul_(other); }
  Tensor& operator/=(const Tensor& other) { return div_(other); }
  Tensor& operator/=(const Scalar& other) { return div_(other); }
  void zero_();

  // Autograd; see autograd/autograd.h for backward.
  bool requires_grad() const { return impl_ && impl_->requires_grad; }
  /// Asks for a gradient, or no longer. ValueError for a computed tensor and for integers.
  Tensor& requires_grad_(bool on = true);
  /// True unless it was computed from something that requires a gradient.
  bool is_leaf() const { return !impl_ || impl_->producer == nullptr; }
  /// The gradient that backward accumulated; undefined when none has reached this leaf.
  Tensor grad() const { return impl_ && impl_->grad ? Tensor(impl_->grad) : Tensor(); }
  /// Sets the gradient, or clears it with an undefined tensor. ShapeError when it does not fit;
  /// ValueError for the tensor itself, or one whose gradient it is: nothing would free the cycle.
  void set_grad(const Tensor& gradient);
  /// The same values, cut off from the tape.
  Tensor detach() const;
  /// Lets this handle, and all that share it, refer to another tensor's storage, dtype and layout.
  /// TraceError under the tracer.
  void set_data_(const Tensor& other);

  // Ops; see tensor/functional.h for their documentation.
  Tensor to(DType dtype) const;
  Tensor to(Device device) const;
  Tensor cpu() const { return to(kCpu); }
  Tensor contiguous() const;
  Tensor clone() const;
  Tensor view(const Shape& shape) const;
  Tensor reshape(const Shape& shape) const;
  Tensor permute(const std::vector<std::int64_t>& dims) const;
  Tensor transpose(std::int64_t dim0, std::int64_t dim1) const;
  Tensor expand(const Shape& shape) const;
  Tensor narrow(std::int64_t dim, const Dim& start, const Dim& length) const;
  Tensor unsqueeze(std::int64_t dim) const;
  Tensor squeeze(std::int64_t dim) const;

  /// dtype, shape, device and, for eager tensors, up to `max_elements` values.
  std::string to_string(std::int64_t max_elements = 64) const;

 private:
  bool in_pattern_value() const;
  Number only_element() const;
  [[noreturn]] static void fail_item(const Number& value, DType wanted);
  Tensor& assign_result(const char* op, const Tensor& result);
  void* host_data(DType wanted) const;
  Tensor to_host_contiguous(DType wanted) const;
  Tensor on_host() const;
  std::shared_ptr<TensorImpl> impl_;
};

/// Uninitialized; sizes must be numbers >= 0.
Tensor empty(const Shape& shape, TensorOptions options = {});
/// A template, so that `empty({2, 3})` means a Shape.
template <std::same_as<Extents> Sizes>
Tensor empty(const Sizes& sizes, TensorOptions options = {});
Tensor zeros(const Shape& shape, TensorOptions options = {});
Tensor ones(const Shape& shape, TensorOptions options = {});
/// Numbers become elements as by cast, rounded once; integers out of the dtype's range saturate too.
Tensor full(const Shape& shape, const Scalar& value, TensorOptions options = {});
/// 0, 1, …, n-1.
Tensor arange(std::int64_t n, TensorOptions options = {});

// Random tensors: the same bits on every device, eagerly and in a Program; tensor/random.h says
// which numbers a call draws. In a module's forward they are new at each call and each run, in
// evaluation too. `generator` is one to draw from in place of the default one, eagerly: a traced
// forward may only use one that it makes itself, for constants (else TraceError). None is
// differentiable.

/// Standard normal values (Box, Muller, 1958), computed in float64 and rounded once to a floating
/// dtype (DTypeError): of 53 random bits in float64, of 32 in the others.
Tensor randn(const Shape& shape, TensorOptions options = {}, Generator* generator = nullptr);
/// A number from the real interval [low, high), rounded down to the dtype but not below `low` where
/// the interval holds a number of the dtype: never `high`, unless low == high. ValueError unless
/// both are finite, within the dtype's range and low <= high. float64 and int64 have 53 random
/// bits, the others 32.
Tensor uniform(const Shape& shape, double low, double high, TensorOptions options = {},
               Generator* generator = nullptr);
/// Integers from low to high - 1, of 64 random bits. ValueError unless low < high and the dtype,
/// integer or floating, holds each of them exactly.
Tensor randint(const Dim& low, const Dim& high, const Shape& shape,
               TensorOptions options = {.dtype = DType::int64}, Generator* generator = nullptr);
/// 0, 1, …, n-1 in random order; ValueError unless the dtype holds n-1 exactly.
Tensor randperm(const Dim& n, TensorOptions options = {.dtype = DType::int64},
                Generator* generator = nullptr);

/// Values in row-major order, converted to options.dtype as by full; ShapeError when the count differs.
Tensor tensor(std::span<const double> values, const Shape& shape, TensorOptions options = {});
Tensor tensor(std::span<const std::int64_t> values, const Shape& shape, TensorOptions options = {});
Tensor tensor(std::initializer_list<Number> values, const Shape& shape, TensorOptions options = {});
/// A copy of the elements, with T's dtype.
template <Element T>
Tensor from_vector(const std::vector<T>& values, const Shape& shape, Device device = kCpu);

}  // namespace tenon

#include "tensor/functional.h"
