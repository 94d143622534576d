// Windows of a symbolic axis (narrow, strided, select) in front of what needs a size that is known: the
// trace verifies, serves other sizes where it can, and schedules as any other.
#include <gtest/gtest.h>

#include <cstdlib>
#include <random>

#include "graph/verify.h"
#include "nn/nn.h"
#include "schedule/schedules.h"
#include "tests/support/models.h"
#include "tests/support/schedule_checks.h"

namespace tenon {
namespace window_views_test {

using test::expect_close;
using T = const Tensor&;

struct Window {
  const char* name;
  Shape sizes;  // of the input
  Tensor (*of)(T x);
  /// Another batch that the trace serves, or none.
  Shape other = {};
};

/// Windows whose last axis is 8 long, or that are (…, 6, 8).
std::vector<Window> windows() {
  return {
      {"first columns", {3, 10}, [](T x) { return narrow(x, -1, 0, 8); }, {5, 10}},
      {"columns but two", {3, 10}, [](T x) { return narrow(x, -1, 1, x.size(-1) - 2); }, {5, 10}},
      {"last columns", {3, 10}, [](T x) { return narrow(x, -1, x.size(-1) - 8, 8); }, {5, 10}},
      {"half", {3, 16}, [](T x) { return narrow(x, -1, 0, x.size(-1) / 2); }, {5, 16}},
      {"second half",
       {3, 16},
       [](T x) { return narrow(x, -1, x.size(-1) / 2, x.size(-1) - x.size(-1) / 2); },
       {5, 16}},
      {"a chunk", {3, 16}, [](T x) { return chunk(x, 2, -1)[1]; }, {5, 16}},
      {"half of an odd size",
       {3, 17},
       [](T x) { return narrow(x, -1, 0, x.size(-1) / 2); },
       {5, 17}},
      {"every second column",
       {3, 16},
       [](T x) {
         return select(x.view({x.size(0), x.size(1) / 2, 2}), -1, 0);
       },
       {5, 16}},
      {"windows of the rows", {6, 8}, [](T x) { return narrow(x, 0, 1, x.size(0) - 2); }, {9, 8}},
      {"stacked windows",
       {9, 4},
       [](T x) {
         const Dim n = x.size(0) - 1;
         const Tensor both = stack({narrow(x, 0, 0, n), narrow(x, 0, 1, n)}, 1);
         return both.reshape({n, x.size(1) * 2});
       },
       {5, 4}},
      {"unfolded",
       {3, 8, 12},
       [](T x) {
         const Dim n = x.size(-1) - 4;
         std::vector<Tensor> columns;
         for (int i = 0; i < 5; ++i) columns.push_back(narrow(x, -1, i, n));
         return stack(columns, -1).transpose(1, 3).reshape({-1, 8});
       },
       {2, 8, 15}},
      {"a transposed window",
       {8, 10},
       [](T x) { return narrow(x, 1, 1, x.size(1) - 2).transpose(0, 1); },
       {8, 13}},
      {"a product of sizes",
       {3, 4, 4},
       [](T x) {
         return narrow(x.reshape({x.size(0), x.size(1) * x.size(2)}), 1, 4, 8);
       },
       {5, 4, 4}},
      {"a product of windows",
       {3, 5, 2},
       [](T x) {
         const Tensor y = narrow(x, 1, 1, x.size(1) - 1);
         return y.reshape({y.size(0), y.size(1) * y.size(2)});
       },
       {5, 5, 2}},
      {"half of the sum",
       {3, 10, 6},
       [](T x) {
         const Dim n = (x.size(1) + x.size(2)) / 2;
         return narrow(narrow(x, 1, 0, n).transpose(1, 2), 1, 0, 6);
       },
       {5, 10, 6}},
      {"tiles",
       {2, 8, 4, 8},
       [](T x) {
         const Dim b = x.size(0), h = x.size(1), w = x.size(2);
         return x.view({b, h / 4, 4, w / 4, 4, 8}).permute({0, 1, 3, 2, 4, 5}).reshape({-1, 16, 8});
       },
       {3, 12, 8, 8}},
      {"tiles of all sizes",
       {2, 8, 4, 8},
       [](T x) {
         const Dim b = x.size(0), h = x.size(1), w = x.size(2), c = x.size(3);
         return x.view({b, h / 4, 4, w / 4, 4, c})
             .permute({0, 1, 3, 2, 4, 5})
             .reshape({b * (h / 4) * (w / 4), 16, c});
       },
       {3, 12, 8, 8}},
      {"tiles with -1",
       {2, 8, 4, 8},
       [](T x) {
         return x.view({x.size(0), -1, 4, x.size(2) / 2, 2, x.size(3)})
             .transpose(2, 3)
             .reshape({-1, 8, x.size(3)});
       },
       {3, 12, 8, 8}},
      {"patches",
       {2, 2, 4, 6},
       [](T x) {
         const Dim b = x.size(0), c = x.size(1), h = x.size(2), w = x.size(3);
         return x.reshape({b, c, h / 2, 2, w / 2, 2})
             .permute({0, 2, 4, 1, 3, 5})
             .reshape({b, (h / 2) * (w / 2), c * 4});
       },
       {3, 2, 8, 2}},
      {"blocks of a sequence",
       {2, 12, 8},
       [](T x) {
         return x.view({x.size(0), x.size(1) / 3, 3, x.size(2)});
       },
       {3, 6, 8}},
      {"rows of windows",
       {2, 12, 4},
       [](T x) {
         return x.view({x.size(0), x.size(1) / 2, x.size(2) * 2});
       },
       {3, 6, 4}},
      {"rows of windows with -1",
       {2, 12, 4},
       [](T x) {
         return x.view({x.size(0), -1, x.size(2) * 2});
       },
       {3, 6, 4}},
      {"an expanded window",
       {6, 8},
       [](T x) {
         const Dim n = x.size(0) - 2;
         return narrow(x, 0, 2, n).unsqueeze(1).expand({n, 3, x.size(1)}).reshape({n * 3, 8});
       },
       {9, 8}},
      {"the last row",
       {4, 5, 8},
       [](T x) { return narrow(x, 1, x.size(1) - 1, 1).squeeze(1); },
       {3, 7, 8}},
      {"the last row from the end", {4, 5, 8}, [](T x) { return select(x, 1, -1); }, {3, 7, 8}},
      {"two axes",
       {3, 5, 10},
       [](T x) { return narrow(narrow(x, 1, 1, x.size(1) - 2), 2, 2, x.size(2) - 2); },
       {2, 9, 10}},
  };
}

struct Consumer {
  const char* name;
  Tensor (*apply)(T window, T weight);
};

std::vector<Consumer> consumers() {
  return {
      {"linear", [](T x, T w) { return linear(x, w); }},
      {"matmul", [](T x, T w) { return matmul(x, w); }},
      {"layer_norm", [](T x, T w) { return layer_norm(x, select(w, 0, 0), select(w, 0, 1)); }},
      {"rms_norm", [](T x, T w) { return rms_norm(x, {8}, select(w, 0, 0)); }},
      {"add", [](T x, T w) { return relu(x + select(w, 0, 0)); }},
      {"attention",
       [](T x, T w) {
         const Tensor q = linear(x, w).unsqueeze(0);
         return scaled_dot_product_attention(q, linear(x, w).unsqueeze(0), q);
       }},
      {"twice", [](T x, T w) { return linear(relu(linear(x, w)), w) + x; }},
      {"view",
       [](T x, T w) {
         const Tensor y = linear(x, w);
         return y.reshape({-1, 2, 4}).transpose(0, 1).reshape({-1, 8});
       }},
  };
}

struct Windowed : nn::Module {
  Windowed(const Window& w, const Consumer& c)
      : window(w.of),
        consumer(c.apply),
        weight(register_parameter("weight", randn({8, 8}) * 0.3)) {}
  Tensor forward(T x) const { return consumer(window(x), weight); }
  Tensor (*window)(T);
  Tensor (*consumer)(T, T);
  Tensor weight;
};

TEST(WindowViews, TraceBuildAndServeOtherSizes) {
  for (const Window& window : windows()) {
    for (const Consumer& consumer : consumers()) {
      SCOPED_TRACE(std::string(window.name) + " before " + consumer.name);
      const auto model = nn::make<Windowed>(window, consumer);
      const Tensor x = randn(window.sizes);
      try {
        const Schedule sch = create_schedule(model, {{"x", x}});
        verify(sch.graph());
        verify(sch.graph());
        Executor run = build(sch);
        expect_close(run(x), model(x), 2e-5, "traced size");
        const Tensor other = randn(window.other);
        expect_close(run(other), model(other), 2e-5, "other size");
        test::expect_same_step(test::program_step(sch, {x}), test::eager_step(model, {x}), 2e-5);
      } catch (const std::exception& error) {
        ADD_FAILURE() << error.what();
      }
    }
  }
}

TEST(WindowViews, ALinearBehindAWindowIsScheduled) {
  struct Model : nn::Module {
    Model()
        : q_proj(add<nn::Linear>("q_proj", 8, 8)),
          k_proj(add<nn::Linear>("k_proj", 8, 8)),
          v_proj(add<nn::Linear>("v_proj", 8, 8)),
          up(add<nn::Linear>("up", 8, 16)),
          act(add<nn::GELU>("act")),
          down(add<nn::Linear>("down", 16, 8)),
          norm(add<nn::LayerNorm>("norm", 8)) {}
    Tensor forward(T x) const {
      const Tensor w = narrow(narrow(x, 2, 1, x.size(2) - 2), 1, 0, x.size(1) / 2);
      const auto split = [](T y) { return y.view({y.size(0), y.size(1), 2, 4}).transpose(1, 2); };
      const Tensor q = split(q_proj(w)), k = split(k_proj(w)), v = split(v_proj(w));
      const Tensor p = softmax(matmul(q, k.transpose(-2, -1)) / sqrt(q.size(-1)), -1);
      const Tensor y = matmul(p, v).transpose(1, 2).reshape({w.size(0), w.size(1), 8});
      return norm(w + y + down(act(up(y))));
    }
    nn::Child<nn::Linear> q_proj, k_proj, v_proj, up;
    nn::Child<nn::GELU> act;
    nn::Child<nn::Linear> down;
    nn::Child<nn::LayerNorm> norm;
  };
  const auto model = nn::make<Model>();
  for (const auto schedule :
       {schedules::attention, schedules::transformer_encoder, schedules::gpt}) {
    Schedule sch = create_schedule(model, {{"x", randn({2, 6, 10})}});
    schedule(sch);
    EXPECT_GT(sch.applied().size(), 1U);
    Executor run = build(sch);
    for (const auto& sizes : {Shape{2, 6, 10}, Shape{3, 9, 10}, Shape{1, 2, 10}}) {
      const Tensor x = randn(sizes);
      expect_close(run(x), model(x), 2e-5, "output");
    }
    EXPECT_THROW(run(randn({2, 6, 11})), Error);
  }
}

/// A chain of windows, views and products, drawn from a seed; TENON_CHAINS sets how many are tried.
struct RandomWindows : nn::Module {
  explicit RandomWindows(unsigned of) : seed(of) {}

