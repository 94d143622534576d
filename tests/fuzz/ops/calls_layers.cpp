// Calls that consist of several: dropout, batch normalization, attention.
#include <algorithm>
#include <array>
#include <cmath>

#include "tensor/functional.h"
#include "tests/fuzz/ops/call.h"

namespace tenon::op_fuzz {
namespace {

using I = const Invocation&;

std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

// --- dropout ------------------------------------------------------------------------------------

/// Philox4x32-10, written down from the paper (Salmon et al., 2011, section 3.3).
std::array<std::uint32_t, 4> philox(std::array<std::uint32_t, 4> counter, std::uint64_t key) {
  auto low = static_cast<std::uint32_t>(key), high = static_cast<std::uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round, low += 0x9E3779B9U, high += 0xBB67AE85U) {
    const std::uint64_t a = counter[0] * std::uint64_t{0xD2511F53U};
    const std::uint64_t b = counter[2] * std::uint64_t{0xCD9E8D57U};
    counter = {
        static_cast<std::uint32_t>(b >> 32) ^ counter[1] ^ low, static_cast<std::uint32_t>(b),
        static_cast<std::uint32_t>(a >> 32) ^ counter[3] ^ high, static_cast<std::uint32_t>(a)};
  }
  return counter;
}

/// Whether dropout keeps an element; see tensor/philox.h for the layout.
bool keeps(const RandomNumbers& now, std::int64_t row, std::int64_t column, double p) {
  const auto words =
      philox({static_cast<std::uint32_t>(column / 8), static_cast<std::uint32_t>(row),
              static_cast<std::uint32_t>(now.site_of_dropout()), now.forward},
             now.seed);
  const std::uint32_t word = words[at(column % 8 / 2)];
  const std::uint32_t half = column % 2 == 0 ? word & 0xffffU : word >> 16;
  return half >= static_cast<std::uint32_t>(std::floor(p * 65536 + 0.5));
}

bool draw_dropout(Drawing& d, Step& step) {
  const auto input = d.wrong() ? d.any() : d.floating();
  if (!input) return false;
  step.operands = {*input};
  step.numbers = {d.source.between(0, 2)};
  step.literal.real = d.source.one_of({0.5, 0.5, 0.1, 0.0, 1.0, 0.9});
  if (d.wrong()) step.literal.real = d.source.one_of({-0.1, 1.5});
  return true;
}

void evaluate_dropout(Evaluation& e) {
  const double p = e.step.literal.real;
  const auto mode = static_cast<DropoutMode>(e.number(0));
  e.need(p >= 0 && p <= 1, kValue);
  e.need_float(0);
  if (e.refused()) return;
  const bool acts = mode == DropoutMode::train || (mode == DropoutMode::follow && e.now().training);
  const RandomNumbers now = e.now().random.at_dropout(acts);
  if (p != 0) {
    e.outcome.commit = [&random = e.reference.now.random, acts] {
      random = random.after_dropout(acts);
    };
  }
  if (p == 0 || !acts) return e.returns(0);
  const Array& input = e.array(0);
  const std::int64_t columns = input.rank() == 0 ? 1 : input.sizes.back();
  const Number scale = p < 1 ? 1 / (1 - Number(p)) : 0;
  const DType computed = wide(input.dtype);
  Numbers results, allowed;
  for (const Number value : input.values()) {
    const auto i = static_cast<std::int64_t>(results.size());
    const bool kept = keeps(now, i / columns, i % columns, p);
    results.push_back(kept ? value * scale : 0);
    allowed.push_back(kept ? 2 * ulp(computed, value * scale) : 0);
    e.slope(i, 0, i, kept ? scale : 0);
  }
  e.saves_nothing = true;
  e.makes(input.dtype, input.sizes, std::move(results), std::move(allowed), false);
}

// --- batch normalization ------------------------------------------------------------------------

constexpr Number kMomentum = 0.1L, kEpsilon = 1e-5L;

/// Operands: input, running mean and variance, maybe weight and bias. Number: the mode.
bool draw_batch_norm(Drawing& d, Step& step) {
  const auto input = d.that([](const Handle& h) {
    return is_float(h.array.dtype) && h.array.rank() >= 2 && h.array.numel() <= 150;
  });
  if (!input) return false;
  const Array& x = d.array(*input);
  const std::int64_t channels = x.sizes[1];
  const std::int64_t count = channels == 0 ? 0 : x.numel() / channels;
  if (d.program.in_module && count == 1) return false;  // only a run in training mode refuses that
  step.operands = {*input};
  for (int i = d.source.chance(50) ? 4 : 2; i > 0; --i) {
    const auto vector = d.that([&](const Handle& h) {
      const bool fits = h.array.dtype == x.dtype && h.array.sizes == Sizes{channels};
      // A trace writes what gradients flow from only where it is state.
      if (d.program.wants_gradients && !d.is_before(h)) return false;
      const bool taken = std::any_of(step.operands.begin(), step.operands.end(), [&](int reg) {
        return d.array(reg).memory == h.array.memory;
      });
      return fits && !taken && !h.requires_grad && !h.array.overlaps_itself();
    });
    if (!vector) return false;
    step.operands.push_back(*vector);
  }
  step.numbers = {d.program.in_module ? 0 : d.source.between(0, 2)};
  return true;
}

/// Statistics of a channel, and the error that normalized values have beside their own size.
struct Channel {
  std::vector<std::size_t> elements;
  Number mean = 0, variance = 0;
  Number mean_error = 0;
  Number largest_value = 0;
  bool sound = true;
};

Channel channel_of(const Array& x, const Numbers& values, std::int64_t channel) {
  Channel result;
  const std::int64_t inner = product(Sizes(x.sizes.begin() + 2, x.sizes.end()));
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (static_cast<std::int64_t>(i) / inner % x.sizes[1] != channel) continue;
    result.elements.push_back(i);
    result.mean += values[i];
    result.largest_value = std::max(result.largest_value, std::fabs(values[i]));
    result.sound = result.sound && std::isfinite(values[i]);
  }
  const auto count = static_cast<Number>(result.elements.size());
  result.mean /= count;
  for (const std::size_t i : result.elements) result.mean_error += std::fabs(values[i]);
  result.mean_error *= roundoff(wide(x.dtype)) * (count + 4) / count;
  for (const std::size_t i : result.elements) {
    result.variance += (values[i] - result.mean) * (values[i] - result.mean);
  }
  result.variance /= count;
  const Number square = result.largest_value * result.largest_value * count;
  result.sound = result.sound && square < largest(wide(x.dtype)) / 8;
  return result;
}

