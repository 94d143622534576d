// Walks the op registry: an op without documentation, inference, a gradient (or the word that it has
// none), a kernel on each device, or a test against an independent reference does not pass.
#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <set>

#include "tensor/device_backend.h"
#include "tensor/op.h"
#include "tests/support/test_data.h"

namespace tenon {
namespace {

/// Ops that PyTorch's cases do not cover, and the test that checks them against a reference.
const std::map<std::string, std::string> kOracleTests = {
    {"randn", "tensor_random: Box and Muller in long double"},
    {"uniform", "tensor_random: the interval in long double"},
    {"randint", "tensor_random: products in 128 bits"},
    {"randperm", "tensor_random: the order of its words"},
    {"rsub", "tensor_numbers: the operators with a number on the left"},
    {"rdiv", "tensor_numbers: the operators with a number on the left"},
    {"dropout", "tensor_dropout: known answers of Philox4x32-10 and masks element by element"},
    {"scaled_dot_product_attention_lse", "tensor_attention: naive double reference"},
    {"scaled_dot_product_attention_backward", "tensor_attention_gradient: naive double reference"},
    {"bias_dropout_residual_layer_norm", "tensor_normalization: naive double reference"},
    {"batch_norm_relu", "tensor_norm: naive double reference"},
    {"batch_norm_add_relu", "tensor_norm: naive double reference"},
    {"bias_gelu", "tensor_bias_gelu: naive double reference"},
    {"silu_mul", "tensor_elementwise: naive double reference"},
    {"rotary_embedding", "tensor_elementwise: naive double reference"},
    {"linear_gelu", "tensor_fused_products: naive double reference"},
    {"linear_gelu_aux", "tensor_fused_products: naive double reference"},
    {"linear_relu", "tensor_fused_products: naive double reference"},
    {"linear_silu", "tensor_fused_products: naive double reference"},
    {"linear_silu_aux", "tensor_fused_products: naive double reference"},
    {"linear_residual", "tensor_fused_products: naive double reference"},
    {"matmul_gelu_backward", "tensor_fused_products: gradients of the composition"},
    {"matmul_gelu_backward_again", "tensor_fused_products: gradients of the composition"},
    {"matmul_relu_backward", "tensor_fused_products: gradients of the composition"},
    {"matmul_silu_backward", "tensor_fused_products: gradients of the composition"},
    {"matmul_add", "tensor_fused_products: naive double reference"},
    {"conv2d_relu", "tensor_convolution: naive loops in double"},
    {"conv2d_backward_input", "tensor_convolution: finite differences of conv2d"},
    {"conv2d_backward_weight", "tensor_convolution: finite differences of conv2d"},
    {"view", "tensor_shape_ops: element by element"},
    {"adam_step", "tensor_optimizer_steps: naive double reference"},
    {"sgd_step", "tensor_optimizer_steps: naive double reference"},
    {"global_norm", "tensor_optimizer_steps: naive double reference"},
    {"linear_cross_entropy", "tensor_loss: cross_entropy of linear, and finite differences"},
    {"linear_cross_entropy_with_gradients", "tensor_loss: the gradients of the same"},
    {"detach", "autograd_backward: cuts off"},
    {"clone", "tensor_shape: element by element"},
    {"to_device", "autograd_devices: element by element, between two devices"},
    {"print", "tensor_print: text of every dtype and layout"},
    {"cast", "tensor_shape_ops: element by element"},
    {"narrow_backward", "tensor_shape_gradients: columns of narrow's Jacobian"},
    {"index_select_backward", "tensor_shape_gradients: naive double reference"},
    {"gather_backward", "tensor_shape_gradients: naive double reference"},
};

/// Gradients are checked through the op that they are of: by its cases, which have gradients, and by
/// autograd_gradcheck.
bool is_gradient_of_an_op(const std::string& name) {
  const std::size_t end = name.find("_backward");  // conv2d_backward_weight
  return end != std::string::npos && find_op(name.substr(0, end));
}

class Coverage : public ::testing::TestWithParam<const Op*> {};

TEST_P(Coverage, OpIsComplete) {
  const Op& op = *GetParam();
  EXPECT_GT(op.doc.size(), 10U) << "no documentation";
  EXPECT_TRUE(!op.operands.empty() || op.has(Trait::random)) << "a result of nothing";
  std::set<std::string> names;
  for (const Operand& operand : op.operands) {
    EXPECT_TRUE(names.insert(operand.name).second) << operand.name;
  }
  EXPECT_TRUE(op.infer || op.decompose) << "no shape inference";
  EXPECT_TRUE(op.decompose || !op.kernels(DeviceType::cpu).empty()) << "no way to run on the CPU";
  EXPECT_EQ(op.pattern_attrs != nullptr && op.decompose == nullptr, false)
      << "a fused op is matched by its decomposition";
  const std::string cases = test::test_data("conformance/" + op.name + ".json");
  EXPECT_TRUE(op.vjp || op.decompose || op.not_differentiable) << "no gradient";
  EXPECT_FALSE(op.vjp && op.not_differentiable) << "a gradient that is never asked for";
  EXPECT_TRUE(op.vjp || (op.saved_inputs | op.saved_outputs) == 0) << "saves what nothing reads";
  EXPECT_TRUE(std::filesystem::exists(cases) || kOracleTests.contains(op.name) ||
              is_gradient_of_an_op(op.name))
      << "neither conformance cases at " << cases << " nor a named oracle test";
}

TEST_P(Coverage, HasACudaKernelWhereCudaIsBuilt) {
  is_available(kCuda);  // registers what this build has
  if (get_op("add").kernels(DeviceType::cuda).empty()) GTEST_SKIP() << "a CPU-only build";
  const Op& op = *GetParam();
  EXPECT_TRUE(op.view || !op.kernels(DeviceType::cuda).empty()) << "no CUDA kernel";
}

INSTANTIATE_TEST_SUITE_P(AllOps, Coverage, ::testing::ValuesIn(all_ops()),
                         [](const auto& info) { return info.param->name; });

TEST(Registry, KnowsItsOps) {
  EXPECT_EQ(find_op("no_such_op"), nullptr);
  EXPECT_EQ(&get_op("softmax"), find_op("softmax"));
}

}  // namespace
}  // namespace tenon
