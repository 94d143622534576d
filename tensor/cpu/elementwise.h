// Elementwise kernels on the CPU. An op gives a function of single values; the templates here make
// a Kernel of it that takes any dtype it is asked for, any strides and broadcast operands.
//
//   .cpu(cpu::unary_kernel<cpu::Floats>("cpu.exp", [](auto x) { return cpu::exp(x); }))
//
// A call is cut into rows, along which every operand has one stride (plan_rows), and rows are
// computed in blocks that are contiguous and of the compute type, so the loop over a block
// vectorizes.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <span>
#include <string_view>
#include <tuple>
#include <utility>

#include "tensor/cpu/convert.h"
#include "tensor/op.h"
#include "tensor/ops/attributes.h"
#include "tensor/ops/infer_rules.h"

namespace tenon::cpu {

/// Operands of one call, the output first: common sizes, and strides in bytes for each.
struct RowPlan {
  static constexpr int kMaxOperands = 4;
  int operands = 0;
  Extents sizes;  // the last axis is the row
  std::array<Extents, kMaxOperands> strides;
  std::array<char*, kMaxOperands> data{};
};

/// Broadcasts `inputs` to the output's sizes, drops axes of size 1, sorts axes by the output's
/// strides and merges neighbours where all operands allow it.
RowPlan plan_rows(const TensorView& output, std::span<const TensorView> inputs);

/// Computes `n` elements; `data` and `strides` (in bytes) are the operands', the output first.
using RowFunction = void (*)(char* const* data, const std::int64_t* strides, std::int64_t n,
                             const void* functor);
/// Calls `function` on all rows or pieces of them, in parallel.
void for_each_row(const RowPlan& plan, RowFunction function, const void* functor);

/// Elements of a block: a few operands of it fit the first-level cache.
inline constexpr std::int64_t kBlock = 512;

/// Reads blocks of a row as compute-type values: in place where that is what memory holds.
template <class T>
class RowReader {
 public:
  RowReader(const char* data, std::int64_t stride, std::int64_t n) : data_(data), stride_(stride) {
    if (stride_ != 0 || n == 0) return;
    const auto value = static_cast<compute_type<T>>(*reinterpret_cast<const T*>(data));
    for (std::int64_t i = 0; i < std::min(n, kBlock); ++i) buffer_[i] = value;
  }
  const compute_type<T>* block(std::int64_t begin, std::int64_t n) {
    if (stride_ == 0) return buffer_;
    const char* first = data_ + begin * stride_;
    if (stride_ == static_cast<std::int64_t>(sizeof(T))) {
      const auto* source = reinterpret_cast<const T*>(first);
      if constexpr (std::is_same_v<T, compute_type<T>>) return source;
      widen(source, n, buffer_);
    } else {
      for (std::int64_t i = 0; i < n; ++i) {
        buffer_[i] = static_cast<compute_type<T>>(*reinterpret_cast<const T*>(first + i * stride_));
      }
    }
    return buffer_;
  }

 private:
  const char* data_;
  std::int64_t stride_;
  compute_type<T> buffer_[kBlock];
};

/// Where blocks of results go: in place where possible, else through a buffer.
template <class T>
class RowWriter {
 public:
  RowWriter(char* data, std::int64_t stride) : data_(data), stride_(stride) {}
  compute_type<T>* block(std::int64_t begin) {
    if constexpr (std::is_same_v<T, compute_type<T>>) {
      if (is_dense()) return reinterpret_cast<T*>(data_) + begin;
    }
    return buffer_;
  }
  void finish(std::int64_t begin, std::int64_t n) {
    char* first = data_ + begin * stride_;
    if (is_dense()) {
      if constexpr (!std::is_same_v<T, compute_type<T>>) {
        narrow(buffer_, n, reinterpret_cast<T*>(first));
      }
      return;
    }
    for (std::int64_t i = 0; i < n; ++i) *reinterpret_cast<T*>(first + i * stride_) = T(buffer_[i]);
  }

