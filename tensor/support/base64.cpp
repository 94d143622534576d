#include "tensor/support/base64.h"

#include <openssl/evp.h>

#include <algorithm>
#include <array>

namespace tenon::text {
namespace {

// OpenSSL counts in int; a block of whole groups of three bytes, four characters, needs no padding.
constexpr std::size_t kGroup = 3;
constexpr std::size_t kBlock = kGroup << 16;

unsigned char* characters(char* text) { return reinterpret_cast<unsigned char*>(text); }
const unsigned char* characters(const char* text) {
  return reinterpret_cast<const unsigned char*>(text);
}

}  // namespace

std::string base64_encode(std::span<const std::byte> bytes) {
  std::string text(base64_size(bytes.size()), '\0');
  for (std::size_t i = 0; i < bytes.size(); i += kBlock) {
    const std::size_t count = std::min(kBlock, bytes.size() - i);
    // A zero is written behind the characters: where the string has its own.
    EVP_EncodeBlock(characters(text.data() + i / kGroup * 4),
                    reinterpret_cast<const unsigned char*>(bytes.data() + i),
                    static_cast<int>(count));
  }
  return text;
}

bool base64_decode(std::string_view text, std::span<std::byte> out) {
  if (text.size() != base64_size(out.size())) return false;
  const std::size_t whole = out.size() / kGroup * kGroup;
  for (std::size_t i = 0; i < whole; i += kBlock) {
    const std::size_t count = std::min(kBlock, whole - i) / kGroup * 4;
    // What OpenSSL strips at the ends of a part is missing in what it says it has read.
    const std::string_view part = text.substr(i / kGroup * 4, count);
    if (part.find('=') != std::string_view::npos) return false;  // OpenSSL reads zeros
    const int got = EVP_DecodeBlock(reinterpret_cast<unsigned char*>(out.data() + i),
                                    characters(part.data()), static_cast<int>(count));
    if (got != static_cast<int>(count / 4 * kGroup)) return false;
  }
  // The last group is canonical when it is what its bytes are encoded as.
  const std::size_t rest = out.size() - whole;
  if (rest == 0) return true;
  const std::string_view last = text.substr(text.size() - 4);
  std::array<unsigned char, kGroup> bytes{};
  if (EVP_DecodeBlock(bytes.data(), characters(last.data()), 4) != static_cast<int>(kGroup)) {
    return false;
  }
  const std::span<const std::byte> kept = std::as_bytes(std::span(bytes)).first(rest);
  if (base64_encode(kept) != last) return false;
  std::copy(kept.begin(), kept.end(), out.begin() + static_cast<std::ptrdiff_t>(whole));
  return true;
}

}  // namespace tenon::text
