// Lookup of table rows: one memcpy a row.
#include "tensor/cpu/embedding.h"

#include <algorithm>
#include <cstring>

#include "tensor/parallel.h"
#include "tensor/support/check.h"

namespace tenon::cpu {
namespace {

/// Bytes of one task.
constexpr std::int64_t kGrainBytes = 1 << 17;

template <class Index>
void look_up(const TensorView& input, const TensorView& weight, const TensorView& output) {
  const auto* indices = input.as<Index>();
  const std::int64_t count = input.numel();
  const std::int64_t rows = weight.sizes[0];
  for (std::int64_t i = 0; i < count; ++i) {
    TENON_CHECK(indices[i] >= 0 && indices[i] < rows, ValueError,
                "[embedding] index {} at position {}; needed 0 <= index < {}, the rows of weight",
                indices[i], i, rows);
  }
  const auto element = static_cast<std::int64_t>(size_of(weight.dtype));
  const std::int64_t row_bytes = weight.sizes[1] * element;
  const std::int64_t row_stride = weight.strides[0] * element;
  if (row_bytes == 0) return;
  const auto* table = static_cast<const char*>(weight.data);
  auto* target = static_cast<char*>(output.data);
  const std::int64_t grain = std::max<std::int64_t>(1, kGrainBytes / row_bytes);
  parallel_ranges(count, grain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      std::memcpy(target + i * row_bytes,
                  table + static_cast<std::int64_t>(indices[i]) * row_stride,
                  static_cast<std::size_t>(row_bytes));
    }
  });
}

}  // namespace

void run_embedding(const KernelArgs& args) {
  if (args.inputs[0].dtype == DType::int32) {
    look_up<std::int32_t>(args.inputs[0], args.inputs[1], args.outputs[0]);
  } else {
    look_up<std::int64_t>(args.inputs[0], args.inputs[1], args.outputs[0]);
  }
}

}  // namespace tenon::cpu
