// Hostile manifests: each is refused with a CheckpointError of exactly this text, quickly, without
// allocating what is merely claimed, and with the model untouched. Side files, .safetensors and the
// file system are in checkpoint_file_error_test.cpp.
#include <gtest/gtest.h>

#include <bit>
#include <cstdint>
#include <ctime>

#include "nn/nn.h"
#include "tests/error/checkpoint_cases.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_folder.h"

namespace tenon {
namespace {

using test::at;
using test::Case;
using test::load_error;
using test::TempFolder;
using test::write_file;

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
std::string with_tensor(const std::string& tensor) {
  return with_tensors(R"({"w": )" + tensor + "}");
}
std::string with_data(const std::string& dtype, const std::string& shape, const std::string& data) {
  return with_tensor(R"({"dtype": ")" + dtype + R"(", "shape": )" + shape + R"(, "data": )" + data +
                     "}");
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
  const std::clock_t start = std::clock();
  std::string chain = "{\"a\": ";
  for (int i = 0; i < 50'000; ++i) chain += "[{\"\":";
  expect_errors({
      {"{\"a\": " + std::string(10'000'000, '['), at("nested deeper than 64 levels", 70)},
      {chain, at("nested deeper than 64 levels", 163)},
      {"{\"a\": \"" + std::string(5'000'000, 'x') + "\"}",
       at("a string of more than 1048576 bytes", 1048585)},
      {with_tensors("{\"w\": {\"dtype\": \"float32\", \"shape\": [1000000], \"data\": [" +
                    [] {
                      std::string list;
                      for (int i = 0; i < 1'000'000; ++i) list += "[],";
                      return list;
                    }() +
                    "[]]}}"),
       at("tensor \"w\": an array in data; needed numbers, not nested", 113)},
  });
  const double seconds = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
  EXPECT_LT(seconds, 10);
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
  write_file(folder / "m.json",
             R"({"comment": {"any": [1, null, "thing"]}, "tensors": {}, "version": 1,
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
       at("tensor \"w\": unknown key \"strides\"; a tensor has dtype, shape and one of data, "
          "base64, "
          "or file with data_offsets",
          119)},
      {with_tensor(R"({"dtype": "uint8", "shape": [1], "shape": [2], "data": [1]})"),
       at("tensor \"w\": the key \"shape\" stands twice", 103)},
      {with_tensor(R"({"dtype": "Float32", "shape": [1], "data": [1]})"),
       at("tensor \"w\": unknown dtype \"Float32\"; needed float32, float64, float16, bfloat16, "
          "int64, int32, int16, int8, uint8 or bool",
          82)},
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
       at("tensor \"" + std::string(200, 'n') +
              "… (1000000 bytes)\": the name is longer than 1024 bytes",
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
    return at("tensor \"w\": a size of shape is " + given + "; needed an integer in [0, 2^63)",
              column);
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
       at("tensor \"w\": shape (4294967297,) needs 4294967297 values; the text ends before that",
          115)},
      {shape("[4194305, 4194305, 211106198978564]"),
       at("tensor \"w\": shape (4194305, 4194305, 211106198978564) has more than 2^63 elements",
          127)},
      {shape("[2, 9223372036854775807]"),
       at("tensor \"w\": shape (2, 9223372036854775807) has more than 2^63 elements", 116)},
      {shape("[0, 9223372036854775807, 2]"),
       at("tensor \"w\": shape (0, 9223372036854775807, 2) has more than 2^63 elements", 119)},
      {shape("[9223372036854775807]"),
       at("tensor \"w\": float32(9223372036854775807,) has more than 2^63 bytes", 124)},
      {shape("[1,1,1,1,1,1,1,1,1]"), at("tensor \"w\": shape has more than 8 sizes", 110)},
      {shape("[250000000000]"), at("tensor \"w\": shape (250000000000,) needs 250000000000 values; "
                                   "the text ends before that",
                                   117)},
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
      {f32("[1, null]"), at("tensor \"w\": null in data; non-finite values are the strings "
                            "\"nan\", \"inf\" and \"-inf\"",
                            110)},
      {f32("[1, NaN]"), at("tensor \"w\": NaN and Infinity are not JSON; write the strings "
                           "\"nan\", \"inf\" and \"-inf\"",
                           110)},
      {f32("[1, true]"),
       at("tensor \"w\": true or false in data; needed numbers, not nested", 110)},
      {f32("[1, \"NaN\"]"),
       at("tensor \"w\": \"NaN\" in data; needed a number, \"nan\", \"inf\" or \"-inf\"", 115)},
      {f32("[1, \"1\"]"),
       at("tensor \"w\": \"1\" in data; needed a number, \"nan\", \"inf\" or \"-inf\"", 113)},
      {f32("\"12\""), at("tensor \"w\": data is a string; needed an array", 106)},
      {f32("[1, 1e39]"), at("tensor \"w\": 1e39 is out of range for float32", 114)},
      {f32("[1, -3.4028236e38]"),
       at("tensor \"w\": -3.4028236e38 is out of range for float32", 123)},
      {f32("[1, 1" + std::string(400, '0') + "]"),
       at("tensor \"w\": 1" + std::string(199, '0') + "… (401 bytes) is out of range for float32",
          511)},
      {one("float64", "1e400"), at("tensor \"w\": 1e400 is out of range for float64", 112)},
      {one("float64", "-1e99999999999999999999"),
       at("tensor \"w\": -1e99999999999999999999 is out of range for float64", 130)},
      {one("float16", "65520"), at("tensor \"w\": 65520 is out of range for float16", 112)},
      {one("bfloat16", "3.4e38"), at("tensor \"w\": 3.4e38 is out of range for bfloat16", 114)},
      {one("int64", "9223372036854775808"),
       at("tensor \"w\": 9223372036854775808 is out of range for int64", 124)},
      {one("int64", "1.0"), at("tensor \"w\": 1.0 in data; needed an integer for int64", 108)},
      {one("int64", "\"nan\""),
       at("tensor \"w\": a value of a int64 tensor is a string; needed a number", 105)},
      {one("int32", "2147483648"), at("tensor \"w\": 2147483648 is out of range for int32", 115)},
      {one("uint8", "256"), at("tensor \"w\": 256 is out of range for uint8", 108)},
      {one("uint8", "-1"), at("tensor \"w\": -1 is out of range for uint8", 107)},
      {one("bool", "1"),
       at("tensor \"w\": a value of a bool tensor is a number; needed true or false", 104)},
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
    return with_tensor(R"({"dtype": "uint8", "shape": )" + shape + R"(, "base64": ")" + text +
                       "\"}");
  };
  const std::string malformed =
      "tensor \"w\": base64 is malformed; needed the standard alphabet, padded, nothing else";
  expect_errors({
      {base64("[2]", "AQI"),
       at("tensor \"w\": base64 has 3 characters; uint8(2,) is 2 bytes", 111)},
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
       at("tensor \"w\": base64 has 4 characters; uint8(9223372036854775807,) is "
          "9223372036854775807 "
          "bytes",
          130)},
      {with_tensor(R"({"dtype": "bool", "shape": [2], "base64": "AQI="})"),
       at("tensor \"w\": a byte of a bool tensor is neither 0 nor 1", 111)},
  });
}

