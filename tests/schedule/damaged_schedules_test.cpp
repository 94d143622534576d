// Saved schedules with a few values changed at random: each loads into a Graph that verifies, or is refused
// with a ScheduleError that leaves the schedule as it was. TENON_DAMAGES sets how many are tried of each,
// TENON_FIRST the first seed.
#include <gtest/gtest.h>

#include <cstdlib>
#include <nlohmann/json.hpp>
#include <random>

#include "examples/attention_model.h"
#include "examples/gpt_schedule.h"
#include "graph/verify.h"
#include "schedule/saving/attr_json.h"
#include "schedule/schedule_json.h"
#include "schedule/schedules.h"
#include "schedule/training.h"
#include "tests/support/attention_pattern.h"
#include "tests/support/capture_print.h"
#include "tests/support/models.h"

namespace tenon {
namespace damaged_schedules_test {

using nlohmann::json;
using T = const Tensor&;

constexpr std::int64_t kHidden = 8;

/// A schedule to save: its model, one batch, what is applied.
struct Saved {
  const char* name;
  Schedule (*trace)(const std::vector<Tensor>& batch);
  std::vector<Tensor> (*batch)();
  void (*apply)(Schedule& sch);
};

Schedule tutorial_block(const std::vector<Tensor>& batch) {
  return create_schedule(nn::make<tutorial::Attention>(kHidden, 2), {{"hidden_states", batch[0]}});
}
std::vector<Tensor> hidden_states() { return {randn({2, 5, kHidden})}; }

void apply_tutorial(Schedule& sch) {
  sch.annotate("self_attn.q_proj.weight", "placement", "packed");
  sch.replace(nn::make<tutorial::FusedQKV>(kHidden, 2), sch.find(test::qkv_pattern(2)));
  sch.replace(nn::make<tutorial::FlashAttention>(), sch.find(tutorial::scaled_dot_product),
              {.concrete_args = {{"attention_mask", std::monostate{}}, {"p", 0.1}}});
  sch["proj"]["dense"].decompose();
  sch["proj"].trace({.flatten = true});
  sch["proj"].fuse(sch["proj"].find([](T x, T bias, T residual, T weight, T norm_bias) {
    return layer_norm(dropout(x + bias, 0.1) + residual, weight, norm_bias);
  }),
                   {.name = "FusedLayerNorm"});
  sch["self_attn"].checkpoint();
  sch.bind(sch["proj"].find([](T x, T w) { return linear(x, w); }), "cpu.gemm");
  sch["proj"].print("shown");
}

gpt::GptOptions small_gpt() {
  return {.vocabulary = 11, .context = 6, .layers = 2, .hidden = kHidden, .heads = 2};
}

Schedule gpt_model(const std::vector<Tensor>& batch) {
  return create_schedule(nn::make<gpt::Gpt>(small_gpt()), {{"tokens", batch[0]}});
}
std::vector<Tensor> tokens() {
  return {from_vector(std::vector<std::int64_t>{1, 2, 3, 4, 5, 6}, {2, 3})};
}

void apply_gpt(Schedule& sch) {
  gpt::schedule_gpt(sch, small_gpt());
  sch["blocks.0"].checkpoint({.keep_results = false});
}

void apply_ready_made(Schedule& sch) { schedules::gpt(sch); }

/// Statistics that a run writes, a constant, a draw.
struct Noisy : nn::Module {
  Noisy()
      : conv(add<nn::Conv2d>("conv", 3, 4, 3)),
        norm(add<nn::BatchNorm2d>("norm", 4)),
        act(add<nn::ReLU>("act")) {}
  Tensor forward(T x) const {
    const Tensor y = act(norm(conv(x)));
    return relu(y * tensor({0.5}, {1})) + narrow(y, -1, 0, 1) + randn({1});
  }
  nn::Child<nn::Conv2d> conv;
  nn::Child<nn::BatchNorm2d> norm;
  nn::Child<nn::ReLU> act;
};

struct Scaled : nn::Module {
  Scaled() : gain(register_parameter("gain", ones({1}))) {}
  Tensor forward(T x) const { return relu(x * gain) * tensor({2.0}, {1}); }
  Tensor gain;
};

Schedule noisy(const std::vector<Tensor>& batch) {
  return create_schedule(nn::make<Noisy>(), {{"x", batch[0]}});
}
std::vector<Tensor> images() { return {randn({2, 3, 6, 6})}; }

void apply_noisy(Schedule& sch) {
  sch["norm"].replace(nn::make<nn::BatchNorm2d>(4));
  sch["act"].replace(nn::make<Scaled>(), {.weights = {{"gain", fresh()}}});
  sch.checkpoint(sch.find([](const Node& node) { return node.op->name == "conv2d"; }));
}

Schedule cross_attention(const std::vector<Tensor>& batch) {
  return create_schedule(nn::make<test::CrossAttention>(kHidden, 2),
                         {{"x", batch[0]}, {"memory", batch[1]}});
}
std::vector<Tensor> two_sequences() { return {randn({2, 4, kHidden}), randn({2, 3, kHidden})}; }

void apply_cross(Schedule& sch) {
  sch.fuse_parallel(sch.find("k_proj|v_proj"));
  const auto written_out = [](T q, T k, T v) {
    return matmul(softmax(matmul(q, k.transpose(-2, -1)) / sqrt(q.size(-1)), -1), v);
  };
  sch.replace([](T q, T k, T v) { return scaled_dot_product_attention(q, k, v, {}); },
              sch.find(written_out));
  sch.bind(
      sch.find([](const Node& node) { return node.op->name == "scaled_dot_product_attention"; }),
      "decomposition");
}

/// Changes a JSON tree in places drawn from a seed.
class Vandal {
 public:
  Vandal(json& root, unsigned seed) : root_(root), random_(seed) {}

