#include "schedule/matching/module_selector.h"

#include <regex>

#include "tensor/support/check.h"

namespace tenon::detail {

struct CompiledRegex {
  std::regex regex;
};

std::string relative_path(const std::string& path, const std::string& base) {
  if (base.empty()) return path;
  return path.size() > base.size() ? path.substr(base.size() + 1) : std::string();
}

ModuleSelector ModuleSelector::by_name(const std::string& caller, const std::string& regex) {
  ModuleSelector selector;
  selector.text_ = regex;
  if (regex.find_first_of("\\^$.|?*+()[]{}") == std::string::npos) return selector;
  try {
    selector.regex_ = std::make_shared<const CompiledRegex>(
        std::regex(regex, std::regex::ECMAScript | std::regex::optimize));
  } catch (const std::regex_error& error) {
    fail<ScheduleError>("{}: '{}' is not a valid regular expression: {}", caller,
                        regex.substr(0, 80), error.what());
  }
  return selector;
}

ModuleSelector ModuleSelector::by_type(const std::string& type) {
  ModuleSelector selector;
  selector.text_ = type;
  selector.is_type_ = true;
  return selector;
}

bool ModuleSelector::matches(const std::string& name) {
  if (regex_ == nullptr) return name == text_;
  const auto [entry, is_new] = known_.try_emplace(name, false);
  if (!is_new) return entry->second;
  try {
    entry->second = std::regex_match(name, regex_->regex);
  } catch (const std::regex_error& error) {
    fail<ScheduleError>("'{}' cannot be tried on '{}': {}", text_.substr(0, 80), name,
                        error.what());
  }
  return entry->second;
}

bool ModuleSelector::selects(const ModuleCall& call, const std::string& base) {
  if (is_type_) return call.type == text_;
  return matches(call.name()) || matches(relative_path(call.path, base));
}

std::string ModuleSelector::describe_mismatch(const ModuleCall& call) const {
  return is_type_
             ? fmt::format("module '{}' is a {}; the pattern has {}", call.path, call.type, text_)
             : fmt::format("module '{}' does not match \"{}\" as a whole", call.path, text_);
}

std::string ModuleSelector::to_string() const {
  return is_type_ ? "of class " + text_ : "matching \"" + text_ + "\"";
}

}  // namespace tenon::detail
