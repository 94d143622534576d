// Ops with several outputs on CUDA against the CPU's in float64.
#pragma once

#include "tests/cuda/cuda_support.h"

namespace tenon::test {

/// Every output within the tolerance of the CPU's float64 result, and bit-equal in a second run.
inline void check_outputs(const char* op_name, const std::vector<Operand2>& operands,
                          const Attrs& attrs, const Tolerance& tolerance, const std::string& what) {
  const Op& op = get_op(op_name);
  std::vector<Tensor> wide, cuda;
  for (const Operand2& operand : operands) {
    const bool widens = operand.cpu && is_floating(operand.cpu.dtype());
    wide.push_back(widens ? operand.cpu.to(DType::float64) : operand.cpu);
    cuda.push_back(operand.cuda);
  }
  const std::vector<Tensor> exact = apply(op, wide, attrs);
  const std::vector<Tensor> results = apply(op, cuda, attrs);
  const std::vector<Tensor> again = apply(op, cuda, attrs);
  ASSERT_EQ(results.size(), exact.size()) << what;
  for (std::size_t i = 0; i < results.size(); ++i) {
    const std::string which = what + ", output " + std::to_string(i);
    ASSERT_EQ(results[i].device(), kCuda) << which;
    expect_near(results[i], exact[i].to_doubles(), tolerance, which);
    if (::testing::Test::HasFatalFailure()) return;
    expect_bit_equal(results[i], again[i], which + ", second run");
  }
}

}  // namespace tenon::test
