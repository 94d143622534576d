// The attribute structs of optimizer updates; see optimizer_steps.h.
#pragma once

#include <cstdint>
#include <string_view>
#include <tuple>
#include <vector>

#include "tensor/attr_field.h"

namespace tenon {

/// What else an update returns of each parameter: its value rounded to 16 bits, for the model whose
/// float32 master weights it changes.
enum class RoundedCopy : std::uint8_t { none, float16, bfloat16 };
std::string_view enum_name(RoundedCopy copy);
RoundedCopy parse_enum(RoundedCopy, std::string_view text);

/// adam_step; `decoupled` shrinks the parameter itself (AdamW) instead of adding to the gradient.
struct AdamAttrs {
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0;
  bool decoupled = false;
  std::vector<std::int64_t> no_decay = {};  // numbers of the parameters whose weight decay is 0
  RoundedCopy copies = RoundedCopy::none;
  static constexpr auto fields() {
    using A = AdamAttrs;
    return std::tuple{field("beta1", &A::beta1),
                      field("beta2", &A::beta2),
                      field("eps", &A::eps),
                      field("weight_decay", &A::weight_decay),
                      field("decoupled", &A::decoupled),
                      field("no_decay", &A::no_decay),
                      field("copies", &A::copies)};
  }
};

struct SgdAttrs {
  double momentum = 0;
  double dampening = 0;
  double weight_decay = 0;
  bool nesterov = false;
  std::vector<std::int64_t> no_decay = {};
  RoundedCopy copies = RoundedCopy::none;
  static constexpr auto fields() {
    using A = SgdAttrs;
    return std::tuple{field("momentum", &A::momentum),         field("dampening", &A::dampening),
                      field("weight_decay", &A::weight_decay), field("nesterov", &A::nesterov),
                      field("no_decay", &A::no_decay),         field("copies", &A::copies)};
  }
};

/// global_norm; max_norm > 0 asks for the clip coefficient too.
struct GlobalNormAttrs {
  double max_norm = 0;
  static constexpr auto fields() {
    return std::tuple{field("max_norm", &GlobalNormAttrs::max_norm)};
  }
};

}  // namespace tenon
