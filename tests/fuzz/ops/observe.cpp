#include "tests/fuzz/ops/observe.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace tenon::op_fuzz {
namespace {

template <class T>
Number number_of(T value) {
  if constexpr (std::is_same_v<T, Half> || std::is_same_v<T, BFloat16>) {
    return static_cast<float>(value);
  } else {
    return static_cast<Number>(value);
  }
}

/// So many different numbers are not drawn twice in one order.
constexpr std::ptrdiff_t kManyKinds = 9;

std::string at_element(std::size_t i, const std::string& found, const std::string& wanted) {
  return fmt::format("element {} is {}; needed {}", i, found, wanted);
}

}  // namespace

Numbers read(const Tensor& tensor) {
  // All of the storage, as it lies: so strides are read here and nowhere else.
  Tensor whole = tensor;
  if (!tensor.device().is_cpu()) {
    const auto count =
        static_cast<std::int64_t>(tensor.storage()->bytes() / size_of(tensor.dtype()));
    whole = Tensor(tensor.storage(), tensor.dtype(), Layout::contiguous({count})).cpu();
  }
  Array places;
  places.sizes.assign(tensor.layout().sizes.begin(), tensor.layout().sizes.end());
  places.strides.assign(tensor.layout().strides.begin(), tensor.layout().strides.end());
  places.offset = tensor.layout().offset;
  return dispatch_all(tensor.dtype(), [&]<class T>() {
    const auto* data = static_cast<const T*>(whole.storage()->data());
    Numbers result;
    for (const std::int64_t place : places.places()) result.push_back(number_of(data[place]));
    return result;
  });
}

std::string compare_spec(const Tensor& tensor, const Array& array) {
  if (!tensor) return "no tensor was returned";
  const Sizes sizes = tensor.shape().hints();
  if (sizes == array.sizes && tensor.dtype() == array.dtype) return "";
  return fmt::format(
      "it is {}; needed {}", tensor.spec().to_string(),
      TensorSpec{array.dtype, Shape(std::vector<Dim>(array.sizes.begin(), array.sizes.end())),
                 tensor.device()}
          .to_string());
}

std::string compare_values(const Numbers& found, const Check& check) {
  const DType dtype = check.handle->array.dtype;
  if (check.allowed.empty()) return compare_exactly(found, rounded(check), check.signed_zero);
  for (std::size_t i = 0; i < found.size(); ++i) {
    const Number allowed = check.allowed[i];
    const Number value = check.value[i];
    if (allowed == kInfinity) continue;
    if (std::isnan(value) || allowed == 0) {
      if (same(found[i], round_to(dtype, value), check.signed_zero)) continue;
      return at_element(i, to_text(found[i]), to_text(round_to(dtype, value)));
    }
    const Number low = round_to(dtype, value - allowed), high = round_to(dtype, value + allowed);
    if (found[i] >= low && found[i] <= high) continue;
    return at_element(i, to_text(found[i]),
                      fmt::format("{} ± {}", to_text(value), static_cast<double>(allowed)));
  }
  return "";
}

std::string compare_exactly(const Numbers& found, const Numbers& wanted, bool signed_zero) {
  for (std::size_t i = 0; i < found.size(); ++i) {
    if (same(found[i], wanted[i], signed_zero)) continue;
    return at_element(i, to_text(found[i]), to_text(wanted[i]));
  }
  return "";
}

std::string compare_within(const Numbers& found, const Numbers& wanted, const Numbers& errors) {
  for (std::size_t i = 0; i < found.size(); ++i) {
    if (same(found[i], wanted[i], false) || errors[i] == kInfinity) continue;
    if (std::fabs(found[i] - wanted[i]) <= errors[i]) continue;
    return at_element(i, to_text(found[i]),
                      fmt::format("{} ± {}", to_text(wanted[i]), static_cast<double>(errors[i])));
  }
  return "";
}

std::string compare_draw(const Numbers& found, const Draw& draw,
                         const std::map<std::string, Numbers>& drawn) {
  for (std::size_t i = 0; i < found.size(); ++i) {
    const bool is_within = found[i] >= draw.low && (found[i] < draw.high || draw.low == draw.high);
    const bool is_whole = !draw.integers || found[i] == std::trunc(found[i]);
    if (std::isfinite(found[i]) && is_within && is_whole) continue;
    return at_element(i, to_text(found[i]),
                      fmt::format("{} in [{}, {})", draw.integers ? "an integer" : "a number",
                                  to_text(draw.low), to_text(draw.high)));
  }
  Numbers sorted = found;
  std::sort(sorted.begin(), sorted.end());
  for (std::size_t i = 0; draw.permutation && i < sorted.size(); ++i) {
    if (sorted[i] != static_cast<Number>(i)) return fmt::format("{} is missing", i);
  }
  const auto kinds = std::unique(sorted.begin(), sorted.end()) - sorted.begin();
  const auto before = drawn.find(draw.key);
  if (before != drawn.end()) {
    const std::string difference = compare_exactly(found, before->second, true);
    if (!difference.empty()) return "after the same seed and calls " + difference;
  }
  for (const auto& [key, values] : drawn) {
    if (key != draw.key && kinds >= kManyKinds && values == found) {
      return "the numbers of an earlier draw came again";
    }
  }
  return "";
}

}  // namespace tenon::op_fuzz
