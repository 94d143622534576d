// Gradients of the ops that rearrange, select and sum. All are linear, so the reference is the
// definition: the gradient of element i is Σ_j J_ji·g_j with the column J_i = f(e_i) of the op
// itself, in float64; values are small integers, so every dtype must give it exactly.
#include <gtest/gtest.h>

#include <functional>

#include "autograd/autograd.h"
#include "tensor/functional.h"
#include "tests/tensor/layouts.h"
#include "tests/tensor/threads.h"

namespace tenon::test {
namespace {

using Function = std::function<Tensor(const Tensor&)>;
using Indices = std::vector<std::int64_t>;

struct Sample {
  const char* name;
  Extents sizes;
  Function f;
};

Tensor indices(const Indices& values) {
  return from_vector(values, {static_cast<std::int64_t>(values.size())});
}

const Sample kLinear[] = {
    {"sum of all", {2, 3, 4}, [](const Tensor& x) { return sum(x); }},
    {"sum of a scalar", {}, [](const Tensor& x) { return sum(x); }},
    {"sum along one", {2, 3, 4}, [](const Tensor& x) { return sum(x, {1}); }},
    {"sum along two, keepdim",
     {2, 3, 4},
     [](const Tensor& x) {
       return sum(x, {0, -1}, true);
     }},
    {"sum of nothing", {2, 0, 4}, [](const Tensor& x) { return sum(x, {1}); }},
    {"mean along one", {4, 3, 2}, [](const Tensor& x) { return mean(x, {0}); }},
    {"mean of all, keepdim", {2, 4}, [](const Tensor& x) { return mean(x, {}, true); }},
    {"mean along an empty axis's other", {0, 2}, [](const Tensor& x) { return mean(x, {1}); }},
    {"reshape",
     {2, 3, 4},
     [](const Tensor& x) {
       return reshape(x, {4, -1});
     }},
    {"reshape of a transposed",
     {3, 4},
     [](const Tensor& x) {
       return reshape(x.transpose(0, 1), {6, 2});
     }},
    {"view of a contiguous", {3, 4}, [](const Tensor& x) { return view(contiguous(x), {12}); }},
    {"permute",
     {2, 3, 4},
     [](const Tensor& x) {
       return permute(x, {2, 0, -2});
     }},
    {"transpose", {2, 3, 4}, [](const Tensor& x) { return transpose(x, -1, 0); }},
    {"transpose with itself", {2, 3}, [](const Tensor& x) { return transpose(x, 1, 1); }},
    {"expand",
     {2, 1, 3},
     [](const Tensor& x) {
       return expand(x, {4, 2, 5, -1});
     }},
    {"expand to nothing",
     {1, 3},
     [](const Tensor& x) {
       return expand(x, {0, 3});
     }},
    {"expand of a scalar",
     {},
     [](const Tensor& x) {
       return expand(x, {2, 3});
     }},
    {"narrow in the middle", {2, 7, 3}, [](const Tensor& x) { return narrow(x, 1, 2, 3); }},
    {"narrow of all", {5}, [](const Tensor& x) { return narrow(x, 0, 0, 5); }},
    {"narrow to nothing", {3, 5}, [](const Tensor& x) { return narrow(x, 1, 5, 0); }},
    {"narrow from the end", {3, 5}, [](const Tensor& x) { return narrow(x, -1, -2, 2); }},
    {"unsqueeze", {2, 3}, [](const Tensor& x) { return unsqueeze(x, -1); }},
    {"unsqueeze of a scalar", {}, [](const Tensor& x) { return unsqueeze(x, 0); }},
    {"squeeze", {2, 1, 3}, [](const Tensor& x) { return squeeze(x, 1); }},
    {"squeeze of another size", {2, 3}, [](const Tensor& x) { return squeeze(x, 1); }},
    {"contiguous", {3, 4}, [](const Tensor& x) { return contiguous(x.transpose(0, 1)); }},
    {"cat with itself",
     {2, 3},
     [](const Tensor& x) {
       return cat({x, x, x}, 1);
     }},
    {"cat of pieces",
     {4, 3},
     [](const Tensor& x) {
       return cat({narrow(x, 0, 3, 1), narrow(x, 0, 0, 0), x}, 0);
     }},
    {"stack",
     {2, 3},
     [](const Tensor& x) {
       return stack({x, x.transpose(0, 1).reshape({2, 3})}, -1);
     }},
    {"split and one piece unused",
     {2, 7},
     [](const Tensor& x) {
       const auto y = split(x, 3, 1);
       return cat({y[2], y[0]}, 1);
     }},
    {"chunk",
     {7, 2},
     [](const Tensor& x) {
       const auto y = chunk(x, 3, 0);
       return cat({y[1], y[2], y[0]}, 0);
     }},
    {"select", {2, 3, 4}, [](const Tensor& x) { return select(x, 1, -1); }},
    {"tril", {2, 4, 5}, [](const Tensor& x) { return tril(x, -1); }},
    {"triu", {5, 3}, [](const Tensor& x) { return triu(x, 1); }},
    {"cumsum", {3, 5}, [](const Tensor& x) { return cumsum(x, 1); }},
    {"cumsum along the first", {4, 2}, [](const Tensor& x) { return cumsum(x, -2); }},
    {"cumsum of a scalar", {}, [](const Tensor& x) { return cumsum(x, 0); }},
    {"embedding",
     {5, 3},
     [](const Tensor& x) {
       return embedding(indices({4, 0, 4, 4, 2, 0}).reshape({2, 3}), x);
     }},
    {"embedding of no index", {5, 3}, [](const Tensor& x) { return embedding(indices({}), x); }},
    {"index_select",
     {2, 4, 3},
     [](const Tensor& x) {
       return index_select(x, 1, indices({3, 3, 0, 1, 3}));
     }},
    {"index_select along the last",
     {3, 4},
     [](const Tensor& x) {
       return index_select(x, -1, indices({2, 2, 1}));
     }},
    {"gather",
     {2, 4},
     [](const Tensor& x) {
       return gather(x, 1, indices({3, 3, 0, 1, 1, 1}).reshape({2, 3}));
     }},
    {"gather along the first",
     {3, 4},
     [](const Tensor& x) {
       return gather(x, 0, indices({2, 2, 0, 1, 2, 1}).reshape({3, 2}));
     }},
    {"gather of a scalar",
     {},
     [](const Tensor& x) { return gather(x, 0, indices({0}).reshape({})); }},
};

double small_integer(unsigned& state) {
  state = state * 1664525U + 1013904223U;
  return static_cast<double>(state >> 29) - 3;  // -3 … 4
}

/// Row-major gradient of x for the cotangent g, by the columns of the Jacobian.
std::vector<double> reference(const Function& f, const Extents& sizes,
                              const std::vector<double>& g) {
  std::vector<double> result;
  for (std::int64_t i = 0; i < sizes.product(); ++i) {
    std::int64_t next = 0;
    const Tensor unit = make_tensor(sizes, DType::float64, Memory::contiguous,
                                    [&] { return next++ == i ? 1.0 : 0.0; });
    const std::vector<double> column = values_of(f(unit));
    double sum = 0;
    for (std::size_t j = 0; j < column.size(); ++j) sum += column[j] * g[j];
    result.push_back(sum);
  }
  return result;
}

TEST(ShapeGradients, LinearOpsOnEveryDTypeAndLayout) {
  unsigned state = 7;
  for (const Sample& sample : kLinear) {
    for (const DType dtype : kFloats) {
      for (const Memory memory : kAllMemory) {
        for (const Memory of_cotangent : {Memory::contiguous, Memory::permuted, Memory::expanded}) {
          SCOPED_TRACE(std::string(sample.name) + " " + std::string(tenon::name(dtype)) + " " +
                       name(memory) + ", cotangent " + name(of_cotangent));
          Tensor x = make_tensor(sample.sizes, dtype, memory, [&] { return small_integer(state); });
          x.requires_grad_();
          const Tensor y = sample.f(x);
          if (y.is_same(x)) continue;
          const Tensor g =
              make_tensor(sizes_of(y), dtype, of_cotangent, [&] { return small_integer(state); });
          backward(y, g);
          ASSERT_TRUE(x.grad().defined());
          ASSERT_EQ(x.grad().dtype(), dtype);
          ASSERT_EQ(sizes_of(x.grad()), sample.sizes);
          const bool divides = std::string(sample.name).starts_with("mean");
          ASSERT_NO_FATAL_FAILURE(expect_values(x.grad(),
                                                reference(sample.f, sample.sizes, values_of(g)),
                                                divides ? tolerance(dtype) : 0));
        }
      }
    }
  }
}

TEST(ShapeGradients, SecondDerivativesGoThroughTheGradientOps) {
  // d/dg of <v, vjp(g)> is f(v): what the vjps of the gradient ops must give.
  unsigned state = 3;
  for (const Sample& sample : kLinear) {
    SCOPED_TRACE(sample.name);
    Tensor x = make_tensor(sample.sizes, DType::float64, Memory::contiguous,
                           [&] { return small_integer(state); });
    x.requires_grad_();
    const Tensor y = sample.f(x);
    if (y.is_same(x)) continue;
    Tensor g = make_tensor(sizes_of(y), DType::float64, Memory::contiguous,
                           [&] { return small_integer(state); });
    g.requires_grad_();
    const Tensor gradient =
        grad(std::span(&y, 1), std::span(&x, 1), std::span(&g, 1), {.create_graph = true}).at(0);
    const Tensor v = make_tensor(sample.sizes, DType::float64, Memory::contiguous,
                                 [&] { return small_integer(state); });
    const Tensor second = grad(std::span(&gradient, 1), std::span(&g, 1), std::span(&v, 1)).at(0);
    ASSERT_NO_FATAL_FAILURE(expect_values(second, values_of(sample.f(v)), 1e-14));
  }
}

/// Adds row i of the gradient to row index[i], in double.
std::vector<double> scattered_rows(const Tensor& gradient, const Indices& index, std::int64_t rows,
                                   std::int64_t columns) {
  const std::vector<double> g = values_of(gradient);
  std::vector<double> result(static_cast<std::size_t>(rows * columns));
  for (std::size_t i = 0; i < index.size(); ++i) {
    for (std::int64_t j = 0; j < columns; ++j) {
      result[static_cast<std::size_t>(index[i] * columns + j)] +=
          g[i * static_cast<std::size_t>(columns) + static_cast<std::size_t>(j)];
    }
  }
  return result;
}

TEST(ShapeGradients, EmbeddingOfManyRepeatedIndices) {
  constexpr std::int64_t kRows = 37;
  constexpr std::int64_t kCount = 1000;
  for (const std::int64_t columns : {1, 7, 600}) {
    for (const DType dtype : kFloats) {
      unsigned state = 5;
      Indices index;
      for (std::int64_t i = 0; i < kCount; ++i) {
        state = state * 1664525U + 1013904223U;
        // Row 3 gets a third, row 5 nothing.
        const std::int64_t row = state % 3 == 0 ? 3 : (state >> 8) % kRows;
        index.push_back(row == 5 ? 6 : row);
      }
      SCOPED_TRACE(std::to_string(columns) + " " + std::string(tenon::name(dtype)));
      const Tensor g = random_tensor({kCount, columns}, dtype, Memory::contiguous, 9);
      const auto run = [&] {
        Tensor weight = zeros({kRows, columns}, of(dtype));
        weight.requires_grad_();
        backward(embedding(indices(index), weight), g);
        return weight.grad();
      };
      // A thousand roundings of the compute type beside that of the result.
      const double error = 1000 * 2 * unit_roundoff(accumulation_dtype(dtype)) * 40;
      ASSERT_NO_FATAL_FAILURE(
          expect_values(run(), scattered_rows(g, index, kRows, columns), tolerance(dtype), error));
      expect_thread_invariant(run, "embedding's gradient");
    }
  }
}

TEST(ShapeGradients, GatherOfManyRepeatedIndices) {
  // Lines of 50 along the middle axis; the index is smaller than the input along the last.
  const Extents picked = {30, 90, 65};
  for (const DType dtype : kFloats) {
    unsigned state = 11;
    const Tensor index = make_tensor(picked, DType::int64, Memory::contiguous, [&] {
      state = state * 1664525U + 1013904223U;
      return static_cast<double>((state >> 16) % 50);
    });
    const Tensor g = random_tensor(picked, dtype, Memory::permuted, 4);
    const auto run = [&] {
      Tensor x = zeros({30, 50, 70}, of(dtype));
      x.requires_grad_();
      backward(gather(x, 1, index), g);
      return x.grad();
    };
    std::vector<double> expected(30 * 50 * 70);
    const std::vector<double> values = values_of(g);
    const std::vector<double> places = values_of(index);
    for (std::size_t i = 0; i < values.size(); ++i) {
      const std::size_t outer = i / (90 * 65);
      const std::size_t last = i % 65;
      expected[(outer * 50 + static_cast<std::size_t>(places[i])) * 70 + last] += values[i];
    }
    SCOPED_TRACE(tenon::name(dtype));
    ASSERT_NO_FATAL_FAILURE(expect_values(run(), expected, tolerance(dtype),
                                          200 * unit_roundoff(accumulation_dtype(dtype))));
    expect_thread_invariant(run, "gather's gradient");
  }
}

}  // namespace
}  // namespace tenon::test
