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

}  // namespace
}  // namespace tenon
