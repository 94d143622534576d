// A random program of fuzz_ops as data: calls on numbered registers. Each step names the register
// it makes, so steps can be left out without renaming the others.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tests/fuzz/ops/array.h"

namespace tenon::op_fuzz {

struct Call;

/// A number as a caller writes it.
struct Literal {
  bool is_integer = false;
  std::int64_t integer = 0;
  double real = 0;
  Number number() const { return is_integer ? Number(integer) : Number(real); }
};

/// What a register that is made before the module call is to the module.
enum class Role : std::uint8_t { input, buffer, parameter, captured };

struct Step {
  const Call* call = nullptr;
  int result = -1;            // the register that it makes
  std::vector<int> operands;  // registers
  Sizes numbers;              // axes, sizes, indices: what the call takes beside
  DType dtype = DType::float32;
  Literal literal = {};
  Numbers values = {};   // of a tensor that is made
  bool before = true;    // made before the module is called
  bool no_grad = false;  // under a NoGradGuard
  Role role = Role::input;
};

struct Program {
  /// Called as a module's forward, eagerly and as a Graph; else eagerly, outside of any module.
  bool in_module = false;
  /// What a run of the module is asked for: gradients of its results with respect to the leaves.
  bool wants_gradients = false;
  std::uint64_t seed = 0;
  std::vector<Step> steps;
  std::vector<int> outputs;  // registers that the module returns

  /// C++ as one would write it by hand.
  std::string to_string() const;
};

std::string to_string(const Step& step);
/// The call and its arguments but for registers: what random numbers may follow from.
std::string fingerprint(const Step& step);

}  // namespace tenon::op_fuzz
