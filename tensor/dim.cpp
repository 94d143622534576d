#include "tensor/dim.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <numeric>

#include "tensor/interpreter.h"
#include "tensor/support/check.h"

namespace tenon {
namespace detail {

/// A factor of a term: a symbol, or numerator / denominator rounded down where it does not divide.
struct DimAtom {
  std::shared_ptr<DimSymbol> symbol;
  std::shared_ptr<const std::pair<Dim, Dim>> quotient;
};

struct DimTerm {
  std::int64_t coefficient = 0;
  std::vector<DimAtom> atoms;  // sorted
};

/// A polynomial over atoms with integer coefficients, its terms sorted and none of them zero.
struct DimExpr {
  std::vector<DimTerm> terms;

  static const DimExpr* get(const Dim& dim) { return dim.expr_.get(); }
  static std::int64_t number_of(const Dim& dim) { return dim.value_; }
  static Dim make(std::vector<DimTerm> terms);
  static std::vector<DimTerm> terms_of(const Dim& dim);
};

}  // namespace detail

namespace {

using detail::DimAtom;
using detail::DimExpr;
using detail::DimSymbol;
using detail::DimTerm;
using detail::hint_of;

std::int64_t checked_add(std::int64_t a, std::int64_t b) {
  std::int64_t result = 0;
  TENON_CHECK(!__builtin_add_overflow(a, b, &result), ShapeError,
              "a size overflows 64 bits: {} + {}", a, b);
  return result;
}

std::int64_t checked_multiply(std::int64_t a, std::int64_t b) {
  std::int64_t result = 0;
  TENON_CHECK(!__builtin_mul_overflow(a, b, &result), ShapeError,
              "a size overflows 64 bits: {} * {}", a, b);
  return result;
}

std::int64_t floor_divide(std::int64_t a, std::int64_t b) {
  TENON_CHECK(b != 0, ShapeError, "division of size {} by zero", a);
  if (b == -1) return checked_multiply(a, -1);  // the smallest int64 has no negative
  const std::int64_t quotient = a / b;
  return (a % b != 0 && (a < 0) != (b < 0)) ? quotient - 1 : quotient;
}

int compare(const Dim& a, const Dim& b);

int compare(const DimAtom& a, const DimAtom& b) {
  if (static_cast<bool>(a.symbol) != static_cast<bool>(b.symbol)) return a.symbol ? -1 : 1;
  if (a.symbol) return a.symbol->id < b.symbol->id ? -1 : a.symbol->id > b.symbol->id;
  if (const int order = compare(a.quotient->first, b.quotient->first)) return order;
  return compare(a.quotient->second, b.quotient->second);
}

int compare(const std::vector<DimAtom>& a, const std::vector<DimAtom>& b) {
  if (a.size() != b.size()) return a.size() > b.size() ? -1 : 1;  // higher degree first
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (const int order = compare(a[i], b[i])) return order;
  }
  return 0;
}

/// A total order on expressions as they stand (bindings are not followed).
int compare(const Dim& a, const Dim& b) {
  const auto ta = DimExpr::terms_of(a);
  const auto tb = DimExpr::terms_of(b);
  if (ta.size() != tb.size()) return ta.size() < tb.size() ? -1 : 1;
  for (std::size_t i = 0; i < ta.size(); ++i) {
    if (const int order = compare(ta[i].atoms, tb[i].atoms)) return order;
    if (ta[i].coefficient != tb[i].coefficient) {
      return ta[i].coefficient < tb[i].coefficient ? -1 : 1;
    }
  }
  return 0;
}

bool any_symbol(const Dim& dim, const std::function<bool(const std::shared_ptr<DimSymbol>&)>& f) {
  const DimExpr* expr = DimExpr::get(dim);
  if (expr == nullptr) return false;
  for (const DimTerm& term : expr->terms) {
    for (const DimAtom& atom : term.atoms) {
      if (atom.symbol
              ? f(atom.symbol)
              : any_symbol(atom.quotient->first, f) || any_symbol(atom.quotient->second, f)) {
        return true;
      }
    }
  }
  return false;
}

/// The symbol that an expression consists of, or null.
std::shared_ptr<DimSymbol> bare_symbol(const Dim& dim) {
  const DimExpr* expr = DimExpr::get(dim);
  if (expr == nullptr || expr->terms.size() != 1) return nullptr;
  const DimTerm& term = expr->terms[0];
  if (term.coefficient != 1 || term.atoms.size() != 1) return nullptr;
  return term.atoms[0].symbol;
}

using SymbolValue = std::function<std::int64_t(const DimSymbol&)>;

std::int64_t evaluate_with(const Dim& dim, std::int64_t constant, const SymbolValue& value) {
  const DimExpr* expr = DimExpr::get(dim);
  if (expr == nullptr) return constant;
  std::int64_t sum = 0;
  for (const DimTerm& term : expr->terms) {
    std::int64_t product = term.coefficient;
    for (const DimAtom& atom : term.atoms) {
      std::int64_t factor = 0;
      if (atom.symbol) {
        factor = value(*atom.symbol);
      } else {
        const auto& [numerator, denominator] = *atom.quotient;
        const auto number = [&](const Dim& d) {
          return evaluate_with(d, DimExpr::get(d) ? 0 : hint_of(d), value);
        };
        factor = floor_divide(number(numerator), number(denominator));
      }
      product = checked_multiply(product, factor);
    }
    sum = checked_add(sum, product);
  }
  return sum;
}

std::shared_ptr<GuardList> guard_list(const Dim& a, const Dim& b) {
  std::shared_ptr<GuardList> list;
  const auto find = [&](const std::shared_ptr<DimSymbol>& symbol) {
    list = symbol->guards;
    return list != nullptr;
  };
  if (!any_symbol(a, find)) any_symbol(b, find);
  return list;
}

/// The same expression over symbols of the same ids that know no guard list: a list that held its own
/// symbols would keep itself alive.
Dim detached(const Dim& dim) {
  return dim.substitute([](const DimSymbol& symbol) -> std::optional<Dim> {
    auto copy = std::make_shared<DimSymbol>();
    copy->id = symbol.id;
    copy->name = symbol.name;
    copy->hint = symbol.hint;
    return DimExpr::make({DimTerm{1, {{std::move(copy), nullptr}}}});
  });
}

void record_guard(const Dim& a, DimGuard::Relation relation, const Dim& b) {
  if (const auto list = guard_list(a, b)) list->add({detached(a), relation, detached(b)});
}

void require_no_pattern(const Dim& a, const Dim& b) {
  TENON_CHECK(!a.is_pattern() && !b.is_pattern(), TraceError,
              "a pattern function cannot compare sizes or turn them into numbers: they are unknown "
              "until the pattern is matched");
}

std::string raw_text(const Dim& dim, std::int64_t constant);

std::string atom_text(const DimAtom& atom) {
  if (atom.symbol) return atom.symbol->name;
  const auto text = [](const Dim& d) { return raw_text(d, DimExpr::get(d) ? 0 : hint_of(d)); };
  return fmt::format("(({})//({}))", text(atom.quotient->first), text(atom.quotient->second));
}

std::string raw_text(const Dim& dim, std::int64_t constant) {
  const DimExpr* expr = DimExpr::get(dim);
  if (expr == nullptr) return std::to_string(constant);
  std::string text;
  for (const DimTerm& term : expr->terms) {
    std::int64_t coefficient = term.coefficient;
    if (!text.empty()) {
      text += coefficient < 0 ? " - " : " + ";
      coefficient = std::abs(coefficient);
    }
    const bool show = coefficient != 1 || term.atoms.empty();
    if (show) text += std::to_string(coefficient);
    for (std::size_t i = 0; i < term.atoms.size(); ++i) {
      if (show || i > 0) text += "*";
      text += atom_text(term.atoms[i]);
    }
  }
  return text;
}

std::atomic<std::int64_t> next_symbol_id{0};

Dim make_symbol(DimSymbol symbol) {
  symbol.id = next_symbol_id++;
  DimTerm term{1, {{std::make_shared<DimSymbol>(std::move(symbol)), nullptr}}};
  return DimExpr::make({std::move(term)});
}

/// a / b when every term of a is divisible by the single term of b.
std::optional<Dim> divide_exactly(const Dim& a, const DimTerm& divisor) {
  std::vector<DimTerm> quotient;
  for (DimTerm term : DimExpr::terms_of(a)) {
    if (term.coefficient % divisor.coefficient != 0) return std::nullopt;
    term.coefficient /= divisor.coefficient;
    for (const DimAtom& atom : divisor.atoms) {
      const auto found = std::find_if(term.atoms.begin(), term.atoms.end(),
                                      [&](const DimAtom& x) { return compare(x, atom) == 0; });
      if (found == term.atoms.end()) return std::nullopt;
      term.atoms.erase(found);
    }
    quotient.push_back(std::move(term));
  }
  return DimExpr::make(std::move(quotient));
}

bool same_text(const DimGuard& a, const DimGuard& b) {
  return a.relation == b.relation && compare(a.left, b.left) == 0 && compare(a.right, b.right) == 0;
}

/// The expression over the greatest common divisor of its coefficients: what is 0 where it is 0.
Dim reduced(const Dim& dim) {
  std::vector<DimTerm> terms = DimExpr::terms_of(dim);
  std::int64_t divisor = 0;
  for (const DimTerm& term : terms) divisor = std::gcd(divisor, term.coefficient);
  if (divisor <= 1) return dim;
  for (DimTerm& term : terms) term.coefficient /= divisor;
  return DimExpr::make(std::move(terms));
}

/// Whether two guards say the same of sizes, in whatever form: 0 <= s - 2 and 2 <= s, 2*s == 8 and
/// s == 4.
bool same_fact(const DimGuard& a, const DimGuard& b) {
  if (a.relation != b.relation) return false;
  const bool symmetric =
      a.relation == DimGuard::Relation::equal || a.relation == DimGuard::Relation::not_equal;
  const auto difference = [&](const DimGuard& guard) {
    const Dim plain = guard.right - guard.left;
    return symmetric ? reduced(plain) : plain;
  };
  const Dim left = difference(a);
  const Dim right = difference(b);
  if (compare(left, right) == 0) return true;
  return symmetric && compare(left, Dim(-1) * right) == 0;
}

/// Whether a guard says that the size is not negative.
bool is_said_not_negative(const Dim& dim) {
  const auto list = guard_list(dim, dim);
  if (list == nullptr) return false;
  const DimGuard wanted{Dim(0), DimGuard::Relation::less_equal, dim};
  return std::any_of(list->guards.begin(), list->guards.end(),
                     [&](const DimGuard& guard) { return same_fact(guard, wanted); });
}

/// True when no term is negative; sizes are not, so neither is the sum.
bool is_never_negative(const Dim& dim) {
  const std::vector<DimTerm> terms = DimExpr::terms_of(dim);
  return std::all_of(terms.begin(), terms.end(), [](const DimTerm& term) {
    const bool known = std::all_of(term.atoms.begin(), term.atoms.end(), [](const DimAtom& atom) {
      return atom.symbol || ((is_never_negative(atom.quotient->first) ||
                              is_said_not_negative(atom.quotient->first)) &&
                             is_never_negative(atom.quotient->second));
    });
    return known && term.coefficient >= 0;
  });
}

}  // namespace

