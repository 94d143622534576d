// Hostile checkpoints: each is refused with a CheckpointError of exactly this text, quickly, without
// allocating what is merely claimed, and with the model untouched.
#include <gtest/gtest.h>

#include <openssl/evp.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <bit>
#include <chrono>
#include <csignal>
#include <cstring>

#include "nn/nn.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_folder.h"

namespace tenon {
namespace {

namespace fs = std::filesystem;
using test::TempFolder;
using test::write_file;

std::string load_error(const std::string& path) {
  const std::string text =
      test::error_text<CheckpointError>([&] { (void)nn::load_checkpoint(path); });
  const std::string prefix = "[load_checkpoint] " + path + ": ";
  EXPECT_TRUE(text.starts_with(prefix)) << text;
  return text.size() > prefix.size() ? text.substr(prefix.size()) : text;
}

struct Case {
  std::string text;
  std::string error;
};

void expect_errors(const std::vector<Case>& cases) {
  const TempFolder folder;
  for (const Case& c : cases) {
    write_file(folder / "m.json", c.text);
    EXPECT_EQ(load_error(folder / "m.json"), c.error) << c.text.substr(0, 300);
  }
}

// A manifest around a value for "tensors", and around one tensor.
std::string with_tensors(const std::string& tensors) {
  return R"({"format": "tenon.checkpoint", "version": 1, "tensors": )" + tensors + "}";
}
std::string with_tensor(const std::string& tensor) { return with_tensors(R"({"w": )" + tensor + "}"); }
std::string with_data(const std::string& dtype, const std::string& shape, const std::string& data) {
  return with_tensor(R"({"dtype": ")" + dtype + R"(", "shape": )" + shape + R"(, "data": )" + data + "}");
}
// The error without its position, which the first tests pin down.
std::string at(const std::string& message, int column) {
  return message + " (line 1, column " + std::to_string(column) + ")";
}

TEST(CheckpointSyntax, EveryTruncationIsRefused) {
  const TempFolder folder;
  const std::string whole =
      R"({"format": "tenon.checkpoint", "version": 1, "metadata": {"a": "\u00e9"}, "tensors": {)"
      R"("w": {"dtype": "float32", "shape": [2], "data": [1.5, "nan"]},)"
      R"("v": {"dtype": "uint8", "shape": [2], "base64": "AQI="}}, "aliases": {"u": "w"}})";
  write_file(folder / "m.json", whole);
  EXPECT_EQ(nn::load_checkpoint(folder / "m.json").state_dict().size(), 3U);
  for (std::size_t length = 1; length < whole.size(); ++length) {
    write_file(folder / "m.json", whole.substr(0, length));
    const std::string error = load_error(folder / "m.json");
    EXPECT_NE(error.find("(line 1, column "), std::string::npos) << length << ": " << error;
  }
}

TEST(CheckpointSyntax, IsStrictJson) {
  const std::string ok = with_tensors("{}");
  expect_errors({
      {"", "is empty"},
      {"  \n\t ", "the text ends where a value is needed; is it truncated? (line 2, column 3)"},
      {ok + " x", at("text after the end of the document", static_cast<int>(ok.size()) + 2)},
      {ok + ok, at("text after the end of the document", static_cast<int>(ok.size()) + 1)},
      {"\xef\xbb\xbf" + ok, at("starts with a byte order mark; needed plain UTF-8", 1)},
      {std::string("\xff\xfe{\0", 4), at("is UTF-16; needed UTF-8", 1)},
      {std::string("{\0\"\0", 4), at("unexpected '\\x00'; needed a key in double quotes", 2)},
      {"[]", at("the document is an array; needed an object", 1)},
      {"{\"a\": 1,}", at("a comma before '}'", 9)},
      {"{\"a\": [1,]}", at("a comma before ']'", 10)},
      {"{\"a\" 1}", at("needed ':' after the key \"a\"", 6)},
      {"{\"a\": 1 \"b\": 2}", at("unexpected '\"'; needed ',' or '}'", 9)},
      {"{'a': 1}", at("unexpected '''; needed a key in double quotes", 2)},
      {"{/* */}", at("unexpected '/'; needed a key in double quotes", 2)},
      {"{\"a\": NaN}",
       at("NaN and Infinity are not JSON; write the strings \"nan\", \"inf\" and \"-inf\"", 7)},
      {"{\"a\": -Infinity}", at("needed a digit at the start of a number", 8)},
      {"{\"a\": +1}", at("unexpected '+' where a value is needed", 7)},
      {"{\"a\": .5}", at("unexpected '.' where a value is needed", 7)},
      {"{\"a\": 1.}", at("needed a digit after the point of a number", 9)},
      {"{\"a\": 01}", at("a number with a leading zero", 8)},
      {"{\"a\": 0x10}", at("unexpected 'x'; needed ',' or '}'", 8)},
      {"{\"a\": 1e}", at("needed a digit in the exponent of a number", 9)},
      {"{\"a\": tru}", at("needed true", 7)},
      {"{\"a\": nul}", at("needed null", 7)},
      {"{\"a\": \"\xff\"}", at("invalid UTF-8 in a string", 8)},
      {"{\"a\": \"\xc0\x80\"}", at("invalid UTF-8 in a string", 8)},
      {"{\"a\": \"\xed\xa0\x80\"}", at("invalid UTF-8 in a string", 8)},
      {"{\"a\": \"\\ud800\"}", at("a lone surrogate in a string", 14)},
      {"{\"a\": \"\\udc00\"}", at("a lone surrogate in a string", 14)},
      {"{\"a\": \"\\ud800\\u0041\"}", at("a lone surrogate in a string", 20)},
      {"{\"a\": \"\\u12g4\"}", at("needed four hexadecimal digits after \\u", 12)},
      {"{\"a\": \"\\x\"}", at("unknown escape '\\x' in a string", 10)},
      {"{\"a\": \"\n\"}", at("control character '\\x0a' in a string; needed an escape", 8)},
      {"{\"a\": 1, \"a\": 2}", at("the key \"a\" stands twice", 13)},
      {"{\"a\": 1, \"\\u0061\": 2}", at("the key \"a\" stands twice", 18)},
  });
}

TEST(CheckpointSyntax, DeepNestingAndLongStringsStopAtACap) {
  const auto start = std::chrono::steady_clock::now();
  std::string chain = "{\"a\": ";
  for (int i = 0; i < 50'000; ++i) chain += "[{\"\":";
  expect_errors({
      {"{\"a\": " + std::string(10'000'000, '['), at("nested deeper than 64 levels", 70)},
      {chain, at("nested deeper than 64 levels", 163)},
      {"{\"a\": \"" + std::string(5'000'000, 'x') + "\"}", at("a string of more than 1048576 bytes", 1048585)},
      {with_tensors("{\"w\": {\"dtype\": \"float32\", \"shape\": [1000000], \"data\": [" +
                    [] {
                      std::string list;
                      for (int i = 0; i < 1'000'000; ++i) list += "[],";
                      return list;
                    }() + "[]]}}"),
       at("tensor \"w\": an array in data; needed numbers, not nested", 113)},
  });
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  EXPECT_LT(seconds.count(), 5);
}

TEST(CheckpointTop, FormatAndVersion) {
  expect_errors({
      {"{}", at("\"format\" is missing; needed \"tenon.checkpoint\"", 3)},
      {R"({"format": "other", "version": 1, "tensors": {}})",
       at("the format is \"other\"; needed \"tenon.checkpoint\"", 19)},
      {R"({"format": 1})", at("\"format\" is a number; needed a string", 12)},
      {R"({"format": "tenon.checkpoint", "tensors": {}})", at("\"version\" is missing", 46)},
      {R"({"format": "tenon.checkpoint", "version": 2, "tensors": {}})",
       at("version 2 is unknown; this program reads version 1", 44)},
      {R"({"format": "tenon.checkpoint", "version": 1.0, "tensors": {}})",
       at("version 1.0 is unknown; this program reads version 1", 46)},
      {R"({"format": "tenon.checkpoint", "version": "1"})",
       at("\"version\" is a string; needed a number", 43)},
      {R"({"format": "tenon.checkpoint", "version": 1})", at("\"tensors\" is missing", 45)},
      {with_tensors("[]"), at("\"tensors\" is an array; needed an object", 57)},
      {R"({"config": 3})", at("\"config\" is a number; needed an object", 12)},
      {R"({"metadata": {"a": {"b": 1, "b": 2}}})", at("the key \"b\" stands twice", 32)},
  });
}

TEST(CheckpointTop, UnknownTopLevelKeysArePassedOver) {
  const TempFolder folder;
  write_file(folder / "m.json", R"({"comment": {"any": [1, null, "thing"]}, "tensors": {}, "version": 1,
                                    "format": "tenon.checkpoint"})");
  EXPECT_TRUE(nn::load_checkpoint(folder / "m.json").tensors.empty());
}

TEST(CheckpointTensor, KeysAndNames) {
  const std::string good = R"({"dtype": "uint8", "shape": [1], "data": [1]})";
  expect_errors({
      {with_tensor("3"), at("tensor \"w\": the tensor's entry is a number; needed an object", 63)},
      {with_tensor(R"({"shape": [1], "data": [1]})"), at("tensor \"w\": dtype is missing", 90)},
      {with_tensor(R"({"dtype": "uint8", "data": [1]})"), at("tensor \"w\": shape is missing", 94)},
      {with_tensor(R"({"dtype": "uint8", "shape": [1]})"),
       at("tensor \"w\": has 0 of data, base64 and file; needed exactly one", 95)},
      {with_tensor(R"({"dtype": "uint8", "shape": [1], "data": [1], "base64": "AQ=="})"),
       at("tensor \"w\": has 2 of data, base64 and file; needed exactly one", 126)},
      {with_tensor(R"({"dtype": "uint8", "shape": [1], "file": "f"})"),
       at("tensor \"w\": file without data_offsets", 108)},
      {with_tensor(R"({"dtype": "uint8", "shape": [1], "data": [1], "data_offsets": [0, 1]})"),
       at("tensor \"w\": data_offsets without file", 132)},
      {with_tensor(R"({"dtype": "uint8", "shape": [1], "data": [1], "strides": [1]})"),
       at("tensor \"w\": unknown key \"strides\"; a tensor has dtype, shape and one of data, base64, "
          "or file with data_offsets", 119)},
      {with_tensor(R"({"dtype": "uint8", "shape": [1], "shape": [2], "data": [1]})"),
       at("tensor \"w\": the key \"shape\" stands twice", 103)},
      {with_tensor(R"({"dtype": "Float32", "shape": [1], "data": [1]})"),
       at("tensor \"w\": unknown dtype \"Float32\"; needed float32, float64, float16, bfloat16, "
          "int64, int32, uint8 or bool", 82)},
      {with_tensor(R"({"dtype": 32, "shape": [1], "data": [1]})"),
       at("tensor \"w\": dtype is a number; needed a string", 73)},
      {with_tensors("{\"w\": " + good + ", \"w\": " + good + "}"),
       at("the key \"w\" stands twice", 113)},
      {with_tensors("{\"w\": " + good + ", \"\\u0077\": " + good + "}"),
       at("the key \"w\" stands twice", 118)},
      {with_tensors("{\"\": " + good + "}"), at("tensor \"\": the name is empty", 61)},
      {with_tensors("{\"a\\u0000b\": " + good + "}"),
       at("tensor \"a\\x00b\": the name holds control characters", 69)},
      {with_tensors("{\"" + std::string(1'000'000, 'n') + "\": " + good + "}"),
       at("tensor \"" + std::string(200, 'n') + "… (1000000 bytes)\": the name is longer than 1024 bytes",
          1000061)},
  });
}

TEST(CheckpointTensor, NamesThatLookDangerousAreOnlyNames) {
  const TempFolder folder;
  const std::string good = R"({"dtype": "uint8", "shape": [1], "data": [1]})";
  // NFC and NFD spellings stay two names.
  write_file(folder / "m.json", with_tensors("{\"../../x\": " + good + ", \"__proto__\": " + good +
                                             ", \"a/b\": " + good + ", \"\xc3\xa9\": " + good +
                                             ", \"e\xcc\x81\": " + good + "}"));
  EXPECT_EQ(nn::load_checkpoint(folder / "m.json").tensors.size(), 5U);
}

TEST(CheckpointTensor, Shapes) {
  const auto shape = [](const std::string& text) { return with_data("float32", text, "[]"); };
  const auto size_error = [](const std::string& given, int column) {
    return at("tensor \"w\": a size of shape is " + given + "; needed an integer in [0, 2^63)", column);
  };
  expect_errors({
      {shape("3"), at("tensor \"w\": shape is a number; needed an array", 93)},
      {shape("\"3\""), at("tensor \"w\": shape is a string; needed an array", 93)},
      {shape("[[3]]"), at("tensor \"w\": a size of shape is an array; needed a number", 94)},
      {shape("[\"3\"]"), at("tensor \"w\": a size of shape is a string; needed a number", 94)},
      {shape("[null]"), at("tensor \"w\": a size of shape is null; needed a number", 94)},
      {shape("[true]"), at("tensor \"w\": a size of shape is true or false; needed a number", 94)},
      {shape("[-1, -1]"), size_error("-1", 96)},
      {shape("[1.5]"), size_error("1.5", 97)},
      {shape("[1e3]"), size_error("1e3", 97)},
      {shape("[9223372036854775808]"), size_error("9223372036854775808", 113)},
      {shape("[18446744073709551617]"), size_error("18446744073709551617", 114)},
      {shape("[0, 18446744073709551615]"), size_error("18446744073709551615", 117)},
      {shape("[" + std::string(1000, '9') + "]"),
       size_error(std::string(200, '9') + "… (1000 bytes)", 1094)},
      {shape("[4294967297]"),
       at("tensor \"w\": shape (4294967297,) needs 4294967297 values; the text ends before that", 115)},
      {shape("[4194305, 4194305, 211106198978564]"),
       at("tensor \"w\": shape (4194305, 4194305, 211106198978564) has more than 2^63 elements", 127)},
      {shape("[2, 9223372036854775807]"),
       at("tensor \"w\": shape (2, 9223372036854775807) has more than 2^63 elements", 116)},
      {shape("[0, 9223372036854775807, 2]"),
       at("tensor \"w\": shape (0, 9223372036854775807, 2) has more than 2^63 elements", 119)},
      {shape("[9223372036854775807]"),
       at("tensor \"w\": float32(9223372036854775807,) has more than 2^63 bytes", 124)},
      {shape("[1,1,1,1,1,1,1,1,1]"), at("tensor \"w\": shape has more than 8 sizes", 110)},
      {shape("[250000000000]"),
       at("tensor \"w\": shape (250000000000,) needs 250000000000 values; the text ends before that", 117)},
  });
}

TEST(CheckpointTensor, Data) {
  const auto f32 = [](const std::string& data) { return with_data("float32", "[2]", data); };
  const auto one = [](const std::string& dtype, const std::string& value) {
    return with_data(dtype, "[1]", "[" + value + "]");
  };
  expect_errors({
      {f32("[1]"), at("tensor \"w\": data has 1 values; shape (2,) needs 2", 109)},
      {f32("[1, 2, 3]"), at("tensor \"w\": data has more values than the 2 of shape (2,)", 113)},
      {f32("[[1], [2]]"), at("tensor \"w\": an array in data; needed numbers, not nested", 107)},
      {f32("[1, null]"),
       at("tensor \"w\": null in data; non-finite values are the strings \"nan\", \"inf\" and \"-inf\"", 110)},
      {f32("[1, NaN]"),
       at("tensor \"w\": NaN and Infinity are not JSON; write the strings \"nan\", \"inf\" and \"-inf\"", 110)},
      {f32("[1, true]"), at("tensor \"w\": true or false in data; needed numbers, not nested", 110)},
      {f32("[1, \"NaN\"]"),
       at("tensor \"w\": \"NaN\" in data; needed a number, \"nan\", \"inf\" or \"-inf\"", 115)},
      {f32("[1, \"1\"]"),
       at("tensor \"w\": \"1\" in data; needed a number, \"nan\", \"inf\" or \"-inf\"", 113)},
      {f32("\"12\""), at("tensor \"w\": data is a string; needed an array", 106)},
      {f32("[1, 1e39]"), at("tensor \"w\": 1e39 is out of range for float32", 114)},
      {f32("[1, -3.4028236e38]"), at("tensor \"w\": -3.4028236e38 is out of range for float32", 123)},
      {f32("[1, 1" + std::string(400, '0') + "]"),
       at("tensor \"w\": 1" + std::string(199, '0') + "… (401 bytes) is out of range for float32", 511)},
      {one("float64", "1e400"), at("tensor \"w\": 1e400 is out of range for float64", 112)},
      {one("float64", "-1e99999999999999999999"),
       at("tensor \"w\": -1e99999999999999999999 is out of range for float64", 130)},
      {one("float16", "65520"), at("tensor \"w\": 65520 is out of range for float16", 112)},
      {one("bfloat16", "3.4e38"), at("tensor \"w\": 3.4e38 is out of range for bfloat16", 114)},
      {one("int64", "9223372036854775808"),
       at("tensor \"w\": 9223372036854775808 is out of range for int64", 124)},
      {one("int64", "1.0"), at("tensor \"w\": 1.0 in data; needed an integer for int64", 108)},
      {one("int64", "\"nan\""), at("tensor \"w\": a value of a int64 tensor is a string; needed a number", 105)},
      {one("int32", "2147483648"), at("tensor \"w\": 2147483648 is out of range for int32", 115)},
      {one("uint8", "256"), at("tensor \"w\": 256 is out of range for uint8", 108)},
      {one("uint8", "-1"), at("tensor \"w\": -1 is out of range for uint8", 107)},
      {one("bool", "1"), at("tensor \"w\": a value of a bool tensor is a number; needed true or false", 104)},
  });
}

TEST(CheckpointTensor, NumbersAtTheEdgesAreExact) {
  const TempFolder folder;
  const auto first_bits = [&](const std::string& value) {
    write_file(folder / "m.json", with_data("float32", "[1]", "[" + value + "]"));
    const Tensor tensor = nn::load_checkpoint(folder / "m.json").tensors.at("w");
    return std::bit_cast<std::uint32_t>(*tensor.data<float>());
  };
  EXPECT_EQ(first_bits("-0"), 0x80000000U);
  EXPECT_EQ(first_bits("-0.0e5"), 0x80000000U);
  EXPECT_EQ(first_bits("1e-45"), 1U);
  EXPECT_EQ(first_bits("1e-400"), 0U);
  EXPECT_EQ(first_bits("-1e-99999999999999999999"), 0x80000000U);
  EXPECT_EQ(first_bits("0." + std::string(500, '0') + "1"), 0U);
  EXPECT_EQ(first_bits("0." + std::string(500, '0') + "1e501"), 0x3f800000U);
  EXPECT_EQ(first_bits("0e999"), 0U);
  EXPECT_EQ(first_bits("3.4028235e38"), 0x7f7fffffU);
  EXPECT_EQ(first_bits("\"-inf\""), 0xff800000U);
  // Rounded once: through a double this would tie and go to the even neighbour below.
  EXPECT_EQ(first_bits("1.00000005960464477540"), 0x3f800001U);
}

TEST(CheckpointTensor, DataMayStandBeforeDtypeAndShape) {
  const TempFolder folder;
  write_file(folder / "m.json",
             with_tensors(R"({"a": {"data": [1, 2], "shape": [2], "dtype": "uint8"},
                              "b": {"base64": "AQI=", "dtype": "uint8", "shape": [1, 2]},
                              "c": {"shape": [], "dtype": "bool", "data": [true]},
                              "d": {"base64": "\/\/8=", "dtype": "uint8", "shape": [2]}})"));
  const nn::StateDict tensors = nn::load_checkpoint(folder / "m.json").tensors;
  EXPECT_EQ(tensors.at("a").to_doubles(), (std::vector<double>{1, 2}));
  EXPECT_EQ(tensors.at("b").to_doubles(), (std::vector<double>{1, 2}));
  EXPECT_EQ(tensors.at("c").to_doubles(), std::vector<double>{1});
  EXPECT_EQ(tensors.at("d").to_doubles(), (std::vector<double>{255, 255}));
  expect_errors({{with_tensor(R"({"data": [1], "shape": [2], "dtype": "uint8"})"),
                  at("tensor \"w\": data has 1 values; shape (2,) needs 2", 75)}});
}

TEST(CheckpointTensor, Base64) {
  const auto base64 = [](const std::string& shape, const std::string& text) {
    return with_tensor(R"({"dtype": "uint8", "shape": )" + shape + R"(, "base64": ")" + text + "\"}");
  };
  const std::string malformed =
      "tensor \"w\": base64 is malformed; needed the standard alphabet, padded, nothing else";
  expect_errors({
      {base64("[2]", "AQI"), at("tensor \"w\": base64 has 3 characters; uint8(2,) is 2 bytes", 111)},
      {base64("[2]", "AQIDBAUG"),
       at("tensor \"w\": base64 has 8 characters; uint8(2,) is 2 bytes", 116)},
      {base64("[2]", "AQJ="), at(malformed, 112)},  // stray bits
      {base64("[1]", "AR=="), at(malformed, 112)},
      {base64("[2]", "AQ=="), at(malformed, 112)},
      {base64("[3]", "AQI="), at(malformed, 112)},
      {base64("[2]", "A-I="), at(malformed, 112)},
      {base64("[2]", "A I="), at(malformed, 112)},
      {base64("[3]", "A\xc3\xa9x"), at(malformed, 112)},
      {base64("[9223372036854775807]", "AQI="),
       at("tensor \"w\": base64 has 4 characters; uint8(9223372036854775807,) is 9223372036854775807 "
          "bytes", 130)},
      {with_tensor(R"({"dtype": "bool", "shape": [2], "base64": "AQI="})"),
       at("tensor \"w\": a byte of a bool tensor is neither 0 nor 1", 111)},
  });
}

TEST(CheckpointAliases, AndTests) {
  const std::string head = R"({"format": "tenon.checkpoint", "version": 1, "tensors": {"w": {"dtype": "uint8", "shape": [1], "data": [1]}}, )";
  const int n = static_cast<int>(head.size());
  expect_errors({
      {head + R"("aliases": {"a": "x"}})", at("alias \"a\": no tensor \"x\"", n + 23)},
      {head + R"("aliases": {"w": "w"}})", at("alias \"w\": a tensor has this name too", n + 23)},
      {head + R"("aliases": {"a": "w", "b": "a"}})", at("alias \"b\": no tensor \"a\"", n + 33)},
      {head + R"("aliases": {"a": 1}})", at("alias \"a\": its target is a number; needed a string", n + 18)},
      {head + R"("tests": {}})", at("\"tests\" is an object; needed an array", n + 10)},
      {head + R"("tests": [{"inputs": []}]})", at("tests[0]: outputs is missing", n + 25)},
      {head + R"("tests": [{"mode": "fast"}]})",
       at("tests[0]: mode is \"fast\"; needed \"eval\" or \"train\"", n + 26)},
      {head + R"("tests": [{"rtol": -1}]})", at("tests[0]: rtol is -1; needed at least 0", n + 22)},
      {head + R"("tests": [{"rtol": 1e400}]})", at("tests[0]: 1e400 is out of range for float64", n + 25)},
      {head + R"("tests": [{"seed": 1}]})",
       at("tests[0]: unknown key \"seed\"; a test has mode, inputs, outputs, rtol and atol", n + 19)},
      {head + R"("tests": [{"inputs": [{"dtype": "uint8", "shape": [2], "data": [1]}]}]})",
       at("tests[0].inputs[0]: data has 1 values; shape (2,) needs 2", n + 67)},
  });
}

TEST(CheckpointFile, OtherFormatsAreNamed) {
  const TempFolder folder;
  const std::string tail =
      "; needed a JSON checkpoint or a .safetensors file, as tools/export_checkpoint.py writes them";
  const std::vector<Case> cases = {
      {std::string("PK\x03\x04", 4) + "xxxxxxxx", "is a zip archive (a PyTorch .pt or NumPy .npz file?)"},
      {"\x80\x02}q", "is a Python pickle"},
      {"\x80\x05\x95", "is a Python pickle"},
      {"GGUF\x03", "is a GGUF file"},
      {"\x89HDF\r\n\x1a\n", "is an HDF5 file"},
      {"\x1f\x8b\x08", "is gzip-compressed"},
      {"\x93NUMPY\x01", "is a NumPy array"},
  };
  for (const std::string name : {"m.json", "m.safetensors", "m.bin"}) {
    for (const Case& c : cases) {
      write_file(folder / name, c.text);
      EXPECT_EQ(load_error(folder / name), c.error + tail);
    }
  }
}

TEST(CheckpointFile, OnlyRegularFilesAreRead) {
  const TempFolder folder;
  EXPECT_EQ(load_error(folder / "none.json"), "cannot be opened: No such file or directory");
  EXPECT_EQ(load_error(folder.path().string()), "is a directory; needed a regular file");
  ASSERT_EQ(::mkfifo((folder / "fifo.json").c_str(), 0600), 0);
  EXPECT_EQ(load_error(folder / "fifo.json"), "is a FIFO; needed a regular file");
  EXPECT_EQ(load_error("/dev/zero"), "is a device; needed a regular file");
  fs::create_symlink("loop.json", folder / "loop.json");
  EXPECT_EQ(load_error(folder / "loop.json"), "cannot be opened: Too many levels of symbolic links");
  fs::create_symlink("nothing", folder / "dangling.json");
  EXPECT_EQ(load_error(folder / "dangling.json"), "cannot be opened: No such file or directory");
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, (folder / "socket").c_str(), sizeof(address.sun_path) - 1);
  const int socket = ::socket(AF_UNIX, SOCK_STREAM, 0);
  ASSERT_EQ(::bind(socket, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  EXPECT_EQ(load_error(folder / "socket"), "cannot be opened: No such device or address");
  ::close(socket);
  if (::geteuid() != 0) {
    write_file(folder / "secret.json", with_tensors("{}"));
    fs::permissions(folder / "secret.json", fs::perms::none);
    EXPECT_EQ(load_error(folder / "secret.json"), "cannot be opened: Permission denied");
  }
}

TEST(CheckpointFile, PathsAreEscapedInMessages) {
  const TempFolder folder;
  const std::string text = test::error_text<CheckpointError>(
      [&] { (void)nn::load_checkpoint(folder / "a\nb.json"); });
  EXPECT_EQ(text, "[load_checkpoint] " + folder.path().string() +
                      "/a\\x0ab.json: cannot be opened: No such file or directory");
}

TEST(CheckpointFile, ALargeManifestIsRefusedByItsSize) {
  const TempFolder folder;
  write_file(folder / "m.json", with_tensors("{}"));
  EXPECT_EQ(test::error_text<CheckpointError>(
                [&] { (void)nn::load_checkpoint(folder / "m.json", {.max_manifest_bytes = 10}); }),
            "[load_checkpoint] " + (folder / "m.json") +
                ": the manifest has 59 bytes; at most 10 are read");
  fs::resize_file(folder / "m.json", std::uintmax_t{1} << 40);  // sparse
  EXPECT_EQ(load_error(folder / "m.json"),
            "the manifest has 1099511627776 bytes; at most 2147483648 are read");
}

// --- .safetensors -------------------------------------------------------------------------------

std::string safetensors(const std::string& header, const std::string& data) {
  std::string file(8, '\0');
  const std::uint64_t length = header.size();
  std::memcpy(file.data(), &length, 8);
  return file + header + data;
}

std::string sha256(const std::string& text) {
  unsigned char digest[32];
  EVP_Digest(text.data(), text.size(), digest, nullptr, EVP_sha256(), nullptr);
  std::string hex;
  for (unsigned char byte : digest) {
    hex += "0123456789abcdef"[byte >> 4];
    hex += "0123456789abcdef"[byte & 15];
  }
  return hex;
}

std::string entry(const std::string& name, const std::string& dtype, const std::string& shape,
                  const std::string& offsets) {
  return '"' + name + R"(":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" +
         offsets + "}";
}

TEST(Safetensors, HeadersAreChecked) {
  const TempFolder folder;
  const std::string good = "{" + entry("w", "U8", "[2]", "[0,2]") + "}";
  const auto length_of = [](std::uint64_t length, const std::string& rest) {
    std::string file(8, '\0');
    std::memcpy(file.data(), &length, 8);
    return file + rest;
  };
  const std::vector<Case> cases = {
      {"abc", "has 3 bytes; a .safetensors file starts with 8 bytes of header length"},
      {length_of(0, ""), "the header does not start with '{'"},
      {length_of(0, "xx"), "the header does not start with '{'"},
      {length_of(std::uint64_t{1} << 63, good),
       "the header length is 9223372036854775808; at most 100000000 is allowed"},
      {length_of(~std::uint64_t{0}, good),
       "the header length is 18446744073709551615; at most 100000000 is allowed"},
      {length_of(100'000'001, good),
       "the header length is 100000001; at most 100000000 is allowed"},
      {length_of(__builtin_bswap64(good.size()), good + "xx"),
       "the header length is 3819052484010180608; at most 100000000 is allowed"},
      {length_of(1000, good),
       "the header is 1000 bytes long, but the file has only 61; is it truncated?"},
      {safetensors(" " + good, "xx"), "the header does not start with '{'"},
      {safetensors("[]", ""), "the header does not start with '{'"},
      {safetensors(good + "x", "xx"), at("text after the end of the document", 54)},
      {safetensors(good, "xxx"), "1 bytes follow the last tensor; needed none"},
      {safetensors(good, "x"),
       "tensor \"w\": data_offsets [0, 2] reach outside the 1 bytes of data; is the file truncated?"},
      {safetensors("{" + entry("a", "U8", "[2]", "[0,2]") + "," + entry("b", "U8", "[2]", "[1,3]") + "}", "xxx"),
       "tensor \"b\": starts at byte 1, where byte 2 is next: tensors overlap"},
      {safetensors("{" + entry("a", "U8", "[2]", "[0,2]") + "," + entry("b", "U8", "[2]", "[0,2]") + "}", "xx"),
       "tensor \"b\": starts at byte 0, where byte 2 is next: tensors overlap"},
      {safetensors("{" + entry("a", "U8", "[1]", "[0,1]") + "," + entry("b", "U8", "[1]", "[2,3]") + "}", "xxx"),
       "tensor \"b\": starts at byte 2, where byte 1 is next: there is a hole"},
      {safetensors("{" + entry("a", "U8", "[1]", "[1,2]") + "}", "xx"),
       "tensor \"a\": starts at byte 1, where byte 0 is next: there is a hole"},
      {safetensors("{" + entry("a", "U8", "[1]", "[2,1]") + "}", "xx"),
       at("tensor \"a\": data_offsets [2, 1] do not span the 1 bytes of uint8(1,)", 53)},
      {safetensors("{" + entry("a", "F32", "[1]", "[0,2]") + "}", "xx"),
       at("tensor \"a\": data_offsets [0, 2] do not span the 4 bytes of float32(1,)", 54)},
      {safetensors("{" + entry("a", "U8", "[1]", "[-1,0]") + "}", ""),
       at("tensor \"a\": an offset is -1; needed an integer in [0, 2^63)", 50)},
      {safetensors("{" + entry("a", "U8", "[1]", "[0]") + "}", "x"),
       at("tensor \"a\": data_offsets has 1 numbers; needed 2", 50)},
      {safetensors("{" + entry("a", "U8", "[1]", "[0,1,1]") + "}", "x"),
       at("tensor \"a\": data_offsets has more than 2 numbers", 52)},
      {safetensors("{" + entry("a", "F8_E4M3", "[1]", "[0,1]") + "}", "x"),
       at("tensor \"a\": unknown dtype \"F8_E4M3\"; needed F32, F64, F16, BF16, I64, I32, U8 or BOOL", 24)},
      {safetensors("{" + entry("a", "U8", "[4194305,4194305,211106198978564]", "[0,4]") + "}", "xxxx"),
       at("tensor \"a\": shape (4194305, 4194305, 211106198978564) has more than 2^63 elements", 60)},
      {safetensors("{" + entry("a", "U8", "[1]", "[0,1]") + "," + entry("a", "U8", "[1]", "[1,2]") + "}", "xx"),
       at("the key \"a\" stands twice", 57)},
      {safetensors("{\"__metadata__\":{\"a\":1}," + good.substr(1), "xx"),
       at("\"a\" of __metadata__ is a number; needed a string", 22)},
      {safetensors("{\"__metadata__\":{\"a\":\"1\",\"a\":\"1\"}," + good.substr(1), "xx"),
       at("the key \"a\" stands twice", 29)},
      {safetensors(R"({"a":{"dtype":"U8","shape":[1]}})", ""),
       at("tensor \"a\": data_offsets is missing", 32)},
      {safetensors(R"({"a":{"dtype":"U8","shape":[1],"x":1}})", ""),
       at("tensor \"a\": unknown key \"x\"; needed dtype, shape and data_offsets", 36)},
      {safetensors("{" + entry("", "U8", "[1]", "[0,1]") + "}", "x"), "tensor \"\": the name is empty"},
      {safetensors("{" + entry("a", "BOOL", "[1]", "[0,1]") + "}", "\x02"),
       "tensor \"a\": a byte of a bool tensor is neither 0 nor 1"},
  };
  for (const Case& c : cases) {
    write_file(folder / "m.safetensors", c.text);
    EXPECT_EQ(load_error(folder / "m.safetensors"), c.error);
  }
  const std::string whole = safetensors(good, "xy");
  for (std::size_t length = 1; length < whole.size(); ++length) {
    write_file(folder / "m.safetensors", whole.substr(0, length));
    EXPECT_FALSE(load_error(folder / "m.safetensors").empty());
  }
}

TEST(Safetensors, OddButValidHeaders) {
  const TempFolder folder;
  // Trailing spaces, an odd header length (unaligned doubles), empty tensors, another file name.
  std::string header = R"({"__metadata__":{"format":"pt"},)" + entry("w", "F64", "[1]", "[0,8]") + "," +
                       entry("e", "F32", "[0,3]", "[8,8]") + "," + entry("s", "U8", "[]", "[8,9]") + "}";
  header += header.size() % 2 == 0 ? " " : "  ";
  const double value = 0.1;
  std::string data(8, '\0');
  std::memcpy(data.data(), &value, 8);
  for (const std::string name : {"m.safetensors", "m.bin"}) {
    write_file(folder / name, safetensors(header, data + "\x07"));
    const nn::Checkpoint loaded = nn::load_checkpoint(folder / name);
    EXPECT_EQ(loaded.tensors.at("w").to_doubles(), std::vector<double>{0.1});
    EXPECT_EQ(loaded.tensors.at("e").shape().to_string(), "(0, 3)");
    EXPECT_EQ(loaded.tensors.at("s").to_doubles(), std::vector<double>{7});
    EXPECT_EQ(loaded.metadata.string("format"), "pt");
  }
}

TEST(Safetensors, ASparseFileOfATerabyteIsNotBelieved) {
  const TempFolder folder;
  write_file(folder / "m.safetensors", safetensors("{" + entry("w", "U8", "[2]", "[0,2]") + "}", "xx"));
  fs::resize_file(folder / "m.safetensors", std::uintmax_t{1} << 40);
  EXPECT_EQ(load_error(folder / "m.safetensors"), "1099511627713 bytes follow the last tensor; needed none");
}

// --- side files ---------------------------------------------------------------------------------

class SideFile : public ::testing::Test {
 protected:
  // A manifest whose tensor "w" is uint8(4) at `offsets` of side.safetensors.
  std::string manifest(const std::string& path, std::size_t size, const std::string& hash,
                       const std::string& offsets = "[0, 4]", const std::string& more = "") const {
    return R"({"format": "tenon.checkpoint", "version": 1, "files": {"f": {"path": ")" + path +
           R"(", "size": )" + std::to_string(size) + R"(, "sha256": ")" + hash +
           R"("}}, "tensors": {"w": {"dtype": "uint8", "shape": [4], "file": "f", "data_offsets": )" +
           offsets + "}" + more + "}}";
  }
  std::string error_with(const std::string& text) {
    write_file(folder_ / "m.json", text);
    return load_error(folder_ / "m.json");
  }
  std::string prefix(const std::string& path = "side.safetensors") const {
    return "file \"f\" (" + path + "): ";
  }
  TempFolder folder_;
  std::string side_ = safetensors(
      "{" + entry("w", "U8", "[4]", "[0,4]") + "," + entry("v", "U8", "[2]", "[4,6]") + "}", "abcdef");
};

