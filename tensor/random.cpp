#include "tensor/random.h"

#include "tensor/detail/follow_generator.h"
#include "tensor/interpreter.h"
#include "tensor/philox.h"
#include "tensor/support/check.h"

namespace tenon {

namespace {

thread_local Generator* scoped = nullptr;     // by a GeneratorScope
thread_local std::uint64_t changes_made = 0;  // by this thread, of all generators

void require_no_trace(const Generator& generator, const char* method) {
  TENON_CHECK(!current_interpreter().is_recording() || &generator != &default_generator(),
              TraceError,
              "[{}] the default generator was changed inside a trace, which would happen once and "
              "not at each run; change it before the run",
              method);
}

}  // namespace

Generator::Generator(std::uint64_t seed)
    : numbers_{.seed = seed, .of_trace = current_interpreter().is_recording()} {}

Generator::Generator(const Generator& other) : numbers_(other.numbers()) {}

Generator& Generator::operator=(const Generator& other) {
  const Numbers others = other.numbers();
  {
    const std::lock_guard lock(mutex_);
    const std::uint64_t changes = numbers_.changes + 1;
    numbers_ = others;
    numbers_.changes = changes;
    ++changes_made;
  }
  detail::follow_generator(*this);
  return *this;
}

Generator::Numbers Generator::numbers() const {
  const std::lock_guard lock(mutex_);
  return numbers_;
}

template <class F>
auto Generator::change(const char* method, const F& change) {
  require_no_trace(*this, method);
  const std::lock_guard lock(mutex_);
  ++numbers_.changes;
  ++changes_made;
  return change(numbers_);
}

void Generator::advance(Numbers& numbers) const {
  numbers.forward = (numbers.forward + 1) & kMaxForward;
  numbers.outer_sites = 0;
}

RandomState Generator::state() const { return numbers().state(); }
bool Generator::is_of_trace() const { return numbers().of_trace; }

void Generator::manual_seed(std::uint64_t seed) {
  require_no_trace(*this, "manual_seed");
  *this = Generator(seed);
}

void Generator::set_forward(std::uint32_t forward) {
  change("set_forward", [&](Numbers& numbers) {
    numbers.forward = forward;
    numbers.outer_sites = 0;
  });
  detail::follow_generator(*this);
}

void Generator::advance_forward() {
  change("advance_forward", [&](Numbers& numbers) { advance(numbers); });
  detail::follow_generator(*this);
}

RandomState Generator::next_forward() {
  return change("next_forward", [&](Numbers& numbers) {
    advance(numbers);
    return numbers.state();
  });
}

std::int64_t Generator::next_outer_site(RandomState* state) {
  return change("next_outer_site", [&](Numbers& numbers) {
    if (kFirstOuterSite + numbers.outer_sites >= kMaxDropoutSites) advance(numbers);
    if (state != nullptr) *state = numbers.state();
    return kFirstOuterSite + numbers.outer_sites++;
  });
}

std::uint64_t Generator::next_tensor_stream(RandomState* state) {
  return change("next_tensor_stream", [&](Numbers& numbers) {
    if (state != nullptr) *state = numbers.state();
    return numbers.tensor_stream++;
  });
}

Generator& default_generator() {
  static Generator& generator = *new Generator(0);  // never destroyed: threads may outlive main
  return scoped != nullptr ? *scoped : generator;
}

void manual_seed(std::uint64_t seed) { default_generator().manual_seed(seed); }

GeneratorScope::GeneratorScope(Generator& generator) : outer_(scoped) {
  TENON_CHECK(
      !current_interpreter().is_recording(), TraceError,
      "[GeneratorScope] was opened inside a trace: a Graph draws from the generator of each "
      "run; open it around the run");
  scoped = &generator;
}
GeneratorScope::~GeneratorScope() { scoped = outer_; }

RandomCallNumbers::RandomCallNumbers(Generator& generator)
    : generator_(generator), before_(generator.numbers()), own_changes_(changes_made) {}

void RandomCallNumbers::give_back() const {
  const std::uint64_t own = changes_made - own_changes_;
  const std::lock_guard lock(generator_.mutex_);
  if (generator_.numbers_.changes == before_.changes + own) generator_.numbers_ = before_;
}

}  // namespace tenon