TEST(CheckpointAliases, AndTests) {
  const std::string head = R"({"format": "tenon.checkpoint", "version": 1, "tensors": )"
                           R"({"w": {"dtype": "uint8", "shape": [1], "data": [1]}}, )";
  const int n = static_cast<int>(head.size());
  expect_errors({
      {head + R"("aliases": {"a": "x"}})", at("alias \"a\": no tensor \"x\"", n + 23)},
      {head + R"("aliases": {"w": "w"}})", at("alias \"w\": a tensor has this name too", n + 23)},
      {head + R"("aliases": {"a": "w", "b": "a"}})", at("alias \"b\": no tensor \"a\"", n + 33)},
      {head + R"("aliases": {"a": 1}})",
       at("alias \"a\": its target is a number; needed a string", n + 18)},
      {head + R"("tests": {}})", at("\"tests\" is an object; needed an array", n + 10)},
      {head + R"("tests": [{"inputs": []}]})", at("tests[0]: outputs is missing", n + 25)},
      {head + R"("tests": [{"mode": "fast"}]})",
       at("tests[0]: mode is \"fast\"; needed \"eval\" or \"train\"", n + 26)},
      {head + R"("tests": [{"rtol": -1}]})", at("tests[0]: rtol is -1; needed at least 0", n + 22)},
      {head + R"("tests": [{"rtol": 1e400}]})",
       at("tests[0]: 1e400 is out of range for float64", n + 25)},
      {head + R"("tests": [{"seed": 1}]})",
       at("tests[0]: unknown key \"seed\"; a test has mode, inputs, outputs, rtol and atol",
          n + 19)},
      {head + R"("tests": [{"inputs": [{"dtype": "uint8", "shape": [2], "data": [1]}]}]})",
       at("tests[0].inputs[0]: data has 1 values; shape (2,) needs 2", n + 67)},
  });
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
  const std::clock_t start = std::clock();
  const nn::Checkpoint loaded = nn::load_checkpoint(folder / "m.json");
  const double seconds = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
  EXPECT_EQ(loaded.tensors.at("t99999").to_doubles(), std::vector<double>{99999});
  EXPECT_LT(seconds, 10);
}

}  // namespace
}  // namespace tenon