class BatchNorm {
 public:
  BatchNorm(Evaluation& evaluation, bool of_batch)
      : e_(evaluation),
        of_batch_(of_batch),
        x_(e_.array(0)),
        values_(x_.values()),
        affine_(e_.num_operands() == 5),
        results_(values_.size()),
        allowed_(values_.size(), kInfinity),
        means_(e_.array(1).values()),
        variances_(e_.array(2).values()),
        mean_errors_(means_.size()),
        variance_errors_(means_.size()) {}

  void run() {
    for (std::int64_t c = 0; c < x_.sizes[1]; ++c) run_channel(c);
    e_.makes(x_.dtype, x_.sizes, results_, allowed_, false);
    if (!of_batch_) return;
    // An empty batch writes what was there.
    e_.outcome.checks.push_back({e_.handle(1), means_, mean_errors_});
    e_.outcome.checks.push_back({e_.handle(2), variances_, variance_errors_});
    e_.outcome.commit = [mean = e_.handle(1), variance = e_.handle(2)] {
      ++mean->array.memory->version;
      ++variance->array.memory->version;
    };
  }

 private:
  void run_channel(std::int64_t c) {
    Channel channel = channel_of(x_, values_, c);
    const std::size_t n = channel.elements.size();
    const Number eps = roundoff(wide(x_.dtype));
    if (n == 0) return;
    const Channel batch = channel;
    if (!of_batch_) {
      channel.mean = means_[at(c)];
      channel.variance = variances_[at(c)];
      channel.mean_error = 0;
      channel.sound = std::isfinite(channel.mean) && channel.variance >= 0 &&
                      std::fabs(channel.mean) < largest(wide(x_.dtype)) / 8;
    }
    const Number factor = 1 / std::sqrt(channel.variance + kEpsilon);
    const Number weight = affine_ ? e_.array(3).values()[at(c)] : 1;
    const Number bias = affine_ ? e_.array(4).values()[at(c)] : 0;
    for (const std::size_t i : channel.elements) {
      const Number centred = values_[i] - channel.mean;
      const Number terms = std::fabs(values_[i]) + std::fabs(channel.mean);
      const Number normalized = centred * factor;
      results_[i] = normalized * weight + bias;
      const Number drift = (eps * std::fabs(channel.mean) + channel.mean_error) * factor;
      const Number error =
          std::fabs(normalized) * (static_cast<Number>(n + 8) * eps + drift * drift) + drift +
          8 * eps * terms * factor;
      allowed_[i] = std::fabs(weight) * error + 4 * eps * std::fabs(bias) +
                    4 * ulp(wide(x_.dtype), results_[i]) + smallest_normal(wide(x_.dtype));
      const bool overflows =
          !(terms * factor * std::max<Number>(1, std::fabs(weight)) < largest(wide(x_.dtype)) / 8);
      if (!channel.sound || overflows) allowed_[i] = kInfinity;
      slopes(channel, i, c, factor, weight, terms);
    }
    if (of_batch_) move_statistics(batch, c, eps);
  }

