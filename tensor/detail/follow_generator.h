// Between generators and calls that draw: what a thread does to a generator, its sites follow.
#pragma once

#include "tensor/random.h"

namespace tenon::detail {

/// This thread gave a generator another state; in tensor/interpreter.cpp.
void follow_generator(const Generator& generator);

}  // namespace tenon::detail
