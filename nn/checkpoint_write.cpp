// Writing: the side file first, the manifest last, each through an AtomicFile; or one .safetensors
// file alone.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <optional>
#include <unordered_map>
#include <unordered_set>

#include "nn/checkpoint.h"
#include "nn/detail/files.h"
#include "nn/detail/manifest.h"
#include "nn/detail/safetensors.h"
#include "nn/detail/sha256.h"
#include "nn/detail/tensor_bytes.h"
#include "nn/detail/tensor_json.h"
#include "tensor/support/base64.h"
#include "tensor/support/check.h"
#include "tensor/support/json_stream.h"
#include "tensor/support/text.h"

namespace tenon::nn {

namespace fs = std::filesystem;
using detail::AtomicFile;
using text::quote;

namespace {

constexpr std::string_view kSideKey = "weights";

// One tensor to be written; `side` is its entry in the .safetensors file, if it goes there.
struct Item {
  std::string name;
  Tensor tensor;
  const detail::SafetensorsEntry* side = nullptr;
};

class CheckpointWriter {
 public:
  CheckpointWriter(const std::string& path, const Checkpoint& checkpoint,
                   const SaveCheckpointOptions& options)
      : where_("[save_checkpoint] " + text::escape(path)),
        path_(detail::follow_links(path, where_)),
        is_bare_(detail::is_named_safetensors(path) || detail::is_named_safetensors(path_)),
        checkpoint_(checkpoint),
        options_(options) {}
  void write();

 private:
  void collect();
  void collect_tests();
  void check(const std::string& name, const Tensor& tensor) const;
  void check_object(std::string_view what, const JsonObject& object) const;
  void check_fits_bare() const;
  std::string entry_name(std::string name) const;
  void plan_side_file();
  void write_tensors(AtomicFile& file, std::string_view metadata);
  void write_bare();
  fs::path free_side_path() const;
  void write_side_file(const fs::path& replaced);
  void write_manifest(AtomicFile& file) const;
  void write_with_side_file();
  void append_tensor(std::string& out, const Item& item) const;
  void append_tests(AtomicFile& file) const;

