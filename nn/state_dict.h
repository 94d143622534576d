// StateDict: the named tensors of a module in registration order, and what comes of loading one.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "tensor/tensor.h"

namespace tenon::nn {

/// A tensor of a file whose dtype Tenon lacks, so that only its name is known: "F8_E4M3(128, 128)".
struct SkippedTensor {
  std::string name;
  std::string spec;
};

/// Tensors by dotted name, in insertion order. Copies share the tensors.
class StateDict {
 public:
  using Entry = std::pair<std::string, Tensor>;

  /// ModuleError for a name that is empty or there already, or an undefined tensor.
  void add(std::string name, Tensor tensor);
  /// Notes a tensor that could not be read: a load that needs it then fails by name. Same errors.
  void add_skipped(std::string name, std::string spec);
  const std::vector<SkippedTensor>& skipped() const { return skipped_; }
  /// The tensor of that name, or null.
  const Tensor* find(std::string_view name) const;
  bool contains(std::string_view name) const { return find(name) != nullptr; }
  /// ModuleError when there is none: why it was skipped, or the nearest names.
  Tensor at(std::string_view name) const;

  std::size_t size() const { return entries_.size(); }
  bool empty() const { return entries_.empty(); }
  auto begin() const { return entries_.begin(); }
  auto end() const { return entries_.end(); }

 private:
  void check_new(const std::string& name) const;
  const SkippedTensor* find_skipped(std::string_view name) const;

  std::vector<Entry> entries_;
  std::vector<SkippedTensor> skipped_;
  std::unordered_map<std::string, std::size_t> index_;  // of entries_
  std::unordered_map<std::string, std::size_t> skipped_index_;
};

/// What a load may leave open. Globs (*, ?, [a-z]) match whole dotted names.
struct LoadOptions {
  std::vector<std::string> allow_missing{};     ///< names of the module that may keep their values
  std::vector<std::string> allow_unexpected{};  ///< names of the state dict that are passed over
};

/// One name of a LoadReport; specs read "float32(128, 128)", empty where there is no such tensor.
struct LoadIssue {
  std::string name;
  std::string given;
  std::string needed;
};

/// What a load did, or would do.
struct LoadReport {
  std::vector<std::string> loaded;     ///< names of the module that get new values
  std::vector<LoadIssue> missing;      ///< without values for the module, and not allowed
  std::vector<LoadIssue> unexpected;   ///< in the state dict only, and not allowed
  std::vector<LoadIssue> mismatched;   ///< another shape, or a dtype that is not converted
  std::vector<LoadIssue> conflicting;  ///< names of one tied tensor with different values
  std::vector<LoadIssue> converted;    ///< from one floating dtype to another
  std::vector<LoadIssue> skipped;      ///< in the state dict, in a dtype that Tenon lacks
  std::vector<std::string> allowed_missing;
  std::vector<std::string> allowed_unexpected;

  /// Nothing is missing, unexpected, mismatched or conflicting.
  bool ok() const {
    return missing.empty() && unexpected.empty() && mismatched.empty() && conflicting.empty();
  }
  /// The four kinds of problems, one line a kind, every name listed; "" when ok().
  std::string problems() const;
  /// Counts of all kinds, and the problems, conversions and skipped tensors by name.
  std::string to_string() const;
};

}  // namespace tenon::nn