  std::string damage() {
    const int times = 1 + (one_in(3) ? 1 : 0) + (one_in(6) ? 2 : 0);
    for (int i = 0; i < times; ++i) damage_once();
    return what_;
  }

 private:
  int below(std::size_t n) {
    return std::uniform_int_distribution<int>(0, static_cast<int>(n) - 1)(random_);
  }
  bool one_in(int n) { return below(n) == 0; }

  /// A place anywhere in the tree, for the most part in what the steps did.
  json& place() {
    json* at = &root_;
    if (!one_in(12) && root_.is_object() && root_.contains("steps") && root_["steps"].is_array() &&
        !root_["steps"].empty()) {
      json& steps = root_["steps"];
      at = &steps[below(steps.size())];
      if (!one_in(10) && at->is_object() && at->contains("edit")) at = &(*at)["edit"];
    }
    while (at->is_structured() && !at->empty() && !one_in(7)) {
      auto child = at->begin();
      std::advance(child, below(at->size()));
      at = &*child;
    }
    return *at;
  }

  void damage_once() {
    json& at = place();
    switch (below(6)) {
      case 0: return remove_from(at);
      case 1: return copy_within(at);
      case 2: {
        json& other = place();
        const json copy = other;
        note("copy", at, copy);
        at = copy;
        return;
      }
      case 3: {
        json other = any_value();
        note("other type", at, other);
        at = std::move(other);
        return;
      }
      default: return alter(at);
    }
  }

  void note(const char* how, const json& from, const json& to) {
    what_ += std::string(how) + ": " + from.dump().substr(0, 160) + " -> " +
             to.dump().substr(0, 160) + "\n";
  }

  void remove_from(json& at) {
    if (!at.is_structured() || at.empty()) return alter(at);
    auto child = at.begin();
    std::advance(child, below(at.size()));
    note("remove", *child, at.is_object() ? json(child.key()) : json());
    at.erase(child);
  }

  void copy_within(json& at) {
    if (!at.is_array() || at.empty()) return alter(at);
    const json copy = at[below(at.size())];
    note("insert", json(), copy);
    at.insert(at.begin() + below(at.size() + 1), copy);
  }

  json any_value() {
    switch (below(9)) {
      case 0: return nullptr;
      case 1: return true;
      case 2: return any_number();
      case 3: return any_string();
      case 4: return json::array();
      case 5: return json::object();
      case 6: return json::array({any_number(), any_string()});
      case 7: return json::object({{any_string(), any_number()}});
      default: return any_attributes();
    }
  }

  json any_number() {
    static const std::vector<json> kNumbers = {0,
                                               1,
                                               -1,
                                               2,
                                               7,
                                               40,
                                               1000,
                                               -1000,
                                               2147483647,
                                               -2147483648LL,
                                               2147483648LL,
                                               4294967296LL,
                                               9223372036854775807LL,
                                               std::numeric_limits<std::int64_t>::min(),
                                               18446744073709551615ULL,
                                               1099511627776LL,
                                               4611686018427387904LL,
                                               0.5,
                                               -0.25,
                                               1e300,
                                               -1e300,
                                               1e-320,
                                               3.0};
    return one_in(3) ? json(below(80)) : kNumbers[static_cast<std::size_t>(below(kNumbers.size()))];
  }

