// Modules: printing, registration, names, modes, conversion, hooks, calls and initial values.
// Loading state dicts is in state_dict_test.cpp.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <sstream>
#include <tuple>

#include "examples/attention_model.h"
#include "nn/nn.h"
#include "tests/support/expect_error.h"

namespace tenon {
namespace {

using tutorial::Attention;

template <class Pairs>
std::vector<std::string> names_of(const Pairs& pairs) {
  std::vector<std::string> names;
  for (const auto& entry : pairs) names.push_back(entry.first);
  return names;
}

// Opens what a derived class would use.
struct Open : nn::Module {
  using Module::add;
  using Module::register_buffer;
  using Module::register_module;
  using Module::register_parameter;
  Tensor forward(const Tensor& x) { return x; }
};

TEST(ModulePrint, SeedTreeCharacterForCharacter) {
  const auto model = nn::make<Attention>(1024, 16);
  const std::string expected =
      R"(Attention(
  (self_attn): SelfAttention(
    (q_proj): Linear(in_features=1024, out_features=1024, bias=True)
    (k_proj): Linear(in_features=1024, out_features=1024, bias=True)
    (v_proj): Linear(in_features=1024, out_features=1024, bias=True)
    (dropout): Dropout(p=0.1, inplace=False)
  )
  (proj): Projection(
    (dense): Linear(in_features=1024, out_features=1024, bias=True)
    (dropout): Dropout(p=0.1, inplace=False)
    (layer_norm): LayerNorm((1024,), eps=1e-05, elementwise_affine=True)
  )
))";
  EXPECT_EQ(model->to_string(), expected);
  std::ostringstream stream;
  stream << model;
  EXPECT_EQ(stream.str(), expected);
}

TEST(ModulePrint, Layers) {
  const std::vector<std::pair<nn::Child<nn::Module>, std::string>> cases = [] {
    std::vector<std::pair<nn::Child<nn::Module>, std::string>> list;
    const auto add = [&](std::shared_ptr<nn::Module> module, const char* text) {
      list.emplace_back(nn::Child<nn::Module>(std::move(module)), text);
    };
    add(nn::make<nn::Linear>(4, 3, false), "Linear(in_features=4, out_features=3, bias=False)");
    add(nn::make<nn::Dropout>(0.0), "Dropout(p=0.0, inplace=False)");
    add(nn::make<nn::Dropout>(1.0), "Dropout(p=1.0, inplace=False)");
    add(nn::make<nn::LayerNorm>(std::vector<std::int64_t>{2, 3}, 1e-12),
        "LayerNorm((2, 3), eps=1e-12, elementwise_affine=True)");
    add(nn::make<nn::LayerNorm>(8, 0.5, false),
        "LayerNorm((8,), eps=0.5, elementwise_affine=False)");
    add(nn::make<nn::Embedding>(10, 3), "Embedding(10, 3)");
    add(nn::make<nn::Identity>(), "Identity()");
    add(nn::make<nn::ReLU>(), "ReLU()");
    add(nn::make<nn::GELU>(), "GELU(approximate='none')");
    add(nn::make<nn::GELU>(Approximate::tanh), "GELU(approximate='tanh')");
    add(nn::make<nn::Print>("hidden"), "Print(label='hidden')");
    add(nn::make<nn::SiLU>(), "SiLU()");
    add(nn::make<nn::Tanh>(), "Tanh()");
    add(nn::make<nn::Sigmoid>(), "Sigmoid()");
    add(nn::make<nn::Softmax>(-1), "Softmax(dim=-1)");
    add(nn::make<nn::Sequential>(), "Sequential()");
    add(nn::make<nn::ModuleList<nn::Linear>>(), "ModuleList()");
    return list;
  }();
  for (const auto& [module, text] : cases) EXPECT_EQ(module->to_string(), text);
}

struct Block : nn::Module {
  explicit Block(std::int64_t size)
      : net(add<nn::Sequential>("net", nn::make<nn::Linear>(size, size), nn::make<nn::ReLU>())) {}
  Tensor forward(const Tensor& x) const { return net(x); }
  nn::Child<nn::Sequential> net;
};

