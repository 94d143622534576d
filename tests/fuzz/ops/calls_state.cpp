// Calls that are about state: what asks for gradients, gradients, clipping, checkpoints.
#include <algorithm>
#include <cmath>

#include "autograd/autograd.h"
#include "nn/adam.h"
#include "nn/checkpoint.h"
#include "nn/clip_grad.h"
#include "tests/fuzz/ops/call.h"
#include "tests/support/temp_folder.h"

namespace tenon::op_fuzz {
namespace {

using I = const Invocation&;

// --- what asks for gradients --------------------------------------------------------------------

bool draw_requires_grad(Drawing& d, Step& step) {
  const auto leaf = d.wrong() ? d.any() : d.floating();
  if (!leaf) return false;
  step.operands = {*leaf};
  step.numbers = {!d.source.chance(15)};
  return true;
}

void evaluate_requires_grad(Evaluation& e) {
  const bool on = e.number(0) != 0;
  const HandlePtr handle = e.handle(0);
  e.need(!handle->record, kValue);
  e.need(!on || is_float(handle->array.dtype), kDType);
  if (!e.refused()) e.outcome.commit = [handle, on] { handle->requires_grad = on; };
}

// --- gradients ----------------------------------------------------------------------------------

bool draw_set_grad(Drawing& d, Step& step) {
  const auto leaf = d.that([](const Handle& h) { return h.requires_grad && !h.record; });
  if (!leaf) return false;
  const Array& array = d.array(*leaf);
  const auto gradient = d.that([&](const Handle& h) {
    return h.array.dtype == array.dtype && h.array.sizes == array.sizes;
  });
  step.operands = {*leaf, d.wrong() ? *d.any() : *gradient};
  return true;
}

void evaluate_set_grad(Evaluation& e) {
  const Array& leaf = e.array(0);
  const Array& gradient = e.array(1);
  for (const Handle* other = e.handle(1).get(); other; other = other->gradient.get()) {
    e.need(other != e.handle(0).get(), kValue);
  }
  e.need(leaf.sizes == gradient.sizes && leaf.dtype == gradient.dtype, kShape | kDType);
  e.outcome.commit = [handle = e.handle(0), value = e.handle(1)] { handle->gradient = value; };
}

bool draw_grad(Drawing& d, Step& step) {
  const auto leaf = d.that([](const Handle& h) { return h.gradient != nullptr; });
  if (!leaf) return false;
  step.operands = {*leaf};
  return true;
}

/// Operands: root, maybe its cotangent. Number: whether the record is kept.
bool draw_backward(Drawing& d, Step& step) {
  auto root = d.that([](const Handle& h) { return h.requires_grad && h.record; });
  if (!root && d.source.chance(20)) root = d.floating();
  if (!root) return false;
  step.operands = {*root};
  const Array& array = d.array(*root);
  const auto cotangent = d.that([&](const Handle& h) {
    return h.array.dtype == array.dtype && h.array.sizes == array.sizes;
  });
  if (array.numel() != 1 ? !d.wrong() : d.source.chance(30)) {
    step.operands.push_back(d.wrong() ? *d.any() : *cotangent);
  }
  step.numbers = {d.source.chance(50)};
  return true;
}

void evaluate_backward(Evaluation& e) {
  const Array& root = e.array(0);
  const bool has_cotangent = e.num_operands() > 1;
  e.need(e.handle(0)->requires_grad, kValue);
  e.need(has_cotangent || root.numel() == 1, kValue);
  if (has_cotangent) {
    const Array& given = e.array(1);
    e.need(given.sizes == root.sizes && given.dtype == root.dtype, kShape);
  }
  if (e.refused()) return;
  const Numbers cotangent = has_cotangent ? e.array(1).values() : Numbers{1};
  const Gradients found = differentiate({{e.handle(0), cotangent}});
  if (found.may_be_refused) e.may_refuse(kValue);
  for (const auto& [leaf, flow] : found.leaves) {
    const DType dtype = leaf->array.dtype;
    auto gradient = std::make_shared<Handle>();
    Check check{gradient, flow.value, allowed_error(flow, dtype), false, leaf};
    if (leaf->gradient) {
      const Numbers before = leaf->gradient->array.values();
      for (std::size_t i = 0; i < before.size(); ++i) {
        check.value[i] += before[i];
        if (!std::isfinite(before[i])) check.allowed[i] = kInfinity;
        check.allowed[i] += ulp(dtype, before[i]) / 2;
      }
    }
    gradient->array = make_array(dtype, leaf->array.sizes, rounded(check));
    e.outcome.checks.push_back(std::move(check));
  }
  const bool kept = e.number(0) != 0;
  e.outcome.commit = [checks = e.outcome.checks, records = found.visited, kept] {
    for (const Check& check : checks) check.leaf->gradient = check.handle;
    for (const RecordPtr& record : records) record->released |= !kept;
  };
}

Tensor run_backward(I c) {
  backward(c[0], c.operands.size() > 1 ? c[1] : Tensor(),
           BackwardOptions{.retain_graph = c.number(0) != 0});
  return {};
}

// --- clipping -----------------------------------------------------------------------------------

/// Operands: leaves. The literal is the largest norm.
bool draw_clip(Drawing& d, Step& step) {
  for (int i = d.source.chance(40) ? 2 : 1; i > 0; --i) {
    const auto leaf = d.that(
        [&](const Handle& h) { return h.requires_grad && !h.record && (h.gradient || d.wrong()); });
    if (!leaf) return false;
    const bool repeated = std::any_of(step.operands.begin(), step.operands.end(), [&](int reg) {
      return d.reference.registers.at(reg) == d.reference.registers.at(*leaf);
    });
    if (!repeated) step.operands.push_back(*leaf);
  }
  step.literal.real = d.source.one_of({1.0, 0.5, 0.01, 100.0});
  return true;
}

void evaluate_clip(Evaluation& e) {
  DType dtype = DType::float32;
  Number squares = 0, count = 0;
  bool defined = false;
  e.not_differentiable = true;
  for (int i = 0; i < e.num_operands(); ++i) {
    if (e.handle(i)->gradient == nullptr) {
      e.need(!e.handle(i)->requires_grad, kValue);
      continue;
    }
    defined = true;
    const Array& gradient = e.handle(i)->gradient->array;
    if (gradient.dtype == DType::float64) dtype = DType::float64;
    for (const Number value : gradient.values()) squares += value * value;
    count += static_cast<Number>(gradient.numel());
  }
  e.need(defined, kValue);
  if (e.refused()) return;
  const Number error = roundoff(dtype) * (count + 8);
  const bool sound = squares < largest(dtype) / 4;
  const Number norm = std::sqrt(squares);
  e.makes(dtype, {}, {norm}, {sound ? norm * error + smallest_normal(dtype) * 4 : kInfinity});
  const Number largest_norm = e.step.literal.real;
  const Number factor = std::min<Number>(1, largest_norm / (norm + 1e-6L));
  std::vector<Check> clipped;
  for (int i = 0; i < e.num_operands(); ++i) {
    if (e.handle(i)->gradient == nullptr) continue;
    const Array& gradient = e.handle(i)->gradient->array;
    auto result = std::make_shared<Handle>();
    Check check{result, gradient.values(), {}, false, e.handle(i)};
    for (Number& value : check.value) {
      value *= factor;
      // Scaled in float32 or wider, and rounded once.
      const Number unit = std::max(error, 2 * roundoff(wide(gradient.dtype)));
      const Number allowed = std::fabs(value) * 2 * unit + smallest_subnormal(dtype);
      check.allowed.push_back(sound ? allowed : kInfinity);
    }
    result->array = make_array(gradient.dtype, gradient.sizes, rounded(check));
    clipped.push_back(check);
    e.outcome.checks.push_back(std::move(check));
  }
  e.outcome.commit = [clipped] {
    for (const Check& check : clipped) check.leaf->gradient = check.handle;
  };
}

Tensor run_clip(I c) {
  nn::Module::NamedTensors leaves;
  for (std::size_t i = 0; i < c.operands.size(); ++i) {
    leaves.emplace_back("leaf" + std::to_string(i), c[i]);
  }
  return nn::clip_grad_norm_(leaves, c.step.literal.real);
}

// --- optimizers --------------------------------------------------------------------------------

struct Holder : nn::Module {
  explicit Holder(const Tensor& value) { register_parameter("value", value); }
};

/// Operands: a parameter and its gradient. The literal is the rate, the dtype what the parameter is
/// converted to before the step; number: whether a step that is refused comes first.
bool draw_adam(Drawing& d, Step& step) {
  const auto parameter = d.floating();
  if (!parameter) return false;
  const Array& array = d.array(*parameter);
  const auto gradient = d.that([&](const Handle& h) {
    return h.array.dtype == array.dtype && h.array.sizes == array.sizes;
  });
  step.operands = {*parameter, *gradient};
  step.dtype = d.float_dtype();
  step.numbers = {d.source.chance(50)};
  step.literal.real = d.source.one_of({0.125, 0.01});
  return true;
}

/// The first step of Adam is along the gradient's sign, gradient / (|gradient| + 1e-8).
void evaluate_adam(Evaluation& e) {
  const DType dtype = e.step.dtype;
  const Number rate = e.step.literal.real;
  const Numbers values = e.array(0).values(), slopes = e.array(1).values();
  const bool sound = std::all_of(slopes.begin(), slopes.end(), [](Number slope) {
    return slope == 0 || (std::fabs(slope) > 1e-3L && std::fabs(slope) < 1e4L);
  });
  // A 16-bit parameter's float32 copy stays where the new dtype has 16 bits too.
  const bool has_master = e.array(0).dtype != wide(e.array(0).dtype) && dtype != wide(dtype);
  Numbers results, allowed;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const Number value = from_real(has_master ? DType::float32 : dtype, values[i]);
    results.push_back(value - rate * slopes[i] / (std::fabs(slopes[i]) + 1e-8L));
    const bool known = sound && std::isfinite(value);
    allowed.push_back(known ? rate * 1e-3L + 2 * ulp(wide(dtype), value) : kInfinity);
  }
  e.not_differentiable = true;
  e.makes(dtype, e.array(0).sizes, std::move(results), std::move(allowed), false);
}

Tensor run_adam(I c) {
  const auto module = nn::make<Holder>(c[0].detach().clone());
  nn::Adam optimizer(module->named_parameters(), {.lr = c.step.literal.real},
                     {.max_grad_norm = 1e30});
  if (c.number(0) != 0) {
    try {
      optimizer.step();
      return {};
    } catch (const ValueError&) {  // there is no gradient
    }
  }
  module->to(c.step.dtype);
  Tensor parameter = module->named_parameters().at(0).second;
  parameter.set_grad(c[1].detach().to(c.step.dtype));
  optimizer.step();
  return parameter.detach().clone();
}

// --- numbers ------------------------------------------------------------------------------------

/// The only element as a number of the step's dtype, in a tensor again.
bool draw_item(Drawing& d, Step& step) {
  const auto one =
      d.wrong() ? d.any() : d.that([](const Handle& h) { return h.array.numel() == 1; });
  if (!one) return false;
  step.operands = {*one};
  step.dtype = d.source.chance(50) ? d.array(*one).dtype : d.dtype();
  return true;
}

void evaluate_item(Evaluation& e) {
  const Array& array = e.array(0);
  if (!e.need(array.numel() == 1, kShape)) return;
  const Number given = array.values()[0];
  const Number value = from_real(e.step.dtype, given);
  e.need(is_float(e.step.dtype) || given == value, kValue);
  e.not_differentiable = true;
  e.makes(e.step.dtype, {}, {value});
}

Tensor run_item(I c) {
  return dispatch_all(c.step.dtype, [&]<class T>() {
    const T value = c[0].item<T>();
    if constexpr (std::is_same_v<T, Half> || std::is_same_v<T, BFloat16>) {
      return tensor({static_cast<float>(value)}, {}, c.options());
    } else {
      return tensor({value}, {}, c.options());
    }
  });
}

// --- checkpoints --------------------------------------------------------------------------------

bool draw_checkpoint(Drawing& d, Step& step) {
  for (int i = 0; i < 3; ++i) {
    const auto tensor = d.any();
    if (!tensor) return false;
    step.operands.push_back(*tensor);
  }
  step.numbers = {d.source.between(0, 2)};
  return true;
}

/// What was saved of the tensor that number 0 names is loaded again.
void evaluate_checkpoint(Evaluation& e) {
  const Array& saved = e.array(static_cast<int>(e.number(0)));
  e.not_differentiable = true;
  e.makes(saved.dtype, saved.sizes, saved.values());
}

Tensor round_trip(I c, const std::string& name) {
  const test::TempFolder folder;
  nn::Checkpoint checkpoint;
  for (std::size_t i = 0; i < c.operands.size(); ++i) {
    checkpoint.tensors.add("t" + std::to_string(i), c[i].detach());
  }
  const std::string path = folder / name;
  // Small limits, so that every way of writing is taken.
  nn::save_checkpoint(path, checkpoint, {.data_limit = 64, .base64_limit = 256});
  nn::save_checkpoint(path, checkpoint, {.data_limit = 64, .base64_limit = 256});
  const nn::Checkpoint loaded = nn::load_checkpoint(path);
  return loaded.state_dict().at("t" + std::to_string(c.number(0))).to(c.device).clone();
}

}  // namespace

