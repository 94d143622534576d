#include "tests/fuzz/ops/drawing.h"

#include <algorithm>
#include <cmath>

namespace tenon::op_fuzz {
namespace {

constexpr std::int64_t kSizes[] = {0, 1, 2, 3, 7, 16, 33};
constexpr std::int64_t kPastDouble = (std::int64_t{1} << 53) + 1;

Number special_float(fuzz::RandomSource& source, DType dtype) {
  const Number choices[] = {
      0, -0.0L, kNaN, kInfinity, -kInfinity, smallest_subnormal(dtype),
      -3 * smallest_subnormal(dtype), smallest_normal(dtype), largest(dtype), -largest(dtype),
      1 + 2 * roundoff(dtype),
      // Between neighbours of a 16-bit float: rounding twice gives the wrong one.
      round_to(dtype, 1 + 0x1p-11L + 0x1p-40L), round_to(dtype, 1 + 0x1p-8L + 0x1p-40L),
      round_to(dtype, 300.5L), round_to(dtype, static_cast<Number>(kPastDouble)),
      round_to(dtype, 1e30L)};
  return choices[source.below(std::size(choices))];
}

Number special_integer(fuzz::RandomSource& source, DType dtype) {
  const Number top = largest(dtype), bottom = lowest(dtype);
  const Number choices[] = {top,
                            bottom,
                            top - 1,
                            bottom + 1,
                            std::min<Number>(top, kPastDouble),
                            std::min<Number>(top, kPastDouble - 1),
                            std::min<Number>(top, 200)};
  return choices[source.below(std::size(choices))];
}

}  // namespace

std::optional<int> Drawing::that(const std::function<bool(const Handle&)>& fits) const {
  std::vector<int> found;
  for (const auto& [reg, handle] : reference.registers) {
    if (fits(*handle)) found.push_back(reg);
  }
  if (found.empty()) return std::nullopt;
  // The later of two, so that chains grow.
  const std::size_t a = source.below(found.size()), b = source.below(found.size());
  return found[std::max(a, source.chance(50) ? b : 0)];
}

std::optional<int> Drawing::any() const {
  return that([](const Handle&) { return true; });
}

std::optional<int> Drawing::floating() const {
  return that([](const Handle& handle) { return is_float(handle.array.dtype); });
}

std::optional<int> Drawing::of_dtype(DType dtype) const {
  return that([&](const Handle& handle) { return handle.array.dtype == dtype; });
}

std::optional<int> Drawing::beside(int reg) const {
  if (wrong()) return any();
  const Array& array = at(reg).array;
  return that([&](const Handle& handle) {
    if (handle.array.dtype != array.dtype) return false;
    const auto sizes = broadcast(handle.array.sizes, array.sizes);
    return sizes && product(*sizes) <= 600;
  });
}

bool Drawing::is_before(const Handle& handle) const {
  return std::any_of(program.steps.begin(), program.steps.end(), [&](const Step& step) {
    return step.before && step.result >= 0 && reference.registers.at(step.result).get() == &handle;
  });
}

DType Drawing::dtype() const {
  if (source.chance(45)) return DType::float32;
  if (source.chance(25)) return DType::float64;
  return static_cast<DType>(source.below(kNumDTypes));
}

DType Drawing::float_dtype() const {
  return source.one_of(
      {DType::float32, DType::float32, DType::float64, DType::float16, DType::bfloat16});
}

std::int64_t Drawing::size() const { return kSizes[source.below(std::size(kSizes))]; }

/// Of three sizes of the program for most axes, so that tensors fit together.
Sizes Drawing::sizes(int max_rank, std::int64_t max_numel) const {
  const auto common = [&] {
    const std::uint64_t which = source.below(3);
    return kSizes[(program.seed >> (8 * which)) % std::size(kSizes)];
  };
  Sizes result;
  for (std::int64_t rank = source.between(0, max_rank); rank > 0; --rank) {
    std::int64_t next = source.chance(85) ? common() : size();
    if (next == 0 && source.chance(60)) next = 2;
    if (product(result) * next > max_numel) next = source.between(1, 2);
    result.push_back(next);
  }
  return result;
}

std::int64_t Drawing::axis(int rank) const {
  const int count = std::max(rank, 1);
  if (wrong()) return source.one_of<std::int64_t>({count, -count - 1});
  return source.between(source.chance(30) ? -count : 0, count - 1);
}

Number Drawing::value(DType dtype, bool special) const {
  if (is_float(dtype)) {
    if (special) return special_float(source, dtype);
    if (source.chance(30)) return static_cast<Number>(source.between(-3, 4));
    return round_to(dtype, (static_cast<Number>(source.below(1U << 24)) - 0x1p23L) * 0x1p-22L);
  }
  if (dtype == DType::boolean) return source.chance(50);
  if (special) return special_integer(source, dtype);
  return static_cast<Number>(source.between(lowest(dtype) < 0 && source.chance(10) ? -3 : 0, 6));
}

Numbers Drawing::values(DType dtype, std::int64_t count) const {
  const bool mixed = source.chance(25);
  // Indices of one kind: all of them in range of small sizes.
  const bool tiny = !mixed && source.chance(60);
  Numbers result;
  for (std::int64_t i = 0; i < count; ++i) {
    const bool special = mixed && source.chance(30);
    const Number drawn = value(dtype, special);
    result.push_back(tiny && !is_float(dtype) ? std::fmod(std::fabs(drawn), 2) : drawn);
  }
  return result;
}

Literal Drawing::literal(const Array& array) const {
  const DType dtype = array.dtype;
  Literal result;
  if (array.numel() > 0 && source.chance(25)) {
    const Numbers values = array.values();
    const Number near = values[source.below(values.size())];
    result.real = static_cast<double>(near);
    result.is_integer = !is_float(dtype);
    if (!result.is_integer) return result;
    result.integer = as_integer(near);
    const bool can_move = near < largest(dtype) && near > lowest(dtype);
    if (can_move && source.chance(30)) result.integer += source.one_of<std::int64_t>({-1, 1});
    return result;
  }
  const bool special = source.chance(20);
  if (is_float(dtype)) {
    result.real =
        static_cast<double>(special ? value(DType::float64, true) : value(DType::float32, false));
    if (source.chance(20)) result.real = 0.1;
    return result;
  }
  result.is_integer = true;
  result.integer = as_integer(value(dtype, special));
  if (source.chance(12)) result.integer = source.one_of<std::int64_t>({300, -1, kPastDouble});
  if (source.chance(5)) {
    result.is_integer = false;
    result.real = source.one_of({0.5, 2.0, 1e300, -1.0});
  }
  return result;
}

}  // namespace tenon::op_fuzz
