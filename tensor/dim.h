// Dim: a size that is a number in eager code and an expression under the tracer.
//
// A traced model's inputs have symbolic sizes with example values (hints). Arithmetic on them stays
// symbolic; turning one into an int or a condition records a guard, which `lower` checks against the
// real sizes. So one trace serves every batch size and sequence length that keeps its guards.
#pragma once

#include <concepts>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "tensor/number.h"

namespace tenon {

class Dim;
class Scalar;

namespace detail {
struct DimSymbol;
struct DimExpr;
/// The number with example sizes put in, without a guard: for errors, and for what adds a guard
/// itself or lets the outcome depend on no size.
std::int64_t hint_of(const Dim& dim);
Number hint_of(const Scalar& scalar);
}  // namespace detail

/// What a trace assumed about sizes: `left relation right`.
struct DimGuard;

/// The guards of one trace; symbols made with it report to it.
struct GuardList {
  std::vector<DimGuard> guards;
  /// A guard recorded twice, or one that says the same in another form, is kept once.
  void add(DimGuard guard);
};

/// Values of symbols by id, for Dim::evaluate.
using DimBindings = std::unordered_map<std::int64_t, std::int64_t>;

/// A tensor's size along one axis.
class Dim {
 public:
  Dim() = default;
  template <std::integral I>
  Dim(I value) : value_(static_cast<std::int64_t>(value)) {}

  /// A fresh symbol with an example value; guards on it go to `guards`.
  static Dim symbol(std::string name, std::int64_t hint, std::shared_ptr<GuardList> guards);
  /// `value.size(axis)` of a pattern's value: no number is known until the pattern is matched.
  static Dim of_pattern(std::int64_t value_id, int axis);
  /// A wildcard that matches any size; `capture` tells captures apart (-1: none).
  static Dim wildcard(int capture);

  /// No unbound symbol is left in it.
  bool is_constant() const;
  /// It holds a wildcard or a pattern's size.
  bool is_pattern() const;
  bool is_wildcard() const;
  int capture() const;
  /// The number with example sizes put in. No guard when a Graph is read; code that is traced takes
  /// the size as a number with it, which is a guard as by value().
  std::int64_t hint() const;
  /// The number; for a symbolic size this records the guard `*this == number`.
  std::int64_t value() const;
  explicit operator std::int64_t() const { return value(); }

  /// The number when symbols have the given values; InternalError for a symbol that has none.
  std::int64_t evaluate(const DimBindings& bindings) const;
  /// The same expression with each symbol for which `replacement(id)` has a Dim replaced by it.
  Dim substitute(
      const std::function<std::optional<Dim>(const detail::DimSymbol&)>& replacement) const;
  /// Adds the ids of the symbols in it to `ids`.
  void collect_symbols(std::vector<std::int64_t>& ids) const;
  /// Bound symbols replaced by what they were bound to.
  Dim resolved() const;

  /// "128", "s0", "16*s0*s1".
  std::string to_string() const;

  Dim& operator+=(const Dim& other) { return *this = *this + other; }
  Dim& operator*=(const Dim& other) { return *this = *this * other; }
  friend Dim operator+(const Dim& a, const Dim& b);
  friend Dim operator-(const Dim& a, const Dim& b);
  friend Dim operator*(const Dim& a, const Dim& b);
  /// Division rounded towards minus infinity; exact where the divisor divides the expression.
  friend Dim operator/(const Dim& a, const Dim& b);
  friend Dim operator%(const Dim& a, const Dim& b);

  /// Comparisons decide on the expression where they can and on the hints, with a guard, where not.
  friend bool operator==(const Dim& a, const Dim& b);
  friend bool operator<(const Dim& a, const Dim& b);
  friend bool operator<=(const Dim& a, const Dim& b);
  friend bool operator>(const Dim& a, const Dim& b) { return b < a; }
  friend bool operator>=(const Dim& a, const Dim& b) { return b <= a; }

  /// The same expression, decided without hints and without a guard.
  bool same_as(const Dim& other) const;
  std::size_t hash() const;

 private:
  friend struct detail::DimExpr;
  std::int64_t value_ = 0;
  std::shared_ptr<const detail::DimExpr> expr_;  // null for a number
};

struct DimGuard {
  enum class Relation : std::uint8_t { equal, not_equal, less, less_equal };
  Dim left;
  Relation relation = Relation::equal;
  Dim right;
  bool holds(const DimBindings& bindings) const;
  std::string to_string() const;
};

/// Requires a == b: true when it holds by expression, or by the hints, and then a guard is recorded
/// and a bare symbol is bound to the other side, in earlier guards too. False when the hints differ.
bool unify(const Dim& a, const Dim& b);

/// Undoes, unless committed, the guards and bindings made on a trace's symbols during its lifetime.
class GuardTransaction {
 public:
  GuardTransaction(std::shared_ptr<GuardList> guards, const std::vector<Dim>& symbols);
  ~GuardTransaction();
  GuardTransaction(const GuardTransaction&) = delete;
  GuardTransaction& operator=(const GuardTransaction&) = delete;
  /// Guards recorded since the start.
  std::vector<DimGuard> recorded() const;
  void commit() { committed_ = true; }

