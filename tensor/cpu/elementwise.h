// Elementwise kernels on the CPU. An op gives a function of single values; the templates here make
// a Kernel of it that takes any dtype it is asked for, any strides and broadcast operands.
//
//   .cpu(cpu::unary_kernel<cpu::Floats>("cpu.exp", [](auto x) { return cpu::exp(x); }))
//
// A call is cut into rows, along which every operand has one stride (plan_rows), and rows into blocks
// that are contiguous and of the compute type, so the loop over a block vectorizes. That loop is all that
// is compiled for a function: once for each compute type, not for each dtype.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <tuple>
#include <utility>

#include "tensor/op.h"
#include "tensor/ops/attributes.h"
#include "tensor/rules/infer_rules.h"
#include "tensor/support/convert.h"

namespace tenon::cpu {

/// Operands of one call, the output first: common sizes, and strides in bytes for each.
struct StridedRows {
  static constexpr int kMaxOperands = 4;
  int operands = 0;
  Extents sizes;  // the last axis is the row
  std::array<Extents, kMaxOperands> strides;
  std::array<char*, kMaxOperands> data{};
};

/// Broadcasts `inputs` to the output's sizes, drops axes of size 1, sorts axes by the output's
/// strides and merges neighbours where all operands allow it.
StridedRows plan_rows(const TensorView& output, std::span<const TensorView> inputs);

/// Computes `n` elements; `data` and `strides` (in bytes) are the operands', the output first.
using RowFunction = void (*)(char* const* data, const std::int64_t* strides, std::int64_t n,
                             const void* functor);
/// Calls `function` on all rows or pieces of them, in parallel.
void for_each_row(const StridedRows& plan, RowFunction function, const void* functor);

/// Elements of a block: a few operands of it fit the first-level cache.
inline constexpr std::int64_t kBlock = 512;

/// How elements of a dtype become values of its compute type and back. Strides are in bytes.
struct ElementAccess {
  std::int64_t size = 0;        // of an element, in bytes
  std::int64_t value_size = 0;  // of a value
  bool is_value = false;        // the dtype is its own compute type
  void (*load)(const char* source, std::int64_t stride, std::int64_t n, void* values) = nullptr;
  void (*store)(const void* values, std::int64_t n, char* target, std::int64_t stride) = nullptr;
};
const ElementAccess& element_access(DType dtype);

/// Room for the values of a block.
struct alignas(64) BlockBuffer {
  std::byte bytes[kBlock * sizeof(double)];
};

/// Reads blocks of a row as values of the compute type: in place where that is what memory holds.
class RowReader {
 public:
  RowReader(DType dtype, const void* data, std::int64_t stride, std::int64_t n)
      : access_(&element_access(dtype)), data_(static_cast<const char*>(data)), stride_(stride) {
    if (stride_ == 0) access_->load(data_, 0, std::min(n, kBlock), buffer_.bytes);
  }
  /// `n` <= kBlock values from `begin` on; C is the compute type.
  template <class C>
  const C* block(std::int64_t begin, std::int64_t n) {
    return static_cast<const C*>(untyped_block(begin, n));
  }
  const void* untyped_block(std::int64_t begin, std::int64_t n) {
    if (stride_ == 0) return buffer_.bytes;
    const char* first = data_ + begin * stride_;
    if (access_->is_value && stride_ == access_->size) return first;
    access_->load(first, stride_, n, buffer_.bytes);
    return buffer_.bytes;
  }

 private:
  const ElementAccess* access_;
  const char* data_;
  std::int64_t stride_;
  BlockBuffer buffer_;
};

/// Where blocks of results go: in place where possible, else through a buffer.
class RowWriter {
 public:
  RowWriter(DType dtype, void* data, std::int64_t stride)
      : access_(&element_access(dtype)), data_(static_cast<char*>(data)), stride_(stride) {}
  template <class C>
  C* block(std::int64_t begin) {
    return static_cast<C*>(untyped_block(begin));
  }
  void* untyped_block(std::int64_t begin) {
    return in_place() ? static_cast<void*>(data_ + begin * stride_) : buffer_.bytes;
  }
  void finish(std::int64_t begin, std::int64_t n) {
    if (!in_place()) access_->store(buffer_.bytes, n, data_ + begin * stride_, stride_);
  }

