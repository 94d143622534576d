// state_dict, and loading one.
#include "nn/detail/load_state.h"
#include "nn/module.h"

namespace tenon::nn {

void Module::collect_state(const std::string& prefix, StateDict& state) const {
  for (const Named& named : parameters_) state.add(prefix + named.name, named.tensor);
  for (const Named& named : buffers_) {
    if (named.persistent) state.add(prefix + named.name, named.tensor);
  }
  for (const auto& [name, child] : children_) child->collect_state(prefix + name + '.', state);
}

StateDict Module::state_dict() const {
  StateDict state;
  collect_state("", state);
  return state;
}

LoadReport Module::check_state_dict(const StateDict& state, const LoadOptions& options) const {
  return detail::check_state(state_dict(), state, options);
}

LoadReport Module::load_state_dict(const StateDict& state, const LoadOptions& options) {
  const auto uses = use_all("[load_state_dict] the module");
  return detail::load_state(state_dict(), state, options, type_name());
}

}  // namespace tenon::nn
