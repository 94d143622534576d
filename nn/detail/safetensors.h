// The .safetensors container: 8 bytes of header length, a JSON header, then the tensors' bytes
// without gaps or overlap (github.com/huggingface/safetensors, README "Format").
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nn/detail/files.h"
#include "nn/detail/sha256.h"
#include "tensor/dtype.h"
#include "tensor/tensor_view.h"

namespace tenon::nn::detail {

inline constexpr std::string_view kMetadataKey = "__metadata__";

struct SafetensorsEntry {
  std::string name;
  std::optional<DType> dtype{};
  Extents sizes{};
  std::uint64_t begin = 0;  // from the first byte after the header
  std::uint64_t end = 0;
  std::string foreign_dtype{};  // what the file says where Tenon has no such dtype: "F8_E4M3"

  /// "float32", "F8_E4M3".
  std::string dtype_text() const {
    return dtype ? std::string(tenon::name(*dtype)) : foreign_dtype;
  }
  /// "float32(2, 3)".
  std::string spec() const;
};

struct SafetensorsHeader {
  std::vector<SafetensorsEntry> entries;  // as listed
  std::string metadata = "{}";            // JSON: names to strings
  std::uint64_t data_size = 0;
};

/// Whether a path ends in ".safetensors", in capitals or not.
bool is_named_safetensors(const std::filesystem::path& path);
/// Whether a file of `size` bytes that starts with these may be one.
bool looks_like_safetensors(std::span<const std::byte> start, std::uint64_t size);

/// Reads and checks the header; the file then stands at the first data byte, and `hash`, if any,
/// has seen all before it. Every fault is a CheckpointError that starts with `where`; a dtype that
/// Tenon lacks is none.
SafetensorsHeader read_safetensors_header(InputFile& file, const std::string& where, Sha256* hash);

/// Length and header of a file with these tensors, padded so that the data starts 64-aligned.
/// `metadata`: a JSON object of strings, or empty for none.
std::string safetensors_header(std::span<const SafetensorsEntry> entries,
                               std::string_view metadata);

/// Bytes [begin, end) of the data, to be read to `target`.
struct ReadRange {
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
  std::byte* target = nullptr;
};

/// Reads ranges that do not overlap in one pass. With a `hash` the gaps are read too, and it has
/// seen the whole file in the end.
void read_ranges(InputFile& file, std::uint64_t data_size, std::vector<ReadRange> ranges,
                 Sha256* hash);

}  // namespace tenon::nn::detail
