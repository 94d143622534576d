// Where a tensor's bytes live.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace tenon {

enum class DeviceType : std::uint8_t { cpu, cuda };
inline constexpr int kNumDeviceTypes = 2;

struct Device {
  DeviceType type = DeviceType::cpu;
  int index = 0;

  /// "cpu", "cuda" or "cuda:1"; throws DeviceError for anything else. Does not ask whether it exists.
  static Device parse(std::string_view text);
  /// "cpu" or "cuda:0".
  std::string to_string() const;

  bool is_cpu() const { return type == DeviceType::cpu; }
  bool is_cuda() const { return type == DeviceType::cuda; }
  friend bool operator==(const Device&, const Device&) = default;
};

inline constexpr Device kCpu{DeviceType::cpu, 0};
inline constexpr Device kCuda{DeviceType::cuda, 0};

}  // namespace tenon
