// Packing compares bytes before parameters move: all bit patterns survive, and what did not arrive is
// refused. What packing is for: tests/graph/program_test.cpp, tests/schedule/primitives_test.cpp.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "graph/program.h"
#include "schedule/schedule.h"
#include "tensor/interpreter.h"
#include "tests/support/expect_error.h"

namespace tenon {
namespace pack_parameters_test {

/// One product of two weights, stacked along `axis`.
struct Joined : nn::Module {
  Joined(std::int64_t joined_along, std::int64_t width, DType dtype)
      : axis(joined_along),
        first(register_parameter("first", randn({3, width}).to(dtype))),
        second(register_parameter("second", randn({3, width}).to(dtype))) {}
  Tensor forward(const Tensor& x) const {
    return matmul(x, cat({first, second}, axis).transpose(0, 1));
  }
  std::int64_t axis;
  Tensor first, second;
};

std::string bytes_of(const Tensor& tensor) {
  const Tensor plain = tensor.detach().contiguous();
  const TensorView view = plain.view_of_data();
  return {static_cast<const char*>(view.data),
          static_cast<std::size_t>(view.numel()) * size_of(view.dtype)};
}

TEST(PackParameters, EveryBitPatternArrives) {
  for (const std::int64_t axis : {0, 1}) {
    for (const std::int64_t width : {4, 5}) {  // 5: slices that no wide number can be compared at
      for (const DType dtype : {DType::float64, DType::float32, DType::float16, DType::bfloat16}) {
        const auto model = nn::make<Joined>(axis, width, dtype);
        {
          const NoGradGuard no_grad;
          for (const double special : {HUGE_VAL, std::nan(""), -0.0, 0.0}) {
            Tensor place = model->second.narrow(0, special == 0 ? 1 : 2, 1)
                               .narrow(1, std::signbit(special) ? 1 : 2, 1);
            place.copy_(full({1, 1}, special, {dtype, kCpu}));
          }
        }
        const std::string first = bytes_of(model->first);
        const std::string second = bytes_of(model->second);
        const Tensor x = randn({2, axis == 0 ? width : 2 * width}).to(dtype);
        pack_parameters(create_schedule(model, {{"x", x}}).graph());
        EXPECT_EQ(model->first.storage(), model->second.storage());
        EXPECT_EQ(bytes_of(model->first), first);
        EXPECT_EQ(bytes_of(model->second), second);
      }
    }
  }
}

/// Loses what is written, from the given write on.
class Forgetful final : public Interpreter {
 public:
  Forgetful(int from, double instead) : left_(from), instead_(instead) {}
  std::vector<Tensor> apply(const Op& op, std::span<const Tensor> inputs,
                            const Attrs& attrs) override {
    return apply_eager(op, inputs, attrs);
  }
  void assign(const Tensor& target, const Tensor& source) override {
    Interpreter::assign(
        target,
        left_-- > 0 ? source : full(source.shape(), instead_, {source.dtype(), source.device()}));
  }

 private:
  int left_;
  double instead_;
};

TEST(PackParameters, WhatDidNotArriveStaysWhereItIs) {
  const auto model = nn::make<Joined>(0, 4, DType::float32);
  {
    const NoGradGuard no_grad;
    model->second.copy_(zeros({3, 4}));
  }
  const Schedule sch = create_schedule(model, {{"x", randn({2, 4})}});
  const auto storage = model->first.storage();
  const std::string first = bytes_of(model->first);
  const auto refuse = [&](Forgetful interpreter) {
    const InterpreterGuard guard(interpreter);
    return test::error_text<VerificationError>([&] { pack_parameters(sch.graph()); });
  };
  EXPECT_EQ(refuse({1, -0.0}),  // equal as numbers
            "parameter 'second' is not the same in packed storage; it keeps its own");
  EXPECT_EQ(refuse({0, 1.0}),
            "parameter 'first' is not the same in packed storage; it keeps its own");
  EXPECT_EQ(model->first.storage(), storage);
  EXPECT_NE(model->first.storage(), model->second.storage());
  EXPECT_EQ(bytes_of(model->first), first);
  pack_parameters(sch.graph());
  EXPECT_EQ(model->first.storage(), model->second.storage());
  EXPECT_EQ(bytes_of(model->first), first);
}

}  // namespace pack_parameters_test
}  // namespace tenon
