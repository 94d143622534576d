// What Module::load_state_dict and Optimizer::load_state_dict share.
#pragma once

#include <string_view>

#include "nn/state_dict.h"

namespace tenon::nn::detail {

/// What load_state would do; changes nothing.
LoadReport check_state(const StateDict& own, const StateDict& given, const LoadOptions& options);
/// Copies the values of `given` into the tensors of `own`, or changes nothing and throws ModuleError,
/// which begins with `owner`. A tensor that `own` has under several names needs one of them.
LoadReport load_state(const StateDict& own, const StateDict& given, const LoadOptions& options,
                      std::string_view owner);

}  // namespace tenon::nn::detail
