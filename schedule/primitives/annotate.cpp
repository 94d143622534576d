#include "schedule/primitives/annotate.h"

#include <algorithm>

#include "tensor/support/check.h"

namespace tenon {
namespace {

template <class List>
bool has_name(const List& list, const std::string& name) {
  return std::any_of(list.begin(), list.end(),
                     [&](const auto& entry) { return entry.first == name; });
}

}  // namespace

void annotate_name(Graph& graph, nn::Module& model, const std::string& name, const std::string& key,
                   const std::string& value) {
  TENON_CHECK(!key.empty(), ScheduleError, "the key is empty");
  const auto& calls = graph.calls();
  const bool called = std::any_of(calls.begin(), calls.end(),
                                  [&](const ModuleCall& call) { return call.path == name; });
  TENON_CHECK(called || has_name(model.named_modules(true), name) ||
                  has_name(model.named_parameters(true), name) ||
                  has_name(model.named_buffers(true), name),
              ScheduleError, "the model has no module, parameter or buffer '{}'", name);
  graph.annotate(name, key, value);
}

}  // namespace tenon