  void slopes(const Channel& channel, std::size_t i, std::int64_t c, Number factor, Number weight,
              Number terms) {
    if (!e_.records()) return;
    const auto out = static_cast<std::int64_t>(i);
    const auto n = static_cast<Number>(channel.elements.size());
    const Number normalized = (values_[i] - channel.mean) * factor;
    for (const std::size_t j : channel.elements) {
      const Number own = i == j;
      const Number other = (values_[j] - channel.mean) * factor;
      const Number shared = of_batch_ ? (1 + normalized * other) / n : 0;
      const Number far = (std::fabs(values_[j]) + std::fabs(channel.mean)) * factor;
      const Number spread = of_batch_ ? (1 + terms * factor * far) / n : 0;
      const Number magnitude = std::fabs(weight) * factor * (own + spread) * (n + 4);
      e_.slope(out, 0, static_cast<std::int64_t>(j), weight * factor * (own - shared),
               channel.sound ? magnitude : kInfinity);
    }
    if (!affine_) return;
    e_.slope(out, 3, c, normalized, channel.sound ? terms * factor * 4 : kInfinity);
    e_.slope(out, 4, c, 1);
  }

  void move_statistics(const Channel& batch, std::int64_t c, Number eps) {
    const auto n = static_cast<Number>(batch.elements.size());
    const Number unbiased = batch.variance * n / (n - 1);
    Number& mean = means_[at(c)];
    Number& variance = variances_[at(c)];
    const Number mean_terms = std::fabs(mean) + batch.largest_value;
    const Number variance_terms =
        std::fabs(variance) + std::fabs(unbiased) + eps * batch.largest_value * batch.largest_value;
    mean += kMomentum * (batch.mean - mean);
    variance += kMomentum * (unbiased - variance);
    mean_errors_[at(c)] = batch.sound ? (n + 8) * eps * mean_terms : kInfinity;
    variance_errors_[at(c)] = batch.sound ? (n + 8) * eps * variance_terms : kInfinity;
  }

  Evaluation& e_;
  const bool of_batch_;
  const Array& x_;
  const Numbers values_;
  const bool affine_;
  Numbers results_, allowed_;
  Numbers means_, variances_, mean_errors_, variance_errors_;
};

void evaluate_batch_norm(Evaluation& e) {
  const Array& x = e.array(0);
  e.need_one_dtype();
  e.need_float(0);
  if (!e.need(x.rank() >= 2, kShape)) return;
  for (int i = 1; i < e.num_operands(); ++i) e.need(e.array(i).sizes == Sizes{x.sizes[1]}, kShape);
  const auto mode = static_cast<DropoutMode>(e.number(0));
  const bool of_batch =
      mode == DropoutMode::train || (mode == DropoutMode::follow && e.now().training);
  const std::int64_t count = x.sizes[1] == 0 ? 0 : x.numel() / x.sizes[1];
  e.need(!of_batch || count != 1, kValue);
  if (e.refused()) return;
  BatchNorm(e, of_batch).run();
}

Tensor run_batch_norm(I c) {
  const bool affine = c.operands.size() == 5;
  return batch_norm(c[0], c[1], c[2], affine ? c[3] : Tensor(), affine ? c[4] : Tensor(),
                    static_cast<DropoutMode>(c.number(0)));
}

// --- attention ----------------------------------------------------------------------------------

