// The grammar of the manifest, one function an object.
#include "nn/detail/manifest.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <unordered_map>

#include "nn/detail/tensor_json.h"
#include "tensor/support/check.h"
#include "tensor/support/json_stream.h"
#include "tensor/support/text.h"

namespace tenon::nn::detail {

namespace {

constexpr std::size_t kMaxName = 1024;

bool has_control_character(std::string_view text) {
  return std::ranges::any_of(
      text, [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; });
}

class ManifestParser {
 public:
  ManifestParser(std::string_view text, const std::string& where) : reader_(text, where) {}
  Manifest parse();

 private:
  void read_format();
  void read_version();
  std::string read_object_text(std::string_view what);
  void read_files();
  ManifestFile read_file(const std::string& key);
  void read_tensors();
  ManifestTensor read_tensor(const std::string& label);
  void read_dtype(ManifestTensor& tensor);
  void read_offsets(ManifestTensor& tensor);
  void read_payload(ManifestTensor& tensor, std::size_t data, std::size_t base64);
  void read_aliases();
  void read_tests();
  ManifestTest read_test(const std::string& label);
  std::vector<ManifestTensor> read_test_tensors(const std::string& label);
  double read_tolerance(std::string_view what);
  void check_references();

  text::JsonReader reader_;
  Manifest manifest_;
};

Manifest ManifestParser::parse() {
  bool has_format = false, has_version = false, has_tensors = false;
  reader_.expect(text::JsonKind::object, "the document");
  reader_.begin_object();
  std::string key;
  while (reader_.next_member(key)) {
    if (key == "format") {
      read_format();
      has_format = true;
    } else if (key == "version") {
      read_version();
      has_version = true;
    } else if (key == "metadata") {
      manifest_.metadata = read_object_text(key);
    } else if (key == "config") {
      manifest_.config = read_object_text(key);
    } else if (key == "files") {
      read_files();
    } else if (key == "tensors") {
      read_tensors();
      has_tensors = true;
    } else if (key == "aliases") {
      read_aliases();
    } else if (key == "tests") {
      read_tests();
    } else {
      reader_.skip();
    }
  }
  reader_.finish();
  if (!has_format) reader_.fail(fmt::format("\"format\" is missing; needed \"{}\"", kFormatName));
  if (!has_version) reader_.fail("\"version\" is missing");
  if (!has_tensors) reader_.fail("\"tensors\" is missing");
  check_references();
  return std::move(manifest_);
}

void ManifestParser::read_format() {
  reader_.expect(text::JsonKind::string, "\"format\"");
  const std::string format = reader_.string();
  if (format != kFormatName) {
    reader_.fail(fmt::format("the format is {}; needed \"{}\"", text::quote(format), kFormatName));
  }
}

void ManifestParser::read_version() {
  reader_.expect(text::JsonKind::number, "\"version\"");
  const std::string_view version = reader_.number();
  if (version != std::to_string(kFormatVersion)) {
    reader_.fail(fmt::format("version {} is unknown; this program reads version {}",
                             text::escape(version), kFormatVersion));
  }
}

std::string ManifestParser::read_object_text(std::string_view what) {
  reader_.expect(text::JsonKind::object, fmt::format("\"{}\"", what));
  return std::string(reader_.skip());
}

void ManifestParser::read_files() {
  reader_.expect(text::JsonKind::object, "\"files\"");
  reader_.begin_object();
  std::string key;
  while (reader_.next_member(key)) {
    reader_.set_context("file " + text::quote(key));
    manifest_.files.push_back(read_file(key));
    reader_.set_context("");
  }
}

ManifestFile ManifestParser::read_file(const std::string& key) {
  ManifestFile file{key, "", 0, ""};
  std::optional<std::int64_t> size;
  reader_.expect(text::JsonKind::object, "the entry");
  reader_.begin_object();
  std::string field;
  while (reader_.next_member(field)) {
    if (field == "path") {
      file.path = reader_.string();
      if (const char* fault = fault_of_path(file.path)) {
        reader_.fail(fmt::format("the path {} {}", text::quote(file.path), fault));
      }
    } else if (field == "size") {
      size = read_size(reader_, "size");
    } else if (field == "sha256") {
      file.sha256 = reader_.string();
      if (file.sha256.size() != 64 ||
          file.sha256.find_first_not_of("0123456789abcdef") != std::string::npos) {
        reader_.fail(fmt::format("sha256 is {}; needed 64 lower-case hexadecimal digits",
                                 text::quote(file.sha256)));
      }
    } else {
      reader_.fail(fmt::format("unknown key {}; needed path, size and sha256", text::quote(field)));
    }
  }
  if (file.path.empty() || !size || file.sha256.empty()) {
    reader_.fail(fmt::format("{} is missing", file.path.empty() ? "path"
                                              : !size           ? "size"
                                                                : "sha256"));
  }
  file.size = static_cast<std::uint64_t>(*size);
  return file;
}

void ManifestParser::read_tensors() {
  reader_.expect(text::JsonKind::object, "\"tensors\"");
  reader_.begin_object();
  std::string name;
  while (reader_.next_member(name)) {
    const std::string label = "tensor " + text::quote(name);
    reader_.set_context(label);
    if (const char* fault = fault_of_name(name)) reader_.fail(fmt::format("the name {}", fault));
    manifest_.tensors.emplace_back(name, read_tensor(label));
    reader_.set_context("");
  }
}

ManifestTensor ManifestParser::read_tensor(const std::string& label) {
  constexpr std::size_t kNone = std::string_view::npos;
  ManifestTensor tensor;
  tensor.label = label;
  bool has_dtype = false, has_shape = false, has_offsets = false, has_file = false;
  std::size_t data = kNone, base64 = kNone;  // where such a value starts
  reader_.expect(text::JsonKind::object, "the tensor's entry");
  reader_.begin_object();
  std::string key;
  while (reader_.next_member(key)) {
    if (key == "dtype") {
      read_dtype(tensor);
      has_dtype = true;
    } else if (key == "shape") {
      tensor.sizes = read_shape(reader_);
      has_shape = true;
    } else if (key == "data" || key == "base64") {
      reader_.expect(key == "data" ? text::JsonKind::array : text::JsonKind::string, key);
      (key == "data" ? data : base64) = reader_.position();
      if (!has_dtype || !has_shape) {  // read when the rest is known
        key == "data" ? reader_.skip() : reader_.raw_string();
      } else {
        tensor.value = key == "data" ? read_values(reader_, tensor.dtype, tensor.sizes)
                                     : read_base64(reader_, tensor.dtype, tensor.sizes);
      }
    } else if (key == "file") {
      reader_.expect(text::JsonKind::string, key);
      tensor.file = reader_.string();
      has_file = true;
    } else if (key == "data_offsets") {
      read_offsets(tensor);
      has_offsets = true;
    } else {
      reader_.fail(
          fmt::format("unknown key {}; a tensor has dtype, shape and one of data, base64, "
                      "or file with data_offsets",
                      text::quote(key)));
    }
  }
  if (!has_dtype) reader_.fail("dtype is missing");
  if (!has_shape) reader_.fail("shape is missing");
  const int sources = (data != kNone ? 1 : 0) + (base64 != kNone ? 1 : 0) + (has_file ? 1 : 0);
  if (sources != 1) {
    reader_.fail(fmt::format("has {} of data, base64 and file; needed exactly one", sources));
  }
  if (has_offsets != has_file) {
    reader_.fail(has_file ? "file without data_offsets" : "data_offsets without file");
  }
  read_payload(tensor, data, base64);
  return tensor;
}

void ManifestParser::read_payload(ManifestTensor& tensor, std::size_t data, std::size_t base64) {
  const std::size_t after = reader_.position();
  const std::uint64_t bytes = byte_size(reader_, tensor.dtype, tensor.sizes);
  if (data == base64) {  // neither is there: it is in a file
    if (tensor.end < tensor.begin || tensor.end - tensor.begin != bytes) {
      reader_.fail(fmt::format("data_offsets [{}, {}] do not span the {} bytes of {}{}",
                               tensor.begin, tensor.end, bytes, name(tensor.dtype),
                               shape_text(tensor.sizes)));
    }
  } else if (!tensor.value.defined()) {
    reader_.seek(std::min(data, base64));
    tensor.value = data < base64 ? read_values(reader_, tensor.dtype, tensor.sizes)
                                 : read_base64(reader_, tensor.dtype, tensor.sizes);
    reader_.seek(after);
  }
}

void ManifestParser::read_dtype(ManifestTensor& tensor) {
  reader_.expect(text::JsonKind::string, "dtype");
  const std::string text = reader_.string();
  for (int i = 0; i < kNumDTypes; ++i) {
    tensor.dtype = static_cast<DType>(i);
    if (name(tensor.dtype) == text) return;
  }
  reader_.fail(
      fmt::format("unknown dtype {}; needed float32, float64, float16, bfloat16, int64, "
                  "int32, int16, int8, uint8 or bool",
                  text::quote(text)));
}

void ManifestParser::read_offsets(ManifestTensor& tensor) {
  reader_.expect(text::JsonKind::array, "data_offsets");
  std::vector<std::int64_t> offsets;
  reader_.begin_array();
  while (reader_.next_element()) {
    if (offsets.size() == 2) reader_.fail("data_offsets has more than 2 numbers");
    offsets.push_back(read_size(reader_, "an offset"));
  }
  if (offsets.size() != 2) {
    reader_.fail(fmt::format("data_offsets has {} numbers; needed 2", offsets.size()));
  }
  tensor.begin = static_cast<std::uint64_t>(offsets[0]);
  tensor.end = static_cast<std::uint64_t>(offsets[1]);
}

void ManifestParser::read_aliases() {
  reader_.expect(text::JsonKind::object, "\"aliases\"");
  reader_.begin_object();
  std::string name;
  while (reader_.next_member(name)) {
    reader_.set_context("alias " + text::quote(name));
    if (const char* fault = fault_of_name(name)) reader_.fail(fmt::format("the name {}", fault));
    reader_.expect(text::JsonKind::string, "its target");
    manifest_.aliases.emplace_back(name, reader_.string());
    reader_.set_context("");
  }
}

void ManifestParser::read_tests() {
  reader_.expect(text::JsonKind::array, "\"tests\"");
  reader_.begin_array();
  while (reader_.next_element()) {
    manifest_.tests.push_back(read_test(fmt::format("tests[{}]", manifest_.tests.size())));
    reader_.set_context("");
  }
}

ManifestTest ManifestParser::read_test(const std::string& label) {
  ManifestTest test;
  bool has_inputs = false, has_outputs = false;
  reader_.set_context(label);
  reader_.expect(text::JsonKind::object, "the entry");
  reader_.begin_object();
  std::string key;
  while (reader_.next_member(key)) {
    if (key == "mode") {
      test.mode = reader_.string();
      if (test.mode != "eval" && test.mode != "train") {
        reader_.fail(
            fmt::format("mode is {}; needed \"eval\" or \"train\"", text::quote(test.mode)));
      }
    } else if (key == "inputs") {
      test.inputs = read_test_tensors(label + ".inputs");
      has_inputs = true;
    } else if (key == "outputs") {
      test.outputs = read_test_tensors(label + ".outputs");
      has_outputs = true;
    } else if (key == "rtol") {
      test.rtol = read_tolerance(key);
    } else if (key == "atol") {
      test.atol = read_tolerance(key);
    } else {
      reader_.fail(fmt::format("unknown key {}; a test has mode, inputs, outputs, rtol and atol",
                               text::quote(key)));
    }
    reader_.set_context(label);
  }
  if (!has_inputs) reader_.fail("inputs is missing");
  if (!has_outputs) reader_.fail("outputs is missing");
  return test;
}

std::vector<ManifestTensor> ManifestParser::read_test_tensors(const std::string& label) {
  std::vector<ManifestTensor> tensors;
  reader_.expect(text::JsonKind::array, label);
  reader_.begin_array();
  while (reader_.next_element()) {
    const std::string element = fmt::format("{}[{}]", label, tensors.size());
    reader_.set_context(element);
    tensors.push_back(read_tensor(element));
  }
  return tensors;
}

double ManifestParser::read_tolerance(std::string_view what) {
  reader_.expect(text::JsonKind::number, what);
  const double value = read_double(reader_);
  if (!(value >= 0)) reader_.fail(fmt::format("{} is {}; needed at least 0", what, value));
  return value;
}

// Keys of files, and aliases, may be used before they are defined; so this comes last.
void ManifestParser::check_references() {
  std::unordered_map<std::string_view, bool> names;  // of tensors and files
  for (const ManifestFile& file : manifest_.files) names.emplace(file.key, true);
  const auto check_file = [&](const ManifestTensor& tensor) {
    if (tensor.value.defined() || names.contains(tensor.file)) return;
    reader_.set_context(tensor.label);
    reader_.fail(fmt::format("no entry {} in \"files\"", text::quote(tensor.file)));
  };
  for (const auto& [name, tensor] : manifest_.tensors) check_file(tensor);
  for (const ManifestTest& test : manifest_.tests) {
    std::ranges::for_each(test.inputs, check_file);
    std::ranges::for_each(test.outputs, check_file);
  }
  names.clear();
  for (const auto& [name, tensor] : manifest_.tensors) names.emplace(name, true);
  for (const auto& [name, target] : manifest_.aliases) {
    reader_.set_context("alias " + text::quote(name));
    if (names.contains(name)) reader_.fail("a tensor has this name too");
    if (!names.contains(target)) reader_.fail(fmt::format("no tensor {}", text::quote(target)));
  }
}

}  // namespace

Manifest parse_manifest(std::string_view text, const std::string& where) {
  return ManifestParser(text, where).parse();
}

const char* fault_of_name(std::string_view name) {
  if (name.empty()) return "is empty";
  if (name.size() > kMaxName) return "is longer than 1024 bytes";
  if (has_control_character(name)) return "holds control characters";
  for (std::size_t i = 0; i < name.size();) {
    const std::size_t length = text::utf8_sequence_length(name.substr(i));
    if (length == 0) return "is not valid UTF-8";
    i += length;
  }
  return nullptr;
}

const char* fault_of_path(std::string_view path) {
  if (path.empty()) return "is empty";
  if (has_control_character(path)) return "holds control characters";
  if (path.front() == '/') return "is absolute; needed one relative to the manifest";
  if (path.find('\\') != std::string_view::npos) return "holds a backslash";
  for (std::size_t start = 0; start <= path.size();) {
    const std::size_t end = std::min(path.find('/', start), path.size());
    if (path.substr(start, end - start) == "..") return "leaves the manifest's folder";
    start = end + 1;
  }
  return nullptr;
}

}  // namespace tenon::nn::detail
