// Choices that the calls of fuzz_ops are drawn with: registers that fit, sizes, numbers. Most calls
// are right; some are wrong on purpose, as refusals are part of what is compared.
#pragma once

#include <functional>
#include <optional>
#include <vector>

#include "tests/fuzz/ops/reference.h"
#include "tests/fuzz/random_source.h"

namespace tenon::op_fuzz {

class Drawing {
 public:
  Drawing(fuzz::RandomSource& choices, const Reference& state, const Program& program_so_far)
      : source(choices), reference(state), program(program_so_far) {}

  fuzz::RandomSource& source;
  const Reference& reference;
  const Program& program;

  const Handle& at(int reg) const { return *reference.registers.at(reg); }
  const Array& array(int reg) const { return at(reg).array; }
  /// A register, the later ones more often; nothing where none is there (that fits).
  std::optional<int> any() const;
  std::optional<int> that(const std::function<bool(const Handle&)>& fits) const;
  std::optional<int> floating() const;
  /// One whose dtype is this one's and whose sizes broadcast with it; seldom any other.
  std::optional<int> beside(int reg) const;
  std::optional<int> of_dtype(DType dtype) const;

  /// Made before the module is called.
  bool is_before(const Handle& handle) const;

  /// Seldom true: draw something wrong.
  bool wrong() const { return source.below(40) == 0; }
  DType dtype() const;
  DType float_dtype() const;
  std::int64_t size() const;
  Sizes sizes(int max_rank = 4, std::int64_t max_numel = 300) const;
  /// An axis, from the front or the end; seldom outside.
  std::int64_t axis(int rank) const;
  /// A number for a call with this tensor; often close to one of its elements.
  Literal literal(const Array& array) const;
  Number value(DType dtype, bool special) const;
  Numbers values(DType dtype, std::int64_t count) const;
};

/// A whole program. `on_device`: on a GPU, where indices are not checked.
Program draw_program(fuzz::RandomSource& source, bool on_device);

}  // namespace tenon::op_fuzz