  Dim length_in(const Dim& size, std::mt19937& random) const {
    const auto below = [&](int n) { return static_cast<int>(random() % static_cast<unsigned>(n)); };
    const std::int64_t hint = size.hint();
    switch (below(5)) {
      case 0: return size - std::min<std::int64_t>(hint, below(3));
      case 1: return size / (1 + below(3));
      case 2: return Dim(std::max<std::int64_t>(1, hint - below(3)));
      case 3: return (size + 1) / 2;
      default: return size;
    }
  }

  Tensor forward(T x, T other) const {
    std::mt19937 random(seed);
    const auto below = [&](int n) { return static_cast<int>(random() % static_cast<unsigned>(n)); };
    std::vector<Tensor> made{x, other};
    for (int step = 0; step < 10; ++step) {
      const Tensor y = made[static_cast<std::size_t>(below(static_cast<int>(made.size())))];
      const int rank = y.dim();
      const int axis = rank == 0 ? 0 : below(rank);
      if (rank == 0 || rank > 5) continue;
      const Dim size = y.size(axis);
      Tensor z;
      switch (below(12)) {
        case 0:
        case 1: {
          const Dim length = length_in(size, random);
          const Dim start = below(2) == 0 ? Dim(0) : size - length;
          z = narrow(y, axis, start, length);
          break;
        }
        case 2: z = transpose(y, axis, below(rank)); break;
        case 3: z = select(y, axis, below(2) == 0 ? 0 : -1); break;
        case 4: {  // split an axis
          const int by = 1 + below(3);
          if (size.hint() % by != 0 || rank > 4) continue;
          std::vector<Dim> sizes;
          for (int i = 0; i < rank; ++i) {
            sizes.push_back(i == axis ? Dim(by) : y.size(i));
            if (i == axis) sizes.push_back(below(2) == 0 ? Dim(-1) : size / by);
          }
          z = reshape(y, Shape(sizes));
          break;
        }
        case 5: {  // join two axes
          if (axis + 1 >= rank) continue;
          std::vector<Dim> sizes;
          for (int i = 0; i < rank; ++i) {
            if (i == axis + 1) continue;
            sizes.push_back(i != axis ? y.size(i) : below(2) == 0 ? Dim(-1) : size * y.size(i + 1));
          }
          z = reshape(y, Shape(sizes));
          break;
        }
        case 6: {
          const std::int64_t k = y.size(-1).hint();
          if (k == 0 || k > 40) continue;
          z = linear(y, ones({3, k}));
          break;
        }
        case 7: {
          for (const Tensor& same : made) {
            if (same.dim() == rank && !same.is_same(y) &&
                same.shape().hints() == y.shape().hints()) {
              z = y + same;
            }
          }
          if (!z) continue;
          break;
        }
        case 8: {
          if (rank < 2) continue;
          z = matmul(y, transpose(y, -1, -2));
          break;
        }
        case 9: z = cat({y, y}, axis); break;
        case 10: z = below(2) == 0 ? softmax(y, axis) : sum(y, {axis}, below(2) == 0); break;
        default: z = unsqueeze(y, axis); break;
      }
      made.push_back(z);
    }
    Tensor total = sum(made[0]);
    for (const Tensor& one : made) total = total + sum(one);
    return total;
  }
  unsigned seed;
};

TEST(WindowViews, RandomChainsVerify) {
  int traced = 0;
  const char* text = std::getenv("TENON_CHAINS");
  const unsigned count = text == nullptr ? 400 : static_cast<unsigned>(std::atoi(text));
  for (unsigned seed = 0; seed < count; ++seed) {
    SCOPED_TRACE(seed);
    const auto model = nn::make<RandomWindows>(seed);
    std::mt19937 random(seed + 1000);
    const auto draw = [&] { return static_cast<std::int64_t>(1 + random() % 6); };
    const Tensor x = randn({draw(), draw(), draw()});
    const Tensor other = random() % 2 == 0 ? randn(x.shape()) : randn({draw(), draw()});
    Tensor expected;
    try {
      expected = model(x, other);
    } catch (const Error&) {
      continue;
    }
    ++traced;
    try {
      const Schedule sch = create_schedule(model, {{"x", x}, {"other", other}});
      verify(sch.graph());
      expect_close(build(sch, {.verify = seed % 8 == 0})(x, other), expected, 1e-4, "output");
    } catch (const std::exception& error) {
      ADD_FAILURE() << error.what();
    }
  }
  EXPECT_GT(traced, 100);
}

}  // namespace window_views_test
}  // namespace tenon