  std::string any_string() {
    static const std::vector<std::string> kStrings = {"",
                                                      "n",
                                                      "i",
                                                      "%",
                                                      "n-1",
                                                      "n0:-1",
                                                      "n0:1",
                                                      "n99999999999999999999",
                                                      "i99999999999999999999",
                                                      "i-1",
                                                      "nx",
                                                      "i 0",
                                                      "n1:9999999999",
                                                      "nan",
                                                      "inf",
                                                      "-inf",
                                                      "s0",
                                                      "s1",
                                                      "s0*s1",
                                                      "s0 - 9",
                                                      "s0*9223372036854775807",
                                                      "((s0)//(0))",
                                                      "((s0)//(2))",
                                                      "-9223372036854775808",
                                                      "s0 + s0 + s0",
                                                      "s77",
                                                      "1*(s0)^0.5",
                                                      "1*(s0)^1e300",
                                                      "0*(s0 - 2)^-1",
                                                      "(((",
                                                      "cuda:7",
                                                      "cpu",
                                                      "cpu:-1",
                                                      "float64",
                                                      "float16",
                                                      "int8",
                                                      "bool",
                                                      "no",
                                                      "decomposition",
                                                      "cpu.flash",
                                                      "cpu.gemm",
                                                      "train",
                                                      "eval",
                                                      "follow",
                                                      "\xc3\xa9",
                                                      "%x",
                                                      "parameter",
                                                      "buffer",
                                                      "constant",
                                                      "input",
                                                      "AAAA",
                                                      "====",
                                                      "AAAAAAAAAAA=",
                                                      "proj",
                                                      "self_attn"};
    switch (below(5)) {
      case 0: return "n" + std::to_string(below(60));
      case 1: return "n" + std::to_string(below(60)) + ":" + std::to_string(below(4));
      case 2: return all_ops()[static_cast<std::size_t>(below(all_ops().size()))]->name;
      case 3: return "i" + std::to_string(below(3));
      default: return kStrings[static_cast<std::size_t>(below(kStrings.size()))];
    }
  }

  /// Those of some other node, if there is one.
  json any_attributes() {
    for (int tries = 0; tries < 20; ++tries) {
      const json& at = place();
      if (at.is_object() && at.contains("attrs")) return at.at("attrs");
    }
    return {{"type", "SoftmaxAttrs"}, {"dim", any_number()}};
  }

  void alter(json& at) {
    const json before = at;
    if (at.is_number()) {
      at = one_in(3) ? json(at.get<double>() + below(5) - 2) : any_number();
      if (at.is_number_float() && one_in(2))
        at = static_cast<std::int64_t>(before.get<double>()) + below(5) - 2;
    } else if (at.is_string()) {
      std::string text = at.get<std::string>();
      if (one_in(4) && !text.empty()) {
        text.resize(static_cast<std::size_t>(below(text.size())));
      } else if (one_in(4)) {
        text += any_string();
      } else {
        text = any_string();
      }
      at = text;
    } else if (at.is_boolean()) {
      at = !at.get<bool>();
    } else if (at.is_object() && at.contains("type") && one_in(2)) {
      at = any_attributes();
    } else if (at.is_object()) {
      at[any_string()] = any_value();
    } else if (at.is_array() && at.size() > 1) {
      std::swap(at[below(at.size())], at[below(at.size())]);
    } else {
      at = any_value();
    }
    note("alter", before, at);
  }

