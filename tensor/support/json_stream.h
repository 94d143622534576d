// JsonReader: a strict pull parser over a text in memory, with no tree: RFC 8259 and nothing more.
//
//   reader.begin_object();
//   while (reader.next_member(key)) { if (key == "data") … else reader.skip(); }
//   reader.finish();
//
// Duplicate keys (compared after unescaping), invalid UTF-8, lone surrogates, a byte order mark,
// deep nesting and trailing text are errors. Numbers are handed out as text, so that the caller
// converts them exactly and without a locale.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

namespace tenon::text {

enum class JsonKind { object, array, string, number, boolean, null };

/// "an object", "a string", …
std::string_view describe(JsonKind kind);

class JsonReader {
 public:
  static constexpr std::size_t kMaxDepth = 64;
  static constexpr std::size_t kMaxString = std::size_t{1} << 20;
  static constexpr std::size_t kMaxMembers = 1'000'000;

  /// `where` starts every message: "[load_checkpoint] model.json". The text must outlive it.
  JsonReader(std::string_view text, std::string where);

  /// What is being read, put after `where` in messages: `tensor "a.b"`.
  void set_context(std::string context) { context_ = std::move(context); }
  const std::string& context() const { return context_; }

  /// The kind of the next value; it is not consumed.
  JsonKind peek();
  void begin_object();
  /// Reads the next key into `key`; false, with the object consumed, when there is none.
  bool next_member(std::string& key);
  void begin_array();
  /// Moves to the next element; false, with the array consumed, when there is none.
  bool next_element();
  std::string string();
  /// The text between the quotes of a string of any length, escapes left as they are.
  std::string_view raw_string();
  std::string_view number();
  bool boolean();
  /// Passes over any value, checking it; returns its text.
  std::string_view skip();
  /// Only white space may follow.
  void finish();

  std::size_t position() const { return position_; }
  /// Goes back to the start of a value of an enclosing or finished level.
  void seek(std::size_t position) { position_ = position; }
  std::size_t remaining() const { return text_.size() - position_; }

  /// Throws CheckpointError: where, context, `reason`, line and column.
  [[noreturn]] void fail(const std::string& reason) const;
  /// fail() unless the next value is of this kind.
  void expect(JsonKind kind, std::string_view what);

 private:
  struct Level {
    bool first = true;
    std::vector<std::string> keys;  // moved into `many` when there are more than a few
    std::unordered_set<std::string> many;
    std::size_t members = 0;
  };
  void skip_space();
  void open(char bracket);
  bool next_item(char close);
  void note_key(Level& level, const std::string& key);
  void literal(std::string_view word);
  std::string unescape_until_quote();
  void append_escape(std::string& out);
  unsigned hex4();

  std::string_view text_;
  std::string where_;
  std::string context_;
  std::size_t position_ = 0;
  std::vector<Level> levels_;
};

}  // namespace tenon::text
