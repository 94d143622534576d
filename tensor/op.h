// Op: everything Tenon knows about one operator, stated once in tensor/ops/<op>.cpp: operands,
// attributes, traits, shape inference, decomposition, kernels and documentation. Passes ask an Op's
// traits and functions; nothing switches over op names.
#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tensor/attrs.h"
#include "tensor/kernel.h"
#include "tensor/tensor_view.h"
#include "tensor/value_range.h"

namespace tenon {

class Op;
class Tensor;

/// What is known of a tensor before it holds data: dtype, shape and device.
struct TensorSpec {
  DType dtype = DType::float32;
  Shape shape;
  Device device;
  /// "float32(2, s0, 1024)".
  std::string to_string() const;
  friend bool operator==(const TensorSpec& a, const TensorSpec& b) {
    return a.dtype == b.dtype && a.device == b.device && a.shape.same_as(b.shape);
  }
};

enum class Trait : std::uint32_t {
  elementwise = 1,  ///< each output element depends on the same (broadcast) element of the inputs
  view = 2,         ///< the output can alias operand 0's storage
  random = 4,       ///< reads the random state, unless `draws` says that it does not
  commutative = 8,  ///< the two operands can be swapped
  concatenation = 16,  ///< operands one after another along an axis; adjacent ones need no copy
  effect = 32,  ///< does something beside its result: never left out, repeated or run by backward
  /// Element i of an operand is read by the thread that writes element i of the results, before it
  /// does: a result may lie where an operand of its layout lies. Elementwise ops do so anyway.
  update = 64,
  /// Moves, compares or casts elements without computing with them: takes int16 and int8, as views do.
  storage_dtypes = 128,
};

/// Shape inference sees the operands' specs. `has(i)` is false for an absent optional operand.
class InferContext {
 public:
  InferContext(const Op& op, std::span<const TensorSpec* const> inputs, const Attrs& attrs)
      : op_(op), inputs_(inputs), attrs_(attrs) {}
  const Op& op() const { return op_; }
  int size() const { return static_cast<int>(inputs_.size()); }
  bool has(int i) const { return i < size() && inputs_[static_cast<std::size_t>(i)] != nullptr; }
  const TensorSpec& operator[](int i) const { return *inputs_[static_cast<std::size_t>(i)]; }
  template <class A>
  const A& attributes() const {
    return attrs_.as<A>();
  }

 private:
  const Op& op_;
  std::span<const TensorSpec* const> inputs_;
  const Attrs& attrs_;
};

/// One recorded call and the cotangents of its outputs, as a vjp sees them. Only operands and outputs
/// that the op declared with saves_inputs and saves_outputs are there; specs always are.
class VjpContext {
 public:
  virtual ~VjpContext() = default;
  virtual const Op& op() const = 0;
  virtual const Attrs& attrs() const = 0;
  virtual int num_inputs() const = 0;
  /// False for an absent optional operand.
  virtual bool has(int i) const = 0;
  /// Whether the gradient of operand i is wanted; a vjp may leave the others undefined.
  virtual bool needs(int i) const = 0;
  virtual const TensorSpec& input_spec(int i) const = 0;
  virtual const TensorSpec& output_spec(int i) const = 0;
  /// A saved operand; undefined when absent.
  virtual Tensor input(int i) const = 0;
  virtual Tensor output(int i) const = 0;
  /// The gradient of output i; undefined where nothing depended on it.
  virtual Tensor cotangent(int i) const = 0;
  /// The same with zeros in place of an undefined one.
  virtual Tensor cotangent_or_zeros(int i) const = 0;
  template <class A>
  const A& attributes() const {
    return attrs().as<A>();
  }
};

struct Operand {
  std::string name;
  bool optional = false;
  bool variadic = false;  // the last operand: any number >= 1 of tensors
};

/// An operand of integers that are positions along an axis of another operand.
struct IndexOperand {
  int index = 0;
  int table = 0;
  std::int64_t (*axis)(const Attrs&) = nullptr;     // null: axis 0
  std::int64_t (*ignored)(const Attrs&) = nullptr;  // a number that selects nothing; null: none
};

class Op {
 public:
  using Infer = std::vector<TensorSpec> (*)(const InferContext&);
  /// The layout of the output as a view of operand 0's layout, or nothing when a copy is needed.
  using View = std::optional<Layout> (*)(const Layout& input, const Extents& output_sizes,
                                         const Attrs&);
  using Decompose = std::vector<Tensor> (*)(std::span<const Tensor> inputs, const Attrs&);
  /// True when the call returns operand 0 unchanged (dropout in eval mode).
  using Identity = bool (*)(const Attrs&, bool training);
  /// The operand whose values result `output` repeats in this mode (batch_norm's statistics in
  /// evaluation), or -1. A Program then takes the operand itself: a state that is handed back to
  /// itself is not written.
  using Repeats = int (*)(const Attrs&, bool training, int output);
  /// Between which numbers the elements of the first result are, given the operands'.
  using Range = ValueRange (*)(std::span<const std::optional<ValueRange>> operands, const Attrs&);
  /// Floating-point operations of one call (a multiply-add counts as two).
  using Flops = double (*)(const KernelArgs&);
  /// The gradients of the operands, in operand order; undefined where there is none. Emits ops, so it
  /// runs eagerly, under the tracer and under autograd itself.
  using Vjp = std::vector<Tensor> (*)(const VjpContext&);

