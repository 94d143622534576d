// Random tensors on the GPU: the bits of the CPU, eagerly and in Programs, and new ones at each
// launch of a captured graph.
#include <cstdlib>
#include <set>

#include "nn/nn.h"
#include "schedule/schedule.h"
#include "schedule/training.h"
#include "tests/cuda/cuda_support.h"
#include "tests/support/compare.h"
#include "tests/support/models.h"

namespace tenon::test {
namespace cuda_random_test {

constexpr std::uint64_t kSeed = 0xfedcba9876543210;
constexpr std::int64_t kCounts[] = {0, 1, 3, 4, 5, 1023, 1024, 4096, 70001, 1 << 20};

/// The same call on both devices after the same seed.
void expect_same_bits(const std::function<Tensor(const Device&)>& call, const std::string& what) {
  manual_seed(kSeed);
  const Tensor on_cpu = call(kCpu);
  manual_seed(kSeed);
  const Tensor on_gpu = call(kCuda);
  EXPECT_TRUE(on_gpu.device().is_cuda()) << what;
  expect_bit_equal(on_gpu, on_cpu, what);
}

TEST(CudaRandom, TensorsHaveTheBitsOfTheCpu) {
  SKIP_WITHOUT_GPU();
  for (const std::int64_t n : kCounts) {
    const std::string size = " of " + std::to_string(n);
    for (const DType dtype : kFloats) {
      const std::string what = std::string(name(dtype)) + size;
      expect_same_bits([&](const Device& d) { return randn({n}, {dtype, d}); }, "randn " + what);
      for (const auto& [low, high] :
           {std::pair{0.0, 1.0}, {0.0, 1000.0}, {100.0, 101.0}, {-0.3, 0.7}, {-65504.0, 65504.0}}) {
        expect_same_bits(
            [&](const Device& d) {
              return uniform({n}, low, high, {dtype, d});
            },
            "uniform " + what);
      }
    }
    for (const DType dtype : kIntegers) {
      const std::string what = std::string(name(dtype)) + size;
      expect_same_bits(
          [&](const Device& d) {
            return uniform({n}, 3, 200, {dtype, d});
          },
          "uniform " + what);
      expect_same_bits(
          [&](const Device& d) {
            return randint(0, 200, {n}, {dtype, d});
          },
          "randint " + what);
    }
    expect_same_bits(
        [&](const Device& d) {
          return randint(INT64_MIN, INT64_MAX, {n}, {DType::int64, d});
        },
        "randint of all" + size);
    expect_same_bits(
        [&](const Device& d) {
          return randint(0, 2, {n}, {DType::boolean, d});
        },
        "randint of bool" + size);
    expect_same_bits(
        [&](const Device& d) {
          return randint(-3, 9, {n}, {DType::bfloat16, d});
        },
        "randint of bfloat16" + size);
    expect_same_bits(
        [&](const Device& d) {
          return randperm(n, {DType::int64, d});
        },
        "randperm" + size);
  }
  expect_same_bits(
      [](const Device& d) {
        return randperm(200, {DType::uint8, d});
      },
      "randperm of uint8");
  manual_seed(0);
}

TEST(CudaRandom, UniformNeverReturnsItsUpperBound) {
  SKIP_WITHOUT_GPU();
  for (const DType dtype : kFloats) {
    const Tensor x = uniform({1 << 20}, 0, 1000, {dtype, kCuda});
    EXPECT_LT(amax(x.to(DType::float64)).item(), 1000) << name(dtype);
    EXPECT_LT(amax(cast(x, DType::int64)).item(), 1000) << name(dtype);
  }
}

TEST(CudaRandom, InitialValuesAreThoseOfTheCpu) {
  SKIP_WITHOUT_GPU();
  for (const DType dtype : kFloats) {
    expect_same_bits(
        [&](const Device& d) {
          const Tensor weight = zeros({33, 65}, {dtype, d});
          nn::init::kaiming_normal_(weight);
          return weight;
        },
        std::string("kaiming_normal_ ") + std::string(name(dtype)));
    expect_same_bits(
        [&](const Device& d) {
          const Tensor weight = zeros({33, 65}, {dtype, d});
          nn::init::xavier_uniform_(weight);
          return weight;
        },
        std::string("xavier_uniform_ ") + std::string(name(dtype)));
  }
}

/// Draws in every way.
struct Noisy : nn::Module {
  explicit Noisy(Device d) : device(d) {}
  Tensor forward(const Tensor& x) const {
    const Tensor noise =
        randn(x.shape(), {x.dtype(), device}) + uniform({x.size(-1)}, -1, 1, {x.dtype(), device});
    const Tensor rows = index_select(x + noise, 0, randperm(x.size(0), {DType::int64, device}));
    return dropout(rows, 0.25) * randint(1, 4, x.shape(), {x.dtype(), device});
  }
  Device device;
};

TEST(CudaRandom, ProgramsDrawWhatEagerCallsAndTheCpuDraw) {
  SKIP_WITHOUT_GPU();
  for (const bool training : {false, true}) {
    for (const char* setting : {"never", "automatic", "always"}) {
      setenv("TENON_CUDA_GRAPHS", setting, 1);
      const auto on_cpu = nn::make<Noisy>(kCpu);
      const auto on_gpu = nn::make<Noisy>(kCuda);
      on_cpu->train(training);
      on_gpu->train(training);
      const Tensor x = ones({9, 33});
      const Tensor moved = x.to(kCuda);
      Executor run = build(create_schedule(on_gpu, {{"x", moved}}));
      std::vector<Tensor> expected;
      manual_seed(kSeed);
      for (int i = 0; i < 5; ++i) expected.push_back(on_cpu(x));
      manual_seed(kSeed);
      for (int i = 0; i < 5; ++i) {
        expect_bit_equal(on_gpu(moved), expected[static_cast<std::size_t>(i)], "eager");
      }
      manual_seed(kSeed);
      std::vector<Tensor> kept;  // so that addresses come and go
      for (int i = 0; i < 5; ++i) {
        kept.assign(1, run.run(std::span(&moved, 1), training)[0]);
        expect_bit_equal(kept[0], expected[static_cast<std::size_t>(i)],
                         std::string(setting) + (training ? " training" : " eval"));
      }
      unsetenv("TENON_CUDA_GRAPHS");
    }
  }
  manual_seed(0);
}

TEST(CudaRandom, AProgramOfNothingButNoiseRunsWhereItWasTraced) {
  SKIP_WITHOUT_GPU();
  const auto model = function_model([](const Tensor& x) {
    return randn({x.size(0)}, {DType::float32, kCuda});
  });
  const Tensor x = ones({64}, {DType::float32, kCuda});
  Executor run = build(create_schedule(model, {{"x", x}}));
  EXPECT_TRUE(run(x).device().is_cuda());
  EXPECT_GT(max_difference(run(x), run(x)), 0);
}

}  // namespace cuda_random_test
}  // namespace tenon::test
