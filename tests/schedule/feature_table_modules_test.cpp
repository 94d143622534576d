// Row 15 of the feature table: whole modules put in place of others, one or every one of a class.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>

#include "tests/support/models.h"
#include "tests/support/schedule_checks.h"

namespace tenon {
namespace feature_table_modules_test {

using test::expect_equivalent;
using test::expect_refused;
using test::initialized;
using test::same_values;

constexpr std::int64_t kHidden = 16;

/// A Linear whose product and bias are two ops, with the parameters' names kept.
struct SplitLinear : nn::Module {
  explicit SplitLinear(const nn::Linear& old)
      : weight(register_parameter("weight", zeros(old.weight.shape()))),
        bias(register_parameter("bias", zeros(old.bias.shape()))) {}
  Tensor forward(const Tensor& x) const { return matmul(x, weight.transpose(0, 1)) + bias; }
  Tensor weight, bias;
};

TEST(FeatureTable, Row15_OneModule) {
  const auto model = initialized<test::ResidualMlp>(kHidden);
  const Tensor x = randn({3, kHidden});
  Schedule sch = create_schedule(model, {x});
  sch["up"].replace(nn::make<SplitLinear>(*model->up));
  EXPECT_NE(sch.to_string().find("(up): SplitLinear()"), std::string::npos) << sch;
  EXPECT_EQ(model->submodule("up").type_name(), "Linear");  // the model's own stays
  expect_equivalent(model, sch, {x});
}

/// Linears in a ModuleList and in a Sequential, of two widths.
struct Mixed : nn::Module {
  Mixed()
      : layer(add<nn::ModuleList<nn::Linear>>("layer")),
        stem(register_module(
            "stem", nn::make<nn::Sequential>(nn::make<nn::Linear>(kHidden, 2 * kHidden),
                                             nn::make<nn::Tanh>(),
                                             nn::make<nn::Linear>(2 * kHidden, kHidden)))) {
    for (int i = 0; i < 2; ++i) layer->emplace_back(kHidden, kHidden);
  }
  Tensor forward(const Tensor& x) const {
    Tensor y = stem(x);
    for (const auto& each : *layer) y = relu(each(y));
    return y;
  }
  nn::Child<nn::ModuleList<nn::Linear>> layer;
  nn::Child<nn::Sequential> stem;
};

TEST(FeatureTable, Row15_EveryModuleOfAClass) {
  const auto model = initialized<Mixed>();
  const Tensor x = randn({3, kHidden});
  Schedule sch = create_schedule(model, {x});
  std::vector<std::string> paths;
  const std::size_t count = sch.replace_all<nn::Linear>(
      [&](const std::string& path, nn::Linear& old) {  // widths come from the old module
        paths.push_back(path);
        return nn::make<SplitLinear>(old);
      });
  EXPECT_EQ(count, 4U);
  EXPECT_EQ(paths, (std::vector<std::string>{"layer.0", "layer.1", "stem.0", "stem.2"}));
  EXPECT_EQ(sch.to_string(), R"(Mixed(
  (layer): ModuleList(
    (0-1): 2 x SplitLinear()
  )
  (stem): Sequential(
    (0): SplitLinear()
    (1): Tanh()
    (2): SplitLinear()
  )
))");
  expect_equivalent(model, sch, {x});
}

TEST(FeatureTable, Row15_EveryModuleOfAClassBelowAPathOnly) {
  const auto model = initialized<Mixed>();
  const Tensor x = randn({3, kHidden});
  Schedule sch = create_schedule(model, {x});
  const auto make = [](const std::string&, nn::Linear& old) { return nn::make<SplitLinear>(old); };
  EXPECT_EQ(sch["stem"].replace_all<nn::Linear>(make), 2U);
  EXPECT_EQ(sch["layer.1"].replace_all<nn::Linear>(make), 1U);  // the module itself
  EXPECT_EQ(sch.find("layer\\.0").size(), 1U);
  expect_equivalent(model, sch, {x});
}

/// Brings in what it replaces.
struct Wrapped : nn::Module {
  explicit Wrapped(const nn::Linear& old)
      : inner(register_module("inner", nn::make<nn::Sequential>(nn::make<nn::Linear>(
                                           old.in_features, old.out_features)))) {}
  Tensor forward(const Tensor& x) const { return inner(x); }
  nn::Child<nn::Sequential> inner;
};

TEST(FeatureTable, Row15_WhatAReplacementBringsInIsLeftAlone) {
  const auto model = initialized<Mixed>();
  const Tensor x = randn({3, kHidden});
  Schedule sch = create_schedule(model, {x});
  std::size_t made = 0;
  EXPECT_EQ(sch.replace_all<nn::Linear>(
                [&](const std::string&, nn::Linear& old) {
                  ++made;
                  return nn::make<Wrapped>(old);
                },
                {.weights = {{"inner.0.weight", "weight"}, {"inner.0.bias", "bias"}}}),
            4U);
  EXPECT_EQ(made, 4U);
  expect_equivalent(model, sch, {x});
}

TEST(FeatureTable, Row15_HooksActAroundTheReplacement) {
  const auto model = initialized<test::ResidualMlp>(kHidden);
  int calls = 0;
  model->submodule("up").register_forward_pre_hook(
      [](nn::Module&, std::span<Tensor> inputs) { inputs[0] = inputs[0] * 0.5; });
  auto handle = model->submodule("up").register_forward_hook(
      [&](nn::Module& module, std::span<const Tensor> inputs, std::span<Tensor> outputs) {
        ++calls;
        EXPECT_EQ(module.type_name(), "Linear");
        outputs[0] = outputs[0] + sum(inputs[0], {-1}, true);
      });
  const Tensor x = randn({3, kHidden});
  Schedule sch = create_schedule(model, {x});
  const int when_traced = calls;
  sch["up"].replace(nn::make<SplitLinear>(*model->up));
  EXPECT_EQ(calls, when_traced + 1);  // recorded again around the new module
  expect_equivalent(model, sch, {x});
  EXPECT_NE(sch.to_string().find("(up): SplitLinear()"), std::string::npos) << sch;

  // A schedule made without them differs, so they did act.
  handle.remove();
  Schedule without = create_schedule(model, {x});
  Executor with_hooks = build(sch, {.verify = false});
  EXPECT_FALSE(same_values(with_hooks(x), build(without)(x)));
}

TEST(FeatureTable, Row15_HooksThatWouldBeLostAreRefused) {
  const auto model = initialized<test::Stack<test::ResidualMlp>>(2, kHidden);
  model->submodule("layer.1.act")
      .register_forward_hook([](nn::Module&, std::span<const Tensor>, std::span<Tensor> outputs) {
        outputs[0] = outputs[0] * 2.0;
      });
  const Tensor x = randn({3, kHidden});
  Schedule sch = create_schedule(model, {x});
  expect_refused(sch,
                 "replace on 'layer.1' refused: module 'layer.1.act' inside of 'layer.1' has a "
                 "hook, which would be lost",
                 [&] { sch["layer.1"].replace(nn::make<test::ResidualMlp>(kHidden)); });
  expect_refused(sch, "inside of 'layer.1' has a hook, which would be lost", [&] {
    sch.replace_all<test::ResidualMlp>([](const std::string&, test::ResidualMlp&) {
      return nn::make<test::ResidualMlp>(kHidden);
    });
  });
  const std::string tree = sch.to_string();
  sch["layer.0"].replace(nn::make<test::ResidualMlp>(kHidden));
  EXPECT_EQ(sch.to_string(), tree);  // of the same class, its children in place of the old ones
  sch["layer.1.up"].replace(nn::make<SplitLinear>(*(*model->layer)[1]->up));
  expect_equivalent(model, sch, {x});
}

TEST(FeatureTable, Row15_AnotherSignatureIsRefusedAtOnce) {
  struct TwoInputs : nn::Module {
    Tensor forward(const Tensor& x, const Tensor& y) const { return x + y; }
  };
  struct TwoOutputs : nn::Module {
    std::vector<Tensor> forward(const Tensor& x) const { return {x, x * 2.0}; }
  };
  struct Halves : nn::Module {
    Tensor forward(const Tensor& x) const { return x.narrow(-1, 0, kHidden); }
  };
  struct Doubles : nn::Module {
    Tensor forward(const Tensor& x) const { return x.to(DType::float64); }
  };
  Schedule sch = create_schedule(nn::make<test::ResidualMlp>(kHidden), {randn({3, kHidden})});
  Schedule act = sch["act"];
  expect_refused(sch, "TwoInputs takes 2 tensors; module 'act' is called with 1",
                 [&] { act.replace(nn::make<TwoInputs>()); });
  expect_refused(sch, "TwoOutputs returned 2 tensors; needed 1",
                 [&] { act.replace(nn::make<TwoOutputs>()); });
  expect_refused(sch, "Halves returns float32(s0, 16) in place of %act; needed float32(s0, 64)",
                 [&] { act.replace(nn::make<Halves>()); });
  expect_refused(sch, "Doubles returns float64(s0, 64) in place of %act; needed float32(s0, 64)",
                 [&] { act.replace(nn::make<Doubles>()); });
}

TEST(FeatureTable, Row15_AModuleThatIsCalledTwice) {
  struct Model : nn::Module {
    Model() : shared(add<nn::Linear>("shared", kHidden, kHidden)) {}
    Tensor forward(const Tensor& x) const { return shared(tanh(shared(x))); }
    nn::Child<nn::Linear> shared;
  };
  const auto model = initialized<Model>();
  const Tensor x = randn({3, kHidden});
  Schedule sch = create_schedule(model, {x});
  sch["shared"].replace(nn::make<SplitLinear>(*model->shared));
  std::size_t linears = 0;
  std::size_t products = 0;
  for (NodeId id : sch.graph().order()) {
    linears += sch.graph().node(id).op->name == "linear";
    products += sch.graph().node(id).op->name == "matmul";
  }
  EXPECT_EQ(linears, 0U);
  EXPECT_EQ(products, 2U);
  expect_equivalent(model, sch, {x});  // the gradient is the sum over both calls
}

struct Norms : nn::Module {
  Norms() : conv(add<nn::Conv2d>("conv", 2, 3, 3)), norm(add<nn::BatchNorm2d>("norm", 3)) {}
  Tensor forward(const Tensor& x) const { return tanh(norm(conv(x))); }
  nn::Child<nn::Conv2d> conv;
  nn::Child<nn::BatchNorm2d> norm;
};

/// The same norm with buffers of its own, whose values must not matter.
struct OwnNorm : nn::Module {
  OwnNorm()
      : weight(register_parameter("weight", zeros({3}))),
        bias(register_parameter("bias", zeros({3}))),
        running_mean(register_buffer("running_mean", full({3}, 100))),
        running_var(register_buffer("running_var", full({3}, 100))) {}
  Tensor forward(const Tensor& x) const {
    return batch_norm(x * 1.0, running_mean, running_var, weight, bias);
  }
  Tensor weight, bias, running_mean, running_var;
};

TEST(FeatureTable, Row15_TheWholeModel) {
  const auto model = initialized<nn::Linear>(kHidden, 5);
  const Tensor x = randn({3, kHidden});
  Schedule sch = create_schedule(model, {x});
  sch.replace(nn::make<SplitLinear>(*model));
  EXPECT_EQ(sch.to_string(), "SplitLinear()");
  expect_equivalent(model, sch, {x});
}

TEST(FeatureTable, Row15_BuffersAreMappedAndWritten) {
  const auto model = initialized<Norms>();
  const Tensor x = randn({4, 2, 6, 6});
  const auto twin = nn::make<Norms>();
  twin->load_state_dict(model->state_dict());
  Schedule sch = create_schedule(model, {x});
  const auto replacement = nn::make<OwnNorm>();
  sch["norm"].replace(replacement);
  const VerifyReport report = verify(sch);
  EXPECT_TRUE(report.ok()) << report.to_string();
  const auto compared = [&](const std::string& name) {
    return std::any_of(report.results.begin(), report.results.end(),
                       [&](const Comparison& result) { return result.name == name; });
  };
  EXPECT_TRUE(compared("buffer norm.running_mean"));

  Executor run = build(sch);
  const Tensor inputs[] = {x};
  for (int i = 0; i < 2; ++i) {
    test::expect_close(run.run(inputs, true).at(0), twin(x), 2e-5, "training output");
  }
  for (const char* name : {"running_mean", "running_var"}) {
    const std::string whole = std::string("norm.") + name;
    test::expect_close(model->buffer(whole), twin->buffer(whole), 1e-5, whole);
    EXPECT_TRUE(same_values(replacement->buffer(name), full({3}, 100))) << name;
  }
  twin->eval();
  test::expect_close(run(x), twin(x), 2e-5, "eval output");  // by the model's running statistics
}

}  // namespace feature_table_modules_test
}  // namespace tenon
