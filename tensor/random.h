// The generator behind dropout and random tensors. What is drawn is a function of (seed, forward
// number, site, element index); see philox.h for the exact counter layouts.
//
// A forward, that is an outermost module call or a Program's run, has one number, and its random
// calls are numbered as they come: eagerly, traced and scheduled they draw the same. Calls outside
// of modules are numbered by the generator. So after manual_seed a program draws what it drew
// before.
#pragma once

#include <cstdint>

#include "tensor/op.h"

namespace tenon {

/// Seed and forward number, and the numbers of random calls outside of modules. One mutating thread
/// at a time. Inside a trace the default generator cannot be changed (TraceError): it would be
/// once, and not at each run.
class Generator {
 public:
  explicit Generator(std::uint64_t seed = 0);
  /// Starts again, as a new generator of that seed.
  void manual_seed(std::uint64_t seed);
  std::uint64_t seed() const { return seed_; }
  /// The state that the current forward draws with.
  RandomState state() const { return {seed_, forward_}; }
  void set_forward(std::uint32_t forward);
  /// Starts the next forward; two forwards of one seed never draw the same, up to 2^31 of them.
  void advance_forward();
  /// The site of a dropout outside of modules: no other dropout of this forward number has it.
  /// Where they are used up, the next forward starts.
  std::int64_t next_outer_site();
  /// A counter block no other random tensor of this generator uses: one for each outside of
  /// modules.
  std::uint64_t next_tensor_stream();
  /// A forward that is traced made it: it draws the same each time, constants of the Graph.
  bool is_of_trace() const { return of_trace_; }

 private:
  std::uint64_t seed_;
  std::uint32_t forward_ = 0;
  std::int64_t outer_sites_ = 0;  // of this forward number
  std::uint64_t tensor_stream_ = 0;
  bool of_trace_ = false;
};

/// The generator that eager calls, Programs and factories use unless given another.
Generator& default_generator();
/// Seeds the default generator and restarts its numbers: of forwards and of calls outside of
/// modules.
void manual_seed(std::uint64_t seed);

}  // namespace tenon
