// annotate: a key and a value noted on a module, parameter or buffer, for whoever schedules or reads on.
//
//     %q_proj.weight    =>    %q_proj.weight   [placement = "packed"]
//
// Annotations stay when nodes are replaced, and are saved with the schedule; nothing else reads them.
#pragma once

#include <string>

#include "graph/graph.h"
#include "nn/module.h"

namespace tenon {

/// `name` is the whole name of a module, parameter or buffer of `model`; ScheduleError when it has
/// none of that name, or the key is empty.
void annotate_name(Graph& graph, nn::Module& model, const std::string& name, const std::string& key,
                   const std::string& value);

}  // namespace tenon