namespace detail {

Dim DimExpr::make(std::vector<DimTerm> terms) {
  std::sort(terms.begin(), terms.end(),
            [](const DimTerm& a, const DimTerm& b) { return compare(a.atoms, b.atoms) < 0; });
  std::vector<DimTerm> merged;
  for (DimTerm& term : terms) {
    if (!merged.empty() && compare(merged.back().atoms, term.atoms) == 0) {
      merged.back().coefficient = checked_add(merged.back().coefficient, term.coefficient);
    } else {
      merged.push_back(std::move(term));
    }
    if (merged.back().coefficient == 0) merged.pop_back();
  }
  if (merged.empty()) return Dim(0);
  if (merged.size() == 1 && merged[0].atoms.empty()) return Dim(merged[0].coefficient);
  Dim result;
  result.expr_ = std::make_shared<const DimExpr>(DimExpr{std::move(merged)});
  return result;
}

std::vector<DimTerm> DimExpr::terms_of(const Dim& dim) {
  if (dim.expr_) return dim.expr_->terms;
  if (dim.value_ == 0) return {};
  return {DimTerm{dim.value_, {}}};
}

}  // namespace detail

void GuardList::add(DimGuard guard) {
  // Most are asked again in the same words, which is cheaper to see.
  for (const auto same : {same_text, same_fact}) {
    for (const DimGuard& known : guards) {
      if (same(known, guard)) return;
    }
  }
  guards.push_back(std::move(guard));
}