TEST(ModulePrint, ModuleListFoldsEqualNeighbours) {
  const auto list = nn::make<nn::ModuleList<Block>>();
  for (std::int64_t size : {2, 2, 2, 3, 2, 2}) list->emplace_back(size);
  // As torch 2.x prints it.
  EXPECT_EQ(list->to_string(), R"(ModuleList(
  (0-2): 3 x Block(
    (net): Sequential(
      (0): Linear(in_features=2, out_features=2, bias=True)
      (1): ReLU()
    )
  )
  (3): Block(
    (net): Sequential(
      (0): Linear(in_features=3, out_features=3, bias=True)
      (1): ReLU()
    )
  )
  (4-5): 2 x Block(
    (net): Sequential(
      (0): Linear(in_features=2, out_features=2, bias=True)
      (1): ReLU()
    )
  )
))");
}

struct TwoLines : nn::Module {
  std::string extra_repr() const override { return "first=1\nsecond=2"; }
};

TEST(ModulePrint, TypeNames) {
  struct Local : nn::Module {};
  EXPECT_EQ(nn::make<Local>()->type_name(), "Local");
  EXPECT_EQ(nn::make<nn::ModuleList<nn::ModuleList<Block>>>()->type_name(), "ModuleList");
  EXPECT_EQ(nn::make<TwoLines>()->to_string(), "TwoLines(\n  first=1\n  second=2\n)");
}

TEST(ModuleRegistration, RefusesBadNamesAndValues) {
  const auto module = nn::make<Open>();
  module->register_parameter("w", zeros({2}));
  module->register_buffer("b", zeros({2}));
  module->add<nn::Identity>("m");
  EXPECT_ERROR(ModuleError, "[register_parameter] the name is empty; needed a name",
               module->register_parameter("", zeros({2})));
  EXPECT_ERROR(
      ModuleError,
      "[register_parameter] the name \"a.b\" holds a dot; dots separate the names of a path",
      module->register_parameter("a.b", zeros({2})));
  EXPECT_ERROR(ModuleError, "[register_parameter] the name \"w\" is taken by a parameter",
               module->register_parameter("w", zeros({2})));
  EXPECT_ERROR(ModuleError, "[register_module] the name \"b\" is taken by a buffer",
               module->add<nn::Identity>("b"));
  EXPECT_ERROR(ModuleError, "[register_buffer] the name \"m\" is taken by a module",
               module->register_buffer("m", zeros({2})));
  EXPECT_ERROR(ModuleError, "[register_parameter] \"x\" is undefined; needed a tensor",
               module->register_parameter("x", Tensor()));
  EXPECT_ERROR(
      ModuleError,
      "[register_parameter] \"x\" is float32(2, 3) without data; needed a tensor with data",
      module->register_parameter("x", Tensor::symbolic({DType::float32, {2, 3}, kCpu})));
  EXPECT_ERROR(
      ModuleError,
      "[register_parameter] \"x\" is int64(2,); needed a floating dtype (others are buffers)",
      module->register_parameter("x", zeros({2}, {DType::int64, kCpu})));
  EXPECT_ERROR(ModuleError, "[register_module] \"x\" is null; needed a module",
               module->register_module("x", std::shared_ptr<nn::Linear>()));
  EXPECT_ERROR(ModuleError, "[register_module] the name \"\\x0a\" is taken by a module",
               (module->add<nn::Identity>("\n"), module->add<nn::Identity>("\n")));
  EXPECT_EQ(names_of(module->named_children()), (std::vector<std::string>{"m", "\n"}));
}

TEST(ModuleRegistration, RefusesCycles) {
  const auto outer = nn::make<Open>();
  const auto inner = nn::make<Open>();
  outer->register_module("inner", inner);
  EXPECT_ERROR(ModuleError,
               "[register_module] \"outer\" would contain itself, as \"inner\" of the new child",
               inner->register_module("outer", outer));
  EXPECT_ERROR(ModuleError,
               "[register_module] \"me\" would contain itself, as \"\" of the new child",
               outer->register_module("me", outer));
}

