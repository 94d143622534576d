#include "tensor/exclusive_use.h"

#include "tensor/support/check.h"

namespace tenon {

const void* ExclusiveUse::this_thread() {
  static thread_local char mark;
  return &mark;
}

void ExclusiveUse::fail_in_use(std::string_view what) {
  detail::fail<ConcurrencyError>(
      "{} is in use by another thread; needed one thread at a time: wait until the other is done "
      "(with a mutex, say), or give each thread its own",
      what);
}

}  // namespace tenon
