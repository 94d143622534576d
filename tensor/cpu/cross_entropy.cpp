// Cross entropy of rows of logits, given or made from a linear layer: a row's maximum and Σ exp(x - max) as softmax computes them, the rest
// in double. Losses are added in row order, so that the number of threads does not matter.
#include "tensor/cpu/cross_entropy.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "tensor/cpu/gemm.h"
#include "tensor/cpu/rows.h"
#include "tensor/cpu/vector.h"
#include "tensor/ops/norm_attributes.h"
#include "tensor/parallel.h"
#include "tensor/support/check.h"

namespace tenon::cpu {
namespace {

struct Targets {
  const std::int64_t* classes;
  std::int64_t ignore_index;
  std::int64_t counted = 0;  // targets that are not ignored

  Targets(const KernelArgs& args, const TensorView& view, std::int64_t num_classes)
      : classes(view.as<const std::int64_t>()),
        ignore_index(args.attributes<CrossEntropyAttrs>().ignore_index) {
    for (std::int64_t row = 0; row < view.numel(); ++row) {
      if (is_ignored(row)) continue;
      TENON_CHECK(classes[row] >= 0 && classes[row] < num_classes, ValueError,
                  "[{}] target {} of row {} with {} classes; needed 0 <= target < {}, or the "
                  "ignore_index {}",
                  args.op->name, classes[row], row, num_classes, num_classes, ignore_index);
      ++counted;
    }
  }
  bool is_ignored(std::int64_t row) const { return classes[row] == ignore_index; }
};

/// Loads a row of logits with room for whole vectors.
template <class T>
void load_logits(const TensorView& logits, std::int64_t row, compute_type<T>* x) {
  const std::int64_t n = logits.size(1);
  load_row(logits.as<const T>() + row * logits.stride(0), logits.stride(1), n, x);
  pad_row(x, n);
}

/// -(1-s)·log p[target] - s·mean(log p) for the row in x, which is overwritten.
template <class C>
double row_loss(C* x, std::int64_t n, std::int64_t target, double smoothing) {
  const C max = row_max(x, n);
  const double log_target = static_cast<double>(x[target] - max);
  double mean = 0;
  if (smoothing > 0) {
    for (std::int64_t i = 0; i < n; ++i) mean += static_cast<double>(x[i] - max);
    mean /= static_cast<double>(n);
  }
  const double log_sum = std::log(exp_row(x, n, max));
  const double loss = log_sum - log_target;
  return smoothing > 0 ? (1 - smoothing) * loss + smoothing * (log_sum - mean) : loss;
}

template <class T>
std::vector<double> row_losses(const KernelArgs& args, const Targets& targets) {
  using C = compute_type<T>;
  const TensorView& logits = args.inputs[0];
  const double smoothing = args.attributes<CrossEntropyAttrs>().label_smoothing;
  const std::int64_t rows = logits.size(0);
  const std::int64_t n = logits.size(1);
  std::vector<double> losses(static_cast<std::size_t>(rows));
  parallel_ranges(rows, rows_per_task(n), [&](std::int64_t begin, std::int64_t end) {
    thread_local Scratch scratch;
    C* x = scratch.get<C>(padded<C>(n));
    for (std::int64_t row = begin; row < end; ++row) {
      if (targets.is_ignored(row)) continue;
      load_logits<T>(logits, row, x);
      losses[static_cast<std::size_t>(row)] = row_loss(x, n, targets.classes[row], smoothing);
    }
  });
  return losses;
}

/// The gradient of one row: scale·(softmax(x) - (1-s)·onehot(target) - s/n), in place of x.
template <class C>
void row_gradient(C* x, std::int64_t n, std::int64_t target, double smoothing, double scale) {
  const double sum = exp_row(x, n, row_max(x, n));
  const auto probability = static_cast<C>(1 / sum);
  const auto share = static_cast<C>(smoothing / static_cast<double>(n));
  const auto factor = static_cast<C>(scale);
  for (std::int64_t i = 0; i < n; ++i) {
    const C wanted = share + (i == target ? static_cast<C>(1 - smoothing) : C{0});
    x[i] = factor * (x[i] * probability - wanted);
  }
}

/// Element (i, j) is at data[i·row + j·column].
struct Matrix {
  const void* data = nullptr;
  std::int64_t row = 0;
  std::int64_t column = 0;
};

/// A (rows, depth) times B (depth, columns) into row-major C.
template <class T>
void multiply(const Matrix& a, const Matrix& b, std::int64_t rows, std::int64_t depth,
              std::int64_t columns, void* c) {
  MatrixProduct p;
  p.a = a.data;
  p.b = b.data;
  p.c = c;
  p.rows = {rows};
  p.a_rows = {a.row};
  p.c_rows = {columns};
  p.columns = columns;
  p.depth = depth;
  p.a_depth = a.column;
  p.b_depth = b.row;
  p.b_column = b.column;
  p.c_column = 1;
  gemm<T>(p);
}

/// The losses of contiguous rows of logits, which become their gradients if asked for: `scale` times
/// that of a row's loss.
template <class T>
std::vector<double> losses_and_gradients(T* logits, std::int64_t rows, std::int64_t n,
                                         const Targets& targets, double smoothing,
                                         bool with_gradients, double scale) {
  using C = compute_type<T>;
  std::vector<double> losses(static_cast<std::size_t>(rows));
  parallel_ranges(rows, rows_per_task(n), [&](std::int64_t begin, std::int64_t end) {
    thread_local Scratch scratch;
    C* x = scratch.get<C>(padded<C>(n));
    for (std::int64_t row = begin; row < end; ++row) {
      T* own = logits + row * n;
      if (targets.is_ignored(row)) {
        if (with_gradients) std::fill_n(own, n, static_cast<T>(C{0}));
        continue;
      }
      const auto load = [&] {
        load_row(own, 1, n, x);
        pad_row(x, n);
      };
      load();
      losses[static_cast<std::size_t>(row)] = row_loss(x, n, targets.classes[row], smoothing);
      if (!with_gradients) continue;
      load();
      row_gradient(x, n, targets.classes[row], smoothing, scale);
      store_row(x, n, own, 1);
    }
  });
  return losses;
}

}  // namespace

void cross_entropy(const KernelArgs& args) {
  const Targets targets(args, args.inputs[1], args.inputs[0].size(1));
  const Reduction reduction = args.attributes<CrossEntropyAttrs>().reduction;
  dispatch_float(args.outputs[0].dtype, [&]<typename T>() {
    using C = compute_type<T>;
    const std::vector<double> losses = row_losses<T>(args, targets);
    T* output = args.outputs[0].as<T>();
    if (reduction == Reduction::none) {
      for (const double loss : losses) *output++ = static_cast<T>(static_cast<C>(loss));
      return;
    }
    double total = 0;
    for (const double loss : losses) total += loss;
    if (reduction == Reduction::mean) total /= static_cast<double>(targets.counted);
    *output = static_cast<T>(static_cast<C>(total));
  });
}

void cross_entropy_backward(const KernelArgs& args) {
  const TensorView& logits = args.inputs[1];
  const std::int64_t n = logits.size(1);
  const auto& attrs = args.attributes<CrossEntropyAttrs>();
  const Targets targets(args, args.inputs[2], n);
  dispatch_float(logits.dtype, [&]<typename T>() {
    using C = compute_type<T>;
    const T* grad = args.inputs[0].as<const T>();
    const bool per_row = attrs.reduction == Reduction::none;
    const double share =
        attrs.reduction == Reduction::mean ? static_cast<double>(targets.counted) : 1;
    parallel_ranges(logits.size(0), rows_per_task(n), [&](std::int64_t begin, std::int64_t end) {
      thread_local Scratch scratch;
      C* x = scratch.get<C>(padded<C>(n));
      for (std::int64_t row = begin; row < end; ++row) {
        if (targets.is_ignored(row)) {
          std::fill_n(x, n, C{0});
        } else {
          load_logits<T>(logits, row, x);
          const auto scale = static_cast<double>(static_cast<C>(grad[per_row ? row : 0])) / share;
          row_gradient(x, n, targets.classes[row], attrs.label_smoothing, scale);
        }
        store_row(x, n, args.outputs[0].as<T>() + row * n, 1);
      }
    });
  });
}

std::size_t linear_cross_entropy_workspace(const KernelArgs& args) {
  return static_cast<std::size_t>(args.inputs[0].size(0) * args.inputs[1].size(0)) *
         size_of(args.inputs[0].dtype);
}

void linear_cross_entropy(const KernelArgs& args) {
  const TensorView& input = args.inputs[0];
  const TensorView& weight = args.inputs[1];
  const std::int64_t rows = input.size(0), depth = input.size(1), classes = weight.size(0);
  const auto& attrs = args.attributes<CrossEntropyAttrs>();
  const Targets targets(args, args.inputs[2], classes);
  const bool is_mean = attrs.reduction == Reduction::mean;
  const double share = is_mean ? static_cast<double>(targets.counted) : 1;
  const bool with_gradients = args.outputs.size() > 1;
  dispatch_float(input.dtype, [&]<typename T>() {
    using C = compute_type<T>;
    T* logits = static_cast<T*>(args.workspace);
    // [R,K] x [C,K]^T -> [R,C]
    multiply<T>({input.data, input.stride(0), input.stride(1)},
                {weight.data, weight.stride(1), weight.stride(0)}, rows, depth, classes, logits);
    const std::vector<double> losses = losses_and_gradients(
        logits, rows, classes, targets, attrs.label_smoothing, with_gradients, 1 / share);
    double total = 0;
    for (const double loss : losses) total += loss;
    *args.outputs[0].as<C>() = static_cast<C>(is_mean ? total / share : total);
    if (!with_gradients) return;
    // [R,C] x [C,K] -> [R,K]
    multiply<T>({logits, classes, 1}, {weight.data, weight.stride(0), weight.stride(1)}, rows,
                classes, depth, args.outputs[1].data);
    // [R,C]^T x [R,K] -> [C,K]
    multiply<T>({logits, 1, classes}, {input.data, input.stride(0), input.stride(1)}, classes, rows,
                depth, args.outputs[2].data);
  });
}

}  // namespace tenon::cpu
