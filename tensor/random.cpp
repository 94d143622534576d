#include "tensor/random.h"

#include "tensor/detail/check.h"
#include "tensor/interpreter.h"
#include "tensor/philox.h"

namespace tenon {
namespace {

void require_no_trace(const Generator& generator, const char* method) {
  TENON_CHECK(!current_interpreter().is_recording() || &generator != &default_generator(),
              TraceError,
              "[{}] the default generator was changed inside a trace, which would happen once and "
              "not at each run; change it before the run",
              method);
}

}  // namespace

Generator::Generator(std::uint64_t seed)
    : seed_(seed), of_trace_(current_interpreter().is_recording()) {}

void Generator::manual_seed(std::uint64_t seed) {
  require_no_trace(*this, "manual_seed");
  *this = Generator(seed);
}

void Generator::set_forward(std::uint32_t forward) {
  require_no_trace(*this, "set_forward");
  forward_ = forward;
  outer_sites_ = 0;
}

void Generator::advance_forward() {
  require_no_trace(*this, "advance_forward");
  forward_ = (forward_ + 1) & kMaxForward;
  outer_sites_ = 0;
}

std::int64_t Generator::next_outer_site() {
  require_no_trace(*this, "next_outer_site");
  if (kFirstOuterSite + outer_sites_ >= kMaxDropoutSites) advance_forward();
  return kFirstOuterSite + outer_sites_++;
}

std::uint64_t Generator::next_tensor_stream() {
  require_no_trace(*this, "next_tensor_stream");
  return tensor_stream_++;
}

Generator& default_generator() {
  static Generator generator(0);
  return generator;
}

void manual_seed(std::uint64_t seed) { default_generator().manual_seed(seed); }

}  // namespace tenon
