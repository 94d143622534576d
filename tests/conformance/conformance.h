// Reads operator cases (format: cases/README.md), runs them through Tenon's functional API on one
// device, forward and backward, and compares. Expected values were computed by PyTorch in float64.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "tensor/device.h"

namespace tenon::conformance {

enum class Status : std::uint8_t { passed, failed, skipped };

struct Outcome {
  std::string name;  // "softmax/softmax_float32_0"
  Status status = Status::passed;
  std::string reason;  // why it failed or was skipped
};

/// One file: an op and its cases.
struct CaseFile {
  std::string op;
  std::vector<nlohmann::json> cases;
};

/// The *.json files of a folder, by name; std::runtime_error naming the file that cannot be read.
std::vector<CaseFile> read_cases(const std::filesystem::path& folder);

/// "op/name" of a case; the name is empty where the case has none.
std::string case_name(std::string_view op, const nlohmann::json& test_case);

/// Runs one case. An op or an option that Tenon does not have is skipped; an error is a failure.
Outcome run_case(std::string_view op, const nlohmann::json& test_case, Device device);

}  // namespace tenon::conformance
