// Shape rules on symbolic sizes, and front ends inside a pattern, where ranks are unknown.
#include <gtest/gtest.h>

#include "tensor/error.h"
#include "tensor/functional.h"
#include "tensor/interpreter.h"
#include "tensor/ops/attributes.h"
#include "tests/support/expect_error.h"
#include "tests/support/infer_only.h"

namespace tenon::test {
namespace {

class ShapeInference : public ::testing::Test {
 protected:
  std::shared_ptr<GuardList> guards = std::make_shared<GuardList>();
  Dim batch = Dim::symbol("b", 2, guards);
  Dim length = Dim::symbol("s", 6, guards);
  Tensor x = Tensor::symbolic({DType::float32, {batch, length, 1024}, kCpu});
  InferOnly infer_only;
  InterpreterGuard pushed{infer_only};

  std::string shape(const Tensor& tensor) const { return tensor.shape().to_string(); }
  Tensor of(Shape sizes) const {
    return Tensor::symbolic({DType::float32, std::move(sizes), kCpu});
  }
};

TEST_F(ShapeInference, SizesStaySymbolicWithoutGuards) {
  EXPECT_EQ(shape(add(x, of({1024}))), "(b, s, 1024)");
  EXPECT_EQ(shape(mul(of({batch, 1, 1}), x)), "(b, s, 1024)");
  EXPECT_EQ(shape(gelu(x)), "(b, s, 1024)");
  EXPECT_EQ(shape(view(x, {x.size(0), x.size(1), 16, 64})), "(b, s, 16, 64)");
  EXPECT_EQ(shape(view(x, {x.size(0), x.size(1), 16, -1})), "(b, s, 16, 64)");
  EXPECT_EQ(reshape(x, {-1, 1024}).size(0), batch * length);
  EXPECT_EQ(shape(permute(x, {2, 0, 1})), "(1024, b, s)");
  EXPECT_EQ(shape(transpose(x, -1, 1)), "(b, 1024, s)");
  EXPECT_EQ(shape(expand(of({1, 1024}), {batch, length, -1})), "(b, s, 1024)");
  EXPECT_EQ(shape(unsqueeze(x, -1)), "(b, s, 1024, 1)");
  EXPECT_EQ(shape(squeeze(unsqueeze(x, 1), 1)), "(b, s, 1024)");
  EXPECT_EQ(cat({x, x}, 1).size(1), length + length);
  EXPECT_EQ(shape(sum(x, {1})), "(b, 1024)");
  EXPECT_EQ(shape(mean(x, {-1}, true)), "(b, s, 1)");
  EXPECT_EQ(shape(chunk(x, 4, -1)[3]), "(b, s, 256)");
  EXPECT_EQ(shape(embedding(Tensor::symbolic({DType::int64, {batch, length}, kCpu}), of({100, 8}))),
            "(b, s, 8)");
  EXPECT_EQ(shape(where(Tensor::symbolic({DType::boolean, {length, 1}, kCpu}), x, x)),
            "(b, s, 1024)");
  EXPECT_TRUE(guards->guards.empty()) << guards->guards.at(0).to_string();
}

TEST_F(ShapeInference, RequiredEqualityBecomesAGuard) {
  const Dim other = Dim::symbol("t", 6, guards);
  const Tensor y = add(x, of({other, 1024}));
  EXPECT_EQ(shape(y), "(b, s, 1024)");
  ASSERT_EQ(guards->guards.size(), 1U);
  EXPECT_EQ(guards->guards[0].relation, DimGuard::Relation::equal);
  EXPECT_TRUE(other.same_as(length));
}

TEST_F(ShapeInference, ASizeOfOneBroadcastsUnderAGuard) {
  const Dim one = Dim::symbol("u", 1, guards);
  EXPECT_EQ(shape(add(x, of({one, 1024}))), "(b, s, 1024)");
  ASSERT_EQ(guards->guards.size(), 1U);
  EXPECT_TRUE(guards->guards[0].left.same_as(one) || guards->guards[0].right.same_as(one));
}

TEST_F(ShapeInference, DifferentExampleSizesAreRefused) {
  EXPECT_ERROR(
      ShapeError,
      "[add] shapes (b, s, 1024) and (b, 1024) do not broadcast: axis -2 has sizes s and b; "
      "they must be equal, or one of them 1",
      add(x, of({batch, 1024})));
  EXPECT_ERROR(ShapeError,
               "[view] shape (b, 7, 1024) has 7168*b elements; the input (b, s, 1024) has 1024*b*s",
               view(x, {batch, 7, 1024}));
}

TEST_F(ShapeInference, AttributesAreNormalized) {
  transpose(x, -1, 1);
  EXPECT_EQ(infer_only.last_attrs, Attrs(AxisPairAttrs{{1, 2}}));
  sum(x, {-1, 0});
  EXPECT_EQ(infer_only.last_attrs, Attrs(ReduceAttrs{{0, 2}, false}));
  view(x, {-1, 1024});
  EXPECT_EQ(infer_only.last_attrs, Attrs(ShapeAttrs{{batch * length, 1024}}));
  unsqueeze(x, -1);
  EXPECT_EQ(infer_only.last_attrs, Attrs(AxisAttrs{3}));
}

/// Records the last call and answers with values of which nothing is known.
class PatternInterpreter final : public Interpreter {
 public:
  std::vector<Tensor> apply(const Op& op, std::span<const Tensor>, const Attrs& attrs) override {
    calls.push_back(op.name + "(" + attrs.to_string() + ")");
    return {value()};
  }
  bool is_pattern() const override { return true; }

