// Checks with formatted messages. TENON_CHECK is for what a caller can get wrong, TENON_INTERNAL
// for bugs of our own; the message is formatted only on failure. Sources only, never public headers.
#pragma once

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "tensor/error.h"

namespace tenon::detail {

template <class E, class... A>
[[noreturn]] void fail(fmt::format_string<A...> format, A&&... args) {
  throw E(fmt::format(format, std::forward<A>(args)...));
}

}  // namespace tenon::detail

#define TENON_CHECK(condition, ErrorKind, ...)                \
  do {                                                        \
    if (!(condition)) [[unlikely]]                            \
      ::tenon::detail::fail<::tenon::ErrorKind>(__VA_ARGS__); \
  } while (false)

#define TENON_INTERNAL(condition, ...)                                                       \
  do {                                                                                       \
    if (!(condition)) [[unlikely]]                                                           \
      ::tenon::detail::fail<::tenon::InternalError>("internal error at {}:{}: {}", __FILE__, \
                                                    __LINE__, fmt::format(__VA_ARGS__));     \
  } while (false)
