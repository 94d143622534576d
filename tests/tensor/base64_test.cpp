// Base64: the vectors of RFC 4648 section 10, and texts that are not the canonical encoding of anything.
#include "tensor/support/base64.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace tenon::text {
namespace {

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

TEST(Base64, TestVectors) {
  const std::pair<const char*, const char*> vectors[] = {
      {"", ""},           {"f", "Zg=="},         {"fo", "Zm8="},        {"foo", "Zm9v"},
      {"foob", "Zm9vYg=="}, {"fooba", "Zm9vYmE="}, {"foobar", "Zm9vYmFy"}};
  for (const auto& [plain, encoded] : vectors) {
    const std::string_view text = plain;
    EXPECT_EQ(base64_encode(bytes_of(text)), encoded);
    std::vector<std::byte> decoded(text.size());
    EXPECT_TRUE(base64_decode(encoded, decoded)) << encoded;
    EXPECT_TRUE(std::ranges::equal(decoded, bytes_of(text))) << encoded;
  }
}

TEST(Base64, EveryByteOfLongTexts) {
  std::mt19937 random(1);
  for (const std::size_t size : {255UL, 256UL, 257UL, 196607UL, 196608UL, 196609UL, 400001UL}) {
    std::vector<std::byte> bytes(size), decoded(size);
    for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
    const std::string text = base64_encode(bytes);
    EXPECT_EQ(text.size(), base64_size(size));
    EXPECT_TRUE(base64_decode(text, decoded)) << size;
    EXPECT_EQ(decoded, bytes) << size;
  }
}

TEST(Base64, RefusesWhatIsNotCanonical) {
  struct Case {
    const char* text;
    std::size_t bytes;
  };
  const Case cases[] = {
      {"Zm9", 2},       // no padding
      {"Zm9v", 2},      {"Zm8=", 3},      // of another number of bytes
      {"Zm9=", 2},      {"Zh==", 1},      // stray bits
      {"Z===", 1},      {"====", 1},      {"Zm=v", 3},     {"Zg==Zg==", 6}, {"Zm8=Zm8=", 5},
      {" Zm9", 3},      {"Zm9\n", 3},     {"Zm9vZ m9", 6}, {"    Zm9v", 6}, {"Zm9v    ", 6},
      {"Zm9v\n\n\n\n", 6}, {"Zm9v----", 6},  {"Zm-v", 3},     {"Zm_v", 3},     {"Zm9\x80", 3},
      {"Zg= ", 1},      {"Zg =", 1},      {"\tg==", 1},    {"Zg=\n", 1},    {"Zg=A", 1}};
  for (const Case& c : cases) {
    std::vector<std::byte> decoded(c.bytes);
    EXPECT_FALSE(base64_decode(c.text, decoded)) << '"' << c.text << '"';
  }
  std::vector<std::byte> decoded(6);
  EXPECT_FALSE(base64_decode(std::string_view("Zm9v\0Zm9", 8), decoded));
}

}  // namespace
}  // namespace tenon::text
