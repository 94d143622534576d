// Pictures of Graphs: DOT text drawn by Graphviz' program `dot`, which is found on PATH.
#pragma once

#include <string>

namespace tenon {

/// The SVG that `dot -Tsvg` draws. ValueError that says to install Graphviz when there is no such
/// program, or with its own words when it fails.
std::string to_svg(const std::string& dot);

/// The same into a file; ValueError when it cannot be written.
void write_svg(const std::string& path, const std::string& dot);

}  // namespace tenon
