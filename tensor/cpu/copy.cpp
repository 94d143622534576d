// Copies by rows (plan_rows), except where source and target are dense along different axes: such a
// transposed copy goes tile by tile, so that both sides use the cache lines they touch.
#include "tensor/cpu/copy.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "tensor/cpu/elementwise.h"
#include "tensor/parallel.h"
#include "tensor/support/check.h"

namespace tenon::cpu {
namespace {

/// A tile has kTileRows along the source's dense axis, so that a few cache lines of it lie together,
/// and kTileColumns along the target's; it fits the first-level cache.
template <class Word>
inline constexpr std::int64_t kTileRows = 256 / sizeof(Word);
template <class Word>
inline constexpr std::int64_t kTileColumns = sizeof(Word) >= 4 ? 32 : 64;

template <class Word>
void copy_row(char* const* data, const std::int64_t* strides, std::int64_t n, const void*) {
  char* target = data[0];
  const char* source = data[1];
  constexpr auto kSize = static_cast<std::int64_t>(sizeof(Word));
  if (strides[0] == kSize && strides[1] == kSize) {
    std::memmove(target, source, static_cast<std::size_t>(n * kSize));
    return;
  }
  for (std::int64_t i = 0; i < n; ++i) {
    std::memcpy(target + i * strides[0], source + i * strides[1], sizeof(Word));
  }
}

/// The axis along which the source is dense while the target's rows are not; -1: there is none.
int transposed_axis(const StridedRows& plan, std::int64_t element) {
  const int row = plan.sizes.size() - 1;
  if (plan.strides[0][row] != element || plan.strides[1][row] == element) return -1;
  for (int axis = 0; axis < row; ++axis) {
    if (plan.strides[1][axis] == element && plan.sizes[axis] >= 4 && plan.sizes[row] >= 4)
      return axis;
  }
  return -1;
}

/// A tile whose columns are dense in the source and whose rows are dense in the target.
template <class Word>
void copy_tile(char* target, const char* source, std::int64_t target_stride,
               std::int64_t source_stride, std::int64_t rows, std::int64_t columns) {
  Word tile[kTileColumns<Word>][kTileRows<Word>];
  for (std::int64_t c = 0; c < columns; ++c) {
    std::memcpy(tile[c], source + c * source_stride, static_cast<std::size_t>(rows) * sizeof(Word));
  }
  for (std::int64_t r = 0; r < rows; ++r) {
    Word line[kTileColumns<Word>];
    for (std::int64_t c = 0; c < columns; ++c) line[c] = tile[c][r];
    std::memcpy(target + r * target_stride, line, static_cast<std::size_t>(columns) * sizeof(Word));
  }
}

template <class Word>
void copy_transposed(const StridedRows& plan, int axis) {
  const int row = plan.sizes.size() - 1;
  const std::int64_t rows = plan.sizes[axis];
  const std::int64_t columns = plan.sizes[row];
  constexpr std::int64_t kHeight = kTileRows<Word>;
  constexpr std::int64_t kWidth = kTileColumns<Word>;
  const std::int64_t row_tiles = (rows + kHeight - 1) / kHeight;
  const std::int64_t planes = plan.sizes.product() / (rows * columns);
  constexpr auto kSize = static_cast<std::int64_t>(sizeof(Word));

  parallel_for(planes * row_tiles, [&](std::int64_t task) {
    const std::int64_t r = task % row_tiles * kHeight;
    std::int64_t rest = task / row_tiles;
    char* target = plan.data[0] + r * plan.strides[0][axis];
    const char* source = plan.data[1] + r * kSize;
    for (int other = row - 1; other >= 0; --other) {
      if (other == axis) continue;
      const std::int64_t index = rest % plan.sizes[other];
      rest /= plan.sizes[other];
      target += index * plan.strides[0][other];
      source += index * plan.strides[1][other];
    }
    for (std::int64_t c = 0; c < columns; c += kWidth) {
      copy_tile<Word>(target + c * kSize, source + c * plan.strides[1][row], plan.strides[0][axis],
                      plan.strides[1][row], std::min(kHeight, rows - r),
                      std::min(kWidth, columns - c));
    }
  });
}

template <class Word>
void copy_words(const TensorView& source, const TensorView& target) {
  const StridedRows plan = plan_rows(target, std::span(&source, 1));
  const int axis = transposed_axis(plan, sizeof(Word));
  if (axis >= 0) {
    copy_transposed<Word>(plan, axis);
  } else {
    for_each_row(plan, copy_row<Word>, nullptr);
  }
}

/// A float, cut to the range of an int16 or int8: values of their compute type would wrap. NaN stays.
template <class C>
C cut_to_range(C value, DType dtype) {
  const C limit = dtype == DType::int16 ? C(0x1p15) : C(0x1p7);
  return std::clamp(value, -limit, limit - 1);
}

}  // namespace

void copy_strided(const TensorView& source, const TensorView& target) {
  switch (size_of(target.dtype)) {
    case 1: return copy_words<std::uint8_t>(source, target);
    case 2: return copy_words<std::uint16_t>(source, target);
    case 4: return copy_words<std::uint32_t>(source, target);
    default: return copy_words<std::uint64_t>(source, target);
  }
}

void cast_strided(const TensorView& source, const TensorView& target) {
  if (source.dtype == target.dtype) return copy_strided(source, target);
  const std::span inputs(&source, 1);
  const bool narrows = is_floating(target.dtype) && !element_access(target.dtype).is_value;
  AllDTypes::dispatch(source.dtype, [&]<class From>() {
    if (narrows) {
      return run_elementwise<float, From>(target, inputs,
                                          [](From x) { return before_narrowing(x); });
    }
    if constexpr (std::is_floating_point_v<From>) {
      if (is_storage_only(target.dtype)) {
        return run_elementwise<std::int32_t, From>(target, inputs, [dtype = target.dtype](From x) {
          return convert<std::int32_t>(cut_to_range(x, dtype));
        });
      }
    }
    AllDTypes::dispatch(target.dtype, [&]<class To>() {
      run_elementwise<To, From>(target, inputs, [](From x) { return convert<To>(x); });
    });
  });
}

void run_view_copy(const KernelArgs& args) {
  const TensorView& input = args.inputs[0];
  TensorView target = args.outputs[0];
  TensorView source = input;
  if (const auto layout =
          args.op->view({input.sizes, input.strides, 0}, target.sizes, *args.attrs)) {
    source.data = static_cast<char*>(input.data) +
                  layout->offset * static_cast<std::int64_t>(size_of(input.dtype));
    source.sizes = layout->sizes;
    source.strides = layout->strides;
  } else {  // reshape and contiguous: the same elements in row-major order
    TENON_INTERNAL(target.is_contiguous() && target.numel() == input.numel(),
                   "[{}] no view rule for this copy", args.op->name);
    target.sizes = input.sizes;
    target.strides = contiguous_strides(input.sizes);
  }
  copy_strided(source, target);
}

Kernel view_kernel(std::string_view name) {
  return {name, run_view_copy, nullptr, ops::any_layout, false};
}

}  // namespace tenon::cpu
