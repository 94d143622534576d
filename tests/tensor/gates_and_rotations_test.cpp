// silu_mul and rotary_embedding with their gradients against references in double: dtype x layout x size,
// 16-bit floats rounded once; gradients of tables; and what they refuse.
#include <gtest/gtest.h>

#include <cmath>

#include "autograd/autograd.h"
#include "tensor/error.h"
#include "tensor/functional.h"
#include "tensor/rules/gradients.h"
#include "tests/tensor/layouts.h"

namespace tenon::test {
namespace gates_and_rotations_test {

/// One rounding to the dtype, and a few of what it is computed in.
void expect_rounded_once(const Tensor& got, const std::vector<double>& expected, double roundings) {
  const double compute = unit_roundoff(accumulation_dtype(got.dtype()));
  expect_values(got, expected, 1.001 * unit_roundoff(got.dtype()) + roundings * compute,
                roundings * compute + smallest_step(got.dtype()));
}

TEST(SiluMul, AgreesWithTheReferenceInEveryLayout) {
  const Extents kSizes[] = {{7}, {5, 1}, {3, 5}, {2, 3, 16}, {0, 4}, {4, 0}, {3, 1100}, {260, 131}};
  for (const DType dtype : kFloats) {
    for (const Extents& sizes : kSizes) {
      for (const Memory memory : kAllMemory) {
        SCOPED_TRACE(std::string(name(dtype)) + " " + name(memory) +
                     " N=" + std::to_string(sizes.back()));
        const Tensor gate = random_tensor(sizes, dtype, memory, 1, -6, 6);
        const Tensor other = random_tensor(sizes, dtype, memory, 2);
        const Tensor grad = random_tensor(sizes, dtype, Memory::contiguous, 3);
        const auto xs = values_of(gate), ys = values_of(other), gs = values_of(grad);
        std::vector<double> value, of_gate, of_other;
        for (std::size_t i = 0; i < xs.size(); ++i) {
          const double s = 1 / (1 + std::exp(-xs[i]));
          value.push_back(xs[i] * s * ys[i]);
          of_gate.push_back(gs[i] * ys[i] * s * (1 + xs[i] * (1 - s)));
          of_other.push_back(gs[i] * xs[i] * s);
        }
        expect_rounded_once(silu_mul(gate, other), value, 8);
        const auto gradients = ops::silu_mul_backward(grad, gate, other);
        expect_rounded_once(gradients[0], of_gate, 24);
        expect_rounded_once(gradients[1], of_other, 8);
        if (HasFatalFailure()) return;
      }
    }
  }
}

/// Of (rows, 2·half) and a table of its last axis, repeated for rows.
TEST(RotaryEmbedding, AgreesWithTheReferenceInEveryLayout) {
  const Extents kSizes[] = {{2}, {5, 2}, {3, 6}, {2, 3, 16}, {0, 4}, {4, 0}, {3, 1100}, {260, 66}};
  for (const DType dtype : kFloats) {
    for (const Extents& sizes : kSizes) {
      for (const Memory memory : kAllMemory) {
        SCOPED_TRACE(std::string(name(dtype)) + " " + name(memory) +
                     " N=" + std::to_string(sizes.back()));
        const Tensor x = random_tensor(sizes, dtype, memory, 1);
        const Tensor cos = random_tensor(sizes, dtype, memory, 2);
        const Tensor sin = random_tensor({sizes.back()}, dtype, Memory::contiguous, 3);
        const auto xs = values_of(x), cs = values_of(cos), ss = values_of(sin);
        const auto width = static_cast<std::size_t>(sizes.back()), half = width / 2;
        std::vector<double> value, back;
        for (std::size_t i = 0; i < xs.size(); ++i) {
          const std::size_t column = i % width;
          const bool second = column >= half;
          const std::size_t pair = second ? i - half : i + half;
          const std::size_t of_pair = second ? column - half : column + half;
          value.push_back(xs[i] * cs[i] + (second ? xs[pair] : -xs[pair]) * ss[column]);
          back.push_back(xs[i] * cs[i] + (second ? -xs[pair] : xs[pair]) * ss[of_pair]);
        }
        expect_rounded_once(rotary_embedding(x, cos, sin), value, 8);
        expect_rounded_once(ops::rotary_embedding_backward(x, cos, sin), back, 8);
        if (HasFatalFailure()) return;
      }
    }
  }
}

Tensor composed_rotation(const Tensor& x, const Tensor& cos, const Tensor& sin) {
  const auto halves = chunk(x, 2, -1);
  return x * cos + cat({neg(halves[1]), halves[0]}, -1) * sin;
}

TEST(RotaryEmbedding, GradientsAreThoseOfTheComposition) {
  for (const Extents& table : {Extents{2, 3, 8}, {3, 8}, {2, 1, 8}, {8}, {3, 1}, {1}}) {
    const Tensor x = random_tensor({2, 3, 8}, DType::float64, Memory::contiguous, 1);
    const Tensor cos = random_tensor(table, DType::float64, Memory::contiguous, 2);
    const Tensor sin = random_tensor(table, DType::float64, Memory::contiguous, 3);
    const Tensor cotangent = random_tensor({2, 3, 8}, DType::float64, Memory::contiguous, 4);
    const auto gradients = [&](auto f) {
      const std::vector<Tensor> leaves = {x.clone().requires_grad_(), cos.clone().requires_grad_(),
                                          sin.clone().requires_grad_()};
      return grad(std::vector<Tensor>{f(leaves[0], leaves[1], leaves[2])}, leaves,
                  std::vector{cotangent});
    };
    const auto got = gradients(rotary_embedding), want = gradients(composed_rotation);
    for (std::size_t i = 0; i < 3; ++i) expect_values(got[i], values_of(want[i]), 1e-12, 1e-12);
  }
}

TEST(GatesAndRotations, PropagateNanAndInf) {
  for (const DType dtype : kFloats) {
    const Tensor x = tensor({NAN, HUGE_VAL, 1, 2}, {4}, of(dtype));
    const Tensor one = ones({4}, of(dtype));
    expect_values(silu_mul(x, one).narrow(0, 0, 2), {NAN, HUGE_VAL}, 0);
    expect_values(rotary_embedding(x, one, one), {NAN, HUGE_VAL, NAN, HUGE_VAL}, 0);
  }
}

TEST(GatesAndRotations, RefuseOtherShapesAndDTypes) {
  const Tensor x = zeros({2, 4});
  expect_error<ShapeError>([&] { silu_mul(x, zeros({4})); }, "[silu_mul]");
  expect_error<DTypeError>([&] { silu_mul(x, zeros({2, 4}, of(DType::float64))); }, "[silu_mul]");
  expect_error<DTypeError>([&] { silu_mul(x.to(DType::int64), x.to(DType::int64)); },
                           "[silu_mul] operand 'gate' is int64");
  expect_error<ShapeError>(
      [&] {
        rotary_embedding(zeros({2, 3}), zeros({3}), zeros({3}));
      },
      "[rotary_embedding] input (2, 3), cos (3,) and sin (3,); needed (…, 2·N), and shapes that "
      "broadcast to it");
  expect_error<ShapeError>([&] { rotary_embedding(x, zeros({3, 1, 4}), x); }, "[rotary_embedding]");
  expect_error<ShapeError>([&] { rotary_embedding(zeros({}), x, x); }, "[rotary_embedding]");
  expect_error<DTypeError>([&] { rotary_embedding(x, x.to(DType::float64), x); },
                           "[rotary_embedding]");
}

}  // namespace gates_and_rotations_test
}  // namespace tenon::test
