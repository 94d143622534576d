// print(): the text of every dtype and layout, on each device, and what it leaves alone.
#include <gtest/gtest.h>

#include <atomic>
#include <iostream>
#include <limits>
#include <thread>

#include "autograd/autograd.h"
#include "nn/nn.h"
#include "tensor/device_backend.h"
#include "tests/support/capture_print.h"
#include "tests/tensor/layouts.h"

namespace tenon::test {
namespace {

std::string printed(const Tensor& x, const std::string& label = "") {
  const CapturePrint capture;
  const Tensor returned = print(x, label);
  EXPECT_TRUE(returned.is_same(x));
  return capture.text();
}

class Print : public ::testing::TestWithParam<DeviceType> {
 protected:
  void SetUp() override {
    if (!is_available(device())) GTEST_SKIP() << "no " << device().to_string() << " device";
  }
  Device device() const { return {GetParam(), 0}; }
  /// "float32(2, 3)" as this device's tensors call it.
  std::string spec(const std::string& text) const {
    return text + (device().is_cpu() ? "" : " on cuda");
  }
};

TEST_P(Print, WritesOneLineForEveryDType) {
  for (const DType dtype : kStoredDTypes) {
    const Tensor x = tensor({0, 1, 0, 1, 1, 0, 1, 0}, {2, 4}, {dtype}).to(device());
    EXPECT_EQ(printed(x, "x"), "x: " + spec(std::string(name(dtype)) + "(2, 4)") +
                                   " min 0 max 1 mean 0.5 [0, 1, 0, 1, 1, 0, …]\n");
  }
  const Tensor large = from_vector<std::int64_t>({(std::int64_t{1} << 62) + 1, -7}, {2});
  EXPECT_EQ(printed(large.to(device())),
            spec("int64(2,)") +
                " min -7 max 4611686018427387905 mean 2.30584e+18 [4611686018427387905, -7]\n");
}

TEST_P(Print, ReadsElementsInRowMajorOrderWhateverTheLayout) {
  const Tensor base = tensor({0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}, {3, 4}).to(device());
  const struct {
    Tensor x;
    const char* text;
  } cases[] = {
      {base.transpose(0, 1), "float32(4, 3)| min 0 max 11 mean 5.5 [0, 4, 8, 1, 5, 9, …]"},
      {base.narrow(1, 1, 2), "float32(3, 2)| min 1 max 10 mean 5.5 [1, 2, 5, 6, 9, 10]"},
      {base.narrow(0, 2, 1).narrow(1, 1, 1).expand({2, 3}),
       "float32(2, 3)| min 9 max 9 mean 9 [9, 9, 9, 9, 9, 9]"},
      {base.narrow(0, 1, 1).narrow(1, 2, 1).reshape({}), "float32()| min 6 max 6 mean 6 [6]"},
      {base.narrow(1, 0, 0), "float32(3, 0)| []"},
  };
  for (const auto& [x, text] : cases) {
    const std::string expected = text;
    const std::size_t bar = expected.find('|');
    EXPECT_EQ(printed(x), spec(expected.substr(0, bar)) + expected.substr(bar + 1) + "\n");
  }
}

TEST_P(Print, CountsWhatIsNotFiniteAndLeavesItOutOfTheStatistics) {
  const double inf = std::numeric_limits<double>::infinity();
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (const DType dtype : kFloats) {
    const Tensor x = tensor({nan, 1, inf, -3, -inf, nan, nan}, {7}, {dtype}).to(device());
    EXPECT_EQ(printed(x),
              spec(std::string(name(dtype)) + "(7,)") +
                  " min -3 max 1 mean -1 3 NaN 2 Inf [nan, 1, inf, -3, -inf, nan, …]\n");
  }
  EXPECT_EQ(printed(tensor({nan}, {1}).to(device())), spec("float32(1,)") + " 1 NaN [nan]\n");
}

TEST_P(Print, AccumulatesTheMeanInFloat64) {
  // float32 sums of these stop growing at 2^24.
  const Tensor x = full({(1 << 24) + (1 << 20)}, 1, {DType::float32}).to(device());
  EXPECT_NE(printed(x).find("mean 1 [1,"), std::string::npos);
}

TEST_P(Print, GradientsFlowPastIt) {
  Tensor x = tensor({1, 2, 3}, {3}, {DType::float64}).to(device()).requires_grad_();
  const CapturePrint capture;
  const Tensor y = print(square(x), "y");
  backward(sum(y));
  EXPECT_EQ(x.grad().to_doubles(), (std::vector<double>{2, 4, 6}));
  EXPECT_EQ(capture.labels(), std::vector<std::string>{"y"});
}

INSTANTIATE_TEST_SUITE_P(Devices, Print, ::testing::Values(DeviceType::cpu, DeviceType::cuda),
                         [](const auto& device) {
                           return device.param == DeviceType::cpu ? "cpu" : "cuda";
                         });

TEST(PrintStream, LabelsKeepToOneLine) {
  EXPECT_EQ(printed(tensor({1}, {1}), "two\nlines"),
            "two lines: float32(1,) min 1 max 1 mean 1 [1]\n");
}

TEST(PrintStream, IsStandardErrorUnlessSet) {
  std::ostringstream text;
  EXPECT_EQ(set_print_stream(&text), &std::cerr);
  EXPECT_EQ(set_print_stream(nullptr), &text);
  EXPECT_EQ(set_print_stream(nullptr), &std::cerr);
}

/// Counts writes; a line that came in pieces would be several.
class WriteCounter final : public std::streambuf {
 public:
  std::atomic<int> writes = 0;
  std::atomic<int> lines = 0;

 private:
  std::streamsize xsputn(const char* text, std::streamsize n) override {
    ++writes;
    lines += text[n - 1] == '\n';
    return n;
  }
  int overflow(int c) override {
    ++writes;
    return c;
  }
};

TEST(PrintStream, TakesEachLineInOneWriteFromManyThreads) {
  WriteCounter counter;
  std::ostream stream(&counter);
  std::ostream* before = set_print_stream(&stream);
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([] {
      for (int k = 0; k < 50; ++k) print(tensor({1, 2, 3}, {3}), "x");
    });
  }
  for (std::thread& thread : threads) thread.join();
  set_print_stream(before);
  EXPECT_EQ(counter.writes, 200);
  EXPECT_EQ(counter.lines, 200);
}

TEST(PrintLayer, ReturnsItsInput) {
  const auto layer = nn::make<nn::Print>("hidden");
  const Tensor x = tensor({1, 2}, {2});
  const CapturePrint capture;
  EXPECT_TRUE(layer(x).is_same(x));
  EXPECT_EQ(capture.text(), "hidden: float32(2,) min 1 max 2 mean 1.5 [1, 2]\n");
}

}  // namespace
}  // namespace tenon::test
