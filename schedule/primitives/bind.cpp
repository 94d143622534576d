#include "schedule/primitives/bind.h"

#include <algorithm>

#include "schedule/rewriting/state.h"
#include "tensor/support/check.h"

namespace tenon {
namespace {

std::vector<std::string> implementations(const Op& op) {
  std::vector<std::string> names;
  for (int device = 0; device < kNumDeviceTypes; ++device) {
    for (const Kernel& kernel : op.kernels(static_cast<DeviceType>(device))) {
      names.emplace_back(kernel.name);
    }
  }
  if (op.decompose != nullptr) names.emplace_back(kDecomposition);
  return names;
}

}  // namespace

void bind_matches(Graph& graph, const Matches& matches, const std::string& kernel) {
  detail::check_current(graph, matches);
  std::string offered;
  bool bound = false;
  for (const Subgraph& match : matches) {
    for (NodeId id : match.nodes) {
      const auto names = implementations(*graph.node(id).op);
      if (std::find(names.begin(), names.end(), kernel) != names.end()) {
        graph.bind_kernel(id, kernel);
        bound = true;
      } else {
        offered += fmt::format("{}{} has {}", offered.empty() ? "" : "; ", graph.full_name(id),
                               names.empty() ? "none" : fmt::format("{}", fmt::join(names, ", ")));
      }
    }
  }
  TENON_CHECK(bound, ScheduleError, "no matched node has an implementation '{}': {}", kernel,
              offered);
}

}  // namespace tenon
