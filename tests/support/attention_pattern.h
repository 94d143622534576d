// Patterns on the tutorial's attention block, for tests that fuse it.
#pragma once

#include <cstdint>

#include "schedule/schedule.h"

namespace tenon::test {

/// A projection of queries, keys or values and its split into heads: three matches.
inline auto qkv_pattern(std::int64_t heads) {
  return [heads](const Tensor& x) {
    const Tensor y = call_module("[qkv]_proj", x);
    return y.view({y.size(0), y.size(1), heads, -1}).permute({0, 2, 1, 3});
  };
}

}  // namespace tenon::test
