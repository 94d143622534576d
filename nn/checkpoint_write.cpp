// Writing: the side file first, the manifest last, each through an AtomicFile.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <unordered_map>
#include <unordered_set>

#include "nn/checkpoint.h"
#include "nn/detail/base64.h"
#include "nn/detail/files.h"
#include "nn/detail/json_stream.h"
#include "nn/detail/manifest.h"
#include "nn/detail/safetensors.h"
#include "nn/detail/sha256.h"
#include "nn/detail/tensor_bytes.h"
#include "nn/detail/tensor_json.h"
#include "nn/detail/text.h"
#include "tensor/detail/check.h"

namespace tenon::nn {

namespace fs = std::filesystem;
using detail::AtomicFile;
using detail::quote;

namespace {

constexpr std::string_view kSideKey = "weights";

// One tensor to be written; `side` is its entry in the side file, if it goes there.
struct Item {
  std::string name;
  Tensor tensor;
  const detail::SafetensorsEntry* side = nullptr;
};

class CheckpointWriter {
 public:
  CheckpointWriter(const std::string& path, const Checkpoint& checkpoint,
                   const SaveCheckpointOptions& options)
      : path_(path),
        where_("[save_checkpoint] " + detail::escape(path)),
        checkpoint_(checkpoint),
        options_(options) {}
  void write();

 private:
  void collect();
  void collect_tests();
  void check(const std::string& name, const Tensor& tensor) const;
  void check_object(std::string_view what, const JsonObject& object) const;
  void plan_side_file();
  void write_side_file();
  void write_manifest();
  void append_tensor(std::string& out, const Item& item) const;
  void append_tests(AtomicFile& file) const;

