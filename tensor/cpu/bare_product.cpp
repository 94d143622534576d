#include "tensor/cpu/bare_product.h"

#define EIGEN_DONT_PARALLELIZE
#include <Eigen/Core>
#include <algorithm>
#include <chrono>
#include <vector>

#include "tensor/parallel.h"

namespace tenon::cpu {

double bare_product_gflops(std::int64_t n, int repeats) {
  using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  const Matrix a = Matrix::Random(n, n);
  const Matrix b = Matrix::Random(n, n);
  Matrix c = Matrix::Zero(n, n);
  const std::int64_t threads = num_threads();
  const std::int64_t band = (n + threads - 1) / threads;
  std::vector<double> seconds;
  for (int i = 0; i <= repeats; ++i) {
    const auto start = std::chrono::steady_clock::now();
    parallel_ranges(n, band, [&](std::int64_t begin, std::int64_t end) {
      c.middleRows(begin, end - begin).noalias() = a.middleRows(begin, end - begin) * b;
    });
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    if (i > 0) seconds.push_back(elapsed.count());
  }
  std::nth_element(seconds.begin(), seconds.begin() + repeats / 2, seconds.end());
  return 2.0 * static_cast<double>(n) * static_cast<double>(n) * static_cast<double>(n) /
         seconds[static_cast<std::size_t>(repeats / 2)] * 1e-9;
}

}  // namespace tenon::cpu