Dim Dim::symbol(std::string name, std::int64_t hint, std::shared_ptr<GuardList> guards) {
  DimSymbol symbol;
  symbol.name = std::move(name);
  symbol.hint = hint;
  symbol.guards = std::move(guards);
  return make_symbol(std::move(symbol));
}

Dim Dim::of_pattern(std::int64_t value_id, int axis) {
  DimSymbol symbol;
  symbol.name = fmt::format("%{}.size({})", value_id, axis);
  symbol.kind = DimSymbol::Kind::pattern;
  symbol.pattern_value = value_id;
  symbol.pattern_axis = axis;
  return make_symbol(std::move(symbol));
}

Dim Dim::wildcard(int capture) {
  DimSymbol symbol;
  symbol.name = "any()";
  symbol.kind = DimSymbol::Kind::wildcard;
  symbol.capture = capture;
  return make_symbol(std::move(symbol));
}

Dim Dim::resolved() const {
  const bool bound =
      any_symbol(*this, [](const auto& symbol) { return symbol->bound.has_value(); });
  if (!bound) return *this;
  return substitute([](const DimSymbol& symbol) { return symbol.bound; }).resolved();
}

bool Dim::is_constant() const { return !expr_ || !resolved().expr_; }

bool Dim::is_pattern() const {
  return any_symbol(*this,
                    [](const auto& symbol) { return symbol->kind != DimSymbol::Kind::input; });
}

