// Checkpoints: round trips to the bit, the recorded PyTorch fixture, aliases, replacing a file.
// What must be refused is in error/checkpoint_error_test.cpp.
#include <gtest/gtest.h>

#include <sys/stat.h>

#include <chrono>
#include <clocale>
#include <cmath>

#include "examples/attention_model.h"
#include "nn/nn.h"
#include "tests/nn/checkpoint_states.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_folder.h"
#include "tests/support/test_data.h"

namespace tenon {
namespace {

namespace fs = std::filesystem;
using test::bytes_of;
using test::every_dtype;
using test::expect_same;
using test::read_file;
using test::TempFolder;
using test::Tied;
using test::write_file;

TEST(CheckpointRoundTrip, EveryDtypeBitForBitInEveryStorage) {
  const nn::Checkpoint original{.tensors = every_dtype()};
  const TempFolder folder;
  const std::vector<std::pair<std::string, nn::SaveCheckpointOptions>> storages = {
      {"data", {.data_limit = 1 << 20, .base64_limit = 1 << 20}},
      {"base64", {.data_limit = 0, .base64_limit = 1 << 20}},
      {"file", {.data_limit = 0, .base64_limit = 0}}};
  for (const auto& [storage, options] : storages) {
    SCOPED_TRACE(storage);
    const std::string path = folder / (storage + ".json");
    nn::save_checkpoint(path, original, options);
    EXPECT_NE(read_file(path).find('"' + storage + "\": "), std::string::npos);
    EXPECT_EQ(fs::exists(folder / (storage + ".safetensors")), storage == "file");
    const nn::Checkpoint loaded = nn::load_checkpoint(path);
    EXPECT_EQ(loaded.path, path);
    expect_same(loaded.tensors, original.tensors);
    // Saved again, the same bytes.
    nn::save_checkpoint(folder / (storage + "2.json"), loaded, options);
    std::string again = read_file(folder / (storage + "2.json"));
    for (std::size_t at; (at = again.find(storage + "2.")) != std::string::npos;) {
      again.replace(at, storage.size() + 2, storage + ".");
    }
    EXPECT_EQ(again, read_file(path));
  }
  const nn::Checkpoint bare = nn::load_checkpoint(folder / "file.safetensors");
  for (const auto& [name, tensor] : bare.tensors) {
    EXPECT_EQ(bytes_of(tensor), bytes_of(original.tensors.at(name))) << name;
  }
}

TEST(CheckpointRoundTrip, StridedTensors) {
  const TempFolder folder;
  const Tensor base = arange(12, {DType::float32, kCpu}).reshape({3, 4});
  nn::Checkpoint checkpoint;
  checkpoint.tensors.add("transposed", base.transpose(0, 1));
  checkpoint.tensors.add("expanded", base.narrow(0, 1, 1).expand({5, 4}));
  for (const std::size_t limit : {std::size_t{0}, std::size_t{1000}}) {
    nn::save_checkpoint(folder / "m.json", checkpoint,
                        {.data_limit = limit, .base64_limit = limit});
    const nn::Checkpoint loaded = nn::load_checkpoint(folder / "m.json");
    for (const auto& [name, tensor] : checkpoint.tensors) {
      EXPECT_EQ(loaded.tensors.at(name).to_doubles(), tensor.to_doubles());
    }
  }
}

TEST(CheckpointRoundTrip, SixteenBitFloatsAreReadWithOneRounding) {
  const TempFolder folder;
  nn::Checkpoint checkpoint;
  checkpoint.tensors.add("half", full({1}, 3, {DType::float16}));
  checkpoint.tensors.add("brain", full({1}, 5, {DType::bfloat16}));
  nn::save_checkpoint(folder / "m.json", checkpoint);
  std::string text = read_file(folder / "m.json");
  // Just above the middle of 1 and the next number, by less than a float holds.
  for (const auto& [from, to] :
       {std::pair{"[3]", "[1.0004882812509095]"}, std::pair{"[5]", "[1.0039062500009095]"}}) {
    ASSERT_NE(text.find(from), text.npos) << text;
    text.replace(text.find(from), 3, to);
  }
  write_file(folder / "m.json", text);
  const nn::Checkpoint loaded = nn::load_checkpoint(folder / "m.json");
  EXPECT_EQ(loaded.tensors.at("half").item(), 1 + 0x1p-10);
  EXPECT_EQ(loaded.tensors.at("brain").item(), 1 + 0x1p-7);
}

TEST(CheckpointRoundTrip, NumbersDoNotDependOnTheLocale) {
  const std::string old = std::setlocale(LC_NUMERIC, nullptr);
  const bool has_comma = std::setlocale(LC_NUMERIC, "de_DE.UTF-8") != nullptr;
  const TempFolder folder;
  nn::Checkpoint checkpoint;
  checkpoint.tensors.add("x", tensor({0.5, -1.25}, {2}));
  nn::save_checkpoint(folder / "m.json", checkpoint);
  EXPECT_NE(read_file(folder / "m.json").find("[0.5,-1.25]"), std::string::npos);
  EXPECT_EQ(nn::load_checkpoint(folder / "m.json").tensors.at("x").to_doubles(),
            (std::vector<double>{0.5, -1.25}));
  std::setlocale(LC_NUMERIC, old.c_str());
  if (!has_comma) GTEST_LOG_(INFO) << "no locale with a decimal comma here; checked in " << old;
}

TEST(CheckpointRoundTrip, ConfigMetadataAndTests) {
  const TempFolder folder;
  nn::Checkpoint checkpoint;
  checkpoint.metadata.set("producer", "a \"test\"\n");
  checkpoint.config.set("hidden_size", std::int64_t{128});
  checkpoint.config.set("eps", 1e-12);
  checkpoint.config.set("hidden_size", std::int64_t{256});
  checkpoint.tests.push_back({"train", {ones({2}), zeros({3, 3})}, {full({2}, 0.1)}, 1e-3, 0});
  for (const std::size_t limit : {std::size_t{0}, std::size_t{1000}}) {
    nn::save_checkpoint(folder / "m.json", checkpoint,
                        {.data_limit = limit, .base64_limit = limit});
    const nn::Checkpoint loaded = nn::load_checkpoint(folder / "m.json");
    EXPECT_EQ(loaded.metadata.string("producer"), "a \"test\"\n");
    EXPECT_EQ(loaded.config.text, R"({"hidden_size": 256, "eps": 1e-12})");
    EXPECT_EQ(loaded.config.integer("hidden_size"), 256);
    EXPECT_EQ(loaded.config.number("eps"), 1e-12);
    EXPECT_EQ(loaded.config.number("hidden_size"), 256.0);
    EXPECT_EQ(loaded.config.integer("eps"), std::nullopt);
    EXPECT_EQ(loaded.config.string("nothing"), std::nullopt);
    ASSERT_EQ(loaded.tests.size(), 1U);
    EXPECT_EQ(loaded.tests[0].mode, "train");
    EXPECT_EQ(loaded.tests[0].rtol, 1e-3);
    EXPECT_EQ(loaded.tests[0].atol, 0);
    EXPECT_EQ(loaded.tests[0].inputs.at(1).shape().to_string(), "(3, 3)");
    EXPECT_EQ(bytes_of(loaded.tests[0].outputs.at(0)), bytes_of(checkpoint.tests[0].outputs[0]));
  }
}

TEST(CheckpointAliases, TiedTensorsAreWrittenOnceAndStayTied) {
  const TempFolder folder;
  const auto model = nn::make<Tied>();
  nn::save_checkpoint(folder / "tied.json", {.tensors = model->state_dict()});
  const nn::Checkpoint loaded = nn::load_checkpoint(folder / "tied.json");
  EXPECT_EQ(loaded.tensors.size(), 1U);
  ASSERT_EQ(loaded.aliases.size(), 1U);
  EXPECT_EQ(loaded.aliases[0],
            (std::pair<std::string, std::string>{"lm_head.weight", "wte.weight"}));
  const nn::StateDict state = loaded.state_dict();
  EXPECT_TRUE(state.at("lm_head.weight").is_same(state.at("wte.weight")));
  const auto other = nn::make<Tied>();
  EXPECT_EQ(nn::load_into(*other, loaded).loaded.size(), 2U);
  EXPECT_EQ(bytes_of(other->lm_head->weight), bytes_of(model->wte->weight));
  EXPECT_TRUE(other->lm_head->weight.is_same(other->wte->weight));
  // With the aliases expanded, or kept, the same file comes out again.
  nn::save_checkpoint(folder / "again.json", loaded);
  EXPECT_EQ(read_file(folder / "again.json"), read_file(folder / "tied.json"));
  nn::save_checkpoint(folder / "again.json", {.tensors = state});
  EXPECT_EQ(read_file(folder / "again.json"), read_file(folder / "tied.json"));
}

TEST(CheckpointLoadInto, TheErrorNamesTheFileAndNothingChanges) {
  const TempFolder folder;
  const auto model = nn::make<Tied>();
  nn::Checkpoint checkpoint;
  checkpoint.tensors.add("wte.weight", ones({2, 4}));
  nn::save_checkpoint(folder / "m.json", checkpoint);
  const std::string before = bytes_of(model->wte->weight);
  EXPECT_ERROR(ModuleError,
               "[load_into] " + (folder / "m.json") +
                   " does not fit Tied, nothing was changed:\n"
                   "  mismatched (1): \"wte.weight\": given float32(2, 4), needed float32(4, 2)",
               nn::load_into(*model, nn::load_checkpoint(folder / "m.json")));
  EXPECT_EQ(bytes_of(model->wte->weight), before);
}

TEST(CheckpointFixture, TheRecordedPyTorchOutputIsMet) {
  const nn::Checkpoint checkpoint =
      nn::load_checkpoint(test::test_data("attention/attention.json"));
  EXPECT_EQ(checkpoint.metadata.string("producer"), "export_checkpoint.py");
  const double entropy = checkpoint.metadata.number("mean_attention_entropy").value();
  EXPECT_LT(entropy, 0.5 * std::log(24.0));
  const auto model = nn::make<tutorial::Attention>(checkpoint.config.integer("hidden_size").value(),
                                                   checkpoint.config.integer("num_heads").value());
  nn::load_into(*model, checkpoint);
  model->eval();
  ASSERT_EQ(checkpoint.tests.size(), 1U);
  const nn::RecordedTest& test = checkpoint.tests[0];
  EXPECT_EQ(test.mode, "eval");
  EXPECT_EQ(test.inputs.at(0).shape().to_string(), "(2, 24, 128)");
  const std::vector<double> expected = test.outputs.at(0).to_doubles();
  const auto largest_error = [&](const Tensor& output) {
    const std::vector<double> given = output.to_doubles();
    double error = 0;
    for (std::size_t i = 0; i < expected.size(); ++i) {
      error = std::max(error, std::abs(given.at(i) - expected[i]));
    }
    return error;
  };
  EXPECT_LT(largest_error(model(test.inputs[0])), 1e-5);
  // The output was computed in float64 and rounded: there, only that rounding is left.
  model->to(DType::float64);
  EXPECT_LT(largest_error(model(test.inputs[0].to(DType::float64))), 3e-7);
  // The test can fail: in training mode dropout acts, and without the bias the result moves.
  model->train();
  EXPECT_GT(largest_error(model(test.inputs[0].to(DType::float64))), 1e-2);
  model->eval();
  const NoGradGuard no_grad;
  model->parameter("self_attn.q_proj.bias").copy_(zeros({128}));
  EXPECT_GT(largest_error(model(test.inputs[0].to(DType::float64))), 1e-2);
}

TEST(CheckpointFixture, FourMillionParametersWriteAndLoad) {
  const TempFolder folder;
  const auto model = nn::make<tutorial::Attention>(1024, 16);
  const auto start = std::chrono::steady_clock::now();
  nn::save_checkpoint(folder / "big.json", {.tensors = model->state_dict()});
  const auto saved = std::chrono::steady_clock::now();
  EXPECT_GT(fs::file_size(folder / "big.safetensors"), 16U << 20);
  EXPECT_LT(fs::file_size(folder / "big.json"), 64U << 10);
  const auto other = nn::make<tutorial::Attention>(1024, 16);
  const auto built = std::chrono::steady_clock::now();
  nn::load_into(*other, nn::load_checkpoint(folder / "big.json"));
  const auto loaded = std::chrono::steady_clock::now();
  expect_same(other->state_dict(), model->state_dict());
  const auto seconds = [](auto a, auto b) { return std::chrono::duration<double>(b - a).count(); };
  RecordProperty("save_s", std::to_string(seconds(start, saved)));
  RecordProperty("load_s", std::to_string(seconds(built, loaded)));
}

TEST(CheckpointFixture, FourMillionInlineNumbers) {
  const TempFolder folder;
  nn::Checkpoint checkpoint;
  checkpoint.tensors.add("x", randn({4'000'000}));
  nn::save_checkpoint(folder / "m.json", checkpoint, {.data_limit = 1 << 30});
  EXPECT_GT(fs::file_size(folder / "m.json"), 40'000'000U);
  const auto start = std::chrono::steady_clock::now();
  const nn::Checkpoint loaded = nn::load_checkpoint(folder / "m.json");
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  expect_same(loaded.tensors, checkpoint.tensors);
  RecordProperty("load_s", std::to_string(seconds.count()));
  std::cout << "read " << fs::file_size(folder / "m.json") / 1'000'000 << " MB of numbers in "
            << seconds.count() << " s\n";
}

TEST(CheckpointSave, ReplacingKeepsTheOldOneWholeUntilTheEnd) {
  const TempFolder folder;
  const nn::SaveCheckpointOptions all_in_file{.data_limit = 0, .base64_limit = 0};
  const auto with_value = [](double value) {
    nn::Checkpoint checkpoint;
    checkpoint.tensors.add("x", full({8}, value));
    return checkpoint;
  };
  nn::save_checkpoint(folder / "m.json", with_value(1), all_in_file);
  ASSERT_EQ(::chmod((folder / "m.json").c_str(), 0640), 0);
  const std::string old_manifest = read_file(folder / "m.json");
  const std::string old_side = read_file(folder / "m.safetensors");
  nn::save_checkpoint(folder / "m.json", with_value(2), all_in_file);
  EXPECT_EQ(nn::load_checkpoint(folder / "m.json").tensors.at("x").to_doubles()[0], 2);
  struct stat status {};
  ASSERT_EQ(::stat((folder / "m.json").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777U, 0640U);
  // The new side file had another name than the old one, which is gone now.
  EXPECT_FALSE(fs::exists(folder / "m.safetensors"));
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path()), fs::directory_iterator()), 2);
  // A crash before the manifest was renamed would have left this, which still loads.
  write_file(folder / "m.json", old_manifest);
  write_file(folder / "m.safetensors", old_side);
  EXPECT_EQ(nn::load_checkpoint(folder / "m.json").tensors.at("x").to_doubles()[0], 1);
}

