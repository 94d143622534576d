// Rows 10 and 16-20 of the feature table on every device that is there: joined projections,
// decompositions, the fused kernels, attention and recomputation.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <set>

#include "examples/attention_model.h"
#include "examples/gpt_model.h"
#include "nn/adam.h"
#include "tensor/device_backend.h"
#include "tests/support/models.h"
#include "tests/support/schedule_checks.h"

namespace tenon {
namespace feature_table_kernels_test {

using test::expect_equivalent;
using test::expect_refused;
using test::same_values;

constexpr std::int64_t kHidden = 32;
constexpr std::int64_t kHeads = 4;

class FeatureTableKernels : public ::testing::TestWithParam<DeviceType> {
 protected:
  void SetUp() override {
    if (!is_available(device())) GTEST_SKIP() << "no " << device().to_string() << " device";
  }
  Device device() const { return {GetParam(), 0}; }
  Tensor random(const Shape& shape) { return randn(shape, {}, &generator).to(device()); }
  template <class M, class... A>
  nn::Child<M> make(const A&... arguments) {
    auto model = nn::make<M>(arguments...);
    test::initialize(*model);
    model->to(device());
    return model;
  }
  Generator generator{test::kSeed};
};

/// What verification compared has this name, and agreed.
void expect_compared(const Schedule& schedule, const std::vector<std::string>& names) {
  const VerifyReport report = verify(schedule, {.whole = true});
  for (const std::string& name : names) {
    for (const bool training : {false, true}) {
      const bool agreed =
          std::any_of(report.results.begin(), report.results.end(), [&](const Comparison& result) {
            return result.name == name && result.training == training && result.ok;
          });
      EXPECT_TRUE(agreed) << name << (training ? " (training)\n" : " (eval)\n")
                          << report.to_string();
    }
  }
}

std::vector<std::string> ops_of(const Graph& graph) {
  std::vector<std::string> ops;
  for (NodeId id : graph.order()) ops.push_back(graph.node(id).op->name);
  return ops;
}

// --- row 10, where the weights are packed in device memory ---------------------------------------

TEST_P(FeatureTableKernels, Row10_JoinedProjections) {
  const auto model = make<test::EncoderLayer>(kHidden);
  const Tensor x = random({2, 7, kHidden});
  const Tensor weight = model->parameter("key.weight").clone();
  Schedule sch = create_schedule(model, {{"x", x}});
  sch.fuse_parallel(sch.find("query|key|value"));
  expect_equivalent(model, sch, {x});
  EXPECT_TRUE(same_values(model->parameter("key.weight"), weight));
  EXPECT_EQ(model->parameter("key.weight").device(), device());
  EXPECT_EQ(model->parameter("key.weight").storage(), model->parameter("query.weight").storage());
}

// --- row 16 -------------------------------------------------------------------------------------

TEST_P(FeatureTableKernels, Row16_DecomposeLinear) {
  struct Model : nn::Module {
    Model()
        : dense(add<nn::Linear>("dense", kHidden, 24)),
          bare(add<nn::Linear>("bare", 24, kHidden, false)) {}
    Tensor forward(const Tensor& x) const { return bare(dense(x)); }
    nn::Child<nn::Linear> dense, bare;
  };
  const auto model = make<Model>();
  for (const Shape& shape : {Shape{5, kHidden}, Shape{2, 7, kHidden}}) {
    const Tensor x = random(shape);
    Schedule sch = create_schedule(model, {{"x", x}});
    sch["dense"].decompose();
    EXPECT_EQ(ops_of(sch.graph()), (std::vector<std::string>{"linear", "add", "linear"}));
    EXPECT_EQ(sch["dense"].to_string(),
              "DecomposedLinear(in_features=32, out_features=24, bias=True)");
    expect_compared(sch, {"output 0", "gradient of dense.weight", "gradient of dense.bias",
                          "gradient of input x"});
    expect_equivalent(model, sch, {x});
    expect_refused(sch,
                   "decompose on 'bare' refused: 'bare' has nothing to decompose: its own ops are "
                   "linear without a bias",
                   [&] { sch["bare"].decompose(); });
    expect_refused(sch, "decompose on 'dense' refused: 'dense' has nothing to decompose",
                   [&] { sch["dense"].decompose(); });
  }
}

// --- row 17 -------------------------------------------------------------------------------------

/// dropout(x·w + bias) + residual under a norm, its product separate from its bias.
struct ResidualTail : nn::Module {
  explicit ResidualTail(double p)
      : bias(register_parameter("bias", zeros({kHidden}))),
        norm(add<nn::LayerNorm>("norm", kHidden)),
        drop(add<nn::Dropout>("drop", p)) {}
  Tensor forward(const Tensor& x, const Tensor& residual) const {
    return norm(drop(x + bias) + residual);
  }
  Tensor bias;
  nn::Child<nn::LayerNorm> norm;
  nn::Child<nn::Dropout> drop;
};

Tensor residual_tail(const Tensor& x, const Tensor& bias, const Tensor& residual,
                     const Tensor& weight, const Tensor& norm_bias) {
  return layer_norm(dropout(x + bias, any()) + residual, weight, norm_bias);
}

TEST_P(FeatureTableKernels, Row17_FuseBiasDropoutResidualLayerNorm) {
  for (const double p : {0.0, 0.5}) {
    const auto model = make<ResidualTail>(p);
    const std::vector<Tensor> inputs = {random({3, 7, kHidden}), random({3, 7, kHidden})};
    Schedule sch = create_schedule(model, {{"x", inputs[0]}, {"residual", inputs[1]}});
    sch.fuse(sch.find(residual_tail));
    EXPECT_EQ(ops_of(sch.graph()), (std::vector<std::string>{"bias_dropout_residual_layer_norm"}));
    // The mask is that of the plain dropout: outputs in training agree element by element.
    expect_equivalent(model, sch, inputs);
    expect_compared(
        sch, {"output 0", "gradient of input x", "gradient of bias", "gradient of input residual",
              "gradient of norm.weight", "gradient of norm.bias"});
    Executor plain(sch.original());
    Executor fused = build(sch);
    EXPECT_EQ(plain.program(inputs, true).count_kernels(inputs), p == 0 ? 3 : 4);
    EXPECT_EQ(fused.program(inputs).count_kernels(inputs), 1);
    EXPECT_EQ(fused.program(inputs, true).count_kernels(inputs), 1);
    // In eval mode nothing is dropped.
    const Tensor undropped =
        layer_norm(inputs[0] + model->bias + inputs[1], model->norm->weight, model->norm->bias);
    test::expect_close(fused.run(inputs).at(0), undropped, 1e-5, "eval");
    EXPECT_EQ(same_values(fused.run(inputs, true).at(0), fused.run(inputs, true).at(0)), p == 0);
  }
}

TEST_P(FeatureTableKernels, Row17_AnotherCompositionIsNotFused) {
  const auto model =
      test::function_model([](const Tensor& x, const Tensor& y) {  // the bias comes after dropout
        return layer_norm(dropout(x, 0.1) + y + x, {kHidden});
      });
  const Tensor x = random({3, kHidden});
  Schedule sch = create_schedule(model, {{"x", x}, {"y", x}});
  EXPECT_TRUE(sch.find(residual_tail).empty());
  expect_refused(sch, "fuse refused: no fused op is registered for the composition of dropout, add",
                 [&] {
                   sch.fuse(sch.find([](const Tensor& a, const Tensor& b) {
                     return layer_norm(dropout(a, 0.1) + b + a, {kHidden});
                   }));
                 });
}

// --- row 18 -------------------------------------------------------------------------------------

TEST_P(FeatureTableKernels, Row18_FuseBiasGelu) {
  struct Mlp : nn::Module {
    explicit Mlp(Approximate form)
        : up(add<nn::Linear>("up", kHidden, 4 * kHidden)),
          act(add<nn::GELU>("act", form)),
          down(add<nn::Linear>("down", 4 * kHidden, kHidden)) {}
    Tensor forward(const Tensor& x) const { return down(act(up(x))); }
    nn::Child<nn::Linear> up;
    nn::Child<nn::GELU> act;
    nn::Child<nn::Linear> down;
  };
  const auto pattern = [](Approximate form) {
    return [form](const Tensor& x, const Tensor& bias) { return gelu(x + bias, form); };
  };
  for (const Approximate form : {Approximate::none, Approximate::tanh}) {
    const auto model = make<Mlp>(form);
    const Tensor x = random({5, 3, kHidden});
    Schedule sch = create_schedule(model, {{"x", x}});
    sch["up"].decompose();
    sch.trace({.flatten = true});
    const Approximate other = form == Approximate::none ? Approximate::tanh : Approximate::none;
    EXPECT_TRUE(sch.find(pattern(other)).empty());
    sch.fuse(sch.find(pattern(form)), {.name = "BiasGelu"});
    EXPECT_EQ(ops_of(sch.graph()), (std::vector<std::string>{"linear", "bias_gelu", "linear"}));
    // The module's formula, by name in the node.
    EXPECT_NE(to_text(sch.graph())
                  .find(form == Approximate::none ? "approximate=none" : "approximate=tanh"),
              std::string::npos)
        << sch.graph();
    expect_equivalent(model, sch, {x});

    // The error to float64 is that of the plain model, up to a factor of two and rounding.
    const auto exact = nn::make<Mlp>(form);
    exact->load_state_dict(model->state_dict());
    exact->to(DType::float64);
    const Tensor reference = exact(x.cpu().to(DType::float64));
    const auto error = [&](const Tensor& y) {
      return test::max_difference(y.cpu().to(DType::float64), reference);
    };
    Executor plain(sch.original());
    EXPECT_LE(error(build(sch)(x)), 2 * error(plain(x)) + 1e-6);
    EXPECT_LT(error(build(sch)(x)), 2e-5);
  }
}

// --- row 19 -------------------------------------------------------------------------------------

/// Attention written out in one way, and the call that stands for it.
struct AttentionCase {
  const char* name;
  std::function<Tensor(const Tensor& q, const Tensor& k, const Tensor& v)> written_out;
  std::function<void(Schedule&)> replace;
};

Tensor scores_of(const Tensor& q, const Tensor& k) {
  return matmul(q, k.transpose(-2, -1)) / sqrt(q.size(-1));
}
template <class F>
std::function<void(Schedule&)> replaced_by(F pattern, AttentionOptions options) {
  return [=](Schedule& sch) {
    sch.replace([=](const Tensor& q, const Tensor& k,
                    const Tensor& v) { return scaled_dot_product_attention(q, k, v, {}, options); },
                sch.find(pattern));
  };
}
/// The same for patterns with a mask as fourth parameter.
template <class F>
std::function<void(Schedule&)> replaced_with_mask(F pattern, AttentionOptions options) {
  return [=](Schedule& sch) {
    sch.replace(
        [=](const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& mask) {
          return scaled_dot_product_attention(q, k, v, options.is_causal ? Tensor() : mask,
                                              options);
        },
        sch.find(pattern));
  };
}

std::vector<AttentionCase> attention_cases() {
  const auto plain = [](double p) {
    return [p](const Tensor& q, const Tensor& k, const Tensor& v) {
      const Tensor probabilities = softmax(scores_of(q, k), -1);
      return matmul(p == 0 ? probabilities : dropout(probabilities, p), v);
    };
  };
  const auto causal = [](double p) {
    return [p](const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& later) {
      return gpt::causal_attention(q, k, v, later, p);
    };
  };
  const auto with_later = [=](double p) {
    return [=](const Tensor& q, const Tensor& k, const Tensor& v) {
      return causal(p)(q, k, v, gpt::later_keys(q.size(-2), q.device()));
    };
  };
  const auto masked = [](const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& mask) {
    return matmul(dropout(softmax(scores_of(q, k) + mask, -1), 0.2), v);
  };
  const auto with_mask = [=](const Tensor& q, const Tensor& k, const Tensor& v) {
    // A bias by distance: (1, s) of the keys, broadcast.
    const Tensor mask = mean(k, {0, 1, 3}, false);
    return masked(q, k, v, mask.detach());
  };
  return {{"Plain", plain(0), replaced_by(plain(0), {})},
          {"Dropout", plain(0.3), replaced_by(plain(0.3), {.dropout_p = 0.3})},
          {"Causal", with_later(0), replaced_with_mask(causal(0), {.is_causal = true})},
          {"CausalDropout", with_later(0.3),
           replaced_with_mask(causal(0.3), {.dropout_p = 0.3, .is_causal = true})},
          {"MaskDropout", with_mask, replaced_with_mask(masked, {.dropout_p = 0.2})}};
}

/// Self-attention on (bs, head, seq, d) with any inner function.
struct AttentionModel : nn::Module {
  explicit AttentionModel(const AttentionCase& one)
      : in(add<nn::Linear>("in", kHidden, 3 * kHidden)), attend(one.written_out) {}
  Tensor forward(const Tensor& x) const {
    std::vector<Tensor> heads;
    for (const Tensor& y : chunk(in(x), 3, -1)) {
      heads.push_back(y.view({y.size(0), y.size(1), kHeads, -1}).permute({0, 2, 1, 3}));
    }
    return attend(heads[0], heads[1], heads[2]);
  }
  nn::Child<nn::Linear> in;
  std::function<Tensor(const Tensor&, const Tensor&, const Tensor&)> attend;
};

TEST_P(FeatureTableKernels, Row19_AttentionByOneKernel) {
  for (const AttentionCase& one : attention_cases()) {
    SCOPED_TRACE(one.name);
    const auto model = make<AttentionModel>(one);
    const Tensor x = random({2, 9, kHidden});
    Schedule sch = create_schedule(model, {{"x", x}});
    one.replace(sch);
    const auto ops = ops_of(sch.graph());
    EXPECT_EQ(std::count(ops.begin(), ops.end(), "softmax"), 0);
    EXPECT_EQ(std::count(ops.begin(), ops.end(), "scaled_dot_product_attention"), 1);
    // Against float64 by verification; the mask in training against the eager dropout's.
    expect_equivalent(model, sch, {x});
  }
}

TEST_P(FeatureTableKernels, Row19_LayoutsAreConvertedOrRefused) {
  // An attention that takes and gives (bs, seq, head, d).
  struct SequenceFirst : nn::Module {
    Tensor forward(const Tensor& q, const Tensor& k, const Tensor& v) const {
      const auto move = [](const Tensor& x) { return x.transpose(1, 2); };
      return move(scaled_dot_product_attention(move(q), move(k), move(v)));
    }
  };
  const auto cases = attention_cases();
  const AttentionCase& plain = cases[0];
  const auto model = make<AttentionModel>(plain);
  const Tensor x = random({2, 9, kHidden});
  Schedule converted = create_schedule(model, {{"x", x}});
  const auto attention = nn::make<SequenceFirst>();
  converted.replace(
      [attention](const Tensor& q, const Tensor& k, const Tensor& v) {
        return attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2);
      },
      converted.find(plain.written_out));
  expect_equivalent(model, converted, {x});
  // Given (bs, head, seq, d) it attends over heads: the shapes fit, the meaning does not.
  Schedule wrong = create_schedule(model, {{"x", x}});
  wrong.replace(attention, wrong.find(plain.written_out));
  EXPECT_THROW(build(wrong), VerificationError);
  // Where its result keeps that layout, the shapes tell.
  const std::string where = x.device().type == DeviceType::cuda ? " on cuda" : "";
  Schedule refused = create_schedule(model, {{"x", x}});
  expect_refused(refused,
                 "function returns float32(s0, s1, 4, 8)" + where +
                     " in place of %matmul_1; needed "
                     "float32(s0, 4, s1, 8)" +
                     where,
                 [&] {
                   refused.replace(
                       [attention](const Tensor& q, const Tensor& k, const Tensor& v) {
                         return attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2));
                       },
                       refused.find(plain.written_out));
                 });
}