TEST_F(SideFile, IsReadAndChecked) {
  write_file(folder_ / "side.safetensors", side_);
  write_file(folder_ / "m.json", manifest("side.safetensors", side_.size(), sha256(side_)));
  EXPECT_EQ(nn::load_checkpoint(folder_ / "m.json").tensors.at("w").to_doubles(),
            (std::vector<double>{'a', 'b', 'c', 'd'}));
  // Every single flipped bit is noticed: in the header by its grammar or the hash.
  for (std::size_t bit = 0; bit < side_.size() * 8; bit += 5) {
    std::string damaged = side_;
    damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ (1 << (bit % 8)));
    write_file(folder_ / "side.safetensors", damaged);
    EXPECT_TRUE(load_error(folder_ / "m.json").starts_with(prefix())) << bit;
  }
  std::string damaged = side_;
  damaged.back() = 'x';  // of a tensor that the manifest does not even use
  write_file(folder_ / "side.safetensors", damaged);
  EXPECT_EQ(load_error(folder_ / "m.json"),
            prefix() + "its SHA-256 is " + sha256(damaged) + "; the manifest says " + sha256(side_) +
                ": the file is damaged or another one");
  EXPECT_EQ(nn::load_checkpoint(folder_ / "m.json", {.verify_sha256 = false}).tensors.at("w").to_doubles(),
            (std::vector<double>{'a', 'b', 'c', 'd'}));
}

