// One pass over each parameter, its gradient and its state. Blocks are widened to the compute type, so
// the loop over a block vectorizes for every dtype. An output may share memory with the operand that
// it replaces: an element is written after it was read.
#include "tensor/cpu/optimizer_steps.h"

#include <array>
#include <cmath>
#include <numeric>
#include <vector>

#include "tensor/calls/optimizer_operands.h"
#include "tensor/cpu/copy.h"
#include "tensor/cpu/elementwise.h"
#include "tensor/parallel.h"

namespace tenon::cpu {
namespace {

/// Elements of one task: a multiple of kBlock.
constexpr std::int64_t kGrain = 16384;

/// The one element of a scalar operand, or `absent`.
double read_scalar(const TensorView& view, double absent) {
  double value = absent;
  if (!view.present) return value;
  dispatch_float(view.dtype, [&]<typename T>() {
    value = static_cast<double>(static_cast<compute_type<T>>(*view.as<const T>()));
  });
  return value;
}

/// Of a contiguous operand.
RowReader reader(const TensorView& view) {
  return {view.dtype, view.data, element_access(view.dtype).size, view.numel()};
}
RowWriter writer(const TensorView& view) {
  return {view.dtype, view.data, element_access(view.dtype).size};
}

/// Sums of squares are added up in tiles of this size.
constexpr std::int64_t kNormGrain = 16384;

/// update.apply on n elements; `before` and `after` are the state's blocks.
template <int kStates, class C, class Update>
void update_block(const Update& update, std::int64_t n, const C* param, const C* grad,
                  const std::array<const C*, kStates>& before, C* new_param,
                  const std::array<C*, kStates>& after) {
  if constexpr (kStates == 0) {
#pragma GCC ivdep
    for (std::int64_t i = 0; i < n; ++i) {
      C value = param[i];
      update.apply(value, grad[i]);
      new_param[i] = value;
    }
  } else if constexpr (kStates == 1) {
    const C* state = before[0];
    C* new_state = after[0];
#pragma GCC ivdep
    for (std::int64_t i = 0; i < n; ++i) {
      C value = param[i], buffer = state[i];
      update.apply(value, grad[i], buffer);
      new_param[i] = value;
      new_state[i] = buffer;
    }
  } else {
    const C *mean = before[0], *square = before[1];
    C *new_mean = after[0], *new_square = after[1];
#pragma GCC ivdep
    for (std::int64_t i = 0; i < n; ++i) {
      C value = param[i], m = mean[i], v = square[i];
      update.apply(value, grad[i], m, v);
      new_param[i] = value;
      new_mean[i] = m;
      new_square[i] = v;
    }
  }
}

/// One parameter of the call, whose compute type, and its gradient's, is C.
template <class C, int kStates, class Update>
void update_parameter(const KernelArgs& args, const UpdateLayout& layout, int number,
                      const Update& update) {
  const auto input = [&](int i) -> const TensorView& {
    return args.inputs[static_cast<std::size_t>(i)];
  };
  const auto output = [&](int i) -> const TensorView& {
    return args.outputs[static_cast<std::size_t>(i)];
  };
  const TensorView& param = input(layout.param(number));
  parallel_ranges(param.numel(), kGrain, [&](std::int64_t begin, std::int64_t end) {
    RowReader values = reader(param);
    RowReader grads = reader(input(layout.grad(number)));
    RowWriter new_values = writer(output(layout.new_param(number)));
    std::vector<RowReader> states;
    std::vector<RowWriter> new_states;
    states.reserve(kStates);  // their buffers are not to be moved
    new_states.reserve(kStates);
    for (int k = 0; k < kStates; ++k) {
      states.push_back(reader(input(layout.state(number, k))));
      new_states.push_back(writer(output(layout.new_state(number, k))));
    }
    for (std::int64_t first = begin; first < end; first += kBlock) {
      const std::int64_t n = std::min(kBlock, end - first);
      std::array<const C*, kStates> before{};
      std::array<C*, kStates> after{};
      for (std::size_t k = 0; k < kStates; ++k) {
        before[k] = states[k].block<C>(first, n);
        after[k] = new_states[k].block<C>(first);
      }
      update_block<kStates>(update, n, values.block<C>(first, n), grads.block<C>(first, n), before,
                            new_values.block<C>(first), after);
      new_values.finish(first, n);
      for (auto& state : new_states) state.finish(first, n);
    }
  });
  if (layout.copies == RoundedCopy::none) return;
  cast_strided(output(layout.new_param(number)), output(layout.copy(number)));
}

/// Every parameter of the call, one after another.
template <template <class> class Update, int kStates, class Attrs>
void run_updates(const KernelArgs& args) {
  const auto& attrs = args.attributes<Attrs>();
  const UpdateLayout layout = layout_of(attrs);
  const double lr = read_scalar(args.inputs[UpdateLayout::kLr], 0);
  const double scale = read_scalar(args.inputs[UpdateLayout::kGradScale], 1);
  const int count = layout.count(static_cast<int>(args.inputs.size()));
  for (int i = 0; i < count; ++i) {
    const auto dtype = [&](int operand) {
      return args.inputs[static_cast<std::size_t>(operand)].dtype;
    };
    const double step = read_scalar(args.inputs[static_cast<std::size_t>(layout.step(i))], 1);
    const auto settings = settings_of(attrs, decay_of(attrs, i));
    Floats::dispatch(dtype(layout.param(i)), [&]<class C>() {
      update_parameter<C, kStates>(args, layout, i, Update<C>::make(settings, step, lr, scale));
    });
  }
}

/// Σ x² in double: tiles of fixed size, added in their order.
double sum_of_squares(const TensorView& view) {
  std::vector<double> tiles(static_cast<std::size_t>((view.numel() + kNormGrain - 1) / kNormGrain));
  Floats::dispatch(view.dtype, [&]<class C>() {
    parallel_ranges(view.numel(), kNormGrain, [&](std::int64_t begin, std::int64_t end) {
      RowReader values = reader(view);
      double total = 0;
      for (std::int64_t first = begin; first < end; first += kBlock) {
        const std::int64_t n = std::min(kBlock, end - first);
        const C* x = values.block<C>(first, n);
        for (std::int64_t i = 0; i < n; ++i) {
          total += static_cast<double>(x[i]) * static_cast<double>(x[i]);
        }
      }
      tiles[static_cast<std::size_t>(begin / kNormGrain)] = total;
    });
  });
  return std::accumulate(tiles.begin(), tiles.end(), 0.0);
}

}  // namespace

void adam_step(const KernelArgs& args) { run_updates<AdamUpdate, 2, AdamAttrs>(args); }

void sgd_step(const KernelArgs& args) {
  if (args.attributes<SgdAttrs>().momentum != 0) {
    run_updates<SgdUpdate, 1, SgdAttrs>(args);
  } else {
    run_updates<SgdUpdate, 0, SgdAttrs>(args);
  }
}

void global_norm(const KernelArgs& args) {
  double total = 0;
  for (const TensorView& view : args.inputs) total += sum_of_squares(view);
  const double norm = std::sqrt(total);
  const double max_norm = args.attributes<GlobalNormAttrs>().max_norm;
  for (std::size_t i = 0; i < args.outputs.size(); ++i) {
    const double value = i == 0 ? norm : clip_coefficient(norm, max_norm);
    dispatch_float(args.outputs[i].dtype,
                   [&]<typename T>() { *args.outputs[i].as<T>() = static_cast<T>(value); });
  }
}

}  // namespace tenon::cpu
