// Base64 by table, three bytes a step.
#include "nn/detail/base64.h"

#include <array>
#include <cstdint>

namespace tenon::nn::detail {

namespace {

constexpr std::string_view kAlphabet =
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
constexpr std::uint32_t kInvalid = 0xff000000U;

constexpr auto kValues = [] {
  std::array<std::uint32_t, 256> values{};
  values.fill(kInvalid);
  for (std::uint32_t i = 0; i < 64; ++i) values[static_cast<unsigned char>(kAlphabet[i])] = i;
  return values;
}();

}  // namespace

std::string base64_encode(std::span<const std::byte> bytes) {
  std::string text(base64_size(bytes.size()), '=');
  const auto at = [&](std::size_t i) {
    return i < bytes.size() ? std::to_integer<std::uint32_t>(bytes[i]) : 0U;
  };
  std::size_t o = 0;
  for (std::size_t i = 0; i < bytes.size(); i += 3, o += 4) {
    const std::uint32_t word = (at(i) << 16) | (at(i + 1) << 8) | at(i + 2);
    text[o] = kAlphabet[word >> 18];
    text[o + 1] = kAlphabet[(word >> 12) & 63U];
    if (i + 1 < bytes.size()) text[o + 2] = kAlphabet[(word >> 6) & 63U];
    if (i + 2 < bytes.size()) text[o + 3] = kAlphabet[word & 63U];
  }
  return text;
}

bool base64_decode(std::string_view text, std::span<std::byte> out) {
  if (text.size() != base64_size(out.size())) return false;
  const auto value = [&](std::size_t i) { return kValues[static_cast<unsigned char>(text[i])]; };
  const std::size_t whole = out.size() / 3;
  std::uint32_t seen = 0;
  for (std::size_t i = 0; i < whole; ++i) {
    const std::uint32_t word = (value(4 * i) << 18) | (value(4 * i + 1) << 12) |
                               (value(4 * i + 2) << 6) | value(4 * i + 3);
    seen |= value(4 * i) | value(4 * i + 1) | value(4 * i + 2) | value(4 * i + 3);
    out[3 * i] = static_cast<std::byte>(word >> 16);
    out[3 * i + 1] = static_cast<std::byte>(word >> 8);
    out[3 * i + 2] = static_cast<std::byte>(word);
  }
  if (seen >= kInvalid) return false;
  const std::size_t rest = out.size() % 3;
  if (rest == 0) return true;
  const std::size_t t = 4 * whole;
  const std::uint32_t third = rest == 2 ? value(t + 2) : 0;
  if ((value(t) | value(t + 1) | third) >= kInvalid) return false;
  if (text[t + 3] != '=' || (rest == 1 && text[t + 2] != '=')) return false;
  const std::uint32_t word = (value(t) << 18) | (value(t + 1) << 12) | (third << 6);
  out[3 * whole] = static_cast<std::byte>(word >> 16);
  if (rest == 2) out[3 * whole + 1] = static_cast<std::byte>(word >> 8);
  return (word & (rest == 1 ? 0xffffU : 0xffU)) == 0;  // the unused bits of the last character
}

}  // namespace tenon::nn::detail
