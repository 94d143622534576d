// Arrays of the reference interpreter: cells that several arrays may show through offsets, sizes
// and strides, so that views and changes in place need no rules of their own.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "tests/fuzz/ops/numbers.h"

namespace tenon::op_fuzz {

using Sizes = std::vector<std::int64_t>;
using Numbers = std::vector<Number>;

struct Memory {
  Numbers cells;
  Numbers errors = {};  // what each may differ by from one execution to another; empty: nothing
  std::uint64_t version = 0;  // how often it was written
};

struct Array {
  std::shared_ptr<Memory> memory;
  DType dtype = DType::float32;
  Sizes sizes;
  Sizes strides;
  std::int64_t offset = 0;

  int rank() const { return static_cast<int>(sizes.size()); }
  std::int64_t numel() const;
  /// The cell of each element, row-major.
  std::vector<std::int64_t> places() const;
  Numbers values() const;
  void write(const Numbers& values) const;
  Numbers errors() const;
  void write_errors(const Numbers& errors) const;
  bool is_contiguous() const;
  /// Two elements have one cell: what cannot be written element by element.
  bool overlaps_itself() const;
};

std::int64_t product(const Sizes& sizes);
Sizes row_major(const Sizes& sizes);
/// An array of its own.
Array make_array(DType dtype, Sizes sizes, Numbers values);
/// 0, 1, …: what a view of it shows is where each of its elements comes from.
Array positions(const Sizes& sizes);

// Views. Arguments must be right; axes are not negative.
Array narrow(Array array, int axis, std::int64_t start, std::int64_t length);
Array permute(const Array& array, const Sizes& axes);
Array transpose(Array array, int a, int b);
Array unsqueeze(Array array, int axis);
Array squeeze(Array array, int axis);
Array expand(const Array& array, const Sizes& sizes);
/// Nothing where no strides show the elements in that shape.
std::optional<Array> viewed(const Array& array, const Sizes& sizes);
Array copied(const Array& array);
/// viewed, or a copy.
Array reshaped(const Array& array, const Sizes& sizes);

/// NumPy's rule; nothing where the sizes do not fit.
std::optional<Sizes> broadcast(const Sizes& a, const Sizes& b);

}  // namespace tenon::op_fuzz