TEST(ModuleNames, AreOrderedAndDotted) {
  const auto model = nn::make<Attention>(8, 2);
  EXPECT_EQ(names_of(model->named_parameters()),
            (std::vector<std::string>{"self_attn.q_proj.weight", "self_attn.q_proj.bias",
                                      "self_attn.k_proj.weight", "self_attn.k_proj.bias",
                                      "self_attn.v_proj.weight", "self_attn.v_proj.bias",
                                      "proj.dense.weight", "proj.dense.bias",
                                      "proj.layer_norm.weight", "proj.layer_norm.bias"}));
  EXPECT_EQ(names_of(model->named_modules()),
            (std::vector<std::string>{"", "self_attn", "self_attn.q_proj", "self_attn.k_proj",
                                      "self_attn.v_proj", "self_attn.dropout", "proj", "proj.dense",
                                      "proj.dropout", "proj.layer_norm"}));
  EXPECT_EQ(names_of(model->named_children()), (std::vector<std::string>{"self_attn", "proj"}));
  EXPECT_EQ(&model->submodule("proj.dense"), model->proj->dense.get());
  EXPECT_EQ(&model->submodule(""), model.get());
  EXPECT_TRUE(model->parameter("proj.dense.bias").is_same(model->proj->dense->bias));
}

TEST(ModuleNames, BuffersAndParametersAreInterleavedByModule) {
  const auto model = nn::make<Open>();
  model->add<nn::Linear>("fc", 2, 2, false);
  model->register_buffer("steps", zeros({1}, {DType::int64, kCpu}));
  model->register_buffer("scratch", zeros({1}), false);
  model->register_parameter("scale", ones({1}));
  EXPECT_EQ(names_of(model->state_dict()),
            (std::vector<std::string>{"scale", "steps", "fc.weight"}));
  EXPECT_EQ(names_of(model->named_buffers()), (std::vector<std::string>{"steps", "scratch"}));
  EXPECT_EQ(model->buffer("steps").dtype(), DType::int64);
}

TEST(ModuleNames, UnknownPathsNameTheNearest) {
  const auto model = nn::make<Attention>(8, 2);
  EXPECT_ERROR(ModuleError,
               "[submodule] Attention has no submodule \"self_attn.q_prj\"; nearest: "
               "\"self_attn.q_proj\", \"self_attn.k_proj\", \"self_attn.v_proj\"",
               model->submodule("self_attn.q_prj"));
  EXPECT_ERROR(ModuleError,
               "[parameter] Attention has no parameter \"proj.dense.weigth\"; nearest: "
               "\"proj.dense.weight\", \"proj.dense.bias\", \"proj.layer_norm.weight\"",
               model->parameter("proj.dense.weigth"));
  EXPECT_ERROR(ModuleError, "[buffer] Attention has no buffer \"x\"", model->buffer("x"));
  for (const char* path : {".", "proj.", ".proj", "proj..dense", "proj.dense."}) {
    EXPECT_THROW(model->submodule(path), ModuleError) << path;
    EXPECT_THROW(model->parameter(path), ModuleError) << path;
  }
  EXPECT_THROW(model->parameter(".weight"), ModuleError);
  EXPECT_THROW(model->parameter(""), ModuleError);
}

TEST(ModuleNames, SharedModulesAndTensorsAreListedOnce) {
  const auto model = nn::make<Open>();
  const auto shared = nn::make<nn::Linear>(2, 2);
  model->register_module("a", shared);
  model->register_module("b", shared);
  model->add<nn::Linear>("c", shared->weight);
  EXPECT_EQ(names_of(model->named_parameters()), (std::vector<std::string>{"a.weight", "a.bias"}));
  EXPECT_EQ(names_of(model->named_parameters(true)),
            (std::vector<std::string>{"a.weight", "a.bias", "b.weight", "b.bias", "c.weight"}));
  EXPECT_EQ(names_of(model->named_modules()), (std::vector<std::string>{"", "a", "c"}));
  EXPECT_EQ(names_of(model->named_modules(true)), (std::vector<std::string>{"", "a", "b", "c"}));
}

TEST(ModuleMode, TrainAndEvalReachEveryModule) {
  const auto model = nn::make<Attention>(8, 2);
  const auto all = [&](bool training) {
    const auto modules = model->named_modules();
    return std::all_of(modules.begin(), modules.end(),
                       [&](const auto& entry) { return entry.second->training() == training; });
  };
  EXPECT_TRUE(all(true));
  model->eval();
  EXPECT_TRUE(all(false));
  model->train();
  EXPECT_TRUE(all(true));
}

