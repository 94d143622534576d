// StateDict and the text of a LoadReport.
#include "nn/state_dict.h"

#include "nn/detail/text.h"
#include "tensor/detail/check.h"

namespace tenon::nn {

using detail::quote;

void StateDict::add(std::string name, Tensor tensor) {
  TENON_CHECK(!name.empty(), ModuleError, "[state_dict] a tensor needs a name that is not empty");
  TENON_CHECK(tensor.defined(), ModuleError, "[state_dict] {} is undefined; needed a tensor",
              quote(name));
  const bool is_new = index_.emplace(name, entries_.size()).second;
  TENON_CHECK(is_new, ModuleError, "[state_dict] {} is there already", quote(name));
  entries_.emplace_back(std::move(name), std::move(tensor));
}

const Tensor* StateDict::find(std::string_view name) const {
  const auto found = index_.find(std::string(name));
  return found == index_.end() ? nullptr : &entries_[found->second].second;
}

Tensor StateDict::at(std::string_view name) const {
  if (const Tensor* tensor = find(name)) return *tensor;
  std::vector<std::string> names;
  for (const Entry& entry : entries_) names.push_back(entry.first);
  throw ModuleError(fmt::format("[state_dict] no tensor {} among {}{}", quote(name), size(),
                                detail::nearest_names(name, names)));
}

namespace {

void append_issues(std::string& text, std::string_view kind, const std::vector<LoadIssue>& issues) {
  if (issues.empty()) return;
  text += fmt::format("\n  {} ({}):", kind, issues.size());
  const char* separator = " ";
  for (const LoadIssue& issue : issues) {
    text += separator + quote(issue.name);
    if (!issue.given.empty() && !issue.needed.empty()) {
      text += fmt::format(": given {}, needed {}", issue.given, issue.needed);
    } else {
      text += " " + issue.given + issue.needed;
    }
    separator = "; ";
  }
}

}  // namespace

std::string LoadReport::problems() const {
  std::string text;
  append_issues(text, "missing", missing);
  append_issues(text, "unexpected", unexpected);
  append_issues(text, "mismatched", mismatched);
  append_issues(text, "conflicting", conflicting);
  return text;
}

std::string LoadReport::to_string() const {
  std::string text = fmt::format("{} loaded", loaded.size());
  if (!allowed_missing.empty()) text += fmt::format(", {} kept", allowed_missing.size());
  if (!allowed_unexpected.empty())
    text += fmt::format(", {} passed over", allowed_unexpected.size());
  text += problems();
  append_issues(text, "converted", converted);
  return text;
}

}  // namespace tenon::nn
