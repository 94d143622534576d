// What a search costs: counted in comparisons, at two sizes of the same graph. Linear is a ratio of 4.
#include <gtest/gtest.h>

#include "schedule/schedule.h"
#include "tests/support/models.h"

namespace tenon {
namespace {

constexpr double kLargestRatio = 4.5;

struct CostCase {
  const char* name;
  std::function<Schedule(int)> model;  // of about n nodes
  std::function<Matches(const Schedule&)> find;
  std::size_t matches_in_1000;
};

template <class F>
Schedule traced(F f) {
  return create_schedule(test::function_model(f), {randn({2, 3}), randn({2, 3})});
}

/// x + y + y + …, n times.
Schedule chain_of_adds(int n) {
  return traced([n](const Tensor& x, const Tensor& y) {
    Tensor z = x;
    for (int i = 0; i < n; ++i) z = z + y;
    return relu(z);
  });
}

/// z_i = z_{i-1} + z_{i-2}: either operand of each leads on.
Schedule fibonacci_adds(int n) {
  return traced([n](const Tensor& x, const Tensor& y) {
    Tensor before = x;
    Tensor z = y;
    for (int i = 0; i < n; ++i) before = std::exchange(z, z + before);
    return relu(z);
  });
}

/// Trees of 8 leaves, 15 nodes each.
Schedule trees(int n) {
  return traced([n](const Tensor& x, const Tensor& y) {
    const auto tree = [&](const auto& self, int depth) -> Tensor {
      if (depth == 0) return relu(x);
      const Tensor left = self(self, depth - 1);
      return left + self(self, depth - 1);
    };
    std::vector<Tensor> results = {y};
    for (int i = 0; i < n / 15; ++i) results.push_back(tree(tree, 3));
    return cat(results, 0);
  });
}

/// n users of x, added up.
template <class F>
Schedule fan_out(int n, F user) {
  return traced([n, user](const Tensor& x, const Tensor& y) {
    std::vector<Tensor> results = {y};
    for (int i = 0; i < n; ++i) results.push_back(user(x, i));
    return cat(results, 0);
  });
}

struct Layers : nn::Module {
  explicit Layers(int n) : layer(add<nn::ModuleList<nn::Linear>>("layer")) {
    for (int i = 0; i < n; ++i) layer->emplace_back(3, 3);
  }
  Tensor forward(const Tensor& x) const {
    Tensor y = x;
    for (const auto& one : *layer) y = one(y);
    return y;
  }
  nn::Child<nn::ModuleList<nn::Linear>> layer;
};

Schedule linears(int n) { return create_schedule(nn::make<Layers>(n), {randn({2, 3})}); }

Matches five_adds_above_relu(const Schedule& sch) {
  return sch.find([](const Tensor& a, const Tensor& b, const Tensor& c, const Tensor& d,
                     const Tensor& e,
                     const Tensor& f) { return b + (c + (d + (e + (f + relu(a))))); });
}
Matches five_adds_below_relu(const Schedule& sch) {
  return sch.find([](const Tensor& a, const Tensor& b, const Tensor& c, const Tensor& d,
                     const Tensor& e,
                     const Tensor& f) { return relu(b + (c + (d + (e + (f + silu(a)))))); });
}

const CostCase kCases[] = {
    {"ChainOfAddsThatNeverMatches", chain_of_adds, five_adds_above_relu, 0},
    {"ChainOfAddsWithOneNearMiss", chain_of_adds, five_adds_below_relu, 0},
    {"ChainWhoseOperandsAllLeadOn", fibonacci_adds, five_adds_above_relu, 0},
    {"ChainThatMatchesEverywhere", chain_of_adds,
     [](const Schedule& sch) {
       return sch.find([](const Tensor& x, const Tensor& y) { return (x + y) + y; });
     },
     500},
    {"TreesWithOneOtherLeaf", trees,
     [](const Schedule& sch) {
       return sch.find([](const Tensor& x) {
         const auto pair = [&] { return relu(x) + relu(x); };
         return (pair() + pair()) + (pair() + (relu(x) + tanh(x)));
       });
     },
     0},
    {"FanOutOfMatches",
     [](int n) { return fan_out(n, [](const Tensor& x, int) { return relu(x); }); },
     [](const Schedule& sch) { return sch.find([](const Tensor& x) { return relu(x); }); }, 1000},
    {"FanOutOfAnIntermediate",
     [](int n) { return fan_out(n, [](const Tensor& x, int) { return relu(x); }); },
     [](const Schedule& sch) {
       return sch.find([](const Tensor& x, const Tensor& y) { return cat({relu(x), y}, 0); });
     },
     0},
    {"FanOutOfPairs",
     [](int n) {
       return fan_out(n, [](const Tensor& x, int i) { return i % 2 ? relu(x) : exp(x); });
     },
     [](const Schedule& sch) {
       return sch.find([](const Tensor& x) { return std::pair(relu(x), exp(x)); });
     },
     500},
    {"FanOutOfPairsOfWhichOneEscapes",
     [](int n) {
       return fan_out(n, [](const Tensor& x, int i) {
         if (i % 4) return relu(x);
         const Tensor y = exp(x);
         return y + tanh(y);
       });
     },
     [](const Schedule& sch) {
       return sch.find([](const Tensor& x) { return std::pair(relu(x), tanh(exp(x))); });
     },
     0},
    {"FanOutOfPairsWithAnotherConstant",
     [](int n) {
       return fan_out(n, [](const Tensor& x, int i) { return i % 2 ? relu(x) : x * 2.0; });
     },
     [](const Schedule& sch) {
       return sch.find([](const Tensor& x) { return std::pair(relu(x), x * 3.0); });
     },
     0},
    {"ModulesByName", linears, [](const Schedule& sch) { return sch.find("layer\\.\\d+"); }, 1000},
    {"ModulesByClass", linears, [](const Schedule& sch) { return sch.find<nn::Linear>(); }, 1000},
    {"ModulesInAPattern", linears,
     [](const Schedule& sch) {
       return sch.find(
           [](const Tensor& x) { return call_module("\\d+", call_module<nn::Linear>(x)); });
     },
     500},
    {"ModulesNearMiss", linears,
     [](const Schedule& sch) {
       return sch.find([](const Tensor& x) { return call_module("\\d+", relu(x)); });
     },
     0},
};

class Cost : public ::testing::TestWithParam<CostCase> {};

TEST_P(Cost, GrowsLinearly) {
  const Matches small = GetParam().find(GetParam().model(1000));
  const Matches large = GetParam().find(GetParam().model(4000));
  EXPECT_EQ(small.size(), GetParam().matches_in_1000) << small.explain();
  EXPECT_EQ(large.size(), 4 * GetParam().matches_in_1000);
  const double ratio =
      static_cast<double>(large.comparisons()) / static_cast<double>(small.comparisons());
  EXPECT_LE(ratio, kLargestRatio) << small.comparisons() << " and " << large.comparisons();
  EXPECT_LE(large.comparisons(), 64 * 4000);
}

INSTANTIATE_TEST_SUITE_P(All, Cost, ::testing::ValuesIn(kCases),
                         [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace tenon