TEST_F(SideFile, MustBeThereAndFit) {
  const std::string hash = sha256(side_);
  EXPECT_EQ(error_with(manifest("side.safetensors", side_.size(), hash)),
            prefix() + "cannot be opened: No such file or directory");
  write_file(folder_ / "side.safetensors", side_);
  EXPECT_EQ(error_with(manifest("side.safetensors", side_.size() + 1, hash)),
            prefix() + "has " + std::to_string(side_.size()) + " bytes; the manifest says " +
                std::to_string(side_.size() + 1));
  EXPECT_EQ(error_with(manifest("side.safetensors", side_.size(), hash, "[4, 8]")),
            prefix() + "tensor \"w\": data_offsets [4, 8] reach outside the file's 6 bytes of data");
  EXPECT_EQ(error_with(manifest("side.safetensors", side_.size(), hash, "[1, 5]")),
            prefix() + "tensor \"w\": the manifest says uint8(4,) at [1, 5], the file's header uint8(4,) at [0, 4]");
  const std::string head = "tensor \"w\": data_offsets [0, 5] do not span the 4 bytes of uint8(4,)";
  EXPECT_TRUE(error_with(manifest("side.safetensors", side_.size(), hash, "[0, 5]")).starts_with(head));
  EXPECT_EQ(error_with(manifest("side.safetensors", side_.size(), hash, "[0, 4]",
                                R"(, "u": {"dtype": "uint8", "shape": [2], "file": "f", "data_offsets": [3, 5]})")),
            prefix() + "tensor \"u\" overlaps tensor \"w\"; one name can be an alias of the other");
  EXPECT_TRUE(error_with(manifest("side.safetensors", side_.size(), hash, "[0, 4]",
                                  R"(, "u": {"dtype": "uint8", "shape": [2], "file": "g", "data_offsets": [4, 6]})"))
                  .starts_with("tensor \"u\": no entry \"g\" in \"files\""));
  fs::remove(folder_ / "side.safetensors");
  ASSERT_EQ(::mkfifo((folder_ / "side.safetensors").c_str(), 0600), 0);
  EXPECT_EQ(error_with(manifest("side.safetensors", side_.size(), hash)),
            prefix() + "is a FIFO; needed a regular file");
}

