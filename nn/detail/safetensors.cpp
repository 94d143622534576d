// Reading and writing .safetensors headers, and one pass over the data.
#include "nn/detail/safetensors.h"

#include <algorithm>
#include <cstring>

#include "nn/detail/tensor_json.h"
#include "tensor/support/check.h"
#include "tensor/support/json_stream.h"
#include "tensor/support/text.h"

namespace tenon::nn::detail {

namespace {

constexpr std::uint64_t kMaxHeader = 100'000'000;  // the reference implementation's limit
constexpr std::size_t kPrefix = 8;
constexpr std::size_t kAlignment = 64;

/// The format's dtypes of whole bytes. Those of fewer bits, and names yet to come, are not listed:
/// their sizes cannot be checked.
struct Element {
  std::string_view name;
  std::size_t bytes;
  std::optional<DType> dtype{};
};
constexpr Element kElements[] = {{"F32", 4, DType::float32},
                                 {"F64", 8, DType::float64},
                                 {"F16", 2, DType::float16},
                                 {"BF16", 2, DType::bfloat16},
                                 {"I64", 8, DType::int64},
                                 {"I32", 4, DType::int32},
                                 {"I16", 2, DType::int16},
                                 {"I8", 1, DType::int8},
                                 {"U8", 1, DType::uint8},
                                 {"BOOL", 1, DType::boolean},
                                 {"U16", 2},
                                 {"U32", 4},
                                 {"U64", 8},
                                 {"F8_E4M3", 1},
                                 {"F8_E5M2", 1},
                                 {"F8_E8M0", 1},
                                 {"C64", 8}};

std::string_view safetensors_name(DType dtype) {
  return std::ranges::find(kElements, std::optional(dtype), &Element::dtype)->name;
}

/// Returns the bytes of an element, 0 where they are not known.
std::size_t read_dtype(text::JsonReader& reader, SafetensorsEntry& entry) {
  reader.expect(text::JsonKind::string, "dtype");
  const std::string text = reader.string();
  if (text.empty()) reader.fail("dtype is empty");
  const auto* known = std::ranges::find(kElements, text, &Element::name);
  const bool is_known = known != std::end(kElements);
  if (is_known) entry.dtype = known->dtype;
  if (!entry.dtype) entry.foreign_dtype = text::escape(text);
  return is_known ? known->bytes : 0;
}

void read_offsets(text::JsonReader& reader, SafetensorsEntry& entry) {
  reader.expect(text::JsonKind::array, "data_offsets");
  std::uint64_t offsets[2] = {0, 0};
  std::size_t count = 0;
  reader.begin_array();
  while (reader.next_element()) {
    if (count == 2) reader.fail("data_offsets has more than 2 numbers");
    offsets[count++] = static_cast<std::uint64_t>(read_size(reader, "an offset"));
  }
  if (count != 2) reader.fail(fmt::format("data_offsets has {} numbers; needed 2", count));
  entry.begin = offsets[0];
  entry.end = offsets[1];
}

SafetensorsEntry read_entry(text::JsonReader& reader, const std::string& name) {
  SafetensorsEntry entry;
  entry.name = name;
  bool has_dtype = false, has_shape = false, has_offsets = false;
  std::size_t element = 0;
  reader.expect(text::JsonKind::object, "the tensor's entry");
  reader.begin_object();
  std::string key;
  while (reader.next_member(key)) {
    if (key == "dtype") {
      element = read_dtype(reader, entry);
      has_dtype = true;
    } else if (key == "shape") {
      entry.sizes = read_shape(reader);
      has_shape = true;
    } else if (key == "data_offsets") {
      read_offsets(reader, entry);
      has_offsets = true;
    } else {
      reader.fail(
          fmt::format("unknown key {}; needed dtype, shape and data_offsets", text::quote(key)));
    }
  }
  if (!has_dtype || !has_shape || !has_offsets) {
    reader.fail(fmt::format("{} is missing", !has_dtype   ? "dtype"
                                             : !has_shape ? "shape"
                                                          : "data_offsets"));
  }
  const bool is_known = element != 0;
  const std::uint64_t bytes = byte_size(reader, entry.dtype_text(), element, entry.sizes);
  if (entry.end < entry.begin || (is_known && entry.end - entry.begin != bytes)) {
    reader.fail(fmt::format("data_offsets [{}, {}] do not span the {}bytes of {}", entry.begin,
                            entry.end, is_known ? std::to_string(bytes) + " " : "", entry.spec()));
  }
  return entry;
}

std::string read_metadata(text::JsonReader& reader) {
  reader.expect(text::JsonKind::object, "__metadata__");
  const std::size_t start = reader.position();
  reader.begin_object();
  std::string key;
  while (reader.next_member(key)) {
    reader.expect(text::JsonKind::string, fmt::format("{} of __metadata__", text::quote(key)));
    reader.string();
  }
  const std::size_t end = reader.position();
  reader.seek(start);
  const std::string text(reader.skip());
  TENON_INTERNAL(reader.position() == end, "__metadata__ read twice differs");
  return text;
}

// Sorted by offset the tensors must follow one another from 0 to the end of the file.
void check_cover(const SafetensorsHeader& header, const std::string& where) {
  std::vector<const SafetensorsEntry*> order;
  for (const SafetensorsEntry& entry : header.entries) order.push_back(&entry);
  std::sort(order.begin(), order.end(), [](const auto* a, const auto* b) {
    return std::pair(a->begin, a->end) < std::pair(b->begin, b->end);
  });
  std::uint64_t position = 0;
  for (const SafetensorsEntry* entry : order) {
    TENON_CHECK(entry->end <= header.data_size, CheckpointError,
                "{}: tensor {}: data_offsets [{}, {}] reach outside the {} bytes of data; is the "
                "file truncated?",
                where, text::quote(entry->name), entry->begin, entry->end, header.data_size);
    TENON_CHECK(entry->begin == position, CheckpointError,
                "{}: tensor {}: starts at byte {}, where byte {} is next: {}", where,
                text::quote(entry->name), entry->begin, position,
                entry->begin < position ? "tensors overlap" : "there is a hole");
    position = entry->end;
  }
  TENON_CHECK(position == header.data_size, CheckpointError,
              "{}: {} bytes follow the last tensor; needed none", where,
              header.data_size - position);
}

}  // namespace

std::string SafetensorsEntry::spec() const { return dtype_text() + shape_text(sizes); }

bool is_named_safetensors(const std::filesystem::path& path) {
  std::string name = path.filename().string();
  for (char& c : name) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');  // in no locale's way
  }
  return name.ends_with(".safetensors");
}

