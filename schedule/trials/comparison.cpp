#include "schedule/trials/comparison.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

namespace tenon::detail {
namespace {

constexpr double kRoundoff64 = 0x1p-53;
/// Of the terms: far more than two orders of summation differ by, far less than a formula.
constexpr double kRoundings64 = 0x1p17;
/// Of other elements' terms: where an element's own happen to cancel.
constexpr double kRoundingsOfOthers64 = 0x1p13;
/// Of what the inputs are, where a result is zero in truth.
constexpr double kRoundingsOfUnit = 1024;
/// Of the largest terms, behind inputs of all magnitudes.
constexpr double kRoundingsOfLargest64 = 0x1p28;
/// Of the element itself: below this nobody asks for its terms.
constexpr double kRoundingsOfElement = 0x1p6;
/// Of the terms, by which two kernels of one formula may differ where the model happens to be exact:
/// of what they store in their dtype, and of what they accumulate in float32 or wider.
constexpr double kRoundingsStored = 16;
constexpr double kRoundingsAccumulated = 128;
/// A model that is off by more has taken another branch there, or lost all digits.
constexpr double kMostRoundings = 512;

/// Settles elements that are not finite; true where both are finite.
bool both_finite(Agreement& agreement, double model, double scheduled, Excused excused) {
  if (std::isfinite(model) && std::isfinite(scheduled)) {
    ++agreement.compared;
    return true;
  }
  ++agreement.not_finite;
  const bool overflows = excused.overflow && std::isinf(model) && std::isfinite(scheduled);
  const bool same = model == scheduled || (std::isnan(model) && std::isnan(scheduled));
  if (same || (std::isnan(model) && excused.nan) || excused.any || overflows) {
    agreement.finite_for_nan += std::isnan(model) && std::isfinite(scheduled) ? 1 : 0;
    return false;
  }
  agreement.ok = false;
  agreement.difference = std::numeric_limits<double>::infinity();
  agreement.largest_difference = agreement.difference;
  return false;
}

/// Keeps the element that is worst off.
void take(Agreement& agreement, double difference, double allowed) {
  agreement.largest_difference = std::max(agreement.largest_difference, difference);
  const bool fails = difference > allowed;
  const bool worse = fails != !agreement.ok
                         ? fails
                         : difference * agreement.allowed >= agreement.difference * allowed;
  agreement.ok = agreement.ok && !fails;
  if (!worse || std::isinf(agreement.difference)) return;
  agreement.difference = difference;
  agreement.allowed = allowed;
}

/// Of those that are not 0; 0 where there are none.
double median(std::vector<double> numbers) {
  std::erase(numbers, 0.0);
  if (numbers.empty()) return 0;
  const auto middle = numbers.begin() + static_cast<std::ptrdiff_t>(numbers.size() / 2);
  std::nth_element(numbers.begin(), middle, numbers.end());
  return *middle;
}

/// What an element may be off by because of other elements' terms.
double floor_of(const std::vector<double>& terms, double roundings, double roundoff,
                Excused excused) {
  const double usual =
      roundings * roundoff * median(terms) + kRoundingsOfUnit * roundoff * excused.unit;
  if (!excused.cancelled || terms.empty()) return usual;
  const double largest = *std::max_element(terms.begin(), terms.end());
  return std::max(usual, kRoundingsOfLargest64 * kRoundoff64 * largest);
}

}  // namespace

Agreement compare_meaning(const std::vector<double>& model, const std::vector<double>& scheduled,
                          const Sensitivity& sensitivity, Excused excused) {
  Agreement agreement;
  const std::vector<double>* terms = nullptr;
  double floor = 0;
  for (std::size_t i = 0; i < model.size(); ++i) {
    if (!both_finite(agreement, model[i], scheduled[i], excused)) continue;
    const double difference = std::abs(model[i] - scheduled[i]);
    double allowed = kRoundingsOfElement * kRoundoff64 * std::abs(model[i]);
    if (difference > allowed) {
      if (terms == nullptr) {
        terms = &sensitivity();
        floor = floor_of(*terms, kRoundingsOfOthers64, kRoundoff64, excused);
      }
      allowed += kRoundings64 * kRoundoff64 * (*terms)[i] + floor;
    }
    take(agreement, difference, allowed);
  }
  return agreement;
}

Agreement compare_exactly(const Tensor& model, const Tensor& scheduled) {
  const auto x = model.to(DType::int64).to_vector<std::int64_t>();
  const auto y = scheduled.to(DType::int64).to_vector<std::int64_t>();
  Agreement agreement;
  agreement.compared = x.size();
  for (std::size_t i = 0; i < x.size(); ++i) {
    // As doubles, large ones that differ may be one.
    const auto [low, high] = std::minmax(x[i], y[i]);
    take(agreement,
         static_cast<double>(static_cast<std::uint64_t>(high) - static_cast<std::uint64_t>(low)),
         0);
  }
  return agreement;
}

Agreement compare_bound(const std::vector<double>& exact, const std::vector<double>& model,
                        const std::vector<double>& scheduled, const Sensitivity& sensitivity,
                        double roundoff, std::size_t columns, Excused excused) {
  Agreement agreement;
  if (model ==
      scheduled) {  // all finite or infinite alike: the terms, which cost most, do not matter
    for (std::size_t i = 0; i < exact.size(); ++i) {
      const bool finite = std::isfinite(model[i]) && std::isfinite(exact[i]);
      ++(finite ? agreement.compared : agreement.not_finite);
      if (finite)
        agreement.allowed = std::max(agreement.allowed, 2 * std::abs(model[i] - exact[i]));
    }
    return agreement;
  }
  const std::vector<double>& terms = sensitivity();
  const auto unit = [&](std::size_t i) {
    return roundoff * std::max(terms[i], std::abs(exact[i]));
  };
  // A float64 model is its own reference.
  const bool is_reference = roundoff == kRoundoff64;
  const double floor =
      floor_of(terms, is_reference ? kRoundingsOfOthers64 : kRoundingsStored, roundoff, excused);
  const double own_roundings =
      is_reference
          ? kRoundings64
          : kRoundingsStored + kRoundingsAccumulated * std::min(roundoff, 0x1p-24) / roundoff;
  for (std::size_t row = 0; row < exact.size(); row += columns) {
    const std::size_t end = std::min(row + columns, exact.size());
    double roundings = 0;
    for (std::size_t i = row; i < end; ++i) {
      const double off = std::abs(model[i] - exact[i]) / unit(i);
      if (off <= kMostRoundings) roundings = std::max(roundings, off);
    }
    for (std::size_t i = row; i < end; ++i) {
      // What the model itself does not reach at this dtype is not asked for.
      if (!std::isfinite(model[i]) || !std::isfinite(exact[i])) {
        ++agreement.not_finite;
        continue;
      }
      if (!both_finite(agreement, exact[i], scheduled[i], excused)) continue;
      const double to_exact = std::abs(scheduled[i] - exact[i]);
      const double to_model = std::abs(scheduled[i] - model[i]);
      const double allowed =
          (2 * roundings + own_roundings) * unit(i) + floor + std::numeric_limits<double>::min();
      take(agreement, std::min(to_exact, to_model), allowed);
    }
  }
  return agreement;
}

}  // namespace tenon::detail
