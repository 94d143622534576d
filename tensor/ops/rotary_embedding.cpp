// rotary_embedding: positions as rotations of pairs of elements, half a row apart (J. Su et al.,
// "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021; arXiv:2104.09864).
//
//   [a b]·cos + [-b a]·sin, a and b the halves of a row
#include "tensor/cpu/rows.h"
#include "tensor/interpreter.h"
#include "tensor/ops/op_list.h"
#include "tensor/parallel.h"
#include "tensor/rules/gradients.h"
#include "tensor/rules/infer_rules.h"
#include "tensor/support/check.h"

namespace tenon {

Tensor rotary_embedding(const Tensor& input, const Tensor& cos, const Tensor& sin) {
  static const Op& op = get_op("rotary_embedding");
  return apply1(op, {input, cos, sin});
}

namespace ops {

Tensor rotary_embedding_backward(const Tensor& grad, const Tensor& cos, const Tensor& sin) {
  static const Op& op = get_op("rotary_embedding_backward");
  return apply1(op, {grad, cos, sin});
}

namespace {

/// Each size of `shape` is the size of `target` on that axis, or 1.
bool repeats_to(const Shape& shape, const Shape& target) {
  if (shape.rank() > target.rank()) return false;
  for (int axis = 1; axis <= shape.rank(); ++axis) {
    const Dim& size = shape[-axis];
    if (!size.same_as(1) && !unify(size, target[-axis]) && !(size == 1)) return false;
  }
  return true;
}

std::vector<TensorSpec> infer_rotary_embedding(const InferContext& context) {
  require_floating(context, 0);
  require_same_dtype(context);
  const Shape& shape = context[0].shape;
  const bool fits = shape.rank() > 0 && shape[-1] % 2 == 0 && repeats_to(context[1].shape, shape) &&
                    repeats_to(context[2].shape, shape);
  TENON_CHECK(fits, ShapeError,
              "[{}] input {}, cos {} and sin {}; needed (…, 2·N), and shapes that broadcast to it",
              context.op().name, shape.to_string(), context[1].shape.to_string(),
              context[2].shape.to_string());
  return {context[0]};
}

/// [-b a] of x = [a b], or [b -a].
Tensor turned(const Tensor& x, bool back) {
  const Dim half = x.size(-1) / 2;
  const Tensor a = narrow(x, -1, 0, half), b = narrow(x, -1, half, half);
  return back ? cat({b, neg(a)}, -1) : cat({neg(b), a}, -1);
}

std::vector<Tensor> decompose(std::span<const Tensor> inputs, const Attrs&) {
  return {inputs[0] * inputs[1] + turned(inputs[0], false) * inputs[2]};
}

std::vector<Tensor> decompose_backward(std::span<const Tensor> inputs, const Attrs&) {
  return {inputs[0] * inputs[1] + turned(inputs[0] * inputs[2], true)};
}

std::vector<Tensor> vjp_rotary_embedding(const VjpContext& call) {
  const Tensor grad = call.cotangent(0);
  std::vector<Tensor> gradients(3);
  if (call.needs(0)) gradients[0] = rotary_embedding_backward(grad, call.input(1), call.input(2));
  if (call.needs(1)) gradients[1] = sum_to(grad * call.input(0), call.input_spec(1).shape);
  if (call.needs(2)) {
    gradients[2] = sum_to(grad * turned(call.input(0), false), call.input_spec(2).shape);
  }
  return gradients;
}

/// `view` with the sizes of `sizes`, and stride 0 where it is repeated.
TensorView repeated(const TensorView& view, const Extents& sizes) {
  TensorView result = view;
  result.sizes = sizes;
  result.strides = Extents::filled(sizes.size(), 0);
  const int missing = sizes.size() - view.rank();
  for (int axis = 0; axis < view.rank(); ++axis) {
    if (view.sizes[axis] != 1) result.strides[axis + missing] = view.strides[axis];
  }
  return result;
}

template <bool kBack>
void run(const KernelArgs& args) {
  const TensorView& output = args.outputs[0];
  const TensorView views[] = {args.inputs[0], repeated(args.inputs[1], output.sizes),
                              repeated(args.inputs[2], output.sizes)};
  const std::int64_t width = output.size(-1), half = width / 2;
  if (output.numel() == 0) return;
  const Extents rows = cpu::first_axes(output.sizes, output.rank() - 1);
  dispatch_float(output.dtype, [&]<typename T>() {
    using C = compute_type<T>;
    parallel_ranges(
        rows.product(), cpu::rows_per_task(width), [&](std::int64_t begin, std::int64_t end) {
          thread_local cpu::Scratch scratch;
          C* const x = scratch.get<C>(4 * width);
          C *const cos = x + width, *const sin = x + 2 * width, *const y = x + 3 * width;
          for (std::int64_t row = begin; row < end; ++row) {
            C* const targets[] = {x, cos, sin};
            for (int i = 0; i < 3; ++i) {
              const TensorView& view = views[i];
              cpu::load_row(view.as<const T>() + cpu::offset_of(row, rows, view.strides),
                            view.stride(-1), width, targets[i]);
            }
            for (std::int64_t i = 0; i < half; ++i) {
              const std::int64_t j = i + half;
              y[i] = kBack ? x[i] * cos[i] + x[j] * sin[j] : x[i] * cos[i] - x[j] * sin[i];
              y[j] = kBack ? x[j] * cos[j] - x[i] * sin[i] : x[j] * cos[j] + x[i] * sin[j];
            }
            cpu::store_row(y, width, output.as<T>() + cpu::offset_of(row, rows, output.strides),
                           output.stride(-1));
          }
        });
  });
}

}  // namespace

Op define_rotary_embedding() {
  return OpBuilder("rotary_embedding")
      .doc(
          "input·cos + [-b a]·sin, where a and b are the halves of each row of input (…, 2·N); cos "
          "and sin broadcast to it. With the cosines and sines of position·frequency, both halves "
          "alike, this is RoPE as LLaMA has it. 16-bit floats are rounded once, at the end.")
      .operand("input")
      .operand("cos")
      .operand("sin")
      .infer(infer_rotary_embedding)
      .decompose(decompose)
      .vjp(vjp_rotary_embedding)
      .saves_inputs({0, 1, 2})
      .cpu({.name = "cpu.rotary_embedding",
            .run = run<false>,
            .accepts = any_layout,
            .strided_output = true})
      .done();
}

Op define_rotary_embedding_backward() {
  return OpBuilder("rotary_embedding_backward")
      .doc(
          "The gradient of rotary_embedding by its input: grad·cos + [b -a], where a and b are the "
          "halves of each row of grad·sin.")
      .operand("grad")
      .operand("cos")
      .operand("sin")
      .infer(infer_rotary_embedding)
      .decompose(decompose_backward)
      .cpu({.name = "cpu.rotary_embedding_backward",
            .run = run<true>,
            .accepts = any_layout,
            .strided_output = true})
      .done();
}

}  // namespace ops
}  // namespace tenon
