// Checkpoints: a JSON manifest (format "tenon.checkpoint", version 1), with large tensors in a
// .safetensors file beside it; or a .safetensors file alone, which other programs read too.
//
//   nn::Checkpoint checkpoint = nn::load_checkpoint("attention.json");
//   nn::load_into(*model, checkpoint);
//   nn::save_checkpoint("copy.json", {.tensors = model->state_dict()});
//   nn::save_checkpoint("copy.safetensors", {.tensors = model->state_dict()});
//
// A tensor of the manifest has "dtype", "shape" and one of
//   "data"    a flat row-major array; non-finite values are the strings "nan", "inf", "-inf";
//             decimals are rounded once to nearest: overflow is an error, underflow gives 0
//   "base64"  its little-endian bytes
//   "file"    a key of "files", with "data_offsets": [begin, end) after that file's header
// Unknown keys at the top level are passed over; anywhere else they are errors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nn/module.h"
#include "nn/state_dict.h"
#include "tensor/error.h"

namespace tenon::nn {

/// A JSON object kept as its text. Lookups are by top-level key and give nothing when the key is
/// not there or has another kind of value; CheckpointError when the text is not a JSON object.
struct JsonObject {
  std::string text = "{}";

  std::optional<std::string> string(std::string_view key) const;
  std::optional<double> number(std::string_view key) const;
  std::optional<std::int64_t> integer(std::string_view key) const;
  std::optional<bool> boolean(std::string_view key) const;
  /// Replaces or appends; numbers must be finite.
  void set(std::string_view key, std::string_view value);
  void set(std::string_view key, double value);
  void set(std::string_view key, std::int64_t value);

 private:
  std::optional<std::string> member(std::string_view key) const;
  void set_member(std::string_view key, std::string value);
};

/// What the model's producer computed: inputs and outputs of one forward call.
struct RecordedTest {
  std::string mode = "eval";  ///< or "train"
  std::vector<Tensor> inputs{};
  std::vector<Tensor> outputs{};
  double rtol = 1e-5;
  double atol = 1e-5;
};

struct Checkpoint {
  std::string path{};     ///< where it was read from, for messages
  JsonObject metadata{};  ///< who made it
  JsonObject config{};    ///< the model's own settings
  StateDict tensors{};    ///< on the CPU, in file order; `skipped()`: those it could not take
  std::vector<std::pair<std::string, std::string>>
      aliases{};  ///< further name -> name in `tensors`
  std::vector<RecordedTest> tests{};

  /// `tensors` and, sharing them, the aliases.
  StateDict state_dict() const;
};

struct LoadCheckpointOptions {
  /// Compare side files with the SHA-256 of the manifest; their sizes always are.
  bool verify_sha256 = true;
  /// A larger manifest is refused.
  std::uint64_t max_manifest_bytes = std::uint64_t{2} << 30;
};

/// Reads a manifest or a bare .safetensors file. CheckpointError names the file, the tensor and the
/// reason for anything that is not exactly as the format says. Tensors of a .safetensors file whose
/// dtype Tenon lacks (F8_E4M3, U16, …) are skipped and named in `tensors.skipped()`; a load into a
/// module that needs one fails and says so.
Checkpoint load_checkpoint(const std::string& path, const LoadCheckpointOptions& options = {});

struct SaveCheckpointOptions {
  /// Tensors of at most this many bytes are written as "data",
  std::size_t data_limit = 1024;
  /// and of at most this many as "base64"; larger ones go to the side file.
  std::size_t base64_limit = 32 * 1024;
};

/// Writes `path` and, when there are large tensors, a side file named after it. Both appear whole
/// or not at all and the manifest last, so `path` is a complete checkpoint at every moment; the side
/// file of a checkpoint that is replaced is removed afterwards, and no other file is touched. Every
/// bit is kept. A tensor that stands under several names is written once, with aliases.
///
/// A `path` that ends in ".safetensors" becomes one .safetensors file: the tensors, each under all its
/// names, and the metadata, whose values must be strings. CheckpointError for what such a file cannot
/// hold (config, recorded tests) and for the side file of a manifest beside it.
///
/// Where `path` is a symbolic link, what it leads to is replaced.
void save_checkpoint(const std::string& path, const Checkpoint& checkpoint,
                     const SaveCheckpointOptions& options = {});

/// Module::load_state_dict of the checkpoint with its aliases; the ModuleError names the file.
LoadReport load_into(Module& module, const Checkpoint& checkpoint, const LoadOptions& options = {});

}  // namespace tenon::nn
