// Attention by cuDNN against the float64 composition: dtypes, tails, head sizes, layouts and causality;
// which calls it takes and is preferred for; and Programs that it is bound in.
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "cuda/kernels/attention_cudnn.h"
#include "schedule/schedule.h"
#include "tensor/ops/attributes.h"
#include "tests/cuda/cuda_support.h"
#include "tests/support/compare.h"
#include "tests/support/expect_error.h"
#include "tests/support/models.h"

namespace tenon::test {
namespace {

constexpr const char* kOp = "scaled_dot_product_attention";

struct Operands {
  Tensor query, key, value;
};

/// Sizes of query (batch, heads, length, head), key (…, keys, head), value (…, keys, head_v).
struct Problem {
  std::int64_t batch, heads, length, keys, head, head_v;
};

void PrintTo(const Problem& p, std::ostream* os) {
  *os << p.batch << "x" << p.heads << " L" << p.length << " S" << p.keys << " E" << p.head << " Ev"
      << p.head_v;
}

AttentionAttrs attributes(std::int64_t head, bool is_causal) {
  return {0.0, is_causal, Scalar(1 / std::sqrt(static_cast<double>(head))), DropoutMode::follow, 0};
}

Operands random_operands(const Problem& p, DType dtype) {
  Generator generator(17);
  const auto normal = [&](std::int64_t rows, std::int64_t columns) {
    return randn({p.batch, p.heads, rows, columns}, {}, &generator).to(dtype);
  };
  return {normal(p.length, p.head), normal(p.keys, p.head), normal(p.keys, p.head_v)};
}

Operands on_cuda(const Operands& x) {
  return {x.query.to(kCuda), x.key.to(kCuda), x.value.to(kCuda)};
}

std::vector<double> exact_attention(const Operands& x, const AttentionAttrs& attrs) {
  return exact_result(kOp, {x.query, x.key, x.value, Tensor()}, attrs);
}

/// A call of cuDNN's implementation as a Program makes it.
struct CudnnCall {
  CudnnCall(const char* op, const std::vector<Tensor>& operands, const std::vector<Tensor>& results,
            Attrs attributes, bool training = false)
      : attrs(std::move(attributes)) {
    for (const Tensor& t : operands) inputs.push_back(t ? t.view_of_data() : TensorView{});
    for (const Tensor& t : results) outputs.push_back(t.view_of_data());
    args = {&get_op(op),
            inputs,
            outputs,
            &attrs,
            training,
            {},
            device_backend(DeviceType::cuda).stream(0)};
  }
  CudnnCall(const Operands& x, const AttentionAttrs& attributes, const Tensor& output,
            bool training = false)
      : CudnnCall(kOp, {x.query, x.key, x.value, {}}, {output}, attributes, training) {}
  CudnnCall(const CudnnCall&) = delete;  // args points into it
  CudnnCall& operator=(const CudnnCall&) = delete;

  void run() {
    ASSERT_EQ(cuda::cudnn_attention_refusal(args), "");
    for (const Kernel& kernel : args.op->kernels(DeviceType::cuda)) {
      if (kernel.name != cuda::kCudnnAttention) continue;
      const auto bytes = static_cast<std::int64_t>(kernel.workspace_bytes(args));
      // Compiling has its own reasons to fail.
      ASSERT_EQ(cuda::cudnn_attention_refusal(args), "");
      const Tensor workspace = empty(Shape{bytes}, {DType::uint8, kCuda});
      args.workspace = workspace.view_of_data().data;
      kernel.run(args);
      return;
    }
    FAIL() << "no kernel " << cuda::kCudnnAttention;
  }

