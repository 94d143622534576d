// ModuleSelector: which module calls a regular expression, or a class name, stands for.
#pragma once

#include <memory>
#include <string>
#include <unordered_map>

#include "graph/graph.h"

namespace tenon::detail {

struct CompiledRegex;

/// A module's path without the leading `base`; "" for the base itself.
std::string relative_path(const std::string& path, const std::string& base);

class ModuleSelector {
 public:
  /// Whole name or whole path below a base. ScheduleError, naming the `caller`, for what is no
  /// regular expression (ECMAScript).
  static ModuleSelector by_name(const std::string& caller, const std::string& regex);
  static ModuleSelector by_type(const std::string& type);

  bool selects(const ModuleCall& call, const std::string& base);
  /// "module 'fc2' does not match "fc1" as a whole".
  std::string describe_mismatch(const ModuleCall& call) const;
  /// "matching "fc1"", "of class Linear".
  std::string to_string() const;

 private:
  bool matches(const std::string& name);

  std::string text_;
  bool is_type_ = false;
  std::shared_ptr<const CompiledRegex> regex_;   // null for a type and for a name taken literally
  std::unordered_map<std::string, bool> known_;  // names repeat from layer to layer
};

}  // namespace tenon::detail
