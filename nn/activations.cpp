// Printed text of the activations that have arguments.
#include "nn/activations.h"

#include <fmt/format.h>

namespace tenon::nn {

std::string GELU::extra_repr() const {
  return fmt::format("approximate='{}'", enum_name(approximate));
}

std::string Softmax::extra_repr() const { return fmt::format("dim={}", dim); }

std::string Print::extra_repr() const { return fmt::format("label='{}'", label); }

}  // namespace tenon::nn