bool looks_like_safetensors(std::span<const std::byte> start, std::uint64_t size) {
  if (size <= kPrefix || start.size() <= kPrefix || start[kPrefix] != std::byte{'{'}) return false;
  std::uint64_t length = 0;
  std::memcpy(&length, start.data(), kPrefix);
  return length <= kMaxHeader;
}

SafetensorsHeader read_safetensors_header(InputFile& file, const std::string& where, Sha256* hash) {
  TENON_CHECK(file.size() >= kPrefix, CheckpointError,
              "{}: has {} bytes; a .safetensors file starts with 8 bytes of header length", where,
              file.size());
  std::byte prefix[kPrefix];
  file.read(prefix);
  std::uint64_t length = 0;
  std::memcpy(&length, prefix, kPrefix);
  TENON_CHECK(length <= kMaxHeader, CheckpointError,
              "{}: the header length is {}; at most {} is allowed", where, length, kMaxHeader);
  TENON_CHECK(length <= file.size() - kPrefix, CheckpointError,
              "{}: the header is {} bytes long, but the file has only {}; is it truncated?", where,
              length, file.size());
  std::string text(length, '\0');
  file.read(std::as_writable_bytes(std::span(text)));
  if (hash != nullptr) {
    hash->update(prefix);
    hash->update(std::as_bytes(std::span(text)));
  }
  TENON_CHECK(text.starts_with('{'), CheckpointError, "{}: the header does not start with '{{'",
              where);

  SafetensorsHeader header;
  header.data_size = file.size() - kPrefix - length;
  text::JsonReader reader(text, where);
  reader.begin_object();
  std::string name;
  while (reader.next_member(name)) {
    if (name == kMetadataKey) {
      header.metadata = read_metadata(reader);
      continue;
    }
    reader.set_context("tensor " + text::quote(name));
    header.entries.push_back(read_entry(reader, name));
    reader.set_context("");
  }
  reader.finish();
  check_cover(header, where);
  return header;
}

std::string safetensors_header(std::span<const SafetensorsEntry> entries,
                               std::string_view metadata) {
  std::string text = "{";
  if (!metadata.empty()) text += fmt::format("\"{}\":{}", kMetadataKey, metadata);
  for (const SafetensorsEntry& entry : entries) {
    if (text.size() > 1) text += ',';
    append_string(text, entry.name);
    text += fmt::format(R"(:{{"dtype":"{}","shape":[{}],"data_offsets":[{},{}]}})",
                        safetensors_name(*entry.dtype), text::join(entry.sizes, ","), entry.begin,
                        entry.end);
  }
  text += '}';
  text.resize((kPrefix + text.size() + kAlignment - 1) / kAlignment * kAlignment - kPrefix, ' ');
  const std::uint64_t length = text.size();
  TENON_CHECK(
      length <= kMaxHeader, CheckpointError,
      "[save_checkpoint] the names and shapes of {} tensors take {} bytes; at most {} fit a "
      ".safetensors header",
      entries.size(), length, kMaxHeader);
  std::string prefix(kPrefix, '\0');
  std::memcpy(prefix.data(), &length, kPrefix);
  return prefix + text;
}

void read_ranges(InputFile& file, std::uint64_t data_size, std::vector<ReadRange> ranges,
                 Sha256* hash) {
  constexpr std::size_t kChunk = std::size_t{1} << 20;
  std::sort(ranges.begin(), ranges.end(),
            [](const ReadRange& a, const ReadRange& b) { return a.begin < b.begin; });
  std::vector<std::byte> scratch;
  std::uint64_t position = 0;
  const std::uint64_t data_start = file.size() - data_size;
  const auto pass_over = [&](std::uint64_t end) {
    if (hash == nullptr && end > position) file.seek(data_start + end);
    for (; hash != nullptr && position < end; position += scratch.size()) {
      scratch.resize(std::min<std::uint64_t>(end - position, kChunk));
      file.read(scratch);
      hash->update(scratch);
    }
    position = end;
  };
  for (const ReadRange& range : ranges) {
    pass_over(range.begin);
    // In pieces, so that what is hashed is still in the cache.
    for (std::byte* target = range.target; position < range.end;) {
      const auto count =
          static_cast<std::size_t>(std::min<std::uint64_t>(range.end - position, kChunk));
      file.read({target, count});
      if (hash != nullptr) hash->update({target, count});
      target += count;
      position += count;
    }
  }
  pass_over(data_size);
}

}  // namespace tenon::nn::detail