  fs::path path_;
  std::string where_;
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
  TENON_CHECK(fault == nullptr, CheckpointError, "{}: tensor {}: the name {}", where_, quote(name),
              fault);
  TENON_CHECK(tensor.is_eager(), CheckpointError, "{}: tensor {}: has no data", where_,
              quote(name));
}

void CheckpointWriter::check_object(std::string_view what, const JsonObject& object) const {
  detail::JsonReader reader(object.text, fmt::format("{}: {}", where_, what));
  reader.expect(detail::JsonKind::object, "the text");
  reader.skip();
  reader.finish();
}

void CheckpointWriter::collect() {
  check_object("metadata", checkpoint_.metadata);
  check_object("config", checkpoint_.config);
  std::unordered_map<const void*, std::string> first_names;
  for (const auto& [name, tensor] : checkpoint_.tensors) {
    check(name, tensor);
    const auto [entry, is_new] = first_names.emplace(tensor.impl().get(), name);
    if (is_new) {
      items_.push_back({name, tensor});
    } else {
      aliases_.emplace_back(name, entry->second);
    }
  }
  std::unordered_set<std::string> taken;
  for (const auto& [name, tensor] : checkpoint_.tensors) taken.insert(name);
  for (const auto& [name, target] : checkpoint_.aliases) {
    const char* fault = detail::fault_of_name(name);
    TENON_CHECK(fault == nullptr, CheckpointError, "{}: alias {}: the name {}", where_, quote(name),
                fault);
    TENON_CHECK(taken.insert(name).second, CheckpointError, "{}: alias {}: the name is taken",
                where_, quote(name));
    const Tensor* tensor = checkpoint_.tensors.find(target);
    TENON_CHECK(tensor != nullptr, CheckpointError, "{}: alias {}: no tensor {}", where_,
                quote(name), quote(target));
    aliases_.emplace_back(name, first_names.at(tensor->impl().get()));
  }
  collect_tests();
}

void CheckpointWriter::collect_tests() {
  for (std::size_t i = 0; i < checkpoint_.tests.size(); ++i) {
    const RecordedTest& test = checkpoint_.tests[i];
    TENON_CHECK(test.mode == "eval" || test.mode == "train", CheckpointError,
                "{}: tests[{}]: mode is {}; needed \"eval\" or \"train\"", where_, i,
                quote(test.mode));
    TENON_CHECK(
        std::isfinite(test.rtol) && test.rtol >= 0 && std::isfinite(test.atol) && test.atol >= 0,
        CheckpointError, "{}: tests[{}]: rtol {} and atol {}; needed finite, at least 0", where_, i,
        test.rtol, test.atol);
    for (const auto& [kind, list] :
         {std::pair("inputs", &test.inputs), {"outputs", &test.outputs}}) {
      for (std::size_t j = 0; j < list->size(); ++j) {
        std::string name = fmt::format("tests.{}.{}.{}", i, kind, j);
        while (checkpoint_.tensors.contains(name)) name += '_';
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
      if (bytes > options_.data_limit && bytes > options_.base64_limit)
        side_items_.push_back(&item);
    }
  }
  std::ranges::stable_sort(side_items_, std::ranges::greater(),
                           [](const Item* item) { return size_of(item->tensor.dtype()); });
  std::uint64_t position = 0;
  side_entries_.reserve(side_items_.size());  // items point into it
  for (Item* item : side_items_) {
    const std::uint64_t end = position + bytes_of(item->tensor);
    side_entries_.push_back(
        {item->name, item->tensor.dtype(), item->tensor.layout().sizes, position, end});
    item->side = &side_entries_.back();
    position = end;
  }
}

// "model.safetensors"; when that is there already, "model-<12 digits of the SHA-256>.safetensors":
// until the manifest is replaced, the old one must find its old side file.
void CheckpointWriter::write_side_file() {
  if (side_items_.empty()) return;
  side_path_ = path_;
  side_path_.replace_extension(".safetensors");
  AtomicFile file(side_path_, where_);
  detail::Sha256 hash;
  const std::string header = detail::safetensors_header(side_entries_);
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
  std::error_code error;
  if (fs::exists(fs::symlink_status(side_path_, error))) {
    side_path_.replace_filename(path_.stem().string() + '-' + side_sha256_.substr(0, 12) +
                                ".safetensors");
  }
  file.commit_as(side_path_);
}

void CheckpointWriter::append_tensor(std::string& out, const Item& item) const {
  const Extents& sizes = item.tensor.layout().sizes;
  out += fmt::format(R"({{"dtype": "{}", "shape": [{}], )", name(item.tensor.dtype()),
                     detail::join(sizes));
  if (item.side != nullptr) {
    out += fmt::format(R"("file": "{}", "data_offsets": [{}, {}]}})", kSideKey, item.side->begin,
                       item.side->end);
  } else if (bytes_of(item.tensor) <= options_.data_limit && !detail::needs_bytes(item.tensor)) {
    out += "\"data\": ";
    detail::append_values(out, item.tensor);
    out += '}';
  } else {
    out +=
        "\"base64\": \"" + detail::base64_encode(detail::TensorBytes(item.tensor).span()) + "\"}";
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

void CheckpointWriter::write_manifest() {
  AtomicFile file(path_, where_);
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
  file.commit();
}

// The side files that the checkpoint now at `path` refers to, if they are named as this file names
// them; none when it cannot be parsed.
std::vector<fs::path> own_side_files(const fs::path& path) {
  std::vector<fs::path> result;
  const std::string stem = path.stem().string();
  try {
    detail::InputFile file(path, "");
    if (file.size() > LoadCheckpointOptions().max_manifest_bytes) return result;
    std::string text(file.size(), '\0');
    file.read(std::as_writable_bytes(std::span(text)));
    for (const detail::ManifestFile& side : detail::parse_manifest(text, "").files) {
      std::string_view middle = side.path;
      if (!middle.starts_with(stem) || !middle.ends_with(".safetensors")) continue;
      middle.remove_prefix(stem.size());
      middle.remove_suffix(std::string_view(".safetensors").size());
      const bool is_hash =
          middle.size() == 13 && middle[0] == '-' &&
          middle.find_first_not_of("0123456789abcdef", 1) == std::string_view::npos;
      if (middle.empty() || is_hash) result.push_back(path.parent_path() / side.path);
    }
  } catch (const Error&) {
    result.clear();
  }
  return result;
}

void CheckpointWriter::write() {
  collect();
  plan_side_file();
  const std::vector<fs::path> replaced = own_side_files(path_);
  write_side_file();
  try {
    write_manifest();
  } catch (...) {
    std::error_code error;
    const bool was_there = std::ranges::find(replaced, side_path_) != replaced.end();
    if (!side_path_.empty() && !was_there) fs::remove(side_path_, error);
    throw;
  }
  std::error_code error;  // a file that cannot be removed only takes space
  for (const fs::path& old : replaced) {
    if (old != side_path_) fs::remove(old, error);
  }
}

}  // namespace

void save_checkpoint(const std::string& path, const Checkpoint& checkpoint,
                     const SaveCheckpointOptions& options) {
  CheckpointWriter(path, checkpoint, options).write();
}

}  // namespace tenon::nn
