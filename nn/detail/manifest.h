// The manifest of a checkpoint as written, before side files are read.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensor/tensor.h"

namespace tenon::nn::detail {

inline constexpr std::string_view kFormatName = "tenon.checkpoint";
inline constexpr int kFormatVersion = 1;

struct ManifestTensor {
  std::string label;  // `tensor "a.b"`, `tests[0].inputs[1]`
  DType dtype = DType::float32;
  Extents sizes;
  Tensor value;      // undefined while it is in a side file
  std::string file;  // key of Manifest::files
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
};

struct ManifestFile {
  std::string key;
  std::string path;
  std::uint64_t size = 0;
  std::string sha256;
};

struct ManifestTest {
  std::string mode = "eval";
  std::vector<ManifestTensor> inputs;
  std::vector<ManifestTensor> outputs;
  double rtol = 1e-5;
  double atol = 1e-5;
};

struct Manifest {
  std::string metadata = "{}";
  std::string config = "{}";
  std::vector<ManifestFile> files;
  std::vector<std::pair<std::string, ManifestTensor>> tensors;
  std::vector<std::pair<std::string, std::string>> aliases;
  std::vector<ManifestTest> tests;
};

/// Parses and checks all that can be checked without the side files. CheckpointErrors start with
/// `where`.
Manifest parse_manifest(std::string_view text, const std::string& where);

/// What is wrong with a tensor's name, or null: empty, longer than 1024 bytes, invalid UTF-8, or
/// control characters.
const char* fault_of_name(std::string_view name);
/// What is wrong with a side file's path, or null: it must stay in the manifest's folder.
const char* fault_of_path(std::string_view path);

}  // namespace tenon::nn::detail
