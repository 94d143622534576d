#include "tests/fuzz/ops/program.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>
#include <set>

#include "tests/fuzz/ops/call.h"

namespace tenon::op_fuzz {
namespace {

std::string join(const std::vector<std::string>& parts) {
  std::string text;
  for (const std::string& part : parts) text += (text.empty() ? "" : ", ") + part;
  return text;
}

std::string register_name(int reg) { return fmt::format("r{}", reg); }

/// The literal as C++ that means the same number.
std::string text_of(const Literal& literal) {
  if (literal.is_integer) return fmt::format("std::int64_t{{{}}}", literal.integer);
  const std::string text = to_text(literal.real);
  const bool is_whole = text.find_first_not_of("-0123456789") == std::string::npos;
  return is_whole ? text + ".0" : text;
}

/// What stands for a mark of Call::form, which begins behind its first letter; `form` is advanced
/// over it.
std::string expand_mark(const Step& step, char mark, const char*& form) {
  std::size_t first = 0;
  const bool has_index = std::isdigit(static_cast<unsigned char>(*form)) != 0;
  if (has_index) first = static_cast<std::size_t>(*form++ - '0');
  const bool all = *form == '*';
  if (all) ++form;
  std::vector<std::string> parts;
  const std::size_t count = mark == '$' ? step.operands.size() : step.numbers.size();
  for (std::size_t i = first; i < (all ? count : std::min(count, first + 1)); ++i) {
    parts.push_back(mark == '$' ? register_name(step.operands[i])
                                : fmt::format("{}", step.numbers[i]));
  }
  return join(parts);
}

}  // namespace

std::string to_string(const Step& step) {
  std::string text;
  for (const char* form = step.call->form; *form != '\0';) {
    const char mark = *form++;
    if (mark == '$' || mark == '#') {
      text += expand_mark(step, mark, form);
    } else if (mark == '%') {
      text += text_of(step.literal);
    } else if (mark == '@') {
      text += fmt::format("{}", name(step.dtype));
    } else if (mark == '!') {
      std::vector<std::string> parts;
      for (const Number value : step.values) parts.push_back(to_text(value));
      text += join(parts);
    } else {
      text += mark;
    }
  }
  return text;
}

std::string fingerprint(const Step& step) {
  return fmt::format("{} {} {} {}", step.call->name, fmt::join(step.numbers, ","), name(step.dtype),
                     text_of(step.literal));
}

std::string Program::to_string() const {
  static constexpr const char* kRoles[] = {"input", "buffer", "parameter", "captured"};
  std::string text = fmt::format("manual_seed({});\n", seed);
  bool inside = false;
  std::set<int> used;
  for (const Step& step : steps) {
    if (!step.before) used.insert(step.operands.begin(), step.operands.end());
  }
  used.insert(outputs.begin(), outputs.end());
  for (const Step& step : steps) {
    if (in_module && !step.before && !inside) text += "forward() {\n";
    inside = inside || (in_module && !step.before);
    text += inside ? "  " : "";
    if (step.no_grad) text += "NoGradGuard(), ";
    if (step.result >= 0) text += fmt::format("Tensor {} = ", register_name(step.result));
    text += op_fuzz::to_string(step) + ";";
    if (in_module && step.before && used.contains(step.result)) {
      text += fmt::format("  // {}", kRoles[static_cast<std::size_t>(step.role)]);
    }
    text += "\n";
  }
  if (!in_module) return text;
  std::vector<std::string> names;
  for (const int reg : outputs) names.push_back(register_name(reg));
  return text + fmt::format("  return {{{}}};\n}}{}\n", join(names),
                            wants_gradients ? "  // and gradients" : "");
}

}  // namespace tenon::op_fuzz
