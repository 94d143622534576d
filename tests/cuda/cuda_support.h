// What the CUDA tests share: operands of every layout, CPU results in float64 as the oracle, and
// calls of a kernel whose output has sentinels on both sides.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "tensor/device_backend.h"
#include "tensor/error.h"
#include "tensor/interpreter.h"
#include "tensor/random.h"
#include "tensor/tensor.h"

#define SKIP_WITHOUT_GPU() \
  if (!is_available(kCuda)) GTEST_SKIP() << "no CUDA device on this machine"

namespace tenon::test {

inline constexpr DType kFloats[] = {DType::float32, DType::float64, DType::float16,
                                    DType::bfloat16};
inline constexpr DType kIntegers[] = {DType::int64, DType::int32, DType::uint8};

/// How an operand lies in memory. All but the first start from a larger or permuted base.
enum class Placement { contiguous, transposed, unaligned, expanded, gapped };
inline constexpr Placement kPlacements[] = {Placement::contiguous, Placement::transposed,
                                            Placement::unaligned, Placement::expanded,
                                            Placement::gapped};

inline const char* placement_name(Placement placement) {
  constexpr const char* kNames[] = {"contiguous", "transposed", "unaligned", "expanded", "gapped"};
  return kNames[static_cast<int>(placement)];
}

using Sizes = std::vector<std::int64_t>;

inline Shape to_shape(const Sizes& sizes) {
  return Shape(std::vector<Dim>(sizes.begin(), sizes.end()));
}

/// One operand on both devices: the same elements, and the same strides.
struct Operand2 {
  Tensor cpu;
  Tensor cuda;
};

/// Random values in [low, high), rounded to `dtype` (integers truncated, bool even odds).
inline Operand2 make_operand(const Sizes& sizes, DType dtype, Placement placement,
                             Generator& generator, double low = -2, double high = 2) {
  Sizes base = sizes;
  const auto rank = static_cast<std::int64_t>(sizes.size());
  if (rank < 2 && placement == Placement::transposed) placement = Placement::contiguous;
  if (rank < 1) placement = Placement::contiguous;
  switch (placement) {
    case Placement::contiguous: break;
    case Placement::transposed: std::swap(base[base.size() - 1], base[base.size() - 2]); break;
    case Placement::unaligned: base[0] += 1; break;
    case Placement::expanded: base[0] = std::min<std::int64_t>(base[0], 1); break;
    case Placement::gapped: base.back() += 3; break;
  }
  const bool is_bool = dtype == DType::boolean;
  const Tensor numbers =
      uniform(to_shape(base), is_bool ? 0 : low, is_bool ? 2 : high, {DType::float64}, &generator);
  const Tensor values = is_bool ? numbers.to(DType::uint8).to(dtype) : numbers.to(dtype);
  const auto place = [&](const Tensor& tensor) -> Tensor {
    switch (placement) {
      case Placement::transposed: return tensor.transpose(rank - 2, rank - 1);
      case Placement::unaligned: {
        // The second element of the memory becomes the first: no vector access is aligned.
        const std::int64_t numel = tensor.numel().value();
        std::int64_t wanted = 1;
        for (const std::int64_t size : sizes) wanted *= size;
        if (wanted + 1 > numel) return tensor.narrow(0, 0, sizes[0]);
        return tensor.view({numel}).narrow(0, 1, wanted).view(to_shape(sizes));
      }
      case Placement::expanded: return tensor.expand(to_shape(sizes));
      case Placement::gapped: return tensor.narrow(rank - 1, 1, sizes.back());
      default: return tensor;
    }
  };
  return {place(values), place(values.to(kCuda))};
}

inline Operand2 from_cpu(const Tensor& tensor) { return {tensor, tensor.to(kCuda)}; }

/// What a result may differ from the exact one by: one rounding to the dtype, and `roundings` of the
/// compute type relative to |exact| + floor.
struct Tolerance {
  double roundings = 4;
  double floor = 0;
};

inline double allowed_error(DType dtype, double exact, const Tolerance& tolerance) {
  const double u = unit_roundoff(dtype);
  const double compute_u = unit_roundoff(accumulation_dtype(dtype));
  const double smallest = dtype == DType::float16    ? 0x1p-25
                          : dtype == DType::bfloat16 ? 0x1p-134
                          : dtype == DType::float32  ? 0x1p-150
                                                     : 0;
  return u * std::abs(exact) * 1.001 +
         tolerance.roundings * compute_u * (std::abs(exact) + tolerance.floor) + 1.001 * smallest;
}

/// Results beyond this round to infinity, give or take the last place.
inline double largest_finite(DType dtype) {
  switch (dtype) {
    case DType::float16: return 65504;
    case DType::bfloat16: return 0x1.fep127;
    case DType::float32: return 0x1.fffffep127;
    default: return 0x1.fffffffffffffp1023;
  }
}

/// Compares elements; NaN equals NaN, Inf must be equal, integers exact.
inline void expect_near(const Tensor& got, const std::vector<double>& exact,
                        const Tolerance& tolerance, const std::string& what) {
  const std::vector<double> values = got.to_doubles();
  ASSERT_EQ(values.size(), exact.size()) << what;
  const bool floating = is_floating(got.dtype());
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (std::isnan(exact[i])) {
      ASSERT_TRUE(std::isnan(values[i])) << what << ": element " << i << " is " << values[i];
      continue;
    }
    if (values[i] == exact[i]) continue;
    if (floating && std::abs(exact[i]) > largest_finite(got.dtype())) {
      ASSERT_EQ(values[i], std::copysign(HUGE_VAL, exact[i])) << what << ": element " << i;
      continue;
    }
    const double allowed = floating ? allowed_error(got.dtype(), exact[i], tolerance) : 0;
    ASSERT_LE(std::abs(values[i] - exact[i]), allowed)
        << what << ": element " << i << " of " << values.size() << " is " << values[i]
        << ", exactly " << exact[i];
  }
}