  std::string name;
  std::string doc;
  std::vector<Operand> operands;
  std::uint32_t traits = 0;
  Infer infer = nullptr;
  View view = nullptr;
  Decompose decompose = nullptr;
  /// The attributes of a fused op with every number a wildcard, so that `decompose` is a pattern; one
  /// element for each choice of what is no number.
  std::vector<Attrs> (*pattern_attrs)() = nullptr;
  Identity identity = nullptr;
  Repeats repeats = nullptr;
  /// Null: the operands' ranges, and 0, for an op that only moves elements; else nothing is known.
  Range range = nullptr;
  Flops flops = nullptr;
  Vjp vjp = nullptr;
  std::uint32_t saved_inputs = 0;   // bit i: the vjp reads operand i
  std::uint32_t saved_outputs = 0;  // bit i: the vjp reads output i
  /// For an op with one result: the op that autograd records in its place. Same operands and
  /// attributes, the same result first, then what its vjp reads beside (a log-sum-exp, the input of an
  /// activation), which a call that nothing differentiates need not compute.
  std::string recorded_as;
  /// The op with one more operand at the end, which it adds to its first result: what graph/passes/
  /// accumulate makes of a sum.
  std::string accumulates_as;
  /// For an op of recorded_as: the op that makes its first result of its second, with the same
  /// attributes. Recomputation keeps the second result and runs that in place of this op.
  std::string rederived_by;
  /// No gradient flows through: comparisons, argmax, detach.
  bool not_differentiable = false;
  /// What selects from what: an index outside of [0, the axis's size) is an error.
  std::optional<IndexOperand> selects_by;

  bool has(Trait trait) const { return (traits & static_cast<std::uint32_t>(trait)) != 0; }
  const std::vector<Kernel>& kernels(DeviceType device) const {
    return kernels_[static_cast<std::size_t>(device)];
  }
  /// Adds an implementation; where several support a call and none prefers it, the earliest is taken.
  void add_kernel(DeviceType device, Kernel kernel) {
    kernels_[static_cast<std::size_t>(device)].push_back(kernel);
  }

 private:
  std::vector<Kernel> kernels_[kNumDeviceTypes];
};

/// Chained declaration of an Op; see any file in tensor/ops.
class OpBuilder {
 public:
  explicit OpBuilder(std::string_view name);
  ~OpBuilder();
  OpBuilder(OpBuilder&&) noexcept;
  OpBuilder& doc(std::string_view text);
  OpBuilder& operand(std::string_view name);
  OpBuilder& optional(std::string_view name);
  OpBuilder& variadic(std::string_view name);
  OpBuilder& trait(Trait trait);
  OpBuilder& infer(Op::Infer f);
  OpBuilder& view(Op::View f);
  OpBuilder& decompose(Op::Decompose f);
  OpBuilder& pattern_attrs(std::vector<Attrs> (*f)());
  OpBuilder& identity(Op::Identity f);
  /// See Op::Repeats.
  OpBuilder& repeats(Op::Repeats f);
  /// See Op::Range, and the rules in tensor/value_range.h.
  OpBuilder& range(Op::Range f);
  OpBuilder& flops(Op::Flops f);
  /// See Op::Vjp. An op that has none is differentiated through its decomposition.
  OpBuilder& vjp(Op::Vjp f);
  /// The operands that the vjp reads; nothing else is kept until backward.
  OpBuilder& saves_inputs(std::initializer_list<int> operands);
  OpBuilder& saves_outputs(std::initializer_list<int> outputs);
  /// See Op::recorded_as.
  OpBuilder& recorded_as(std::string_view op);
  /// See Op::accumulates_as.
  OpBuilder& accumulates_as(std::string_view op);
  /// See Op::rederived_by.
  OpBuilder& rederived_by(std::string_view op);
  OpBuilder& not_differentiable();
  /// See Op::selects_by.
  OpBuilder& selects_by(const IndexOperand& operand);
  OpBuilder& cpu(const Kernel& kernel);
  Op done();

 private:
  std::unique_ptr<Op> op_;
};

/// The attribute that says whether a call acts as in training (FieldKind::mode), or attrs.size().
std::size_t find_mode(const Attrs& attrs);

/// That attribute of a call whose result depends on it; nothing for an op without one, and where
/// the probability is 0.
std::optional<DropoutMode> mode_of(const Op& op, const Attrs& attrs);

/// Whether a call reads the random state: a random op that has a mode in that mode, and none whose
/// probability is 0.
bool draws(const Op& op, const Attrs& attrs, bool training);

/// All ops, in the order of tensor/ops/registry.cpp; the list is fixed at first use.
const std::vector<const Op*>& all_ops();
/// The op of that name, or null.
const Op* find_op(std::string_view name);
/// The op of that name; ValueError when there is none.
const Op& get_op(std::string_view name);
/// The implementation on `device` for a call: the first that prefers it, else the first that supports
/// it, or null.
const Kernel* select_kernel(const Op& op, DeviceType device, const KernelArgs& args);

/// Output specs of a call; ShapeError, DTypeError or DeviceError when the operands do not fit.
std::vector<TensorSpec> infer(const Op& op, std::span<const TensorSpec* const> inputs,
                              const Attrs& attrs);

}  // namespace tenon