TEST_P(FeatureTableKernels, Row19_MemoryGrowsWithTheLengthNotItsSquare) {
  const auto cases = attention_cases();
  const auto model = make<AttentionModel>(cases[1]);
  const auto bytes = [&](bool fused, std::int64_t length) {
    const std::vector<Tensor> inputs = {random({1, length, kHidden})};
    Schedule sch = create_schedule(model, {{"x", inputs[0]}});
    if (fused) cases[1].replace(sch);
    std::size_t result = 0;
    test::program_step(sch, inputs, &result);
    return static_cast<double>(result);
  };
  EXPECT_GT(bytes(false, 512) / bytes(false, 256), 3.2);
  // One bit a score is kept of the dropout mask; it is all that grows with the square.
  EXPECT_LT(bytes(true, 512) / bytes(true, 256), 2.3);
}

// --- row 20 -------------------------------------------------------------------------------------

std::set<std::int32_t> regions_of(const Graph& graph) {
  std::set<std::int32_t> regions;
  for (NodeId id : graph.order()) {
    if (graph.node(id).region != kNone) regions.insert(graph.node(id).region);
  }
  return regions;
}

TEST_P(FeatureTableKernels, Row20_CheckpointAModuleOrEveryMatch) {
  const auto model = make<test::Stack<test::EncoderLayer>>(3, kHidden);
  const std::vector<Tensor> inputs = {random({2, 7, kHidden})};
  Schedule plain = create_schedule(model, {{"x", inputs[0]}});
  const test::StepResults expected = test::program_step(plain, inputs);

  Schedule modules = create_schedule(model, {{"x", inputs[0]}});
  for (const char* path : {"layer.0", "layer.2"}) modules[path].checkpoint();
  EXPECT_EQ(regions_of(modules.graph()).size(), 2U);

  Schedule matches = create_schedule(model, {{"x", inputs[0]}});
  matches.checkpoint(matches.find([](const Tensor& q, const Tensor& k, const Tensor& v) {
    return matmul(dropout(softmax(matmul(q, k.transpose(-2, -1)), -1), 0.1), v);
  }));
  EXPECT_EQ(regions_of(matches.graph()).size(), 3U);  // every match on its own

  Schedule mixed = create_schedule(model, {{"x", inputs[0]}});
  mixed["layer.0"].checkpoint();
  mixed["layer.1.up"].checkpoint();
  mixed.checkpoint(mixed["layer.2"].find([](const Tensor& x) { return gelu(x); }));

  // What the next product reads is computed again too: norms and activations.
  Schedule discarding = create_schedule(model, {{"x", inputs[0]}});
  const auto is_cheap = [](const Node& node) {
    return node.op->name == "layer_norm" || node.op->name == "gelu";
  };
  discarding.checkpoint(discarding.find(is_cheap), {.keep_results = false});
  const auto runs_again = [](const Graph& graph) {
    return std::count_if(graph.order().begin(), graph.order().end(),
                         [&](NodeId id) { return graph.node(id).recomputed; });
  };
  const ModuleTree no_state;
  EXPECT_EQ(runs_again(differentiate(discarding.graph(), no_state).graph), 8);  // not the last norm
  for (Schedule* sch : {&modules, &matches, &mixed, &discarding}) {
    const test::StepResults given = test::program_step(*sch, inputs);
    test::expect_same_step(given, expected, 0);  // bit for bit, dropout on
    EXPECT_TRUE(verify(*sch).ok());
  }
  // The forward pass is marked, not changed.
  Executor run = build(modules);
  EXPECT_TRUE(same_values(run.run(inputs).at(0), Executor(plain.graph()).run(inputs).at(0)));
}