TEST(ModuleMode, DropoutFollowsItsModule) {
  const auto layer = nn::make<nn::Dropout>(0.5);
  const Tensor x = ones({64, 64});
  layer->eval();
  EXPECT_EQ(layer(x).to_doubles(), x.to_doubles());
  layer->train();
  const std::vector<double> y = layer(x).to_doubles();
  const auto zeros_in_y = std::count(y.begin(), y.end(), 0.0);
  EXPECT_NEAR(static_cast<double>(zeros_in_y), 2048, 200);  // more than 6 standard deviations
  EXPECT_EQ(std::count(y.begin(), y.end(), 2.0), 4096 - zeros_in_y);
  EXPECT_ERROR(ValueError, "[Dropout] p is 1.5; needed 0 <= p <= 1", nn::Dropout(1.5));
  EXPECT_THROW(nn::Dropout(std::nan("")), ValueError);
}

TEST(ModuleTo, ConvertsFloatingTensorsInPlace) {
  const auto model = nn::make<Open>();
  const auto fc = model->add<nn::Linear>("fc", 3, 2);
  const auto tied = model->add<nn::Linear>("tied", fc->weight);
  const Tensor steps = model->register_buffer("steps", full({1}, 7, {DType::int64, kCpu}));
  const Tensor mean = model->register_buffer("mean", full({1}, 0.1));
  const std::vector<double> before = fc->weight.to_doubles();
  model->to(DType::float64);
  EXPECT_EQ(fc->weight.dtype(), DType::float64);
  EXPECT_EQ(mean.dtype(), DType::float64);
  EXPECT_EQ(steps.dtype(), DType::int64);
  EXPECT_EQ(fc->weight.to_doubles(), before);
  EXPECT_TRUE(fc->weight.is_same(tied->weight));
  EXPECT_EQ(fc->weight.storage(), tied->weight.storage());
  model->to(kCpu, DType::bfloat16);
  EXPECT_EQ(fc->bias.dtype(), DType::bfloat16);
  EXPECT_EQ(mean.to_doubles(), std::vector<double>{0.10009765625});
  EXPECT_ERROR(DTypeError, "[to] given int64; needed a floating dtype", model->to(DType::int64));
}

TEST(ModuleTo, WithoutThatDeviceNothingChanges) {
  const auto layer = nn::make<nn::Linear>(2, 2);
  const std::vector<double> before = layer->weight.to_doubles();
  EXPECT_THROW(layer->to(Device{DeviceType::cuda, 1000}), DeviceError);
  EXPECT_TRUE(layer->weight.device().is_cpu());
  EXPECT_EQ(layer->weight.to_doubles(), before);
}

TEST(ModuleGrad, TiedNamesShareTheFrozenMark) {
  const auto model = nn::make<Open>();
  const auto a = model->add<nn::Linear>("a", 2, 2);
  const auto b = model->add<nn::Linear>("b", a->weight);
  EXPECT_TRUE(b->weight.impl()->requires_grad);
  a->requires_grad_(false);
  EXPECT_FALSE(b->weight.impl()->requires_grad);
  model->requires_grad_();
  EXPECT_TRUE(b->weight.impl()->requires_grad);
}

TEST(ModuleHooks, RunAroundForwardAndMayReplaceTensors) {
  const auto layer = nn::make<nn::Identity>();
  std::string log;
  EXPECT_FALSE(layer->has_hooks());
  auto before = layer->register_forward_pre_hook([&](nn::Module& module, std::span<Tensor> inputs) {
    log += "pre(" + module.type_name() + ") ";
    inputs[0] = inputs[0] + 1.0;
  });
  auto after = layer->register_forward_hook(
      [&](nn::Module&, std::span<const Tensor> inputs, std::span<Tensor> outputs) {
        log += "post ";
        EXPECT_EQ(inputs[0].to_doubles(), std::vector<double>{2});
        outputs[0] = outputs[0] * 10.0;
      });
  EXPECT_TRUE(layer->has_hooks());
  EXPECT_EQ(layer(ones({1})).to_doubles(), std::vector<double>{20});
  EXPECT_EQ(log, "pre(Identity) post ");
  before.remove();
  before.remove();
  EXPECT_TRUE(layer->has_hooks());
  after.remove();
  EXPECT_FALSE(layer->has_hooks());
  EXPECT_EQ(layer(ones({1})).to_doubles(), std::vector<double>{1});
  EXPECT_ERROR(ModuleError, "[register_forward_hook] the hook is empty",
               layer->register_forward_hook(nullptr));
}

