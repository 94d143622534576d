// Attributes of op calls as JSON and back, bit for bit; sizes as expressions of the Graph's symbols.
#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "graph/graph.h"

namespace tenon::detail {

/// The symbols of a Graph's input sizes by name: "s0".
using SizeSymbols = std::map<std::string, Dim, std::less<>>;
SizeSymbols size_symbols(const Graph& graph);

/// {"type": "SoftmaxAttrs", "dim": 3}; null for a call without attributes.
nlohmann::json attrs_to_json(const Attrs& attrs);
/// ScheduleError for an unknown type, a field that is missing or of another type, or an unknown symbol.
Attrs attrs_from_json(const nlohmann::json& json, const SizeSymbols& symbols);

/// ScheduleError unless the value is an integer of 64 bits.
std::int64_t integer_from_json(const nlohmann::json& value);

nlohmann::json shape_to_json(const Shape& shape);
Shape shape_from_json(const nlohmann::json& json, const SizeSymbols& symbols);

}  // namespace tenon::detail
