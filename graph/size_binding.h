// The symbols of a Graph's inputs and the sizes that they stand for in one call.
#pragma once

#include <cstdint>
#include <vector>

#include "tensor/dim.h"

namespace tenon {

/// Binds `dim`'s symbol to `size` where the symbol is all there is. A size computed from others, like
/// that of a cotangent, binds nothing: it follows from the inputs it was computed from.
inline void bind_symbol(const Dim& dim, std::int64_t size, DimBindings& bindings) {
  std::vector<std::int64_t> symbols;
  dim.collect_symbols(symbols);
  if (symbols.size() != 1) return;
  // Only the symbol itself has the symbol's value for different large numbers.
  for (const std::int64_t probe : {1000003, 999983}) {
    if (dim.evaluate({{symbols[0], probe}}) != probe) return;
  }
  bindings[symbols[0]] = size;
}

}  // namespace tenon
