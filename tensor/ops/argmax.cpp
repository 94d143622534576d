// argmax: the position of the largest element along an axis or in the flattened input.
#include <algorithm>
#include <vector>

#include "tensor/cpu/elementwise.h"
#include "tensor/parallel.h"
#include "tensor/rules/reduction.h"
#include "tensor/support/check.h"

namespace tenon {

Tensor argmax(const Tensor& input, std::optional<std::int64_t> dim, bool keepdim) {
  static const Op& op = get_op("argmax");
  return ops::call_reduction(op, input, dim ? std::vector{*dim} : std::vector<std::int64_t>{},
                             keepdim);
}

namespace ops {
namespace {

std::vector<TensorSpec> infer_argmax(const InferContext& context) {
  const auto& dim = context.attributes<ReduceAttrs>().dim;
  TENON_CHECK(dim.size() <= 1, ShapeError, "[argmax] {} axes; needed one, or none for all",
              dim.size());
  std::vector<TensorSpec> outputs = infer_extremum(context);
  outputs[0].dtype = DType::int64;
  return outputs;
}

/// Elements of one piece of a long line, and lines that are searched side by side.
constexpr std::int64_t kPiece = 1 << 16;
constexpr std::int64_t kColumns = 128;

/// Whether a later element takes the place of the best one so far: the first of equals stays, and
/// NaN is larger than anything.
template <class C>
bool is_larger(C later, C best) {
  return later > best || (later != later && best == best);
}

template <class T>
struct Best {
  compute_type<T> value;
  std::int64_t index;
};

template <class T>
Best<T> search(const T* line, std::int64_t begin, std::int64_t end) {
  Best<T> best{static_cast<compute_type<T>>(line[begin]), begin};
  for (std::int64_t i = begin + 1; i < end; ++i) {
    const auto value = static_cast<compute_type<T>>(line[i]);
    if (is_larger(value, best.value)) best = {value, i};
  }
  return best;
}

/// Lines of `length` contiguous elements, each cut into pieces.
template <class T>
void search_lines(const T* input, std::int64_t lines, std::int64_t length, std::int64_t* output) {
  const std::int64_t pieces = (length + kPiece - 1) / kPiece;
  std::vector<Best<T>> best(static_cast<std::size_t>(lines * pieces));
  const std::int64_t grain = std::max<std::int64_t>(1, kPiece / length);
  parallel_ranges(lines * pieces, grain, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t task = first; task < last; ++task) {
      const std::int64_t begin = task % pieces * kPiece;
      best[static_cast<std::size_t>(task)] =
          search(input + task / pieces * length, begin, std::min(length, begin + kPiece));
    }
  });
  for (std::int64_t line = 0; line < lines; ++line) {
    const Best<T>* of_line = &best[static_cast<std::size_t>(line * pieces)];
    const Best<T>* largest = of_line;
    for (std::int64_t i = 1; i < pieces; ++i) {
      if (is_larger(of_line[i].value, largest->value)) largest = of_line + i;
    }
    output[line] = largest->index;
  }
}

/// [outer, length, inner] along the middle axis, kColumns neighbouring columns at a time.
template <class T>
void search_columns(const T* input, std::int64_t outer, std::int64_t length, std::int64_t inner,
                    std::int64_t* output) {
  const std::int64_t tiles = (inner + kColumns - 1) / kColumns;
  const std::int64_t grain = std::max<std::int64_t>(1, kPiece / (length * kColumns));
  parallel_ranges(outer * tiles, grain, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t task = first; task < last; ++task) {
      const std::int64_t column = task % tiles * kColumns;
      const std::int64_t width = std::min(kColumns, inner - column);
      const T* row = input + task / tiles * length * inner + column;
      std::int64_t* indices = output + task / tiles * inner + column;
      compute_type<T> best[kColumns];
      for (std::int64_t j = 0; j < width; ++j) best[j] = static_cast<compute_type<T>>(row[j]);
      std::fill_n(indices, width, 0);
      for (std::int64_t i = 1; i < length; ++i) {
        row += inner;
        for (std::int64_t j = 0; j < width; ++j) {
          const auto value = static_cast<compute_type<T>>(row[j]);
          if (!is_larger(value, best[j])) continue;
          best[j] = value;
          indices[j] = i;
        }
      }
    }
  });
}

void run_argmax(const KernelArgs& args) {
  const TensorView& input = args.inputs[0];
  const auto& dim = args.attributes<ReduceAttrs>().dim;
  const std::int64_t outputs = args.outputs[0].numel();
  if (outputs == 0) return;
  TENON_CHECK(input.numel() > 0, ShapeError,
              "[argmax] an empty axis is reduced; needed at least one element");
  const std::int64_t length = input.numel() / outputs;
  std::int64_t inner = 1;
  if (!dim.empty() && input.rank() > 0) {
    const int axis = static_cast<int>(dim[0] < 0 ? dim[0] + input.rank() : dim[0]);
    for (int i = axis + 1; i < input.rank(); ++i) inner *= input.sizes[i];
  }
  auto* output = args.outputs[0].as<std::int64_t>();
  dispatch_computed(input.dtype, [&]<class T>() {
    if (inner == 1) {
      search_lines(input.as<T>(), outputs, length, output);
    } else {
      search_columns(input.as<T>(), outputs / inner, length, inner, output);
    }
  });
}

}  // namespace

Op define_argmax() {
  return reduction_op(
             "argmax",
             "The index (int64) of the largest element along axis dim, or in the flattened "
             "input; the first of equals, and NaN counts as largest.",
             infer_argmax, {"cpu.argmax", run_argmax, nullptr, nullptr, false})
      .not_differentiable()
      .done();
}

}  // namespace ops
}  // namespace tenon
