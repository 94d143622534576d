// Moves between devices: they carry gradients, and a Graph, which runs on one device, refuses them. On
// a build without CUDA a stand-in plays the GPU.
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "autograd/autograd.h"
#include "schedule/schedule.h"
#include "tensor/error.h"
#include "tensor/interpreter.h"
#include "tensor/ops/attributes.h"
#include "tensor/random.h"
#include "tests/support/compare.h"
#include "tests/support/expect_error.h"
#include "tests/support/fake_cuda.h"
#include "tests/support/infer_only.h"
#include "tests/support/models.h"
#include "tests/tensor/layouts.h"

namespace tenon {
namespace devices_test {

using test::function_model;
using test::max_difference;
using Doubles = std::vector<double>;

class Devices : public ::testing::Test {
 protected:
  void SetUp() override {
    test::fake_cuda();
    if (!is_available(kCuda)) GTEST_SKIP() << "no CUDA device on this machine";
  }
};
using DevicesTraced = Devices;

TensorOptions on(Device device, DType dtype = DType::float32) { return {dtype, device}; }

TEST_F(Devices, AMoveKeepsTheElementsOfAnyLayoutAndDType) {
  for (const DType dtype : test::kAllDTypes) {
    for (const Extents& sizes : {Extents{}, Extents{3, 0}, Extents{5, 33, 4}}) {
      for (const test::Memory memory : test::kAllMemory) {
        const Tensor x = test::random_tensor(sizes, dtype, memory, 8, 0, 100);
        const Tensor there = x.to(kCuda);
        EXPECT_EQ(there.device(), kCuda);
        EXPECT_EQ(there.dtype(), dtype);
        EXPECT_EQ(there.cpu().to_doubles(), test::values_of(x));
        Tensor target = zeros(x.shape(), on(kCuda, dtype));
        target.copy_(x);
        EXPECT_EQ(target.to_doubles(), test::values_of(x));
      }
    }
  }
  const Tensor x = ones({2}, on(kCuda));
  EXPECT_TRUE(x.to(kCuda).is_same(x));
}

TEST_F(Devices, ALeafOnTheOtherDeviceGetsItsGradientThere) {
  for (const auto& [from, to] : {std::pair{kCpu, kCuda}, {kCuda, kCpu}}) {
    const Tensor x = full({2, 3}, 2, on(from)).requires_grad_();
    const Tensor moved = x.transpose(0, 1).to(to);
    EXPECT_TRUE(moved.requires_grad());
    EXPECT_FALSE(moved.is_leaf());
    backward(sum(square(moved)));
    ASSERT_TRUE(x.grad());
    EXPECT_EQ(x.grad().device(), from);
    EXPECT_EQ(x.grad().to_doubles(), Doubles(6, 4.0));
  }
}

TEST_F(Devices, ACopyBetweenDevicesCarriesTheGradient) {
  for (const auto& [from, to] : {std::pair{kCpu, kCuda}, {kCuda, kCpu}}) {
    for (const DType dtype : {DType::float32, DType::float64}) {
      const Tensor x = full({3, 2}, 2, on(from)).requires_grad_();
      Tensor buffer = zeros({3, 2}, on(to, dtype));
      buffer.copy_(x);
      EXPECT_TRUE(buffer.requires_grad());
      backward(sum(square(buffer)));
      ASSERT_TRUE(x.grad());
      EXPECT_EQ(x.grad().device(), from);
      EXPECT_EQ(x.grad().to_doubles(), Doubles(6, 4.0));
    }
  }
}

TEST_F(Devices, AMoveHasDerivativesOfHigherOrder) {
  const Tensor x = full({2}, 3).requires_grad_();
  const Tensor y = sum(square(square(x.to(kCuda)).cpu()));
  const Tensor roots[] = {y};
  const Tensor inputs[] = {x};
  const Tensor first = grad(roots, inputs, {}, {.create_graph = true}).at(0);
  EXPECT_EQ(first.to_doubles(), Doubles(2, 108.0));  // 4x³
  backward(sum(first));
  EXPECT_EQ(x.grad().to_doubles(), Doubles(2, 108.0));  // 12x²
}

TEST_F(Devices, NothingIsRecordedWithoutAGradient) {
  const Tensor x = ones({2}).requires_grad_();
  EXPECT_FALSE(x.detach().to(kCuda).requires_grad());
  const NoGradGuard no_grad;
  EXPECT_FALSE(x.to(kCuda).requires_grad());
}

TEST_F(DevicesTraced, AMoveOfWhatTheGraphComputesIsRefused) {
  const auto traced = [](const std::function<Tensor(const Tensor&)>& f) {
    create_schedule(function_model(f), {ones({2})});
  };
  constexpr const char* kText =
      "[to_device] under the tracer %mul cannot move from cpu to cuda:0: a Graph runs on one "
      "device; move the model and its inputs with to(cuda:0) before the trace";
  EXPECT_ERROR(TraceError, kText, traced([](const Tensor& x) { return (x * 2.0).to(kCuda); }));
  EXPECT_ERROR(TraceError, kText, traced([](const Tensor& x) {
                 Tensor there = zeros({2}, on(kCuda));
                 there.copy_(x * 2.0);
                 return there;
               }));
  EXPECT_NO_THROW(traced([](const Tensor& x) { return (x * 2.0).to(kCpu); }));
}

struct Moving : nn::Module {
  Moving()
      : weight(register_parameter("weight", full({2}, 3))),
        offset(register_buffer("offset", full({2}, 5))),
        part(weight.narrow(0, 0, 2)) {}
  Tensor forward(const Tensor& x) const { return x * moved(*this).to(x.device()); }
  std::function<Tensor(const Moving&)> moved;
  Tensor weight, offset, part;
};

TEST_F(DevicesTraced, StateOfTheModelIsNotBakedAsAConstant) {
  const std::pair<const char*, std::function<Tensor(const Moving&)>> kMoved[] = {
      {"weight", [](const Moving& m) { return m.weight; }},
      {"offset", [](const Moving& m) { return m.offset; }},
      {"weight", [](const Moving& m) { return m.part; }}};
  for (const auto& [name, moved] : kMoved) {
    const auto model = nn::make<Moving>();
    model->moved = moved;
    EXPECT_ERROR(TraceError,
                 std::string("[to_device] under the tracer ") + name +
                     " cannot move from cpu to cuda:0: its copy would be a constant of the Graph, "
                     "which later changes do not reach; move the model with to(cuda:0) before the "
                     "trace",
                 create_schedule(model, {{"x", ones({2}, on(kCuda))}}));
    if (moved(*model).is_same(model->part)) continue;
    model->to(kCuda);  // the remedy
    Executor run(create_schedule(model, {{"x", ones({2}, on(kCuda))}}).graph());
    EXPECT_EQ(run(ones({2}, on(kCuda))).to_doubles(), moved(*model).to_doubles());
  }
}

TEST_F(DevicesTraced, ConstantsMoveWhileTheTraceIsMade) {
  const auto model = function_model([](const Tensor& x) {
    const Tensor made = full({2}, 3, on(x.device()));
    const Tensor moved = from_vector(std::vector<float>{1, 2}, {2}).to(x.device());
    Tensor zeroed = x * moved;
    const Tensor kept = zeroed.clone();
    zeroed.zero_();
    return kept + made + zeroed;
  });
  Executor run(create_schedule(model, {ones({2}, on(kCuda))}).graph());
  const Tensor x = full({2}, 10, on(kCuda));
  EXPECT_EQ(run(x).to_doubles(), (Doubles{13, 23}));
  EXPECT_EQ(run(x).to_doubles(), model(x).to_doubles());
}

TEST_F(DevicesTraced, ARandomTensorThatIsMovedIsDrawnThere) {
  const auto model = function_model([](const Tensor& x) {
    const Tensor noise = randn({2}).to(x.device());
    return x + noise + uniform({2}, 1, 2).to(x.device());
  });
  const Tensor x = zeros({2}, on(kCuda));
  const Schedule sch = create_schedule(model, {x});
  EXPECT_EQ(sch.graph().order().size(), 4U);  // two draws, two sums
  manual_seed(5);
  const Doubles drawn = Executor(sch.graph())(x).to_doubles();
  manual_seed(5);
  const Doubles eager = model(x).to_doubles();
  for (std::size_t i = 0; i < drawn.size(); ++i) EXPECT_NEAR(drawn[i], eager[i], 1e-6);
  EXPECT_ERROR(TraceError,
               "[to_device] under the tracer %mul cannot move from cpu to cuda:0: a Graph runs on "
               "one device; move the model and its inputs with to(cuda:0) before the trace",
               create_schedule(function_model([](const Tensor& input) {
                                 return input + (randn({2}) * 2.0).to(input.device());
                               }),
                               {x}));
}

TEST_F(DevicesTraced, ReadingNumbersRecordsNothing) {
  const Tensor table = arange(6, on(kCuda)).view({2, 3}).transpose(0, 1);
  const auto model = function_model([table](const Tensor& x) {
    EXPECT_EQ(table.to_vector<float>(), (std::vector<float>{0, 3, 1, 4, 2, 5}));
    EXPECT_EQ(table.to_doubles()[1], 3);
    EXPECT_EQ(full({}, 4, on(kCuda)).item(), 4);
    return x * 2.0;
  });
  EXPECT_EQ(create_schedule(model, {ones({2}, on(kCuda))}).graph().order().size(), 1U);
}

TEST_F(Devices, HostDataOfADeviceTensorIsRefusedWithARemedyThatWorks) {
  const Tensor x = ones({2}, on(kCuda));
  EXPECT_ERROR(DeviceError,
               "the data of a tensor on cuda:0 was read on the host; copy it with cpu() first",
               x.data<float>());
  EXPECT_EQ(x.cpu().data<float>()[1], 1);
  const Tensor y = ones({2});
  EXPECT_ERROR(DeviceError,
               "[add] operands are on different devices, cuda:0 and cpu; move them with to(device)",
               x + y);
  EXPECT_EQ((x + y.to(x.device())).to_doubles(), Doubles(2, 2.0));
}

TEST(ToDevice, InfersTheDeviceAndMovesTheGradientBack) {
  const TensorSpec spec{DType::bfloat16, {2, 3}, kCpu};
  const TensorSpec* specs[] = {&spec};
  const TensorSpec there = infer(get_op("to_device"), specs, ToDeviceAttrs{{DeviceType::cuda, 1}}).at(0);
  EXPECT_EQ(there.device, (Device{DeviceType::cuda, 1}));
  EXPECT_EQ(there.dtype, DType::bfloat16);
  test::InferOnly interpreter;
  const InterpreterGuard guard(interpreter);
  const Tensor x = Tensor::symbolic(spec).requires_grad_();
  const Tensor roots[] = {x.to({DeviceType::cuda, 1})};
  const Tensor inputs[] = {x};
  const Tensor cotangents[] = {Tensor::symbolic(there)};
  EXPECT_EQ(grad(roots, inputs, cotangents).at(0).device(), kCpu);
  EXPECT_EQ(interpreter.last_attrs.as<ToDeviceAttrs>().device, kCpu);
}

}  // namespace devices_test
}  // namespace tenon