TEST(CheckpointSave, OtherFilesAreNeverReplaced) {
  const TempFolder folder;
  write_file(folder / "m.safetensors", "somebody else's");
  nn::Checkpoint checkpoint;
  checkpoint.tensors.add("x", ones({8}));
  nn::save_checkpoint(folder / "m.json", checkpoint, {.data_limit = 0, .base64_limit = 0});
  nn::save_checkpoint(folder / "m.json", checkpoint, {.data_limit = 0, .base64_limit = 0});
  EXPECT_EQ(read_file(folder / "m.safetensors"), "somebody else's");
  EXPECT_EQ(nn::load_checkpoint(folder / "m.json").tensors.at("x").to_doubles()[0], 1);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path()), fs::directory_iterator()), 3);
}

TEST(CheckpointSave, RefusesAndLeavesNothingBehind) {
  const TempFolder folder;
  const std::string path = folder / "m.json";
  const std::string where = "[save_checkpoint] " + path + ": ";
  nn::Checkpoint checkpoint;
  checkpoint.tensors.add("x", ones({8}));
  const auto saving = [&](auto change) {
    nn::Checkpoint changed = checkpoint;
    change(changed);
    return test::error_text<CheckpointError>(
        [&] { nn::save_checkpoint(path, changed, {.data_limit = 0, .base64_limit = 0}); });
  };
  EXPECT_EQ(saving([](auto& c) { c.tensors.add("a\nb", zeros({1})); }),
            where + "tensor \"a\\x0ab\": the name holds control characters");
  EXPECT_EQ(saving([](auto& c) { c.tensors.add("\xff", zeros({1})); }),
            where + "tensor \"\\xff\": the name is not valid UTF-8");
  EXPECT_EQ(saving([](auto& c) {
              c.tensors.add("s", Tensor::symbolic({DType::float32, {2}, kCpu}));
            }),
            where + "tensor \"s\": has no data");
  EXPECT_EQ(saving([](auto& c) {
              c.aliases = {{"y", "z"}};
            }),
            where + "alias \"y\": no tensor \"z\"");
  EXPECT_EQ(saving([](auto& c) {
              c.aliases = {{"x", "x"}};
            }),
            where + "alias \"x\": the name is taken");
  EXPECT_EQ(saving([](auto& c) { c.config.text = "[]"; }),
            where + "config: the text is an array; needed an object (line 1, column 1)");
  EXPECT_EQ(saving([](auto& c) { c.tests.push_back({.mode = "fast"}); }),
            where + "tests[0]: mode is \"fast\"; needed \"eval\" or \"train\"");
  EXPECT_EQ(saving([](auto& c) { c.tests.push_back({.rtol = -1}); }),
            where + "tests[0]: rtol -1 and atol 1e-05; needed finite, at least 0");
  EXPECT_TRUE(fs::is_empty(folder.path()));
  EXPECT_ERROR(CheckpointError,
               "[save_checkpoint] /nowhere/m.json: cannot be created: No such file or directory",
               nn::save_checkpoint("/nowhere/m.json", checkpoint));
}

TEST(CheckpointSave, AFailedWriteKeepsTheOldCheckpoint) {
  const TempFolder folder;
  nn::Checkpoint checkpoint;
  checkpoint.tensors.add("x", ones({8}));
  fs::create_directory(folder / "m.json");  // the manifest cannot be renamed onto a folder
  const std::string text = test::error_text<CheckpointError>([&] {
    nn::save_checkpoint(folder / "m.json", checkpoint, {.data_limit = 0, .base64_limit = 0});
  });
  EXPECT_EQ(text, "[save_checkpoint] " + (folder / "m.json") +
                      ": cannot be renamed into place: Is a directory");
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path()), fs::directory_iterator()), 1);
}

}  // namespace
}  // namespace tenon
