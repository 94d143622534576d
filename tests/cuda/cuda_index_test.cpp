// CUDA kernels of var, argmax, cumsum, triangles, lookups by index and the gradients of lookups,
// against the CPU ops: every dtype and layout, with sentinels around the outputs.
#include <limits>

#include "autograd/autograd.h"
#include "tensor/functional.h"
#include "tensor/ops/indexing_attributes.h"
#include "tests/cuda/cuda_support.h"

namespace tenon::test {
namespace {

std::vector<DType> all_dtypes() {
  std::vector<DType> dtypes(std::begin(kFloats), std::end(kFloats));
  dtypes.insert(dtypes.end(), std::begin(kIntegers), std::end(kIntegers));
  dtypes.push_back(DType::boolean);
  return dtypes;
}

struct AxisShape {
  Sizes sizes;
  std::int64_t dim;
};
const std::vector<AxisShape>& axis_shapes() {
  static const std::vector<AxisShape> shapes = {
      {{1}, 0},        {{7}, 0},      {{5, 77}, 0},   {{5, 77}, 1},   {{3, 40, 8}, 1},
      {{2, 3, 4}, -1}, {{6, 256}, 0}, {{6, 256}, 1},  {{3, 1030}, 1}, {{1030, 3}, 0},
      {{2, 9, 64}, 1}, {{0, 4}, 1},   {{4, 1, 5}, 1}, {{9000}, 0},    {{70, 33}, 0}};
  return shapes;
}

/// For sums along axis_shapes(). The exact ones are float64 sums in another order: in float64 both have a
/// rounding a term.
Tolerance sums_of(DType dtype, double roundings, double floor) {
  constexpr double kMostTerms = 9000;
  return {dtype == DType::float64 ? kMostTerms : roundings, floor};
}

TEST(CudaIndex, Var) {
  SKIP_WITHOUT_GPU();
  Generator generator(1);
  struct Shape2 {
    Sizes sizes;
    std::vector<std::int64_t> dim;
  };
  const std::vector<Shape2> shapes = {{{}, {}},
                                      {{1}, {}},
                                      {{70000}, {}},
                                      {{5, 77}, {1}},
                                      {{5, 77}, {0}},
                                      {{4000, 33}, {0}},
                                      {{3, 4, 5}, {0, 2}},
                                      {{2, 9000}, {1}},
                                      {{130, 260}, {1}},
                                      {{2, 3, 4, 5}, {1, 3}},
                                      {{3, 0}, {1}}};
  for (const DType dtype : kFloats) {
    for (const Shape2& shape : shapes) {
      for (const Placement placement : kPlacements) {
        for (const double correction : {0.0, 1.0}) {
          const Operand2 x = make_operand(shape.sizes, dtype, placement, generator, 0.5, 1.5);
          check_op("var", {x}, VarAttrs{shape.dim, correction, correction == 1}, {64, 0.1},
                   describe("var", dtype, shape.sizes, placement));
          if (HasFatalFailure()) return;
        }
      }
    }
  }
  // Values around 10000: Σx² - n·mean² would have no correct digit left. The mean is known to one
  // rounding, 1e-3, whose square is in the result.
  const Operand2 far =
      make_operand({4, 5000}, DType::float32, Placement::contiguous, generator, 9999, 10001);
  check_op("var", {far}, VarAttrs{{1}, 1, false}, {64, 0.2}, "var far from zero");
}

TEST(CudaIndex, Argmax) {
  SKIP_WITHOUT_GPU();
  Generator generator(2);
  for (const DType dtype : all_dtypes()) {
    for (const AxisShape& shape : axis_shapes()) {
      for (const Placement placement : kPlacements) {
        // Few values, so that many are equal.
        const Operand2 few = make_operand(shape.sizes, DType::int32, placement, generator, 0, 4);
        const Operand2 x{few.cpu.to(dtype), few.cuda.to(dtype)};
        const std::string what = describe("argmax", dtype, shape.sizes, placement);
        const std::int64_t axis = shape.dim < 0 ? shape.dim + few.cpu.dim() : shape.dim;
        check_op("argmax", {x}, ReduceAttrs{{axis}, false}, {}, what);
        if (few.cpu.layout().numel() > 0) check_op("argmax", {x}, ReduceAttrs{{}, true}, {}, what);
        if (HasFatalFailure()) return;
      }
    }
  }
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const double inf = std::numeric_limits<double>::infinity();
  for (const DType dtype : kFloats) {
    const Tensor x = tensor({1, nan, nan, 3, 3, inf, -inf, -inf, -inf}, {3, 3}, {dtype});
    for (const std::vector<std::int64_t>& dim : {std::vector<std::int64_t>{0}, {1}, {}}) {
      check_op("argmax", {from_cpu(x)}, ReduceAttrs{dim, false}, {}, "argmax of NaN");
    }
  }
  // Long lines are searched in pieces.
  const Operand2 ones = from_cpu(full({3, 200000}, 1));
  check_op("argmax", {ones}, ReduceAttrs{{1}, false}, {}, "argmax of a long line");
  const Operand2 line = make_operand({1000003}, DType::float32, Placement::contiguous, generator);
  check_op("argmax", {line}, ReduceAttrs{{}, false}, {}, "argmax of a long line");
}

TEST(CudaIndex, Cumsum) {
  SKIP_WITHOUT_GPU();
  Generator generator(3);
  for (const DType dtype : all_dtypes()) {
    for (const AxisShape& shape : axis_shapes()) {
      for (const Placement placement : kPlacements) {
        for (const bool reverse : {false, true}) {
          const Operand2 x = make_operand(shape.sizes, dtype, placement, generator, 0, 2);
          check_op("cumsum", {x}, CumsumAttrs{shape.dim, reverse}, sums_of(dtype, 4, 1),
                   describe("cumsum", dtype, shape.sizes, placement));
          if (HasFatalFailure()) return;
        }
      }
    }
  }
  const Operand2 scalar = make_operand({}, DType::float32, Placement::contiguous, generator);
  check_op("cumsum", {scalar}, CumsumAttrs{0, false}, {}, "cumsum of a scalar");
}

TEST(CudaIndex, Triangles) {
  SKIP_WITHOUT_GPU();
  Generator generator(4);
  constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();
  for (const DType dtype : all_dtypes()) {
    for (const Sizes& sizes :
         std::vector<Sizes>{{1, 1}, {4, 5}, {70, 33}, {3, 5, 9}, {2, 0, 3}, {2, 3, 4, 5}}) {
      for (const Placement placement : kPlacements) {
        for (const std::int64_t diagonal : {std::int64_t{0}, std::int64_t{-2}, std::int64_t{3},
                                            kMost, std::numeric_limits<std::int64_t>::min()}) {
          const Operand2 x = make_operand(sizes, dtype, placement, generator, 0, 9);
          for (const char* op : {"tril", "triu"}) {
            check_op(op, {x}, DiagonalAttrs{diagonal}, {0, 0},
                     describe(op, dtype, sizes, placement));
            if (HasFatalFailure()) return;
          }
        }
      }
    }
  }
}

TEST(CudaIndex, IndexSelectAndItsGradient) {
  SKIP_WITHOUT_GPU();
  Generator generator(5);
  for (const DType dtype : all_dtypes()) {
    for (const AxisShape& shape : axis_shapes()) {
      for (const DType kind : {DType::int64, DType::int32}) {
        for (const std::int64_t count : {0, 1, 50}) {
          const std::int64_t axis =
              shape.dim < 0 ? shape.dim + static_cast<std::int64_t>(shape.sizes.size()) : shape.dim;
          const std::int64_t size = shape.sizes[static_cast<std::size_t>(axis)];
          const Operand2 index = make_operand({count}, kind, Placement::contiguous, generator, 0,
                                              static_cast<double>(size));
          for (const Placement placement : kPlacements) {
            const std::string what = describe("index_select", dtype, shape.sizes, placement);
            const Operand2 x = make_operand(shape.sizes, dtype, placement, generator, 0, 9);
            check_op("index_select", {x, index}, AxisAttrs{shape.dim}, {0, 0}, what);
            if (!is_floating(dtype)) continue;
            Sizes picked = shape.sizes;
            picked[static_cast<std::size_t>(axis)] = count;
            const Operand2 g = make_operand(picked, dtype, placement, generator);
            check_op("index_select_backward", {g, index}, IndexSelectBackwardAttrs{axis, size},
                     {64, 2}, what + " backward");
            if (HasFatalFailure()) return;
          }
        }
      }
    }
  }
}

TEST(CudaIndex, GatherAndItsGradient) {
  SKIP_WITHOUT_GPU();
  Generator generator(6);
  for (const DType dtype : all_dtypes()) {
    for (const AxisShape& shape : axis_shapes()) {
      for (const Placement placement : kPlacements) {
        const auto axis = static_cast<std::size_t>(
            shape.dim < 0 ? shape.dim + static_cast<std::int64_t>(shape.sizes.size()) : shape.dim);
        const std::int64_t size = shape.sizes[axis];
        Sizes picked = shape.sizes;
        for (std::int64_t& other : picked) other -= other > 2 ? 1 : 0;
        picked[axis] = size + 3;
        const DType kind = placement == Placement::gapped ? DType::int32 : DType::int64;
        const Operand2 index =
            make_operand(picked, kind, placement, generator, 0, static_cast<double>(size));
        const Operand2 x = make_operand(shape.sizes, dtype, placement, generator, 0, 9);
        const std::string what = describe("gather", dtype, shape.sizes, placement);
        check_op("gather", {x, index}, AxisAttrs{shape.dim}, {0, 0}, what);
        if (!is_floating(dtype)) continue;
        const Operand2 g = make_operand(picked, dtype, placement, generator);
        check_op("gather_backward", {g, index},
                 GatherBackwardAttrs{shape.dim, to_shape(shape.sizes)}, sums_of(dtype, 64, 2),
                 what + " backward");
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST(CudaIndex, GradientsOfManyRepeatedIndices) {
  SKIP_WITHOUT_GPU();
  Generator generator(7);
  constexpr std::int64_t kCount = 20000;
  for (const DType dtype : kFloats) {
    for (const std::int64_t rows : {1, 2, 65, 50000}) {
      const Operand2 index = make_operand({kCount}, DType::int64, Placement::contiguous, generator,
                                          0, static_cast<double>(rows));
      for (const std::int64_t columns : {1, 24, 100}) {
        const Operand2 g = make_operand({kCount, columns}, dtype, Placement::contiguous, generator);
        // Up to kCount terms of size up to 2, in another order than the CPU's.
        const Tolerance tolerance{64, 2.0 * static_cast<double>(kCount / rows + 8)};
        check_op("index_select_backward", {g, index}, IndexSelectBackwardAttrs{0, rows}, tolerance,
                 "embedding's gradient");
        if (HasFatalFailure()) return;
      }
      const Operand2 g = make_operand({kCount}, dtype, Placement::contiguous, generator);
      check_op("gather_backward", {g, index}, GatherBackwardAttrs{0, {rows}},
               {64, 2.0 * static_cast<double>(kCount / rows + 8)}, "gather's gradient");
      if (HasFatalFailure()) return;
    }
  }
}

TEST(CudaIndex, NarrowBackward) {
  SKIP_WITHOUT_GPU();
  Generator generator(8);
  struct Range {
    Sizes sizes;  // of the gradient
    std::int64_t dim, start, size;
  };
  const std::vector<Range> ranges = {
      {{5}, 0, 0, 5},       {{5}, 0, 3, 9},     {{0}, 0, 2, 4},        {{3, 4}, 1, 2, 7},
      {{3, 4}, 0, 1, 8},    {{3, 4}, -1, 0, 4}, {{2, 3, 64}, 1, 2, 9}, {{2, 64}, 1, 64, 192},
      {{2, 0, 4}, 1, 1, 3}, {{0, 4}, 1, 1, 6}};
  for (const DType dtype : kFloats) {
    for (const Range& range : ranges) {
      for (const Placement placement : kPlacements) {
        const Operand2 g = make_operand(range.sizes, dtype, placement, generator);
        check_op("narrow_backward", {g}, NarrowBackwardAttrs{range.dim, range.start, range.size},
                 {0, 0}, describe("narrow_backward", dtype, range.sizes, placement));
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST(CudaIndex, IndicesOutOfRange) {
  SKIP_WITHOUT_GPU();
  const Tensor index = tensor({-1, 4, 3, 1e15}, {4}, {DType::int64}).to(kCuda);
  for (const DType dtype : {DType::float32, DType::bfloat16, DType::int32}) {
    const Tensor x = ones({4, 3}, {dtype, kCuda});
    const std::vector<double> slices = index_select(x, 0, index).to_doubles();
    const std::vector<double> picked =
        gather(x.narrow(1, 0, 1), 0, index.view({4, 1})).to_doubles();
    const auto is_outside = [&](double value) {
      return is_floating(dtype) ? std::isnan(value) : value == 0;
    };
    for (std::size_t i = 0; i < slices.size(); ++i) {
      EXPECT_TRUE(i / 3 == 2 ? slices[i] == 1 : is_outside(slices[i])) << "element " << i;
    }
    for (std::size_t i = 0; i < 4; ++i) {
      EXPECT_TRUE(i == 2 ? picked[i] == 1 : is_outside(picked[i])) << "element " << i;
    }
  }
  // Their gradients go nowhere.
  Tensor weight = ones({4, 3}, {DType::float32, kCuda});
  weight.requires_grad_();
  backward(index_select(weight, 0, index), full({4, 3}, 5, {DType::float32, kCuda}));
  EXPECT_EQ(weight.grad().to_doubles(), (std::vector<double>{0, 0, 0, 0, 0, 0, 0, 0, 0, 5, 5, 5}));
  weight.set_grad({});
  backward(gather(weight, 0, index.view({4, 1})), full({4, 1}, 5, {DType::float32, kCuda}));
  EXPECT_EQ(weight.grad().to_doubles(), (std::vector<double>{0, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0}));
}

TEST(CudaIndex, GradientsOfReductionsAndViews) {
  SKIP_WITHOUT_GPU();
  Generator generator(9);
  struct Sample {
    const char* name;
    std::function<Tensor(const Tensor&)> f;
  };
  const std::vector<Sample> samples = {
      {"sum", [](const Tensor& x) { return sum(x, {1}); }},
      {"mean",
       [](const Tensor& x) {
         return mean(x, {0, 2});
       }},
      {"amax", [](const Tensor& x) { return amax(x, {1}, true); }},
      {"amin", [](const Tensor& x) { return amin(x); }},
      {"var", [](const Tensor& x) { return var(x, {1}); }},
      {"permute",
       [](const Tensor& x) {
         return permute(x, {2, 0, 1});
       }},
      {"reshape", [](const Tensor& x) { return reshape(transpose(x, 0, 1), {-1}); }},
      {"expand",
       [](const Tensor& x) {
         return expand(unsqueeze(x, 1), {4, 3, 5, 6});
       }},
      {"split",
       [](const Tensor& x) {
         return cat({split(x, 4, 2)[1], chunk(x, 2, 2)[0]}, 2);
       }},
      {"stack",
       [](const Tensor& x) {
         return stack({select(x, 1, -1), select(x, 1, 0)}, 1);
       }},
      {"cumsum", [](const Tensor& x) { return cumsum(x, 1); }},
      {"tril", [](const Tensor& x) { return tril(x, 1); }}};
  for (const Sample& sample : samples) {
    for (const DType dtype : kFloats) {
      for (const Placement placement : kPlacements) {
        const Operand2 x = make_operand({4, 5, 6}, dtype, placement, generator);
        const auto gradient = [&](const Tensor& operand) {
          Tensor leaf = operand.detach();
          leaf.requires_grad_();
          const Tensor y = sample.f(leaf);
          std::vector<double> values;  // small integers: exact in every dtype
          for (int i = 0; i < y.numel().value(); ++i) values.push_back(i % 7);
          const Tensor g = tensor(values, y.shape(), {leaf.dtype()});
          backward(y, g.to(leaf.device()));
          return leaf.grad();
        };
        const std::vector<double> exact = gradient(x.cpu.to(DType::float64)).to_doubles();
        // Gradients of 16-bit cotangents are rounded more than once on the way.
        const double steps = unit_roundoff(dtype) / unit_roundoff(accumulation_dtype(dtype));
        expect_near(gradient(x.cuda), exact, {8 * steps + 16, 8},
                    describe(sample.name, dtype, {4, 5, 6}, placement));
        if (HasFatalFailure()) return;
      }
    }
  }
}

}  // namespace
}  // namespace tenon::test
