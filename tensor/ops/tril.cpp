// tril and triu: a triangle of the last two axes, zeros elsewhere.
#include <algorithm>
#include <cstring>

#include "tensor/cpu/copy.h"
#include "tensor/ops/indexing_attributes.h"
#include "tensor/parallel.h"
#include "tensor/rules/infer_rules.h"
#include "tensor/rules/view_rules.h"
#include "tensor/support/check.h"

namespace tenon {

Tensor tril(const Tensor& input, std::int64_t diagonal) {
  static const Op& op = get_op("tril");
  return apply1(op, {input}, DiagonalAttrs{diagonal});
}

Tensor triu(const Tensor& input, std::int64_t diagonal) {
  static const Op& op = get_op("triu");
  return apply1(op, {input}, DiagonalAttrs{diagonal});
}

namespace ops {
namespace {

std::vector<TensorSpec> infer_triangle(const InferContext& context) {
  TENON_CHECK(context[0].shape.rank() >= 2, ShapeError,
              "[{}] the input has shape {}; needed at least two axes", context.op().name,
              context[0].shape.to_string());
  return {context[0]};
}

template <bool kLower>
std::vector<Tensor> vjp_triangle(const VjpContext& call) {
  const std::int64_t diagonal = call.attributes<DiagonalAttrs>().diagonal;
  return {kLower ? tril(call.cotangent(0), diagonal) : triu(call.cotangent(0), diagonal)};
}

/// Copies the rows of a contiguous input, keeping columns [0, end) or [end, columns) of each.
template <bool kLower>
void run_triangle(const KernelArgs& args) {
  const TensorView& input = args.inputs[0];
  const std::int64_t rows = input.size(-2);
  const std::int64_t columns = input.size(-1);
  if (input.numel() == 0) return;
  const auto element = static_cast<std::int64_t>(size_of(input.dtype));
  // Beyond ±2^62 a diagonal is past every corner, and sums with it would overflow.
  constexpr std::int64_t kFar = std::int64_t{1} << 62;
  const std::int64_t diagonal =
      std::clamp(args.attributes<DiagonalAttrs>().diagonal, -kFar, kFar) + (kLower ? 1 : 0);
  const std::int64_t grain = std::max<std::int64_t>(1, (1 << 17) / (columns * element));
  parallel_ranges(input.numel() / columns, grain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      const std::int64_t cut = std::clamp<std::int64_t>(row % rows + diagonal, 0, columns);
      const auto low = static_cast<std::size_t>(cut * element);
      const auto high = static_cast<std::size_t>((columns - cut) * element);
      const char* source = input.as<char>() + row * columns * element;
      char* target = args.outputs[0].as<char>() + row * columns * element;
      if constexpr (kLower) {
        std::memcpy(target, source, low);
        std::memset(target + low, 0, high);
      } else {
        std::memset(target, 0, low);
        std::memcpy(target + low, source + low, high);
      }
    }
  });
}

template <bool kLower>
Op define_triangle(const char* name, const char* kernel, const char* doc) {
  return OpBuilder(name)
      .doc(doc)
      .operand("input")
      .trait(Trait::storage_dtypes)
      .infer(infer_triangle)
      .vjp(vjp_triangle<kLower>)
      .cpu({kernel, run_triangle<kLower>, nullptr, nullptr, false})
      .done();
}

}  // namespace

Op define_tril() {
  return define_triangle<true>(
      "tril", "cpu.tril",
      "The elements of the last two axes with column - row <= diagonal, zeros elsewhere.");
}

Op define_triu() {
  return define_triangle<false>(
      "triu", "cpu.triu",
      "The elements of the last two axes with column - row >= diagonal, zeros elsewhere.");
}

}  // namespace ops
}  // namespace tenon
