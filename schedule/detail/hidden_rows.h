// Queries that see no key. Attention gives them zeros, a softmax that a model wrote out gives NaN. A
// schedule may put attention in place of such a softmax, and then verification compares with the model
// as if its softmax gave zeros there, and reports say so; the reverse is refused like any difference.
#pragma once

#include <set>

#include "graph/graph.h"

namespace tenon::detail {

inline constexpr const char* kHiddenRowsNote =
    "a query that the mask shows no key gets zeros of attention, where the model's softmax gives "
    "NaN";

/// Whether `after`, rewritten from `before`, has attention with a mask where `before` had a softmax.
bool turns_hidden_rows_to_zeros(const Graph& before, const Graph& after);
/// `before`, but every softmax that `after` has no more gives zeros for a row of -inf.
Graph with_zeros_for_hidden_rows(const Graph& before, const Graph& after);
/// Whether attention with a mask of `before` is gone in `after`.
bool loses_masked_attention(const Graph& before, const Graph& after);
/// The floating inputs that are masks of attention, as they are or as views.
std::set<ValueId> additive_mask_inputs(const Graph& graph);

}  // namespace tenon::detail