bool Dim::is_wildcard() const {
  const auto symbol = bare_symbol(*this);
  return symbol && symbol->kind == DimSymbol::Kind::wildcard;
}

int Dim::capture() const { return is_wildcard() ? bare_symbol(*this)->capture : -1; }

std::int64_t detail::hint_of(const Dim& dim) {
  return evaluate_with(dim, DimExpr::number_of(dim), [&](const DimSymbol& symbol) {
    if (symbol.kind != DimSymbol::Kind::input) require_no_pattern(dim, dim);
    return symbol.bound ? hint_of(*symbol.bound) : symbol.hint;
  });
}

std::int64_t Dim::hint() const {
  if (!expr_) return value_;
  return current_interpreter().is_recording() ? value() : hint_of(*this);
}

std::int64_t Dim::value() const {
  if (!expr_) return value_;
  require_no_pattern(*this, *this);
  const Dim now = resolved();
  if (now.expr_) record_guard(now, DimGuard::Relation::equal, Dim(hint_of(now)));
  return hint_of(now);
}

std::int64_t Dim::evaluate(const DimBindings& bindings) const {
  return evaluate_with(*this, value_, [&](const DimSymbol& symbol) {
    const auto found = bindings.find(symbol.id);
    if (found != bindings.end()) return found->second;
    TENON_INTERNAL(symbol.bound.has_value(), "size {} has no value", symbol.name);
    return symbol.bound->evaluate(bindings);
  });
}

Dim Dim::substitute(
    const std::function<std::optional<Dim>(const detail::DimSymbol&)>& replacement) const {
  if (!expr_) return *this;
  Dim sum(0);
  for (const DimTerm& term : expr_->terms) {
    Dim product(term.coefficient);
    for (const DimAtom& atom : term.atoms) {
      if (atom.symbol) {
        const auto replaced = replacement(*atom.symbol);
        product *= replaced ? *replaced : DimExpr::make({DimTerm{1, {atom}}});
      } else {
        product *= atom.quotient->first.substitute(replacement) /
                   atom.quotient->second.substitute(replacement);
      }
    }
    sum += product;
  }
  return sum;
}

void Dim::collect_symbols(std::vector<std::int64_t>& ids) const {
  any_symbol(*this, [&](const auto& symbol) {
    ids.push_back(symbol->id);
    return false;
  });
}

std::string Dim::to_string() const {
  const Dim now = resolved();
  return raw_text(now, now.value_);
}

Dim operator+(const Dim& a, const Dim& b) {
  if (!a.expr_ && !b.expr_) return checked_add(a.value_, b.value_);
  auto terms = DimExpr::terms_of(a.resolved());
  for (DimTerm& term : DimExpr::terms_of(b.resolved())) terms.push_back(std::move(term));
  return DimExpr::make(std::move(terms));
}

Dim operator-(const Dim& a, const Dim& b) { return a + Dim(-1) * b; }