TEST_F(SideFile, HeaderFaultsNameTheSideFile) {
  for (const auto& [bytes, error] : std::vector<std::pair<std::string, std::string>>{
           {safetensors("{" + entry("w", "U8", "[4]", "[0,4]") + "}", "abcde"),
            "1 bytes follow the last tensor; needed none"},
           {safetensors("{" + entry("w", "U8", "[4]", "[1,5]") + "}", "abcde"),
            "tensor \"w\": starts at byte 1, where byte 0 is next: there is a hole"},
           {"not a safetensors file", "the header length is 7021991845529153390; at most 100000000 is allowed"}}) {
    write_file(folder_ / "side.safetensors", bytes);
    EXPECT_EQ(error_with(manifest("side.safetensors", bytes.size(), sha256(bytes))), prefix() + error);
  }
}

TEST_F(SideFile, PathsStayInTheFolder) {
  const TempFolder outside;
  write_file(outside / "side.safetensors", side_);
  const std::string hash = sha256(side_);
  const auto refused = [&](const std::string& path, const std::string& fault) {
    const std::string error = error_with(manifest(path, side_.size(), hash));
    EXPECT_TRUE(error.starts_with("file \"f\": the path \"" + path + "\" " + fault)) << error;
  };
  refused("../x.safetensors", "leaves the manifest's folder");
  refused("a/../../x.safetensors", "leaves the manifest's folder");
  refused("..", "leaves the manifest's folder");
  refused(outside / "side.safetensors", "is absolute; needed one relative to the manifest");
  refused("", "is empty");
  EXPECT_TRUE(error_with(manifest("a\\\\b", side_.size(), hash)).starts_with("file \"f\": the path \"a\\b\" holds a backslash"));
  EXPECT_TRUE(error_with(manifest("a\\u0000b", side_.size(), hash)).starts_with("file \"f\": the path \"a\\x00b\" holds control characters"));
  fs::create_symlink(outside / "side.safetensors", folder_ / "link.safetensors");
  EXPECT_EQ(error_with(manifest("link.safetensors", side_.size(), hash)),
            prefix("link.safetensors") + "is a link that leaves the manifest's folder");
  // A link within the folder, and a subfolder, are fine.
  fs::create_directory(folder_ / "sub");
  write_file(folder_ / "sub/..side.safetensors", side_);
  fs::create_symlink("sub/..side.safetensors", folder_ / "inner.safetensors");
  for (const std::string path : {"inner.safetensors", "sub/..side.safetensors"}) {
    write_file(folder_ / "m.json", manifest(path, side_.size(), hash));
    EXPECT_EQ(nn::load_checkpoint(folder_ / "m.json").tensors.size(), 1U);
  }
}

