// Reading: what kind of file it is, the manifest, then each side file in one pass.
#include <algorithm>
#include <array>
#include <filesystem>
#include <unordered_map>

#include "nn/checkpoint.h"
#include "nn/detail/files.h"
#include "nn/detail/manifest.h"
#include "nn/detail/safetensors.h"
#include "nn/detail/sha256.h"
#include "nn/detail/tensor_json.h"
#include "tensor/support/check.h"
#include "tensor/support/text.h"

namespace tenon::nn {

namespace fs = std::filesystem;
using detail::InputFile;
using text::quote;

namespace {

struct Magic {
  std::string_view start;
  const char* what;
};

// Pickle is never read: loading one can run code.
constexpr Magic kForeign[] = {
    {"PK\x03\x04", "a zip archive (a PyTorch .pt or NumPy .npz file?)"},
    {"\x80\x02", "a Python pickle"},
    {"\x80\x03", "a Python pickle"},
    {"\x80\x04", "a Python pickle"},
    {"\x80\x05", "a Python pickle"},
    {"GGUF", "a GGUF file"},
    {"\x89HDF", "an HDF5 file"},
    {"\x1f\x8b", "gzip-compressed"},
    {"\x93NUMPY", "a NumPy array"},
};

void refuse_foreign(std::string_view start, const std::string& where) {
  for (const Magic& magic : kForeign) {
    TENON_CHECK(!start.starts_with(magic.start), CheckpointError,
                "{}: is {}; needed a JSON checkpoint or a .safetensors file, as "
                "tools/export_checkpoint.py writes them",
                where, magic.what);
  }
}

// Where the bytes of a side file go, and what to call them in messages.
struct Request {
  std::string label;
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
  Tensor tensor;
};

Request request_for(const std::string& label, DType dtype, const Extents& sizes,
                    std::uint64_t begin, std::uint64_t end) {
  return {label, begin, end, empty(sizes, TensorOptions{dtype, kCpu})};
}

void read_requests(InputFile& file, std::uint64_t data_size, const std::vector<Request>& requests,
                   detail::Sha256* hash) {
  std::vector<detail::ReadRange> ranges;
  for (const Request& request : requests) {
    auto* target = static_cast<std::byte*>(request.tensor.view_of_data().data);
    if (request.end > request.begin) ranges.push_back({request.begin, request.end, target});
  }
  read_ranges(file, data_size, std::move(ranges), hash);
}

void check_bools(const std::vector<Request>& requests, const std::string& where) {
  for (const Request& request : requests) {
    TENON_CHECK(detail::bytes_are_valid(request.tensor), CheckpointError,
                "{}: {}: a byte of a bool tensor is neither 0 nor 1", where, request.label);
  }
}

Checkpoint load_safetensors(InputFile& file, const std::string& path, const std::string& where) {
  const detail::SafetensorsHeader header = read_safetensors_header(file, where, nullptr);
  Checkpoint checkpoint;
  checkpoint.path = path;
  checkpoint.metadata.text = header.metadata;
  std::vector<Request> requests;
  for (const detail::SafetensorsEntry& entry : header.entries) {
    const char* fault = detail::fault_of_name(entry.name);
    TENON_CHECK(fault == nullptr, CheckpointError, "{}: tensor {}: the name {}", where,
                text::quote(entry.name), fault);
    if (!entry.dtype) {
      checkpoint.tensors.add_skipped(entry.name, entry.spec());
      continue;
    }
    requests.push_back(request_for("tensor " + text::quote(entry.name), *entry.dtype, entry.sizes,
                                   entry.begin, entry.end));
    checkpoint.tensors.add(entry.name, requests.back().tensor);
  }
  read_requests(file, header.data_size, requests, nullptr);
  check_bools(requests, where);
  return checkpoint;
}

// A side file's place; symbolic links may not lead out of the manifest's folder.
fs::path side_path(const fs::path& manifest, const detail::ManifestFile& file,
                   const std::string& where) {
  std::error_code error;
  const fs::path folder = manifest.has_parent_path() ? manifest.parent_path() : fs::path(".");
  const fs::path path = folder / file.path;
  const fs::path real_folder = fs::canonical(folder, error);
  TENON_CHECK(!error, CheckpointError, "{}: cannot be opened: {}", where, error.message());
  const fs::path real = fs::canonical(path, error);
  TENON_CHECK(!error, CheckpointError, "{}: cannot be opened: {}", where, error.message());
  const fs::path relative = real.lexically_relative(real_folder);
  TENON_CHECK(!relative.empty() && *relative.begin() != "..", CheckpointError,
              "{}: is a link that leaves the manifest's folder", where);
  return path;
}

// Reads what the manifest refers to in one side file.
class SideFileReader {
 public:
  SideFileReader(const detail::ManifestFile& file, std::string where)
      : file_(file), where_(std::move(where)) {}
  void request(const detail::ManifestTensor& tensor, const std::string* name) {
    wanted_.push_back({&tensor, name});
  }
  /// Fills `values`, in the order of the requests.
  void read(const fs::path& path, bool verify, std::vector<Tensor>& values);

