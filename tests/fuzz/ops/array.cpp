#include "tests/fuzz/ops/array.h"

#include <algorithm>
#include <numeric>

namespace tenon::op_fuzz {
namespace {

std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

}  // namespace

std::int64_t product(const Sizes& sizes) {
  return std::accumulate(sizes.begin(), sizes.end(), std::int64_t{1}, std::multiplies<>());
}

Sizes row_major(const Sizes& sizes) {
  Sizes strides(sizes.size(), 1);
  for (std::size_t i = sizes.size(); i-- > 1;) strides[i - 1] = strides[i] * sizes[i];
  return strides;
}

std::int64_t Array::numel() const { return product(sizes); }

std::vector<std::int64_t> Array::places() const {
  std::vector<std::int64_t> result{offset};
  for (std::size_t axis = 0; axis < sizes.size(); ++axis) {
    std::vector<std::int64_t> next;
    next.reserve(result.size() * at(sizes[axis]));
    for (const std::int64_t place : result) {
      for (std::int64_t i = 0; i < sizes[axis]; ++i) next.push_back(place + i * strides[axis]);
    }
    result = std::move(next);
  }
  return result;
}

Numbers Array::values() const {
  Numbers result;
  for (const std::int64_t place : places()) result.push_back(memory->cells[at(place)]);
  return result;
}

void Array::write(const Numbers& values) const {
  const std::vector<std::int64_t> cells = places();
  for (std::size_t i = 0; i < cells.size(); ++i) memory->cells[at(cells[i])] = values[i];
}

Numbers Array::errors() const {
  const std::vector<std::int64_t> cells = places();
  Numbers result(cells.size());
  if (memory->errors.empty()) return result;
  for (std::size_t i = 0; i < cells.size(); ++i) result[i] = memory->errors[at(cells[i])];
  return result;
}

void Array::write_errors(const Numbers& errors) const {
  const std::vector<std::int64_t> cells = places();
  memory->errors.resize(memory->cells.size());
  for (std::size_t i = 0; i < cells.size(); ++i) memory->errors[at(cells[i])] = errors[i];
}

bool Array::is_contiguous() const {
  const std::vector<std::int64_t> cells = places();
  for (std::size_t i = 1; i < cells.size(); ++i) {
    if (cells[i] != cells[i - 1] + 1) return false;
  }
  return true;
}

bool Array::overlaps_itself() const {
  std::vector<std::int64_t> cells = places();
  std::sort(cells.begin(), cells.end());
  return std::adjacent_find(cells.begin(), cells.end()) != cells.end();
}

Array make_array(DType dtype, Sizes sizes, Numbers values) {
  Array result{std::make_shared<Memory>(), dtype, std::move(sizes), {}, 0};
  result.memory->cells = std::move(values);
  result.strides = row_major(result.sizes);
  return result;
}

Array positions(const Sizes& sizes) {
  Numbers values(at(product(sizes)));
  std::iota(values.begin(), values.end(), Number(0));
  return make_array(DType::int64, sizes, std::move(values));
}

Array narrow(Array array, int axis, std::int64_t start, std::int64_t length) {
  array.offset += start * array.strides[at(axis)];
  array.sizes[at(axis)] = length;
  return array;
}

Array permute(const Array& array, const Sizes& axes) {
  Array result = array;
  for (std::size_t i = 0; i < axes.size(); ++i) {
    result.sizes[i] = array.sizes[at(axes[i])];
    result.strides[i] = array.strides[at(axes[i])];
  }
  return result;
}

Array transpose(Array array, int a, int b) {
  if (array.rank() == 0) return array;
  std::swap(array.sizes[at(a)], array.sizes[at(b)]);
  std::swap(array.strides[at(a)], array.strides[at(b)]);
  return array;
}

Array unsqueeze(Array array, int axis) {
  array.sizes.insert(array.sizes.begin() + axis, 1);
  array.strides.insert(array.strides.begin() + axis, 1);
  return array;
}

Array squeeze(Array array, int axis) {
  array.sizes.erase(array.sizes.begin() + axis);
  array.strides.erase(array.strides.begin() + axis);
  return array;
}

Array expand(const Array& array, const Sizes& sizes) {
  Array result = array;
  result.sizes = sizes;
  result.strides.assign(sizes.size(), 0);
  const std::size_t added = sizes.size() - array.sizes.size();
  for (std::size_t i = 0; i < array.sizes.size(); ++i) {
    if (array.sizes[i] == sizes[i + added]) result.strides[i + added] = array.strides[i];
  }
  return result;
}

std::optional<Array> viewed(const Array& array, const Sizes& sizes) {
  Array result = array;
  result.sizes = sizes;
  result.strides = row_major(sizes);
  const std::vector<std::int64_t> cells = array.places();
  if (cells.empty()) return result;
  // A stride is where the second element of its axis lies; all elements must lie as strides say.
  const Sizes steps = row_major(sizes);
  for (std::size_t axis = 0; axis < sizes.size(); ++axis) {
    if (sizes[axis] > 1) result.strides[axis] = cells[at(steps[axis])] - cells[0];
  }
  if (result.places() != cells) return std::nullopt;
  return result;
}

Array copied(const Array& array) { return make_array(array.dtype, array.sizes, array.values()); }

Array reshaped(const Array& array, const Sizes& sizes) {
  if (const auto view = viewed(array, sizes)) return *view;
  return make_array(array.dtype, sizes, array.values());
}

std::optional<Sizes> broadcast(const Sizes& a, const Sizes& b) {
  const Sizes& longer = a.size() >= b.size() ? a : b;
  const Sizes& shorter = a.size() >= b.size() ? b : a;
  Sizes result = longer;
  const std::size_t added = longer.size() - shorter.size();
  for (std::size_t i = 0; i < shorter.size(); ++i) {
    std::int64_t& size = result[i + added];
    if (size == 1) {
      size = shorter[i];
    } else if (shorter[i] != 1 && shorter[i] != size) {
      return std::nullopt;
    }
  }
  return result;
}

}  // namespace tenon::op_fuzz
