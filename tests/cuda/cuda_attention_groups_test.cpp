// Every attention kernel, called by its name, with keys and values of fewer heads than the query: against
// flash_simt in float64 on repeated heads, whose gradients are summed over each group.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "tensor/ops/attributes.h"
#include "tests/cuda/cuda_support.h"

namespace tenon::test {
namespace {

constexpr const char* kForwardOp = "scaled_dot_product_attention_lse";
constexpr const char* kBackwardOp = "scaled_dot_product_attention_backward";

enum class Mask {
  none,
  padding,
  bias,
  pairs,
  of_heads,
  late,  ///< keys of one batch before its last ones are hidden, and all but a few in the middle of another
  unseen  ///< all keys of the first batch are hidden, and all but the last of others
};

struct Case {
  std::int64_t batch, heads, key_heads, length, keys, head, head_v;
  DType dtype;
  Mask mask = Mask::none;
  bool is_causal = false;
  double dropout_p = 0;

  Attrs attrs() const {
    return AttentionAttrs{dropout_p, is_causal, Scalar(1 / std::sqrt(static_cast<double>(head))),
                          DropoutMode::train, 3};
  }
  bool has_mask_gradient() const { return mask == Mask::bias || mask == Mask::of_heads; }
  Attrs backward_attrs() const {
    return AttentionBackwardAttrs{attrs().as<AttentionAttrs>(), has_mask_gradient()};
  }
  Shape rows(std::int64_t columns) const { return {batch, heads, length, columns}; }
};

std::string text(const Case& c) {
  return std::to_string(c.batch) + "x" + std::to_string(c.heads) + "/" +
         std::to_string(c.key_heads) + " L" + std::to_string(c.length) + " S" +
         std::to_string(c.keys) + " E" + std::to_string(c.head) + " Ev" + std::to_string(c.head_v) +
         " " + std::string(name(c.dtype)) + " mask " + std::to_string(static_cast<int>(c.mask)) +
         (c.is_causal ? " causal" : "") + (c.dropout_p > 0 ? " dropout" : "");
}

/// (batch, heads, rows, columns), of which (batch, rows, heads, columns) is row-major, with neighbours.
Tensor make_operand(const Case& c, std::int64_t heads, std::int64_t rows, std::int64_t columns,
                    Generator* generator) {
  const Tensor values = randn({c.batch, rows, heads + 1, columns}, {}, generator).to(c.dtype);
  return values.to(kCuda).narrow(2, 1, heads).transpose(1, 2);
}

Tensor make_mask(const Case& c, Generator* generator) {
  std::vector<double> values;
  switch (c.mask) {
    case Mask::none: return {};
    case Mask::padding:
      for (std::int64_t i = 0; i < c.batch * c.keys; ++i) {
        values.push_back(i % c.keys < (1 + i / c.keys) * ((c.keys + 3) / 4) ? 1 : 0);
      }
      return tensor(values, {c.batch, 1, 1, c.keys}, {DType::boolean, kCpu}).to(kCuda);
    case Mask::bias: return randn({c.keys}, {}, generator).to(c.dtype).to(kCuda);
    case Mask::pairs: {
      const std::int64_t row = (c.keys + 15) / 16 * 16;
      for (std::int64_t i = 0; i < c.length * row; ++i) values.push_back(i * 7 % 11 < 8 ? 1 : 0);
      return tensor(values, {c.length, row}, {DType::boolean, kCpu}).to(kCuda).narrow(1, 0, c.keys);
    }
    case Mask::late:
      for (std::int64_t i = 0; i < c.batch * c.keys; ++i) {
        const std::int64_t key = i % c.keys;
        const bool shown =
            i < c.keys ? key >= c.keys * 3 / 5 : key >= c.keys / 3 && key <= c.keys / 2;
        values.push_back(shown ? 0 : -std::numeric_limits<double>::infinity());
      }
      return tensor(values, {c.batch, 1, 1, c.keys}, {c.dtype, kCpu}).to(kCuda);
    case Mask::unseen:
      for (std::int64_t i = 0; i < c.batch * c.keys; ++i) {
        values.push_back(i >= c.keys && i % c.keys == c.keys - 1 ? 1 : 0);
      }
      return tensor(values, {c.batch, 1, 1, c.keys}, {DType::boolean, kCpu}).to(kCuda);
    case Mask::of_heads:  // the members of a group differ
      return randn({c.heads, c.length, c.keys}, {}, generator).to(c.dtype).to(kCuda);
  }
  return {};
}

Tensor wide(const Tensor& t) { return t && is_floating(t.dtype()) ? t.to(DType::float64) : t; }

/// Head h of the result is head h / group.
Tensor repeated(const Case& c, const Tensor& x) {
  const Shape& s = x.shape();
  return x.unsqueeze(2)
      .expand({c.batch, c.key_heads, c.heads / c.key_heads, s[2], s[3]})
      .reshape({c.batch, c.heads, s[2], s[3]});
}

Tensor summed(const Case& c, const Tensor& x) {
  const Shape& s = x.shape();
  return sum(x.reshape({c.batch, c.key_heads, c.heads / c.key_heads, s[2], s[3]}), {2});
}

std::vector<Tensor> empty_results(const Case& c, DType dtype) {
  const DType wide_type = dtype == DType::float64 ? DType::float64 : DType::float32;
  const std::int64_t bits = c.dropout_p > 0 ? (c.keys + 127) / 128 * 16 : 0;
  const Tensor output = full({c.batch, c.length, c.heads, c.head_v}, 77.0, {dtype, kCuda});
  return {output.transpose(1, 2), empty({c.batch, c.heads, c.length}, {wide_type, kCuda}),
          empty({c.batch, c.heads, c.length, bits}, {DType::uint8, kCuda})};
}

/// Gradients laid out as their operands are in a model: heads behind rows.
std::vector<Tensor> empty_gradients(const Case& c, std::int64_t key_heads, DType dtype) {
  const auto make = [&](std::int64_t heads, std::int64_t rows, std::int64_t columns) {
    return full({c.batch, rows, heads, columns}, 77.0, {dtype, kCuda}).transpose(1, 2);
  };
  std::vector<Tensor> gradients = {make(c.heads, c.length, c.head), make(key_heads, c.keys, c.head),
                                   make(key_heads, c.keys, c.head_v)};
  if (c.has_mask_gradient()) {
    const Shape shape = c.mask == Mask::bias ? Shape{c.keys} : Shape{c.heads, c.length, c.keys};
    gradients.push_back(full(shape, 77.0, {dtype, kCuda}));
  }
  return gradients;
}

double largest_error(const Tensor& got, const Tensor& want, double* largest) {
  const std::vector<double> x = got.to_doubles(), y = want.to_doubles();
  double error = 0;
  *largest = 0;
  for (std::size_t i = 0; i < y.size(); ++i) {
    *largest = std::max(*largest, std::abs(y[i]));
    const double apart = std::abs(x[i] - y[i]);
    error = std::isnan(apart) ? std::numeric_limits<double>::infinity() : std::max(error, apart);
  }
  return error;
}

/// Within `roundings` of the largest element, or of `floor`, the size of terms that may cancel.
void expect_close(const Tensor& got, const Tensor& want, double roundings, const std::string& what,
                  double floor = 0) {
  double largest = 0;
  const double error = largest_error(got, want, &largest);
  largest = std::max(largest, floor);
  const double u = unit_roundoff(got.dtype()) + 64 * unit_roundoff(DType::float32);
  const double unit = got.dtype() == DType::float64 ? 64 * unit_roundoff(got.dtype()) : u;
  EXPECT_LE(error, roundings * unit * largest + 1e-30) << what << ", largest " << largest;
}

/// How many calls each kernel took.
std::map<std::string, int>& taken() {
  static std::map<std::string, int> counts;
  return counts;
}

struct Call {
  std::vector<Tensor> operands;  // query, key, value, mask
  Tensor grad;
  std::vector<Tensor> results;    // in float64: output, lse, bits
  std::vector<Tensor> gradients;  // in float64
};

Call make_call(const Case& c) {
  Generator generator(29);
  Call call;
  call.operands = {make_operand(c, c.heads, c.length, c.head, &generator),
                   make_operand(c, c.key_heads, c.keys, c.head, &generator),
                   make_operand(c, c.key_heads, c.keys, c.head_v, &generator),
                   make_mask(c, &generator)};
  call.grad = make_operand(c, c.heads, c.length, c.head_v, &generator);
  const Tensor q = wide(call.operands[0]), k = repeated(c, wide(call.operands[1])),
               v = repeated(c, wide(call.operands[2])), mask = wide(call.operands[3]);
  call.results = empty_results(c, DType::float64);
  run_kernel(kForwardOp, "cuda.flash_simt", {q, k, v, mask}, call.results, c.attrs());
  call.gradients = empty_gradients(c, c.heads, DType::float64);
  run_kernel(kBackwardOp, "cuda.flash_backward_simt",
             {wide(call.grad), q, k, v, call.results[0], mask, call.results[1], call.results[2]},
             call.gradients, c.backward_attrs());
  for (const std::size_t i : {1, 2}) call.gradients[i] = summed(c, call.gradients[i]);
  return call;
}

void check_forward(const Case& c, const Call& call) {
  for (const Kernel& kernel : get_op(kForwardOp).kernels(DeviceType::cuda)) {
    const std::string what = text(c) + " by " + std::string(kernel.name);
    const std::vector<Tensor> got = empty_results(c, c.dtype);
    if (!run_kernel(kForwardOp, kernel.name, call.operands, got, c.attrs())) continue;
    ++taken()[std::string(kernel.name)];
    expect_close(got[0], call.results[0], 4, what);
    if (c.mask == Mask::none) expect_close(got[1], call.results[1], 4, what + ", lse");
    const std::vector<Tensor> again = empty_results(c, c.dtype);
    run_kernel(kForwardOp, kernel.name, call.operands, again, c.attrs());
    expect_bit_equal(got[0], again[0], what + ", second run");
  }
}

/// By all kernels, or by `only`.
void check_backward(const Case& c, const Call& call, std::string_view only = "") {
  const std::vector<Tensor> kept = empty_results(c, c.dtype);
  run_kernel(kForwardOp, "cuda.flash_simt", call.operands, kept, c.attrs());
  const std::vector<Tensor> inputs = {call.grad,        call.operands[0], call.operands[1],
                                      call.operands[2], kept[0],          call.operands[3],
                                      kept[1],          kept[2]};
  for (const Kernel& kernel : get_op(kBackwardOp).kernels(DeviceType::cuda)) {
    if (!only.empty() && kernel.name != only) continue;
    const std::string what = text(c) + " by " + std::string(kernel.name);
    const std::vector<Tensor> got = empty_gradients(c, c.key_heads, c.dtype);
    if (!run_kernel(kBackwardOp, kernel.name, inputs, got, c.backward_attrs())) continue;
    ++taken()["backward " + std::string(kernel.name)];
    const std::vector<Tensor> again = empty_gradients(c, c.key_heads, c.dtype);
    run_kernel(kBackwardOp, kernel.name, inputs, again, c.backward_attrs());
    double largest = 0;
    largest_error(call.gradients[2], call.gradients[2], &largest);
    for (std::size_t i = 0; i < got.size(); ++i) {
      const std::string which = what + ", gradient " + std::to_string(i);
      // What is added to a single key's score changes nothing: a sum of terms that cancel.
      const bool cancels = i == 3 && c.keys == 1;
      const double terms = static_cast<double>(c.head_v * c.heads * c.length);
      expect_close(got[i], call.gradients[i], 12, which, cancels ? terms : 0.1 * largest);
      expect_bit_equal(got[i], again[i], which + ", second run");
    }
  }
}

void check(const Case& c) {
  SCOPED_TRACE(text(c));
  const Call call = make_call(c);
  check_forward(c, call);
  check_backward(c, call);
}

class AttentionGroups : public testing::Test {
 protected:
  void SetUp() override { SKIP_WITHOUT_GPU(); }
};

TEST_F(AttentionGroups, EveryKernelAndFeature) {
  constexpr std::int64_t kLengths[] = {1, 63, 64, 129, 200, 300, 512};
  constexpr std::int64_t kHeads[] = {8, 40, 64, 96, 128};
  int turn = 0;
  for (const DType dtype : kFloats) {
    for (const std::int64_t group : {1, 2, 4, 8}) {
      for (const Mask mask : {Mask::none, Mask::padding, Mask::bias, Mask::pairs, Mask::of_heads}) {
        for (const double dropout_p : {0.0, 0.2}) {
          const int t = turn++;
          const std::int64_t key_heads = 1 + t % 3;
          const bool is_causal = mask == Mask::none && t % 2 == 0;
          check({1 + t % 2, key_heads * group, key_heads, kLengths[t % 7],
                 kLengths[(t + t / 7) % 7], kHeads[t % 5], kHeads[(t % 4 == 0 ? t + 1 : t) % 5],
                 dtype, mask, is_causal, dropout_p});
        }
      }
    }
  }
}

// Whole tiles, which cuDNN's gradient and the larger tiles of others want, and more items than a GPU has
// multiprocessors.
TEST_F(AttentionGroups, LongRows) {
  for (const DType dtype : {DType::bfloat16, DType::float16, DType::float32}) {
    for (const bool is_causal : {false, true}) {
      const std::int64_t head = is_causal == (dtype == DType::float16) ? 64 : 128;
      check({2, 8, 2, 512, 512, head, head, dtype, Mask::none, is_causal});
      check({1, 24, 8, 384, 640, 192 - head, 192 - head, dtype, Mask::none, is_causal});
    }
  }
  check({1, 16, 1, 700, 700, 128, 128, DType::bfloat16, Mask::none, true});
  check({3, 32, 8, 1000, 1000, 64, 64, DType::bfloat16, Mask::padding});
  check({2, 32, 8, 700, 700, 64, 64, DType::bfloat16, Mask::none, true, 0.1});
}

void check_wgmma(const Case& c) {
  SCOPED_TRACE(text(c));
  check_backward(c, make_call(c), "cuda.flash_backward_wgmma");
}

// Heads above 64, whose tiles have two parts, in every kind of its kernels.
TEST_F(AttentionGroups, WideHeadsByWgmma) {
  constexpr std::int64_t kLengths[] = {1, 63, 64, 65, 127, 129, 200, 257, 300};
  constexpr std::int64_t kGroups[] = {1, 2, 8};
  constexpr std::int64_t kHeads[][2] = {{128, 128}, {72, 72},  {96, 40},
                                        {128, 64},  {64, 128}, {96, 96}};
  constexpr Mask kMasks[] = {Mask::none,     Mask::padding, Mask::bias,  Mask::pairs,
                             Mask::of_heads, Mask::late,    Mask::unseen};
  int turn = 0;
  for (const DType dtype : {DType::bfloat16, DType::float16}) {
    for (const Mask mask : kMasks) {
      for (const double dropout_p : {0.0, 0.2}) {
        for (const std::int64_t length : kLengths) {
          const int t = turn++;
          const std::int64_t group = kGroups[t % 3], key_heads = 1 + t % 2;
          const auto& [head, head_v] = kHeads[(t + t / 6) % 6];
          check_wgmma({2, key_heads * group, key_heads, length, kLengths[(t * 4 + t / 9) % 9], head,
                       head_v, dtype, mask, t % 5 < 2, dropout_p});
          if (HasFailure()) return;
        }
      }
    }
  }
}

// The same in little work, for tools/sanitize_cuda.py: rings that turn, and blocks with several items.
TEST_F(AttentionGroups, SmallWideHeadsByWgmma) {
  for (const Mask mask : {Mask::none, Mask::late, Mask::pairs}) {
    for (const double dropout_p : {0.0, 0.2}) {
      const bool is_causal = (mask == Mask::none) == (dropout_p > 0);
      check_wgmma({1, 2, 1, 150, 330, 96, 72, DType::bfloat16, mask, is_causal, dropout_p});
      check_wgmma({1, 1, 1, 330, 150, 72, 128, DType::float16, mask, is_causal, dropout_p});
      check_wgmma({1, 140, 140, 20, 24, 128, 128, DType::bfloat16, mask, is_causal, dropout_p});
      if (HasFailure()) return;
    }
  }
}

// More of them than a GPU has multiprocessors: blocks compute several items one after another.
TEST_F(AttentionGroups, ManyWideHeadsByWgmma) {
  for (const Mask mask : {Mask::none, Mask::padding, Mask::late, Mask::pairs}) {
    for (const bool is_causal : {false, true}) {
      const double dropout_p = is_causal == (mask == Mask::padding) ? 0.2 : 0;
      const DType dtype = is_causal ? DType::bfloat16 : DType::float16;
      check_wgmma({2, 70, 70, 270, 330, 128, 96, dtype, mask, is_causal, dropout_p});
      check_wgmma({2, 144, 72, 140, 130, 72, 128, dtype, mask, is_causal, dropout_p});
      if (HasFailure()) return;
    }
  }
  check_wgmma({1, 2, 2, 1500, 1700, 128, 128, DType::bfloat16, Mask::none, true});
  check_wgmma({1, 4, 2, 1100, 900, 128, 128, DType::float16, Mask::pairs, false, 0.1});
}

TEST_F(AttentionGroups, EveryKernelTakesSome) {
  for (const DType dtype : {DType::bfloat16, DType::float32}) {
    check({1, 4, 2, 256, 256, 64, 64, dtype, Mask::none});
  }
  for (const char* op : {kForwardOp, kBackwardOp}) {
    for (const Kernel& kernel : get_op(op).kernels(DeviceType::cuda)) {
      const std::string prefix = op == kBackwardOp ? "backward " : "";
      EXPECT_GT(taken()[prefix + std::string(kernel.name)], 0) << op << " by " << kernel.name;
    }
  }
}

}  // namespace
}  // namespace tenon::test
