#include "tensor/calls/random_call.h"

#include <cmath>
#include <limits>

#include "tensor/support/check.h"
#include "tensor/support/convert.h"

namespace tenon::ops {
namespace {

/// The largest number of T that is not above `value`, which is within T's range.
template <class T>
double rounded_down(double value) {
  if constexpr (std::is_same_v<T, double>) {
    return value;
  } else if constexpr (std::is_integral_v<T>) {
    return std::floor(value);
  } else {
    const auto nearest = static_cast<T>(random_values::float_below(value));
    const bool above = static_cast<double>(static_cast<float>(nearest)) > value;
    return static_cast<double>(static_cast<float>(random_values::lowered(nearest, above)));
  }
}

/// The least and the largest finite number of T; of integers the first one beyond.
template <class T>
std::pair<double, double> range_of() {
  if constexpr (std::is_same_v<T, Half>) {
    return {-65504, 65504};
  } else if constexpr (std::is_same_v<T, BFloat16>) {
    return {-0x1.fep127, 0x1.fep127};
  } else {
    const auto largest = static_cast<double>(std::numeric_limits<T>::max());
    return {static_cast<double>(std::numeric_limits<T>::lowest()),
            std::is_integral_v<T> ? largest + 1 : largest};
  }
}

/// All integers from the first to the second are numbers of T.
template <class T>
std::pair<std::int64_t, std::int64_t> exact_integers() {
  if constexpr (std::is_integral_v<T>) {
    return {static_cast<std::int64_t>(std::numeric_limits<T>::lowest()),
            static_cast<std::int64_t>(std::numeric_limits<T>::max())};
  } else {
    const auto largest = static_cast<std::int64_t>(1 / unit_roundoff(dtype_of<T>));
    return {-largest, largest};
  }
}

}  // namespace

RandomCall::RandomCall(const Op& op, Generator* generator) {
  Generator& source = generator != nullptr ? *generator : default_generator();
  const bool own = &source != &default_generator();
  runs_now_ = own && current_interpreter().is_recording();
  TENON_CHECK(
      !runs_now_ || source.is_of_trace(), TraceError,
      "[{}] was given a generator inside a trace: a Graph draws from the generator of each "
      "run, new numbers every time; leave it out, or draw outside of the trace and pass the "
      "tensor in",
      op.name);
  if (!own && counts_random_sites()) {
    site_ = next_dropout_site();
    return;
  }
  RandomState random;
  site_ = kStreamSite | static_cast<std::int64_t>(source.next_tensor_stream(&random));
  call_site_ = current_call_site();
  call_site_.random = random;
  scope_.emplace(call_site_);
}

std::vector<TensorSpec> random_tensor_spec(const InferContext& context,
                                           const RandomTensorAttrs& attrs) {
  for (const Dim& size : attrs.shape) {
    TENON_CHECK(!size.is_constant() || size.value() >= 0, ShapeError,
                "[{}] shape {}; needed sizes of 0 or more", context.op().name,
                attrs.shape.to_string());
  }
  return {{attrs.dtype, attrs.shape, attrs.device}};
}

DropoutKey random_tensor_key(const KernelArgs& args, std::int64_t site) {
  TENON_CHECK(site >= 0 && (site < kMaxDropoutSites || (site & kStreamSite) != 0), ValueError,
              "[{}] site {}; needed a number from 0 to {}", args.name(), site,
              kMaxDropoutSites - 1);
  return tenon::random_tensor_key(args.random.seed, args.random.forward, args.random.forward_cell,
                                  site);
}

void check_uniform(double low, double high, DType dtype) {
  TENON_CHECK(std::isfinite(low) && std::isfinite(high) && low <= high, ValueError,
              "[uniform] bounds {} and {}; needed finite numbers, low <= high", low, high);
  const auto [least, largest] = dispatch_all(dtype, []<typename T>() { return range_of<T>(); });
  TENON_CHECK(low >= least && high <= largest, ValueError,
              "[uniform] bounds {} and {} for {}; needed numbers from {} to {}", low, high,
              name(dtype), least, largest);
}

random_values::UniformRange uniform_range(double low, double high, DType dtype) {
  const double unit = std::isfinite(high - low) ? 1 : 2;
  random_values::UniformRange range{low / unit, high / unit - low / unit, unit};
  dispatch_all(dtype, [&]<typename T>() {
    range.least = -rounded_down<T>(-low);
    range.largest = rounded_down<T>(std::nextafter(high, -HUGE_VAL));
    if (low == high) {
      range.least = range.largest =
          static_cast<double>(static_cast<compute_type<T>>(cpu::convert<T>(low)));
    } else if (range.least > range.largest) {  // it holds no number of the dtype
      range.least = range.largest = rounded_down<T>(low);
    }
  });
  return range;
}

void check_integers(const Op& op, std::int64_t least, std::int64_t largest, DType dtype) {
  const auto [from, to] = dispatch_all(dtype, []<typename T>() { return exact_integers<T>(); });
  TENON_CHECK(least >= from && largest <= to, ValueError,
              "[{}] integers from {} to {} in {}, which holds those from {} to {} exactly; give "
              "another dtype",
              op.name, least, largest, name(dtype), from, to);
}

}  // namespace tenon::ops
