#include "tensor/tensor_view.h"

#include "tensor/detail/check.h"

namespace tenon {

void throw_rank_too_large(std::size_t rank) {
  detail::fail<ShapeError>("a tensor of rank {} was asked for; the largest rank is {}", rank,
                           kMaxRank);
}

void Extents::insert(int position, std::int64_t value) {
  push_back(value);
  for (int i = rank_ - 1; i > position; --i) (*this)[i] = (*this)[i - 1];
  (*this)[position] = value;
}

void Extents::erase(int position) {
  for (int i = position; i + 1 < rank_; ++i) (*this)[i] = (*this)[i + 1];
  --rank_;
}

Extents contiguous_strides(const Extents& sizes) {
  Extents strides = Extents::filled(sizes.size(), 1);
  for (int i = sizes.size() - 2; i >= 0; --i) {
    strides[i] = strides[i + 1] * (sizes[i + 1] == 0 ? 1 : sizes[i + 1]);
  }
  return strides;
}

bool Layout::is_contiguous() const {
  if (numel() == 0) return true;
  std::int64_t expected = 1;
  for (int i = rank() - 1; i >= 0; --i) {
    if (sizes[i] != 1 && strides[i] != expected) return false;
    expected *= sizes[i];
  }
  return true;
}

}  // namespace tenon
