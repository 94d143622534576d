// Choices that ops offer by name; each enumerator is printed and parsed as it is written here.
#pragma once

#include <cstdint>
#include <string_view>

namespace tenon {

/// Of gelu: x·Φ(x) for none; 0.5x(1+tanh(√(2/π)(x+0.044715x³))) for tanh.
enum class Approximate : std::uint8_t { none, tanh };
std::string_view enum_name(Approximate approximate);
Approximate parse_enum(Approximate, std::string_view text);

/// Whether a call acts as in training: as its module does, always, never.
enum class DropoutMode : std::uint8_t { follow, train, eval };
std::string_view enum_name(DropoutMode mode);
DropoutMode parse_enum(DropoutMode, std::string_view text);
/// Whether it acts now, in a module in this mode.
inline bool acts(DropoutMode mode, bool training) {
  return mode == DropoutMode::train || (mode == DropoutMode::follow && training);
}

/// Whether dropout of probability `p` drops anything then.
inline bool drops(DropoutMode mode, double p, bool training) {
  return p != 0 && acts(mode, training);
}

/// What a loss returns of its elements.
enum class Reduction : std::uint8_t { none, mean, sum };
std::string_view enum_name(Reduction reduction);
Reduction parse_enum(Reduction, std::string_view text);

}  // namespace tenon