  struct Payload final : TracedPayload {
    Dim size(int axis) const override { return Dim::of_pattern(0, axis); }
    bool is_pattern() const override { return true; }
  };
  static Tensor value() { return Tensor::symbolic({}, std::make_shared<Payload>()); }
  std::vector<std::string> calls;
};

TEST(PatternFronts, AxesPassAsGiven) {
  PatternInterpreter pattern;
  const InterpreterGuard pushed(pattern);
  const Tensor x = PatternInterpreter::value();
  transpose(x, -1, -2);
  permute(x, {0, -1, 1});
  sum(x, {-1, 0}, true);
  unsqueeze(x, -1);
  squeeze(x, 3);
  cat({x, x}, -1);
  narrow(x, -1, 0, 64);
  cast(x, DType::float32);
  view(x, {-1, 64});
  const std::vector<std::string> expected = {"transpose(dims=(-2, -1))",
                                             "permute(dims=(0, -1, 1))",
                                             "sum(dim=(-1, 0), keepdim=true)",
                                             "unsqueeze(dim=-1)",
                                             "squeeze(dim=3)",
                                             "cat(dim=-1)",
                                             "narrow(dim=-1, start=0, length=64)",
                                             "cast(dtype=float32)",
                                             "view(shape=(-1, 64))"};
  EXPECT_EQ(pattern.calls, expected);
}

TEST(PatternFronts, ElementwiseAndChunkNeedNoSizes) {
  PatternInterpreter pattern;
  const InterpreterGuard pushed(pattern);
  const Tensor x = PatternInterpreter::value();
  gelu((x + x) / 2.0, Approximate::tanh);
  where(x, x, masked_fill(x, x, any()));
  mul(x, Scalar(any()));
  embedding(x, x);
  reshape(x, {x.size(0), x.size(1), -1});
  expand(x, {x.size(0), -1});
  EXPECT_EQ(pattern.calls.size(), 9U);
  pattern.calls.clear();
  EXPECT_EQ(chunk(x, 3, -1).size(), 3U);
  EXPECT_EQ(pattern.calls.size(), 3U);
  EXPECT_EQ(split(x, std::vector<std::int64_t>{4, 4}, -1).size(), 2U);
  EXPECT_ERROR(TraceError,
               "[split] a piece size in a pattern, where the number of pieces is unknown; give the "
               "list of sizes or use chunk",
               split(x, 4, -1));
}

}  // namespace
}  // namespace tenon::test
