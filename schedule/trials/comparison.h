// When two computations of one result agree: element by element, each by the terms that made it.
//
// A difference is allowed as a number of roundings of those terms, which ReferenceRun::sensitivity
// measures: so a large number elsewhere, or in the same row, excuses nothing, and a number that is
// small because large ones cancel is not asked for more digits than it has. Where the model gives NaN,
// anything may stand; what else is not finite must be the same on both sides, and is not compared.
#pragma once

#include <cstddef>
#include <functional>
#include <vector>

#include "tensor/tensor.h"

namespace tenon::detail {

struct Agreement {
  bool ok = true;
  double difference = 0;  // at the element that comes closest to what is allowed, or exceeds it
  double allowed = 0;
  double largest_difference = 0;
  std::size_t compared = 0;    // elements that are finite on both sides
  std::size_t not_finite = 0;  // elements that are not, in the model
  std::size_t finite_for_nan = 0;
};

/// The roundings of its terms by which each element may be off; asked for only where digits differ.
using Sensitivity = std::function<const std::vector<double>&()>;

/// What need not be the same, and by what.
struct Excused {
  bool any = false;       ///< what is not finite, of gradients behind results that are not finite
  bool nan = true;        ///< NaN in the model
  bool overflow = false;  ///< infinite in the model only, which inputs of extreme magnitude make so
  /// Roundings of the largest terms, not of the median: behind numbers of all magnitudes most elements
  /// are what is left of others, or nothing.
  bool cancelled = false;
  /// The size of a number among the inputs, at most 1: what a result that is zero in truth is made of.
  double unit = 0;
};

/// Two float64 computations, `model` and `scheduled`.
Agreement compare_meaning(const std::vector<double>& model, const std::vector<double>& scheduled,
                          const Sensitivity& sensitivity, Excused excused);

/// Integers and bools: exactly.
Agreement compare_exactly(const Tensor& model, const Tensor& scheduled);

/// Two computations in a dtype of that unit roundoff against the float64 result: the scheduled one may
/// be off by twice what the model is off by in that row of `columns`, and some roundings of its terms
/// or, where these happen to cancel, of half of all elements' terms: kernels sum up in other ways.
Agreement compare_bound(const std::vector<double>& exact, const std::vector<double>& model,
                        const std::vector<double>& scheduled, const Sensitivity& sensitivity,
                        double roundoff, std::size_t columns, Excused excused);

}  // namespace tenon::detail