/// Operands: query, key, value, maybe a mask. Number: causal.
bool draw_attention(Drawing& d, Step& step) {
  const auto small = [](const Handle& h) {
    return is_float(h.array.dtype) && h.array.rank() >= 2 && h.array.numel() <= 80;
  };
  const auto query = d.that([&](const Handle& h) { return small(h) && h.array.sizes.back() > 0; });
  if (!query) return false;
  const Array& q = d.array(*query);
  const auto leads = [](const Array& a, const Array& b) {
    return a.dtype == b.dtype && a.rank() == b.rank() &&
           std::equal(a.sizes.begin(), a.sizes.end() - 2, b.sizes.begin());
  };
  // As many heads, or some for each group of the query's.
  const auto is_led = [&](const Array& k) {
    if (leads(q, k)) return true;
    if (q.dtype != k.dtype || q.rank() != k.rank() || q.rank() < 3) return false;
    const std::int64_t heads = q.sizes[at(q.rank() - 3)], key_heads = k.sizes[at(q.rank() - 3)];
    return std::equal(q.sizes.begin(), q.sizes.end() - 3, k.sizes.begin()) && heads > 0 &&
           key_heads > 0 && heads % key_heads == 0;
  };
  const auto key = d.that([&](const Handle& h) {
    return small(h) && is_led(h.array) && h.array.sizes.back() == q.sizes.back();
  });
  const Array& k = d.array(*key);
  const auto value = d.that([&](const Handle& h) {
    return small(h) && leads(k, h.array) && h.array.sizes.back() > 0 &&
           h.array.sizes[at(q.rank() - 2)] == k.sizes[at(q.rank() - 2)];
  });
  if (!value) return false;
  step.operands = {*query, *key, *value};
  step.numbers = {d.source.chance(30)};
  Sizes scores = q.sizes;
  scores.back() = k.sizes[at(q.rank() - 2)];
  const auto mask = d.that([&](const Handle& h) {
    return (h.array.dtype == DType::boolean || h.array.dtype == q.dtype) &&
           broadcast(h.array.sizes, scores) == scores && h.array.rank() <= q.rank();
  });
  if (mask && step.numbers[0] == 0) step.operands.push_back(*mask);
  return true;
}

class Attention {
 public:
  explicit Attention(Evaluation& evaluation)
      : e_(evaluation),
        dtype_(e_.array(0).dtype),
        q_(e_.array(0).values()),
        k_(e_.array(1).values()),
        v_(e_.array(2).values()) {
    const Sizes& q = e_.array(0).sizes;
    queries_ = q[q.size() - 2];
    depth_ = q.back();
    keys_ = e_.array(1).sizes[q.size() - 2];
    width_ = e_.array(2).sizes.back();
    if (q.size() > 2 && e_.array(1).sizes[q.size() - 3] > 0) {
      group_ = q[q.size() - 3] / e_.array(1).sizes[q.size() - 3];
    }
    sizes_ = q;
    sizes_.back() = width_;
    scale_ = 1 / std::sqrt(static_cast<Number>(depth_));
    for (const Numbers* values : {&q_, &k_, &v_}) {
      for (const Number value : *values) finite_ = finite_ && std::isfinite(value);
    }
    if (e_.num_operands() < 4) return;
    Sizes scores = q;
    scores.back() = keys_;
    mask_ = expand(e_.array(3), scores).values();
    mask_from_ = expand(positions(e_.array(3).sizes), scores).values();
  }

  void run() {
    const std::int64_t rows = product(sizes_) / std::max<std::int64_t>(width_, 1);
    for (std::int64_t row = 0; row < (width_ == 0 ? 0 : rows); ++row) run_row(row);
    e_.makes(dtype_, sizes_, std::move(results_), std::move(allowed_), false);
  }

 private:
  /// The softmax of one row of scores.
  struct Row {
    Numbers p;
    Number largest_terms = 0;  // Σ|q·k| of the visible key with the largest
    bool sound = true;
  };

  bool sees(std::int64_t row, std::int64_t key) const {
    if (e_.number(0) != 0) return key <= row % queries_;
    if (mask_.empty()) return true;
    const Number mask = mask_[at(row * keys_ + key)];
    return e_.array(3).dtype == DType::boolean ? mask != 0 : mask != -kInfinity;
  }

  Row probabilities(std::int64_t row) const {
    Row result;
    Numbers scores;
    Number top = -kInfinity;
    for (std::int64_t j = 0; j < keys_; ++j) {
      Number score = 0, terms = 0;
      for (std::int64_t x = 0; x < depth_; ++x) {
        const Number product = q_[at(row * depth_ + x)] * k_[at(key_row(row, j) * depth_ + x)];
        score += product * scale_;
        terms += std::fabs(product) * scale_;
      }
      const bool seen = sees(row, j);
      if (seen && !mask_.empty() && e_.array(3).dtype != DType::boolean) {
        score += mask_[at(row * keys_ + j)];
        terms += std::fabs(mask_[at(row * keys_ + j)]);
      }
      // An infinite score below a mask of -inf may be NaN.
      result.sound = result.sound && std::isfinite(terms) && terms < largest(dtype_) / 4;
      scores.push_back(seen ? score : -kInfinity);
      if (seen) result.largest_terms = std::max(result.largest_terms, terms);
      if (seen) top = std::max(top, score);
    }
    Number sum = 0;
    for (Number& score : scores) {
      score = score == -kInfinity ? 0 : std::exp(score - top);
      sum += score;
    }
    for (const Number score : scores) result.p.push_back(sum == 0 ? 0 : score / sum);
    return result;
  }