TEST_F(SideFile, EntriesOfFilesAreChecked) {
  const auto entry_error = [&](const std::string& text) {
    return error_with(R"({"files": {"f": )" + text + "}}");
  };
  const std::string hash(64, 'a');
  EXPECT_EQ(entry_error("{\"path\": \"a\", \"size\": 1}"), at("file \"f\": sha256 is missing", 41));
  EXPECT_EQ(entry_error("{\"path\": \"a\", \"sha256\": \"" + hash + "\"}"),
            at("file \"f\": size is missing", 108));
  EXPECT_EQ(entry_error("{\"size\": 1, \"sha256\": \"" + hash + "\"}"),
            at("file \"f\": path is missing", 106));
  EXPECT_EQ(entry_error("{\"size\": -1}"),
            at("file \"f\": size is -1; needed an integer in [0, 2^63)", 28));
  EXPECT_EQ(entry_error("{\"sha256\": \"AB\"}"),
            at("file \"f\": sha256 is \"AB\"; needed 64 lower-case hexadecimal digits", 32));
  EXPECT_EQ(entry_error("{\"mode\": 1}"),
            at("file \"f\": unknown key \"mode\"; needed path, size and sha256", 25));
}

// --- writing ------------------------------------------------------------------------------------

// Files of this process stop growing at a size, as on a full disk.
class SizeLimit {
 public:
  explicit SizeLimit(rlim_t bytes) {
    old_handler_ = std::signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &old_);
    const rlimit limit{bytes, old_.rlim_max};
    setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~SizeLimit() {
    setrlimit(RLIMIT_FSIZE, &old_);
    std::signal(SIGXFSZ, old_handler_);
  }

