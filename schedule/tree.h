// The module tree of a scheduled model, printed as PyTorch prints modules.
#pragma once

#include <string>

#include "graph/graph.h"
#include "nn/module.h"

namespace tenon {

/// The tree below `path`: modules all of whose nodes were replaced are gone, new ones are shown
/// where they are called.
std::string scheduled_tree(const nn::Module& root, const Graph& original, const Graph& graph,
                           const std::string& path);

}  // namespace tenon
