// Text for messages and printed modules: quoting of untrusted names, Python's numbers, near names.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace tenon::text {

/// `text` in double quotes: control characters and invalid UTF-8 as \xNN, at most 200 bytes of it.
std::string quote(std::string_view text);
/// The same without the quotes.
std::string escape(std::string_view text);
/// The length of the valid UTF-8 sequence that starts `text`, 0 when there is none.
std::size_t utf8_sequence_length(std::string_view text);

/// "2, 3, 4".
std::string join(std::span<const std::int64_t> numbers, std::string_view separator = ", ");

/// repr(float) of Python: "0.1", "1e-05", "1.0".
std::string python_float(double value);

/// `; nearest: "a", "b"`, up to three candidates of least edit distance; "" when there are none.
std::string nearest_names(std::string_view wanted, const std::vector<std::string>& candidates);

/// Whether a glob (*, ?, [a-z]) matches the whole name.
bool matches_any(const std::vector<std::string>& globs, const std::string& name);

/// "foo::(anonymous namespace)::Bar<int>" -> "Bar", from std::type_info::name().
std::string class_name(const char* mangled);

}  // namespace tenon::text
