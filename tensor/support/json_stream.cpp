// The strict pull parser; see json_stream.h.
#include "tensor/support/json_stream.h"

#include <algorithm>

#include "tensor/support/check.h"
#include "tensor/support/text.h"

namespace tenon::text {

namespace {

constexpr std::size_t kFewKeys = 8;

bool is_digit(char c) { return c >= '0' && c <= '9'; }

void append_utf8(std::string& out, unsigned code) {
  const auto put = [&](unsigned byte) { out += static_cast<char>(byte); };
  if (code < 0x80) {
    put(code);
  } else if (code < 0x800) {
    put(0xc0U | (code >> 6));
    put(0x80U | (code & 0x3fU));
  } else if (code < 0x10000) {
    put(0xe0U | (code >> 12));
    put(0x80U | ((code >> 6) & 0x3fU));
    put(0x80U | (code & 0x3fU));
  } else {
    put(0xf0U | (code >> 18));
    put(0x80U | ((code >> 12) & 0x3fU));
    put(0x80U | ((code >> 6) & 0x3fU));
    put(0x80U | (code & 0x3fU));
  }
}

}  // namespace

std::string_view describe(JsonKind kind) {
  switch (kind) {
    case JsonKind::object: return "an object";
    case JsonKind::array: return "an array";
    case JsonKind::string: return "a string";
    case JsonKind::number: return "a number";
    case JsonKind::boolean: return "true or false";
    case JsonKind::null: break;
  }
  return "null";
}

JsonReader::JsonReader(std::string_view text, std::string where)
    : text_(text), where_(std::move(where)) {
  if (text_.starts_with("\xef\xbb\xbf")) fail("starts with a byte order mark; needed plain UTF-8");
  if (text_.starts_with("\xff\xfe") || text_.starts_with("\xfe\xff")) {
    fail("is UTF-16; needed UTF-8");
  }
}

void JsonReader::fail(const std::string& reason) const {
  const std::string_view before = text_.substr(0, std::min(position_, text_.size()));
  const auto line = 1 + std::count(before.begin(), before.end(), '\n');
  const std::size_t line_start = before.rfind('\n') + 1;  // npos + 1 is 0
  throw CheckpointError(fmt::format("{}: {}{}{} (line {}, column {})", where_, context_,
                                    context_.empty() ? "" : ": ", reason, line,
                                    before.size() - line_start + 1));
}

void JsonReader::skip_space() {
  while (position_ < text_.size()) {
    const char c = text_[position_];
    if (c != ' ' && c != '\n' && c != '\t' && c != '\r') return;
    ++position_;
  }
}

JsonKind JsonReader::peek() {
  skip_space();
  if (position_ == text_.size()) fail("the text ends where a value is needed; is it truncated?");
  const char c = text_[position_];
  if (c == '-' || is_digit(c)) return JsonKind::number;
  switch (c) {
    case '{': return JsonKind::object;
    case '[': return JsonKind::array;
    case '"': return JsonKind::string;
    case 't':
    case 'f': return JsonKind::boolean;
    case 'n': return JsonKind::null;
    case 'N':
    case 'I': fail(R"(NaN and Infinity are not JSON; write the strings "nan", "inf" and "-inf")");
    default: fail(fmt::format("unexpected '{}' where a value is needed", escape({&c, 1})));
  }
}

void JsonReader::expect(JsonKind kind, std::string_view what) {
  const JsonKind given = peek();
  if (given != kind)
    fail(fmt::format("{} is {}; needed {}", what, describe(given), describe(kind)));
}

void JsonReader::open(char bracket) {
  skip_space();
  if (position_ == text_.size() || text_[position_] != bracket) {
    fail(fmt::format("needed '{}'", bracket));
  }
  if (levels_.size() == kMaxDepth) fail(fmt::format("nested deeper than {} levels", kMaxDepth));
  ++position_;
  levels_.emplace_back();
}

void JsonReader::begin_object() { open('{'); }
void JsonReader::begin_array() { open('['); }

// Consumes what stands between items; false when `close` was read instead.
bool JsonReader::next_item(char close) {
  skip_space();
  if (position_ == text_.size())
    fail(fmt::format("the text ends before '{}'; is it truncated?", close));
  Level& level = levels_.back();
  if (text_[position_] == close) {
    ++position_;
    levels_.pop_back();
    return false;
  }
  if (!level.first) {
    if (text_[position_] != ',') {
      fail(fmt::format("unexpected '{}'; needed ',' or '{}'", escape(text_.substr(position_, 1)),
                       close));
    }
    ++position_;
    skip_space();
    if (position_ < text_.size() && text_[position_] == close) {
      fail(fmt::format("a comma before '{}'", close));
    }
  }
  level.first = false;
  return true;
}

bool JsonReader::next_member(std::string& key) {
  if (!next_item('}')) return false;
  skip_space();
  if (position_ == text_.size()) fail("the text ends where a key is needed; is it truncated?");
  if (text_[position_] != '"') {
    fail(fmt::format("unexpected '{}'; needed a key in double quotes",
                     escape(text_.substr(position_, 1))));
  }
  key = string();
  note_key(levels_.back(), key);
  skip_space();
  if (position_ == text_.size() || text_[position_] != ':') {
    fail(fmt::format("needed ':' after the key {}", quote(key)));
  }
  ++position_;
  return true;
}

void JsonReader::note_key(Level& level, const std::string& key) {
  if (++level.members > kMaxMembers) fail(fmt::format("more than {} members", kMaxMembers));
  bool is_new = true;
  if (level.members <= kFewKeys) {
    is_new = std::find(level.keys.begin(), level.keys.end(), key) == level.keys.end();
    level.keys.push_back(key);
  } else {
    if (level.many.empty()) level.many.insert(level.keys.begin(), level.keys.end());
    is_new = level.many.insert(key).second;
  }
  if (!is_new) fail(fmt::format("the key {} stands twice", quote(key)));
}

bool JsonReader::next_element() { return next_item(']'); }

std::string JsonReader::string() {
  expect(JsonKind::string, "the value");
  ++position_;
  return unescape_until_quote();
}

std::string JsonReader::unescape_until_quote() {
  std::string out;
  while (true) {
    if (position_ >= text_.size()) fail("the text ends within a string; is it truncated?");
    const char c = text_[position_];
    if (c == '"') break;
    if (c == '\\') {
      ++position_;
      append_escape(out);
    } else if (static_cast<unsigned char>(c) < 0x20) {
      fail(fmt::format("control character '{}' in a string; needed an escape", escape({&c, 1})));
    } else {
      const std::size_t length = utf8_sequence_length(text_.substr(position_, 4));
      if (length == 0) fail("invalid UTF-8 in a string");
      out.append(text_.substr(position_, length));
      position_ += length;
    }
    if (out.size() > kMaxString) fail(fmt::format("a string of more than {} bytes", kMaxString));
  }
  ++position_;
  return out;
}

void JsonReader::append_escape(std::string& out) {
  if (position_ >= text_.size()) fail("the text ends within a string; is it truncated?");
  const char c = text_[position_++];
  switch (c) {
    case '"':
    case '\\':
    case '/': out += c; return;
    case 'b': out += '\b'; return;
    case 'f': out += '\f'; return;
    case 'n': out += '\n'; return;
    case 'r': out += '\r'; return;
    case 't': out += '\t'; return;
    case 'u': break;
    default: fail(fmt::format("unknown escape '\\{}' in a string", escape({&c, 1})));
  }
  unsigned code = hex4();
  if (code >= 0xdc00 && code < 0xe000) fail("a lone surrogate in a string");
  if (code >= 0xd800 && code < 0xdc00) {
    if (text_.substr(position_, 2) != "\\u") fail("a lone surrogate in a string");
    position_ += 2;
    const unsigned low = hex4();
    if (low < 0xdc00 || low >= 0xe000) fail("a lone surrogate in a string");
    code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
  }
  append_utf8(out, code);
}

unsigned JsonReader::hex4() {
  unsigned code = 0;
  for (int i = 0; i < 4; ++i) {
    const char c = position_ < text_.size() ? text_[position_] : '\0';
    const char lower = static_cast<char>(c | 0x20);
    const bool is_letter = lower >= 'a' && lower <= 'f';
    if (!is_digit(c) && !is_letter) fail("needed four hexadecimal digits after \\u");
    code = code * 16 + static_cast<unsigned>(is_letter ? lower - 'a' + 10 : c - '0');
    ++position_;
  }
  return code;
}

std::string_view JsonReader::raw_string() {
  expect(JsonKind::string, "the value");
  const std::size_t start = ++position_;
  while (true) {
    const std::size_t stop = text_.find_first_of("\"\\", position_);
    if (stop == std::string_view::npos) {
      position_ = text_.size();
      fail("the text ends within a string; is it truncated?");
    }
    if (text_[stop] == '"') {
      position_ = stop + 1;
      return text_.substr(start, stop - start);
    }
    position_ = std::min(stop + 2, text_.size());
  }
}

std::string_view JsonReader::number() {
  expect(JsonKind::number, "the value");
  const std::size_t start = position_;
  const auto at_digit = [&] { return position_ < text_.size() && is_digit(text_[position_]); };
  const auto digits = [&](const char* where) {
    if (!at_digit()) fail(fmt::format("needed a digit {} of a number", where));
    while (at_digit()) ++position_;
  };
  if (text_[position_] == '-') ++position_;
  if (position_ < text_.size() && text_[position_] == '0') {
    ++position_;
    if (at_digit()) fail("a number with a leading zero");
  } else {
    digits("at the start");
  }
  if (position_ < text_.size() && text_[position_] == '.') {
    ++position_;
    digits("after the point");
  }
  if (position_ < text_.size() && (text_[position_] | 0x20) == 'e') {
    ++position_;
    if (position_ < text_.size() && (text_[position_] == '+' || text_[position_] == '-'))
      ++position_;
    digits("in the exponent");
  }
  return text_.substr(start, position_ - start);
}

void JsonReader::literal(std::string_view word) {
  if (text_.substr(position_, word.size()) != word) fail(fmt::format("needed {}", word));
  position_ += word.size();
}

bool JsonReader::boolean() {
  expect(JsonKind::boolean, "the value");
  const bool value = text_[position_] == 't';
  literal(value ? "true" : "false");
  return value;
}

// Recursion is bounded by kMaxDepth.
std::string_view JsonReader::skip() {
  const JsonKind kind = peek();
  const std::size_t start = position_;
  std::string key;
  switch (kind) {
    case JsonKind::object:
      begin_object();
      while (next_member(key)) skip();
      break;
    case JsonKind::array:
      begin_array();
      while (next_element()) skip();
      break;
    case JsonKind::string: string(); break;
    case JsonKind::number: number(); break;
    case JsonKind::boolean: boolean(); break;
    case JsonKind::null: literal("null"); break;
  }
  return text_.substr(start, position_ - start);
}

void JsonReader::finish() {
  skip_space();
  if (position_ != text_.size()) fail("text after the end of the document");
}

}  // namespace tenon::text