Dim operator*(const Dim& a, const Dim& b) {
  if (!a.expr_ && !b.expr_) return checked_multiply(a.value_, b.value_);
  const auto left = DimExpr::terms_of(a.resolved());
  const auto right = DimExpr::terms_of(b.resolved());
  std::vector<DimTerm> product;
  for (const DimTerm& x : left) {
    for (const DimTerm& y : right) {
      DimTerm term{checked_multiply(x.coefficient, y.coefficient), x.atoms};
      term.atoms.insert(term.atoms.end(), y.atoms.begin(), y.atoms.end());
      std::sort(term.atoms.begin(), term.atoms.end(),
                [](const DimAtom& p, const DimAtom& q) { return compare(p, q) < 0; });
      product.push_back(std::move(term));
    }
  }
  return DimExpr::make(std::move(product));
}

Dim operator/(const Dim& a, const Dim& b) {
  const Dim x = a.resolved();
  const Dim y = b.resolved();
  if (!x.expr_ && !y.expr_) return floor_divide(x.value_, y.value_);
  if (compare(x, y) == 0) return 1;
  const auto divisor = DimExpr::terms_of(y);
  TENON_CHECK(!divisor.empty(), ShapeError, "division of size {} by zero", x.to_string());
  if (divisor.size() == 1) {
    if (const auto quotient = divide_exactly(x, divisor[0])) return *quotient;
  }
  const DimAtom atom{nullptr, std::make_shared<const std::pair<Dim, Dim>>(x, y)};
  return DimExpr::make({DimTerm{1, {atom}}});
}

Dim operator%(const Dim& a, const Dim& b) { return a - (a / b) * b; }

bool operator==(const Dim& a, const Dim& b) {
  if (!a.expr_ && !b.expr_) return a.value_ == b.value_;
  const Dim x = a.resolved();
  const Dim y = b.resolved();
  if (compare(x, y) == 0) return true;
  if (!x.expr_ && !y.expr_) return false;
  require_no_pattern(x, y);
  const bool equal = hint_of(x) == hint_of(y);
  record_guard(x, equal ? DimGuard::Relation::equal : DimGuard::Relation::not_equal, y);
  return equal;
}

bool operator<(const Dim& a, const Dim& b) {
  const Dim x = a.resolved();
  const Dim y = b.resolved();
  if (!x.expr_ && !y.expr_) return x.value_ < y.value_;
  require_no_pattern(x, y);
  if (is_never_negative(x - y)) return false;
  if (is_never_negative(y - x - 1)) return true;
  const bool less = hint_of(x) < hint_of(y);
  if (less) {
    record_guard(x, DimGuard::Relation::less, y);
  } else {
    record_guard(y, DimGuard::Relation::less_equal, x);
  }
  return less;
}

bool operator<=(const Dim& a, const Dim& b) { return !(b < a); }

bool Dim::same_as(const Dim& other) const {
  if (!expr_ && !other.expr_) return value_ == other.value_;
  return compare(resolved(), other.resolved()) == 0;
}

std::size_t Dim::hash() const { return std::hash<std::string>{}(to_string()); }

bool DimGuard::holds(const DimBindings& bindings) const {
  std::int64_t a = 0;
  std::int64_t b = 0;
  try {
    a = left.evaluate(bindings);
    b = right.evaluate(bindings);
  } catch (const ShapeError&) {  // a division by zero: the trace has no such sizes
    return false;
  }
  switch (relation) {
    case Relation::equal: return a == b;
    case Relation::not_equal: return a != b;
    case Relation::less: return a < b;
    case Relation::less_equal: return a <= b;
  }
  return false;
}

std::string DimGuard::to_string() const {
  constexpr const char* kSigns[] = {"==", "!=", "<", "<="};
  const auto text = [](const Dim& d) { return raw_text(d, DimExpr::get(d) ? 0 : hint_of(d)); };
  return fmt::format("{} {} {}", text(left), kSigns[static_cast<int>(relation)], text(right));
}

