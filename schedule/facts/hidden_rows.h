// Queries that see no key. Attention gives them zeros, a softmax that a model wrote out gives NaN. A
// schedule may put attention in place of such a softmax, and then verification compares with the model
// as if its softmax gave zeros there, and reports say so; the reverse is refused like any difference.
#pragma once

#include <cstddef>
#include <set>
#include <vector>

#include "graph/graph.h"

namespace tenon::detail {

inline constexpr const char* kHiddenRowsNote =
    "a query that the mask shows no key gets zeros of attention, where the model's softmax gives "
    "NaN";

/// Whether `after`, rewritten from `before`, has attention with a mask where `before` had a softmax.
bool turns_hidden_rows_to_zeros(const Graph& before, const Graph& after);
std::size_t count_masked_attention(const Graph& graph);
bool has_softmax(const Graph& graph);
/// The floating values that these nodes use as masks of attention, as they are or as views.
std::set<ValueId> additive_masks(const Graph& graph, const std::vector<NodeId>& nodes);

}  // namespace tenon::detail
