// Gradients of the reference: cotangents flow back along Jacobian entries, and with them the sum of
// their absolute terms and the error that Tenon's may have.
#include <algorithm>
#include <cmath>
#include <unordered_map>

#include "tests/fuzz/ops/reference.h"

namespace tenon::op_fuzz {
namespace {

/// Roundings that a vjp makes for one element, sums aside.
constexpr Number kRoundings = 12;

Flow zero_flow(std::int64_t count) {
  const auto n = static_cast<std::size_t>(count);
  return {Numbers(n), Numbers(n), Numbers(n)};
}

void add(Flow& sum, const Flow& term) {
  for (std::size_t i = 0; i < sum.value.size(); ++i) {
    sum.value[i] += term.value[i];
    sum.scale[i] += term.scale[i];
    sum.error[i] += term.error[i];
  }
}

class Walk {
 public:
  void add_to(const Edge& edge, const Flow& flow) {
    if (edge.leaf) {
      const auto [found, is_new] = leaf_index_.try_emplace(edge.leaf.get(), leaves_.size());
      if (is_new) leaves_.emplace_back(edge.leaf, zero_flow(edge.numel));
      return add(leaves_[found->second].second, flow);
    }
    auto [found, is_new] = pending_.try_emplace(edge.record->sequence);
    if (is_new) found->second = {edge.record, zero_flow(edge.numel)};
    add(found->second.second, flow);
  }

  void run() {
    while (!pending_.empty()) {
      const auto last = std::prev(pending_.end());
      auto [record, flow] = std::move(last->second);
      pending_.erase(last);
      visit(record, std::move(flow));
    }
  }

  Gradients take() {
    result_.leaves = std::move(leaves_);
    return std::move(result_);
  }

 private:
  void visit(const RecordPtr& record, Flow flow) {
    // Cotangents are summed in the dtype of what the call made.
    round(flow, std::vector<int>(flow.value.size(), 1), record->dtype);
    result_.visited.push_back(record);
    result_.may_be_refused |= record->released || record->unknown;
    for (const auto& [memory, version] : record->saved) {
      result_.may_be_refused |= memory->version != version;
    }
    std::vector<Flow> flows;
    std::vector<std::vector<int>> terms;
    for (const Edge& edge : record->edges) {
      flows.push_back(zero_flow(edge.wanted() ? edge.numel : 0));
      terms.emplace_back(flows.back().value.size());
    }
    for (const Entry& entry : record->entries) {
      const auto k = static_cast<std::size_t>(entry.operand);
      const auto out = static_cast<std::size_t>(entry.out);
      const auto in = static_cast<std::size_t>(entry.in);
      if (!record->edges[k].wanted()) continue;
      flows[k].value[in] += flow.value[out] * entry.slope;
      flows[k].scale[in] += flow.scale[out] * entry.magnitude;
      flows[k].error[in] += flow.error[out] * std::fabs(entry.slope);
      // A slope that overflows makes NaN of a cotangent of zero.
      if (!(entry.magnitude < largest(record->edges[k].dtype) / 4)) flows[k].error[in] = kInfinity;
      ++terms[k][in];
    }
    for (std::size_t k = 0; k < flows.size(); ++k) {
      const Edge& edge = record->edges[k];
      if (!edge.wanted()) continue;
      round(flows[k], terms[k], edge.dtype);
      if (record->unknown) spoil(flows[k]);
      add_to(edge, flows[k]);
    }
  }

  /// What storing the flow, and summing it, in `dtype` may add to its error.
  static void round(Flow& flow, const std::vector<int>& terms, DType dtype) {
    for (std::size_t i = 0; i < flow.value.size(); ++i) {
      const Number sums = roundoff(wide(dtype)) * terms[i];
      flow.error[i] += flow.scale[i] * (kRoundings * roundoff(dtype) + sums) +
                       kRoundings * smallest_subnormal(dtype);
      // Infinite on the way, or close to it: what comes then depends on the order of operations.
      if (!(flow.scale[i] < largest(dtype) / 4) || std::isnan(flow.error[i])) {
        flow.error[i] = kInfinity;
      }
    }
  }

  static void spoil(Flow& flow) { std::fill(flow.error.begin(), flow.error.end(), kInfinity); }

  std::map<std::uint64_t, std::pair<RecordPtr, Flow>> pending_;
  std::unordered_map<const Handle*, std::size_t> leaf_index_;
  std::vector<std::pair<HandlePtr, Flow>> leaves_;
  Gradients result_;
};

}  // namespace

Gradients differentiate(const std::vector<std::pair<HandlePtr, Numbers>>& roots) {
  Walk walk;
  for (const auto& [root, cotangent] : roots) {
    Flow flow{cotangent, cotangent, Numbers(cotangent.size())};
    for (Number& value : flow.scale) value = std::fabs(value);
    Edge edge{nullptr, root->record, root->array.dtype, root->array.numel()};
    if (!edge.record) edge.leaf = root;
    walk.add_to(edge, flow);
  }
  walk.run();
  return walk.take();
}

Numbers allowed_error(const Flow& flow, DType dtype) {
  Numbers result = flow.error;
  for (std::size_t i = 0; i < result.size(); ++i) {
    result[i] += 4 * roundoff(dtype) * flow.scale[i] + smallest_subnormal(dtype);
    if (!std::isfinite(flow.scale[i]) || std::isnan(flow.error[i])) result[i] = kInfinity;
  }
  return result;
}

}  // namespace tenon::op_fuzz
