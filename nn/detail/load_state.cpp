// Loading a state dict in two phases: everything is checked before anything is copied.
#include "nn/detail/load_state.h"

#include <algorithm>
#include <cstring>
#include <unordered_map>
#include <unordered_set>

#include "nn/detail/tensor_bytes.h"
#include "tensor/interpreter.h"
#include "tensor/support/check.h"
#include "tensor/support/text.h"

namespace tenon::nn::detail {

namespace {

// One tensor of the owner with all its names, and the state dict's tensors for them.
struct Target {
  Tensor tensor;
  std::vector<std::string> names;
  std::vector<std::pair<std::string, Tensor>> sources;
  bool is_named = false;  // the state dict has one of its names, be it with an unfit tensor
  std::string skipped;    // what the state dict says of a name that was not read
};

struct Targets {
  std::vector<Target> list;
  std::unordered_map<std::string, std::size_t> by_name;
};

Targets targets_of(const StateDict& own) {
  Targets targets;
  std::unordered_map<const void*, std::size_t> by_tensor;
  for (const auto& [name, tensor] : own) {
    const auto [entry, is_new] = by_tensor.emplace(tensor.impl().get(), targets.list.size());
    if (is_new) targets.list.push_back({tensor, {}, {}, false, ""});
    targets.list[entry->second].names.push_back(name);
    targets.by_name.emplace(name, entry->second);
  }
  return targets;
}

bool same_bits(const Tensor& a, const Tensor& b) {
  if (a.is_same(b)) return true;
  if (a.dtype() != b.dtype() || !(a.layout().sizes == b.layout().sizes)) return false;
  const TensorBytes bytes_a(a), bytes_b(b);
  return std::ranges::equal(bytes_a.span(), bytes_b.span());
}

// Notes what is wrong with `given` for `target`; true when it can be copied.
bool fits(const std::string& name, const Tensor& given, const Tensor& target, LoadReport& report) {
  const LoadIssue issue{name, given.spec().to_string(), target.spec().to_string()};
  const bool converts = is_floating(given.dtype()) && is_floating(target.dtype());
  if (!given.is_eager() || !(given.layout().sizes == target.layout().sizes) ||
      (given.dtype() != target.dtype() && !converts)) {
    report.mismatched.push_back(issue);
    return false;
  }
  if (given.dtype() != target.dtype()) report.converted.push_back(issue);
  return true;
}

void report_target(const Target& target, const LoadOptions& options, LoadReport& report) {
  if (target.is_named) {
    if (target.sources.empty()) return;
    const auto& [first_name, first] = target.sources.front();
    for (const auto& [name, tensor] : target.sources) {
      if (!same_bits(first, tensor)) {
        report.conflicting.push_back({name, "other values than " + text::quote(first_name),
                                      "the same, as both name one tensor"});
      }
    }
    report.loaded.insert(report.loaded.end(), target.names.begin(), target.names.end());
    return;
  }
  for (const std::string& name : target.names) {
    if (text::matches_any(options.allow_missing, name)) {
      report.allowed_missing.push_back(name);
    } else {
      report.missing.push_back({name, target.skipped, target.tensor.spec().to_string()});
    }
  }
}

LoadReport match(Targets& targets, const StateDict& state, const LoadOptions& options) {
  LoadReport report;
  for (const auto& [name, tensor] : state) {
    const auto found = targets.by_name.find(name);
    if (found != targets.by_name.end()) {
      Target& target = targets.list[found->second];
      target.is_named = true;
      if (fits(name, tensor, target.tensor, report)) target.sources.emplace_back(name, tensor);
    } else if (text::matches_any(options.allow_unexpected, name)) {
      report.allowed_unexpected.push_back(name);
    } else {
      report.unexpected.push_back({name, tensor.spec().to_string(), ""});
    }
  }
  for (const SkippedTensor& skipped : state.skipped()) {
    const auto found = targets.by_name.find(skipped.name);
    const bool is_needed = found != targets.by_name.end();
    report.skipped.push_back(
        {skipped.name, skipped.spec,
         is_needed ? targets.list[found->second].tensor.spec().to_string() : ""});
    if (is_needed) {
      targets.list[found->second].skipped = skipped.spec + ", of a dtype that Tenon lacks";
    }
  }
  for (const Target& target : targets.list) report_target(target, options, report);
  return report;
}

/// Copies what is given, all of it as it was before: it may lie where another target does.
void copy_all(Targets& targets) {
  std::unordered_set<const Storage*> written;
  for (const Target& target : targets.list) written.insert(target.tensor.storage().get());
  for (Target& target : targets.list) {
    if (target.sources.empty()) continue;
    Tensor& source = target.sources.front().second;
    if (!source.is_same(target.tensor) && written.contains(source.storage().get())) {
      source = source.clone();
    }
  }
  for (Target& target : targets.list) {
    if (!target.sources.empty()) target.tensor.copy_(target.sources.front().second);
  }
}

}  // namespace

LoadReport check_state(const StateDict& own, const StateDict& given, const LoadOptions& options) {
  Targets targets = targets_of(own);
  return match(targets, given, options);
}

LoadReport load_state(const StateDict& own, const StateDict& given, const LoadOptions& options,
                      std::string_view owner) {
  Targets targets = targets_of(own);
  LoadReport report = match(targets, given, options);
  TENON_CHECK(report.ok(), ModuleError,
              "[load_state_dict] {} cannot take this state dict, nothing was changed:{}", owner,
              report.problems());
  const NoGradGuard no_grad;
  copy_all(targets);
  return report;
}

}  // namespace tenon::nn::detail
