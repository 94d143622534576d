// Quoting, number formatting, edit distance and class names; see text.h.
#include "tensor/support/text.h"

#include <cxxabi.h>
#include <fmt/format.h>
#include <fnmatch.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <numeric>

namespace tenon::text {

namespace {

constexpr std::size_t kMaxEcho = 200;
// Beyond these, looking for near names would cost more than it tells.
constexpr std::size_t kMaxCandidates = 20000;
constexpr std::size_t kMaxComparedLength = 256;

// Levenshtein distance, one row at a time.
std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 0; i < a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i + 1;
    for (std::size_t j = 0; j < b.size(); ++j) {
      const std::size_t replaced = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({replaced, row[j] + 1, row[j + 1] + 1});
    }
  }
  return row.back();
}

}  // namespace

std::size_t utf8_sequence_length(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  if (text.empty()) return 0;
  const unsigned lead = byte(0);
  if (lead < 0x80) return 1;
  const std::size_t length = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
  if (lead < 0xc2 || lead > 0xf4 || text.size() < length) return 0;
  for (std::size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xc0U) != 0x80) return 0;
  }
  // Overlong forms, surrogates and code points above U+10FFFF show in the second byte.
  if (lead == 0xe0 && byte(1) < 0xa0) return 0;
  if (lead == 0xed && byte(1) >= 0xa0) return 0;
  if (lead == 0xf0 && byte(1) < 0x90) return 0;
  if (lead == 0xf4 && byte(1) >= 0x90) return 0;
  return length;
}

std::string escape(std::string_view text) {
  std::string result;
  std::size_t i = 0;
  while (i < text.size() && i < kMaxEcho) {
    const auto byte = static_cast<unsigned char>(text[i]);
    const std::size_t length = utf8_sequence_length(text.substr(i));
    const bool c1_control =
        length == 2 && byte == 0xc2 && static_cast<unsigned char>(text[i + 1]) < 0xa0;
    if (length == 0 || byte < 0x20 || byte == 0x7f || c1_control) {
      result += fmt::format("\\x{:02x}", byte);
      ++i;
    } else {
      if (i + length > kMaxEcho) break;
      result.append(text.substr(i, length));
      i += length;
    }
  }
  if (i < text.size()) result += fmt::format("… ({} bytes)", text.size());
  return result;
}

std::string quote(std::string_view text) { return '"' + escape(text) + '"'; }

std::string join(std::span<const std::int64_t> numbers, std::string_view separator) {
  std::string text;
  for (std::int64_t number : numbers) {
    if (!text.empty()) text += separator;
    text += std::to_string(number);
  }
  return text;
}

std::string python_float(double value) {
  std::string text = fmt::format("{}", value);
  if (std::isfinite(value) && text.find_first_of(".e") == std::string::npos) text += ".0";
  return text;
}

std::string nearest_names(std::string_view wanted, const std::vector<std::string>& candidates) {
  if (candidates.size() > kMaxCandidates || wanted.size() > kMaxComparedLength) return {};
  std::vector<std::pair<std::size_t, const std::string*>> ranked;
  for (const std::string& name : candidates) {
    if (name.size() <= kMaxComparedLength) ranked.emplace_back(edit_distance(wanted, name), &name);
  }
  const auto count = static_cast<std::ptrdiff_t>(std::min<std::size_t>(3, ranked.size()));
  if (count == 0) return {};
  std::stable_sort(ranked.begin(), ranked.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  std::string result = "; nearest: ";
  for (std::ptrdiff_t i = 0; i < count; ++i) {
    if (i > 0) result += ", ";
    result += quote(*ranked[static_cast<std::size_t>(i)].second);
  }
  return result;
}

std::string class_name(const char* mangled) {
  int status = 0;
  const std::unique_ptr<char, void (*)(void*)> demangled(
      abi::__cxa_demangle(mangled, nullptr, nullptr, &status), &std::free);
  std::string name = status == 0 ? demangled.get() : mangled;
  if (name.ends_with('>')) {  // drop the class's own template arguments
    int depth = 0;
    std::size_t i = name.size();
    do {
      --i;
      depth += name[i] == '>' ? 1 : name[i] == '<' ? -1 : 0;
    } while (depth > 0 && i > 0);
    name.resize(i);
  }
  const std::size_t colons = name.rfind("::");
  return colons == std::string::npos ? name : name.substr(colons + 2);
}

bool matches_any(const std::vector<std::string>& globs, const std::string& name) {
  return std::any_of(globs.begin(), globs.end(), [&](const std::string& glob) {
    return fnmatch(glob.c_str(), name.c_str(), 0) == 0;
  });
}

}  // namespace tenon::text
