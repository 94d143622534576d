// Operators and templates of the public API: every form compiles, links and computes; those that
// change a tensor in place do it where its other handles and views see it.
#include <gtest/gtest.h>

#include "autograd/autograd.h"
#include "autograd/gradcheck.h"
#include "nn/nn.h"
#include "schedule/schedule.h"
#include "tests/support/expect_error.h"

namespace tenon::test {
namespace operators_test {

using Doubles = std::vector<double>;

Tensor sample() { return tensor({1, 2, 4}, {3}, {DType::float64}); }

/// Every operator with a number of type T, whose value is 2.
template <class T>
void check_operators_with(const T& two) {
  const Tensor x = sample();
  EXPECT_EQ((x + two).to_doubles(), (Doubles{3, 4, 6}));
  EXPECT_EQ((two + x).to_doubles(), (Doubles{3, 4, 6}));
  EXPECT_EQ((x - two).to_doubles(), (Doubles{-1, 0, 2}));
  EXPECT_EQ((two - x).to_doubles(), (Doubles{1, 0, -2}));
  EXPECT_EQ((x * two).to_doubles(), (Doubles{2, 4, 8}));
  EXPECT_EQ((two * x).to_doubles(), (Doubles{2, 4, 8}));
  EXPECT_EQ((x / two).to_doubles(), (Doubles{0.5, 1, 2}));
  EXPECT_EQ((two / x).to_doubles(), (Doubles{2, 1, 0.5}));
  Tensor y = sample();
  y += two;
  y -= two;
  y *= two;
  y /= two;
  EXPECT_EQ(y.to_doubles(), x.to_doubles());
  y.add_(two).sub_(two).mul_(two).div_(two);
  EXPECT_EQ(y.to_doubles(), x.to_doubles());
  for (const Tensor& result :
       {eq(x, two), ne(x, two), lt(x, two), le(x, two), gt(x, two), ge(x, two)}) {
    EXPECT_EQ(result.dtype(), DType::boolean);
  }
  EXPECT_EQ(full({2}, two).to_doubles(), (Doubles{2, 2}));
  EXPECT_EQ(masked_fill(x, eq(x, two), two).to_doubles(), x.to_doubles());
}

TEST(Operators, TakeNumbersOfEveryTypeOnEitherSide) {
  check_operators_with(2);
  check_operators_with(2L);
  check_operators_with(2U);
  check_operators_with(std::size_t{2});
  check_operators_with(std::int64_t{2});
  check_operators_with(std::uint8_t{2});
  check_operators_with(2.0F);
  check_operators_with(2.0);
  check_operators_with(Dim(2));
  check_operators_with(Scalar(2));
  check_operators_with(Number(2));
}

TEST(Operators, DivideANumberWithOneRounding) {
  for (const DType dtype : {DType::float32, DType::float64}) {
    const Tensor x = tensor({3, 7, 49, -0.1, 0}, {5}, {dtype});
    const Doubles quotients = (5.0 / x).to_doubles();
    const Doubles divisors = x.to_doubles();
    for (std::size_t i = 0; i < quotients.size(); ++i) {
      const double exact = 5.0 / divisors[i];
      const double rounded =
          dtype == DType::float32 ? 5.0F / static_cast<float>(divisors[i]) : exact;
      EXPECT_EQ(quotients[i], rounded) << divisors[i];
    }
  }
}

TEST(Operators, GradientsOfANumberOnTheLeft) {
  const Tensor x = tensor({0.5, -2, 3, 1.5}, {2, 2}, {DType::float64}).requires_grad_();
  const TensorFunction functions[] = {
      [](const std::vector<Tensor>& in) { return std::vector{1.0 - in[0]}; },
      [](const std::vector<Tensor>& in) { return std::vector{2.5 / in[0]}; }};
  for (const TensorFunction& f : functions) {
    const GradcheckResult result = gradcheck(f, {x});
    EXPECT_TRUE(result) << result.report;
  }
}

struct Mix : nn::Module {
  Tensor forward(const Tensor& x) const {
    Tensor y = 1.0 - x;
    y += 3 / (x + 2.5);
    y *= x;
    y -= 0.5;
    y /= Scalar(x.size(0));
    return y;
  }
};

TEST(Operators, WorkAlikeEagerlyTracedAndScheduled) {
  const auto model = nn::make<Mix>();
  const Tensor x = uniform({4, 3}, 0, 1);
  Schedule sch = create_schedule(model, {{"x", x}});
  Executor run = build(sch);
  for (const Shape& shape : {Shape{4, 3}, Shape{2, 5}}) {
    const Tensor input = uniform(shape, 0, 1);
    EXPECT_EQ(run(input).to_doubles(), model(input).to_doubles());
  }
  EXPECT_EQ(sch.find([](const Tensor& v) { return 1.0 - v; }).size(), 1U);
  EXPECT_EQ(sch.find([](const Tensor& v) { return v - 1.0; }).size(), 0U);
  EXPECT_EQ(sch.find([](const Tensor& v) { return Scalar(any()) / v; }).size(), 1U);
}

TEST(CompoundOperators, WriteTheSameStorage) {
  Tensor x = sample();
  const Tensor handle = x;
  const Tensor view = x.narrow(0, 1, 2);
  const auto version = x.storage()->version();
  x += tensor({10}, {1}, {DType::float64});  // broadcast
  x *= x;
  EXPECT_TRUE(x.is_same(handle));
  EXPECT_EQ(handle.to_doubles(), (Doubles{121, 144, 196}));
  EXPECT_EQ(view.to_doubles(), (Doubles{144, 196}));
  EXPECT_GT(x.storage()->version(), version);
  x.narrow(0, 0, 1) -= 100;  // of a view that nothing else holds
  select(x, 0, 2) /= 2.0;
  EXPECT_EQ(handle.to_doubles(), (Doubles{21, 144, 98}));
  Tensor& same = (x += 1);
  EXPECT_EQ(&same, &x);
  static_assert(!std::is_invocable_v<decltype([](auto& t) -> decltype(t += 1) { return t += 1; }),
                                     const Tensor&>,
                "a const handle is not changed");
}

TEST(CompoundOperators, KeepTheDType) {
  Tensor ids = tensor({5, 6}, {2}, {DType::int64});
  ids += 1;
  ids *= 3;
  EXPECT_EQ(ids.to_vector<std::int64_t>(), (std::vector<std::int64_t>{18, 21}));
  error_text<ValueError>([&] { ids += 0.5; });
  error_text<DTypeError>([&] { ids /= 2; });
  error_text<DTypeError>([&] { ids += ones({2}); });
  EXPECT_EQ(ids.to_vector<std::int64_t>(), (std::vector<std::int64_t>{18, 21})) << "as before";
  Tensor half = ones({2}, {DType::float16});
  half += 0.1;
  EXPECT_EQ(half.dtype(), DType::float16);
}

TEST(CompoundOperators, RefuseAResultOfAnotherShape) {
  Tensor row = zeros({3});
  EXPECT_ERROR(
      ShapeError,
      "[add_] the result has shape (2, 3) and the tensor that is to hold it (3,); needed an "
      "operand that broadcasts to the tensor",
      row += zeros({2, 3}));
}

TEST(CompoundOperators, MatchAsPartsOfAPattern) {
  Schedule sch = create_schedule(nn::make<Mix>(), {{"x", zeros({4, 3})}});
  const auto in_place = [](const Tensor& x) {
    Tensor y = 1.0 - x;
    y += 3 / (x + 2.5);
    y *= x;
    return y;
  };
  EXPECT_EQ(sch.find(in_place).size(), 1U);
  EXPECT_EQ(sch.find([](const Tensor& x) { return (1.0 - x + 3 / (x + 2.5)) * x; }).size(), 1U);
  error_text<TraceError>([&] { sch.find([](Tensor x) { return x += 1; }); });
}

TEST(CompoundOperators, FollowAutograd) {
  Tensor w = sample();
  w.requires_grad_();
  error_text<ValueError>([&] { w += 1; });
  Tensor y = w * w;
  y += w;
  y *= 6;
  y /= 2.0;
  y -= 2.0 - w;  // 3w² + 4w - 2
  y *= sample();
  backward(sum(y));
  EXPECT_EQ(w.grad().to_doubles(), (Doubles{10, 32, 112}));
}

/// Templates of the public headers that are defined elsewhere: each must link.
template <class T>
void check_element_type() {
  const std::vector<T> values = {T(1), T(0), T(1)};
  const Tensor made = from_vector(values, {3});
  EXPECT_EQ(made.dtype(), dtype_of<T>);
  EXPECT_EQ(made.to_vector<T>(), values);
  EXPECT_EQ(made.data<T>()[1], T(0));
  EXPECT_EQ(made.narrow(0, 0, 1).item<T>(), T(1));
  EXPECT_EQ(Number(1).to<T>(), T(1));
  EXPECT_TRUE(Number(1).is_value_of<T>());
  EXPECT_EQ(from_vector(values, {3, 1}, kCpu).to_doubles(), (Doubles{1, 0, 1}));
}

TEST(PublicTemplates, LinkForEveryElementType) {
  check_element_type<double>();
  check_element_type<std::int64_t>();
  check_element_type<std::int32_t>();
  check_element_type<std::uint8_t>();
  check_element_type<float>();
  check_element_type<bool>();
  const std::vector<Half> halves = {Half(1.0F), Half(0.5F)};
  EXPECT_EQ(from_vector(halves, {2}).to_vector<Half>(), halves);
  EXPECT_EQ(full({}, 0.5).item<Half>(), Half(0.5F));
  const std::vector<BFloat16> brains = {BFloat16(1.0F), BFloat16(0.5F)};
  EXPECT_EQ(from_vector(brains, {2}).to_vector<BFloat16>(), brains);
  EXPECT_EQ(full({}, 0.5).item<BFloat16>(), BFloat16(0.5F));
  error_text<ShapeError>([] { from_vector(std::vector<bool>{true}, {2}); });
  static_assert(!Element<long long> || std::is_same_v<long long, std::int64_t>);
}

TEST(PublicTemplates, MakeTensorsOfEveryKindOfList) {
  EXPECT_EQ(empty({2, 3}).numel(), Dim(6));
  EXPECT_EQ(empty(Shape{2}).numel(), Dim(2));
  EXPECT_EQ(empty(Extents{2, 2}).numel(), Dim(4));
  const float number = 2.5F;
  const std::size_t count = 3;
  EXPECT_EQ(tensor({number, 1.0}, {2}).to_doubles(), (Doubles{2.5, 1}));
  EXPECT_EQ(tensor({count, count + 1}, {2}).to_doubles(), (Doubles{3, 4}));
  const std::vector<double> doubles = {1, 2};
  const std::vector<std::int64_t> integers = {1, 2};
  const std::initializer_list<double> list = {1, 2};
  EXPECT_EQ(tensor(doubles, {2}).to_doubles(), doubles);
  EXPECT_EQ(tensor(integers, {2}).to_doubles(), doubles);
  EXPECT_EQ(tensor(list, {2}).to_doubles(), doubles);
  error_text<ShapeError>([] { tensor({1, 2}, {3}); });
}

struct MixedCase {
  const char* what;
  std::function<void()> call;
  std::vector<const char*> texts;
};

TEST(MixedDTypes, AreRefusedWithBothOperandsAndTheRemedy) {
  const Tensor x = zeros({2, 3}, {DType::bfloat16});
  const Tensor w = zeros({3, 3});
  const Tensor v = zeros({3});
  const Tensor ids = zeros({2, 3}, {DType::int64});
  const Tensor mask = zeros({2, 3}, {DType::boolean});
  const Tensor q = zeros({1, 2, 3}, {DType::float16}), k = zeros({1, 2, 3});
  const char* to_float = "convert 'input' with .to(DType::float32)";
  const MixedCase cases[] = {
      {"add",
       [&] { x + v; },
       {"[add] operand 'input' is bfloat16 and operand 'other' is float32, of shapes (2, 3) and "
        "(3,); they must have one dtype: convert 'input' with .to(DType::float32)"}},
      {"sub", [&] { v - x; }, {"[sub]", "convert 'other' with .to(DType::float32)"}},
      {"in place", [&] { Tensor(v) += v.to(DType::float64); }, {"[add]", "DType::float64"}},
      {"integers",
       [&] {
         ids* zeros({2, 3}, {DType::int32});
       },
       {"'other' with .to(DType::int64)"}},
      {"integer and float", [&] { ids + w.narrow(0, 0, 2); }, {to_float}},
      {"bool and integer", [&] { mask + ids; }, {"'input' with .to(DType::int64)"}},
      {"16 bits", [&] { x + x.to(DType::float16); }, {"'other' with .to(DType::bfloat16)"}},
      {"eq", [&] { eq(x, v); }, {"[eq]", "(2, 3) and (3,)", to_float}},
      {"maximum", [&] { maximum(x, v); }, {"[maximum]", to_float}},
      {"pow", [&] { pow(x, v); }, {"[pow]", to_float}},
      {"matmul", [&] { matmul(x, w); }, {"[matmul]", "(2, 3) and (3, 3)", to_float}},
      {"linear", [&] { linear(x, w); }, {"[linear]", "operand 'weight' is float32", to_float}},
      {"linear's bias",
       [&] { linear(x, w.to(DType::bfloat16), v); },
       {"[linear]", "operand 'bias' is float32", "(2, 3) and (3,)"}},
      {"where", [&] { where(mask, x, v); }, {"[where]", "(2, 3) and (3,)", to_float}},
      {"cat",
       [&] {
         cat({w, w, x});
       },
       {"[cat] operand 'tensors[0]' is float32 and operand 'tensors[2]' is bfloat16, of shapes "
        "(3, 3) and (2, 3)",
        "convert 'tensors[2]' with .to(DType::float32)"}},
      {"stack",
       [&] {
         stack({v, v.to(DType::float64)});
       },
       {"tensors[1]", "DType::float64"}},
      {"layer_norm", [&] { layer_norm(x, {3}, v, v); }, {"[layer_norm]", "'weight'", to_float}},
      {"rms_norm", [&] { rms_norm(x, {3}, v); }, {"[rms_norm]", "'weight'", to_float}},
      {"attention's key",
       [&] { scaled_dot_product_attention(q, k, q); },
       {"'query' is float16 and operand 'key' is float32", "'query' with .to(DType::float32)"}},
      {"attention's mask",
       [&] {
         scaled_dot_product_attention(k, k, k, zeros({2, 2}, {DType::float16}));
       },
       {"operand 'attn_mask' is float16", "(2, 2)", ".to(DType::float32)"}},
      {"mse_loss", [&] { mse_loss(x, w.narrow(0, 0, 2)); }, {"bfloat16", "float32", to_float}},
      {"linear_cross_entropy",
       [&] { linear_cross_entropy(x, w, zeros({2}, {DType::int64})); },
       {"[linear_cross_entropy]", "'weight'", to_float}},
      {"conv2d",
       [&] {
         conv2d(zeros({1, 1, 3, 3}), zeros({1, 1, 3, 3}, {DType::float64}));
       },
       {"[conv2d]", "'weight' is float64", "(1, 1, 3, 3)", "'input' with .to(DType::float64)"}},
      {"bias_gelu", [&] { bias_gelu(x, v); }, {"[bias_gelu]", "'bias'", to_float}}};
  for (const MixedCase& test : cases) {
    const std::string error = error_text<DTypeError>(test.call);
    for (const char* text : test.texts) {
      EXPECT_NE(error.find(text), error.npos) << test.what << ": " << error;
    }
  }
}

}  // namespace operators_test
}  // namespace tenon::test