 private:
  rlimit old_{};
  void (*old_handler_)(int);
};

TEST(CheckpointWrite, AFullDiskKeepsTheOldCheckpoint) {
  const TempFolder folder;
  const std::string path = folder / "m.json";
  nn::Checkpoint old;
  old.tensors.add("x", full({1000}, 1));
  nn::save_checkpoint(path, old, {.data_limit = 0, .base64_limit = 0});
  nn::Checkpoint next;
  next.tensors.add("x", full({1000}, 2));
  // In turn the side file fails; the manifest, after a side file that is complete; a manifest alone.
  nn::Checkpoint large_config = next;
  large_config.config.set("text", std::string(100'000, 'x'));
  const auto save = [&](const nn::Checkpoint& checkpoint, rlim_t limit, std::size_t inline_limit) {
    const SizeLimit full_disk(limit);
    EXPECT_ERROR(CheckpointError, "[save_checkpoint] " + path + ": cannot be written: File too large",
                 nn::save_checkpoint(path, checkpoint, {inline_limit, inline_limit}));
  };
  save(next, 1000, 0);
  save(large_config, 10'000, 0);
  save(next, 1000, 1 << 20);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path()), fs::directory_iterator()), 2);
  EXPECT_EQ(nn::load_checkpoint(path).tensors.at("x").to_doubles(), std::vector<double>(1000, 1.0));
}

