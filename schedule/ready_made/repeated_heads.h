// Attention whose keys and values are heads that were repeated for groups of the query's, however that was
// written down: the op reads each of them once for its group, so the copies need not be.
//
//   k ─▶ unsqueeze ─▶ expand ─▶ reshape ─┐                    k ──────────┐
//                                   q ─▶ attention     =>       q ─▶ attention
//   v ─▶ index_select [0 0 1 1 …] ───────┘                    v ──────────┘
//
// Recognized are expand, reshape and view, squeeze and unsqueeze, permute and transpose, contiguous and
// clone, cat and stack of one tensor or of its heads one by one, and index_select with indices that the
// model made.
#pragma once

#include <vector>

#include "schedule/matcher.h"
#include "tensor/ops/attributes.h"

namespace tenon::detail {

/// One call. The match's parameters are query, key and value as they are before the repeats and, where
/// there is one, the mask.
struct GroupedAttention {
  Subgraph match;
  AttentionAttrs attrs;
  // What permute makes keys and values of these parameters with.
  std::vector<std::int64_t> key_order, value_order;
};

/// The calls below `path` that repeat both keys and values alike.
std::vector<GroupedAttention> find_grouped_attention(const Graph& graph, const std::string& path);

}  // namespace tenon::detail
