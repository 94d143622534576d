// Dropout: Philox bits for eight columns at a time, applied by vector selection.
#include "tensor/cpu/dropout.h"

#include <algorithm>

#include "tensor/cpu/rows.h"
#include "tensor/cpu/vector.h"
#include "tensor/parallel.h"
#include "tensor/support/check.h"

namespace tenon::cpu {
namespace {

constexpr std::int64_t kGroup = 8;      // columns per Philox call
constexpr std::int64_t kChunk = 16384;  // columns of a long row that one task takes

/// bits[g] = the mask of group `first` + g. The compiler vectorizes it over the groups;
/// words as wide as Philox's make that twice as fast as bytes.
void draw_bits(DropoutKey key, std::int64_t row, std::int64_t first, std::int64_t groups,
               std::uint32_t threshold, std::uint32_t* bits) {
  for (std::int64_t g = 0; g < groups; ++g) {
    bits[g] = dropout_bits8(key, row, first + g, threshold);
  }
}

/// Bit i of a mask, in lane i.
template <class C>
struct LaneBits;
template <>
struct LaneBits<float> {
  static constexpr IntVec<float> kParts[] = {{1, 2, 4, 8, 16, 32, 64, 128}};
};
template <>
struct LaneBits<double> {
  static constexpr IntVec<double> kParts[] = {{1, 2, 4, 8}, {16, 32, 64, 128}};
};

/// x[i] = bit i of `bits` ? scale·x[i] : 0, for eight elements.
template <class C>
void apply_bits(C* x, std::uint32_t bits, C scale) {
  for (const IntVec<C>& lane_bits : LaneBits<C>::kParts) {
    const IntVec<C> kept = (lane_bits & static_cast<std::int32_t>(bits)) != 0;
    store(x, kept ? load(x) * scale : Vec<C>{});
    x += kLanes<C>;
  }
}

}  // namespace

DropoutPlan plan_dropout(std::string_view op, const DropoutAttrs& attrs, const KernelArgs& args,
                         std::int64_t rows, std::int64_t cols) {
  DropoutPlan plan;
  if (!drops(attrs.mode, attrs.p, args.training)) return plan;
  TENON_CHECK(rows <= kMaxDropoutRows && cols <= kMaxDropoutCols, ShapeError,
              "[{}] dropout of {} rows of {} elements; needed at most {} rows of {}", op, rows,
              cols, kMaxDropoutRows, kMaxDropoutCols);
  TENON_CHECK(attrs.site >= 0 && attrs.site < kMaxDropoutSites, ValueError,
              "[{}] dropout site {}; needed a number from 0 to {}", op, attrs.site,
              kMaxDropoutSites - 1);
  plan.active = true;
  plan.key = {args.random.seed, args.random.forward, static_cast<std::uint32_t>(attrs.site),
              args.random.forward_cell};
  plan.threshold = dropout_threshold(attrs.p);
  plan.scale = attrs.p < 1 ? 1 / (1 - attrs.p) : 0;
  return plan;
}

template <class C>
void dropout_row(C* x, std::int64_t n, const DropoutPlan& plan, C scale, std::int64_t row,
                 std::int64_t first_col, std::uint8_t* keep_bits) {
  constexpr std::int64_t kGroupsAtOnce = 32;
  std::uint32_t bits[kGroupsAtOnce];
  for (std::int64_t begin = 0; begin < n; begin += kGroupsAtOnce * kGroup) {
    const std::int64_t size = std::min(kGroupsAtOnce * kGroup, n - begin);
    const std::int64_t groups = (size + kGroup - 1) / kGroup;
    const std::int64_t first_group = (first_col + begin) / kGroup;
    draw_bits(plan.key, row, first_group, groups, plan.threshold, bits);
    if (keep_bits != nullptr) {
      std::transform(bits, bits + groups, keep_bits + begin / kGroup,
                     [](std::uint32_t byte) { return static_cast<std::uint8_t>(byte); });
    }
    const std::int64_t whole = size / kGroup;
    for (std::int64_t g = 0; g < whole; ++g) apply_bits(x + begin + g * kGroup, bits[g], scale);
    for (std::int64_t i = whole * kGroup; i < size; ++i) {
      const bool kept = ((bits[i / kGroup] >> (i % kGroup)) & 1) != 0;
      x[begin + i] = kept ? x[begin + i] * scale : C{0};
    }
  }
}

void dropout(const KernelArgs& args) {
  const TensorView& input = args.inputs[0];
  const TensorView& output = args.outputs[0];
  if (output.numel() == 0) return;
  const int row_axes = std::max(output.rank() - 1, 0);
  const Extents row_sizes = first_axes(output.sizes, row_axes);
  const Extents input_rows = first_axes(input.strides, row_axes);
  const Extents output_rows = first_axes(output.strides, row_axes);
  const std::int64_t rows = row_sizes.product();
  const std::int64_t cols = output.rank() == 0 ? 1 : output.size(-1);
  const std::int64_t output_stride = output.rank() == 0 ? 1 : output.stride(-1);
  const std::int64_t input_stride = output.rank() == 0 ? 1 : input.stride(-1);
  const DropoutPlan plan =
      plan_dropout("dropout", args.attributes<DropoutAttrs>(), args, rows, cols);
  dispatch_float(output.dtype, [&]<typename T>() {
    using C = compute_type<T>;
    const std::int64_t chunks = (cols + kChunk - 1) / kChunk;
    parallel_ranges(rows * chunks, rows_per_task(cols), [&](std::int64_t begin, std::int64_t end) {
      thread_local Scratch scratch;
      C* values = scratch.get<C>(std::min(kChunk, cols));
      for (std::int64_t i = begin; i < end; ++i) {
        const std::int64_t row = i / chunks;
        const std::int64_t col = i % chunks * kChunk;
        const std::int64_t n = std::min(kChunk, cols - col);
        load_row(input.as<const T>() + offset_of(row, row_sizes, input_rows) + col * input_stride,
                 input_stride, n, values);
        if (plan.active) dropout_row(values, n, plan, static_cast<C>(plan.scale), row, col);
        store_row(values, n,
                  output.as<T>() + offset_of(row, row_sizes, output_rows) + col * output_stride,
                  output_stride);
      }
    });
  });
}

template void dropout_row<float>(float*, std::int64_t, const DropoutPlan&, float, std::int64_t,
                                 std::int64_t, std::uint8_t*);
template void dropout_row<double>(double*, std::int64_t, const DropoutPlan&, double, std::int64_t,
                                  std::int64_t, std::uint8_t*);

}  // namespace tenon::cpu