TEST(ModuleHooks, MayRemoveThemselvesAndOutliveTheModule) {
  auto layer = nn::make<nn::Identity>();
  int calls = 0;
  nn::HookHandle handle;
  handle = layer->register_forward_pre_hook([&](nn::Module&, std::span<Tensor>) {
    ++calls;
    handle.remove();
  });
  layer(ones({1}));
  layer(ones({1}));
  EXPECT_EQ(calls, 1);
  nn::HookHandle late = layer->register_forward_pre_hook([](nn::Module&, std::span<Tensor>) {});
  layer = {};
  late.remove();
}

// Runs calls eagerly and notes the module calls around them.
class Recorder : public Interpreter {
 public:
  std::vector<Tensor> apply(const Op& op, std::span<const Tensor> inputs,
                            const Attrs& attrs) override {
    log += op.name + " ";
    return apply_eager(op, inputs, attrs);
  }
  void enter_module(const ModuleFrame& frame, std::span<const Tensor> inputs) override {
    modules.push_back(frame.module);
    log += *frame.type + (frame.training ? "" : "/eval") + (frame.has_hooks ? "/hooked" : "") +
           "(" + std::to_string(inputs.size()) + " ";
  }
  void exit_module(const ModuleFrame&, std::span<const Tensor> outputs) override {
    log += ")" + std::to_string(outputs.size()) + " ";
  }
  std::string log;
  std::vector<const void*> modules;
};

TEST(ModuleCall, InterpretersSeeEveryModuleCall) {
  const auto model = nn::make<tutorial::Projection>(4);
  model->eval();
  model->dense->register_forward_pre_hook([](nn::Module&, std::span<Tensor>) {});
  Recorder recorder;
  {
    const InterpreterGuard guard(recorder);
    model(ones({2, 4}), ones({2, 4}));
  }
  EXPECT_EQ(recorder.log,
            "Projection/eval(2 Linear/eval/hooked(1 linear )1 Dropout/eval(1 dropout )1 add "
            "LayerNorm/eval(1 layer_norm )1 )1 ");
  EXPECT_EQ(recorder.modules[0], static_cast<const nn::Module*>(model.get()));
  EXPECT_EQ(recorder.modules[1], static_cast<const nn::Module*>(model->dense.get()));
}

struct ManyResults : nn::Module {
  std::tuple<Tensor, std::vector<Tensor>> forward(const std::vector<Tensor>& xs, double factor,
                                                  const Tensor& y) const {
    return {y * factor, xs};
  }
};

struct Throwing : nn::Module {
  Tensor forward(const Tensor&) const { throw ValueError("no"); }
};

TEST(ModuleCall, TensorsInVectorsAndTuplesAreReported) {
  const auto model = nn::make<ManyResults>();
  std::size_t inputs_seen = 0, outputs_seen = 0;
  model->register_forward_hook(
      [&](nn::Module&, std::span<const Tensor> inputs, std::span<Tensor> outputs) {
        inputs_seen = inputs.size();
        outputs_seen = outputs.size();
        outputs[2] = zeros({1});
      });
  const auto [scaled, rest] = model(std::vector<Tensor>{ones({1}), ones({2})}, 3, ones({1}));
  EXPECT_EQ(inputs_seen, 3U);
  EXPECT_EQ(outputs_seen, 3U);
  EXPECT_EQ(scaled.to_doubles(), std::vector<double>{3});
  EXPECT_EQ(rest[0].to_doubles(), std::vector<double>{1});
  EXPECT_EQ(rest[1].to_doubles(), std::vector<double>{0});
}

TEST(ModuleCall, ByNumberOfTensors) {
  const auto model = nn::make<tutorial::Projection>(2);
  model->eval();
  const std::vector<Tensor> inputs{ones({1, 2}), ones({1, 2})};
  EXPECT_EQ(model.call(inputs).at(0).to_doubles(), model(inputs[0], inputs[1]).to_doubles());
  EXPECT_ERROR(ModuleError,
               "[module] Projection was called with 1 tensors; its forward does not take that many",
               model.call(std::span(inputs).first(1)));
}

TEST(ModuleCall, ScopesEndWhenForwardThrows) {
  EXPECT_THROW(nn::make<Throwing>()(ones({1})), ValueError);
  EXPECT_EQ(current_module(), nullptr);
  EXPECT_ERROR(ModuleError,
               "[module] used an empty Child<Linear>; needed one made by add() or make()",
               nn::Child<nn::Linear>()(ones({1})));
}

