// Profiles: what an event says, how the tables sum up, and that a profiled step is a step.
#include "graph/profile.h"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "nn/nn.h"
#include "schedule/schedule.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_folder.h"

namespace tenon {
namespace {

struct Block : nn::Module {
  Block() : up(add<nn::Linear>("up", 4, 8)), down(add<nn::Linear>("down", 8, 4)) {}
  Tensor forward(const Tensor& x) const { return down(gelu(up(x))); }
  nn::Child<nn::Linear> up, down;
};

struct Stack : nn::Module {
  Stack() : blocks(add<nn::ModuleList<Block>>("blocks")) {
    for (int i = 0; i < 2; ++i) blocks->emplace_back();
  }
  Tensor forward(Tensor x) const {
    for (const auto& block : *blocks) x = block(x);
    return x;
  }
  nn::Child<nn::ModuleList<Block>> blocks;
};

class ProfileTest : public testing::Test {
 protected:
  ProfileTest() : executor_(build(create_schedule(nn::make<Stack>(), {x_}), {.verify = false})) {}
  Profile measure(const ProfileOptions& options = {}) {
    return profile(executor_.program(inputs()), inputs(), options);
  }
  std::span<const Tensor> inputs() const { return {&x_, 1}; }

  const Tensor x_ = randn({3, 4});
  Executor executor_;
};

TEST_F(ProfileTest, TimesEveryInstructionOneBehindTheOther) {
  const Profile times = measure();
  const auto& infos = executor_.program(inputs()).instructions();
  ASSERT_EQ(times.instructions.size(), infos.size());
  double end = 0;
  for (std::size_t i = 0; i < infos.size(); ++i) {
    const ProfiledInstruction& one = times.instructions[i];
    EXPECT_EQ(one.info.name, infos[i].name);
    EXPECT_DOUBLE_EQ(one.start_us, end);
    EXPECT_GE(one.duration_us, 0);
    end = one.start_us + one.duration_us;
  }
  EXPECT_NEAR(times.total_us(), end, 1e-9 * (1 + end));
}

TEST_F(ProfileTest, AnInstructionKnowsItsModuleWhateverTheScheduleFlattened) {
  Schedule sch = create_schedule(nn::make<Stack>(), {x_});
  sch.trace({.flatten = true});
  Executor flat = build(sch, {.verify = false});
  for (Executor* executor : {&executor_, &flat}) {
    std::vector<std::string> modules;
    for (const InstructionInfo& info : executor->program(inputs()).instructions()) {
      modules.push_back(info.module);
    }
    EXPECT_EQ(modules, (std::vector<std::string>{"blocks.0.up", "blocks.0", "blocks.0.down",
                                                 "blocks.1.up", "blocks.1", "blocks.1.down"}));
  }
}

TEST_F(ProfileTest, WritesOneCompleteEventAnInstruction) {
  const test::TempFolder folder;
  const Profile times = measure();
  times.write_chrome_trace(folder / "trace.json");
  std::ifstream file(folder / "trace.json");
  const auto trace = nlohmann::json::parse(file);
  std::vector<nlohmann::json> events;
  for (const auto& event : trace.at("traceEvents")) {
    if (event.at("ph") == "X") events.push_back(event);
  }
  ASSERT_EQ(events.size(), times.instructions.size());
  const InstructionInfo& first = times.instructions[0].info;
  EXPECT_EQ(events[0].at("name"), "blocks.0.up " + first.kernel);
  EXPECT_EQ(events[0].at("tid"), 0);
  EXPECT_EQ(events[0].at("args").at("bytes"), first.bytes);
  EXPECT_EQ(events[0].at("args").at("flops"), 2.0 * 3 * 4 * 8);
  EXPECT_EQ(events[0].at("dur"), times.instructions[0].duration_us);
}

TEST_F(ProfileTest, TablesPutLayersOfOneKindTogether) {
  Profile times{"a device",
                {{{"blocks.0.up.linear", "blocks.0.up", "cpu.linear", 4e6, 2e6}, 0, 2},
                 {{"blocks.11.up.linear", "blocks.11.up", "cpu.linear", 4e6, 2e6}, 2, 2},
                 {{"adamw", "", "cpu.adam", 0, 1e6}, 4, 1}}};
  EXPECT_EQ(times.to_string(),
            "a device: 3 instructions, 5.00 us\n"
            "module             calls          us   share    TB/s  TFLOP/s\n"
            "blocks.*.up            2        4.00   80.0%    1.00      2.0\n"
            "(outside modules)      1        1.00   20.0%    1.00         \n"
            "\n"
            "kernel      calls          us   share    TB/s  TFLOP/s\n"
            "cpu.linear      2        4.00   80.0%    1.00      2.0\n"
            "cpu.adam        1        1.00   20.0%    1.00         \n");
}

TEST_F(ProfileTest, RefusesWhatItCannotDo) {
  EXPECT_ERROR(ValueError, "[profile] 0 runs; needed at least 1", measure({.runs = 0}));
  EXPECT_ERROR(ValueError, "cannot write /nowhere/trace.json",
               measure().write_chrome_trace("/nowhere/trace.json"));
}

constexpr std::int64_t kSlowRows = 4099;

/// cos of kSlowRows rows by a kernel that calls itself slow.
void register_slow_cos() {
  static const bool once = [] {
    static void (*const usual)(const KernelArgs&) = get_op("cos").kernels(DeviceType::cpu)[0].run;
    const auto is_it = [](const KernelArgs& args) { return args.inputs[0].size(0) == kSlowRows; };
    register_kernel("cos", DeviceType::cpu,
                    {.name = "test.slow_cos",
                     .run = [](const KernelArgs& args) { usual(args); },
                     .supports = is_it,
                     .preferred = is_it,
                     .slow_because = [](const KernelArgs& args) {
                       return args.inputs[0].size(1) == 7 ? std::string() : "rows of 4099; pad them";
                     }});
    return true;
  }();
  static_cast<void>(once);
}

struct TwoCosines : nn::Module {
  Tensor forward(const Tensor& x) const { return cos(cos(x)); }
};

TEST(SlowPaths, AreNamedOnceWithTheReason) {
  register_slow_cos();
  struct Sample {
    Shape shape;
    bool slow;
  };
  // The second is too small to matter, the third another kernel's, the last not slow.
  for (const Sample& sample : {Sample{Shape{kSlowRows, 100}, true}, Sample{Shape{kSlowRows, 3}, false},
                               Sample{Shape{4098, 100}, false}, Sample{Shape{kSlowRows, 7}, false}}) {
    const Tensor x = zeros(sample.shape);
    Executor run = build(create_schedule(nn::make<TwoCosines>(), {x}), {.verify = false});
    const std::vector<Tensor> inputs = {x};
    Program& program = run.program(inputs);
    const auto lines = program.slow_paths();
    ASSERT_EQ(lines.size(), sample.slow ? 1U : 0U) << x.shape().to_string();
    const bool listed = program.to_string().find("slow: ") != std::string::npos;
    const bool profiled =
        profile(program, inputs, {.runs = 1}).to_string().find("slow: ") != std::string::npos;
    EXPECT_EQ(listed, sample.slow);
    EXPECT_EQ(profiled, sample.slow);
    if (!sample.slow) continue;
    EXPECT_NE(lines[0].find(" and 1 more by test.slow_cos: rows of 4099; pad them"),
              std::string::npos)
        << lines[0];
  }
}

}  // namespace
}  // namespace tenon