 private:
  bool is_dense() const { return stride_ == static_cast<std::int64_t>(sizeof(T)); }
  char* data_;
  std::int64_t stride_;
  compute_type<T> buffer_[kBlock];
};

template <class F, class Out, class... In, std::size_t... I>
void compute_blocks(char* const* data, const std::int64_t* strides, std::int64_t n, const F& f,
                    std::index_sequence<I...>) {
  RowWriter<Out> writer(data[0], strides[0]);
  std::tuple<RowReader<In>...> readers{RowReader<In>(data[I + 1], strides[I + 1], n)...};
  for (std::int64_t begin = 0; begin < n; begin += kBlock) {
    const std::int64_t count = std::min(kBlock, n - begin);
    const std::tuple inputs{std::get<I>(readers).block(begin, count)...};
    compute_type<Out>* output = writer.block(begin);
    // An output that shares memory with an input does so element by element.
#pragma GCC ivdep
    for (std::int64_t i = 0; i < count; ++i) output[i] = f(std::get<I>(inputs)[i]...);
    writer.finish(begin, count);
  }
}

/// A RowFunction for F: (compute types of In...) -> compute type of Out.
template <class F, class Out, class... In>
void compute_row(char* const* data, const std::int64_t* strides, std::int64_t n,
                 const void* functor) {
  compute_blocks<F, Out, In...>(data, strides, n, *static_cast<const F*>(functor),
                                std::index_sequence_for<In...>{});
}

/// Runs f over the broadcast inputs; Out and In are the element types of the operands.
template <class Out, class... In, class F>
void run_elementwise(const TensorView& output, std::span<const TensorView> inputs, const F& f) {
  for_each_row(plan_rows(output, inputs), compute_row<F, Out, In...>, &f);
}

/// Which dtypes a kernel takes.
struct Floats {
  template <class F>
  static void dispatch(DType dtype, F&& f) {
    dispatch_float(dtype, std::forward<F>(f));
  }
};
struct Numbers {
  template <class F>
  static void dispatch(DType dtype, F&& f) {
    switch (dtype) {
      case DType::int64: return f.template operator()<std::int64_t>();
      case DType::int32: return f.template operator()<std::int32_t>();
      case DType::uint8: return f.template operator()<std::uint8_t>();
      default: return dispatch_float(dtype, std::forward<F>(f));
    }
  }
};
struct AllDTypes {
  template <class F>
  static void dispatch(DType dtype, F&& f) {
    dispatch_all(dtype, std::forward<F>(f));
  }
};

inline Kernel elementwise_kernel(std::string_view name, void (*run)(const KernelArgs&)) {
  return {name, run, nullptr, ops::any_layout, true};
}

/// f: x -> y on the compute type, for each dtype of DTypes.
template <class DTypes, class F>
Kernel unary_kernel(std::string_view name, F) {
  return elementwise_kernel(name, [](const KernelArgs& args) {
    DTypes::dispatch(args.outputs[0].dtype, [&]<class T>() {
      run_elementwise<T, T>(args.outputs[0], args.inputs.first(1), F{});
    });
  });
}

/// f: (x, y) -> z on the compute type; where operand 1 is absent, y is the attribute `other`.
template <class DTypes, class F>
Kernel binary_kernel(std::string_view name, F) {
  return elementwise_kernel(name, [](const KernelArgs& args) {
    DTypes::dispatch(args.outputs[0].dtype, [&]<class T>() {
      if (args.inputs.size() > 1 && args.inputs[1].present) {
        run_elementwise<T, T, T>(args.outputs[0], args.inputs.first(2), F{});
      } else {
        const auto other = convert<compute_type<T>>(args.attributes<BinaryAttrs>().other.value());
        run_elementwise<T, T>(args.outputs[0], args.inputs.first(1),
                              [other](compute_type<T> x) { return F{}(x, other); });
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
