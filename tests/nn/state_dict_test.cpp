// Loading state dicts: reports, refusals that change nothing, tied tensors, conversion.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "nn/nn.h"
#include "tests/support/expect_error.h"

namespace tenon {
namespace {

struct Net : nn::Module {
  Net()
      : fc(add<nn::Linear>("fc", 3, 2)),
        head(add<nn::Linear>("head", 2, 3, false)),
        steps(register_buffer("steps", zeros({1}, {DType::int64, kCpu}))) {}
  nn::Child<nn::Linear> fc, head;
  Tensor steps;
};

struct Tied : nn::Module {
  Tied() : wte(add<nn::Embedding>("wte", 4, 2)), lm_head(add<nn::Linear>("lm_head", wte->weight)) {}
  nn::Child<nn::Embedding> wte;
  nn::Child<nn::Linear> lm_head;
};

nn::StateDict clones(const nn::StateDict& state, double offset = 0) {
  nn::StateDict result;
  for (const auto& [name, tensor] : state) {
    Tensor copy = empty(tensor.layout().sizes, {tensor.dtype(), kCpu});
    copy.copy_(tensor);
    if (offset != 0 && is_floating(copy.dtype())) copy = copy + offset;
    result.add(name, copy);
  }
  return result;
}

std::vector<std::vector<double>> values(const nn::StateDict& state) {
  std::vector<std::vector<double>> result;
  for (const auto& [name, tensor] : state) result.push_back(tensor.to_doubles());
  return result;
}

TEST(StateDictContainer, KeepsOrderAndRefusesDuplicates) {
  nn::StateDict state;
  state.add("b", zeros({1}));
  state.add("a", ones({1}));
  EXPECT_EQ(state.begin()->first, "b");
  EXPECT_TRUE(state.contains("a"));
  EXPECT_EQ(state.at("a").to_doubles(), std::vector<double>{1});
  EXPECT_ERROR(ModuleError, "[state_dict] \"a\" is there already", state.add("a", zeros({1})));
  EXPECT_ERROR(ModuleError, "[state_dict] \"c\" is undefined; needed a tensor", state.add("c", {}));
  EXPECT_ERROR(ModuleError, "[state_dict] no tensor \"aa\" among 2; nearest: \"a\", \"b\"",
               state.at("aa"));
}

TEST(LoadStateDict, TakesTensorsOfAnyLayoutIntoWeightsOfAnyLayout) {
  const Tensor whole = zeros({4, 8});
  const auto model = nn::make<nn::Linear>(whole.narrow(1, 2, 4));
  const Tensor values = arange(16).view({4, 4}).transpose(0, 1);
  nn::StateDict state;
  state.add("weight", values);
  model->load_state_dict(state);
  EXPECT_EQ(model->weight.to_doubles(), values.to_doubles());
  EXPECT_EQ(whole.narrow(1, 0, 2).to_doubles(), std::vector<double>(8, 0.0));
  EXPECT_EQ(whole.narrow(1, 6, 2).to_doubles(), std::vector<double>(8, 0.0));
}

TEST(LoadStateDict, ReadsTensorsOfTheModelItselfBeforeItWritesThem) {
  struct Pair : nn::Module {
    Pair()
        : a(register_buffer("a", full({2, 2}, 1))),
          b(register_buffer("b", arange(4).view({2, 2}))) {}
    Tensor a, b;
  };
  const auto pair = nn::make<Pair>();
  nn::StateDict swapped;
  swapped.add("a", pair->b.transpose(0, 1));
  swapped.add("b", pair->a);
  pair->load_state_dict(swapped);
  EXPECT_EQ(pair->a.to_doubles(), (std::vector<double>{0, 2, 1, 3}));
  EXPECT_EQ(pair->b.to_doubles(), std::vector<double>(4, 1.0));
}

TEST(LoadStateDict, CopiesIntoTheExistingStorage) {
  const auto net = nn::make<Net>();
  const void* storage = net->fc->weight.storage().get();
  const nn::StateDict state = clones(net->state_dict(), 1);
  const nn::LoadReport report = net->load_state_dict(state);
  EXPECT_EQ(report.loaded,
            (std::vector<std::string>{"steps", "fc.weight", "fc.bias", "head.weight"}));
  EXPECT_TRUE(report.ok());
  EXPECT_EQ(report.to_string(), "4 loaded");
  EXPECT_EQ(net->fc->weight.storage().get(), storage);
  EXPECT_EQ(values(net->state_dict()), values(state));
}

TEST(LoadStateDict, ListsEveryProblemAndChangesNothing) {
  const auto net = nn::make<Net>();
  nn::StateDict state;
  state.add("fc.weight", ones({3, 2}));  // transposed: same count of values
  state.add("fc.bias", ones({2}));       // fits
  state.add("steps", zeros({1}));        // float32 for int64
  state.add("extra\n", zeros({2}, {DType::float16, kCpu}));
  state.add("bias", zeros({}));
  const auto before = values(net->state_dict());
  EXPECT_ERROR(ModuleError,
               "[load_state_dict] Net cannot take this state dict, nothing was changed:\n"
               "  missing (1): \"head.weight\" float32(3, 2)\n"
               "  unexpected (2): \"extra\\x0a\" float16(2,); \"bias\" float32()\n"
               "  mismatched (2): \"fc.weight\": given float32(3, 2), needed float32(2, 3); "
               "\"steps\": given float32(1,), needed int64(1,)",
               net->load_state_dict(state));
  EXPECT_EQ(values(net->state_dict()), before);
  const nn::LoadReport report = net->check_state_dict(state);
  EXPECT_FALSE(report.ok());
  EXPECT_EQ(report.mismatched.size(), 2U);
  EXPECT_EQ(values(net->state_dict()), before);
}

TEST(LoadStateDict, TensorsWithoutDataAreMismatched) {
  const auto net = nn::make<Net>();
  nn::StateDict state = clones(net->state_dict());
  nn::StateDict spec_only;
  for (const auto& [name, tensor] : state) {
    spec_only.add(name, name == "fc.bias" ? Tensor::symbolic(tensor.spec()) : tensor);
  }
  EXPECT_EQ(net->check_state_dict(spec_only).mismatched.at(0).name, "fc.bias");
}

TEST(LoadStateDict, GlobsAllowWhatTheyName) {
  const auto net = nn::make<Net>();
  nn::StateDict state;
  state.add("fc.weight", ones({2, 3}));
  state.add("fc.bias", ones({2}));
  state.add("old.a", ones({2}));
  state.add("old.b", ones({2}));
  const std::vector<double> head = net->head->weight.to_doubles();
  const nn::LoadReport report = net->load_state_dict(
      state, {.allow_missing = {"head.*", "step?"}, .allow_unexpected = {"old.[ab]"}});
  EXPECT_EQ(report.allowed_missing, (std::vector<std::string>{"steps", "head.weight"}));
  EXPECT_EQ(report.allowed_unexpected, (std::vector<std::string>{"old.a", "old.b"}));
  EXPECT_EQ(report.to_string(), "2 loaded, 2 kept, 2 passed over");
  EXPECT_EQ(net->head->weight.to_doubles(), head);
  EXPECT_EQ(net->fc->bias.to_doubles(), (std::vector<double>{1, 1}));
  // A glob for missing names never excuses a wrong shape.
  nn::StateDict wrong = clones(state);
  wrong.add("head.weight", ones({7}));
  EXPECT_THROW(net->load_state_dict(wrong, {.allow_missing = {"*"}, .allow_unexpected = {"*"}}),
               ModuleError);
}

TEST(LoadStateDict, ConvertsFloatingDtypes) {
  const auto net = nn::make<Net>();
  net->to(DType::bfloat16);
  nn::StateDict state = clones(net->state_dict());
  nn::StateDict wide;
  for (const auto& [name, tensor] : state) {
    wide.add(name, is_floating(tensor.dtype())
                       ? full(tensor.shape(), 1.00390625, {DType::float32, kCpu})  // halfway
                       : tensor);
  }
  const nn::LoadReport report = net->load_state_dict(wide);
  EXPECT_EQ(report.converted.size(), 3U);
  EXPECT_EQ(report.converted[0].given, "float32(2, 3)");
  EXPECT_EQ(report.converted[0].needed, "bfloat16(2, 3)");
  EXPECT_EQ(net->fc->bias.dtype(), DType::bfloat16);
  EXPECT_EQ(net->fc->bias.to_doubles(), (std::vector<double>{1, 1}));  // to even
}

TEST(LoadStateDict, TiedTensorsNeedOneNameAndEqualBits) {
  const auto net = nn::make<Tied>();
  nn::StateDict one;
  one.add("lm_head.weight", ones({4, 2}));
  EXPECT_EQ(net->load_state_dict(one).loaded,
            (std::vector<std::string>{"wte.weight", "lm_head.weight"}));
  EXPECT_EQ(net->wte->weight.to_doubles(), std::vector<double>(8, 1.0));

  const double nan = std::numeric_limits<double>::quiet_NaN();
  nn::StateDict equal;  // NaN is the same bits as NaN
  equal.add("wte.weight", full({4, 2}, nan));
  equal.add("lm_head.weight", full({4, 2}, nan));
  EXPECT_EQ(net->load_state_dict(equal).loaded.size(), 2U);

  nn::StateDict different;
  different.add("wte.weight", zeros({4, 2}));
  different.add("lm_head.weight", full({4, 2}, -0.0));
  EXPECT_ERROR(ModuleError,
               "[load_state_dict] Tied cannot take this state dict, nothing was changed:\n"
               "  conflicting (1): \"lm_head.weight\": given other values than \"wte.weight\", "
               "needed the same, as both name one tensor",
               net->load_state_dict(different));
  EXPECT_TRUE(std::isnan(net->wte->weight.to_doubles()[0]));
  EXPECT_ERROR(ModuleError,
               "[load_state_dict] Tied cannot take this state dict, nothing was changed:\n"
               "  missing (2): \"wte.weight\" float32(4, 2); \"lm_head.weight\" float32(4, 2)",
               net->load_state_dict({}));
}

TEST(LoadStateDict, FromStridedAndOwnTensors) {
  const auto net = nn::make<Net>();
  nn::StateDict state = clones(net->state_dict());
  nn::StateDict strided;
  for (const auto& [name, tensor] : state) {
    strided.add(name, name == "fc.weight"
                          ? tenon::tensor({1, 2, 3, 4, 5, 6}, {3, 2}).transpose(0, 1)
                          : tensor);
  }
  net->load_state_dict(strided);
  EXPECT_EQ(net->fc->weight.to_doubles(), (std::vector<double>{1, 3, 5, 2, 4, 6}));
  net->load_state_dict(net->state_dict());  // onto itself
  EXPECT_EQ(net->fc->weight.to_doubles(), (std::vector<double>{1, 3, 5, 2, 4, 6}));
}

}  // namespace
}  // namespace tenon
