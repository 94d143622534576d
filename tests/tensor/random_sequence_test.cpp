// Which numbers a random call draws: after the same seed the same, and no two calls share theirs,
// in and outside of modules, in training and evaluation, after errors and where sites are used up.
#include <gtest/gtest.h>

#include <functional>
#include <set>

#include "autograd/autograd.h"
#include "nn/nn.h"
#include "tensor/philox.h"
#include "tensor/random.h"
#include "tests/support/expect_error.h"
#include "tests/support/models.h"
#include "tests/tensor/threads.h"

namespace tenon::test {
namespace random_sequence_test {

struct RandomSequence : ::testing::Test {
  void SetUp() override { manual_seed(1234); }
  void TearDown() override { manual_seed(0); }
};

struct Draw {
  std::string name;
  std::function<Tensor()> call;
};

/// Every way to draw, of 256 elements or more each.
std::vector<Draw> all_draws() {
  const Tensor x = ones({4, 64});
  const Tensor v = ones({64});
  const Tensor q = ones({1, 1, 16, 16});
  const auto drop = nn::make<nn::Dropout>(0.5);
  const auto noisy = function_model([](const Tensor& a) { return a + randn(a.shape()); });
  const auto noisy_eval = function_model([](const Tensor& a) { return a * randn(a.shape()); });
  const auto train_in_eval =
      function_model([](const Tensor& a) { return dropout(a, 0.5, DropoutMode::train); });
  noisy_eval->eval();
  train_in_eval->eval();
  return {
      {"dropout", [=] { return dropout(x, 0.5); }},
      {"attention",
       [=] {
         return scaled_dot_product_attention(q, q, randn({1, 1, 16, 16}), {}, {.dropout_p = 0.5});
       }},
      {"fused norm", [=] { return bias_dropout_residual_layer_norm(x, v, x * 0.0, v, v, 0.5); }},
      {"randn", [] { return randn({256}); }},
      {"uniform", [] { return uniform({256}, -1, 1); }},
      {"randint", [] { return randint(0, 1000, {256}); }},
      {"randperm", [] { return randperm(256); }},
      {"nn::Dropout", [=] { return drop(x); }},
      {"module with noise", [=] { return noisy(x); }},
      {"module with noise in evaluation", [=] { return noisy_eval(x); }},
      {"dropout that trains in evaluation", [=] { return train_in_eval(x); }},
      {"backward of dropout",
       [=] {
         Tensor leaf = ones({4, 64}).requires_grad_();
         backward(dropout(leaf, 0.5), ones({4, 64}));
         return leaf.grad();
       }},
      {"init", [] {
         const Tensor weight = zeros({16, 16});
         nn::init::kaiming_normal_(weight);
         return weight;
       }}};
}

TEST_F(RandomSequence, TheSameProgramAfterTheSameSeedDrawsTheSame) {
  const std::vector<Draw> draws = all_draws();
  const auto run = [&] {
    std::vector<std::string> results;
    manual_seed(1234);
    for (int round = 0; round < 2; ++round) {
      for (const Draw& draw : draws) results.push_back(bytes_of(draw.call().contiguous()));
    }
    return results;
  };
  const auto first = run();
  dropout(ones({8}), 0.5);  // what was drawn before the seed does not matter
  const auto again = run();
  for (std::size_t i = 0; i < first.size(); ++i) {
    EXPECT_EQ(first[i] == again[i], true) << draws[i % draws.size()].name;
  }
  EXPECT_EQ(std::set<std::string>(first.begin(), first.end()).size(), first.size())
      << "no two calls draw the same";
}

TEST_F(RandomSequence, EachWayToDrawStartsAgainAfterItsSeed) {
  for (const Draw& draw : all_draws()) {
    manual_seed(77);
    const std::string first = bytes_of(draw.call().contiguous());
    const std::string second = bytes_of(draw.call().contiguous());
    manual_seed(77);
    EXPECT_EQ(bytes_of(draw.call().contiguous()) == first, true) << draw.name;
    EXPECT_EQ(first == second, false) << draw.name;
  }
}

TEST_F(RandomSequence, DropoutsInAndOutsideOfModulesShareNoMask) {
  const Tensor x = ones({4, 64});
  const auto drop = nn::make<nn::Dropout>(0.5);
  const auto identity = nn::make<nn::Identity>();
  std::set<std::string> masks;
  for (int round = 0; round < 8; ++round) {
    masks.insert(bytes_of(dropout(x, 0.5)));
    drop->train(round % 2 == 0);
    if (drop->training()) masks.insert(bytes_of(drop(x)));
    identity->train(round % 3 == 0);
    identity(x);  // a forward that draws nothing
    masks.insert(bytes_of(dropout(x, 0.5)));
  }
  EXPECT_EQ(masks.size(), 20U);
}

TEST_F(RandomSequence, EvaluationThatDrawsNothingLeavesTheGeneratorAlone) {
  const auto model = nn::make<ResidualMlp>(8);
  model->eval();
  manual_seed(3);
  model(ones({2, 8}));
  EXPECT_EQ(default_generator().state().forward, 0U);
  model->train();
  model(ones({2, 8}));
  EXPECT_EQ(default_generator().state().forward, 1U);
}

TEST_F(RandomSequence, OuterSitesThatAreUsedUpStartTheNextForward) {
  Generator generator(5);
  constexpr std::int64_t kSites = kMaxDropoutSites - kFirstOuterSite;
  for (std::int64_t i = 0; i < kSites; ++i) {
    ASSERT_EQ(generator.next_outer_site(), kFirstOuterSite + i);
  }
  EXPECT_EQ(generator.state().forward, 0U);
  EXPECT_EQ(generator.next_outer_site(), kFirstOuterSite);
  EXPECT_EQ(generator.state().forward, 1U);
  generator.set_forward(kMaxForward);
  generator.advance_forward();
  EXPECT_EQ(generator.state().forward, 0U) << "the top bit belongs to streams";
}

TEST_F(RandomSequence, GoesOnAfterAnErrorAsAfterTheSameErrorAgain) {
  const auto fails = function_model([](const Tensor& x) {
    const Tensor noise = randn(x.shape());
    return matmul(dropout(x, 0.5) + noise, x);  // (4, 6) x (4, 6)
  });
  const Tensor x = ones({4, 6});
  const auto run = [&] {
    manual_seed(8);
    EXPECT_THROW(fails(x), ShapeError);
    EXPECT_THROW(dropout(zeros({3}, {DType::int64}), 0.5, DropoutMode::train), DTypeError);
    EXPECT_THROW(uniform({3}, 2, 1), ValueError);
    return bytes_of(dropout(ones({64}), 0.5)) + bytes_of(randn({8}));
  };
  EXPECT_EQ(run() == run(), true);
}

TEST_F(RandomSequence, ARefusedCallTakesNoNumbers) {
  const Tensor x = ones({4, 64});
  const Tensor v = ones({3});
  const Tensor integers = zeros({3}, {DType::int64});
  constexpr auto kTrain = DropoutMode::train;
  const std::vector<Draw> refused = {
      {"dropout", [=] { return dropout(integers, 0.5, kTrain); }},
      {"attention",
       [=] {
         return scaled_dot_product_attention(x, ones({4, 3}), x, {},
                                             {.dropout_p = 0.5, .mode = kTrain});
       }},
      {"fused norm",
       [=] { return bias_dropout_residual_layer_norm(x, v, x, v, v, 0.5, 1e-5, kTrain); }},
      {"randn", [] { return randn({-1}); }},
      {"uniform", [] { return uniform({-1}, 0, 1); }},
      {"randint", [] { return randint(0, 2, {-1}); }},
      {"randperm", [] { return randperm(-1); }},
  };
  const auto both = [](const Tensor& a) {
    return bytes_of(dropout(a, 0.5, kTrain)) + bytes_of(randn({8}));
  };
  for (const Draw& draw : refused) {
    for (const bool in_module : {false, true}) {
      const auto run = [&](bool fails) {
        manual_seed(3);
        std::string bytes;
        const auto body = [&](const Tensor& a) {
          if (fails) {
            EXPECT_THROW(draw.call(), Error);
          }
          bytes += both(a);
          return a;
        };
        const auto model = function_model(body);
        model->eval();
        if (in_module) model(x);
        if (!in_module) body(x);
        return bytes + std::to_string(default_generator().state().forward);
      };
      EXPECT_EQ(run(true) == run(false), true) << draw.name << (in_module ? " in a module" : "");
    }
  }
}

TEST_F(RandomSequence, GeneratorsOfTheirOwnAreIndependent) {
  Generator a(9);
  Generator b(9);
  const auto model = function_model([&](const Tensor& x) { return x + randn(x.shape(), {}, &a); });
  const Tensor x = zeros({8});
  const std::string first = bytes_of(model(x));
  randn({8});  // the default generator's
  EXPECT_EQ(bytes_of(randn({8}, {}, &b)) == first, true);
  const std::string second = bytes_of(model(x));
  EXPECT_NE(first == second, true);
  EXPECT_EQ(bytes_of(randn({8}, {}, &b)) == second, true);
  manual_seed(9);
  EXPECT_EQ(bytes_of(randn({8})) == first, true) << "equal seeds, equal streams";
  manual_seed(9);
  EXPECT_EQ(bytes_of(randn({8}, {}, &default_generator())) == first, true);
}

TEST_F(RandomSequence, OfOneForwardHasOneSiteEachWhateverIsDrawn) {
  // Equal numbers of equal sites would show: dropout's words are random tensors' too.
  const auto model = function_model([](const Tensor& x) {
    return cat({x + randn(x.shape()), x + randn(x.shape()), uniform(x.shape(), 0, 1)}, 0);
  });
  manual_seed(4);
  const Tensor y = model(zeros({1, 512}));
  std::set<double> values;
  for (const double value : y.to_doubles()) values.insert(value);
  EXPECT_GT(values.size(), 1530U);
  const Tensor again = model(zeros({1, 512}));
  EXPECT_EQ(bytes_of(again) == bytes_of(y), false);
}

TEST_F(RandomSequence, AHookOfBackwardDrawsNewNumbersAtEachCall) {
  std::vector<std::string> drawn;
  const auto model = function_model([&](const Tensor& x) {
    const Tensor y = x * 2.0;
    register_hook(y, [&](const Tensor& g) {
      drawn.push_back(bytes_of(randn({8})));
      return g;
    });
    return y + randn(x.shape());
  });
  for (int i = 0; i < 3; ++i) backward(model(ones({8}).requires_grad_()), ones({8}));
  EXPECT_EQ(std::set<std::string>(drawn.begin(), drawn.end()).size(), 3U);
}

}  // namespace random_sequence_test
}  // namespace tenon::test
