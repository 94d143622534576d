#include "autograd/gradcheck.h"

#include <algorithm>
#include <cmath>

#include "autograd/autograd.h"
#include "tensor/support/check.h"

namespace tenon {
namespace {

using Values = std::vector<double>;

/// "(1, 0, 2)": the index of row-major element `i`.
std::string index_of(const Tensor& tensor, std::size_t i) {
  const Extents& sizes = tensor.layout().sizes;
  std::vector<std::int64_t> index(static_cast<std::size_t>(sizes.size()));
  auto rest = static_cast<std::int64_t>(i);
  for (int axis = sizes.size() - 1; axis >= 0; --axis) {
    index[static_cast<std::size_t>(axis)] = rest % sizes[axis];
    rest /= sizes[axis];
  }
  return fmt::format("({})", fmt::join(index, ", "));
}

/// A leaf with these values; in the layout of `like` unless elements share memory there.
Tensor leaf_like(const Tensor& like, const Values& values) {
  Layout layout = like.layout();
  std::int64_t last = 0;
  for (int axis = 0; axis < layout.rank(); ++axis) {
    if (layout.sizes[axis] > 1 && layout.strides[axis] == 0) {
      layout = Layout::contiguous(like.layout().sizes);
      break;
    }
  }
  for (int axis = 0; axis < layout.rank(); ++axis) {
    last += std::max<std::int64_t>(layout.sizes[axis] - 1, 0) * layout.strides[axis];
  }
  const auto count = static_cast<std::size_t>(layout.offset + last + 1);
  auto storage = Storage::allocate(count * sizeof(double), kCpu);
  auto* data = static_cast<double*>(storage->data());
  std::fill_n(data, count, std::nan(""));  // reading between the elements shows
  for (std::size_t i = 0; i < values.size(); ++i) {
    std::int64_t at = layout.offset;
    auto rest = static_cast<std::int64_t>(i);
    for (int axis = layout.rank() - 1; axis >= 0; --axis) {
      at += rest % layout.sizes[axis] * layout.strides[axis];
      rest /= layout.sizes[axis];
    }
    data[at] = values[i];
  }
  return Tensor(std::move(storage), like.dtype(), layout).requires_grad_();
}

/// d(all outputs)/d(one element): output elements one after another.
using Column = Values;

class Check {
 public:
  Check(const TensorFunction& f, const std::vector<Tensor>& inputs, const GradcheckOptions& options)
      : f_(f), inputs_(inputs), options_(options) {
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      if (!inputs[i].requires_grad()) continue;
      TENON_CHECK(
          inputs[i].dtype() == DType::float64 && inputs[i].device().is_cpu() && inputs[i].is_leaf(),
          ValueError, "gradcheck: input {} is {}; needed a float64 leaf on the CPU", i,
          inputs[i].spec().to_string());
      wanted_.push_back(i);
    }
    TENON_CHECK(!wanted_.empty(), ValueError, "gradcheck: no input requires a gradient");
  }

  GradcheckResult run() {
    measure();
    outputs_ = f_(inputs_);
    for (std::size_t o = 0; o < outputs_.size(); ++o) {
      if (is_floating(outputs_[o].dtype())) compare_rows(o);
    }
    compare_total();
    if (wrong_ == 0) return {};
    return {fmt::format("{} of {} entries of the Jacobian differ:{}", wrong_, entries_, report_)};
  }

 private:
  /// All floating outputs for the inputs with one of them replaced.
  Column evaluate(std::size_t i, const Values& values) const {
    std::vector<Tensor> inputs = inputs_;
    inputs[i] = leaf_like(inputs_[i], values);
    Column column;
    for (const Tensor& output : f_(inputs)) {
      if (!is_floating(output.dtype())) continue;
      const Values elements = output.to_doubles();
      column.insert(column.end(), elements.begin(), elements.end());
    }
    return column;
  }

  void measure() {
    const double h = options_.step;
    for (const std::size_t i : wanted_) {
      const Values values = inputs_[i].to_doubles();
      std::vector<Column> columns;
      for (std::size_t k = 0; k < values.size(); ++k) {
        const auto moved = [&](double by) {
          Values changed = values;
          changed[k] += by;
          return evaluate(i, changed);
        };
        const Column near_below = moved(-h);
        const Column near_above = moved(h);
        const Column far_below = moved(-2 * h);
        const Column far_above = moved(2 * h);
        Column slopes(near_below.size());
        for (std::size_t j = 0; j < slopes.size(); ++j) {
          slopes[j] =
              (far_below[j] - far_above[j] + 8 * (near_above[j] - near_below[j])) / (12 * h);
        }
        columns.push_back(std::move(slopes));
      }
      measured_.push_back(std::move(columns));
    }
  }