inline void expect_bit_equal(const Tensor& a, const Tensor& b, const std::string& what) {
  ASSERT_EQ(a.dtype(), b.dtype()) << what;
  const Tensor x = a.cpu().contiguous();
  const Tensor y = b.cpu().contiguous();
  ASSERT_EQ(x.layout().sizes, y.layout().sizes) << what;
  const auto bytes = static_cast<std::size_t>(x.layout().numel()) * size_of(x.dtype());
  const bool equal =
      bytes == 0 || std::memcmp(x.view_of_data().data, y.view_of_data().data, bytes) == 0;
  ASSERT_TRUE(equal) << what << ": not bit-equal";
}

/// Runs the op's first supporting CUDA kernel into memory that starts `shift` elements after a
/// 256-byte boundary, with sentinels before and behind; checks them, and returns the output.
inline Tensor run_guarded(const char* op_name, const std::vector<Tensor>& inputs,
                          const Attrs& attrs, std::int64_t shift, bool training = true) {
  const Op& op = get_op(op_name);
  std::vector<const TensorSpec*> specs;
  for (const Tensor& input : inputs) specs.push_back(input ? &input.spec() : nullptr);
  const TensorSpec spec = infer(op, specs, attrs).at(0);
  const auto element = static_cast<std::int64_t>(size_of(spec.dtype));
  const std::int64_t bytes = spec.shape.numel().value() * element;
  constexpr std::int64_t kGuard = 256;
  constexpr std::uint8_t kSentinel = 0xA5;
  const std::int64_t first = kGuard + shift * element;
  const Tensor buffer = full({first + bytes + kGuard}, kSentinel, {DType::uint8, kCuda});
  Sizes sizes = spec.shape.hints();
  TensorView output{static_cast<std::byte*>(buffer.view_of_data().data) + first,
                    spec.dtype,
                    kCuda,
                    Extents(sizes),
                    contiguous_strides(Extents(sizes)),
                    true};
  std::vector<TensorView> views(std::max(inputs.size(), op.operands.size()));
  std::vector<Tensor> packed;
  KernelArgs args{&op,
                  views,
                  std::span(&output, 1),
                  &attrs,
                  training,
                  default_generator().state(),
                  device_backend(DeviceType::cuda).stream(0)};
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    if (inputs[i]) views[i] = inputs[i].view_of_data();
  }
  const Kernel* kernel = select_kernel(op, DeviceType::cuda, args);
  EXPECT_NE(kernel, nullptr) << op_name;
  if (kernel == nullptr) return {};
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    if (!inputs[i]) continue;
    const bool accepted =
        kernel->accepts ? kernel->accepts(static_cast<int>(i), views[i]) : views[i].is_contiguous();
    if (accepted) continue;
    packed.push_back(inputs[i].contiguous());
    views[i] = packed.back().view_of_data();
  }
  std::shared_ptr<Storage> workspace;
  if (const std::size_t wanted = kernel->workspace_bytes ? kernel->workspace_bytes(args) : 0) {
    workspace = Storage::allocate(wanted, kCuda);
    args.workspace = workspace->data();
  }
  kernel->run(args);
  const std::vector<std::uint8_t> all = buffer.to_vector<std::uint8_t>();
  for (std::int64_t i = 0; i < static_cast<std::int64_t>(all.size()); ++i) {
    if (i >= first && i < first + bytes) continue;
    EXPECT_EQ(all[static_cast<std::size_t>(i)], kSentinel)
        << op_name << ": byte " << i - first << " beside an output of " << bytes << " bytes";
    if (all[static_cast<std::size_t>(i)] != kSentinel) break;
  }
  const Tensor result = empty(Extents(sizes), {spec.dtype});
  if (bytes > 0) {
    std::memcpy(result.view_of_data().data, all.data() + first, static_cast<std::size_t>(bytes));
  }
  return result;
}

