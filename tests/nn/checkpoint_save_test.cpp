// Where a checkpoint is saved: under a .safetensors name, through links, beside other files, over what
// was loaded. Whatever the name, what was saved comes back bit for bit, or nothing was touched.
#include <gtest/gtest.h>

#include <sys/stat.h>

#include <filesystem>
#include <string>

#include "nn/nn.h"
#include "tests/nn/checkpoint_states.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_folder.h"

namespace tenon {
namespace {

namespace fs = std::filesystem;
using test::every_dtype;
using test::expect_same;
using test::read_file;
using test::TempFolder;
using test::Tied;
using test::write_file;

const nn::SaveCheckpointOptions kAllInFile{.data_limit = 0, .base64_limit = 0};

std::ptrdiff_t count_files(const TempFolder& folder) {
  return std::distance(fs::directory_iterator(folder.path()), fs::directory_iterator());
}

nn::Checkpoint of(double value, std::int64_t n = 8) {
  nn::Checkpoint checkpoint;
  checkpoint.tensors.add("x", full({n}, value));
  return checkpoint;
}

double value_in(const std::string& path) {
  return nn::load_checkpoint(path).tensors.at("x").to_doubles().at(0);
}

TEST(CheckpointSafetensors, ASafetensorsNameGivesOneFileThatComesBackBitForBit) {
  for (const std::string name : {"m.safetensors", "M.SAFETENSORS", ".safetensors",
                                 "a.b.safetensors", "./m.safetensors", "./sub/../m.SafeTensors"}) {
    const TempFolder folder;
    SCOPED_TRACE(name);
    fs::create_directory(folder / "sub");
    nn::Checkpoint original{.tensors = every_dtype()};
    for (int times = 0; times < 3; ++times) {
      nn::save_checkpoint(folder / name, original, {.data_limit = 1 << 20});
      EXPECT_EQ(count_files(folder), 2);
      const nn::Checkpoint loaded = nn::load_checkpoint(folder / name);
      EXPECT_EQ(loaded.metadata.text, "{}");
      EXPECT_EQ(loaded.tensors.size(), original.tensors.size());
      for (const auto& [key, tensor] : original.tensors) {
        EXPECT_EQ(test::bytes_of(loaded.tensors.at(key)), test::bytes_of(tensor)) << key;
        EXPECT_EQ(loaded.tensors.at(key).spec().to_string(), tensor.spec().to_string()) << key;
      }
      original.tensors = loaded.tensors;  // in file order from now on: saved again, the same file
      if (times == 1) {
        const std::string before = read_file(folder / name);
        nn::save_checkpoint(folder / name, loaded);
        EXPECT_EQ(read_file(folder / name), before);
      }
    }
  }
}

TEST(CheckpointSafetensors, NothingIsAlsoAFile) {
  const TempFolder folder;
  nn::save_checkpoint(folder / "m.safetensors", {});
  const nn::Checkpoint loaded = nn::load_checkpoint(folder / "m.safetensors");
  EXPECT_TRUE(loaded.tensors.empty());
  EXPECT_EQ(loaded.metadata.text, "{}");
}

TEST(CheckpointSafetensors, MetadataComesBack) {
  const TempFolder folder;
  nn::Checkpoint checkpoint = of(1);
  checkpoint.metadata.set("producer", "a \"test\"\n\\ ключ");
  checkpoint.metadata.set("format", "pt");
  checkpoint.config.text = " { } ";
  nn::save_checkpoint(folder / "m.safetensors", checkpoint);
  const nn::Checkpoint loaded = nn::load_checkpoint(folder / "m.safetensors");
  EXPECT_EQ(loaded.metadata.text, checkpoint.metadata.text);
  EXPECT_EQ(loaded.metadata.string("producer"), "a \"test\"\n\\ ключ");
}

TEST(CheckpointSafetensors, TiedTensorsViewsAndAliasesStandUnderEveryName) {
  const TempFolder folder;
  const auto model = nn::make<Tied>();
  nn::Checkpoint checkpoint{.tensors = model->state_dict()};
  const Tensor base = arange(12, {DType::float32, kCpu}).reshape({3, 4});
  checkpoint.tensors.add("base", base);
  checkpoint.tensors.add("transposed", base.transpose(0, 1));
  checkpoint.tensors.add("narrowed", base.narrow(1, 1, 2));
  checkpoint.tensors.add("expanded", base.narrow(0, 1, 1).expand({5, 4}));
  checkpoint.aliases = {{"alias", "base"}};
  nn::save_checkpoint(folder / "m.safetensors", checkpoint);
  const nn::Checkpoint loaded = nn::load_checkpoint(folder / "m.safetensors");
  EXPECT_EQ(loaded.tensors.size(), checkpoint.tensors.size() + 1);
  for (const auto& [name, tensor] : checkpoint.state_dict()) {
    EXPECT_EQ(loaded.tensors.at(name).to_doubles(), tensor.to_doubles()) << name;
  }
  const auto other = nn::make<Tied>();
  nn::load_into(*other, loaded,
                {.allow_unexpected = {"base", "transposed", "narrowed", "expanded", "alias"}});
  EXPECT_EQ(other->wte->weight.to_doubles(), model->wte->weight.to_doubles());
}

TEST(CheckpointSafetensors, WhatSuchAFileCannotHoldIsRefusedByName) {
  const TempFolder folder;
  const std::string path = folder / "m.safetensors";
  const std::string remedy = "save under a name that ends in .json";
  const auto saving = [&](auto change) {
    nn::Checkpoint changed = of(1);
    change(changed);
    const std::string text =
        test::error_text<CheckpointError>([&] { nn::save_checkpoint(path, changed); });
    const std::string where = "[save_checkpoint] " + path + ": ";
    EXPECT_TRUE(text.starts_with(where)) << text;
    return text.substr(std::min(text.size(), where.size()));
  };
  EXPECT_EQ(saving([](auto& c) { c.tests.push_back({.inputs = {ones({2})}}); }),
            "has 1 recorded tests, for which a .safetensors file has no place; " + remedy);
  EXPECT_EQ(saving([](auto& c) { c.config.set("hidden_size", std::int64_t{8}); }),
            "config: \"hidden_size\": a .safetensors file has no place for it; " + remedy +
                " (line 1, column 16)");
  EXPECT_EQ(saving([](auto& c) { c.metadata.set("step", std::int64_t{8}); }),
            "metadata: \"step\" is a number; a .safetensors file holds strings only: make it one, "
            "or " +
                remedy + " (line 1, column 10)");
  EXPECT_EQ(saving([](auto& c) { c.metadata.text = R"({"a": {"b": "c"}})"; }),
            "metadata: \"a\" is an object; a .safetensors file holds strings only: make it one, "
            "or " +
                remedy + " (line 1, column 7)");
  EXPECT_EQ(
      saving([](auto& c) { c.tensors.add("__metadata__", ones({1})); }),
      "tensor \"__metadata__\": the name means the metadata in a .safetensors file; " + remedy);
  EXPECT_EQ(saving([](auto& c) { c.tensors.add("a\nb", ones({1})); }),
            "tensor \"a\\x0ab\": the name holds control characters");
  EXPECT_EQ(count_files(folder), 0);
}

TEST(CheckpointSave, ATensorCalledMetadataGoesIntoASideFileToo) {
  const TempFolder folder;
  nn::Checkpoint checkpoint;
  checkpoint.tensors.add("__metadata__", full({8}, 1));
  checkpoint.tensors.add("__metadata___", full({8}, 2));
  nn::save_checkpoint(folder / "m.json", checkpoint, kAllInFile);
  expect_same(nn::load_checkpoint(folder / "m.json").tensors, checkpoint.tensors);
}

TEST(CheckpointSave, OverTheFileThatWasLoaded) {
  for (const std::string name : {"m.json", "m.safetensors"}) {
    const TempFolder folder;
    nn::save_checkpoint(folder / name, of(1, 100'000));
    for (int i = 0; i < 3; ++i) {
      const nn::Checkpoint loaded = nn::load_checkpoint(folder / name);
      nn::Checkpoint part;
      part.tensors.add("x", loaded.tensors.at("x").narrow(0, 1, 99'000 - i));
      nn::save_checkpoint(folder / name, part);
      expect_same(nn::load_checkpoint(folder / name).tensors, part.tensors);
    }
  }
}

TEST(CheckpointSave, ASymbolicLinkIsFollowedAndStays) {
  for (const std::string end : {"json", "safetensors"}) {
    SCOPED_TRACE(end);
    const TempFolder folder;
    fs::create_directory(folder / "runs");
    const std::string real = folder / ("runs/m." + end), link = folder / ("latest." + end);
    fs::create_symlink("runs/m." + end, folder / ("second." + end));
    fs::create_symlink("second." + end, link);  // leads to nothing yet
    for (int i = 1; i <= 3; ++i) {
      nn::save_checkpoint(link, of(i), kAllInFile);
      EXPECT_TRUE(fs::is_symlink(link));
      EXPECT_TRUE(fs::is_regular_file(fs::symlink_status(real)));
      EXPECT_EQ(value_in(link), i);
      EXPECT_EQ(value_in(real), i);
      EXPECT_EQ(count_files(folder), 3);
    }
    fs::create_symlink("loop." + end, folder / ("loop." + end));
    EXPECT_ERROR(CheckpointError,
                 "[save_checkpoint] " + (folder / ("loop." + end)) +
                     ": cannot be opened: Too many levels of symbolic links",
                 nn::save_checkpoint(folder / ("loop." + end), of(1)));
  }
}

TEST(CheckpointSave, ALinkFromOneKindOfNameToTheOther) {
  const TempFolder folder;
  fs::create_symlink("m.safetensors", folder / "m.json");
  for (int i = 1; i <= 2; ++i) {
    nn::save_checkpoint(folder / "m.json", of(i), kAllInFile);
    EXPECT_EQ(value_in(folder / "m.json"), i);
    EXPECT_EQ(value_in(folder / "m.safetensors"), i);
    EXPECT_EQ(count_files(folder), 2);
  }
}

TEST(CheckpointSave, ASideFileIsNeverTheManifestOrAnyOtherFile) {
  using Prepare = void (*)(const TempFolder&);
  const std::vector<std::pair<std::string, Prepare>> cases = {
      {"a link to the manifest",
       [](const TempFolder& f) { fs::create_symlink("m.json", f / "m.safetensors"); }},
      {"a link to nothing",
       [](const TempFolder& f) { fs::create_symlink("none", f / "m.safetensors"); }},
      {"a hard link",
       [](const TempFolder& f) {
         write_file(f / "m.json", "old");
         fs::create_hard_link(f / "m.json", f / "m.safetensors");
       }},
      {"a folder", [](const TempFolder& f) { fs::create_directory(f / "m.safetensors"); }},
      {"a FIFO",
       [](const TempFolder& f) { ASSERT_EQ(::mkfifo((f / "m.safetensors").c_str(), 0600), 0); }}};
  for (const auto& [what, prepare] : cases) {
    SCOPED_TRACE(what);
    const TempFolder folder;
    prepare(folder);
    const fs::file_status before = fs::symlink_status(folder / "m.safetensors");
    for (int i = 1; i <= 3; ++i) {
      nn::save_checkpoint(folder / "./m.json", of(i), kAllInFile);
      EXPECT_EQ(value_in(folder / "m.json"), i);
      EXPECT_EQ(count_files(folder), 3);
    }
    EXPECT_EQ(fs::symlink_status(folder / "m.safetensors").type(), before.type());
  }
}

TEST(CheckpointSave, ManifestsOfOneStemKeepTheirOwnSideFiles) {
  const TempFolder folder;
  const std::vector<std::string> names = {"m.json", "m.ckpt", "m"};
  for (int round = 0; round < 3; ++round) {
    for (const std::string& name : names) {
      nn::save_checkpoint(folder / name, of(1), kAllInFile);  // the same bytes: the same hash
    }
    for (const std::string& name : names) EXPECT_EQ(value_in(folder / name), 1) << name;
  }
  nn::save_checkpoint(folder / "m.json", of(2), kAllInFile);
  EXPECT_EQ(value_in(folder / "m.json"), 2);
  EXPECT_EQ(value_in(folder / "m.ckpt"), 1);
  EXPECT_EQ(value_in(folder / "m"), 1);
  EXPECT_EQ(count_files(folder), 6);
  // A copy of a manifest shares its side file, which stays for it.
  fs::copy_file(folder / "m.json", folder / "m.bak");
  nn::save_checkpoint(folder / "m.json", of(3), kAllInFile);
  EXPECT_EQ(value_in(folder / "m.bak"), 2);
}

TEST(CheckpointSave, ASafetensorsFileAndAManifestOfOneStemLeaveEachOtherAlone) {
  const TempFolder folder;
  const std::string bare = folder / "m.safetensors", manifest = folder / "m.json";
  nn::save_checkpoint(bare, of(1));
  nn::save_checkpoint(manifest, of(2), kAllInFile);
  nn::save_checkpoint(bare, of(3));
  nn::save_checkpoint(manifest, of(4), kAllInFile);
  EXPECT_EQ(value_in(bare), 3);
  EXPECT_EQ(value_in(manifest), 4);
  EXPECT_EQ(count_files(folder), 3);
  // Made in the other order, that name is taken.
  const TempFolder other;
  nn::save_checkpoint(other / "m.json", of(1), kAllInFile);
  EXPECT_ERROR(CheckpointError,
               "[save_checkpoint] " + (other / "m.safetensors") + ": is the side file of " +
                   (other / "m.json") + ", which would lose its tensors; save under another name",
               nn::save_checkpoint(other / "m.safetensors", of(1)));
  EXPECT_EQ(value_in(other / "m.json"), 1);
  // What somebody put in place of a side file is not the manifest's to remove.
  write_file(other / "m.safetensors", read_file(bare));
  nn::save_checkpoint(other / "m.json", of(2), kAllInFile);
  EXPECT_EQ(value_in(other / "m.safetensors"), 3);
}

TEST(CheckpointSave, OnlyAFileIsReplaced) {
  const TempFolder folder;
  for (const std::string name : {"m.json", "m.safetensors"}) {
    ASSERT_EQ(::mkfifo((folder / name).c_str(), 0600), 0);
    EXPECT_ERROR(
        CheckpointError,
        "[save_checkpoint] " + (folder / name) + ": is a FIFO; needed a regular file or a new name",
        nn::save_checkpoint(folder / name, of(1), kAllInFile));
    EXPECT_TRUE(fs::is_fifo(folder / name));
    fs::remove(folder / name);
    fs::create_directory(folder / name);
    EXPECT_ERROR(
        CheckpointError,
        "[save_checkpoint] " + (folder / name) + ": cannot be renamed into place: Is a directory",
        nn::save_checkpoint(folder / name, of(1), kAllInFile));
    fs::remove(folder / name);
    EXPECT_EQ(count_files(folder), 0);
  }
}

}  // namespace
}  // namespace tenon
