// The table of saved algorithms, which needs no GPU: what is written is read, what is malformed or not
// deterministic is refused by place, what is for another machine is ignored.
#include "cuda/gemm_table.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>

#include "tensor/error.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_folder.h"

namespace tenon::cuda {
namespace {

constexpr std::int64_t kVersion = 130100;

GemmTable::Entry entry(std::int64_t m, std::uint32_t id) {
  return {
      {.m = m, .n = 768, .k = 4096, .a_transposed = true}, {id, 20, 4, 2, 1, 0, 35, 0, 3}, 10, 12};
}

GemmTable sample() {
  GemmTable table("NVIDIA H200", kVersion);
  table.put(entry(768, 66));
  table.put(entry(3072, 67));
  table.put(entry(768, 68));
  return table;
}

TEST(GemmTable, ReadsWhatItWrites) {
  const GemmTable table = GemmTable::parse(sample().to_json(), "table.json");
  EXPECT_TRUE(table.is_for("NVIDIA H200", kVersion));
  EXPECT_FALSE(table.is_for("NVIDIA H200", kVersion + 1));
  EXPECT_FALSE(table.is_for("NVIDIA H100", kVersion));
  ASSERT_EQ(table.entries().size(), 2U);
  const GemmAlgorithm* found = table.find(entry(768, 0).product);
  ASSERT_NE(found, nullptr);
  EXPECT_EQ(*found, entry(768, 68).algorithm);
  GemmSignature other = entry(768, 0).product;
  other.bias = true;
  EXPECT_EQ(table.find(other), nullptr);
  EXPECT_EQ(table.to_json(), sample().to_json());
}

template <class F>
void expect_refused(F&& f, const std::string& text) {
  const std::string message = test::error_text<ValueError>(f);
  EXPECT_NE(message.find(text), std::string::npos) << message;
}

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  const auto at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return text.replace(at, from.size(), to);
}

TEST(GemmTable, RefusesWhatIsMalformedByPlace) {
  const std::string text = sample().to_json();
  const auto refuses = [&](const std::string& from, const std::string& to,
                           const std::string& message) {
    expect_refused([&] { GemmTable::parse(replaced(text, from, to), "t.json"); }, message);
  };
  refuses("{", "", "[gemm table] t.json: ");
  refuses("\"gpu\"", "\"gpus\"", "[gemm table] t.json: $: needed a member 'gpu'");
  refuses("\"k\": 4096", "\"k\": -1", "t.json: $.products[0].k: needed an integer from 1 to");
  refuses("\"k\": 4096", "\"k\": 1.5", "t.json: $.products[0].k: needed an integer from 1 to");
  refuses("\"dtype\": \"bfloat16\"", "\"dtype\": \"int8\"",
          "t.json: $.products[0].dtype: needed float32, float64, float16 or bfloat16");
  refuses("\"none\"", "\"relu\"", "$.products[0].epilogue: needed none, gelu or gelu_gradient");
  refuses("\"bias\": false", "\"bias\": 0", "$.products[0].bias: needed true or false");
  refuses("\"cluster\": 3", "\"cluster\": 65536",
          "$.products[0].algorithm.cluster: needed an integer from 0 to 65535");
  refuses("\"reduction\": 2", "\"reduction\": 1",
          "$.products[0].algorithm: needed reduction 0 without split_k, or 2");
  refuses("\"reduction\": 2", "\"reduction\": 0",
          "$.products[0].algorithm: needed reduction 0 without split_k, or 2");
}

TEST(GemmTable, IsFoundByTheEnvironment) {
  const test::TempFolder folder;
  const std::string path = (folder.path() / "table.json").string();
  std::ofstream(path) << sample().to_json();
  setenv("TENON_GEMM_TABLE", path.c_str(), 1);
  EXPECT_EQ(load_gemm_table("NVIDIA H200", kVersion).entries().size(), 2U);
  EXPECT_TRUE(load_gemm_table("NVIDIA H200", 1).entries().empty());
  setenv("TENON_GEMM_TABLE", (path + ".missing").c_str(), 1);
  expect_refused([&] { load_gemm_table("NVIDIA H200", kVersion); },
                 "table.json.missing: needed a file that can be read");
  setenv("TENON_GEMM_TABLE", "", 1);
  EXPECT_TRUE(load_gemm_table("NVIDIA H200", kVersion).entries().empty());
  unsetenv("TENON_GEMM_TABLE");
  EXPECT_EQ(gemm_table_path("NVIDIA H200").filename(), "NVIDIA_H200.json");
}

}  // namespace
}  // namespace tenon::cuda
