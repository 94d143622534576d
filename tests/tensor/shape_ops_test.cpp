// Shape ops, copies, casts and lookup: values, aliasing, strides and error messages.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tensor/cpu/copy.h"
#include "tensor/error.h"
#include "tensor/functional.h"
#include "tensor/ops/attributes.h"
#include "tests/tensor/layouts.h"

namespace tenon::test {
namespace {

using Axes = std::vector<std::int64_t>;

Tensor counting(const Extents& sizes, DType dtype = DType::float32,
                Memory memory = Memory::contiguous) {
  double next = 0;
  return make_tensor(sizes, dtype, memory, [&] { return next++; });
}

bool shares_memory(const Tensor& a, const Tensor& b) { return a.storage() == b.storage(); }

/// The values of x with its axes in the order `dims`, by definition.
std::vector<double> permuted(const Tensor& x, const Axes& dims) {
  const Extents sizes = sizes_of(x);
  const auto values = values_of(x);
  Extents result;
  for (std::int64_t dim : dims) result.push_back(sizes[static_cast<int>(dim)]);
  const Extents strides = contiguous_strides(sizes);
  std::vector<double> out;
  for (std::int64_t i = 0; i < result.product(); ++i) {
    std::int64_t rest = i;
    std::int64_t at = 0;
    for (int axis = result.size() - 1; axis >= 0; --axis) {
      at += rest % result[axis] * strides[static_cast<int>(dims[static_cast<std::size_t>(axis)])];
      rest /= result[axis];
    }
    out.push_back(values[static_cast<std::size_t>(at)]);
  }
  return out;
}

TEST(ShapeOps, PermuteAndContiguousOnEveryDTypeAndLayout) {
  struct Sample {
    Extents sizes;
    Axes dims;
  };
  const Sample samples[] = {{{}, {}},
                            {{5}, {0}},
                            {{3, 4}, {1, 0}},
                            {{2, 3, 4}, {2, 0, 1}},
                            {{2, 0, 4}, {2, 0, 1}},
                            {{2, 5, 3, 7}, {0, 2, 1, 3}},
                            {{70, 33}, {1, 0}},
                            {{3, 65, 40}, {0, 2, 1}},
                            {{40, 3, 65}, {2, 1, 0}},
                            {{64, 5, 6, 9}, {3, 1, 2, 0}}};
  for (const Sample& sample : samples) {
    for (const DType dtype : kStoredDTypes) {
      for (const Memory memory : kAllMemory) {
        const Tensor x = random_tensor(sample.sizes, dtype, memory, 11, 0, 100);
        SCOPED_TRACE(x.spec().to_string() + " " + name(memory));
        const Tensor y = permute(x, sample.dims);
        EXPECT_TRUE(shares_memory(x, y));
        ASSERT_NO_FATAL_FAILURE(expect_values(y, permuted(x, sample.dims), 0));
        const Tensor packed = contiguous(y);
        EXPECT_TRUE(packed.is_contiguous());
        EXPECT_EQ(shares_memory(packed, y), y.is_contiguous());
        ASSERT_NO_FATAL_FAILURE(expect_values(packed, permuted(x, sample.dims), 0));
      }
    }
  }
}

TEST(ShapeOps, TransposeSwapsTwoAxes) {
  const Tensor x = counting({2, 3, 4});
  expect_values(transpose(x, 0, -1), permuted(x, {2, 1, 0}), 0);
  expect_values(transpose(x, -1, 1), permuted(x, {0, 2, 1}), 0);
  expect_values(transpose(x, 1, 1), values_of(x), 0);
  EXPECT_EQ(sizes_of(transpose(zeros({}), 0, -1)), Extents{});
}

TEST(ShapeOps, ReshapeIsAViewWhereStridesAllow) {
  const Tensor x = counting({2, 3, 4});
  const Tensor flat = view(x, {24});
  EXPECT_TRUE(shares_memory(x, flat));
  expect_values(view(x, {4, -1}), values_of(x), 0);
  EXPECT_EQ(sizes_of(view(x, {4, -1})), (Extents{4, 6}));
  EXPECT_EQ(sizes_of(view(x, {1, 2, 1, 12, 1})), (Extents{1, 2, 1, 12, 1}));
  EXPECT_EQ(sizes_of(view(zeros({0, 3}), {3, 0, 5})), (Extents{3, 0, 5}));
  EXPECT_EQ(sizes_of(view(zeros({0, 3}), {-1, 3})), (Extents{0, 3}));
  EXPECT_EQ(sizes_of(view(zeros({}), {1, 1})), (Extents{1, 1}));
  EXPECT_EQ(sizes_of(view(zeros({1}), {})), Extents{});

  const Tensor turned = transpose(x, 0, 1);  // (3, 2, 4): only the last axis can be split
  EXPECT_TRUE(shares_memory(reshape(turned, {3, 2, 2, 2}), x));
  EXPECT_TRUE(shares_memory(view(turned, {3, 2, 1, 4}), x));
  const Tensor copied = reshape(turned, {6, 4});
  EXPECT_FALSE(shares_memory(copied, x));
  expect_values(copied, values_of(turned), 0);
  expect_error<ShapeError>(
      [&] {
        view(turned, {6, 4});
      },
      "[view] shape (6, 4) of the input (3, 2, 4), which has strides (4, 12, 1): that "
      "needs a copy; call reshape, or contiguous first");
}

TEST(ShapeOps, ReshapeKeepsTheOrderOnEveryLayout) {
  const Shape shapes[] = {{120},      {6, 20},   {2, 60},         {5, 4, 3, 2},
                          {2, 3, 20}, {6, 4, 5}, {2, 1, 3, 4, 5}, {-1, 10}};
  for (const Memory memory : kAllMemory) {
    for (const Axes& order :
         {Axes{0, 1, 2, 3}, Axes{0, 2, 1, 3}, Axes{3, 1, 2, 0}, Axes{1, 0, 2, 3}}) {
      const Tensor x = permute(random_tensor({2, 3, 4, 5}, DType::float64, memory, 5), order);
      for (const Shape& shape : shapes) {
        SCOPED_TRACE(std::string(name(memory)) + " " + shape.to_string());
        ASSERT_NO_FATAL_FAILURE(expect_values(reshape(x, shape), values_of(x), 0));
      }
    }
  }
}

TEST(ShapeOps, ExpandRepeatsWithoutCopying) {
  const Tensor x = counting({2, 1, 3});
  const Tensor y = expand(x, {4, 2, 5, -1});
  EXPECT_TRUE(shares_memory(x, y));
  EXPECT_EQ(sizes_of(y), (Extents{4, 2, 5, 3}));
  EXPECT_EQ(y.layout().strides[0], 0);
  EXPECT_EQ(y.layout().strides[2], 0);
  const auto values = values_of(y);
  for (std::int64_t i = 0; i < 4 * 2 * 5 * 3; ++i) {
    EXPECT_EQ(values[static_cast<std::size_t>(i)], static_cast<double>(i / 15 % 2 * 3 + i % 3));
  }
  EXPECT_EQ(sizes_of(expand(zeros({1, 3}), {0, 3})), (Extents{0, 3}));
  expect_values(contiguous(y), values, 0);
  expect_values(y + 1, values_of(contiguous(y) + 1), 0);
}

TEST(ShapeOps, NarrowSplitAndChunkAlias) {
  const Tensor x = counting({4, 7});
  const Tensor middle = narrow(x, 1, 2, 3);
  EXPECT_TRUE(shares_memory(x, middle));
  expect_values(middle, {2, 3, 4, 9, 10, 11, 16, 17, 18, 23, 24, 25}, 0);
  expect_values(narrow(x, -1, -1, 1), {6, 13, 20, 27}, 0);
  EXPECT_EQ(sizes_of(narrow(x, 0, 4, 0)), (Extents{0, 7}));

  const auto pieces = split(x, 3, 1);
  ASSERT_EQ(pieces.size(), 3U);
  expect_values(pieces[2], {6, 13, 20, 27}, 0);
  EXPECT_EQ(split(x, 7, -1).size(), 1U);
  EXPECT_EQ(split(x, 100, 0).size(), 1U);
  const auto given = split(x, Axes{1, 0, 6}, 1);
  ASSERT_EQ(given.size(), 3U);
  EXPECT_EQ(sizes_of(given[1]), (Extents{4, 0}));
  expect_values(given[0], {0, 7, 14, 21}, 0);

  EXPECT_EQ(chunk(x, 3, 1).size(), 3U);
  EXPECT_EQ(sizes_of(chunk(x, 3, 1)[2]), (Extents{4, 1}));
  EXPECT_EQ(chunk(x, 5, 1).size(), 4U);  // 7 in pieces of 2, as PyTorch cuts it
  EXPECT_EQ(chunk(zeros({0, 2}), 3, 0).size(), 3U);
}

TEST(ShapeOps, UnsqueezeAndSqueeze) {
  const Tensor x = counting({2, 3});
  EXPECT_EQ(sizes_of(unsqueeze(x, 0)), (Extents{1, 2, 3}));
  EXPECT_EQ(sizes_of(unsqueeze(x, -1)), (Extents{2, 3, 1}));
  EXPECT_EQ(sizes_of(unsqueeze(x, 1)), (Extents{2, 1, 3}));
  EXPECT_EQ(sizes_of(unsqueeze(zeros({}), 0)), (Extents{1}));
  const Tensor back = squeeze(unsqueeze(transpose(x, 0, 1), 1), 1);
  EXPECT_TRUE(shares_memory(x, back));
  expect_values(back, permuted(x, {1, 0}), 0);
  EXPECT_TRUE(squeeze(x, 0).is_same(x));  // not of size 1: unchanged
  EXPECT_TRUE(unsqueeze(x, 1).is_contiguous());
}

TEST(ShapeOps, CatOnEveryDTypeAndLayout) {
  for (const DType dtype : kStoredDTypes) {
    for (const Memory memory : kAllMemory) {
      const Tensor a = random_tensor({3, 2, 5}, dtype, memory, 1, 0, 50);
      const Tensor b = random_tensor({3, 0, 5}, dtype, memory, 2, 0, 50);
      const Tensor c = random_tensor({3, 4, 5}, dtype, memory, 3, 0, 50);
      SCOPED_TRACE(a.spec().to_string() + " " + name(memory));
      const Tensor y = cat({a, b, c}, 1);
      ASSERT_EQ(sizes_of(y), (Extents{3, 6, 5}));
      expect_values(narrow(y, 1, 0, 2), values_of(a), 0);
      expect_values(narrow(y, 1, 2, 4), values_of(c), 0);
    }
  }
  expect_values(cat({counting({2}), counting({1})}, -1), {0, 1, 0}, 0);
}

TEST(ShapeOps, CastBetweenAllDTypes) {
  for (const DType from : kStoredDTypes) {
    for (const DType to : kStoredDTypes) {
      for (const Memory memory : kAllMemory) {
        const Tensor x = random_tensor({3, 700}, from, memory, 77, 0, 120);
        SCOPED_TRACE(x.spec().to_string() + " to " + std::string(tenon::name(to)) + " " +
                     name(memory));
        const Tensor y = cast(x, to);
        ASSERT_EQ(y.dtype(), to);
        std::vector<double> expected = values_of(x);
        for (double& value : expected) {
          if (to == DType::boolean)
            value = value != 0;
          else if (!is_floating(to))
            value = std::trunc(value);
        }
        const double rounding = is_floating(to) && to != DType::float64 ? unit_roundoff(to) : 0;
        ASSERT_NO_FATAL_FAILURE(expect_values(y, expected, rounding));
      }
    }
  }
}

TEST(ShapeOps, CastRoundsOnceAndSaturates) {
  // 1 + 2^-11 + 2^-40 lies above the middle of two float16 values; float32 would round it onto it.
  const Tensor x =
      tensor({1 + 0x1p-11 + 0x1p-40, 1 + 0x1p-11, 1e300, -1e300, 1e-300}, {5}, of(DType::float64));
  expect_values(cast(x, DType::float16), {1 + 0x1p-10, 1, HUGE_VAL, -HUGE_VAL, 0}, 0);
  const Tensor y =
      tensor({1 + 0x1p-8 + 0x1p-40, 1 + 0x1p-8, 1 + 3 * 0x1p-8}, {3}, of(DType::float64));
  expect_values(cast(y, DType::bfloat16), {1 + 0x1p-7, 1, 1 + 0x1p-6}, 0);
  const Tensor z = tensor({3e9, -3e9, NAN, -1.9, 1.9, 300, -2}, {7});
  expect_values(cast(z, DType::int32), {2147483647, -2147483648.0, 0, -1, 1, 300, -2}, 0);
  expect_values(cast(z, DType::uint8), {255, 0, 0, 0, 1, 255, 0}, 0);
  expect_values(cast(z, DType::boolean), {1, 1, 1, 1, 1, 1, 1}, 0);
  expect_values(cast(tensor({300, -1}, {2}, of(DType::int64)), DType::uint8), {44, 255}, 0);
  EXPECT_EQ(cast(tensor({1e30}, {1}), DType::int64).to_vector<std::int64_t>()[0],
            std::numeric_limits<std::int64_t>::max());
  const Tensor same = zeros({2});
  EXPECT_TRUE(cast(same, DType::float32).is_same(same));
}

TEST(ShapeOps, CopyStridedBetweenAnyTwoLayouts) {
  for (const DType dtype : kStoredDTypes) {
    for (const Extents& sizes :
         {Extents{}, Extents{3, 0}, Extents{66, 35}, Extents{5, 33, 4}, Extents{3, 2, 40, 50}}) {
      for (const Memory from : kAllMemory) {
        for (const Memory to : {Memory::contiguous, Memory::permuted, Memory::narrowed}) {
          const Tensor x = random_tensor(sizes, dtype, from, 8, 0, 100);
          const Tensor y = random_tensor(sizes, dtype, to, 9, 0, 1);
          SCOPED_TRACE(x.spec().to_string() + " " + name(from) + " to " + name(to));
          cpu::copy_strided(x.view_of_data(), y.view_of_data());
          ASSERT_NO_FATAL_FAILURE(expect_values(y, values_of(x), 0));
        }
      }
    }
  }
}

TEST(ShapeOps, ViewOpsAlsoHaveACopyingKernel) {
  const Tensor x = counting({3, 4, 5}, DType::float32, Memory::narrowed);
  const auto run = [&](const char* op_name, const Attrs& attrs) {
    const Op& op = get_op(op_name);
    const TensorSpec* specs[] = {&x.spec()};
    const Tensor y = empty(infer(op, specs, attrs)[0].shape);
    const TensorView inputs[] = {x.view_of_data()};
    const TensorView outputs[] = {y.view_of_data()};
    KernelArgs args;
    args.op = &op;
    args.inputs = inputs;
    args.outputs = outputs;
    args.attrs = &attrs;
    op.kernels(DeviceType::cpu).at(0).run(args);
    return y;
  };
  expect_values(run("permute", AxesAttrs{{2, 0, 1}}), permuted(x, {2, 0, 1}), 0);
  expect_values(run("transpose", AxisPairAttrs{{0, 2}}), permuted(x, {2, 1, 0}), 0);
  expect_values(run("reshape", ShapeAttrs{{6, 10}}), values_of(x), 0);
  expect_values(run("narrow", NarrowAttrs{1, 1, 2}), values_of(narrow(x, 1, 1, 2)), 0);
  expect_values(run("expand", ShapeAttrs{{2, 3, 4, 5}}), values_of(expand(x, {2, 3, 4, 5})), 0);
  expect_values(run("unsqueeze", AxisAttrs{1}), values_of(x), 0);
  expect_values(run("contiguous", {}), values_of(x), 0);
}

TEST(ShapeOps, EmbeddingLooksUpRows) {
  for (const DType dtype : kFloats) {
    for (const Memory memory : {Memory::contiguous, Memory::permuted, Memory::narrowed}) {
      const Tensor weight = random_tensor({9, 6}, dtype, memory, 21);
      SCOPED_TRACE(weight.spec().to_string() + " " + name(memory));
      const auto rows = values_of(weight);
      for (const DType index : {DType::int64, DType::int32}) {
        const Tensor input = tensor({8, 0, 3, 3}, {2, 2}, of(index));
        const Tensor y = embedding(transpose(input, 0, 1), weight);
        ASSERT_EQ(sizes_of(y), (Extents{2, 2, 6}));
        std::vector<double> expected;
        for (const std::size_t row : {8U, 3U, 0U, 3U}) {
          expected.insert(expected.end(), rows.begin() + static_cast<std::ptrdiff_t>(row * 6),
                          rows.begin() + static_cast<std::ptrdiff_t>(row * 6 + 6));
        }
        expect_values(y, expected, 0);
      }
    }
  }
  EXPECT_EQ(sizes_of(embedding(zeros({0}, of(DType::int64)), zeros({3, 2}))), (Extents{0, 2}));
  EXPECT_EQ(sizes_of(embedding(zeros({}, of(DType::int64)), zeros({3, 2}))), (Extents{2}));
}

TEST(ShapeOps, ErrorsSayWhatWasGivenAndNeeded) {
  const Tensor x = zeros({2, 4});
  expect_error<ShapeError>(
      [&] {
        view(x, {2, 3});
      },
      "[view] shape (2, 3) has 6 elements; the input (2, 4) has 8");
  expect_error<ShapeError>(
      [&] {
        reshape(x, {3, -1});
      },
      "[reshape] shape (3, -1) needs a multiple of 3 elements; the input (2, 4) has 8");
  expect_error<ShapeError>(
      [&] {
        reshape(x, {-1, -1});
      },
      "[reshape] shape (-1, -1); needed sizes >= 0 and at most one -1");
  expect_error<ShapeError>(
      [&] {
        view(zeros({0}), {0, -1});
      },
      "[view] shape (0, -1): beside a size of 0");
  expect_error<ShapeError>(
      [&] { permute(x, {0}); },
      "[permute] axes (0) of the input (2, 4); needed each of its 2 axes once");
  expect_error<ShapeError>(
      [&] {
        permute(x, {1, -1});
      },
      "of the input (2, 4); needed each of its 2 axes once");
  expect_error<ShapeError>([&] { transpose(x, 0, 2); },
                           "[transpose] axis 2 of a tensor of rank 2; needed an axis from -2 to 1");
  expect_error<ShapeError>(
      [&] {
        expand(x, {2, 5});
      },
      "[expand] shape (2, 5) for the input (2, 4): axis 1 has size 4; only size 1");
  expect_error<ShapeError>([&] { expand(x, {4}); },
                           "[expand] shape (4,) has fewer axes than the input (2, 4)");
  expect_error<ShapeError>(
      [&] {
        expand(x, {-1, 2, 4});
      },
      "[expand] shape (-1, 2, 4) for the input (2, 4)");
  expect_error<ShapeError>(
      [&] { narrow(x, 1, 3, 2); },
      "[narrow] 2 elements from 3 along axis 1 of the input (2, 4); it has 4 there");
  expect_error<ShapeError>([&] { narrow(x, 1, -5, 2); },
                           "[narrow] 2 elements from -1 along axis 1");
  expect_error<ShapeError>([&] { narrow(x, 1, 0, -1); },
                           "[narrow] -1 elements from 0 along axis 1");
  expect_error<ShapeError>([&] { narrow(zeros({}), 0, 0, 1); }, "[narrow] the input is a scalar");
  expect_error<ShapeError>([&] { unsqueeze(x, 3); }, "[unsqueeze] axis 3 of a tensor of rank 3");
  expect_error<ShapeError>([&] { squeeze(x, 2); }, "[squeeze] axis 2 of a tensor of rank 2");
  expect_error<ShapeError>(
      [&] {
        split(x, Axes{1, 2}, 1);
      },
      "[split] pieces of 3 elements in all along axis 1 of the input (2, 4); needed 4");
  expect_error<ValueError>([&] { split(x, 0, 1); },
                           "[split] split_size 0; needed a positive number");
  expect_error<ValueError>([&] { split(x, Axes{5, -1}, 1); }, "[split] a piece of -1 elements");
  expect_error<ValueError>([&] { chunk(x, 0, 1); }, "[chunk] 0 chunks; needed a positive number");
  expect_error<ShapeError>(
      [&] {
        cat({x, zeros({3, 4})}, 1);
      },
      "[cat] tensor 0 has shape (2, 4) and tensor 1 has (3, 4); they may differ along axis 1");
  expect_error<ShapeError>(
      [&] {
        cat({zeros({}), zeros({})}, 0);
      },
      "[cat] the tensors are scalars");
  expect_error<DTypeError>(
      [&] {
        cat({x, zeros({2, 4}, of(DType::int64))});
      },
      "[cat] operand 'tensors[0]' is float32 and operand 'tensors[1]' is int64");
  expect_error<ValueError>([&] { cat({}); }, "[cat] no tensors");
  const Tensor index = tensor({0, 3}, {2}, of(DType::int64));
  expect_error<ValueError>(
      [&] {
        embedding(index, zeros({3, 2}));
      },
      "[embedding] index 3 at position 1; needed 0 <= index < 3");
  expect_error<DTypeError>([&] { embedding(x, x); },
                           "[embedding] operand 'input' is float32; needed int64");
  expect_error<ShapeError>([&] { embedding(index, zeros({3})); },
                           "[embedding] operand 'weight' has shape (3,); needed two axes");
  expect_error<ShapeError>([&] { view(x, {1, 1, 1, 1, 1, 1, 1, 2, 4}); }, "9");
}

}  // namespace
}  // namespace tenon::test
