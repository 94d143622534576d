// Functions that make tensors of given values; those of random ones are ops (ops/randn.cpp).
#include <algorithm>

#include "tensor/calls/move_data.h"
#include "tensor/device_backend.h"
#include "tensor/parallel.h"
#include "tensor/support/check.h"
#include "tensor/support/convert.h"
#include "tensor/tensor.h"

namespace tenon {
namespace {

Extents numbers_of(const Shape& shape) {
  Extents sizes;
  for (const Dim& dim : shape) sizes.push_back(dim.value());
  return sizes;
}

void require_count(std::size_t count, const Shape& shape) {
  TENON_CHECK(static_cast<std::int64_t>(count) == shape.numel().value(), ShapeError,
              "{} values were given for shape {}, which has {} elements", count, shape.to_string(),
              shape.numel().value());
}

/// Elements that one thread fills at a time.
constexpr std::int64_t kGrain = 1 << 16;

/// A number as an element, rounded once.
template <class T>
T element_of(double value) {
  return cpu::convert<T>(value);
}
template <class T>
T element_of(std::int64_t value) {
  return cpu::saturate<T>(value);
}
template <class T>
T element_of(const Number& value) {
  return value.to<T>();
}

/// Fills a host tensor by value(i) for the i-th element in row-major order, then moves it.
template <class F>
Tensor generate(const Shape& shape, const TensorOptions& options, const F& value) {
  const Tensor host = empty(shape, {options.dtype, kCpu});
  const std::int64_t n = host.layout().numel();
  dispatch_all(options.dtype, [&]<typename T>() {
    T* data = host.data<T>();
    parallel_ranges(n, kGrain, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) data[i] = element_of<T>(value(i));
    });
  });
  return detail::moved_to(host, options.device);
}

}  // namespace

template <std::same_as<Extents> Sizes>
Tensor empty(const Sizes& sizes, TensorOptions options) {
  std::int64_t bytes = static_cast<std::int64_t>(size_of(options.dtype));
  bool has_zero = false;
  for (std::int64_t size : sizes) {
    TENON_CHECK(size >= 0, ShapeError, "a size of {} was asked for; needed 0 or more", size);
    has_zero |= size == 0;
    TENON_CHECK(!__builtin_mul_overflow(bytes, size == 0 ? 1 : size, &bytes), ShapeError,
                "a tensor of sizes {} does not fit into 64-bit byte counts", fmt::join(sizes, "x"));
  }
  auto storage = Storage::allocate(has_zero ? 0 : static_cast<std::size_t>(bytes), options.device);
  return Tensor(std::move(storage), options.dtype, Layout::contiguous(sizes));
}

template Tensor empty(const Extents&, TensorOptions);

Tensor empty(const Shape& shape, TensorOptions options) {
  return empty(numbers_of(shape), options);
}
Tensor full(const Shape& shape, const Scalar& value, TensorOptions options) {
  const Tensor host = empty(shape, {options.dtype, kCpu});
  const Number number = value.number();
  dispatch_all(options.dtype, [&]<typename T>() {
    T* data = host.data<T>();
    const T element = number.to<T>();
    parallel_ranges(host.layout().numel(), kGrain, [&](std::int64_t begin, std::int64_t end) {
      std::fill(data + begin, data + end, element);
    });
  });
  return detail::moved_to(host, options.device);
}
Tensor zeros(const Shape& shape, TensorOptions options) { return full(shape, 0, options); }
Tensor ones(const Shape& shape, TensorOptions options) { return full(shape, 1, options); }

Tensor arange(std::int64_t n, TensorOptions options) {
  return generate(Shape{n}, options, [](std::int64_t i) { return i; });
}

namespace {

template <class T>
Tensor listed(std::span<const T> values, const Shape& shape, const TensorOptions& options) {
  require_count(values.size(), shape);
  return generate(shape, options,
                  [&](std::int64_t i) { return values[static_cast<std::size_t>(i)]; });
}

}  // namespace

Tensor tensor(std::span<const double> values, const Shape& shape, TensorOptions options) {
  return listed(values, shape, options);
}

Tensor tensor(std::span<const std::int64_t> values, const Shape& shape, TensorOptions options) {
  return listed(values, shape, options);
}

Tensor tensor(std::initializer_list<Number> values, const Shape& shape, TensorOptions options) {
  return listed(std::span<const Number>(values.begin(), values.size()), shape, options);
}

template <Element T>
Tensor from_vector(const std::vector<T>& values, const Shape& shape, Device device) {
  require_count(values.size(), shape);
  const Tensor host = empty(shape, {dtype_of<T>, kCpu});
  std::copy(values.begin(), values.end(), host.data<T>());
  return detail::moved_to(host, device);
}

template Tensor from_vector(const std::vector<float>&, const Shape&, Device);
template Tensor from_vector(const std::vector<double>&, const Shape&, Device);
template Tensor from_vector(const std::vector<Half>&, const Shape&, Device);
template Tensor from_vector(const std::vector<BFloat16>&, const Shape&, Device);
template Tensor from_vector(const std::vector<std::int64_t>&, const Shape&, Device);
template Tensor from_vector(const std::vector<std::int32_t>&, const Shape&, Device);
template Tensor from_vector(const std::vector<std::int16_t>&, const Shape&, Device);
template Tensor from_vector(const std::vector<std::int8_t>&, const Shape&, Device);
template Tensor from_vector(const std::vector<std::uint8_t>&, const Shape&, Device);
template Tensor from_vector(const std::vector<bool>&, const Shape&, Device);

}  // namespace tenon