  /// The gradients of the wanted inputs; `what` says from where, for the report.
  std::vector<Values> gradients(std::span<const Tensor> roots, std::span<const Tensor> cotangents,
                                const std::string& what) {
    std::vector<Tensor> wanted;
    for (const std::size_t i : wanted_) wanted.push_back(inputs_[i]);
    const std::vector<Tensor> given =
        grad(roots, wanted, cotangents, {.retain_graph = true, .allow_unused = true});
    std::vector<Values> result;
    for (std::size_t w = 0; w < wanted.size(); ++w) {
      const auto count = static_cast<std::size_t>(wanted[w].layout().numel());
      if (!given[w]) {
        result.emplace_back(count, 0.0);
        continue;
      }
      const bool fits =
          given[w].dtype() == wanted[w].dtype() && given[w].shape() == wanted[w].shape();
      TENON_CHECK(fits, ShapeError, "gradcheck: the gradient of input {} from {} is {}; needed {}",
                  wanted_[w], what, given[w].spec().to_string(), wanted[w].spec().to_string());
      result.push_back(given[w].to_doubles());
    }
    return result;
  }

  /// Each element of output `o` alone.
  void compare_rows(std::size_t o) {
    const Tensor& output = outputs_[o];
    const auto count = static_cast<std::size_t>(output.layout().numel());
    Values unit(count, 0.0);
    for (std::size_t j = 0; j < count; ++j) {
      std::vector<Values> rows;
      if (output.requires_grad()) {
        unit[j] = 1;
        const Tensor cotangent = tensor(unit, output.shape(), {output.dtype(), kCpu});
        unit[j] = 0;
        rows =
            gradients(std::span(&output, 1), std::span(&cotangent, 1), fmt::format("output {}", o));
      } else {
        for (const auto& columns : measured_) rows.emplace_back(columns.size(), 0.0);
      }
      for (std::size_t w = 0; w < wanted_.size(); ++w) {
        for (std::size_t k = 0; k < rows[w].size(); ++k) {
          compare(rows[w][k], measured_[w][k].at(first_row_ + j), 1, w, k,
                  [&] { return fmt::format("output {} element {}", o, index_of(output, j)); });
        }
      }
    }
    first_row_ += count;
  }

  /// All outputs together, every cotangent 1; also for outputs without elements.
  void compare_total() {
    std::vector<Tensor> roots;
    std::vector<Tensor> cotangents;
    for (const Tensor& output : outputs_) {
      if (!output.requires_grad()) continue;
      roots.push_back(output);
      cotangents.push_back(ones(output.shape(), {output.dtype(), kCpu}));
    }
    if (roots.empty()) return;
    const std::vector<Values> totals = gradients(roots, cotangents, "all outputs");
    for (std::size_t w = 0; w < wanted_.size(); ++w) {
      for (std::size_t k = 0; k < totals[w].size(); ++k) {
        double sum = 0;
        double scale = 1;
        for (const double slope : measured_[w][k]) {
          sum += slope;
          scale += std::fabs(slope);
        }
        compare(totals[w][k], sum, scale, w, k, [] { return std::string("all outputs together"); });
      }
    }
  }

  template <class Where>
  void compare(double got, double expected, double scale, std::size_t w, std::size_t k,
               const Where& where) {
    ++entries_;
    const double allowed = scale * (options_.atol + options_.rtol * std::fabs(expected));
    if (std::fabs(got - expected) <= allowed) return;
    constexpr int kListed = 5;
    if (++wrong_ > kListed) return;
    report_ += fmt::format(
        "\n  d({})/d(input {} element {}): backward gives {:.12g}, the stencil {:.12g}, "
        "|difference| {:.3g} > {:.3g}",
        where(), wanted_[w], index_of(inputs_[wanted_[w]], k), got, expected,
        std::fabs(got - expected), allowed);
  }

  const TensorFunction& f_;
  const std::vector<Tensor>& inputs_;
  const GradcheckOptions& options_;
  std::vector<std::size_t> wanted_;            // the inputs that require a gradient
  std::vector<std::vector<Column>> measured_;  // per wanted input and element
  std::vector<Tensor> outputs_;
  std::size_t first_row_ = 0;  // of the output being compared, in a Column
  int entries_ = 0;
  int wrong_ = 0;
  std::string report_;
};

}  // namespace

GradcheckResult gradcheck(const TensorFunction& f, const std::vector<Tensor>& inputs,
                          const GradcheckOptions& options) {
  return Check(f, inputs, options).run();
}

}  // namespace tenon
