// The .safetensors container: 8 bytes of header length, a JSON header, then the tensors' bytes
// without gaps or overlap (github.com/huggingface/safetensors, README "Format").
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "nn/detail/files.h"
#include "nn/detail/sha256.h"
#include "tensor/dtype.h"
#include "tensor/tensor_view.h"

namespace tenon::nn::detail {

struct SafetensorsEntry {
  std::string name;
  DType dtype = DType::float32;
  Extents sizes;
  std::uint64_t begin = 0;  // from the first byte after the header
  std::uint64_t end = 0;
};

struct SafetensorsHeader {
  std::vector<SafetensorsEntry> entries;  // as listed
  std::string metadata = "{}";            // JSON: names to strings
  std::uint64_t data_size = 0;
};

/// Whether a file of `size` bytes that starts with these may be one.
bool looks_like_safetensors(std::span<const std::byte> start, std::uint64_t size);

/// Reads and checks the header; the file then stands at the first data byte, and `hash`, if any,
/// has seen all before it. Every fault is a CheckpointError that starts with `where`.
SafetensorsHeader read_safetensors_header(InputFile& file, const std::string& where, Sha256* hash);

/// Length and header of a file with these tensors, padded so that the data starts 64-aligned.
std::string safetensors_header(std::span<const SafetensorsEntry> entries);

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