  json& root_;
  std::mt19937 random_;
  std::string what_;
};

int damages(int usual) {
  const char* text = std::getenv("TENON_DAMAGES");
  return text == nullptr ? usual : std::atoi(text);
}

Tensor sum_of_first(std::span<const Tensor> outputs, std::span<const Tensor>) {
  return sum(outputs[0]);
}

/// What one does with a schedule that loaded; `stage` says how far it came.
void use(const Schedule& sch, const std::vector<Tensor>& batch, int seed, const char*& stage) {
  stage = "verify";
  verify(sch.graph());
  stage = "show";
  const std::string shown =
      to_text(sch.graph()) + sch.to_string() + to_dot(sch) + list_steps(sch) + save_schedule(sch);
  EXPECT_FALSE(shown.empty());
  stage = "build";
  Executor run = build(sch, {.verify = seed % 16 == 0});
  stage = "run";
  const test::CapturePrint quiet;
  run.run(batch, true);
  if (seed % 4 != 1) return;
  stage = "build";
  TrainingStep step = build_training(sch, {.loss = sum_of_first, .verify = false});
  stage = "run";
  step.run(batch);
}

class DamagedSchedules : public ::testing::TestWithParam<Saved> {};

TEST_P(DamagedSchedules, AreRefusedOrVerify) {
  const std::vector<Tensor> batch = GetParam().batch();
  Schedule original = GetParam().trace(batch);
  GetParam().apply(original);
  const json saved = json::parse(save_schedule(original));
  Schedule sch = GetParam().trace(batch);
  const std::string before = to_text(sch.graph());
  load_schedule(sch, saved.dump());
  EXPECT_EQ(to_text(sch.graph()), to_text(original.graph()));
  while (!sch.applied().empty()) sch.undo();
  std::map<std::string, int> failures;
  int loaded = 0;
  const int count = damages(600);
  const int first = std::getenv("TENON_FIRST") ? std::atoi(std::getenv("TENON_FIRST")) : 0;
  for (int seed = first; seed < first + count; ++seed) {
    json root = saved;
    const std::string what = Vandal(root, static_cast<unsigned>(seed)).damage();
    const auto fail = [&](const std::string& how) {
      if (++failures[how.substr(0, 110)] > 2) return;
      ADD_FAILURE() << "seed " << seed << ": " << how << "\n" << what;
    };
    const char* stage = "load";
    try {
      load_schedule(sch, root.dump(-1, ' ', false, json::error_handler_t::replace));
      ++loaded;
      use(sch, batch, seed, stage);
    } catch (const InternalError& error) {
      fail(std::string(stage) + ": " + error.what());
    } catch (const ScheduleError&) {
    } catch (const Error& error) {
      const bool late = std::string(stage) == "build" || std::string(stage) == "run";
      // What a run refuses is of the kind that the op refuses it with.
      if (!late) fail(std::string(stage) + ": another kind of error: " + error.what());
    } catch (const std::exception& error) {
      fail(std::string(stage) + ": no error of ours: " + error.what());
    }
    if (std::string(stage) == "load") {
      EXPECT_TRUE(sch.applied().empty());
    } else {
      sch = GetParam().trace(batch);  // build has packed the parameters of the other model
    }
    if (to_text(sch.graph()) != before) fail("the Graph has changed");
  }
  RecordProperty("loaded", loaded);
  EXPECT_GT(loaded, count / 20) << "few damages leave a schedule that loads";
}

TEST_P(DamagedSchedules, WithOtherCharactersAreRefusedOrLoad) {
  const std::vector<Tensor> batch = GetParam().batch();
  Schedule original = GetParam().trace(batch);
  GetParam().apply(original);
  const std::string saved = save_schedule(original);
  Schedule sch = GetParam().trace(batch);
  for (int seed = 0; seed < damages(400); ++seed) {
    std::mt19937 random(static_cast<unsigned>(seed));
    std::string text = saved;
    for (int i = 0; i < 1 + seed % 3; ++i) {
      const std::size_t at = random() % text.size();
      switch (random() % 4) {
        case 0: text[at] = static_cast<char>(random() % 256); break;
        case 1: text[at] = "0123456789-.en\"[]{}:,"[random() % 21]; break;
        case 2: text.erase(at, 1 + random() % 3); break;
        default: text.resize(at + 1); break;
      }
    }
    try {
      load_schedule(sch, text);
    } catch (const ScheduleError&) {
      EXPECT_TRUE(sch.applied().empty());
    } catch (const std::exception& error) {
      ADD_FAILURE() << "seed " << seed << ": " << error.what();
    }
    while (!sch.applied().empty()) sch.undo();
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, DamagedSchedules,
    ::testing::Values(Saved{"Tutorial", tutorial_block, hidden_states, apply_tutorial},
                      Saved{"Gpt", gpt_model, tokens, apply_gpt},
                      Saved{"ReadyMade", gpt_model, tokens, apply_ready_made},
                      Saved{"Noisy", noisy, images, apply_noisy},
                      Saved{"CrossAttention", cross_attention, two_sequences, apply_cross}),
    [](const auto& info) { return info.param.name; });

}  // namespace damaged_schedules_test
}  // namespace tenon
