// Samples of attention and losses.
#include "tensor/ops/attributes.h"
#include "tensor/ops/optimizer_steps.h"
#include "tensor/rules/gradients.h"
#include "tests/autograd/gradcheck_samples.h"

namespace tenon::test {
namespace {

/// The site is given, so that each evaluation draws the same mask.
AttentionAttrs attention(bool is_causal, double dropout_p = 0) {
  return {dropout_p, is_causal, 0.6, DropoutMode::train, 4};
}

/// query (…, L, E), key (…, S, E), value (…, S, Ev).
struct Heads {
  Extents query, key, value;
};

void add_attention(Samples& samples) {
  const auto add = [&](const char* what, const Heads& heads, Memory memory, const Tensor& mask,
                       const AttentionAttrs& attrs) {
    samples.push_back({"scaled_dot_product_attention",
                       what,
                       [attrs](const std::vector<Tensor>& in) {
                         return apply(get_op("scaled_dot_product_attention"), in, attrs);
                       },
                       {leaf(heads.query, memory, 1), leaf(heads.key, kPermuted, 2),
                        leaf(heads.value, memory, 3), mask}});
    // The same call as autograd records it; no gradient flows through what it keeps beside.
    samples.push_back(samples.back());
    samples.back().op = "scaled_dot_product_attention_lse";
    samples.back().f = [attrs](const std::vector<Tensor>& in) {
      return std::vector{apply(get_op("scaled_dot_product_attention_lse"), in, attrs)[0]};
    };
  };
  const Heads square = {{2, 3, 2}, {2, 3, 2}, {2, 3, 2}};
  const Heads general = {{2, 1, 2, 3}, {2, 1, 4, 3}, {2, 1, 4, 2}};
  add("plain", square, kDense, {}, attention(false));
  add("causal", square, kPermuted, {}, attention(true));
  add("other sizes", general, kNarrowed, {}, attention(false));
  add("additive mask, broadcast", general, kDense, leaf({2, 1, 1, 4}, kDense, 4), attention(false));
  add("additive mask of all scores", square, kPermuted, leaf({2, 3, 3}, kPermuted, 4),
      attention(false));
  const Tensor allowed =
      tensor({1, 0, 1, 1, 1, 1, 0, 1}, {2, 4}, {DType::uint8}).to(DType::boolean);
  add("bool mask", general, kDense, allowed, attention(false));
  add("expanded", square, kExpanded, {}, attention(true));
  add("dropout", square, kDense, {}, attention(true, 0.4));
  add("no queries", {{1, 0, 2}, {1, 3, 2}, {1, 3, 2}}, kDense, {}, attention(false));
  const Heads grouped = {{2, 4, 2, 2}, {2, 2, 3, 2}, {2, 2, 3, 1}};
  add("grouped heads", grouped, kPermuted, {}, attention(true));
  add("grouped heads, mask of each", grouped, kDense, leaf({4, 1, 3}, kDense, 4),
      attention(false, 0.4));
}

void add_attention_gradient(Samples& samples) {
  const auto add = [&](const char* what, const Heads& heads, const Tensor& mask,
                       const AttentionAttrs& attrs) {
    const TensorFunction f = [attrs](const std::vector<Tensor>& in) {
      const Tensor operands[] = {in[1], in[2], in[3], in[4]};
      const Tensor output = apply(get_op("scaled_dot_product_attention"), operands, attrs)[0];
      const AttentionBackwardAttrs backward_attrs{attrs, in[4] && in[4].requires_grad()};
      return ops::scaled_dot_product_attention_backward(in[0], in[1], in[2], in[3], output, in[4],
                                                        backward_attrs);
    };
    Extents output = heads.query;
    output[output.size() - 1] = heads.value.back();
    samples.push_back({"scaled_dot_product_attention_backward",
                       what,
                       f,
                       {leaf(output, kPermuted, 5), leaf(heads.query, kDense, 1),
                        leaf(heads.key, kPermuted, 2), leaf(heads.value, kDense, 3), mask}});
  };
  const Heads square = {{1, 3, 2}, {1, 3, 2}, {1, 3, 2}};
  add("causal", square, {}, attention(true));
  add("additive mask", {{2, 2}, {3, 2}, {3, 1}}, leaf({1, 3}, kDense, 4), attention(false));
  add("dropout", square, {}, attention(false, 0.4));
  add("no queries", {{1, 0, 2}, {1, 3, 2}, {1, 3, 2}}, {}, attention(false));
  add("one head for all", {{2, 2, 2}, {1, 2, 2}, {1, 2, 1}}, leaf({2, 1, 2}, kDense, 4),
      attention(false));
}

const CrossEntropyOptions kLossOptions[] = {
    {.reduction = Reduction::mean},
    {.reduction = Reduction::sum, .label_smoothing = 0.2},
    {.reduction = Reduction::none},
    {.ignore_index = 1, .reduction = Reduction::mean, .label_smoothing = 0.1},
    {.ignore_index = 2, .reduction = Reduction::none, .label_smoothing = 0.3},
};

void add_cross_entropies(Samples& samples) {
  const auto add = [&](const char* what, const Tensor& x, const Tensor& target) {
    for (const CrossEntropyOptions& options : kLossOptions) {
      samples.push_back({"cross_entropy",
                         what,
                         [options](const std::vector<Tensor>& in) {
                           return std::vector{cross_entropy(in[0], in[1], options)};
                         },
                         {x, target}});
    }
  };
  add("rows", leaf({4, 3}), indices({2, 0, 1, 2}, {4}));
  add("strided rows", leaf({3, 4}, kPermuted), indices({3, 1, 0}, {3}));
  add("expanded rows", leaf({3, 4}, kExpanded), indices({3, 0, 0}, {3}));
  add("one row", leaf({4}, kNarrowed), indices({3}, {}));
  add("further axes", leaf({2, 3, 2}, kPermuted), indices({0, 1, 2, 0}, {2, 2}));
  samples.push_back({"cross_entropy",
                     "no rows",
                     [](const std::vector<Tensor>& in) {
                       return std::vector{
                           cross_entropy(in[0], in[1], {.reduction = Reduction::sum})};
                     },
                     {leaf({0, 3}), indices({}, {0})}});
}

void add_cross_entropy_gradients(Samples& samples) {
  const auto add = [&](const char* what, const Tensor& x, const Tensor& target,
                       const CrossEntropyOptions& options) {
    const CrossEntropyAttrs attrs{options.ignore_index, options.reduction, options.label_smoothing};
    const Extents loss = options.reduction == Reduction::none ? target.layout().sizes : Extents{};
    samples.push_back({"cross_entropy_backward",
                       what,
                       [attrs](const std::vector<Tensor>& in) {
                         return std::vector{
                             ops::cross_entropy_backward(in[0], in[1], in[2], attrs)};
                       },
                       {leaf(loss, kDense, 3), x, target}});
  };
  for (const CrossEntropyOptions& options : kLossOptions) {
    add("rows", leaf({4, 3}), indices({2, 0, 1, 2}, {4}), options);
    add("strided rows", leaf({3, 4}, kPermuted), indices({3, 1, 0}, {3}), options);
  }
  add("no rows", leaf({0, 3}), indices({}, {0}), {.reduction = Reduction::none});
}

/// Both ops: what a user calls, and what autograd records in its place, whose gradients have gradients.
void add_linear_cross_entropies(Samples& samples) {
  const auto add = [&](const char* what, const Tensor& x, const Tensor& weight,
                       const Tensor& target) {
    for (const CrossEntropyOptions& options : kLossOptions) {
      const bool is_nan = options.reduction == Reduction::mean && target.layout().numel() == 0;
      if (options.reduction == Reduction::none || is_nan) continue;
      const std::vector<Tensor> inputs = {x, weight, target};
      samples.push_back({"linear_cross_entropy", what,
                         [options](const std::vector<Tensor>& in) {
                           return std::vector{linear_cross_entropy(in[0], in[1], in[2], options)};
                         },
                         inputs});
      samples.push_back({"linear_cross_entropy_with_gradients", what,
                         [options](const std::vector<Tensor>& in) {
                           const CrossEntropyAttrs attrs{options.ignore_index, options.reduction,
                                                         options.label_smoothing};
                           return apply(get_op("linear_cross_entropy_with_gradients"), in, attrs);
                         },
                         inputs});
    }
  };
  const Tensor target = indices({2, 0, 1, 2}, {4});
  add("rows", leaf({4, 3}), leaf({3, 3}, kDense, 2), target);
  add("strided", leaf({4, 3}, kPermuted), leaf({3, 3}, kPermuted, 2), target);
  add("no rows", leaf({0, 3}), leaf({3, 3}, kDense, 2), indices({}, {0}));
}

void add_global_norms(Samples& samples) {
  for (const double max_norm : {0.0, 0.5}) {
    samples.push_back({"global_norm",
                       "strided, and nothing",
                       [max_norm](const std::vector<Tensor>& in) {
                         const GlobalNorm result = ops::global_norm(in, {max_norm});
                         if (max_norm == 0) return std::vector{result.norm};
                         return std::vector{result.norm, result.clip_coefficient};
                       },
                       {leaf({3, 4}, kPermuted), leaf({2}), leaf({0, 3})}});
  }
}

}  // namespace

Samples model_samples() {
  Samples samples;
  add_attention(samples);
  add_attention_gradient(samples);
  add_cross_entropies(samples);
  add_cross_entropy_gradients(samples);
  add_linear_cross_entropies(samples);
  add_global_norms(samples);
  return samples;
}

}  // namespace tenon::test
