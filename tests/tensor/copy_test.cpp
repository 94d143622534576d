// Copies and other changes in place: any layouts and dtypes, memory that source and target share, and
// targets that cannot be written. The references work element by element on plain vectors.
#include <gtest/gtest.h>

#include <functional>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "autograd/autograd.h"
#include "tensor/error.h"
#include "tests/tensor/layouts.h"

namespace tenon::test {
namespace copy_test {

using Doubles = std::vector<double>;

Tensor counting(std::int64_t n, DType dtype = DType::float32) {
  return cast(arange(n, {DType::float32}), dtype);
}

TEST(Copy, AnyLayoutOfAnyDTypeIntoAnyOther) {
  for (const DType dtype : kAllDTypes) {
    for (const DType target_dtype : kAllDTypes) {
      for (const Extents& sizes : {Extents{}, Extents{3, 0}, Extents{2, 3}, Extents{5, 33, 4}}) {
        for (const Memory from : kAllMemory) {
          for (const Memory to : {Memory::contiguous, Memory::permuted, Memory::narrowed}) {
            const Tensor source = random_tensor(sizes, dtype, from, 8, 0, 100);
            Tensor target = random_tensor(sizes, target_dtype, to, 9, 0, 1);
            SCOPED_TRACE(source.spec().to_string() + " " + name(from) + " to " +
                         target.spec().to_string() + " " + name(to));
            target.copy_(source);
            ASSERT_NO_FATAL_FAILURE(
                expect_values(target, values_of(cast(source, target_dtype)), 0));
          }
        }
      }
    }
  }
}

TEST(Copy, LeavesWhatLiesBesideAStridedTarget) {
  const Tensor a = counting(48).view({3, 16});
  a.narrow(1, 1, 5).copy_(full({5, 3}, -1).transpose(0, 1));
  Doubles expected;
  for (int i = 0; i < 48; ++i) expected.push_back(i % 16 >= 1 && i % 16 < 6 ? -1 : i);
  EXPECT_EQ(a.to_doubles(), expected);
}

/// Two views of one tensor, the target first.
struct Pair {
  const char* what;
  Extents base;
  std::vector<Tensor> (*views)(const Tensor&);
};
const Pair kPairs[] = {
    {"transposed",
     {5, 5},
     [](const Tensor& x) {
       return std::vector{x, x.transpose(0, 1)};
     }},
    {"transposed, large",
     {300, 300},
     [](const Tensor& x) {
       return std::vector{x.transpose(0, 1), x};
     }},
    {"up by one",
     {100000},
     [](const Tensor& x) {
       return std::vector{x.narrow(0, 1, 99999), x.narrow(0, 0, 99999)};
     }},
    {"down by one",
     {100000},
     [](const Tensor& x) {
       return std::vector{x.narrow(0, 0, 99999), x.narrow(0, 1, 99999)};
     }},
    {"rows of planes",
     {2000, 4, 4},
     [](const Tensor& x) {
       return std::vector{x.narrow(0, 1, 1999), x.narrow(0, 0, 1999).transpose(1, 2)};
     }},
    {"columns that partly meet",
     {7, 9},
     [](const Tensor& x) {
       return std::vector{x.narrow(1, 1, 7), x.narrow(1, 0, 7)};
     }},
    {"columns that do not meet",
     {7, 9},
     [](const Tensor& x) {
       return std::vector{x.narrow(1, 5, 4), x.narrow(1, 0, 4)};
     }},
    {"one element for all",
     {4, 6},
     [](const Tensor& x) {
       return std::vector{x, x.narrow(0, 2, 1).narrow(1, 3, 1).expand({4, 6})};
     }},
    {"a row for all",
     {40, 60},
     [](const Tensor& x) {
       return std::vector{x, x.narrow(0, 20, 1).expand({40, 60})};
     }},
    {"itself",
     {6, 5},
     [](const Tensor& x) {
       return std::vector{x, x.view({6, 5})};
     }},
};

TEST(Copy, OverlapBehavesAsIfTheSourceHadBeenCopiedFirst) {
  for (const Pair& pair : kPairs) {
    for (const DType dtype : {DType::uint8, DType::bfloat16, DType::float32, DType::float64}) {
      SCOPED_TRACE(std::string(pair.what) + " " + std::string(tenon::name(dtype)));
      const Tensor x = random_tensor(pair.base, dtype, Memory::contiguous, 3, 0, 100);
      const auto views = pair.views(x);
      const Doubles before = values_of(views[1]);
      Tensor target = views[0];
      target.copy_(views[1]);
      ASSERT_NO_FATAL_FAILURE(expect_values(target, before, 0));
    }
  }
}

TEST(Copy, AddMulAndZeroOfStridedAndOverlappingViews) {
  for (const Pair& pair : kPairs) {
    SCOPED_TRACE(pair.what);
    const Tensor x = random_tensor(pair.base, DType::float64, Memory::contiguous, 3);
    const auto views = pair.views(x);
    Tensor target = views[0];
    Doubles expected = values_of(target);
    const Doubles other = values_of(views[1]);
    for (std::size_t i = 0; i < expected.size(); ++i) expected[i] += other[i];
    target.add_(views[1]);
    ASSERT_NO_FATAL_FAILURE(expect_values(target, expected, 0));
    for (double& value : expected) value *= 0.5;
    target.mul_(0.5);
    ASSERT_NO_FATAL_FAILURE(expect_values(target, expected, 0));
    target.zero_();
    ASSERT_NO_FATAL_FAILURE(expect_values(target, Doubles(expected.size(), 0.0), 0));
  }
}

TEST(Copy, TheGradientOfAnOverlappingCopyIsThatOfTheCopiedSource) {
  const Tensor x = counting(9, DType::float64).view({3, 3}).requires_grad_();
  Tensor y = x * 1.0;
  y.copy_(y.transpose(0, 1));
  backward(sum(y * counting(9, DType::float64).view({3, 3})));
  EXPECT_EQ(x.grad().to_doubles(), (Doubles{0, 3, 6, 1, 4, 7, 2, 5, 8}));
}

TEST(Copy, ATargetWithSeveralElementsInOnePlaceIsRefused) {
  const Tensor base = zeros({24});
  const auto as_strided = [&](const Extents& sizes, const Extents& strides) {
    return Tensor(base.storage(), DType::float32, {sizes, strides, 0});
  };
  const Tensor refused[] = {zeros({3, 1}).expand({3, 4}), zeros({}).expand({2}),
                            as_strided({3, 3}, {1, 1}), as_strided({4, 2, 2}, {2, 4, 1}),
                            as_strided({5, 3, 2}, {3, 2, 1})};
  for (Tensor target : refused) {
    const Tensor source = ones(target.shape());
    const std::function<void()> changes[] = {[&] { target.copy_(source); },
                                             [&] { target.add_(source); },
                                             [&] { target.mul_(2.0); }, [&] { target.zero_(); }};
    for (const auto& change : changes) {
      expect_error<ValueError>(change, "some of whose elements lie in one place");
    }
    EXPECT_EQ(sum(base).item(), 0);
    Tensor copy = target.clone();  // the remedy
    copy.copy_(source);
    EXPECT_EQ(copy.to_doubles(), source.to_doubles());
  }
  EXPECT_ERROR(ValueError,
               "[copy_] into a tensor of shape (3, 4) and strides (1, 0), some of whose elements "
               "lie in one place, as those of an expanded tensor do; write into a clone(), or into "
               "the tensor that it is a view of",
               Tensor(refused[0]).zero_());
  // These only look so: sizes 1 and 0, and steps that never meet.
  for (Tensor target : {zeros({3, 1}).expand({3, 1}), zeros({3, 1, 0}).expand({3, 4, 0}),
                        as_strided({2, 3}, {3, 2}), as_strided({2, 1, 3}, {4, 0, 1})}) {
    EXPECT_NO_THROW(target.copy_(ones(target.shape())));
    EXPECT_EQ(target.to_doubles(), ones(target.shape()).to_doubles());
  }
}

/// The bytes of all elements; with repetitions where elements share some.
std::vector<std::int64_t> bytes_of(const TensorView& view, const void* origin) {
  std::vector<std::int64_t> bytes;
  const auto element = static_cast<std::int64_t>(size_of(view.dtype));
  const std::int64_t start = static_cast<const char*>(view.data) - static_cast<const char*>(origin);
  for_each_position({view.sizes, view.strides, 0}, [&](std::int64_t at) {
    for (std::int64_t i = 0; i < element; ++i) bytes.push_back(start + at * element + i);
  });
  return bytes;
}

TEST(Overlap, AgreesWithAListOfAddresses) {
  std::mt19937 random(1);
  const auto pick = [&](int low, int high) {
    return std::uniform_int_distribution<int>(low, high)(random);
  };
  const Tensor base = zeros({4000}, {DType::uint8});
  int found[2] = {};
  int found_itself[2] = {};
  for (int round = 0; round < 4000; ++round) {
    const auto view = [&] {
      TensorView result;
      result.dtype = pick(0, 1) ? DType::uint8 : DType::float32;
      const int rank = pick(0, 3);
      for (int axis = 0; axis < rank; ++axis) {
        result.sizes.push_back(pick(round % 50 == 0 ? 0 : 1, 4));
        result.strides.push_back(pick(0, 3) ? pick(1, 24) : pick(-6, 6));
      }
      result.data = base.data<std::uint8_t>() + 1600 + pick(0, 60);
      return result;
    };
    const TensorView a = view();
    const TensorView b = view();
    const auto bytes = bytes_of(a, base.data<std::uint8_t>());
    const std::set<std::int64_t> unique(bytes.begin(), bytes.end());
    bool meet = false;
    for (std::int64_t byte : bytes_of(b, base.data<std::uint8_t>())) meet |= unique.contains(byte);
    ASSERT_EQ(overlap(a, b), meet) << round;
    ASSERT_EQ(overlap(b, a), meet) << round;
    ASSERT_EQ(overlaps_itself({a.sizes, a.strides, 0}), unique.size() < bytes.size()) << round;
    ++found[meet];
    ++found_itself[unique.size() < bytes.size()];
  }
  for (const int count : {found[0], found[1], found_itself[0], found_itself[1]}) {
    EXPECT_GT(count, 200);
  }
}

TEST(Clone, IsARowMajorCopyInMemoryOfItsOwn) {
  for (const DType dtype : kAllDTypes) {
    for (const Extents& sizes : {Extents{}, Extents{3, 0}, Extents{5, 33, 4}}) {
      for (const Memory memory : kAllMemory) {
        const Tensor x = random_tensor(sizes, dtype, memory, 8, 0, 100);
        const Tensor y = x.clone();
        EXPECT_NE(y.storage(), x.storage());
        EXPECT_TRUE(y.is_contiguous());
        EXPECT_EQ(y.dtype(), dtype);
        ASSERT_NO_FATAL_FAILURE(expect_values(y, values_of(x), 0));
      }
    }
  }
}

TEST(Clone, CarriesTheGradientAndIsNoLeaf) {
  const Tensor x = ones({2, 3}).requires_grad_();
  Tensor y = x.transpose(0, 1).clone();
  y.mul_(3.0);
  EXPECT_FALSE(y.is_leaf());
  backward(sum(y));
  EXPECT_EQ(x.grad().to_doubles(), Doubles(6, 3.0));
  EXPECT_EQ(x.to_doubles(), Doubles(6, 1.0));
}

}  // namespace copy_test
}  // namespace tenon::test