 private:
  std::shared_ptr<GuardList> guards_;
  std::vector<DimGuard> before_;
  std::vector<std::shared_ptr<detail::DimSymbol>> unbound_;
  bool committed_ = false;
};

namespace detail {
/// One symbol; `bound` is set once, by unify.
struct DimSymbol {
  std::int64_t id = 0;
  std::string name;
  std::int64_t hint = 0;
  std::shared_ptr<GuardList> guards;
  std::optional<Dim> bound;
  enum class Kind : std::uint8_t { input, pattern, wildcard } kind = Kind::input;
  std::int64_t pattern_value = -1;  // kind pattern: whose size
  int pattern_axis = 0;
  int capture = -1;  // kind wildcard
};
}  // namespace detail

/// The sizes of a tensor, one Dim an axis.
class Shape {
 public:
  Shape() = default;
  Shape(std::initializer_list<Dim> dims) : dims_(dims) {}
  explicit Shape(std::vector<Dim> dims) : dims_(std::move(dims)) {}

  int rank() const { return static_cast<int>(dims_.size()); }
  bool empty() const { return dims_.empty(); }
  /// Negative axes count from the end; no bounds check beyond the vector's own.
  const Dim& operator[](int axis) const { return dims_[index(axis)]; }
  Dim& operator[](int axis) { return dims_[index(axis)]; }
  auto begin() const { return dims_.begin(); }
  auto end() const { return dims_.end(); }
  void push_back(Dim dim) { dims_.push_back(std::move(dim)); }
  void insert(int axis, Dim dim) { dims_.insert(dims_.begin() + axis, std::move(dim)); }
  void erase(int axis) { dims_.erase(dims_.begin() + axis); }
  const std::vector<Dim>& dims() const { return dims_; }

  Dim numel() const;
  /// "(2, s0, 1024)".
  std::string to_string() const;
  /// Same rank and Dim::same_as on every axis.
  bool same_as(const Shape& other) const;
  /// Dim::hint of each size.
  std::vector<std::int64_t> hints() const;
  friend bool operator==(const Shape& a, const Shape& b);

 private:
  std::size_t index(int axis) const {
    return static_cast<std::size_t>(axis < 0 ? axis + rank() : axis);
  }
  std::vector<Dim> dims_;
};

/// A number of an op's attributes: c · Π dim^e, so that 1/√(x.size(-1)) stays symbolic. Adding to a
/// symbolic one, or asking its value, records guards on its sizes. An integer stays exact.
class Scalar {
 public:
  Scalar() = default;
  template <class T>
  requires std::integral<T> || std::floating_point<T> Scalar(T value) : coefficient_(value) {}
  Scalar(const Number& value) : coefficient_(value) {}
  Scalar(const Dim& dim);
  static Scalar wildcard(int capture);

  bool is_constant() const { return factors_.empty() && !wildcard_; }
  bool is_wildcard() const { return wildcard_; }
  int capture() const { return capture_; }
  /// The number; records guards on symbolic sizes.
  Number number() const;
  /// With the hints put in; a guard as for Dim::hint.
  Number hint_number() const;
  /// When symbols have the given values.
  Number evaluate_number(const DimBindings& bindings) const;
  // The doubles nearest to these.
  double value() const { return number().to_double(); }
  double hint() const { return hint_number().to_double(); }
  double evaluate(const DimBindings& bindings) const {
    return evaluate_number(bindings).to_double();
  }
  Scalar substitute(const std::function<std::optional<Dim>(const detail::DimSymbol&)>& f) const;
  bool is_pattern() const;
  std::string to_string() const;
  bool same_as(const Scalar& other) const;
  friend bool operator==(const Scalar& a, const Scalar& b) { return a.same_as(b); }
  friend Scalar operator*(const Scalar& a, const Scalar& b);
  friend Scalar operator/(const Scalar& a, const Scalar& b);
  friend Scalar operator+(const Scalar& a, const Scalar& b) { return a.number() + b.number(); }
  friend Scalar operator-(const Scalar& a, const Scalar& b) { return a.number() - b.number(); }
  friend Scalar operator-(const Scalar& a) { return Scalar(-1) * a; }
  /// a to the power of a number.
  friend Scalar pow(const Scalar& a, double exponent);

 private:
  friend Number detail::hint_of(const Scalar& scalar);
  Scalar simplified() const;
  template <class F>
  Number with_sizes(const F& size) const;
  Number coefficient_;
  std::vector<std::pair<Dim, double>> factors_;
  bool wildcard_ = false;
  int capture_ = -1;
};

// A size and a floating-point number give a Scalar: `1.0 / x.size(0)`.
template <std::floating_point F>
Scalar operator+(const Dim& a, F b) {
  return Scalar(a) + Scalar(b);
}
template <std::floating_point F>
Scalar operator+(F a, const Dim& b) {
  return Scalar(a) + Scalar(b);
}
template <std::floating_point F>
Scalar operator-(const Dim& a, F b) {
  return Scalar(a) - Scalar(b);
}
template <std::floating_point F>
Scalar operator-(F a, const Dim& b) {
  return Scalar(a) - Scalar(b);
}
template <std::floating_point F>
Scalar operator*(const Dim& a, F b) {
  return Scalar(a) * Scalar(b);
}
template <std::floating_point F>
Scalar operator*(F a, const Dim& b) {
  return Scalar(a) * Scalar(b);
}
template <std::floating_point F>
Scalar operator/(const Dim& a, F b) {
  return Scalar(a) / Scalar(b);
}
template <std::floating_point F>
Scalar operator/(F a, const Dim& b) {
  return Scalar(a) / Scalar(b);
}

/// √dim, kept symbolic: `scores / sqrt(q.size(-1))`.
Scalar sqrt(const Dim& dim);
Scalar sqrt(const Scalar& value);

}  // namespace tenon
