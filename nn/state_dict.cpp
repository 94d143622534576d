// StateDict and the text of a LoadReport.
#include "nn/state_dict.h"

#include "tensor/support/check.h"
#include "tensor/support/text.h"

namespace tenon::nn {

using text::quote;

void StateDict::check_new(const std::string& name) const {
  TENON_CHECK(!name.empty(), ModuleError, "[state_dict] a tensor needs a name that is not empty");
  TENON_CHECK(!contains(name) && find_skipped(name) == nullptr, ModuleError,
              "[state_dict] {} is there already", text::quote(name));
}

void StateDict::add(std::string name, Tensor tensor) {
  check_new(name);
  TENON_CHECK(tensor.defined(), ModuleError, "[state_dict] {} is undefined; needed a tensor",
              text::quote(name));
  index_.emplace(name, entries_.size());
  entries_.emplace_back(std::move(name), std::move(tensor));
}

void StateDict::add_skipped(std::string name, std::string spec) {
  check_new(name);
  skipped_index_.emplace(name, skipped_.size());
  skipped_.push_back({std::move(name), std::move(spec)});
}

const SkippedTensor* StateDict::find_skipped(std::string_view name) const {
  const auto found = skipped_index_.find(std::string(name));
  return found == skipped_index_.end() ? nullptr : &skipped_[found->second];
}

const Tensor* StateDict::find(std::string_view name) const {
  const auto found = index_.find(std::string(name));
  return found == index_.end() ? nullptr : &entries_[found->second].second;
}

Tensor StateDict::at(std::string_view name) const {
  if (const Tensor* tensor = find(name)) return *tensor;
  if (const SkippedTensor* skipped = find_skipped(name)) {
    throw ModuleError(
        fmt::format("[state_dict] tensor {} was skipped: {} is of a dtype that Tenon "
                    "lacks; convert it in the file",
                    text::quote(name), skipped->spec));
  }
  std::vector<std::string> names;
  for (const Entry& entry : entries_) names.push_back(entry.first);
  throw ModuleError(fmt::format("[state_dict] no tensor {} among {}{}", text::quote(name), size(),
                                text::nearest_names(name, names)));
}

namespace {

void append_issues(std::string& text, std::string_view kind, const std::vector<LoadIssue>& issues) {
  if (issues.empty()) return;
  text += fmt::format("\n  {} ({}):", kind, issues.size());
  const char* separator = " ";
  for (const LoadIssue& issue : issues) {
    text += separator + text::quote(issue.name);
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
  append_issues(text, "skipped", skipped);
  return text;
}

}  // namespace tenon::nn