  std::string where_;
  fs::path path_;
  bool is_bare_;  // one .safetensors file and no manifest
  const Checkpoint& checkpoint_;
  const SaveCheckpointOptions& options_;
  std::vector<Item> items_;       // of "tensors"
  std::vector<Item> test_items_;  // of "tests", in order of appearance
  std::vector<std::pair<std::string, std::string>> aliases_;
  std::vector<detail::SafetensorsEntry> side_entries_;
  std::vector<Item*> side_items_;  // as they stand in the side file
  fs::path side_path_;
  std::string side_sha256_;
  std::uint64_t side_size_ = 0;
};

void CheckpointWriter::check(const std::string& name, const Tensor& tensor) const {
  const char* fault = detail::fault_of_name(name);
  TENON_CHECK(fault == nullptr, CheckpointError, "{}: tensor {}: the name {}", where_, text::quote(name),
              fault);
  TENON_CHECK(tensor.is_eager(), CheckpointError, "{}: tensor {}: has no data", where_,
              text::quote(name));
}

void CheckpointWriter::check_object(std::string_view what, const JsonObject& object) const {
  text::JsonReader reader(object.text, fmt::format("{}: {}", where_, what));
  reader.expect(text::JsonKind::object, "the text");
  reader.skip();
  reader.finish();
}

// A .safetensors file has tensors by name and metadata of strings; what else there is would be lost.
void CheckpointWriter::check_fits_bare() const {
  constexpr std::string_view kRemedy = "save under a name that ends in .json";
  std::string key;
  text::JsonReader config(checkpoint_.config.text, where_ + ": config");
  config.begin_object();
  if (config.next_member(key)) {
    config.fail(
        fmt::format("{}: a .safetensors file has no place for it; {}", text::quote(key), kRemedy));
  }
  text::JsonReader metadata(checkpoint_.metadata.text, where_ + ": metadata");
  metadata.begin_object();
  while (metadata.next_member(key)) {
    if (const text::JsonKind kind = metadata.peek(); kind != text::JsonKind::string) {
      metadata.fail(
          fmt::format("{} is {}; a .safetensors file holds strings only: make it one, or {}",
                      text::quote(key), describe(kind), kRemedy));
    }
    metadata.string();
  }
  TENON_CHECK(checkpoint_.tests.empty(), CheckpointError,
              "{}: has {} recorded tests, for which a .safetensors file has no place; {}", where_,
              checkpoint_.tests.size(), kRemedy);
  for (const Item& item : items_) {
    TENON_CHECK(item.name != detail::kMetadataKey, CheckpointError,
                "{}: tensor {}: the name means the metadata in a .safetensors file; {}", where_,
                text::quote(item.name), kRemedy);
  }
}

void CheckpointWriter::collect() {
  check_object("metadata", checkpoint_.metadata);
  check_object("config", checkpoint_.config);
  for (const SkippedTensor& skipped : checkpoint_.tensors.skipped()) {
    throw CheckpointError(
        fmt::format("{}: tensor {}: is {} in the file it was read from, of a dtype that Tenon "
                    "lacks, and would be lost; save a StateDict of the others",
                    where_, text::quote(skipped.name), skipped.spec));
  }
  std::unordered_map<const void*, std::string> first_names;
  for (const auto& [name, tensor] : checkpoint_.tensors) {
    check(name, tensor);
    const auto [entry, is_new] = first_names.emplace(tensor.impl().get(), name);
    if (is_new || is_bare_) {
      items_.push_back({name, tensor});
    } else {
      aliases_.emplace_back(name, entry->second);
    }
  }
  std::unordered_set<std::string> taken;
  for (const auto& [name, tensor] : checkpoint_.tensors) taken.insert(name);
  for (const auto& [name, target] : checkpoint_.aliases) {
    const char* fault = detail::fault_of_name(name);
    TENON_CHECK(fault == nullptr, CheckpointError, "{}: alias {}: the name {}", where_, text::quote(name),
                fault);
    TENON_CHECK(taken.insert(name).second, CheckpointError, "{}: alias {}: the name is taken",
                where_, text::quote(name));
    const Tensor* tensor = checkpoint_.tensors.find(target);
    TENON_CHECK(tensor != nullptr, CheckpointError, "{}: alias {}: no tensor {}", where_,
                text::quote(name), text::quote(target));
    if (is_bare_) {
      items_.push_back({name, *tensor});
    } else {
      aliases_.emplace_back(name, first_names.at(tensor->impl().get()));
    }
  }
  collect_tests();
}

// A name in the side file that no tensor has and that is not the metadata's.
std::string CheckpointWriter::entry_name(std::string name) const {
  while (name == detail::kMetadataKey || checkpoint_.tensors.contains(name)) name += '_';
  return name;
}

void CheckpointWriter::collect_tests() {
  for (std::size_t i = 0; i < checkpoint_.tests.size(); ++i) {
    const RecordedTest& test = checkpoint_.tests[i];
    TENON_CHECK(test.mode == "eval" || test.mode == "train", CheckpointError,
                "{}: tests[{}]: mode is {}; needed \"eval\" or \"train\"", where_, i,
                text::quote(test.mode));
    TENON_CHECK(
        std::isfinite(test.rtol) && test.rtol >= 0 && std::isfinite(test.atol) && test.atol >= 0,
        CheckpointError, "{}: tests[{}]: rtol {} and atol {}; needed finite, at least 0", where_, i,
        test.rtol, test.atol);
    for (const auto& [kind, list] :
         {std::pair("inputs", &test.inputs), {"outputs", &test.outputs}}) {
      for (std::size_t j = 0; j < list->size(); ++j) {
        const std::string name = entry_name(fmt::format("tests.{}.{}.{}", i, kind, j));
        check(name, (*list)[j]);
        test_items_.push_back({name, (*list)[j]});
      }
    }
  }
}

std::uint64_t bytes_of(const Tensor& tensor) {
  return static_cast<std::uint64_t>(tensor.layout().numel()) * size_of(tensor.dtype());
}

// Wide elements first, so that every tensor starts aligned to its element.
void CheckpointWriter::plan_side_file() {
  for (auto list : {&items_, &test_items_}) {
    for (Item& item : *list) {
      const std::uint64_t bytes = bytes_of(item.tensor);
      if (is_bare_ || (bytes > options_.data_limit && bytes > options_.base64_limit)) {
        side_items_.push_back(&item);
      }
    }
  }
  std::ranges::stable_sort(side_items_, std::ranges::greater(),
                           [](const Item* item) { return size_of(item->tensor.dtype()); });
  std::uint64_t position = 0;
  side_entries_.reserve(side_items_.size());  // items point into it
  for (Item* item : side_items_) {
    const std::uint64_t end = position + bytes_of(item->tensor);
    const bool is_reserved = item->name == detail::kMetadataKey;
    side_entries_.push_back({is_reserved ? entry_name(item->name) : item->name,
                             item->tensor.dtype(), item->tensor.layout().sizes, position, end});
    item->side = &side_entries_.back();
    position = end;
  }
}

void CheckpointWriter::write_tensors(AtomicFile& file, std::string_view metadata) {
  detail::Sha256 hash;
  const std::string header = detail::safetensors_header(side_entries_, metadata);
  file.write(header);
  hash.update(std::as_bytes(std::span(header)));
  side_size_ = header.size();
  for (const Item* item : side_items_) {
    const detail::TensorBytes bytes(item->tensor);
    file.write(bytes.span());
    hash.update(bytes.span());
    side_size_ += bytes.span().size();
  }
  side_sha256_ = hash.hex();
}

// Whether free_side_path() gives a manifest of this stem such a name.
bool is_own_name(std::string_view name, std::string_view stem) {
  constexpr std::string_view kEnd = ".safetensors";
  constexpr std::size_t kDigits = 12;
  if (!name.starts_with(stem)) return false;
  name.remove_prefix(stem.size());
  if (!name.ends_with(kEnd)) return false;
  name.remove_suffix(kEnd.size());
  if (name.empty()) return true;
  const std::size_t end = std::min(name.find('-', 1), name.size());  // of "-<digits>", then "-2"
  return name[0] == '-' && end == 1 + kDigits &&
         name.find_first_not_of("-0123456789abcdef") == std::string_view::npos;
}

// The side files that the checkpoint now at `path` refers to, if they are named as this file names
// them; none when it cannot be parsed.
std::vector<detail::ManifestFile> own_side_files(const fs::path& path) {
  std::vector<detail::ManifestFile> result;
  try {
    detail::InputFile file(path, "");
    if (file.size() > LoadCheckpointOptions().max_manifest_bytes) return result;
    std::string text(file.size(), '\0');
    file.read(std::as_writable_bytes(std::span(text)));
    for (detail::ManifestFile& side : detail::parse_manifest(text, "").files) {
      if (is_own_name(side.path, path.stem().string())) result.push_back(std::move(side));
    }
  } catch (const Error&) {
    result.clear();
  }
  return result;
}

// Whether the file is still the one that the manifest speaks of: something else may have been saved
// under its name.
bool is_unchanged(const fs::path& path, const detail::ManifestFile& side) {
  try {
    detail::InputFile file(path, "");
    if (file.size() != side.size) return false;
    detail::Sha256 hash;
    read_ranges(file, file.size(), {}, &hash);
    return hash.hex() == side.sha256;
  } catch (const Error&) {
    return false;
  }
}

// A manifest in the folder of `path` that would lose its side file with it, if any.
std::optional<fs::path> manifest_beside(const fs::path& path) {
  std::error_code error;
  const fs::path folder = path.has_parent_path() ? path.parent_path() : fs::path(".");
  const std::string name = path.filename().string();
  for (fs::directory_iterator at(folder, error), end; !error && at != end; at.increment(error)) {
    const fs::path& manifest = at->path();
    if (detail::is_named_safetensors(manifest)) continue;
    if (!is_own_name(name, manifest.stem().string())) continue;
    for (const detail::ManifestFile& side : own_side_files(manifest)) {
      if (side.path == name && is_unchanged(path, side)) return manifest;
    }
  }
  return std::nullopt;
}

// Metadata is written even when there is none: no side file has any, so none is taken for this one.
void CheckpointWriter::write_bare() {
  check_fits_bare();
  if (const auto manifest = manifest_beside(path_)) {
    throw CheckpointError(
        fmt::format("{}: is the side file of {}, which would lose its tensors; save under another "
                    "name",
                    where_, text::escape(manifest->string())));
  }
  AtomicFile file(path_, where_);
  write_tensors(file, checkpoint_.metadata.text);
  file.commit();
}

// "model.safetensors", with the digits of a hash where that is there already: until the manifest is
// replaced, the old one must find its old side file, and somebody else's file is never replaced.
fs::path CheckpointWriter::free_side_path() const {
  const std::string stem = path_.stem().string();
  const std::string hashed = stem + '-' + side_sha256_.substr(0, 12);
  fs::path path = path_;
  std::error_code error;
  path.replace_filename(stem + ".safetensors");
  for (int i = 1; fs::exists(fs::symlink_status(path, error)); ++i) {
    path.replace_filename(hashed + (i == 1 ? "" : fmt::format("-{}", i)) + ".safetensors");
  }
  return path;
}

// A new side file has the mode of the one that it replaces.
void CheckpointWriter::write_side_file(const fs::path& replaced) {
  if (side_items_.empty()) return;
  AtomicFile file(replaced, where_);
  write_tensors(file, "");
  side_path_ = free_side_path();
  file.commit_as(side_path_);
}

void CheckpointWriter::append_tensor(std::string& out, const Item& item) const {
  const Extents& sizes = item.tensor.layout().sizes;
  out += fmt::format(R"({{"dtype": "{}", "shape": [{}], )", name(item.tensor.dtype()),
                     text::join(sizes));
  if (item.side != nullptr) {
    out += fmt::format(R"("file": "{}", "data_offsets": [{}, {}]}})", kSideKey, item.side->begin,
                       item.side->end);
  } else if (bytes_of(item.tensor) <= options_.data_limit && !detail::needs_bytes(item.tensor)) {
    out += "\"data\": ";
    detail::append_values(out, item.tensor);
    out += '}';
  } else {
    out += "\"base64\": \"" + text::base64_encode(detail::TensorBytes(item.tensor).span()) + "\"}";
  }
}

void CheckpointWriter::append_tests(AtomicFile& file) const {
  auto item = test_items_.begin();
  const auto append_list = [&](std::string& out, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) {
      if (i > 0) out += ", ";
      append_tensor(out, *item++);
    }
  };
  for (std::size_t i = 0; i < checkpoint_.tests.size(); ++i) {
    const RecordedTest& test = checkpoint_.tests[i];
    std::string out = i == 0 ? "\n  " : ",\n  ";
    out += "{\"mode\": \"" + test.mode + "\",\n   \"inputs\": [";
    append_list(out, test.inputs.size());
    out += "],\n   \"outputs\": [";
    append_list(out, test.outputs.size());
    out += "],\n   \"rtol\": ";
    detail::append_double(out, test.rtol);
    out += ", \"atol\": ";
    detail::append_double(out, test.atol);
    file.write(out + '}');
  }
}

void CheckpointWriter::write_manifest(AtomicFile& file) const {
  file.write(fmt::format("{{\"format\": \"{}\", \"version\": {},\n", detail::kFormatName,
                         detail::kFormatVersion));
  file.write(" \"metadata\": " + checkpoint_.metadata.text + ",\n");
  file.write(" \"config\": " + checkpoint_.config.text + ",\n");
  if (!side_items_.empty()) {
    std::string path;
    detail::append_string(path, side_path_.filename().string());
    file.write(fmt::format(R"( "files": {{"{}": {{"path": {}, "size": {}, "sha256": "{}"}}}},)",
                           kSideKey, path, side_size_, side_sha256_) +
               '\n');
  }
  file.write(" \"tensors\": {");
  std::string out;
  for (std::size_t i = 0; i < items_.size(); ++i) {
    out = i == 0 ? "\n  " : ",\n  ";
    detail::append_string(out, items_[i].name);
    out += ": ";
    append_tensor(out, items_[i]);
    file.write(out);
  }
  file.write("},\n \"aliases\": {");
  for (std::size_t i = 0; i < aliases_.size(); ++i) {
    out = i == 0 ? "\n  " : ",\n  ";
    detail::append_string(out, aliases_[i].first);
    out += ": ";
    detail::append_string(out, aliases_[i].second);
    file.write(out);
  }
  file.write("},\n \"tests\": [");
  append_tests(file);
  file.write("]}\n");
}

void CheckpointWriter::write_with_side_file() {
  const std::vector<detail::ManifestFile> replaced = own_side_files(path_);
  const fs::path folder = path_.parent_path();
  AtomicFile manifest(path_, where_);
  std::error_code error;
  try {
    write_side_file(replaced.empty() ? path_ : folder / replaced.front().path);
    write_manifest(manifest);
    manifest.commit();
  } catch (...) {
    if (!side_path_.empty() && !manifest.is_in_place()) fs::remove(side_path_, error);
    throw;
  }
  for (const detail::ManifestFile& side : replaced) {  // one that stays only takes space
    const fs::path old = folder / side.path;
    if (is_unchanged(old, side) && !manifest_beside(old)) fs::remove(old, error);
  }
}

void CheckpointWriter::write() {
  collect();
  plan_side_file();
  is_bare_ ? write_bare() : write_with_side_file();
}

}  // namespace

void save_checkpoint(const std::string& path, const Checkpoint& checkpoint,
                     const SaveCheckpointOptions& options) {
  CheckpointWriter(path, checkpoint, options).write();
}

}  // namespace tenon::nn
