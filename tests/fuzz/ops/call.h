// A call of Tenon's public API as fuzz_ops knows it, all in one place: how it is drawn, what it
// must give, how it is made and how it is written. Groups of calls stand in the calls_*.cpp.
#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "tensor/tensor.h"
#include "tests/fuzz/ops/drawing.h"
#include "tests/fuzz/ops/reference.h"

namespace tenon::op_fuzz {

/// Element `in` of an operand.
struct Source {
  int operand = 0;
  std::int64_t in = 0;
};

/// What the reference of a call sees and says.
class Evaluation {
 public:
  Evaluation(Reference& reference_interpreter, const Step& step_to_run);

  Reference& reference;
  const Step& step;
  Outcome outcome;

  const HandlePtr& handle(int i) const { return handles_[static_cast<std::size_t>(i)]; }
  const Array& array(int i) const { return handle(i)->array; }
  int num_operands() const { return static_cast<int>(handles_.size()); }
  std::int64_t number(std::size_t i) const { return step.numbers.at(i); }
  const Surroundings& now() const { return reference.now; }

  // Refusals. A call with several faults may be refused for any of them.
  bool need(bool holds, unsigned refusal);
  void may_refuse(unsigned refusal) { outcome.permitted |= refusal; }
  bool refused() const { return outcome.required != kNothing; }
  /// A non-negative axis of a tensor of that rank, where 0 counts as 1; ShapeError.
  int axis(std::int64_t given, int rank);
  /// DTypeError unless all operands have the first one's dtype.
  void need_one_dtype();
  void need_float(int operand);
  /// Arithmetic on bool (unless `with_bool`) and on storage dtypes is refused.
  void need_number(int operand, bool with_bool);
  Sizes need_broadcast(const Sizes& a, const Sizes& b);

  // Results.
  /// The operand itself.
  void returns(int operand);
  /// Other elements or another order of the operand's memory; `view`: Array -> Array.
  template <class View>
  void shows(int operand, const View& view) {
    moves(view(array(operand)), [&] {
      std::vector<Source> sources;
      for (const Number place : view(positions(array(operand).sizes)).values()) {
        sources.push_back({operand, as_integer(place)});
      }
      return sources;
    });
  }
  /// Operand 0's elements, maybe converted, in memory of their own.
  void copies(Array result);
  /// A result whose elements are operands' elements; `sources` says which, row-major.
  void moves(Array result, const std::function<std::vector<Source>()>& sources);
  /// A tensor of its own. Values are not rounded yet.
  void makes(DType dtype, const Sizes& sizes, Numbers values, Numbers allowed = {},
             bool signed_zero = true);
  /// Writes into operand `target` in place what is computed from the operands `from`.
  void writes(int target, Numbers values, std::vector<int> from, Numbers allowed = {});

  // The tape.
  /// Whether slopes are asked for.
  bool records() const;
  void slope(std::int64_t out, int operand, std::int64_t in, Number slope, Number magnitude);
  void slope(std::int64_t out, int operand, std::int64_t in, Number value) {
    slope(out, operand, in, value, value < 0 ? -value : value);
  }
  /// Backward reads neither operands nor results.
  bool saves_nothing = false;
  bool not_differentiable = false;
  /// Makes the outcome's record; called once, after the call's own function.
  void finish();

 private:
  RecordPtr make_record();
  Edge edge_of(const HandlePtr& handle) const;
  std::vector<HandlePtr> handles_;
  std::vector<Entry> entries_;
  /// Whether a gradient for this operand will be asked for.
  bool wants(int operand) const;
  bool wants_any() const;
  void finish_write();
  void follow_errors();
  Numbers errors_of(const Array& array, const Check* check) const;
  bool grad_mode_;
  int target_ = -1;
  std::vector<int> written_from_;
};

/// Values of an elementwise call at one element.
struct Local {
  Number value = 0;
  Number allowed = 0;
  Number slope[3] = {0, 0, 0};
  Number magnitude[3] = {-1, -1, -1};  // negative: |slope|
};
using Formula = std::function<Local(const Number* x)>;
/// Broadcasts the operands; `exact` results must have the sign of zero too. Writes into `target`
/// where it is not negative, whose shape the result must have.
void elementwise(Evaluation& evaluation, const std::vector<int>& operands, DType result,
                 const Formula& formula, bool exact, int target = -1);

/// What makes a call of Tenon.
struct Invocation {
  const Step& step;
  std::vector<Tensor> operands;
  Device device;
  bool traced = false;
  const Tensor& operator[](std::size_t i) const { return operands.at(i); }
  std::int64_t number(std::size_t i) const { return step.numbers.at(i); }
  /// The numbers as sizes.
  Shape shape() const { return Shape(std::vector<Dim>(step.numbers.begin(), step.numbers.end())); }
  TensorOptions options() const { return {step.dtype, device}; }
  Scalar scalar() const;
};
/// Undefined where the call returns nothing.
using Run = Tensor (*)(const Invocation& invocation);

struct Call {
  const char* name;
  /// How it is written: $0 an operand, $* all; #0 a number, #1* those from there on; % the literal,
  /// @ the dtype, ! the values.
  const char* form;
  int weight;  // how often it is drawn; 0: only where a program is about it
  bool (*draw)(Drawing& drawing, Step& step);
  void (*evaluate)(Evaluation& evaluation);
  Run run;
  /// Not in a module: what it does or refuses needs values.
  bool eager_only = false;
  /// Makes tensors from nothing: what programs begin with.
  bool makes = false;
};

const std::vector<Call>& all_calls();
const Call& call_named(const std::string& name);
std::vector<Call> calls_that_make();
std::vector<Call> calls_that_show();
std::vector<Call> calls_of_arithmetic();
std::vector<Call> calls_of_assignment();
std::vector<Call> calls_of_comparison();
std::vector<Call> calls_that_reduce();
std::vector<Call> calls_that_look_up();
std::vector<Call> calls_in_place();
std::vector<Call> calls_of_layers();
std::vector<Call> calls_of_state();

}  // namespace tenon::op_fuzz