namespace {

/// From now on the symbol is `size`, in the guards of before too: a comparison that is made again, by
/// the verifier say, then finds its guard. What made a symbol never negative stays said.
void bind(const std::shared_ptr<DimSymbol>& symbol, const Dim& size) {
  if (!is_never_negative(size)) record_guard(0, DimGuard::Relation::less_equal, size);
  const Dim plain = detached(size);
  const auto replacement = [&](const DimSymbol& other) {
    return other.id == symbol->id ? std::optional(plain) : std::nullopt;
  };
  const Dim itself = DimExpr::make({DimTerm{1, {{symbol, nullptr}}}});
  for (DimGuard& guard : symbol->guards->guards) {
    if (same_fact(guard, {itself, DimGuard::Relation::equal, plain})) continue;
    guard.left = guard.left.substitute(replacement);
    guard.right = guard.right.substitute(replacement);
  }
  symbol->bound = size;
}

/// The newest symbol that x == y determines, and what it is: of s1 - 2 == 8, s1 and 10. Newer symbols
/// are made of older ones.
std::optional<std::pair<std::shared_ptr<DimSymbol>, Dim>> solved(const Dim& x, const Dim& y) {
  const Dim difference = x - y;
  const auto terms = DimExpr::terms_of(difference);
  std::optional<std::pair<std::shared_ptr<DimSymbol>, Dim>> best;
  for (const DimTerm& term : terms) {
    if (term.atoms.size() != 1 || !term.atoms[0].symbol) continue;
    const auto& symbol = term.atoms[0].symbol;
    if (symbol->kind != DimSymbol::Kind::input || (best && best->first->id > symbol->id)) continue;
    const Dim itself = DimExpr::make({DimTerm{1, term.atoms}});
    const Dim rest = Dim(term.coefficient) * itself - difference;  // coefficient * symbol
    const bool again = any_symbol(rest, [&](const auto& s) { return s->id == symbol->id; });
    const auto others = DimExpr::terms_of(rest);
    const bool divides = std::all_of(others.begin(), others.end(), [&](const DimTerm& other) {
      return other.coefficient % term.coefficient == 0;
    });
    if (again || !divides) continue;
    Dim value = 0;
    for (DimTerm other : others) {
      other.coefficient /= term.coefficient;
      value += DimExpr::make({std::move(other)});
    }
    best = {symbol, value};
  }
  return best;
}

}  // namespace

bool unify(const Dim& a, const Dim& b) {
  const Dim x = a.resolved();
  const Dim y = b.resolved();
  if (x.same_as(y)) return true;
  if (x.is_constant() && y.is_constant()) return false;
  require_no_pattern(x, y);
  if (hint_of(x) != hint_of(y)) return false;
  if (const auto known = solved(x, y)) {
    const auto& [symbol, size] = *known;
    record_guard(DimExpr::make({DimTerm{1, {{symbol, nullptr}}}}), DimGuard::Relation::equal, size);
    bind(symbol, size);
  } else {
    record_guard(x, DimGuard::Relation::equal, y);
  }
  return true;
}

GuardTransaction::GuardTransaction(std::shared_ptr<GuardList> guards,
                                   const std::vector<Dim>& symbols)
    : guards_(std::move(guards)), before_(guards_->guards) {
  for (const Dim& dim : symbols) {
    any_symbol(dim, [&](const auto& symbol) {
      if (!symbol->bound) unbound_.push_back(symbol);
      return false;
    });
  }
}

GuardTransaction::~GuardTransaction() {
  if (committed_) return;
  guards_->guards = std::move(before_);
  for (const auto& symbol : unbound_) symbol->bound.reset();
}

std::vector<DimGuard> GuardTransaction::recorded() const {
  return {guards_->guards.begin() + static_cast<std::ptrdiff_t>(before_.size()),
          guards_->guards.end()};
}

Dim Shape::numel() const {
  Dim product(1);
  for (const Dim& dim : dims_) product *= dim;
  return product;
}

std::string Shape::to_string() const {
  std::string text = "(";
  for (int i = 0; i < rank(); ++i) {
    if (i > 0) text += ", ";
    text += (*this)[i].to_string();
  }
  return text + (rank() == 1 ? ",)" : ")");
}

bool Shape::same_as(const Shape& other) const {
  return rank() == other.rank() &&
         std::equal(begin(), end(), other.begin(),
                    [](const Dim& a, const Dim& b) { return a.same_as(b); });
}

std::vector<std::int64_t> Shape::hints() const {
  std::vector<std::int64_t> sizes;
  for (const Dim& dim : dims_) sizes.push_back(dim.hint());
  return sizes;
}

bool operator==(const Shape& a, const Shape& b) {
  return a.rank() == b.rank() && std::equal(a.begin(), a.end(), b.begin());
}

}  // namespace tenon
