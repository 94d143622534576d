// split and chunk: pieces of one axis, each a narrow of the input.
#include "tensor/rules/infer_rules.h"
#include "tensor/support/check.h"

namespace tenon {
namespace {

/// ceil(size / step).
Dim pieces_of(const Dim& size, const Dim& step) { return (size + step - 1) / step; }

/// `count` pieces of `step` elements, the last one with what is left.
std::vector<Tensor> cut(const Tensor& input, std::int64_t dim, const Dim& size, const Dim& step,
                        std::int64_t count) {
  std::vector<Tensor> pieces;
  for (std::int64_t i = 0; i < count; ++i) {
    const Dim start = step * i;
    pieces.push_back(narrow(input, dim, start, i + 1 < count ? step : size - start));
  }
  return pieces;
}

std::int64_t checked_axis(std::string_view op, const Tensor& input, std::int64_t dim) {
  TENON_CHECK(ops::in_pattern() || input.dim() > 0, ShapeError,
              "[{}] the input is a scalar; needed an axis", op);
  return ops::axis_of(op, input, dim);
}

}  // namespace

std::vector<Tensor> split(const Tensor& input, std::int64_t split_size, std::int64_t dim) {
  TENON_CHECK(
      !ops::in_pattern(), TraceError,
      "[split] a piece size in a pattern, where the number of pieces is unknown; give the list "
      "of sizes or use chunk");
  const std::int64_t axis = checked_axis("split", input, dim);
  const Dim size = input.size(axis);
  TENON_CHECK(split_size > 0 || (split_size == 0 && size == Dim(0)), ValueError,
              "[split] split_size {}; needed a positive number", split_size);
  // Like PyTorch's, a split of nothing is one empty piece.
  if (size == Dim(0)) return {narrow(input, axis, 0, 0)};
  return cut(input, axis, size, split_size, pieces_of(size, split_size).value());
}

std::vector<Tensor> split(const Tensor& input, const std::vector<std::int64_t>& sizes,
                          std::int64_t dim) {
  const std::int64_t axis = checked_axis("split", input, dim);
  std::int64_t total = 0;
  for (std::int64_t size : sizes) {
    TENON_CHECK(size >= 0 && !__builtin_add_overflow(total, size, &total), ValueError,
                "[split] a piece of {} elements; needed sizes >= 0", size);
  }
  if (!ops::in_pattern()) {
    TENON_CHECK(unify(input.size(axis), total), ShapeError,
                "[split] pieces of {} elements in all along axis {} of the input {}; needed {}",
                total, axis, input.shape().to_string(), input.size(axis).to_string());
  }
  std::vector<Tensor> pieces;
  std::int64_t start = 0;
  for (std::int64_t size : sizes) {
    pieces.push_back(narrow(input, axis, start, size));
    start += size;
  }
  return pieces;
}

std::vector<Tensor> chunk(const Tensor& input, std::int64_t chunks, std::int64_t dim) {
  TENON_CHECK(chunks > 0, ValueError, "[chunk] {} chunks; needed a positive number", chunks);
  const std::int64_t axis = checked_axis("chunk", input, dim);
  const Dim size = input.size(axis);
  const Dim step = pieces_of(size, chunks);
  // A pattern knows no sizes; it means as many pieces as it names.
  if (ops::in_pattern()) return cut(input, axis, size, step, chunks);
  if (size == Dim(0)) return cut(input, axis, size, 0, chunks);
  return cut(input, axis, size, step, pieces_of(size, step).value());
}

}  // namespace tenon