// --- the model ----------------------------------------------------------------------------------

struct Net : nn::Module {
  Net() : fc(add<nn::Linear>("fc", 6, 4)) {}
  nn::Child<nn::Linear> fc;
};

TEST(CheckpointModel, IsUntouchedByAnyRefusal) {
  const TempFolder folder;
  const auto net = nn::make<Net>();
  const std::vector<double> weight = net->fc->weight.to_doubles();
  const std::vector<double> bias = net->fc->bias.to_doubles();
  nn::Checkpoint good;
  good.tensors.add("fc.weight", ones({4, 6}));
  good.tensors.add("fc.bias", ones({4}));
  nn::save_checkpoint(folder / "good.json", good);
  const std::string text = test::read_file(folder / "good.json");
  int refused = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {  // one byte damaged
    std::string damaged = text;
    damaged[i] = static_cast<char>(damaged[i] ^ 0x11);
    write_file(folder / "m.json", damaged);
    const auto fresh = nn::make<Net>();
    const std::vector<double> before = fresh->fc->weight.to_doubles();
    const std::vector<double> bias_before = fresh->fc->bias.to_doubles();
    try {
      nn::load_into(*fresh, nn::load_checkpoint(folder / "m.json"));
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("m.json"), std::string::npos);
      EXPECT_EQ(fresh->fc->weight.to_doubles(), before);
      EXPECT_EQ(fresh->fc->bias.to_doubles(), bias_before);
      ++refused;
    }
  }
  EXPECT_GT(refused, static_cast<int>(text.size()) / 2);
  // The right number of values in the wrong shape.
  nn::Checkpoint wrong;
  wrong.tensors.add("fc.weight", ones({6, 4}));
  wrong.tensors.add("fc.bias", ones({4}));
  EXPECT_ERROR(ModuleError,
               "[load_into] the checkpoint does not fit Net, nothing was changed:\n"
               "  mismatched (1): \"fc.weight\": given float32(6, 4), needed float32(4, 6)",
               nn::load_into(*net, wrong));
  EXPECT_EQ(net->fc->weight.to_doubles(), weight);
  EXPECT_EQ(net->fc->bias.to_doubles(), bias);
}

TEST(CheckpointModel, ManyTinyTensorsLoadInTime) {
  const TempFolder folder;
  nn::Checkpoint many;
  for (int i = 0; i < 100'000; ++i) many.tensors.add("t" + std::to_string(i), full({}, i));
  nn::save_checkpoint(folder / "m.json", many);
  const auto start = std::chrono::steady_clock::now();
  const nn::Checkpoint loaded = nn::load_checkpoint(folder / "m.json");
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  EXPECT_EQ(loaded.tensors.at("t99999").to_doubles(), std::vector<double>{99999});
  EXPECT_LT(seconds.count(), 5);
}

}  // namespace
}  // namespace tenon
