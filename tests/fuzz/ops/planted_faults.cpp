#include "tests/fuzz/ops/planted_faults.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "autograd/autograd.h"
#include "tensor/error.h"
#include "tensor/functional.h"
#include "tensor/interpreter.h"
#include "tensor/random.h"
#include "tests/fuzz/ops/observe.h"

namespace tenon::op_fuzz {
namespace {

using I = const Invocation&;

/// The right way.
Tensor right(I c) { return c.step.call->run(c); }

bool is_traced(const Tensor& tensor) { return !tensor.is_eager(); }

Tensor doubles(const Numbers& numbers, const Shape& shape, TensorOptions options) {
  std::vector<double> values;
  for (const Number number : numbers) values.push_back(static_cast<double>(number));
  return tensor(std::span<const double>(values), shape, options);
}

/// All of a tensor's storage, as it lies.
Tensor storage_of(const Tensor& tensor) {
  const auto count = static_cast<std::int64_t>(tensor.storage()->bytes() / size_of(tensor.dtype()));
  return Tensor(tensor.storage(), tensor.dtype(), Layout::contiguous({count}));
}

Array layout_of(const Tensor& tensor) {
  Array array;
  array.sizes.assign(tensor.layout().sizes.begin(), tensor.layout().sizes.end());
  array.strides.assign(tensor.layout().strides.begin(), tensor.layout().strides.end());
  array.offset = tensor.layout().offset;
  return array;
}

// --- copies -------------------------------------------------------------------------------------

/// Element by element, so that what was written is read again.
Tensor copy_without_a_copy(I c) {
  Tensor target = c[0];
  const bool plain = is_traced(target) || is_traced(c[1]) || target.storage() != c[1].storage() ||
                     target.dtype() == DType::int64 || target.requires_grad() ||
                     !(target.shape().hints() == c[1].shape().hints());
  if (plain || layout_of(target).overlaps_itself()) return right(c);
  const NoGradGuard no_grad;
  Tensor whole = storage_of(target);
  Numbers cells = read(whole);
  const auto to = layout_of(target).places(), from = layout_of(c[1]).places();
  for (std::size_t i = 0; i < to.size(); ++i) {
    cells[static_cast<std::size_t>(to[i])] = cells[static_cast<std::size_t>(from[i])];
  }
  whole.copy_(
      doubles(cells, {static_cast<std::int64_t>(cells.size())}, {target.dtype(), c.device}));
  return {};
}

/// A target whose elements share memory is written.
Tensor copy_into_expanded(I c) {
  try {
    return right(c);
  } catch (const ValueError&) {
    return {};
  }
}

/// A strided source is read as if it were contiguous.
Tensor copy_of_strided(I c) {
  if (is_traced(c[1]) || c[1].is_contiguous() || c[1].layout().numel() == 0) return right(c);
  Tensor target = c[0];
  const Tensor source(c[1].storage(), c[1].dtype(), Layout::contiguous(c[1].layout().sizes));
  target.copy_(source);
  return {};
}

// --- memory -------------------------------------------------------------------------------------

/// A call that returns its operand itself makes another tensor of it in a trace only.
Tensor unseen_identity(I c) { return is_traced(c[0]) ? c[0].clone() : right(c); }
Tensor copying_view(I c) { return right(c).clone(); }

Tensor trace_without_clone(I c) {
  if (is_traced(c[0])) throw TraceError("the data of a traced tensor was asked for");
  return right(c);
}

// --- gradients ----------------------------------------------------------------------------------

Tensor without_gradient(I c) { return right(c).detach(); }
Tensor product_without_a_gradient(I c) { return mul(c[0].detach(), c[1]); }

/// A leaf is changed in place as if grad mode were off.
Tensor write_into_a_leaf(I c) {
  const NoGradGuard no_grad;
  return right(c);
}

/// The factor is rounded to the gradient's dtype.
Tensor clip_in_16_bits(I c) {
  const bool all = std::all_of(c.operands.begin(), c.operands.end(),
                               [](const Tensor& leaf) { return leaf.grad().defined(); });
  if (!all) return right(c);
  const NoGradGuard no_grad;
  std::vector<Tensor> before;
  for (const Tensor& leaf : c.operands) before.push_back(leaf.grad());
  const Tensor norm = right(c);
  const double factor = std::min(1.0, c.step.literal.real / (norm.item() + 1e-6));
  for (std::size_t i = 0; i < before.size(); ++i) {
    Tensor leaf = c[i];
    const Tensor rounded = full({}, factor, {leaf.dtype(), c.device});
    leaf.set_grad(mul(before[i], rounded));
  }
  return norm;
}

// --- numbers ------------------------------------------------------------------------------------

Tensor eq_through_double(I c) {
  return eq(c[0], Scalar(static_cast<double>(c.step.literal.number())));
}

/// eq of two tensors, compared as doubles.
Tensor eq_of_doubles(I c) {
  if (c[0].dtype() != c[1].dtype()) return right(c);
  return eq(c[0].to(DType::float64), c[1].to(DType::float64));
}

/// By way of float32.
Tensor rounded_twice(I c) {
  if (!is_float(c.step.dtype)) return right(c);
  return cast(doubles(c.step.values, c.shape(), {DType::float32, c.device}), c.step.dtype);
}

Tensor number_on_the_wrong_side(I c) { return sub(c[0], c.scalar()); }

/// The tensor's name stands for the result from here on, and its memory is as it was.
Tensor assigns_nothing(I c) {
  try {
    const Tensor before = c[0].clone();
    right(c);
    const NoGradGuard no_grad;
    if (!is_traced(c[0])) Tensor(c[0]).copy_(before);
  } catch (const TraceError&) {
  }
  return {};
}

bool is_for_storage(const Tensor& tensor) { return !computes(tensor.dtype()); }

Tensor computes_with_int8(I c) {
  if (!is_for_storage(c[0]) || c[0].dtype() != c[1].dtype()) return right(c);
  return cast(mul(c[0].to(DType::int32), c[1].to(DType::int32)), c[0].dtype());
}
Tensor compares_no_int8(I c) {
  if (is_for_storage(c[0])) throw DTypeError("[lt] of a storage dtype");
  return right(c);
}
Tensor takes_no_int16_index(I c) {
  if (is_for_storage(c[1])) throw DTypeError("[gather] index of a storage dtype");
  return right(c);
}
Tensor item_through_double(I c) {
  const Tensor result = right(c);
  return result.dtype() == DType::int64 ? result.to(DType::float64).to(DType::int64) : result;
}

/// Out of range, a number becomes an integer modulo the range.
Tensor without_saturation(I c) {
  Numbers values = c.step.values;
  if (is_float(c.step.dtype)) return right(c);
  for (Number& value : values) {
    if (std::fabs(value) < 0x1p62L) value = wrap(c.step.dtype, as_integer(std::trunc(value)));
  }
  return doubles(values, c.shape(), c.options());
}

Tensor casts_by_rounding(I c) {
  if (!is_float(c[0].dtype()) || is_float(c.step.dtype) || c.step.dtype == DType::boolean) {
    return right(c);
  }
  return cast(c[0] + 0.5, c.step.dtype);
}

Tensor promotes(I c) {
  return add(c[0], c[1].dtype() == c[0].dtype() ? c[1] : c[1].to(c[0].dtype()));
}

/// A fraction is cut off for an integer tensor.
Tensor truncates_the_number(I c) {
  if (is_float(c[0].dtype())) return right(c);
  return add(c[0],
             Scalar(std::trunc(c.step.literal.real + static_cast<double>(c.step.literal.integer))));
}

Tensor flips_zero(I c) {
  if (!is_float(c[0].dtype())) return right(c);
  return sub(mul(c[0], 0.0), c[0]);
}

// --- random -------------------------------------------------------------------------------------

/// Rounded to nearest, which may be `high`.
Tensor uniform_up_to_high(I c) {
  return cast(uniform(c.shape(), c.step.literal.real, static_cast<double>(c.step.values.at(0)),
                      {DType::float64, c.device}),
              c.step.dtype);
}

Tensor noise_of_the_trace(I c) {
  if (!c.traced) return right(c);
  std::int64_t count = 1;
  for (const std::int64_t size : c.step.numbers) count *= size;
  Numbers values;
  for (std::int64_t i = 0; i < count; ++i) values.push_back(static_cast<Number>(i % 5) / 4);
  return doubles(values, c.shape(), c.options());
}

Tensor seeds_nothing(I) { return {}; }

Tensor next_site(I c) {
  right(c);
  return right(c);
}

Tensor refused_dropout_takes_a_number(I c) {
  try {
    return right(c);
  } catch (const Error&) {
    if (!c.traced) next_dropout_site();
    throw;
  }
}

Tensor scales_in_evaluation(I c) { return mul(right(c), c.step.literal.real == 0.5 ? 2.0 : 1.0); }

// --- layers -------------------------------------------------------------------------------------

Tensor batch_of_nothing(I c) {
  const Tensor result = right(c);
  if (is_traced(c[0]) || c[0].layout().numel() != 0) return result;
  const NoGradGuard no_grad;
  for (const std::size_t i : {1, 2}) {
    Tensor statistic = c[i];
    statistic.mul_(std::numeric_limits<double>::quiet_NaN());
  }
  return result;
}

/// Softmax written out: a row that sees no key is NaN.
Tensor attention_by_softmax(I c) {
  const bool masked = c.operands.size() > 3 && c[3].dtype() == DType::boolean;
  if (!masked) return right(c);
  const double scale = 1 / std::sqrt(static_cast<double>(detail::hint_of(c[0].size(-1))));
  const Tensor scores = matmul(c[0], transpose(c[1], -2, -1)) * scale;
  const Tensor hidden = masked_fill(scores, eq(c[3], 0), -std::numeric_limits<double>::infinity());
  return matmul(softmax(hidden, -1), c[2]);
}

Tensor loss_that_broadcasts(I c) {
  const Tensor squares = square(c[0] - c[1]);
  const auto reduction = static_cast<Reduction>(c.number(0));
  if (reduction == Reduction::none) return squares;
  return reduction == Reduction::mean ? mean(squares) : sum(squares);
}

// --- state --------------------------------------------------------------------------------------

/// The step is rounded to the dtype that the parameter had when the optimizer was made.
Tensor steps_in_the_old_dtype(I c) { return right(c).to(c[0].dtype()).to(c.step.dtype); }

/// The bias correction is that of a second step, 0.1/0.19 / √(0.001/0.001999).
Tensor refused_step_counts(I c) {
  const Tensor stepped = right(c);
  if (c.number(0) == 0) return stepped;
  const Tensor before = c[0].detach().to(c.step.dtype);
  return before + (stepped - before) * 0.744;
}

/// Refused, but only after the target was changed.
Tensor changed_and_refused(I c) {
  try {
    return right(c);
  } catch (const Error&) {
    Tensor target = c[0];
    const NoGradGuard no_grad;
    if (!is_traced(target) && !layout_of(target).overlaps_itself()) target.zero_();
    throw;
  }
}

/// The file has no bfloat16.
Tensor file_without_bfloat16(I c) {
  const Tensor loaded = right(c);
  return loaded.dtype() == DType::bfloat16 ? loaded.to(DType::float16).to(DType::bfloat16) : loaded;
}
Tensor file_of_decimals(I c) {
  const Tensor loaded = right(c);
  return loaded.dtype() == DType::int64 ? loaded.to(DType::float64).to(DType::int64) : loaded;
}

/// Beyond the end, the last row.
Tensor clamps_the_index(I c) {
  try {
    return right(c);
  } catch (const ValueError&) {
    return index_select(c[0], c.number(0), mul(c[1], 0));
  }
}

}  // namespace

std::vector<PlantedFault> planted_faults() {
  return {
      {"a copy within one memory reads what it wrote", "copy_", copy_without_a_copy},
      {"an expanded target is written", "copy_", copy_into_expanded},
      {"a strided source is read as if contiguous", "copy_", copy_of_strided},
      {"an identity is not seen in the trace", "own_dtype", unseen_identity},
      {"contiguous is a copy in the trace", "contiguous", unseen_identity},
      {"dropout in evaluation is a copy in the trace", "dropout", unseen_identity},
      {"a view is a copy", "transpose", copying_view},
      {"squeeze of nothing is a copy", "squeeze", copying_view},
      {"add_ adds twice behind a view", "add_",
       [](I c) {
         right(c);
         return is_traced(c[0]) || c[0].is_contiguous() ? Tensor() : right(c);
       }},
      {"clone does not trace", "clone", trace_without_clone},
      {"a clone loses the gradient", "clone", without_gradient},
      {"a move between devices loses the gradient", "round_trip", without_gradient},
      {"a product loses one gradient", "mul", product_without_a_gradient},
      {"a cast loses the gradient", "cast", without_gradient},
      {"a leaf is changed in place", "mul_scalar_", write_into_a_leaf},
      {"clipping rounds its factor to 16 bits", "clip_grad_norm_", clip_in_16_bits},
      {"a number goes through double", "eq_scalar", eq_through_double},
      {"integers are compared as doubles", "eq", eq_of_doubles},
      {"a factory rounds twice", "tensor", rounded_twice},
      {"a factory wraps around instead of saturating", "tensor", without_saturation},
      {"a cast rounds instead of truncating", "cast", casts_by_rounding},
      {"mixed dtypes are converted", "add", promotes},
      {"a fraction is cut off for integers", "add_scalar", truncates_the_number},
      {"a number on the left is taken for one on the right", "rsub", number_on_the_wrong_side},
      {"a compound assignment leaves its tensor", "sub_", assigns_nothing},
      {"int8 computes", "mul", computes_with_int8},
      {"int8 does not compare", "lt", compares_no_int8},
      {"int16 is no index", "gather", takes_no_int16_index},
      {"item of an integer goes through double", "item", item_through_double},
      {"an optimizer rounds through the dtype from before", "adam", steps_in_the_old_dtype},
      {"a refused step counts", "adam", refused_step_counts},
      {"the negative of zero is zero", "neg", flips_zero},
      {"uniform returns its upper bound", "uniform", uniform_up_to_high},
      {"noise is a constant of the trace", "randn", noise_of_the_trace},
      {"uniform noise is a constant of the trace", "uniform", noise_of_the_trace},
      {"a seed restarts nothing", "manual_seed", seeds_nothing},
      {"dropout takes the next site's mask", "dropout", next_site},
      {"a refused dropout takes a number", "dropout", refused_dropout_takes_a_number},
      {"dropout scales in evaluation too", "dropout", scales_in_evaluation},
      {"an empty batch makes the statistics NaN", "batch_norm", batch_of_nothing},
      {"attention that sees no key is NaN", "attention", attention_by_softmax},
      {"a loss broadcasts its operands", "mse_loss", loss_that_broadcasts},
      {"a refused call has changed its target", "add_", changed_and_refused},
      {"a checkpoint keeps bfloat16 as float16", "json", file_without_bfloat16},
      {"a checkpoint keeps integers as doubles", "json", file_of_decimals},
      {"an index out of range is moved into it", "index_select", clamps_the_index, true},
  };
}

}  // namespace tenon::op_fuzz
