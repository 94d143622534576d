// Puts programs together: tensors to begin with, then calls. The reference runs along, so that
// calls are drawn for what is there. Half of the programs are about something: they begin with
// tensors that fit together for it, and draw its calls more often.
#include <set>
#include <string_view>

#include "tests/fuzz/ops/call.h"
#include "tests/fuzz/ops/drawing.h"

namespace tenon::op_fuzz {
namespace {

class Assembly;

struct Subject {
  void (*prepare)(Assembly& assembly);
  std::vector<std::string_view> calls;  // drawn more often
  int chance;                           // of 1000 programs
  bool in_module;                       // or out of one only
};

constexpr int kMoreOften = 150;  // the weight that a subject's calls have beside their own

class Assembly {
 public:
  Assembly(fuzz::RandomSource& choices, bool on_device)
      : source(choices), drawing_(choices, reference_, program_) {
    reference_.now.on_device = on_device;
    program_.seed = source.below(1U << 30);
  }

  fuzz::RandomSource& source;

  Program draw();
  /// A tensor with such values, made in front of the module.
  void tensor(DType dtype, const Sizes& sizes, const Numbers& values) {
    Step step;
    step.call = &call_named("tensor");
    step.dtype = dtype;
    step.numbers = sizes;
    step.values = values;
    take(std::move(step));
  }
  void tensor(DType dtype, const Sizes& sizes) {
    tensor(dtype, sizes, drawing_.values(dtype, product(sizes)));
  }
  /// int64, every one exact.
  void integers(const Numbers& values) {
    Step step;
    step.call = &call_named("from_vector");
    step.dtype = DType::int64;
    step.numbers = {static_cast<std::int64_t>(values.size())};
    step.values = values;
    take(std::move(step));
  }
  void indices(std::int64_t bound, const Sizes& sizes) {
    Numbers values;
    for (std::int64_t i = 0; i < product(sizes); ++i) {
      values.push_back(static_cast<Number>(source.below(static_cast<std::uint64_t>(bound))));
    }
    tensor(source.one_of({DType::int64, DType::int32}), sizes, values);
  }
  /// A float tensor that asks for gradients.
  void leaf(const Sizes& sizes) {
    tensor(drawing_.float_dtype(), sizes);
    Step step;
    step.call = &call_named("requires_grad_");
    step.operands = {next_register_ - 1};
    step.numbers = {1};
    take(std::move(step));
  }
  DType float_dtype() const { return drawing_.float_dtype(); }

 private:
  void take(Step step);
  bool is_allowed(const Call& call, bool before, bool makes) const;
  int weight(const Call& call, bool before, bool makes) const;
  const Call& draw_call(bool before, bool makes);
  void add(bool before, bool makes);
  void give_roles();
  void part_inputs_from_state();
  void keep_statistics();
  void draw_outputs();

