// Ready-made schedules, each a few lines over the public primitives (schedule/ready_made/schedules.cpp): for models
// whose parts they recognize by dataflow, whatever their modules are called.
//
//   auto sch = create_schedule(model, {{"x", x}});
//   schedules::transformer_encoder(sch);
//   Executor run = build(sch);
#pragma once

#include <string>
#include <vector>

#include "schedule/schedule.h"

namespace tenon::schedules {

/// What a ready-made schedule did.
struct Summary {
  int rewritten = 0;                 ///< places that were rewritten
  std::vector<std::string> refused;  ///< reasons for places that it recognized and left alone
};

/// Linears of one input become one product (queries, keys and values; gates), and attention written as
/// softmax(q·kᵀ·scale [+ mask])·v, with or without dropout, one kernel that never stores the scores and
/// gives zeros, not NaN, to a query that the mask shows no key. Keys and values whose heads the model repeats
/// for groups of the query's (expand and reshape, stack, cat, index_select) are read where they are.
/// ScheduleError when there is none of these below `sch`.
Summary attention(Schedule sch);

/// attention(), then the tail of each residual block, layer_norm(dropout(linear(x)) + residual), as one
/// kernel behind the product, and activations of linear(x) (gelu, relu, and silu unless it gates another
/// value), silu(x)·y, rotary positions (x·cos + [-b a]·sin for the halves a and b of rows) and
/// residual + linear(x) as one op each.
Summary transformer_encoder(Schedule sch);

/// attention() with causal masks recognized where a model builds them, then activations of linear(x),
/// gates, rotary positions and residual + linear(x) as above and, where the model computes its own loss, also
/// cross_entropy(linear(x), targets), without storing the logits.
Summary gpt(Schedule sch);

/// Of a model in eval mode, batch norms become part of the convolutions and Linears before them, and these
/// one op with the relu and the residual behind: what is built then runs in eval mode only. Elsewhere
/// batch_norm followed by relu, or by the addition of a residual of its shape and relu, becomes one op.
/// Both wherever nothing else needs what lies between. ScheduleError when there is neither below `sch`.
Summary convolutional(Schedule sch);

}  // namespace tenon::schedules
