// Asserts that an expression throws one kind of error with exactly this text, or text in it.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <string_view>

namespace tenon::test {

/// The text of the E that `f` throws; a failure when it throws nothing or something else.
template <class E, class F>
std::string error_text(F&& f) {
  try {
    f();
  } catch (const E& error) {
    return error.what();
  } catch (const std::exception& error) {
    ADD_FAILURE() << "another kind of error: " << error.what();
    return {};
  }
  ADD_FAILURE() << "nothing was thrown";
  return {};
}

}  // namespace tenon::test

#define EXPECT_ERROR(ErrorKind, text, ...) \
  EXPECT_EQ(::tenon::test::error_text<ErrorKind>([&] { (void)(__VA_ARGS__); }), text)
