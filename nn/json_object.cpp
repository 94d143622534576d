// JsonObject: look-ups and edits of a JSON object that is kept as text.
#include <charconv>
#include <cmath>
#include <functional>

#include "nn/checkpoint.h"
#include "nn/detail/tensor_json.h"
#include "tensor/support/check.h"
#include "tensor/support/json_stream.h"

namespace tenon::nn {

using text::JsonKind;
using text::JsonReader;

namespace {

constexpr const char* kWhere = "[JsonObject] the text";

void for_each_member(const std::string& text,
                     const std::function<void(const std::string&, std::string_view)>& visit) {
  text::JsonReader reader(text, kWhere);
  reader.expect(text::JsonKind::object, "it");
  reader.begin_object();
  std::string key;
  while (reader.next_member(key)) {
    reader.peek();  // leaves the white space before the value behind
    visit(key, reader.skip());
  }
  reader.finish();
}

}  // namespace

std::optional<std::string> JsonObject::member(std::string_view key) const {
  std::optional<std::string> found;
  for_each_member(text, [&](const std::string& name, std::string_view value) {
    if (name == key) found = std::string(value);
  });
  return found;
}

std::optional<std::string> JsonObject::string(std::string_view key) const {
  const auto value = member(key);
  if (!value || value->front() != '"') return {};
  return text::JsonReader(*value, kWhere).string();
}

std::optional<double> JsonObject::number(std::string_view key) const {
  const auto value = member(key);
  if (!value) return {};
  text::JsonReader reader(*value, kWhere);
  if (reader.peek() != text::JsonKind::number) return {};
  return detail::read_double(reader);
}

std::optional<std::int64_t> JsonObject::integer(std::string_view key) const {
  const auto value = member(key);
  if (!value) return {};
  std::int64_t result = 0;
  const char* end = value->data() + value->size();
  const auto [stop, error] = std::from_chars(value->data(), end, result);
  if (error != std::errc() || stop != end) return {};
  return result;
}

std::optional<bool> JsonObject::boolean(std::string_view key) const {
  const auto value = member(key);
  if (value == "true") return true;
  if (value == "false") return false;
  return {};
}

void JsonObject::set_member(std::string_view key, std::string value) {
  std::string out = "{";
  bool is_new = true;
  const auto append = [&](std::string_view name, std::string_view member) {
    if (out.size() > 1) out += ", ";
    detail::append_string(out, name);
    out += ": ";
    out += member;
  };
  for_each_member(text, [&](const std::string& name, std::string_view old) {
    append(name, name == key ? std::string_view(value) : old);
    is_new = is_new && name != key;
  });
  if (is_new) append(key, value);
  text = out + '}';
}

void JsonObject::set(std::string_view key, std::string_view value) {
  std::string quoted;
  detail::append_string(quoted, value);
  set_member(key, std::move(quoted));
}

void JsonObject::set(std::string_view key, double value) {
  TENON_CHECK(std::isfinite(value), ValueError, "[JsonObject] \"{}\" is {}; needed a finite number",
              key, value);
  std::string digits;
  detail::append_double(digits, value);
  set_member(key, std::move(digits));
}

void JsonObject::set(std::string_view key, std::int64_t value) {
  set_member(key, std::to_string(value));
}

}  // namespace tenon::nn