/// Runs the named implementation of an op on operands as they are, whatever it accepts: as a
/// Program does, which selects it before it knows addresses. False where it does not take the call.
inline bool run_kernel(const char* op_name, std::string_view kernel_name,
                       const std::vector<Tensor>& inputs, const std::vector<Tensor>& outputs,
                       const Attrs& attrs) {
  const Op& op = get_op(op_name);
  std::vector<TensorView> input_views, output_views;
  for (const Tensor& t : inputs) input_views.push_back(t ? t.view_of_data() : TensorView{});
  for (const Tensor& t : outputs) output_views.push_back(t.view_of_data());
  KernelArgs args{&op,
                  input_views,
                  output_views,
                  &attrs,
                  true,
                  default_generator().state(),
                  device_backend(DeviceType::cuda).stream(0)};
  for (const Kernel& kernel : op.kernels(DeviceType::cuda)) {
    if (kernel.name != kernel_name) continue;
    if (kernel.supports != nullptr && !kernel.supports(args)) return false;
    std::shared_ptr<Storage> workspace;
    if (const std::size_t bytes = kernel.workspace_bytes ? kernel.workspace_bytes(args) : 0) {
      workspace = Storage::allocate(bytes, kCuda);
      args.workspace = workspace->data();
    }
    kernel.run(args);
    return true;
  }
  ADD_FAILURE() << op_name << " has no kernel " << kernel_name;
  return false;
}

/// A copy on the GPU that starts `elements` after the start of its memory.
inline Tensor shifted(const Tensor& tensor, std::int64_t elements) {
  const std::int64_t numel = tensor.numel().value();
  const Tensor memory = empty(Shape{numel + elements}, {tensor.dtype(), kCuda});
  Tensor result = memory.narrow(0, elements, numel).view(tensor.shape());
  result.copy_(tensor.to(kCuda));
  return result;
}

/// The op's CPU result on the same elements in float64 (operands of other kinds as they are).
inline std::vector<double> exact_result(const char* op, const std::vector<Tensor>& cpu,
                                        const Attrs& attrs) {
  std::vector<Tensor> wide;
  for (const Tensor& tensor : cpu) {
    wide.push_back(tensor && is_floating(tensor.dtype()) ? tensor.to(DType::float64) : tensor);
  }
  return apply(get_op(op), wide, attrs).at(0).to_doubles();
}

/// Eager result, guarded results at aligned and unaligned addresses, and a second run, all checked.
inline void check_op(const char* op, const std::vector<Operand2>& operands, const Attrs& attrs,
                     const Tolerance& tolerance, const std::string& what) {
  std::vector<Tensor> cpu, cuda;
  for (const Operand2& operand : operands) {
    cpu.push_back(operand.cpu);
    cuda.push_back(operand.cuda);
  }
  const std::vector<double> exact = exact_result(op, cpu, attrs);
  const Tensor result = apply(get_op(op), cuda, attrs).at(0);
  ASSERT_EQ(result.device(), kCuda) << what;
  expect_near(result, exact, tolerance, what);
  expect_bit_equal(result, apply(get_op(op), cuda, attrs).at(0), what + ", second run");
  for (const std::int64_t shift : {0, 1}) {
    const std::string where = what + ", guarded, shift " + std::to_string(shift);
    expect_near(run_guarded(op, cuda, attrs, shift), exact, tolerance, where);
  }
}

inline std::string describe(const char* op, DType dtype, const Sizes& sizes, Placement placement) {
  std::string text = std::string(op) + " " + std::string(name(dtype)) + " (";
  for (const std::int64_t size : sizes) text += std::to_string(size) + ",";
  return text + ") " + placement_name(placement);
}

}  // namespace tenon::test
