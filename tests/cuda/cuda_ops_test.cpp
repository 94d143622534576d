// CUDA kernels of elementwise ops, copies, casts, lookups and reductions against the CPU ops: every
// op, dtype and layout, with sentinels around the outputs; and grids, sizes and values at the edges.
#include <limits>

#include "tensor/ops/attributes.h"
#include "tests/cuda/cuda_support.h"

namespace tenon::test {
namespace {

const std::vector<Sizes> kShapes = {{}, {1}, {7}, {64}, {1031}, {5, 77}, {3, 4, 16}, {2, 3, 5, 9}};

struct UnaryCase {
  const char* op;
  double low, high;  // inputs
  Tolerance tolerance;
  bool integers = false;
  Attrs attrs = {};
};

const std::vector<UnaryCase>& unary_cases() {
  static const std::vector<UnaryCase> cases = {
      {"neg", -4, 4, {}, true},
      {"abs", -4, 4, {}, true},
      {"square", -4, 4, {}, true},
      {"relu", -4, 4, {}, true},
      {"exp", -6, 6, {}},
      {"log", 0.01, 9, {4, 1}},
      {"sqrt", 0, 9, {}},
      {"rsqrt", 0.01, 9, {}},
      {"reciprocal", 0.1, 9, {}},
      {"sin", -9, 9, {4, 1}},
      {"cos", -9, 9, {4, 1}},
      {"tanh", -3, 3, {}},
      {"sigmoid", -9, 9, {}},
      {"erf", -3, 3, {}},
      {"silu", -9, 9, {6}},
      {"gelu", -5, 5, {16, 0.01}, false, GeluAttrs{Approximate::none}},
      {"gelu", -5, 5, {40, 0.01}, false, GeluAttrs{Approximate::tanh}},
      {"pow", 0.1, 3, {16}, false, PowAttrs{2.5}},
      {"pow", -3, 3, {}, false, PowAttrs{2}},
      {"pow", -3, 3, {}, false, PowAttrs{3}},
  };
  return cases;
}

TEST(CudaOps, Unary) {
  SKIP_WITHOUT_GPU();
  Generator generator(1);
  for (const UnaryCase& test : unary_cases()) {
    std::vector<DType> dtypes(std::begin(kFloats), std::end(kFloats));
    if (test.integers) dtypes.insert(dtypes.end(), std::begin(kIntegers), std::end(kIntegers));
    for (const DType dtype : dtypes) {
      for (const Sizes& sizes : kShapes) {
        for (const Placement placement : kPlacements) {
          const double low = dtype == DType::uint8 ? 0 : test.low;
          const Operand2 x = make_operand(sizes, dtype, placement, generator, low, test.high);
          check_op(test.op, {x}, test.attrs, test.tolerance,
                   describe(test.op, dtype, sizes, placement));
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST(CudaOps, UnaryPropagatesNanAndInf) {
  SKIP_WITHOUT_GPU();
  const double inf = std::numeric_limits<double>::infinity();
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (const UnaryCase& test : unary_cases()) {
    for (const DType dtype : kFloats) {
      const Tensor x = tensor({nan, inf, -inf, 0, -0.0, 1, nan, -1, inf}, {9}, {dtype});
      check_op(test.op, {from_cpu(x)}, test.attrs, {16, 1},
               std::string(test.op) + " of special values");
      if (HasFatalFailure()) return;
    }
  }
}

struct BinaryCase {
  const char* op;
  bool floats_only = false;
  bool takes_bool = true;
};
constexpr BinaryCase kBinary[] = {
    {"add"}, {"sub", false, false}, {"mul"}, {"div", true, false}, {"maximum"}, {"minimum"}};

std::vector<DType> dtypes_of(const BinaryCase& test) {
  std::vector<DType> dtypes(std::begin(kFloats), std::end(kFloats));
  if (!test.floats_only) dtypes.insert(dtypes.end(), std::begin(kIntegers), std::end(kIntegers));
  if (test.takes_bool) dtypes.push_back(DType::boolean);
  return dtypes;
}

Attrs attrs_of(const BinaryCase& test, const Scalar& other = 0) {
  const bool takes_number = get_op(test.op).operands[1].optional;
  return takes_number ? Attrs(BinaryAttrs{other}) : Attrs();
}

TEST(CudaOps, BinaryOfTensors) {
  SKIP_WITHOUT_GPU();
  Generator generator(2);
  for (const BinaryCase& test : kBinary) {
    for (const DType dtype : dtypes_of(test)) {
      for (const Sizes& sizes : kShapes) {
        for (const Placement placement : kPlacements) {
          const Operand2 x = make_operand(sizes, dtype, placement, generator, 1, 4);
          const Operand2 y = make_operand(sizes, dtype, Placement::contiguous, generator, 1, 4);
          check_op(test.op, {x, y}, attrs_of(test), {2, 4},
                   describe(test.op, dtype, sizes, placement));
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST(CudaOps, BinaryBroadcasts) {
  SKIP_WITHOUT_GPU();
  Generator generator(3);
  const std::vector<std::pair<Sizes, Sizes>> shapes = {
      {{5, 64}, {64}},  {{5, 64}, {5, 1}}, {{4, 1, 16}, {3, 1}}, {{2, 3, 40}, {2, 1, 40}},
      {{7, 3}, {1}},    {{6, 1}, {1, 6}},  {{1, 1}, {2, 2}},     {{9}, {4, 9}},
      {{0, 3}, {1, 3}}, {{3, 1}, {3, 0}}};
  for (const BinaryCase& test : kBinary) {
    for (const DType dtype : dtypes_of(test)) {
      for (const auto& [left, right] : shapes) {
        const Operand2 x = make_operand(left, dtype, Placement::contiguous, generator, 1, 4);
        const Operand2 y = make_operand(right, dtype, Placement::contiguous, generator, 1, 4);
        check_op(test.op, {x, y}, attrs_of(test), {2, 4},
                 describe(test.op, dtype, left, Placement::contiguous));
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST(CudaOps, BinaryWithNumber) {
  SKIP_WITHOUT_GPU();
  Generator generator(4);
  for (const BinaryCase& test : kBinary) {
    if (!get_op(test.op).operands[1].optional) continue;
    for (const DType dtype : dtypes_of(test)) {
      if (dtype == DType::boolean) continue;
      const Operand2 x = make_operand({5, 24}, dtype, Placement::gapped, generator, 1, 4);
      check_op(test.op, {x, {}}, attrs_of(test, Scalar(3)), {2, 4},
               std::string(test.op) + " with a number");
      if (HasFatalFailure()) return;
    }
  }
}

TEST(CudaOps, MaximumAndMinimumPropagateNan) {
  SKIP_WITHOUT_GPU();
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (const char* op : {"maximum", "minimum"}) {
    for (const DType dtype : kFloats) {
      const Tensor x = tensor({nan, 1, nan, 2}, {4}, {dtype});
      const Tensor y = tensor({1, nan, nan, 1}, {4}, {dtype});
      check_op(op, {from_cpu(x), from_cpu(y)}, {}, {}, op);
    }
  }
}

TEST(CudaOps, IntegersWrapAround) {
  SKIP_WITHOUT_GPU();
  const Tensor x = tensor({200, 255, 3}, {3}, {DType::uint8});
  EXPECT_EQ(add(x.to(kCuda), x.to(kCuda)).to_doubles(), (std::vector<double>{144, 254, 6}));
  EXPECT_EQ(mul(x.to(kCuda), x.to(kCuda)).to_doubles(), (std::vector<double>{64, 1, 9}));
  const Tensor large = from_vector<std::int64_t>({std::numeric_limits<std::int64_t>::max()}, {1});
  EXPECT_EQ(add(large.to(kCuda), 1).to_vector<std::int64_t>()[0],
            std::numeric_limits<std::int64_t>::min());
}

TEST(CudaOps, Select) {
  SKIP_WITHOUT_GPU();
  Generator generator(5);
  for (int code = 0; code < kNumDTypes; ++code) {
    const auto dtype = static_cast<DType>(code);
    for (const Sizes& sizes : kShapes) {
      for (const Placement placement : kPlacements) {
        const Operand2 x = make_operand(sizes, dtype, placement, generator, 0, 2);
        const Operand2 y = make_operand(sizes, dtype, Placement::contiguous, generator, 0, 2);
        const Operand2 mask = make_operand(sizes, DType::uint8, placement, generator, 0, 2);
        const Operand2 condition{mask.cpu.to(DType::boolean), mask.cuda.to(DType::boolean)};
        const std::string what = describe("select", dtype, sizes, placement);
        check_op("where", {condition, x, y}, {}, {}, what);
        check_op("masked_fill", {x, condition}, FillAttrs{1}, {}, what);
        if (HasFatalFailure()) return;
      }
    }
  }
  const Tensor x = zeros({2}, {DType::bfloat16, kCuda});
  const Tensor mask = tensor({1, 0}, {2}, {DType::boolean}).to(kCuda);
  const double inf = std::numeric_limits<double>::infinity();
  EXPECT_EQ(masked_fill(x, mask, -inf).to_doubles(), (std::vector<double>{-inf, 0}));
}

TEST(CudaOps, CastsEveryPair) {
  SKIP_WITHOUT_GPU();
  Generator generator(6);
  const double inf = std::numeric_limits<double>::infinity();
  const Tensor special =
      tensor({std::nan(""), inf, -inf, -0.0, 0.4, -1.6, 255.5, 300, 65504, 65520, 3e38, 1e-8, -7e9,
              2147483647.5, 9.3e18, 1.00048828125, 1.0078125000000002},
             {17}, {DType::float64});
  for (int from = 0; from < kNumDTypes; ++from) {
    for (int to = 0; to < kNumDTypes; ++to) {
      const auto source = static_cast<DType>(from);
      const auto target = static_cast<DType>(to);
      const std::string what = std::string(name(source)) + " to " + std::string(name(target));
      for (const Sizes& sizes : kShapes) {
        for (const Placement placement : kPlacements) {
          const Operand2 x = make_operand(sizes, source, placement, generator, 0, 200);
          expect_bit_equal(x.cuda.to(target), x.cpu.to(target), what);
          const Tensor guarded = run_guarded("cast", {x.cuda}, CastAttrs{target}, 1);
          expect_bit_equal(guarded, x.cpu.to(target), what + ", guarded");
          if (HasFatalFailure()) return;
        }
      }
      const Tensor x = special.to(source);
      const Tensor got = x.to(kCuda).to(target);
      expect_near(got, x.to(target).to_doubles(), {0, 0}, what + ", special values");
      if (HasFatalFailure()) return;
    }
  }
}

TEST(CudaOps, CopiesAnyLayout) {
  SKIP_WITHOUT_GPU();
  Generator generator(7);
  const std::vector<Sizes> shapes = {{3, 5}, {70, 45},  {4, 33, 65}, {2, 3, 40, 8},
                                     {1, 1}, {128, 64}, {0, 4},      {2, 9, 1, 31}};
  for (const DType dtype : {DType::uint8, DType::bfloat16, DType::float32, DType::float64}) {
    for (const Sizes& sizes : shapes) {
      const auto rank = static_cast<std::int64_t>(sizes.size());
      for (const Placement placement : kPlacements) {
        const Operand2 x = make_operand(sizes, dtype, placement, generator, 0, 200);
        for (std::int64_t i = 0; i < rank; ++i) {
          for (std::int64_t j = i; j < rank; ++j) {
            const std::string what = describe("copy", dtype, sizes, placement) + " transposed";
            const Tensor moved = x.cuda.transpose(i, j);
            const Tensor exact = x.cpu.transpose(i, j).contiguous();
            expect_bit_equal(moved.contiguous(), exact, what);
            expect_bit_equal(run_guarded("contiguous", {moved}, {}, 1), exact, what + ", guarded");
            Tensor target = zeros(to_shape(sizes), {dtype, kCuda}).transpose(i, j);
            target.copy_(moved);
            expect_bit_equal(target, exact, what + ", into a strided target");
            if (HasFatalFailure()) return;
          }
        }
        const Tensor flat = x.cuda.transpose(0, rank - 1).reshape({-1});
        expect_bit_equal(flat, x.cpu.transpose(0, rank - 1).reshape({-1}), "reshape");
      }
    }
  }
}

TEST(CudaOps, ViewsThatMustCopy) {
  SKIP_WITHOUT_GPU();
  Generator generator(8);
  const Operand2 x = make_operand({4, 6, 8}, DType::float32, Placement::contiguous, generator);
  const std::vector<std::tuple<const char*, Attrs, Tensor>> calls = {
      {"view", ShapeAttrs{{24, 8}}, x.cpu.view({24, 8})},
      {"reshape", ShapeAttrs{{8, 24}}, x.cpu.reshape({8, 24})},
      {"permute", AxesAttrs{{2, 0, 1}}, x.cpu.permute({2, 0, 1})},
      {"transpose", AxisPairAttrs{{0, 2}}, x.cpu.transpose(0, 2)},
      {"narrow", NarrowAttrs{1, 2, 3}, x.cpu.narrow(1, 2, 3)},
      {"unsqueeze", AxisAttrs{1}, x.cpu.unsqueeze(1)}};
  for (const auto& [op, attrs, exact] : calls) {
    expect_bit_equal(run_guarded(op, {x.cuda}, attrs, 1), exact, op);
  }
  const Operand2 row = make_operand({1, 6}, DType::float32, Placement::contiguous, generator);
  expect_bit_equal(run_guarded("expand", {row.cuda}, ShapeAttrs{{5, 6}}, 0), row.cpu.expand({5, 6}),
                   "expand");
  expect_bit_equal(run_guarded("squeeze", {row.cuda}, AxisAttrs{0}, 0), row.cpu.squeeze(0),
                   "squeeze");
}

TEST(CudaOps, Cat) {
  SKIP_WITHOUT_GPU();
  Generator generator(9);
  for (const DType dtype : {DType::uint8, DType::float16, DType::float32, DType::int64}) {
    for (const Placement placement : kPlacements) {
      for (std::int64_t axis = 0; axis < 3; ++axis) {
        std::vector<Operand2> pieces;
        for (const std::int64_t size : {3, 0, 8, 1}) {
          Sizes sizes = {2, 8, 16};
          sizes[static_cast<std::size_t>(axis)] = size;
          const bool empty = size == 0;
          pieces.push_back(make_operand(sizes, dtype, empty ? Placement::contiguous : placement,
                                        generator, 0, 100));
        }
        check_op("cat", pieces, AxisAttrs{axis}, {}, "cat");
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST(CudaOps, Embedding) {
  SKIP_WITHOUT_GPU();
  Generator generator(10);
  for (const DType dtype : kFloats) {
    for (const DType index : {DType::int64, DType::int32}) {
      for (const Sizes& weight_sizes : std::vector<Sizes>{{11, 64}, {11, 7}, {1, 1}, {5, 0}}) {
        const Operand2 indices = make_operand({3, 4}, index, Placement::contiguous, generator, 0,
                                              static_cast<double>(weight_sizes[0]));
        for (const Placement placement : {Placement::contiguous, Placement::unaligned}) {
          const Operand2 weight = make_operand(weight_sizes, dtype, placement, generator);
          check_op("embedding", {indices, weight}, {}, {}, "embedding");
          if (HasFatalFailure()) return;
        }
      }
    }
    const Tensor weight = ones({4, 24}, {dtype, kCuda});
    const Tensor outside = tensor({-1, 4, 3, 1e15}, {4}, {DType::int64}).to(kCuda);
    const std::vector<double> rows = embedding(outside, weight).to_doubles();
    for (std::size_t i = 0; i < rows.size(); ++i) {
      EXPECT_TRUE(i / 24 == 2 ? rows[i] == 1 : std::isnan(rows[i])) << "element " << i;
    }
  }
}

struct ReduceShape {
  Sizes sizes;
  std::vector<std::int64_t> dim;
};
const std::vector<ReduceShape>& reduce_shapes() {
  static const std::vector<ReduceShape> shapes = {
      {{}, {}},
      {{1}, {}},
      {{100}, {}},
      {{70000}, {}},
      {{5, 77}, {1}},
      {{5, 77}, {0}},
      {{300, 9}, {0}},
      {{64, 40}, {0}},
      {{4000, 33}, {0}},
      {{3, 4, 5}, {1}},
      {{3, 4, 5}, {0, 2}},
      {{6, 2, 64, 8}, {0, 2}},
      {{2, 9000}, {1}},
      {{130, 260}, {1}},
      {{2, 3, 4, 5}, {1, 3}},
      {{17, 1, 33}, {1}},
      {{7, 128}, {0, 1}},
      // By columns of 16 bytes: narrow, wide, and too few rows to share.
      {{1000, 16}, {0}},
      {{3000, 208}, {0}},
      {{900, 768}, {0}},
      {{8, 10, 96}, {0}}};
  return shapes;
}

TEST(CudaOps, Reductions) {
  SKIP_WITHOUT_GPU();
  Generator generator(11);
  for (const char* op : {"sum", "mean", "amax", "amin"}) {
    std::vector<DType> dtypes(std::begin(kFloats), std::end(kFloats));
    if (op != std::string("mean")) {
      dtypes.insert(dtypes.end(), std::begin(kIntegers), std::end(kIntegers));
      dtypes.push_back(DType::boolean);
    }
    for (const DType dtype : dtypes) {
      for (const ReduceShape& shape : reduce_shapes()) {
        for (const Placement placement : kPlacements) {
          for (const bool keepdim : {false, true}) {
            const Operand2 x = make_operand(shape.sizes, dtype, placement, generator, 0.5, 1.5);
            check_op(op, {x}, ReduceAttrs{shape.dim, keepdim}, {64, 0},
                     describe(op, dtype, shape.sizes, placement));
            if (HasFatalFailure()) return;
          }
        }
      }
    }
  }
}

TEST(CudaOps, ReductionsOfIntegersAreExact) {
  SKIP_WITHOUT_GPU();
  Generator generator(12);
  for (const DType dtype : kFloats) {
    // Small integers: every partial sum is exact in float32 and float64.
    const Operand2 x =
        make_operand({257, 1000}, DType::int32, Placement::contiguous, generator, -3, 4);
    const Operand2 typed{x.cpu.to(dtype), x.cuda.to(dtype)};
    for (const std::vector<std::int64_t>& dim : {std::vector<std::int64_t>{0}, {1}}) {
      expect_near(sum(typed.cuda, dim), sum(x.cpu, dim).to_doubles(), {0, 0}, "sum of integers");
    }
    const Tensor total = sum(typed.cuda.to(DType::float32));
    EXPECT_EQ(total.item(), sum(x.cpu).item());
  }
}

TEST(CudaOps, ReductionsOfNothing) {
  SKIP_WITHOUT_GPU();
  const Tensor nothing = zeros({3, 0}, {DType::float32, kCuda});
  EXPECT_EQ(sum(nothing, {1}).to_doubles(), (std::vector<double>{0, 0, 0}));
  EXPECT_EQ(sum(nothing).item(), 0);
  EXPECT_TRUE(std::isnan(mean(nothing).item()));
  EXPECT_THROW(amax(nothing, {1}), ShapeError);
  EXPECT_EQ(amax(zeros({0, 3}, {DType::float32, kCuda}), {1}).to_doubles().size(), 0U);
}

TEST(CudaOps, ExtremaPropagateNan) {
  SKIP_WITHOUT_GPU();
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const double inf = std::numeric_limits<double>::infinity();
  for (const DType dtype : kFloats) {
    const Tensor x = tensor({1, nan, 2, -inf, inf, 3, -inf, -inf, -inf}, {3, 3}, {dtype});
    for (const char* op : {"amax", "amin", "sum", "mean"}) {
      for (const std::vector<std::int64_t>& dim : {std::vector<std::int64_t>{0}, {1}}) {
        check_op(op, {from_cpu(x)}, ReduceAttrs{dim, false}, {}, op);
      }
    }
  }
}

// Rows, batches and blocks beyond the limit of 65535 that grids have on two of their axes.
TEST(CudaOps, ManyRows) {
  SKIP_WITHOUT_GPU();
  Generator generator(13);
  for (const std::int64_t rows : {65535, 65536, 70000}) {
    const Operand2 x =
        make_operand({rows, 3}, DType::float32, Placement::contiguous, generator, 1, 2);
    const Operand2 row = make_operand({3}, DType::float32, Placement::contiguous, generator, 1, 2);
    expect_near(add(x.cuda, row.cuda), exact_result("add", {x.cpu, row.cpu}, BinaryAttrs{}), {},
                "add");
    expect_near(sum(x.cuda, {1}), exact_result("sum", {x.cpu}, ReduceAttrs{{1}, false}), {}, "sum");
    expect_near(sum(x.cuda, {0}), exact_result("sum", {x.cpu}, ReduceAttrs{{0}, false}), {64, 0},
                "sum");
    const Operand2 cube =
        make_operand({rows, 9, 10}, DType::uint8, Placement::transposed, generator, 0, 99);
    expect_bit_equal(cube.cuda.contiguous(), cube.cpu, "copy");
    if (HasFatalFailure()) return;
  }
}

// Offsets beyond 2^31 elements: 64-bit index arithmetic from end to end.
TEST(CudaOps, MoreThanTwoToThe31Elements) {
  SKIP_WITHOUT_GPU();
  constexpr std::int64_t kRows = 3;
  constexpr std::int64_t kCols = (std::int64_t{1} << 30) + 5;
  Tensor x, copy;
  try {
    x = zeros({kRows, kCols}, {DType::uint8, kCuda});
    copy = empty(Shape{kCols, kRows}, {DType::uint8, kCuda});
  } catch (const OutOfMemory&) {
    GTEST_SKIP() << "less than 7 GB of device memory are free";
  }
  x.narrow(0, 2, 1).narrow(1, kCols - 3, 2).copy_(full({1, 2}, 7, {DType::uint8, kCuda}));
  copy.copy_(x.transpose(0, 1));
  const Tensor tail = copy.narrow(0, kCols - 4, 4);
  EXPECT_EQ(tail.to_doubles(), (std::vector<double>{0, 0, 0, 0, 0, 7, 0, 0, 7, 0, 0, 0}));
  EXPECT_EQ(sum(copy).item(), 14);
  const Tensor doubled = add(x, x);
  EXPECT_EQ(sum(doubled, {1}).to_doubles(), (std::vector<double>{0, 0, 28}));
}

}  // namespace
}  // namespace tenon::test