  Program program_;
  Reference reference_;
  Drawing drawing_;
  const Subject* subject_ = nullptr;
  int next_register_ = 0;
};

// --- subjects -----------------------------------------------------------------------------------

void prepare_norm(Assembly& a) {
  const DType dtype = a.float_dtype();
  const std::int64_t channels = a.source.one_of<std::int64_t>({1, 2, 3, 7});
  Sizes sizes{a.source.one_of<std::int64_t>({0, 1, 2, 3, 3}), channels};
  for (std::int64_t i = a.source.between(0, 2); i > 0; --i) {
    sizes.push_back(a.source.between(1, 3));
  }
  a.tensor(dtype, sizes);
  for (int i = 0; i < 4; ++i) {
    Numbers values;
    for (std::int64_t c = 0; c < channels; ++c) {
      values.push_back(static_cast<Number>(a.source.between(1, 40)) / 8);
    }
    a.tensor(dtype, {channels}, values);
  }
}

void prepare_attention(Assembly& a) {
  const DType dtype = a.float_dtype();
  Sizes lead;
  for (std::int64_t i = a.source.between(0, 2); i > 0; --i) lead.push_back(a.source.between(1, 2));
  const std::int64_t queries = a.source.between(1, 3);
  const std::int64_t keys = a.source.one_of<std::int64_t>({1, 2, 3, 0});
  const auto with = [&](std::int64_t rows, std::int64_t columns) {
    Sizes sizes = lead;
    sizes.insert(sizes.end(), {rows, columns});
    return sizes;
  };
  const std::int64_t depth = a.source.between(1, 3);
  a.tensor(dtype, with(queries, depth));
  a.tensor(dtype, with(keys, depth));
  a.tensor(dtype, with(keys, a.source.between(1, 3)));
  a.tensor(DType::boolean, a.source.chance(50) ? Sizes{queries, keys} : with(queries, keys));
  Numbers additive;
  for (std::int64_t i = 0; i < queries * keys; ++i) {
    additive.push_back(a.source.chance(50) ? -kInfinity : a.source.between(-2, 2));
  }
  a.tensor(dtype, {queries, keys}, additive);
}

void prepare_lookup(Assembly& a) {
  const std::int64_t rows = a.source.between(1, 4), width = a.source.between(1, 3);
  a.tensor(a.float_dtype(), {rows, width});
  a.tensor(DType::int64, {rows, width});
  a.indices(rows, {a.source.between(0, 4)});
  a.indices(rows, {a.source.between(1, 3), width});
  a.indices(std::min(rows, width), {rows, a.source.between(1, width)});
}

void prepare_selection(Assembly& a) {
  const Sizes sizes{a.source.between(1, 3), a.source.one_of<std::int64_t>({1, 2, 7})};
  const DType dtype = static_cast<DType>(a.source.below(kNumDTypes));
  a.tensor(dtype, sizes);
  a.tensor(dtype, {sizes[1]});
  a.tensor(DType::boolean, sizes);
  a.tensor(DType::boolean, {sizes[0], 1});
}

void prepare_gradients(Assembly& a) {
  const Sizes sizes{a.source.between(1, 3), a.source.one_of<std::int64_t>({1, 2, 7})};
  a.leaf(sizes);
  a.leaf(sizes);
  a.leaf({sizes[1]});
}

void prepare_noise(Assembly&) {}

/// Neighbours that double does not tell apart.
void prepare_integers(Assembly& a) {
  const std::int64_t n = a.source.one_of<std::int64_t>({1, 1, 2, 3, 7});
  for (int i = 0; i < 2; ++i) {
    Numbers values;
    for (std::int64_t k = 0; k < n; ++k) {
      values.push_back(0x1p53L + static_cast<Number>(a.source.between(-1, 2)));
    }
    a.integers(values);
  }
}

void prepare_files(Assembly& a) {
  prepare_integers(a);
  for (const DType dtype : {DType::bfloat16, static_cast<DType>(a.source.below(kNumDTypes))}) {
    a.tensor(dtype, {a.source.one_of<std::int64_t>({0, 1, 7, 33}), a.source.between(1, 3)});
  }
}

void prepare_memory(Assembly& a) {
  const std::int64_t n = a.source.between(2, 7);
  a.tensor(static_cast<DType>(a.source.below(kNumDTypes)), {n, n});
  a.tensor(DType::float32, {n, n});
}

const std::vector<Subject>& subjects() {
  static const std::vector<Subject> all = {
      {prepare_norm, {"batch_norm"}, 70, true},
      {prepare_attention, {"attention"}, 80, true},
      {prepare_lookup, {"index_select", "gather", "embedding"}, 80, true},
      {prepare_selection, {"where", "masked_fill"}, 60, true},
      {prepare_gradients, {"backward", "set_grad", "grad", "clip_grad_norm_", "adam"}, 80, false},
      {prepare_noise,
       {"randn", "uniform", "randint", "randperm", "manual_seed", "dropout"},
       60,
       true},
      {prepare_memory,
       {"copy_", "add_", "mul_scalar_", "transpose", "narrow", "own_dtype"},
       60,
       true},
      {prepare_integers,
       {"eq", "eq_scalar", "lt", "le_scalar", "add_scalar", "sub_scalar", "mul_scalar", "item",
        "masked_fill"},
       30,
       true},
      {prepare_files, {"json", "safetensors"}, 15, false},
  };
  return all;
}

// --- assembling ---------------------------------------------------------------------------------

Program Assembly::draw() {
  auto ticket = static_cast<int>(source.below(1000));
  for (const Subject& subject : subjects()) {
    if (ticket >= 0 && ticket < subject.chance) subject_ = &subject;
    ticket -= subject.chance;
  }
  program_.in_module = source.chance(55) && (subject_ == nullptr || subject_->in_module);
  program_.wants_gradients = program_.in_module && source.chance(40);
  if (subject_ != nullptr) subject_->prepare(*this);
  const bool has_some = !reference_.registers.empty();
  for (auto i = source.between(has_some ? 0 : 2, has_some ? 2 : 6); i > 0; --i) add(true, true);
  for (std::int64_t i = source.between(0, 3); i > 0; --i) add(true, false);
  if (program_.in_module) give_roles();
  for (std::int64_t i = source.between(2, 12); i > 0; --i) add(false, false);
  if (program_.in_module) part_inputs_from_state();
  if (program_.wants_gradients) keep_statistics();
  if (program_.in_module) draw_outputs();
  return std::move(program_);
}

bool is_in_place(const Call& call) {
  const std::string_view name = call.name;
  return name.ends_with("_") || name == "batch_norm";
}

bool Assembly::is_allowed(const Call& call, bool before, bool makes) const {
  static const Call* const first_view = &call_named("narrow");
  static const Call* const last_view = &call_named("contiguous");
  if (makes) return call.makes;
  if (!program_.in_module) return true;
  // In front of a module only what gives its inputs values and layouts.
  if (before) return &call >= first_view && &call < last_view;
  const bool hides_gradients = program_.wants_gradients && is_in_place(call);
  return !call.eager_only && (!hides_gradients || std::string_view(call.name) == "batch_norm");
}

int Assembly::weight(const Call& call, bool before, bool makes) const {
  if (!is_allowed(call, before, makes)) return 0;
  int weight = call.weight;
  if (subject_ == nullptr || before) return weight;
  for (const std::string_view name : subject_->calls) weight += name == call.name ? kMoreOften : 0;
  return weight;
}

const Call& Assembly::draw_call(bool before, bool makes) {
  int total = 0;
  for (const Call& call : all_calls()) total += weight(call, before, makes);
  auto rest = static_cast<int>(source.below(static_cast<std::uint64_t>(total)));
  for (const Call& call : all_calls()) {
    rest -= weight(call, before, makes);
    if (rest < 0) return call;
  }
  return all_calls().front();
}

void Assembly::take(Step step) {
  step.result = next_register_++;
  const Outcome outcome = reference_.evaluate(step);
  if (outcome.required == kNothing) reference_.commit(step, outcome);
  if (!outcome.result) step.result = -1;
  program_.steps.push_back(std::move(step));
}

void Assembly::add(bool before, bool makes) {
  for (int attempt = 0; attempt < 4; ++attempt) {
    Step step;
    step.call = &draw_call(before, makes);
    step.before = before;
    if (!step.call->draw(drawing_, step)) continue;
    step.no_grad = !program_.in_module && source.chance(12);
    // A trace has no values to refuse a call for.
    if (program_.in_module && reference_.evaluate(step).by_data) continue;
    return take(std::move(step));
  }
}

void Assembly::give_roles() {
  for (Step& step : program_.steps) {
    if (!reference_.registers.contains(step.result)) continue;
    const Handle& handle = *reference_.registers.at(step.result);
    step.role = source.one_of({Role::input, Role::input, Role::buffer, Role::captured});
    if (!program_.wants_gradients || !is_float(handle.array.dtype)) continue;
    if (source.chance(30)) step.role = Role::parameter;
  }
}

/// A Program reads inputs as they were before its writes, also one that shares memory with state: what
/// does is state too, where anything is changed.
void Assembly::part_inputs_from_state() {
  const bool changes = std::any_of(program_.steps.begin(), program_.steps.end(),
                                   [](const Step& step) { return is_in_place(*step.call); });
  std::set<const Memory*> of_state;
  const auto memory_of = [&](const Step& step) {
    return reference_.registers.at(step.result)->array.memory.get();
  };
  for (const Step& step : program_.steps) {
    const bool is_state = step.before && step.result >= 0 && step.role != Role::input;
    if (changes && is_state) of_state.insert(memory_of(step));
  }
  for (Step& step : program_.steps) {
    if (!step.before || step.result < 0 || step.role != Role::input) continue;
    if (of_state.contains(memory_of(step))) step.role = Role::captured;
  }
}

/// Running statistics are buffers, and so is what shares their memory: no leaves.
void Assembly::keep_statistics() {
  std::set<const Memory*> statistics;
  for (const Step& step : program_.steps) {
    if (std::string_view(step.call->name) != "batch_norm") continue;
    for (const int reg : {step.operands[1], step.operands[2]}) {
      statistics.insert(reference_.registers.at(reg)->array.memory.get());
    }
  }
  for (Step& step : program_.steps) {
    if (!step.before || step.result < 0) continue;
    const Memory* memory = reference_.registers.at(step.result)->array.memory.get();
    if (statistics.contains(memory)) step.role = Role::buffer;
  }
}

void Assembly::draw_outputs() {
  for (const Step& step : program_.steps) {
    if (step.result < 0 || !reference_.registers.contains(step.result)) continue;
    if (source.chance(step.before ? 25 : 60)) program_.outputs.push_back(step.result);
  }
  if (program_.outputs.empty()) program_.outputs.push_back(reference_.registers.rbegin()->first);
}

}  // namespace

Program draw_program(fuzz::RandomSource& source, bool on_device) {
  return Assembly(source, on_device).draw();
}

}  // namespace tenon::op_fuzz
