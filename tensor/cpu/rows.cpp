// Row loading, storing and statistics.
#include "tensor/cpu/rows.h"

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <type_traits>

#include "tensor/cpu/vector.h"
#include "tensor/support/check.h"
#include "tensor/support/convert.h"

namespace tenon::cpu {
namespace {

/// Rows are summed in runs of this length, so that rounding errors do not grow with the row.
constexpr std::int64_t kRun = 1024;

/// Σ f(vector) + Σ f(tail element) over one run, in four independent lanes of vectors.
template <class C, class VectorTerm, class TailTerm>
double sum_run(std::int64_t n, VectorTerm vector_term, TailTerm tail_term) {
  constexpr int kWidth = kLanes<C>;
  Vec<C> sums[4] = {};
  std::int64_t i = 0;
  for (; i + 4 * kWidth <= n; i += 4 * kWidth) {
    for (int lane = 0; lane < 4; ++lane) sums[lane] += vector_term(i + lane * kWidth);
  }
  for (; i + kWidth <= n; i += kWidth) sums[0] += vector_term(i);
  C total = horizontal_sum<C>((sums[0] + sums[1]) + (sums[2] + sums[3]));
  for (; i < n; ++i) total += tail_term(i);
  return static_cast<double>(total);
}

}  // namespace

template <class T>
void load_row(const T* source, std::int64_t stride, std::int64_t n, compute_type<T>* target) {
  using C = compute_type<T>;
  if (stride != 1) {
    for (std::int64_t i = 0; i < n; ++i) target[i] = static_cast<C>(source[i * stride]);
  } else if constexpr (std::is_same_v<T, C>) {
    std::copy_n(source, n, target);
  } else {
    widen(source, n, target);
  }
}

template <class T>
void store_row(const compute_type<T>* source, std::int64_t n, T* target, std::int64_t stride) {
  if (stride != 1) {
    for (std::int64_t i = 0; i < n; ++i) target[i * stride] = static_cast<T>(source[i]);
  } else if constexpr (std::is_same_v<T, compute_type<T>>) {
    std::copy_n(source, n, target);
  } else {
    narrow(source, n, target);
  }
}

template <class C>
void add_row(C* target, const C* other, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) target[i] += other[i];
}

template <class C>
double row_sum(const C* x, std::int64_t n) {
  double total = 0;
  for (std::int64_t begin = 0; begin < n; begin += kRun) {
    const C* run = x + begin;
    total += sum_run<C>(
        std::min(kRun, n - begin), [&](std::int64_t i) { return load(run + i); },
        [&](std::int64_t i) { return run[i]; });
  }
  return total;
}

template <class C>
double row_dot(const C* a, const C* b, std::int64_t n) {
  double total = 0;
  for (std::int64_t begin = 0; begin < n; begin += kRun) {
    const C* left = a + begin;
    const C* right = b + begin;
    total += sum_run<C>(
        std::min(kRun, n - begin), [&](std::int64_t i) { return load(left + i) * load(right + i); },
        [&](std::int64_t i) { return left[i] * right[i]; });
  }
  return total;
}

template <class C>
double center_row(C* x, std::int64_t n, C mean) {
  double total = 0;
  for (std::int64_t begin = 0; begin < n; begin += kRun) {
    C* run = x + begin;
    total += sum_run<C>(
        std::min(kRun, n - begin),
        [&](std::int64_t i) {
          const Vec<C> difference = load(run + i) - mean;
          store(run + i, difference);
          return difference * difference;
        },
        [&](std::int64_t i) {
          run[i] -= mean;
          return run[i] * run[i];
        });
  }
  return total;
}

template <class C>
C row_max(const C* x, std::int64_t n) {
  constexpr int kWidth = kLanes<C>;
  const Vec<C> lowest = broadcast(-std::numeric_limits<C>::infinity());
  Vec<C> largest[2] = {lowest, lowest};
  std::int64_t i = 0;
  for (; i + kWidth < n; i += 2 * kWidth) {
    largest[0] = max_ignoring_nan<C>(load(x + i), largest[0]);
    largest[1] = max_ignoring_nan<C>(load(x + i + kWidth), largest[1]);
  }
  for (; i < n; i += kWidth) largest[0] = max_ignoring_nan<C>(load(x + i), largest[0]);
  return horizontal_max<C>(max_ignoring_nan<C>(largest[0], largest[1]));
}

template <class C>
double exp_row(C* x, std::int64_t n, C max) {
  double total = 0;
  for (std::int64_t begin = 0; begin < n; begin += kRun) {
    C* run = x + begin;
    total += sum_run<C>(
        padded<C>(std::min(kRun, n - begin)),
        [&](std::int64_t i) {
          const Vec<C> value = exp_nonpositive<C>(load(run + i) - max);
          store(run + i, value);
          return value;
        },
        [](std::int64_t) { return C{0}; });
  }
  return total;
}

template <class C>
void scale_row(C* x, std::int64_t n, C factor) {
  for (std::int64_t i = 0; i < n; ++i) x[i] *= factor;
}

template <class C>
void pad_row(C* x, std::int64_t n) {
  std::fill(x + n, x + padded<C>(n), -std::numeric_limits<C>::infinity());
}

Scratch::~Scratch() { std::free(data_); }

void* Scratch::reserve(std::size_t count, std::size_t size) {
  constexpr std::size_t kAlignment = 64;
  const bool overflows = count > (std::numeric_limits<std::size_t>::max() - kAlignment) / size;
  const std::size_t wanted = overflows ? 0 : (count * size + kAlignment) / kAlignment * kAlignment;
  if (!overflows && wanted <= bytes_) return data_;
  std::free(data_);
  bytes_ = 0;
  data_ = overflows ? nullptr : std::aligned_alloc(kAlignment, wanted);
  if (data_ == nullptr) {
    throw OutOfMemory(
        fmt::format("no memory for {} scratch values of {} bytes on the CPU", count, size),
        count * size, 0, 0);
  }
  bytes_ = wanted;
  return data_;
}

#define TENON_INSTANTIATE_ROWS(T)                                                    \
  template void load_row<T>(const T*, std::int64_t, std::int64_t, compute_type<T>*); \
  template void store_row<T>(const compute_type<T>*, std::int64_t, T*, std::int64_t);
TENON_INSTANTIATE_ROWS(float)
TENON_INSTANTIATE_ROWS(double)
TENON_INSTANTIATE_ROWS(Half)
TENON_INSTANTIATE_ROWS(BFloat16)

#define TENON_INSTANTIATE_STATISTICS(C)                         \
  template void add_row<C>(C*, const C*, std::int64_t);         \
  template double row_sum<C>(const C*, std::int64_t);           \
  template double row_dot<C>(const C*, const C*, std::int64_t); \
  template double center_row<C>(C*, std::int64_t, C);           \
  template C row_max<C>(const C*, std::int64_t);                \
  template double exp_row<C>(C*, std::int64_t, C);              \
  template void scale_row<C>(C*, std::int64_t, C);              \
  template void pad_row<C>(C*, std::int64_t);
TENON_INSTANTIATE_STATISTICS(float)
TENON_INSTANTIATE_STATISTICS(double)

}  // namespace tenon::cpu
