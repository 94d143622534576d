// index_select, gather, select, stack, tril, triu and cumsum: element by element from the definition,
// on every dtype and layout, and their errors.
#include <gtest/gtest.h>

#include <limits>

#include "tensor/error.h"
#include "tensor/functional.h"
#include "tests/tensor/layouts.h"
#include "tests/tensor/threads.h"

namespace tenon::test {
namespace {

/// A sample's values with sizes, and the value at given coordinates.
struct Values {
  explicit Values(const Tensor& x) : sizes(sizes_of(x)), values(values_of(x)) {}
  double at(const Extents& position) const {
    std::int64_t index = 0;
    for (int axis = 0; axis < sizes.size(); ++axis) {
      index = index * sizes[axis] + position[axis];
    }
    return values[static_cast<std::size_t>(index)];
  }
  Extents sizes;
  std::vector<double> values;
};

/// The row-major list of f(coordinates) over `sizes`.
template <class F>
std::vector<double> tabulate(const Extents& sizes, F&& f) {
  std::vector<double> result;
  for (std::int64_t i = 0; i < sizes.product(); ++i) {
    Extents position = sizes;
    std::int64_t rest = i;
    for (int axis = sizes.size() - 1; axis >= 0; --axis) {
      position[axis] = rest % sizes[axis];
      rest /= sizes[axis];
    }
    result.push_back(f(position));
  }
  return result;
}

Tensor random_indices(const Extents& sizes, std::int64_t limit, DType dtype, Memory memory,
                      unsigned seed) {
  std::mt19937 engine(seed);
  return make_tensor(sizes, dtype, memory, [&] {
    return static_cast<double>(static_cast<std::int64_t>(engine() % static_cast<unsigned>(limit)));
  });
}

struct AxisSample {
  Extents sizes;
  int axis;
};
const AxisSample kAxisSamples[] = {
    {{1}, 0},       {{7}, 0},       {{3, 5}, 0},  {{3, 5}, 1},  {{4, 3, 6}, 1},   {{2, 3, 4, 5}, 2},
    {{2, 0, 3}, 0}, {{2, 3, 0}, 1}, {{9, 65}, 1}, {{65, 9}, 0}, {{2, 5, 130}, 1}, {{5, 1, 3}, 1}};

TEST(Indexing, IndexSelectOnEveryDTypeAndLayout) {
  unsigned seed = 1;
  for (const AxisSample& sample : kAxisSamples) {
    for (const DType dtype : kStoredDTypes) {
      for (const Memory memory : kAllMemory) {
        const Tensor x = random_tensor(sample.sizes, dtype, memory, ++seed, 0, 100);
        const DType kind = seed % 2 == 0 ? DType::int64 : DType::int32;
        const Memory list = seed % 3 == 0 ? Memory::expanded : Memory::narrowed;
        for (const std::int64_t count : {0, 1, 9}) {
          const Tensor index = random_indices({count}, sample.sizes[sample.axis], kind, list, seed);
          SCOPED_TRACE(x.spec().to_string() + " " + name(memory) + " axis " +
                       std::to_string(sample.axis) + " count " + std::to_string(count));
          Extents sizes = sample.sizes;
          sizes[sample.axis] = count;
          const Values in(x);
          const std::vector<double> places = values_of(index);
          const std::vector<double> expected = tabulate(sizes, [&](Extents at) {
            at[sample.axis] =
                static_cast<std::int64_t>(places[static_cast<std::size_t>(at[sample.axis])]);
            return in.at(at);
          });
          const int axis = seed % 2 == 0 ? sample.axis : sample.axis - sizes.size();
          const Tensor y = index_select(x, axis, index);
          ASSERT_EQ(y.dtype(), dtype);
          ASSERT_EQ(sizes_of(y), sizes);
          ASSERT_NO_FATAL_FAILURE(expect_values(y, expected, 0));
        }
      }
    }
  }
}

TEST(Indexing, GatherOnEveryDTypeAndLayout) {
  unsigned seed = 1;
  for (const AxisSample& sample : kAxisSamples) {
    for (const DType dtype : kStoredDTypes) {
      for (const Memory memory : kAllMemory) {
        const Tensor x = random_tensor(sample.sizes, dtype, memory, ++seed, 0, 100);
        // Any number of places along the axis, and no more than the input has along the others.
        Extents sizes = sample.sizes;
        for (int axis = 0; axis < sizes.size(); ++axis) sizes[axis] -= sizes[axis] > 2 ? 1 : 0;
        sizes[sample.axis] = seed % 4 == 0 ? 0 : sample.sizes[sample.axis] + 2;
        const DType kind = seed % 2 == 0 ? DType::int64 : DType::int32;
        const Tensor index = random_indices(sizes, sample.sizes[sample.axis], kind, memory, seed);
        SCOPED_TRACE(x.spec().to_string() + " " + name(memory) + " axis " +
                     std::to_string(sample.axis));
        const Values in(x);
        const Values places(index);
        const std::vector<double> expected = tabulate(sizes, [&](Extents at) {
          at[sample.axis] = static_cast<std::int64_t>(places.at(at));
          return in.at(at);
        });
        const Tensor y = gather(x, sample.axis, index);
        ASSERT_EQ(y.dtype(), dtype);
        ASSERT_EQ(sizes_of(y), sizes);
        ASSERT_NO_FATAL_FAILURE(expect_values(y, expected, 0));
      }
    }
  }
  expect_values(gather(full({}, 3), 0, tensor({0}, {}, {DType::int64})), {3}, 0);
}

TEST(Indexing, SelectAndStack) {
  for (const AxisSample& sample : kAxisSamples) {
    for (const Memory memory : kAllMemory) {
      const Tensor x = random_tensor(sample.sizes, DType::float32, memory, 3);
      SCOPED_TRACE(x.spec().to_string() + " " + name(memory));
      const Values in(x);
      for (const std::int64_t index : {std::int64_t{0}, std::int64_t{-1}}) {
        if (sample.sizes[sample.axis] == 0) continue;
        Extents sizes = sample.sizes;
        sizes.erase(sample.axis);
        const std::vector<double> expected = tabulate(sizes, [&](Extents at) {
          at.insert(sample.axis, index < 0 ? sample.sizes[sample.axis] - 1 : 0);
          return in.at(at);
        });
        const Tensor y = select(x, sample.axis, index);
        EXPECT_EQ(y.storage(), x.storage());
        ASSERT_EQ(sizes_of(y), sizes);
        ASSERT_NO_FATAL_FAILURE(expect_values(y, expected, 0));
      }
      const Tensor other = random_tensor(sample.sizes, DType::float32, Memory::contiguous, 4);
      const Values second(other);
      Extents sizes = sample.sizes;
      sizes.insert(sample.axis, 2);
      const std::vector<double> expected = tabulate(sizes, [&](Extents at) {
        const bool first = at[sample.axis] == 0;
        at.erase(sample.axis);
        return first ? in.at(at) : second.at(at);
      });
      const Tensor y = stack({x, other}, sample.axis);
      ASSERT_EQ(sizes_of(y), sizes);
      ASSERT_NO_FATAL_FAILURE(expect_values(y, expected, 0));
    }
  }
  EXPECT_EQ(sizes_of(stack({zeros({}), zeros({})}, -1)), (Extents{2}));
}

TEST(Indexing, TrianglesOnEveryDTypeAndLayout) {
  constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();
  constexpr std::int64_t kLeast = std::numeric_limits<std::int64_t>::min();
  const Extents all_sizes[] = {{1, 1},    {4, 5},    {5, 4},      {2, 33, 17},
                               {2, 0, 3}, {2, 3, 0}, {2, 3, 4, 5}};
  for (const Extents& sizes : all_sizes) {
    for (const DType dtype : kStoredDTypes) {
      for (const Memory memory : kAllMemory) {
        const Tensor x = random_tensor(sizes, dtype, memory, 6, 0, 100);
        const Values in(x);
        for (const std::int64_t diagonal : {std::int64_t{0}, std::int64_t{-2}, std::int64_t{1},
                                            std::int64_t{100}, kMost, kLeast}) {
          SCOPED_TRACE(x.spec().to_string() + " " + name(memory) + " " + std::to_string(diagonal));
          const auto keep = [&](bool lower) {
            return tabulate(sizes, [&](const Extents& at) {
              const std::int64_t above = at.back() - at[sizes.size() - 2];
              const bool kept = lower ? above <= diagonal : above >= diagonal;
              return kept ? in.at(at) : 0;
            });
          };
          ASSERT_NO_FATAL_FAILURE(expect_values(tril(x, diagonal), keep(true), 0));
          ASSERT_NO_FATAL_FAILURE(expect_values(triu(x, diagonal), keep(false), 0));
        }
      }
    }
  }
}

TEST(Indexing, CumsumOnEveryDTypeAndLayout) {
  const AxisSample samples[] = {{{}, 0},        {{5}, 0},          {{3, 4}, 0},    {{3, 4}, 1},
                                {{2, 3, 4}, 1}, {{2, 0, 4}, 1},    {{2, 3, 0}, 0}, {{2, 1500}, 1},
                                {{1500, 2}, 0}, {{2, 20, 300}, 1}, {{5000}, 0}};
  unsigned seed = 1;
  for (const AxisSample& sample : samples) {
    for (const DType dtype : kAllDTypes) {
      for (const Memory memory : kAllMemory) {
        const Tensor x = random_tensor(sample.sizes, dtype, memory, ++seed, 0, 2);
        SCOPED_TRACE(x.spec().to_string() + " " + name(memory));
        std::vector<double> expected = values_of(x);
        std::size_t inner = 1;
        for (int axis = sample.axis + 1; axis < sample.sizes.size(); ++axis) {
          inner *= static_cast<std::size_t>(sample.sizes[axis]);
        }
        const std::size_t length =
            sample.sizes.empty() ? 1 : static_cast<std::size_t>(sample.sizes[sample.axis]);
        for (std::size_t i = 0; i < expected.size(); ++i) {
          if (i / inner % length > 0) expected[i] += expected[i - inner];
        }
        const Tensor y = cumsum(x, sample.axis);
        ASSERT_EQ(y.dtype(), is_floating(dtype) ? dtype : DType::int64);
        ASSERT_NO_FATAL_FAILURE(expect_values(y, expected, tolerance(dtype)));
      }
    }
  }
  const Tensor large = random_tensor({700, 900}, DType::float32, Memory::contiguous, 8);
  for (const int axis : {0, 1}) {
    expect_thread_invariant([&] { return cumsum(large, axis); }, "cumsum");
  }
}

TEST(Indexing, Errors) {
  const Tensor x = zeros({2, 3});
  const Tensor index = tensor({0, 3}, {2}, {DType::int64});
  expect_error<ValueError>([&] { index_select(x, 1, index); },
                           "[index_select] index 3 at position 1; needed 0 <= index < 3");
  expect_error<ValueError>([&] { index_select(x, 1, tensor({-1}, {1}, {DType::int32})); },
                           "[index_select] index -1 at position 0; needed 0 <= index < 3");
  expect_error<ValueError>(
      [&] {
        gather(x, 0, tensor({2}, {1, 1}, {DType::int64}));
      },
      "[gather] index 2 at position 0; needed 0 <= index < 2");
  expect_error<DTypeError>([&] { index_select(x, 0, zeros({1})); },
                           "[index_select] operand 'index' is float32; needed int64 or int32");
  expect_error<ShapeError>(
      [&] {
        index_select(x, 0, index.reshape({2, 1}));
      },
      "[index_select] operand 'index' has shape (2, 1); needed one axis");
  expect_error<ShapeError>([&] { index_select(zeros({}), 0, index); },
                           "[index_select] the input is a scalar; needed an axis");
  expect_error<ShapeError>([&] { gather(x, 0, index); },
                           "[gather] indices (2,) for the input (2, 3); needed as many axes");
  expect_error<ShapeError>(
      [&] {
        gather(x, 0, tensor({0, 0, 0, 0}, {1, 4}, {DType::int64}));
      },
      "sizes no larger than the input's beside axis 0");
  expect_error<ValueError>(
      [&] { select(x, 1, 3); },
      "[select] index 3 along axis 1 of the input (2, 3); needed -3 <= index < 3");
  expect_error<ValueError>([&] { select(x, 1, -4); }, "[select] index -4 along axis 1");
  expect_error<ShapeError>([&] { select(zeros({}), 0, 0); }, "[select] the input is a scalar");
  expect_error<ValueError>([&] { stack({}, 0); }, "[stack] no tensors; needed at least one");
  expect_error<ShapeError>(
      [&] {
        stack({x, zeros({2})}, 0);
      },
      "[stack] tensor 1 has shape (2,) and tensor 0 has (2, 3)");
  expect_error<ShapeError>([&] { stack({x, zeros({2, 4})}, 0); }, "[cat] tensor 0 has shape");
  expect_error<ShapeError>([&] { tril(zeros({3})); },
                           "[tril] the input has shape (3,); needed at least two axes");
  expect_error<ShapeError>([&] { cumsum(x, 2); }, "[cumsum]");
}

}  // namespace
}  // namespace tenon::test
