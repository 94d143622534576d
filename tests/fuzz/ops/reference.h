// The reference interpreter of fuzz_ops: what each call must give, computed on plain arrays in long
// double, with the error that a result may have; what must be refused; and gradients by a tape of
// Jacobian entries. It knows nothing of Tenon but dtypes.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tests/fuzz/ops/program.h"

namespace tenon::op_fuzz {

/// The kinds of error that calls are refused with, as a set.
enum Refusal : unsigned { kNothing = 0, kShape = 1, kDType = 2, kValue = 4 };

struct Handle;
struct Record;
using HandlePtr = std::shared_ptr<Handle>;
using RecordPtr = std::shared_ptr<Record>;

/// Where a gradient flows on to: a leaf, or the call that made an operand.
struct Edge {
  HandlePtr leaf;
  RecordPtr record;
  DType dtype = DType::float32;
  std::int64_t numel = 0;
  bool wanted() const { return leaf || record; }
};

/// d out / d in of one pair of elements. `magnitude` is Σ of the absolute terms that the slope is
/// computed from, where they cancel.
struct Entry {
  std::int64_t out = 0;
  int operand = 0;
  std::int64_t in = 0;
  Number slope = 1;
  Number magnitude = 1;
};

/// A recorded call.
struct Record {
  std::uint64_t sequence = 0;
  std::vector<Edge> edges;
  std::vector<Entry> entries;
  std::vector<std::pair<std::shared_ptr<Memory>, std::uint64_t>> saved;  // with its version then
  DType dtype = DType::float32;                                          // of what it made
  std::int64_t numel = 0;
  bool released = false;
  bool unknown = false;  // an operand had been changed behind autograd's back
};

/// What a Tensor handle stands for. Registers share one where a call returns its operand itself.
struct Handle {
  Array array;
  bool requires_grad = false;
  RecordPtr record;           // null: a leaf
  std::uint64_t version = 0;  // of the memory when `record` was made
  HandlePtr gradient;
};

/// A gradient with the sum of its absolute terms and the error that it may have.
struct Flow {
  Numbers value, scale, error;
};

/// What a handle must hold after a call: values within `allowed` of `value`, rounded. Without
/// `allowed` exactly these.
struct Check {
  HandlePtr handle;
  Numbers value;
  Numbers allowed = {};
  bool signed_zero = true;
  HandlePtr leaf = {};  // the values are its gradient's, which `handle` stands for from now on
};

/// Random values: any that are in [low, high), or low itself, the same whenever `key` comes again.
struct Draw {
  Number low = -kInfinity;
  Number high = kInfinity;
  std::string key = {};
  bool integers = false;
  bool permutation = false;  // of 0, 1, …
};

struct Outcome {
  unsigned required = kNothing;   // refused with one of these
  unsigned permitted = kNothing;  // may be refused so, or not
  /// The refusal follows from values or strides, which a trace does not have.
  bool by_data = false;
  HandlePtr result;           // what the call returns, if anything
  std::vector<Check> checks;  // of results without one the array counts, exactly
  std::vector<std::pair<Array, Numbers>> errors;  // where they are followed
  std::optional<Draw> draw;
  std::function<void()> commit;  // what happens beside new values
};

/// What numbers random calls; tensor/random.h says how. A module call numbers its own from 0 and has
/// a forward number: from its begin on in training, from its first draw on in evaluation.
struct RandomNumbers {
  std::uint64_t seed = 0;
  std::uint32_t forward = 0;
  std::int64_t outer_dropouts = 0;  // those of this forward number outside of modules
  std::int64_t outer_tensors = 0;   // random tensors outside of modules, since the seed was set
  bool in_module = false;
  bool begun = false;     // the module call has its forward number
  std::int64_t site = 0;  // the module call's next one

  void enter_module(bool training);
  void leave_module() { in_module = false; }
  /// The numbers with which a dropout that `draws` is called, and those afterwards.
  RandomNumbers at_dropout(bool draws) const;
  RandomNumbers after_dropout(bool draws) const;
  RandomNumbers after_tensor() const;
  /// What a random tensor's values follow from beside its arguments.
  std::string key_of_tensor() const;
  std::int64_t site_of_dropout() const;
};

/// The state that calls depend on beside their operands.
struct Surroundings {
  bool on_device = false;  // moves between devices copy
  bool training = true;
  RandomNumbers random = {};
};

class Reference {
 public:
  std::map<int, HandlePtr> registers;
  Surroundings now;
  /// Results carry by how much another execution's may differ: one that sums in another order, say.
  bool follows_errors = false;
  std::uint64_t next_sequence = 1;
  /// Random values by what led to them.
  std::map<std::string, Numbers> drawn;

  /// What must come of the step. Changes nothing.
  Outcome evaluate(const Step& step);
  /// Makes it so, with the values as they were found; see Check.
  void commit(const Step& step, const Outcome& outcome, const std::vector<Numbers>& found);
  /// The same with the values as they should be.
  void commit(const Step& step, const Outcome& outcome);
};

/// The values of a check that Tenon should have found.
Numbers rounded(const Check& check);

/// Gradients of Σ root·cotangent with respect to the leaves it was computed from. Backward may be
/// refused where saved values were changed or released.
struct Gradients {
  std::vector<std::pair<HandlePtr, Flow>> leaves;
  bool may_be_refused = false;
  std::vector<RecordPtr> visited;
};
Gradients differentiate(const std::vector<std::pair<HandlePtr, Numbers>>& roots);
/// The error that the values of a gradient may have where they are stored in `dtype`.
Numbers allowed_error(const Flow& flow, DType dtype);

}  // namespace tenon::op_fuzz