std::vector<Call> calls_of_state() {
  return {
      {"requires_grad_", "$0.requires_grad_(#0)", 20, draw_requires_grad, evaluate_requires_grad,
       [](I c) {
         Tensor tensor = c[0];
         tensor.requires_grad_(c.number(0) != 0);
         return Tensor();
       },
       true},
      {"set_grad", "$0.set_grad($1)", 6, draw_set_grad, evaluate_set_grad,
       [](I c) {
         Tensor tensor = c[0];
         tensor.set_grad(c[1]);
         return Tensor();
       },
       true},
      {"grad", "$0.grad()", 6, draw_grad,
       [](Evaluation& e) {
         e.not_differentiable = true;
         e.outcome.result = e.handle(0)->gradient;
       },
       [](I c) { return c[0].grad(); }, true},
      {"backward", "backward($*, {.retain_graph = #0})", 16, draw_backward, evaluate_backward,
       run_backward, true},
      {"clip_grad_norm_", "nn::clip_grad_norm_({$*}, %)", 6, draw_clip, evaluate_clip, run_clip,
       true},
      {"adam", "step_of_adam($0, $1, %, @, #0)", 3, draw_adam, evaluate_adam, run_adam, true},
      {"item", "tensor({$0.item<@>()}, {}, @)", 5, draw_item, evaluate_item, run_item, true},
      {"json", "save_and_load({$*}, \"x.json\")[#0]", 0, draw_checkpoint, evaluate_checkpoint,
       [](I c) { return round_trip(c, "x.json"); }, true},
      {"safetensors", "save_and_load({$*}, \"x.safetensors\")[#0]", 0, draw_checkpoint,
       evaluate_checkpoint, [](I c) { return round_trip(c, "x.safetensors"); }, true},
  };
}

}  // namespace tenon::op_fuzz
