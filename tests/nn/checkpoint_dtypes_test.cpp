// Dtypes of .safetensors files: int16 and int8 load, and a tensor of a dtype that Tenon lacks is
// skipped and named while the others load.
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "nn/nn.h"
#include "tests/error/checkpoint_cases.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_folder.h"

namespace tenon {
namespace {

using test::entry;
using test::load_error;
using test::safetensors;
using test::TempFolder;
using test::write_file;

template <class T>
std::string raw(const std::vector<T>& values) {
  std::string bytes(values.size() * sizeof(T), '\0');
  std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

struct Foreign {
  std::string dtype;
  std::string shape;
  std::size_t bytes;
};

const std::vector<Foreign>& foreign_dtypes() {
  static const std::vector<Foreign> dtypes = {
      {"F8_E4M3", "[2,3]", 6}, {"F8_E5M2", "[6]", 6}, {"F8_E8M0", "[]", 1}, {"U16", "[2,2]", 8},
      {"U32", "[3]", 12},      {"U64", "[0,4]", 0},   {"C64", "[1]", 8},    {"F4", "[2,3]", 3},
      {"F6_E2M3", "[4]", 3},   {"BF16_X", "[2]", 5},  {"f32", "[2]", 8},    {"\\u0001", "[1]", 1}};
  return dtypes;
}

// "weight" (2, 2) and "bias" (2) of a Linear around a tensor of another dtype.
std::string linear_file(const Foreign& foreign, const std::string& name) {
  const std::string end = std::to_string(16 + foreign.bytes);
  const std::string header =
      "{" + entry("weight", "F32", "[2,2]", "[0,16]") + "," +
      entry(name, foreign.dtype, foreign.shape, "[16," + end + "]") + "," +
      entry("bias", "F32", "[2]", "[" + end + "," + std::to_string(24 + foreign.bytes) + "]") + "}";
  return safetensors(
      header, raw<float>({1, 2, 3, 4}) + std::string(foreign.bytes, '\x7f') + raw<float>({5, 6}));
}

TEST(SafetensorsDtypes, ADtypeWithoutCounterpartIsSkippedAndTheOthersLoad) {
  const TempFolder folder;
  const std::string path = folder / "m.safetensors";
  for (const Foreign& foreign : foreign_dtypes()) {
    SCOPED_TRACE(foreign.dtype);
    write_file(path, linear_file(foreign, "scale"));
    const nn::Checkpoint loaded = nn::load_checkpoint(path);
    EXPECT_EQ(loaded.tensors.size(), 2U);
    EXPECT_EQ(loaded.tensors.at("weight").to_doubles(), (std::vector<double>{1, 2, 3, 4}));
    EXPECT_EQ(loaded.tensors.at("bias").to_doubles(), (std::vector<double>{5, 6}));
    ASSERT_EQ(loaded.tensors.skipped().size(), 1U);
    EXPECT_EQ(loaded.tensors.skipped()[0].name, "scale");
    // A module that does not need it loads, and the report names it.
    const auto model = nn::make<nn::Linear>(2, 2);
    const nn::LoadReport report = nn::load_into(*model, loaded);
    EXPECT_EQ(report.loaded.size(), 2U);
    ASSERT_EQ(report.skipped.size(), 1U);
    EXPECT_EQ(report.skipped[0].name, "scale");
    EXPECT_NE(report.to_string().find("skipped (1): \"scale\""), std::string::npos);
    EXPECT_EQ(model->weight.to_doubles(), (std::vector<double>{1, 2, 3, 4}));
  }
  EXPECT_EQ(nn::load_checkpoint(path).tensors.skipped()[0].spec, "\\x01(1,)");
}

TEST(SafetensorsDtypes, AModuleThatNeedsASkippedTensorIsToldWhy) {
  const TempFolder folder;
  const std::string path = folder / "m.safetensors";
  const std::string header = "{" + entry("weight", "F8_E4M3", "[2,2]", "[0,4]") + "," +
                             entry("bias", "F32", "[2]", "[4,12]") + "}";
  write_file(path, safetensors(header, "abcd" + raw<float>({5, 6})));
  const nn::Checkpoint loaded = nn::load_checkpoint(path);
  const auto model = nn::make<nn::Linear>(2, 2);
  const std::vector<double> before = model->bias.to_doubles();
  const std::string problem =
      " nothing was changed:\n  missing (1): \"weight\": given F8_E4M3(2, 2), of a dtype that "
      "Tenon "
      "lacks, needed float32(2, 2)";
  EXPECT_ERROR(ModuleError, "[load_into] " + path + " does not fit Linear," + problem,
               nn::load_into(*model, loaded));
  EXPECT_ERROR(ModuleError, "[load_state_dict] Linear cannot take this state dict," + problem,
               model->load_state_dict(loaded.state_dict()));
  EXPECT_EQ(model->bias.to_doubles(), before);
  const nn::LoadReport report = nn::load_into(*model, loaded, {.allow_missing = {"weight"}});
  EXPECT_EQ(report.allowed_missing, std::vector<std::string>{"weight"});
  EXPECT_EQ(model->bias.to_doubles(), (std::vector<double>{5, 6}));
  EXPECT_FALSE(loaded.tensors.contains("weight"));
  EXPECT_ERROR(ModuleError,
               "[state_dict] tensor \"weight\" was skipped: F8_E4M3(2, 2) is of a dtype that Tenon "
               "lacks; convert it in the file",
               loaded.tensors.at("weight"));
}

TEST(SafetensorsDtypes, ASkippedTensorIsNotLostInSaving) {
  const TempFolder folder;
  const std::string path = folder / "m.safetensors";
  const std::string file = linear_file({"F8_E5M2", "[4]", 4}, "scale");
  write_file(path, file);
  const nn::Checkpoint loaded = nn::load_checkpoint(path);
  for (const std::string name : {"m.safetensors", "m.json"}) {
    EXPECT_ERROR(CheckpointError,
                 "[save_checkpoint] " + (folder / name) +
                     ": tensor \"scale\": is F8_E5M2(4,) in the file it was read from, of a dtype "
                     "that Tenon lacks, and would be lost; save a StateDict of the others",
                 nn::save_checkpoint(folder / name, loaded));
  }
  EXPECT_EQ(test::read_file(path), file);
}

TEST(SafetensorsDtypes, OffsetsAndSizesOfSkippedTensorsAreChecked) {
  const TempFolder folder;
  const std::string path = folder / "m.safetensors";
  const auto error_of = [&](const std::string& header, std::size_t bytes) {
    write_file(path, safetensors("{" + header + "}", std::string(bytes, '\1')));
    const std::string error = load_error(path);
    return error.substr(0, error.find(" (line"));
  };
  const std::string u8 = entry("a", "U8", "[2]", "[0,2]");
  const std::string head = "tensor \"b\": ";
  EXPECT_EQ(error_of(u8 + "," + entry("b", "F8_E4M3", "[3]", "[2,4]"), 4),
            head + "data_offsets [2, 4] do not span the 3 bytes of F8_E4M3(3,)");
  EXPECT_EQ(error_of(u8 + "," + entry("b", "U64", "[1]", "[2,6]"), 6),
            head + "data_offsets [2, 6] do not span the 8 bytes of U64(1,)");
  EXPECT_EQ(error_of(u8 + "," + entry("b", "I16", "[1]", "[2,3]"), 3),
            head + "data_offsets [2, 3] do not span the 2 bytes of int16(1,)");
  EXPECT_EQ(error_of(u8 + "," + entry("b", "F4", "[2]", "[3,2]"), 3),
            head + "data_offsets [3, 2] do not span the bytes of F4(2,)");
  EXPECT_EQ(error_of(u8 + "," + entry("b", "F4", "[2]", "[3,4]"), 4),
            head + "starts at byte 3, where byte 2 is next: there is a hole");
  EXPECT_EQ(error_of(u8 + "," + entry("b", "F4", "[2]", "[1,2]"), 2),
            head + "starts at byte 1, where byte 2 is next: tensors overlap");
  EXPECT_EQ(error_of(u8 + "," + entry("b", "F4", "[2]", "[2,9]"), 3),
            head + "data_offsets [2, 9] reach outside the 3 bytes of data; is the file truncated?");
  EXPECT_EQ(error_of(u8 + "," + entry("b", "F4", "[2]", "[2,3]"), 4),
            "1 bytes follow the last tensor; needed none");
  EXPECT_EQ(error_of(u8 + "," + entry("b", "", "[2]", "[2,3]"), 3), head + "dtype is empty");
  EXPECT_EQ(error_of(u8 + "," + entry("b", "F4", "[-2]", "[2,3]"), 3),
            head + "a size of shape is -2; needed an integer in [0, 2^63)");
  EXPECT_EQ(error_of(u8 + "," + entry("a", "F4", "[2]", "[2,3]"), 3), "the key \"a\" stands twice");
}

TEST(SafetensorsDtypes, ASideFileMayHoldOtherDtypesToo) {
  const TempFolder folder;
  const std::string side = safetensors(
      "{" + entry("w", "U8", "[2]", "[0,2]") + "," + entry("f", "F4", "[2]", "[2,3]") + "}", "abc");
  write_file(folder / "side.safetensors", side);
  const auto manifest = [&](const std::string& name) {
    return R"({"format": "tenon.checkpoint", "version": 1, "files": {"s": {"path": )"
           R"("side.safetensors", "size": )" +
           std::to_string(side.size()) + R"(, "sha256": ")" + test::sha256(side) +
           R"("}}, "tensors": {")" + name +
           R"(": {"dtype": "uint8", "shape": [2], "file": "s", "data_offsets": [0, 2]}}})";
  };
  write_file(folder / "m.json", manifest("w"));
  EXPECT_EQ(nn::load_checkpoint(folder / "m.json").tensors.at("w").to_doubles(),
            (std::vector<double>{'a', 'b'}));
  write_file(folder / "m.json", manifest("f"));
  EXPECT_EQ(load_error(folder / "m.json"),
            "file \"s\" (side.safetensors): tensor \"f\": the manifest says uint8(2,) at [0, 2], "
            "the file's header F4(2,) at [2, 3]");
}

