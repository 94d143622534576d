// Element access of the containers.
#include "nn/containers.h"

#include "tensor/support/check.h"

namespace tenon::nn {

namespace detail {

void throw_no_such_child(const Module& module, std::int64_t index, std::size_t size) {
  throw ModuleError(
      fmt::format("[{}] index {} is outside [0, {})", module.type_name(), index, size));
}

}  // namespace detail

Module& Sequential::operator[](std::int64_t index) {
  if (index < 0 || static_cast<std::size_t>(index) >= steps_.size()) {
    detail::throw_no_such_child(*this, index, steps_.size());
  }
  return submodule(std::to_string(index));
}

}  // namespace tenon::nn
