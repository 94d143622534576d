// print: a node that writes a line about a value whenever the Graph runs.
//
//     x ─▶ softmax ─▶ y    =>    x ─▶ softmax ┬▶ y
//                                            └▶ print
//
// It is an effect: no pass leaves it out, repeats it or moves it into backward. Patterns do not match
// across a printed value.
#pragma once

#include <string>

#include "graph/graph.h"
#include "schedule/matcher.h"

namespace tenon {

/// Prints every result of every match; the label is followed by the value's name.
void print_matches(Graph& graph, const Matches& matches, const std::string& label);

}  // namespace tenon