TEST(SafetensorsDtypes, Int16AndInt8Load) {
  const TempFolder folder;
  const std::string path = folder / "m.safetensors";
  const std::string header = "{" + entry("short", "I16", "[2,2]", "[0,8]") + "," +
                             entry("byte", "I8", "[3]", "[8,11]") + "}";
  write_file(path, safetensors(header, raw<std::int16_t>({-32768, 32767, -1, 300}) +
                                           raw<std::int8_t>({-128, 127, -1})));
  const nn::Checkpoint loaded = nn::load_checkpoint(path);
  EXPECT_EQ(loaded.tensors.at("short").spec().to_string(), "int16(2, 2)");
  EXPECT_EQ(loaded.tensors.at("short").to_vector<std::int16_t>(),
            (std::vector<std::int16_t>{-32768, 32767, -1, 300}));
  EXPECT_EQ(loaded.tensors.at("byte").dtype(), DType::int8);
  EXPECT_EQ(loaded.tensors.at("byte").to_vector<std::int8_t>(),
            (std::vector<std::int8_t>{-128, 127, -1}));
}

struct Quantized : nn::Module {
  Quantized()
      : codes(register_buffer("codes", zeros({2, 3}, {DType::int8, kCpu}))),
        offsets(register_buffer("offsets", zeros({2}, {DType::int16, kCpu}))) {}
  Tensor codes, offsets;
};

TEST(SafetensorsDtypes, BuffersOfInt8AndInt16AreSavedLoadedAndKeptByTo) {
  for (const std::string name : {"m.json", "m.safetensors"}) {
    const TempFolder folder;
    const auto model = nn::make<Quantized>();
    model->codes.copy_(from_vector<std::int8_t>({-128, 127, 0, 1, -1, 64}, {2, 3}));
    model->offsets.copy_(from_vector<std::int16_t>({-32768, 32767}, {2}));
    nn::save_checkpoint(folder / name, {.tensors = model->state_dict()}, {0, 0});
    const auto other = nn::make<Quantized>();
    other->to(DType::bfloat16);
    nn::load_into(*other, nn::load_checkpoint(folder / name));
    EXPECT_EQ(other->codes.to_vector<std::int8_t>(), model->codes.to_vector<std::int8_t>());
    EXPECT_EQ(other->offsets.to_vector<std::int16_t>(), model->offsets.to_vector<std::int16_t>());
  }
}

}  // namespace
}  // namespace tenon