  std::int64_t key_row(std::int64_t row, std::int64_t key) const {
    return row / queries_ / group_ * keys_ + key;
  }

  void run_row(std::int64_t row) {
    const Row softmax = probabilities(row);
    const bool sees_none =
        std::all_of(softmax.p.begin(), softmax.p.end(), [](Number p) { return p == 0; });
    // A relative error of exp is the absolute one of its argument.
    const Number error = roundoff(dtype_) * (8 * softmax.largest_terms + 16) +
                         roundoff(wide(dtype_)) * static_cast<Number>(keys_);
    for (std::int64_t c = 0; c < width_; ++c) {
      Number result = 0, terms = 0;
      bool sound = softmax.sound && error < 0.1L;
      for (std::int64_t j = 0; j < keys_; ++j) {
        const Number value = v_[at(key_row(row, j) * width_ + c)];
        // What zero weight does to an infinite value is open.
        sound = sound && std::isfinite(value);
        if (softmax.p[at(j)] == 0) continue;
        result += softmax.p[at(j)] * value;
        terms += softmax.p[at(j)] * std::fabs(value);
      }
      // The sum may be divided by that of the weights, up to one for each key, at the end.
      sound = sound && terms * static_cast<Number>(keys_) < largest(dtype_) / 4;
      const auto out = static_cast<std::int64_t>(results_.size());
      results_.push_back(result);
      allowed_.push_back(sound ? error * terms + 2 * smallest_normal(wide(dtype_)) : kInfinity);
      if (sees_none && sound) allowed_.back() = 0;
      // A weight of zero makes NaN of what is not finite, be it hidden or not.
      const Number known = sound && finite_ ? error : kInfinity;
      if (e_.records()) slopes(row, c, out, softmax, result, terms, known);
    }
  }

  void slopes(std::int64_t row, std::int64_t c, std::int64_t out, const Row& softmax, Number result,
              Number terms, Number error) {
    const Number conditioning = 4 + error / roundoff(dtype_);
    for (std::int64_t j = 0; j < keys_; ++j) {
      const Number p = softmax.p[at(j)];
      const Number value = v_[at(key_row(row, j) * width_ + c)];
      const Number of_score = p * (value - result);
      const Number magnitude = p * (std::fabs(value) + terms) * conditioning;
      e_.slope(out, 2, key_row(row, j) * width_ + c, p, p * conditioning);
      for (std::int64_t x = 0; x < depth_; ++x) {
        const std::int64_t q = row * depth_ + x, k = key_row(row, j) * depth_ + x;
        e_.slope(out, 0, q, of_score * scale_ * k_[at(k)],
                 magnitude * scale_ * std::fabs(k_[at(k)]));
        e_.slope(out, 1, k, of_score * scale_ * q_[at(q)],
                 magnitude * scale_ * std::fabs(q_[at(q)]));
      }
      if (!mask_.empty()) {
        e_.slope(out, 3, as_integer(mask_from_[at(row * keys_ + j)]), of_score, magnitude);
      }
    }
  }

  Evaluation& e_;
  const DType dtype_;
  const Numbers q_, k_, v_;
  std::int64_t queries_ = 0, keys_ = 0, depth_ = 0, width_ = 0;
  std::int64_t group_ = 1;  // heads of the query for each of the keys
  Number scale_ = 1;
  bool finite_ = true;
  Sizes sizes_;
  Numbers mask_, mask_from_;
  Numbers results_, allowed_;
};

void evaluate_attention(Evaluation& e) { Attention(e).run(); }

Tensor run_attention(I c) {
  AttentionOptions options;
  options.is_causal = c.number(0) != 0;
  return scaled_dot_product_attention(c[0], c[1], c[2], c.operands.size() > 3 ? c[3] : Tensor(),
                                      options);
}

}  // namespace

std::vector<Call> calls_of_layers() {
  return {
      {"dropout", "dropout($0, %, DropoutMode(#0))", 12, draw_dropout, evaluate_dropout,
       [](I c) {
         return dropout(c[0], c.step.literal.real, static_cast<DropoutMode>(c.number(0)));
       }},
      {"batch_norm", "batch_norm($*, DropoutMode(#0))", 12, draw_batch_norm, evaluate_batch_norm,
       run_batch_norm},
      {"attention", "scaled_dot_product_attention($*, {.is_causal = #0})", 10, draw_attention,
       evaluate_attention, run_attention},
  };
}

}  // namespace tenon::op_fuzz