TEST(Layers, ComputeWhatTheirNamesSay) {
  const auto linear =
      nn::make<nn::Linear>(tensor({1, 2, 3, 4, 5, 6}, {2, 3}), tensor({10, 20}, {2}));
  EXPECT_EQ(linear(tensor({1, 1, 1}, {1, 3})).to_doubles(), (std::vector<double>{16, 35}));
  const auto embedding = nn::make<nn::Embedding>(4, 2);
  const Tensor rows = embedding(from_vector<std::int64_t>({3, 0}, {2}));
  const std::vector<double> all = embedding->weight.to_doubles();
  EXPECT_EQ(rows.to_doubles(), (std::vector<double>{all[6], all[7], all[0], all[1]}));
  const auto net = nn::make<nn::Sequential>(linear, nn::make<nn::ReLU>());
  net->push_back(nn::make<nn::Softmax>(-1));
  EXPECT_EQ(net->size(), 3U);
  EXPECT_EQ((*net)[1].type_name(), "ReLU");
  const std::vector<double> y = net(tensor({-100, 1, 1}, {1, 3})).to_doubles();  // relu gives 0, 0
  EXPECT_EQ(y, (std::vector<double>{0.5, 0.5}));
  EXPECT_ERROR(ModuleError, "[Sequential] index 3 is outside [0, 3)", (*net)[3]);
  const auto list = nn::make<nn::ModuleList<nn::ReLU>>();
  EXPECT_ERROR(ModuleError, "[ModuleList] index -1 is outside [0, 0)", (*list)[-1]);
}

TEST(Layers, RefuseBadArguments) {
  EXPECT_ERROR(ValueError, "[Linear] in_features is -1; needed at least 0", nn::Linear(-1, 2));
  EXPECT_ERROR(ValueError, "[Embedding] embedding_dim is -2; needed at least 0",
               nn::Embedding(1, -2));
  EXPECT_ERROR(ValueError, "[LayerNorm] normalized_shape is empty; needed one size or more",
               nn::LayerNorm(std::vector<std::int64_t>{}));
  EXPECT_ERROR(ShapeError,
               "[Linear] the weight is float32(2,); needed a matrix (out_features, in_features)",
               nn::Linear(zeros({2})));
  EXPECT_ERROR(ShapeError, "[Linear] the bias is float32(3,); needed (2,) to fit the weight",
               nn::Linear(zeros({2, 3}), zeros({3})));
}

TEST(Layers, InitialValuesAreUniformInOneOverRootFanIn) {
  Generator generator(5), again(5);
  const nn::Linear layer(256, 64, true, {}, &generator);
  const nn::Linear same(256, 64, true, {}, &again);
  EXPECT_EQ(layer.weight.to_doubles(), same.weight.to_doubles());
  for (const Tensor& t : {layer.weight, layer.bias}) {
    const std::vector<double> values = t.to_doubles();
    const auto [low, high] = std::minmax_element(values.begin(), values.end());
    EXPECT_GE(*low, -1.0 / 16);
    EXPECT_LE(*high, 1.0 / 16);
    EXPECT_LT(*low, -0.85 / 16);
    EXPECT_GT(*high, 0.85 / 16);
  }
  double sum = 0, squares = 0;
  for (double v : layer.weight.to_doubles()) {
    sum += v;
    squares += v * v;
  }
  EXPECT_NEAR(sum / 16384, 0, 0.0015);              // 5 standard deviations
  EXPECT_NEAR(squares / 16384 * 256 * 3, 1, 0.04);  // variance of U(-b, b) is b²/3
  EXPECT_EQ(nn::Linear(0, 3).bias.to_doubles(), (std::vector<double>{0, 0, 0}));
}

TEST(Layers, EmbeddingStartsStandardNormal) {
  Generator generator(1);
  double sum = 0, squares = 0;
  for (double v : nn::Embedding(100, 100, {}, &generator).weight.to_doubles()) {
    sum += v;
    squares += v * v;
  }
  EXPECT_NEAR(sum / 1e4, 0, 0.05);
  EXPECT_NEAR(squares / 1e4, 1, 0.08);
}

}  // namespace
}  // namespace tenon
