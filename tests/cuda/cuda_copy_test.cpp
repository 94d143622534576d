// Copies on the GPU: between any layouts, within one memory, into states of a Program. The references
// are the same calls on the CPU.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "graph/executor.h"
#include "schedule/schedule.h"
#include "tensor/error.h"
#include "tests/cuda/cuda_support.h"
#include "tests/support/models.h"

namespace tenon::test {
namespace cuda_copy_test {

struct Pair {
  const char* what;
  std::vector<Tensor> (*views)(const Tensor& x);  // of (n, n): the target first
};
const Pair kPairs[] = {
    {"transposed",
     [](const Tensor& x) {
       return std::vector{x, x.transpose(0, 1)};
     }},
    {"rows up by one",
     [](const Tensor& x) {
       const Dim n = x.size(0) - Dim(1);
       return std::vector{x.narrow(0, 1, n), x.narrow(0, 0, n)};
     }},
    {"columns down by one",
     [](const Tensor& x) {
       const Dim n = x.size(0) - Dim(1);
       return std::vector{x.narrow(1, 0, n), x.narrow(1, 1, n)};
     }},
    {"columns from transposed rows",
     [](const Tensor& x) {
       const Dim half = x.size(0) / Dim(2);
       return std::vector{x.narrow(1, half, half), x.narrow(0, 0, half).transpose(0, 1)};
     }},
    {"a row for all",
     [](const Tensor& x) {
       return std::vector{x, x.narrow(0, 1, 1).expand(x.shape())};
     }},
};

TEST(CudaCopy, OverlapBehavesAsIfTheSourceHadBeenCopiedFirst) {
  SKIP_WITHOUT_GPU();
  Generator generator(5);
  for (const DType dtype : {DType::uint8, DType::bfloat16, DType::float32, DType::float64}) {
    for (const std::int64_t n : {2, 10, 64, 300, 2000}) {
      for (const Pair& pair : kPairs) {
        Operand2 x = make_operand({n, n}, dtype, Placement::contiguous, generator, 0, 200);
        const auto views = pair.views(x.cuda);
        const Tensor expected = pair.views(x.cpu)[1].clone();
        Tensor target = views[0];
        target.copy_(views[1]);
        expect_bit_equal(target, expected,
                         describe("copy", dtype, {n, n}, Placement::contiguous) + " " + pair.what);
        if (HasFatalFailure()) return;
      }
    }
  }
}

/// Images and filters between (N, C, H, W) and (N, H, W, C): one of the axes that are contiguous is short.
void check_orders(const std::vector<std::int64_t>& shape, DType dtype, Generator& generator) {
  for (const std::vector<std::int64_t>& order :
       {std::vector<std::int64_t>{0, 2, 3, 1}, {0, 3, 1, 2}, {2, 3, 0, 1}, {3, 1, 0, 2}}) {
    Operand2 x = make_operand(shape, dtype, Placement::contiguous, generator, 0, 200);
    expect_bit_equal(x.cuda.permute(order).contiguous(), x.cpu.permute(order).contiguous(),
                     describe("permute", dtype, shape, Placement::contiguous));
    const Tensor part = x.cuda.narrow(3, 1, x.cuda.size(3) - Dim(1));
    const Tensor same = x.cpu.narrow(3, 1, x.cpu.size(3) - Dim(1));
    expect_bit_equal(part.permute(order).contiguous(), same.permute(order).contiguous(),
                     describe("permute of a part", dtype, shape, Placement::contiguous));
    if (testing::Test::HasFatalFailure()) return;
  }
}

TEST(CudaCopy, ImagesAndFiltersToChannelsLastAndBack) {
  SKIP_WITHOUT_GPU();
  Generator generator(6);
  const std::vector<std::int64_t> shapes[] = {{2, 3, 20, 33}, {1, 1, 40, 40},  {64, 32, 3, 3},
                                              {3, 16, 9, 31}, {5, 17, 2, 100}, {40, 2, 1, 70},
                                              {33, 48, 4, 4}, {2, 70, 1, 9},   {70, 5, 7, 7}};
  for (const DType dtype : {DType::uint8, DType::bfloat16, DType::float32, DType::float64}) {
    for (const auto& shape : shapes) {
      check_orders(shape, dtype, generator);
      if (HasFatalFailure()) return;
    }
  }
}

/// In little work, for tools/sanitize_cuda.py.
TEST(CudaCopy, SmallImagesToChannelsLastAndBack) {
  SKIP_WITHOUT_GPU();
  Generator generator(7);
  for (const DType dtype : {DType::bfloat16, DType::float32}) {
    check_orders({1, 3, 20, 33}, dtype, generator);
    check_orders({2, 40, 5, 8}, dtype, generator);
    if (HasFatalFailure()) return;
  }
}

TEST(CudaCopy, AddMulAndZeroOfStridedViews) {
  SKIP_WITHOUT_GPU();
  for (const Pair& pair : kPairs) {
    const Tensor on_cpu = arange(400).view({20, 20});
    const Tensor on_cuda = on_cpu.to(kCuda);
    for (const Tensor& x : {on_cpu, on_cuda}) {
      const auto views = pair.views(x);
      Tensor target = views[0];
      target.add_(views[1]);
      target.mul_(0.5);
      target.narrow(0, 0, 1).zero_();
    }
    expect_bit_equal(on_cuda, on_cpu, pair.what);
  }
}

TEST(CudaCopy, CloneOfAnyLayout) {
  SKIP_WITHOUT_GPU();
  Generator generator(6);
  for (const DType dtype : {DType::uint8, DType::bfloat16, DType::float32, DType::float64}) {
    for (const Placement placement : kPlacements) {
      const Operand2 x = make_operand({70, 45}, dtype, placement, generator, 0, 200);
      const std::string what = describe("clone", dtype, {70, 45}, placement);
      const Tensor copy = x.cuda.clone();
      EXPECT_NE(copy.storage(), x.cuda.storage());
      EXPECT_TRUE(copy.is_contiguous());
      expect_bit_equal(copy, x.cpu, what);
      expect_bit_equal(run_guarded("clone", {x.cuda}, {}, 1), x.cpu, what + ", guarded");
      if (HasFatalFailure()) return;
    }
  }
}

TEST(CudaCopy, AnExpandedTargetIsRefused) {
  SKIP_WITHOUT_GPU();
  Tensor target = zeros({3, 1}, {DType::float32, kCuda}).expand({3, 4});
  EXPECT_THROW(target.copy_(ones({3, 4}, {DType::float32, kCuda})), ValueError);
  EXPECT_THROW(target.zero_(), ValueError);
}

TEST(CudaCopy, AProgramLeavesInStridedStatesWhatEagerLeaves) {
  SKIP_WITHOUT_GPU();
  const auto states_on = [](Device device) {
    const Tensor whole = arange(128).view({8, 16}).to(device);
    return std::vector{whole.narrow(1, 0, 8), whole.narrow(1, 8, 8)};
  };
  const Tensor x = arange(64).view({8, 8});
  const auto step = [](const std::vector<Tensor>& s, const Tensor& input) {
    Tensor a = s[0];
    Tensor b = s[1];
    const Tensor t = (a + input).transpose(0, 1);
    a.copy_(b.transpose(0, 1));
    b.copy_(t);
    return t * 1.0;
  };
  const auto on_cpu = states_on(kCpu);
  const auto on_cuda = states_on(kCuda);
  const auto model = function_model([&](const Tensor& input) { return step(on_cuda, input); });
  Executor run(create_schedule(model, {x.to(kCuda)}).graph());
  for (int i = 0; i < 3; ++i) {  // the third run is a recorded one
    const Tensor expected = step(on_cpu, x);
    expect_bit_equal(run(x.to(kCuda)), expected, "output");
    for (std::size_t k = 0; k < 2; ++k) expect_bit_equal(on_cuda[k], on_cpu[k], "state");
  }
}

}  // namespace cuda_copy_test
}  // namespace tenon::test
