// Lookup of table rows on the CPU.
#pragma once

#include "tensor/op.h"

namespace tenon::cpu {

/// Inputs: contiguous indices (int64 or int32) and a table (V, D) with dense rows; output (…, D)
/// contiguous. ValueError for an index outside [0, V), before anything is written.
void run_embedding(const KernelArgs& args);

}  // namespace tenon::cpu