 private:
  struct Wanted {
    const detail::ManifestTensor* tensor;
    const std::string* name;  // null for a recorded test's tensor
  };
  void check_header(const detail::SafetensorsHeader& header) const;
  void check_overlaps() const;

  const detail::ManifestFile& file_;
  std::string where_;
  std::vector<Wanted> wanted_;
};

void SideFileReader::check_header(const detail::SafetensorsHeader& header) const {
  std::unordered_map<std::string_view, const detail::SafetensorsEntry*> entries;
  for (const auto& entry : header.entries) entries.emplace(entry.name, &entry);
  for (const Wanted& wanted : wanted_) {
    const detail::ManifestTensor& tensor = *wanted.tensor;
    TENON_CHECK(tensor.end <= header.data_size, CheckpointError,
                "{}: {}: data_offsets [{}, {}] reach outside the file's {} bytes of data", where_,
                tensor.label, tensor.begin, tensor.end, header.data_size);
    const auto found = wanted.name ? entries.find(*wanted.name) : entries.end();
    if (found == entries.end()) continue;
    const detail::SafetensorsEntry& entry = *found->second;
    TENON_CHECK(entry.dtype == tensor.dtype && entry.sizes == tensor.sizes &&
                    entry.begin == tensor.begin && entry.end == tensor.end,
                CheckpointError,
                "{}: {}: the manifest says {}{} at [{}, {}], the file's header {} at [{}, {}]",
                where_, tensor.label, name(tensor.dtype), detail::shape_text(tensor.sizes),
                tensor.begin, tensor.end, entry.spec(), entry.begin, entry.end);
  }
}

// Without overlaps, what is allocated is bounded by the file's size.
void SideFileReader::check_overlaps() const {
  std::vector<const detail::ManifestTensor*> order;
  for (const Wanted& wanted : wanted_) {
    if (wanted.tensor->end > wanted.tensor->begin) order.push_back(wanted.tensor);
  }
  std::ranges::sort(order, {}, [](const auto* tensor) { return tensor->begin; });
  for (std::size_t i = 1; i < order.size(); ++i) {
    TENON_CHECK(order[i]->begin >= order[i - 1]->end, CheckpointError,
                "{}: {} overlaps {}; one name can be an alias of the other", where_,
                order[i]->label, order[i - 1]->label);
  }
}

void SideFileReader::read(const fs::path& path, bool verify, std::vector<Tensor>& values) {
  InputFile file(path, where_);
  TENON_CHECK(file.size() == file_.size, CheckpointError, "{}: has {} bytes; the manifest says {}",
              where_, file.size(), file_.size);
  detail::Sha256 hash;
  detail::Sha256* hash_or_null = verify ? &hash : nullptr;
  const auto header = read_safetensors_header(file, where_, hash_or_null);
  check_header(header);
  check_overlaps();
  std::vector<Request> requests;
  for (const Wanted& wanted : wanted_) {
    const detail::ManifestTensor& tensor = *wanted.tensor;
    requests.push_back(
        request_for(tensor.label, tensor.dtype, tensor.sizes, tensor.begin, tensor.end));
    values.push_back(requests.back().tensor);
  }
  read_requests(file, header.data_size, requests, hash_or_null);
  if (verify) {
    const std::string found = hash.hex();
    TENON_CHECK(found == file_.sha256, CheckpointError,
                "{}: its SHA-256 is {}; the manifest says {}: the file is damaged or another one",
                where_, found, file_.sha256);
  }
  check_bools(requests, where_);
}

void resolve_files(detail::Manifest& manifest, const fs::path& path, const std::string& where,
                   bool verify) {
  for (const detail::ManifestFile& file : manifest.files) {
    const std::string side_where =
        fmt::format("{}: file {} ({})", where, text::quote(file.key), text::escape(file.path));
    SideFileReader reader(file, side_where);
    std::vector<detail::ManifestTensor*> targets;
    const auto request = [&](detail::ManifestTensor& tensor, const std::string* name) {
      if (tensor.value.defined() || tensor.file != file.key) return;
      reader.request(tensor, name);
      targets.push_back(&tensor);
    };
    for (auto& [name, tensor] : manifest.tensors) request(tensor, &name);
    for (detail::ManifestTest& test : manifest.tests) {
      for (auto& tensor : test.inputs) request(tensor, nullptr);
      for (auto& tensor : test.outputs) request(tensor, nullptr);
    }
    std::vector<Tensor> values;
    reader.read(side_path(path, file, side_where), verify, values);
    for (std::size_t i = 0; i < targets.size(); ++i) targets[i]->value = values[i];
  }
}

std::vector<Tensor> values_of(const std::vector<detail::ManifestTensor>& tensors) {
  std::vector<Tensor> values;
  for (const detail::ManifestTensor& tensor : tensors) values.push_back(tensor.value);
  return values;
}

Checkpoint load_manifest(InputFile& file, const std::string& path, const std::string& where,
                         const LoadCheckpointOptions& options) {
  TENON_CHECK(file.size() <= options.max_manifest_bytes, CheckpointError,
              "{}: the manifest has {} bytes; at most {} are read", where, file.size(),
              options.max_manifest_bytes);
  std::string text(file.size(), '\0');
  file.read(std::as_writable_bytes(std::span(text)));
  detail::Manifest manifest = detail::parse_manifest(text, where);
  // Side files stand beside the manifest itself, not beside a link to it.
  resolve_files(manifest, detail::follow_links(path, where), where, options.verify_sha256);
  Checkpoint checkpoint;
  checkpoint.path = path;
  checkpoint.metadata.text = std::move(manifest.metadata);
  checkpoint.config.text = std::move(manifest.config);
  for (auto& [name, tensor] : manifest.tensors) checkpoint.tensors.add(name, tensor.value);
  checkpoint.aliases = std::move(manifest.aliases);
  for (const detail::ManifestTest& test : manifest.tests) {
    checkpoint.tests.push_back(
        {test.mode, values_of(test.inputs), values_of(test.outputs), test.rtol, test.atol});
  }
  return checkpoint;
}

}  // namespace

Checkpoint load_checkpoint(const std::string& path, const LoadCheckpointOptions& options) {
  const std::string where = "[load_checkpoint] " + text::escape(path);
  InputFile file(path, where);
  TENON_CHECK(file.size() > 0, CheckpointError, "{}: is empty", where);
  std::array<std::byte, 16> start{};
  const std::size_t count = std::min<std::uint64_t>(start.size(), file.size());
  file.read(std::span(start).first(count));
  file.seek(0);
  if (detail::looks_like_safetensors(std::span(start).first(count), file.size())) {
    return load_safetensors(file, path, where);
  }
  refuse_foreign({reinterpret_cast<const char*>(start.data()), count}, where);
  if (detail::is_named_safetensors(path)) return load_safetensors(file, path, where);
  return load_manifest(file, path, where, options);
}

StateDict Checkpoint::state_dict() const {
  StateDict state = tensors;
  for (const auto& [name, target] : aliases) state.add(name, tensors.at(target));
  return state;
}

LoadReport load_into(Module& module, const Checkpoint& checkpoint, const LoadOptions& options) {
  const StateDict state = checkpoint.state_dict();
  const LoadReport report = module.check_state_dict(state, options);
  TENON_CHECK(report.ok(), ModuleError, "[load_into] {} does not fit {}, nothing was changed:{}",
              checkpoint.path.empty() ? "the checkpoint" : text::escape(checkpoint.path),
              module.type_name(), report.problems());
  return module.load_state_dict(state, options);
}

}  // namespace tenon::nn
