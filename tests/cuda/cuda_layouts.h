// Calls of CUDA kernels whose operands and results lie row-major or channels-last.
#pragma once

#include "tests/cuda/cuda_outputs.h"

namespace tenon::test {

enum class Order { row_major, channels_last };
inline constexpr Order kOrders[] = {Order::row_major, Order::channels_last};

/// The same elements with the channels last in memory.
inline Tensor ordered(const Tensor& tensor, Order order) {
  if (!tensor || order == Order::row_major || tensor.dim() < 3) return tensor;
  std::vector<std::int64_t> to = {0}, back = {0, tensor.dim() - 1};
  for (std::int64_t axis = 2; axis < tensor.dim(); ++axis) to.push_back(axis);
  to.push_back(1);
  for (std::int64_t axis = 1; axis + 1 < tensor.dim(); ++axis) back.push_back(axis);
  return tensor.permute(to).contiguous().permute(back);
}

/// Results of the CUDA kernel with operands and results of the input's shape in this order.
inline std::vector<Tensor> run_ordered(const char* op_name, const char* kernel,
                                       const std::vector<Operand2>& operands, const Attrs& attrs,
                                       Order order, std::int64_t shift = 0) {
  const Op& op = get_op(op_name);
  std::vector<Tensor> inputs;
  std::vector<const TensorSpec*> specs;
  for (const Operand2& operand : operands) {
    specs.push_back(operand.cuda ? &operand.cuda.spec() : nullptr);
    Tensor input = operand.cuda;
    if (input && shift > 0) input = shifted(input, shift);
    inputs.push_back(ordered(input, order));
  }
  std::vector<Tensor> outputs;
  for (const TensorSpec& spec : infer(op, specs, attrs)) {
    outputs.push_back(ordered(full(spec.shape, -77, {spec.dtype, kCuda}), order));
  }
  EXPECT_TRUE(run_kernel(op_name, kernel, inputs, outputs, attrs));
  return outputs;
}

inline std::vector<Tensor> exact_outputs(const char* op, const std::vector<Operand2>& operands,
                                         const Attrs& attrs) {
  std::vector<Tensor> wide;
  for (const Operand2& operand : operands) {
    const bool widens = operand.cpu && is_floating(operand.cpu.dtype());
    wide.push_back(widens ? operand.cpu.to(DType::float64) : operand.cpu);
  }
  return apply(get_op(op), wide, attrs);
}

inline void check_ordered(const char* op, const char* kernel, const std::vector<Operand2>& operands,
                          const Attrs& attrs, const Tolerance& tolerance, const std::string& what) {
  const std::vector<Tensor> exact = exact_outputs(op, operands, attrs);
  for (const Order order : kOrders) {
    for (const std::int64_t shift : {0, 1}) {
      const std::vector<Tensor> got = run_ordered(op, kernel, operands, attrs, order, shift);
      ASSERT_EQ(got.size(), exact.size());
      for (std::size_t i = 0; i < got.size(); ++i) {
        expect_near(got[i], exact[i].to_doubles(), tolerance,
                    what + (order == Order::row_major ? " row-major" : " channels-last") +
                        " output " + std::to_string(i) + " shift " + std::to_string(shift));
        if (::testing::Test::HasFatalFailure()) return;
      }
    }
  }
}

}  // namespace tenon::test
