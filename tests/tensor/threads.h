// Asserts that a result does not depend on the number of threads.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <string>

#include "tensor/parallel.h"
#include "tensor/tensor.h"

namespace tenon::test {

/// The bytes of a contiguous tensor.
inline std::string bytes_of(const Tensor& tensor) {
  const auto count = static_cast<std::size_t>(tensor.layout().numel()) * size_of(tensor.dtype());
  std::string result(count, '\0');
  if (count > 0) std::memcpy(result.data(), tensor.view_of_data().data, count);
  return result;
}

/// Runs `make` on 1, 2 and 3 threads and expects the same bytes.
template <class F>
void expect_thread_invariant(F make, const std::string& what) {
  const int threads = num_threads();
  set_num_threads(1);
  const std::string expected = bytes_of(make());
  for (const int count : {2, 3}) {
    set_num_threads(count);
    EXPECT_EQ(bytes_of(make()) == expected, true) << what << " on " << count << " threads";
  }
  set_num_threads(threads);
}

}  // namespace tenon::test