  Attrs attrs;
  std::vector<TensorView> inputs;
  std::vector<TensorView> outputs;
  KernelArgs args;
};

/// The gradient of rows that are not multiples of 128 needs a version with known errors mended.
#define SKIP_WITH_OLD_CUDNN(call)                                            \
  if (const std::string reason = cuda::cudnn_attention_refusal((call).args); \
      reason.starts_with("needed cuDNN")) {                                  \
    GTEST_SKIP() << reason;                                                  \
  }

/// Each element within 8 roundings of Σ probability·|value|, and within twice the largest error of the
/// plain composition in the same dtype.
void expect_accurate(const Tensor& got, const Operands& x, const AttentionAttrs& attrs) {
  const std::vector<double> want = exact_attention(x, attrs);
  const std::vector<double> terms = exact_attention({x.query, x.key, abs(x.value)}, attrs);
  const std::vector<Tensor> inputs = {x.query, x.key, x.value, Tensor()};
  const std::vector<double> plain = get_op(kOp).decompose(inputs, attrs).at(0).to_doubles();
  double plain_error = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    plain_error = std::max(plain_error, std::abs(plain[i] - want[i]));
  }
  const std::vector<double> values = got.to_doubles();
  ASSERT_EQ(values.size(), want.size());
  const double u = unit_roundoff(got.dtype());
  for (std::size_t i = 0; i < want.size(); ++i) {
    ASSERT_LE(std::abs(values[i] - want[i]), 2 * plain_error + 8 * u * terms[i])
        << "element " << i << " of " << want.size() << " is " << values[i] << ", exactly "
        << want[i];
  }
}

class CudnnAttention : public testing::TestWithParam<std::tuple<DType, Problem, bool>> {
 protected:
  void SetUp() override { SKIP_WITHOUT_GPU(); }
};

TEST_P(CudnnAttention, MatchesFloat64AndRepeats) {
  const auto& [dtype, problem, is_causal] = GetParam();
  const Operands x = random_operands(problem, dtype);
  const Operands on_device = on_cuda(x);
  const AttentionAttrs attrs = attributes(problem.head, is_causal);
  const Shape shape{problem.batch, problem.heads, problem.length, problem.head_v};
  const Tensor first = empty(shape, {dtype, kCuda});
  const Tensor second = empty(shape, {dtype, kCuda});
  for (const Tensor& output : {first, second}) {
    CudnnCall call(on_device, attrs, output);
    call.run();
    if (HasFatalFailure()) return;
  }
  expect_accurate(first, x, attrs);
  expect_bit_equal(first, second, "second run");
}

const Problem kProblems[] = {
    {2, 3, 512, 512, 64, 64},   {1, 2, 1024, 1024, 128, 128}, {2, 2, 257, 300, 64, 64},
    {1, 3, 300, 257, 64, 64},   {2, 2, 129, 77, 32, 32},      {1, 2, 65, 640, 128, 128},
    {1, 2, 640, 65, 128, 128},  {2, 1, 333, 333, 40, 56},     {1, 2, 200, 200, 8, 8},
    {1, 2, 300, 300, 256, 256}, {2, 12, 64, 64, 64, 64},
};

const auto kCaseName = [](const auto& info) {
  const auto& [dtype, p, is_causal] = info.param;
  std::string text(name(dtype));
  for (const std::int64_t size : {p.batch, p.heads, p.length, p.keys, p.head, p.head_v}) {
    text += "_" + std::to_string(size);
  }
  return text + (is_causal ? "_causal" : "");
};

INSTANTIATE_TEST_SUITE_P(Table, CudnnAttention,
                         testing::Combine(testing::Values(DType::float16, DType::bfloat16),
                                          testing::ValuesIn(kProblems), testing::Bool()),
                         kCaseName);

/// Every element within 16 roundings of the largest exact one.
void expect_gradient(const Tensor& got, const Tensor& exact, const char* what) {
  const std::vector<double> want = exact.to_doubles();
  const std::vector<double> values = got.to_doubles();
  ASSERT_EQ(values.size(), want.size()) << what;
  double largest = 0;
  for (const double value : want) largest = std::max(largest, std::abs(value));
  const double allowed = 16 * unit_roundoff(got.dtype()) * largest;
  for (std::size_t i = 0; i < want.size(); ++i) {
    ASSERT_LE(std::abs(values[i] - want[i]), allowed)
        << what << ", element " << i << " is " << values[i] << ", exactly " << want[i];
  }
}

Tensor wide(const Tensor& x) { return x.to(DType::float64); }

constexpr const char* kLseOp = "scaled_dot_product_attention_lse";
constexpr const char* kBackwardOp = "scaled_dot_product_attention_backward";

TEST_P(CudnnAttention, GradientsMatchFloat64AndRepeat) {
  const auto& [dtype, problem, is_causal] = GetParam();
  const Operands x = random_operands(problem, dtype);
  const Operands d = on_cuda(x);
  const Attrs attrs = attributes(problem.head, is_causal);
  const Shape shape{problem.batch, problem.heads, problem.length, problem.head_v};
  Generator generator(23);
  const Tensor grad = randn(shape, {}, &generator).to(dtype);

  const std::vector<Tensor> kept = apply(
      get_op(kLseOp), std::vector<Tensor>{wide(x.query), wide(x.key), wide(x.value), {}}, attrs);
  const Tensor output = empty(shape, {dtype, kCuda});
  const Tensor lse =
      empty(Shape{problem.batch, problem.heads, problem.length}, {DType::float32, kCuda});
  const Tensor bits =
      empty(Shape{problem.batch, problem.heads, problem.length, 0}, {DType::uint8, kCuda});
  CudnnCall forward(kLseOp, {d.query, d.key, d.value, {}}, {output, lse, bits}, attrs);
  forward.run();
  if (HasFatalFailure()) return;
  expect_near(lse, kept[1].to_doubles(), {.roundings = 256, .floor = 1}, "lse");

  const AttentionBackwardAttrs backward_attrs{attributes(problem.head, is_causal), false};
  const std::vector<Tensor> exact = apply(
      get_op(kBackwardOp),
      std::vector<Tensor>{
          wide(grad), wide(x.query), wide(x.key), wide(x.value), kept[0], {}, kept[1], kept[2]},
      backward_attrs);
  const Tensor grad_on_device = grad.to(kCuda);
  std::vector<Tensor> first, second;
  for (std::vector<Tensor>* results : {&first, &second}) {
    for (const Tensor& like : {d.query, d.key, d.value})
      results->push_back(empty(like.shape(), {dtype, kCuda}));
    CudnnCall backward(kBackwardOp,
                       {grad_on_device, d.query, d.key, d.value, output, {}, lse, bits}, *results,
                       backward_attrs);
    SKIP_WITH_OLD_CUDNN(backward);
    backward.run();
    if (HasFatalFailure()) return;
  }
  constexpr const char* kNames[] = {"d_query", "d_key", "d_value"};
  for (std::size_t i = 0; i < 3; ++i) {
    expect_gradient(first[i], exact[i], kNames[i]);
    expect_bit_equal(first[i], second[i], kNames[i]);
  }
}

// One query or one key: cuDNN may refuse, and then says so before anything runs.
TEST(CudnnAttentionEdges, SingleRowsAreTakenOrRefused) {
  SKIP_WITHOUT_GPU();
  for (const Problem& p : {Problem{1, 2, 1, 1, 64, 64}, Problem{1, 2, 1, 512, 64, 64},
                           Problem{1, 2, 512, 1, 64, 64}}) {
    for (const bool is_causal : {false, true}) {
      const Operands x = random_operands(p, DType::bfloat16);
      const Operands on_device = on_cuda(x);
      const Tensor output =
          empty(Shape{p.batch, p.heads, p.length, p.head_v}, {DType::bfloat16, kCuda});
      const AttentionAttrs attrs = attributes(p.head, is_causal);
      CudnnCall call(on_device, attrs, output);
      if (const std::string reason = cuda::cudnn_attention_refusal(call.args); !reason.empty()) {
        RecordProperty("refused", testing::PrintToString(p) + ": " + reason);
        continue;
      }
      call.run();
      if (HasFatalFailure()) return;
      expect_accurate(output, x, attrs);
    }
  }
}

// --- layouts --------------------------------------------------------------------------------------

TEST(CudnnAttentionLayout, ReadsPackedQkvAndWritesByToken) {
  SKIP_WITHOUT_GPU();
  constexpr std::int64_t kBatch = 2, kLength = 320, kHeads = 3, kHead = 64;
  const auto unpack = [&](const Tensor& packed) {
    const Tensor parts = packed.view({kBatch, kLength, 3, kHeads, kHead});
    const auto part = [&](int i) { return parts.narrow(2, i, 1).squeeze(2).permute({0, 2, 1, 3}); };
    return Operands{part(0), part(1), part(2)};
  };
  Generator generator(5);
  const Tensor packed =
      randn({kBatch, kLength, 3 * kHeads * kHead}, {}, &generator).to(DType::bfloat16);
  const Operands x = unpack(packed);
  const Operands on_device = unpack(packed.to(kCuda));
  for (const bool is_causal : {false, true}) {
    const AttentionAttrs attrs = attributes(kHead, is_causal);
    const Tensor by_token = empty(Shape{kBatch, kLength, kHeads, kHead}, {DType::bfloat16, kCuda});
    CudnnCall call(on_device, attrs, by_token.permute({0, 2, 1, 3}));
    call.run();
    if (HasFatalFailure()) return;
    expect_accurate(by_token.permute({0, 2, 1, 3}), x, attrs);
  }
}

TEST(CudnnAttentionLayout, WritesGradientsIntoPackedQkv) {
  SKIP_WITHOUT_GPU();
  constexpr std::int64_t kBatch = 2, kLength = 320, kHeads = 3, kHead = 64;
  const Operands x =
      random_operands({kBatch, kHeads, kLength, kLength, kHead, kHead}, DType::float16);
  const Operands d = on_cuda(x);
  const TensorOptions options{DType::float16, kCuda};
  const Shape shape{kBatch, kHeads, kLength, kHead};
  const Tensor output = empty(shape, options);
  const Tensor lse = empty(Shape{kBatch, kHeads, kLength}, {DType::float32, kCuda});
  const Tensor bits = empty(Shape{kBatch, kHeads, kLength, 0}, {DType::uint8, kCuda});
  CudnnCall forward(kLseOp, {d.query, d.key, d.value, {}}, {output, lse, bits},
                    attributes(kHead, true));
  forward.run();
  if (HasFatalFailure()) return;
  const Tensor packed = empty(Shape{kBatch, kLength, 3, kHeads, kHead}, options);
  std::vector<Tensor> plain, parts;
  for (int i = 0; i < 3; ++i) {
    plain.push_back(empty(shape, options));
    parts.push_back(packed.narrow(2, i, 1).squeeze(2).permute({0, 2, 1, 3}));
  }
  for (const std::vector<Tensor>& results : {plain, parts}) {
    CudnnCall backward(kBackwardOp, {output, d.query, d.key, d.value, output, {}, lse, bits},
                       results, AttentionBackwardAttrs{attributes(kHead, true), false});
    SKIP_WITH_OLD_CUDNN(backward);
    backward.run();
    if (HasFatalFailure()) return;
  }
  for (std::size_t i = 0; i < 3; ++i) {
    expect_gradient(parts[i], plain[i].to(kCpu), "a part of the packed gradient");
  }
}

TEST(CudnnAttentionLayout, OtherLayoutsRunTheNextKernel) {
  SKIP_WITHOUT_GPU();
  const Operands wide = random_operands({1, 2, 300, 300, 72, 72}, DType::float16);
  const auto shifted = [](const Operands& o) {  // rows start between multiples of 16 bytes
    const auto shift = [](const Tensor& t) { return t.narrow(-1, 1, 64); };
    return Operands{shift(o.query), shift(o.key), shift(o.value)};
  };
  const Operands x = shifted(wide);
  const Operands on_device = shifted(on_cuda(wide));
  const AttentionAttrs attrs = attributes(64, false);
  const Tensor output = empty(Shape{1, 2, 300, 64}, {DType::float16, kCuda});
  CudnnCall call(on_device, attrs, output);
  call.run();
  expect_accurate(output, x, attrs);
}

// --- which calls ----------------------------------------------------------------------------------

TEST(CudnnAttentionChoice, SaysWhyItDoesNotTakeACall) {
  SKIP_WITHOUT_GPU();
  const auto refusal = [](DType dtype, std::int64_t head, const AttentionAttrs& attrs,
                          bool training, bool masked) {
    const Operands x = on_cuda(random_operands({1, 2, 16, 16, head, head}, dtype));
    CudnnCall call(x, attrs, empty(Shape{1, 2, 16, head}, {dtype, kCuda}), training);
    const Tensor mask = ones(Shape{16, 16}, {DType::boolean, kCuda});
    if (masked) call.inputs[3] = mask.view_of_data();
    return cuda::cudnn_attention_refusal(call.args);
  };
  constexpr const char* kSizes =
      "needed 16-bit floats and head sizes that are multiples of 8 up to 256";
  AttentionAttrs attrs = attributes(64, false);
  EXPECT_EQ(refusal(DType::float32, 64, attrs, false, false), kSizes);
  EXPECT_EQ(refusal(DType::float16, 20, attrs, false, false), kSizes);
  EXPECT_EQ(refusal(DType::float16, 264, attrs, false, false), kSizes);
  EXPECT_EQ(refusal(DType::float16, 64, attrs, false, true), "a mask is given");  // it differs by query
  attrs.dropout_p = 0.1;
  EXPECT_EQ(refusal(DType::float16, 64, attrs, true, false), "dropout is active");
  EXPECT_EQ(refusal(DType::float16, 64, attrs, false, false), "");
  attrs.scale = Scalar(-1.0);
  EXPECT_EQ(refusal(DType::float16, 64, attrs, false, false), "needed a positive scale");
}

TEST(CudnnAttentionChoice, TakesMultiplesOf8) {
  EXPECT_TRUE(cuda::cudnn_attention_takes(DType::bfloat16, 64, 64));
  EXPECT_TRUE(cuda::cudnn_attention_takes(DType::float16, 256, 8));
  EXPECT_FALSE(cuda::cudnn_attention_takes(DType::float16, 60, 64));
  EXPECT_FALSE(cuda::cudnn_attention_takes(DType::float16, 64, 264));
  EXPECT_FALSE(cuda::cudnn_attention_takes(DType::float32, 64, 64));
}

TEST(CudnnAttentionChoice, IsPreferredForLongRowsInPrograms) {
  EXPECT_TRUE(cuda::cudnn_attention_preferred(512, 512, true));
  EXPECT_TRUE(cuda::cudnn_attention_preferred(256, 4096, true));
  EXPECT_FALSE(cuda::cudnn_attention_preferred(128, 4096, true));
  EXPECT_FALSE(cuda::cudnn_attention_preferred(4096, 128, true));
  EXPECT_FALSE(cuda::cudnn_attention_preferred(2048, 2048, false));
}

/// The gradient's kernel as a Program chooses it, for (2, 2, length, head) with a mask of keys or none.
std::string chosen_gradient(std::int64_t length, std::int64_t head, bool masked) {
  const Tensor x = empty(Shape{2, 2, length, head}, {DType::bfloat16, kCuda});
  const Tensor lse = empty(Shape{2, 2, length}, {DType::float32, kCuda});
  const Tensor mask = masked ? ones(Shape{2, 1, 1, length}, {DType::boolean, kCuda}) : Tensor();
  std::vector<TensorView> inputs, outputs(3, x.view_of_data());
  for (const Tensor& t : {x, x, x, x, x, mask, lse, Tensor()}) {
    inputs.push_back(t ? t.view_of_data() : TensorView{});
  }
  for (TensorView& view : inputs) view.data = nullptr;
  const Op& op = get_op("scaled_dot_product_attention_backward");
  AttentionAttrs forward = attributes(head, false);
  forward.mode = DropoutMode::train;
  const Attrs attrs = AttentionBackwardAttrs{forward, false};
  const KernelArgs args{&op, inputs, outputs, &attrs, true};
  return std::string(select_kernel(op, DeviceType::cuda, args)->name);
}

TEST(CudnnAttentionChoice, WgmmaHasTheGradientsOfSmallHeadsAndOfMasks) {
  SKIP_WITHOUT_GPU();
  const std::string ours = chosen_gradient(96, 64, false);
  if (ours != "cuda.flash_backward_wgmma") GTEST_SKIP() << "not on this GPU: " << ours;
  EXPECT_EQ(chosen_gradient(1024, 64, false), ours);
  EXPECT_EQ(chosen_gradient(1024, 128, true), ours);
  EXPECT_EQ(chosen_gradient(96, 128, false), ours);
  EXPECT_EQ(chosen_gradient(1024, 128, false), "cudnn");
  EXPECT_NE(chosen_gradient(1024, 136, false), ours);
}

// --- in Programs ----------------------------------------------------------------------------------

Tensor self_attention(const Tensor& x) { return scaled_dot_product_attention(x, x, x); }

/// The model's result, and the implementation that its attention ran on.
struct Ran {
  Tensor output;
  std::string kernel;
};

Ran run_model(const Tensor& x, const std::string& bound = "") {
  Schedule sch = create_schedule(function_model(self_attention), {{"x", x}});
  if (!bound.empty()) sch.bind(sch.find(self_attention), bound);
  Executor run = build(sch, {.verify = false});
  Ran result;
  for (int i = 0; i < 3; ++i) result.output = run.run(std::span(&x, 1), false).at(0).to(kCpu);
  for (const InstructionInfo& info : run.program(std::span(&x, 1), false).instructions()) {
    if (info.name.find("attention") != std::string::npos) result.kernel = info.kernel;
  }
  return result;
}

Tensor input(std::int64_t length, DType dtype) {
  Generator generator(3);
  return randn({2, 2, length, 64}, {}, &generator).to(dtype).to(kCuda);
}

TEST(CudnnAttentionProgram, RunsLongRowsUnlessBoundElsewhere) {
  SKIP_WITHOUT_GPU();
  const Tensor x = input(512, DType::bfloat16);
  const Ran chosen = run_model(x);
  EXPECT_EQ(chosen.kernel, "cudnn");
  EXPECT_EQ(run_model(x, "cuda.flash_mma").kernel, "cuda.flash_mma");
  EXPECT_EQ(run_model(input(64, DType::bfloat16)).kernel, "cuda.flash_mma");
  EXPECT_EQ(run_model(input(512, DType::float32)).kernel, "cuda.flash_tf32x3");
  const Operands same{x.to(kCpu), x.to(kCpu), x.to(kCpu)};
  expect_accurate(chosen.output, same, attributes(64, false));
}

TEST(CudnnAttentionProgram, IsBoundForShortRowsToo) {
  SKIP_WITHOUT_GPU();
  const Tensor x = input(64, DType::float16);
  const Ran bound = run_model(x, "cudnn");
  EXPECT_EQ(bound.kernel, "cudnn");
  const Operands same{x.to(kCpu), x.to(kCpu), x.to(kCpu)};
  expect_accurate(bound.output, same, attributes(64, false));
}

TEST(CudnnAttentionProgram, ABindingItDoesNotTakeIsAnError) {
  SKIP_WITHOUT_GPU();
  const Tensor x = input(512, DType::float32);
  const std::string text = error_text<DeviceError>([&] { run_model(x, "cudnn"); });
  EXPECT_NE(text.find("is bound to cudnn, which does not take float32"), std::string::npos) << text;
}

TEST(CudnnAttentionProgram, IsCaptured) {
  SKIP_WITHOUT_GPU();
  const Tensor x = input(320, DType::bfloat16);
  std::vector<Tensor> outputs;
  for (const char* setting : {"never", "always", "automatic"}) {
    setenv("TENON_CUDA_GRAPHS", setting, 1);
    outputs.push_back(run_model(x, "cudnn").output);
  }
  unsetenv("TENON_CUDA_GRAPHS");
  expect_bit_equal(outputs[0], outputs[1], "captured at once");
  expect_bit_equal(outputs[0], outputs[2], "captured at the second run");
}

}  // namespace
}  // namespace tenon::test
