// Scalar: numbers of attributes that may depend on sizes, c · Π dim^e.
#include <algorithm>

#include "tensor/dim.h"
#include "tensor/support/check.h"

namespace tenon {

Scalar::Scalar(const Dim& dim) : coefficient_(1), factors_{{dim, 1.0}} { *this = simplified(); }

Scalar Scalar::wildcard(int capture) {
  Scalar result;
  result.wildcard_ = true;
  result.capture_ = capture;
  return result;
}

/// Constant factors multiplied into the coefficient, equal sizes collected, the rest in text order.
Scalar Scalar::simplified() const {
  Scalar result;
  result.coefficient_ = coefficient_;
  result.wildcard_ = wildcard_;
  result.capture_ = capture_;
  for (const auto& [dim, exponent] : factors_) {
    const Dim now = dim.resolved();
    const auto same = std::find_if(result.factors_.begin(), result.factors_.end(),
                                   [&](const auto& f) { return f.first.same_as(now); });
    if (same == result.factors_.end()) {
      result.factors_.emplace_back(now, exponent);
    } else {
      same->second += exponent;
    }
  }
  std::erase_if(result.factors_, [&](const auto& factor) {
    if (factor.second == 0) return true;
    if (!factor.first.is_constant()) return false;
    result.coefficient_ =
        result.coefficient_ * pow(Number(detail::hint_of(factor.first)), factor.second);
    return true;
  });
  std::sort(result.factors_.begin(), result.factors_.end(),
            [](const auto& a, const auto& b) { return a.first.to_string() < b.first.to_string(); });
  return result;
}

/// The number when each size is what `size` says.
template <class F>
Number Scalar::with_sizes(const F& size) const {
  Number result = coefficient_;
  for (const auto& [dim, exponent] : factors_) result = result * pow(Number(size(dim)), exponent);
  return result;
}

Number detail::hint_of(const Scalar& scalar) {
  return scalar.with_sizes([](const Dim& dim) { return hint_of(dim); });
}

Number Scalar::hint_number() const {
  return with_sizes([](const Dim& dim) { return dim.hint(); });
}

Number Scalar::number() const {
  return with_sizes([](const Dim& dim) { return dim.value(); });
}

Number Scalar::evaluate_number(const DimBindings& bindings) const {
  return with_sizes([&](const Dim& dim) { return dim.evaluate(bindings); });
}

Scalar Scalar::substitute(
    const std::function<std::optional<Dim>(const detail::DimSymbol&)>& f) const {
  Scalar result = *this;
  for (auto& factor : result.factors_) factor.first = factor.first.substitute(f);
  return result.simplified();
}

bool Scalar::is_pattern() const {
  return wildcard_ || std::any_of(factors_.begin(), factors_.end(),
                                  [](const auto& factor) { return factor.first.is_pattern(); });
}

std::string Scalar::to_string() const {
  if (wildcard_) return "any()";
  const Scalar now = simplified();
  std::string text = now.coefficient_.to_string();
  for (const auto& [dim, exponent] : now.factors_) {
    text += fmt::format("*({})^{}", dim.to_string(), exponent);
  }
  return text;
}

bool Scalar::same_as(const Scalar& other) const {
  const Scalar a = simplified();
  const Scalar b = other.simplified();
  if (a.wildcard_ != b.wildcard_ || a.capture_ != b.capture_) return false;
  return a.coefficient_.same_as(b.coefficient_) && a.factors_.size() == b.factors_.size() &&
         std::equal(a.factors_.begin(), a.factors_.end(), b.factors_.begin(),
                    [](const auto& x, const auto& y) {
                      return x.second == y.second && x.first.same_as(y.first);
                    });
}

Scalar operator*(const Scalar& a, const Scalar& b) {
  TENON_CHECK(!a.wildcard_ && !b.wildcard_, TraceError,
              "a pattern cannot compute with any(): pass it to an op as it is");
  Scalar result = a;
  result.coefficient_ = a.coefficient_ * b.coefficient_;
  result.factors_.insert(result.factors_.end(), b.factors_.begin(), b.factors_.end());
  return result.simplified();
}

Scalar pow(const Scalar& a, double exponent) {
  TENON_CHECK(!a.wildcard_, TraceError,
              "a pattern cannot compute with any(): pass it to an op as it is");
  Scalar result = a;
  result.coefficient_ = pow(a.coefficient_, exponent);
  for (auto& factor : result.factors_) factor.second *= exponent;
  return result.simplified();
}

Scalar operator/(const Scalar& a, const Scalar& b) {
  if (a.is_constant() && b.is_constant()) return a.coefficient_ / b.coefficient_;
  return a * pow(b, -1.0);
}

Scalar sqrt(const Dim& dim) { return pow(Scalar(dim), 0.5); }
Scalar sqrt(const Scalar& value) { return pow(value, 0.5); }

}  // namespace tenon
