// The generator behind dropout and random tensors. What is drawn is a function of (seed, forward
// number, site, element index); see philox.h for the exact counter layouts.
//
// A forward, that is an outermost module call or a Program's run, has one number, and its random
// calls are numbered as they come: eagerly, traced and scheduled they draw the same. Calls outside
// of modules are numbered by the generator. So after manual_seed a program draws what it drew
// before.
//
// Threads that share a generator never draw the same numbers, but which of them gets which follows
// from who comes first. A thread that shall draw the same bits as if it were alone has its own:
//
//   Generator generator(seed);
//   const GeneratorScope scope(generator);  // this thread's default_generator() from here on
#pragma once

#include <cstdint>
#include <mutex>

#include "tensor/op.h"

namespace tenon {

/// Seed and forward number, and the numbers of random calls outside of modules. Thread-safe: each
/// method takes one step. Inside a trace the default generator cannot be changed (TraceError): it
/// would be once, and not at each run.
class Generator {
 public:
  explicit Generator(std::uint64_t seed = 0);
  Generator(const Generator& other);
  /// Goes on as `other` would.
  Generator& operator=(const Generator& other);
  /// Starts again, as a new generator of that seed.
  void manual_seed(std::uint64_t seed);
  std::uint64_t seed() const { return state().seed; }
  /// The state that the current forward draws with.
  RandomState state() const;
  void set_forward(std::uint32_t forward);
  /// Starts the next forward; two forwards of one seed never draw the same, up to 2^31 of them. A
  /// module call under way on this thread goes on with it.
  void advance_forward();
  /// The same, for a forward that other threads' cannot disturb: the state that it draws with.
  RandomState next_forward();
  /// The site of a dropout outside of modules: no other dropout of this forward number has it.
  /// Where they are used up, the next forward starts. `state`, unless null, gets what to draw with.
  std::int64_t next_outer_site(RandomState* state = nullptr);
  /// A counter block no other random tensor of this generator uses: one for each outside of
  /// modules. `state` as for next_outer_site.
  std::uint64_t next_tensor_stream(RandomState* state = nullptr);
  /// A forward that is traced made it: it draws the same each time, constants of the Graph.
  bool is_of_trace() const;

 private:
  friend class RandomCallNumbers;
  struct Numbers {
    std::uint64_t seed = 0;
    std::uint32_t forward = 0;
    std::int64_t outer_sites = 0;  // of this forward number
    std::uint64_t tensor_stream = 0;
    bool of_trace = false;
    std::uint64_t changes = 0;
    RandomState state() const { return {seed, forward}; }
  };
  Numbers numbers() const;
  /// Calls change(numbers) in one step.
  template <class F>
  auto change(const char* method, const F& change);
  void advance(Numbers& numbers) const;
  mutable std::mutex mutex_;
  Numbers numbers_;
};

/// The generator that this thread's eager calls, Programs and factories use unless given another:
/// one for all threads, except inside of a GeneratorScope.
Generator& default_generator();
/// Seeds the default generator and restarts its numbers: of forwards and of calls outside of
/// modules.
void manual_seed(std::uint64_t seed);

/// Makes a generator this thread's default one for its lifetime; the generator must live longer. A
/// module call under way goes on with what it began with. TraceError inside a trace, whose Graph
/// draws from the generator of each run.
class GeneratorScope {
 public:
  explicit GeneratorScope(Generator& generator);
  ~GeneratorScope();
  GeneratorScope(const GeneratorScope&) = delete;
  GeneratorScope& operator=(const GeneratorScope&) = delete;

 private:
  Generator* outer_;
};

/// What a random call that was refused has taken of a generator, given back; see
/// detail/taken_numbers.h.
class RandomCallNumbers {
 public:
  explicit RandomCallNumbers(Generator& generator);
  /// As if this thread had taken nothing since, unless another thread has taken something.
  void give_back() const;

 private:
  Generator& generator_;
  const Generator::Numbers before_;
  const std::uint64_t own_changes_;
};

}  // namespace tenon