 private:
  bool in_place() const { return access_->is_value && stride_ == access_->size; }
  const ElementAccess* access_;
  char* data_;
  std::int64_t stride_;
  BlockBuffer buffer_;
};

/// Computes `n` results from values that are contiguous and of the compute types.
using BlockFunction = void (*)(void* results, const void* const* values, std::int64_t n,
                               const void* functor);
/// Calls `function` on all blocks of the broadcast inputs, in parallel.
void for_each_block(const TensorView& output, std::span<const TensorView> inputs,
                    BlockFunction function, const void* functor);

template <class F, class Out, class... In, std::size_t... I>
void compute_block(Out* results, const void* const* values, std::int64_t n, const F& f,
                   std::index_sequence<I...>) {
  const std::tuple inputs{static_cast<const In*>(values[I])...};
  // An output that shares memory with an input does so element by element.
#pragma GCC ivdep
  for (std::int64_t i = 0; i < n; ++i) results[i] = f(std::get<I>(inputs)[i]...);
}

/// Runs f over the broadcast inputs; Out and In are the compute types of the operands' dtypes.
template <class Out, class... In, class F>
void run_elementwise(const TensorView& output, std::span<const TensorView> inputs, const F& f) {
  for_each_block(
      output, inputs,
      [](void* results, const void* const* values, std::int64_t n, const void* functor) {
        compute_block<F, Out, In...>(static_cast<Out*>(results), values, n,
                                     *static_cast<const F*>(functor),
                                     std::index_sequence_for<In...>{});
      },
      &f);
}

/// A number as an operand that is repeated, of a compute type: C may be float for a float16 output.
template <class C>
TensorView repeated(const C& value) {
  return {const_cast<C*>(&value), dtype_of<C>, kCpu, {}, {}, true};
}

/// Which dtypes a kernel takes: f.template operator()<C>() is called with the compute type.
struct Floats {
  template <class F>
  static void dispatch(DType dtype, F&& f) {
    switch (dtype) {
      case DType::float32:
      case DType::float16:
      case DType::bfloat16: return f.template operator()<float>();
      case DType::float64: return f.template operator()<double>();
      default: throw_unsupported_dtype(dtype, "a floating-point dtype");
    }
  }
};
struct Numbers {
  template <class F>
  static void dispatch(DType dtype, F&& f) {
    switch (dtype) {
      case DType::int64: return f.template operator()<std::int64_t>();
      case DType::int32:
      case DType::int16:
      case DType::int8: return f.template operator()<std::int32_t>();
      case DType::uint8: return f.template operator()<std::uint8_t>();
      default: return Floats::dispatch(dtype, std::forward<F>(f));
    }
  }
};
struct AllDTypes {
  template <class F>
  static void dispatch(DType dtype, F&& f) {
    if (dtype == DType::boolean) return f.template operator()<bool>();
    Numbers::dispatch(dtype, std::forward<F>(f));
  }
};

inline Kernel elementwise_kernel(std::string_view name, void (*run)(const KernelArgs&)) {
  return {name, run, nullptr, ops::any_layout, true};
}

/// f: x -> y on the compute type, for each dtype of DTypes.
template <class DTypes, class F>
Kernel unary_kernel(std::string_view name, F) {
  return elementwise_kernel(name, [](const KernelArgs& args) {
    DTypes::dispatch(args.outputs[0].dtype, [&]<class C>() {
      run_elementwise<C, C>(args.outputs[0], args.inputs.first(1), F{});
    });
  });
}

/// f: (x, y) -> z on the compute type; where operand 1 is absent, y is the attribute `other`.
template <class DTypes, class F>
Kernel binary_kernel(std::string_view name, F) {
  return elementwise_kernel(name, [](const KernelArgs& args) {
    DTypes::dispatch(args.outputs[0].dtype, [&]<class C>() {
      if (args.inputs.size() > 1 && args.inputs[1].present) {
        run_elementwise<C, C, C>(args.outputs[0], args.inputs.first(2), F{});
      } else {
        const C other = args.attributes<BinaryAttrs>().other.number().to<C>();
        const TensorView inputs[] = {args.inputs[0], repeated(other)};
        run_elementwise<C, C, C>(args.outputs[0], inputs, F{});
      }
    });
  });
}

/// Integer arithmetic that wraps around, as PyTorch's does; floats as they are.
template <class T>
T wrap_add(T a, T b) {
  if constexpr (std::is_same_v<T, bool>)
    return a || b;
  else if constexpr (std::is_integral_v<T>)
    return static_cast<T>(std::uint64_t(a) + std::uint64_t(b));
  else
    return a + b;
}
template <class T>
T wrap_sub(T a, T b) {
  if constexpr (std::is_integral_v<T>)
    return static_cast<T>(std::uint64_t(a) - std::uint64_t(b));
  else
    return a - b;
}
template <class T>
T wrap_mul(T a, T b) {
  if constexpr (std::is_same_v<T, bool>)
    return a && b;
  else if constexpr (std::is_integral_v<T>)
    return static_cast<T>(std::uint64_t(a) * std::uint64_t(b));
  else
    return a * b;
}

/// The larger value; NaN when either is.
template <class T>
T nan_max(T a, T b) {
  return (a > b) | (a != a) ? a : b;
}
template <class T>
T nan_min(T a, T b) {
  return (a < b) | (a != a) ? a : b;
}

}  // namespace tenon::cpu
