// The module tree of a scheduled model, printed as PyTorch prints modules: as it stands, or with what
// the schedule changed in a margin, as a diff shows it:
//
//       Attention(
//   ~     (self_attn): SelfAttention(       # softmax, … (6 nodes) replaced by FlashAttention_0
//   -       (q_proj): Linear(…)            # replaced by FusedQKV_0
//   +       (FusedQKV_0): FusedQKV(…)       # by replace
//         )
#pragma once

#include <string>

#include "schedule/schedule.h"

namespace tenon {

/// The tree below the schedule's module: modules all of whose nodes were replaced are gone, new ones
/// are shown where they are called.
std::string scheduled_tree(const Schedule& schedule);

/// The same with modules that are gone ('-'), new ('+') and changed ('~'), and what happened to each.
/// Neighbours that are numbered and otherwise equal are folded: "(0-23): 24 x Block(...)".
std::string changed_tree(const Schedule& schedule);

}  // namespace tenon