TEST_P(FeatureTableKernels, Row20_CheckpointingEveryLayerHalvesTheMemory) {
  constexpr int kLayers = 12;
  const std::vector<Tensor> inputs = {random({8, 48, kHidden})};
  const auto train = [&](bool checkpoints, std::size_t& bytes) {
    const auto model = make<test::Stack<test::EncoderLayer>>(kLayers, kHidden);
    Schedule sch = create_schedule(model, {{"x", inputs[0]}});
    for (int i = 0; checkpoints && i < kLayers; ++i) {
      sch["layer." + std::to_string(i)].checkpoint();
    }
    TrainingStep step =
        build_training(sch, {.loss = test::distance,
                             .targets = {{"target", inputs[0]}},
                             .optimizer = std::make_shared<nn::AdamW>(model->named_parameters()),
                             .verify = false});
    const std::vector<Tensor> batch = {inputs[0], inputs[0]};
    bytes = step.program(batch).arena_bytes();
    manual_seed(test::kSeed);
    step.run(batch);
    return std::pair(model->state_dict(), test::program_step(sch, inputs));
  };
  std::size_t plain_bytes = 0;
  std::size_t bytes = 0;
  const auto [plain_state, plain] = train(false, plain_bytes);
  const auto [state, given] = train(true, bytes);
  EXPECT_GE(plain_bytes, 2 * bytes) << plain_bytes << " and " << bytes << " bytes";
  test::expect_same_step(given, plain, 0);
  for (const auto& [name, tensor] : plain_state) {
    EXPECT_TRUE(same_values(state.at(name), tensor)) << name;
  }
}

INSTANTIATE_TEST_SUITE_P(Devices, FeatureTableKernels,
                         ::testing::Values(DeviceType::cpu, DeviceType::cuda),
                         [](const auto& device) {
                           return device.param == DeviceType::cpu ? "cpu" : "cuda";
                         });

}  // namespace feature_table_kernels_test
}  // namespace tenon
