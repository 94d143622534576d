// How elementwise calls are cut into rows; see the header.
#include "tensor/cpu/elementwise.h"

#include <algorithm>
#include <numeric>

#include "tensor/parallel.h"
#include "tensor/support/check.h"

namespace tenon::cpu {
namespace {

/// Elements of one task.
constexpr std::int64_t kGrain = 32768;

/// Strides in bytes of `view` broadcast to `sizes`.
Extents broadcast_strides(const TensorView& view, const Extents& sizes) {
  Extents strides = Extents::filled(sizes.size(), 0);
  const auto element = static_cast<std::int64_t>(size_of(view.dtype));
  const int shift = sizes.size() - view.rank();
  for (int axis = 0; axis < view.rank(); ++axis) {
    if (view.sizes[axis] != 1) strides[axis + shift] = view.strides[axis] * element;
  }
  return strides;
}

/// Whether axis `outer` continues axis `inner` in every operand.
bool can_merge(const StridedRows& plan, int outer, int inner) {
  for (int i = 0; i < plan.operands; ++i) {
    const Extents& strides = plan.strides[static_cast<std::size_t>(i)];
    if (strides[outer] != strides[inner] * plan.sizes[inner]) return false;
  }
  return true;
}

template <class T>
void load_elements(const char* source, std::int64_t stride, std::int64_t n, void* values) {
  auto* typed = static_cast<compute_type<T>*>(values);
  if (stride == static_cast<std::int64_t>(sizeof(T))) {
    widen(reinterpret_cast<const T*>(source), n, typed);
    return;
  }
  for (std::int64_t i = 0; i < n; ++i) {
    typed[i] = static_cast<compute_type<T>>(*reinterpret_cast<const T*>(source + i * stride));
  }
}

template <class T>
void store_elements(const void* values, std::int64_t n, char* target, std::int64_t stride) {
  const auto* typed = static_cast<const compute_type<T>*>(values);
  if (stride == static_cast<std::int64_t>(sizeof(T))) {
    narrow(typed, n, reinterpret_cast<T*>(target));
    return;
  }
  for (std::int64_t i = 0; i < n; ++i) *reinterpret_cast<T*>(target + i * stride) = T(typed[i]);
}

template <class T>
constexpr ElementAccess kAccess{sizeof(T), sizeof(compute_type<T>),
                                std::is_same_v<T, compute_type<T>>, load_elements<T>,
                                store_elements<T>};

}  // namespace

const ElementAccess& element_access(DType dtype) {
  return dispatch_all(dtype, []<class T>() -> const ElementAccess& { return kAccess<T>; });
}

StridedRows plan_rows(const TensorView& output, std::span<const TensorView> inputs) {
  StridedRows full;
  full.operands = 1 + static_cast<int>(inputs.size());
  TENON_INTERNAL(full.operands <= StridedRows::kMaxOperands, "{} elementwise operands",
                 full.operands);
  full.sizes = output.sizes;
  const auto add = [&](std::size_t i, const TensorView& view) {
    full.strides[i] = broadcast_strides(view, output.sizes);
    full.data[i] = static_cast<char*>(view.data);
  };
  add(0, output);
  for (std::size_t i = 0; i < inputs.size(); ++i) add(i + 1, inputs[i]);

  std::array<int, kMaxRank> order{};
  const auto end = order.begin() + output.rank();
  std::iota(order.begin(), end, 0);
  std::stable_sort(order.begin(), end,
                   [&](int a, int b) { return full.strides[0][a] > full.strides[0][b]; });

  StridedRows plan;
  plan.operands = full.operands;
  plan.data = full.data;
  for (auto axis = order.begin(); axis != end; ++axis) {
    if (full.sizes[*axis] == 1) continue;
    plan.sizes.push_back(full.sizes[*axis]);
    for (std::size_t i = 0; i < static_cast<std::size_t>(full.operands); ++i) {
      plan.strides[i].push_back(full.strides[i][*axis]);
    }
    const int last = plan.sizes.size() - 1;
    if (last == 0 || !can_merge(plan, last - 1, last)) continue;
    plan.sizes[last - 1] *= plan.sizes[last];
    plan.sizes.erase(last);
    for (std::size_t i = 0; i < static_cast<std::size_t>(full.operands); ++i) {
      plan.strides[i].erase(last - 1);
    }
  }
  if (plan.sizes.empty()) {
    plan.sizes.push_back(1);
    for (auto& strides : plan.strides) strides.push_back(0);
  }
  return plan;
}

void for_each_row(const StridedRows& plan, RowFunction function, const void* functor) {
  const int row_axis = plan.sizes.size() - 1;
  const std::int64_t row = plan.sizes[row_axis];
  const auto operands = static_cast<std::size_t>(plan.operands);
  std::array<std::int64_t, StridedRows::kMaxOperands> row_strides{};
  for (std::size_t i = 0; i < operands; ++i) row_strides[i] = plan.strides[i][row_axis];

  parallel_ranges(plan.sizes.product(), kGrain, [&](std::int64_t begin, std::int64_t end) {
    std::array<std::int64_t, kMaxRank> index{};
    std::int64_t rest = begin / row;
    for (int axis = row_axis - 1; axis >= 0; --axis) {
      index[static_cast<std::size_t>(axis)] = rest % plan.sizes[axis];
      rest /= plan.sizes[axis];
    }
    std::int64_t in_row = begin % row;
    for (std::int64_t at = begin; at < end;) {
      const std::int64_t n = std::min(row - in_row, end - at);
      std::array<char*, StridedRows::kMaxOperands> data = plan.data;
      for (std::size_t i = 0; i < operands; ++i) {
        data[i] += in_row * row_strides[i];
        for (int axis = 0; axis < row_axis; ++axis) {
          data[i] += index[static_cast<std::size_t>(axis)] * plan.strides[i][axis];
        }
      }
      function(data.data(), row_strides.data(), n, functor);
      at += n;
      in_row = 0;
      for (int axis = row_axis - 1; axis >= 0; --axis) {
        if (++index[static_cast<std::size_t>(axis)] < plan.sizes[axis]) break;
        index[static_cast<std::size_t>(axis)] = 0;
      }
    }
  });
}

namespace {

/// What the rows of one call have in common.
struct BlockCall {
  BlockFunction function;
  const void* functor;
  std::array<DType, StridedRows::kMaxOperands> dtypes;  // the output's first
};

template <std::size_t... I>
void compute_row(const BlockCall& call, char* const* data, const std::int64_t* strides,
                 std::int64_t n, std::index_sequence<I...>) {
  RowWriter writer(call.dtypes[0], data[0], strides[0]);
  RowReader readers[] = {RowReader(call.dtypes[I + 1], data[I + 1], strides[I + 1], n)...};
  for (std::int64_t begin = 0; begin < n; begin += kBlock) {
    const std::int64_t count = std::min(kBlock, n - begin);
    const void* values[] = {readers[I].untyped_block(begin, count)...};
    call.function(writer.untyped_block(begin), values, count, call.functor);
    writer.finish(begin, count);
  }
}

template <std::size_t kInputs>
void compute_row_of(char* const* data, const std::int64_t* strides, std::int64_t n,
                    const void* call) {
  compute_row(*static_cast<const BlockCall*>(call), data, strides, n,
              std::make_index_sequence<kInputs>{});
}

}  // namespace

void for_each_block(const TensorView& output, std::span<const TensorView> inputs,
                    BlockFunction function, const void* functor) {
  BlockCall call{function, functor, {output.dtype}};
  for (std::size_t i = 0; i < inputs.size(); ++i) call.dtypes[i + 1] = inputs[i].dtype;
  constexpr RowFunction kRows[] = {compute_row_of<1>, compute_row_of<2>, compute_row_of<3>};
  for_each_row(plan_rows(output, inputs), kRows[inputs.size() - 1], &call);
}

}  // namespace tenon::cpu
