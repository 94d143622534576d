// Base64, RFC 4648 section 4: standard alphabet, padded, no white space, no stray bits.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

namespace tenon::text {

/// Characters that `bytes` bytes take.
constexpr std::size_t base64_size(std::size_t bytes) { return (bytes + 2) / 3 * 4; }

std::string base64_encode(std::span<const std::byte> bytes);

/// Fills `out`. False when `text` is not the canonical encoding of out.size() bytes.
bool base64_decode(std::string_view text, std::span<std::byte> out);

}  // namespace tenon::text
