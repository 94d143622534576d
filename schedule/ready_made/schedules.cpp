#include "schedule/schedules.h"

#include <algorithm>
#include <limits>
#include <map>
#include <set>
#include <tuple>

#include "schedule/ready_made/repeated_heads.h"
#include "tensor/interpreter.h"
#include "tensor/ops/norm_attributes.h"
#include "tensor/ops/vision_attributes.h"
#include "tensor/rules/gradients.h"
#include "tensor/support/check.h"

namespace tenon::schedules {
namespace {

constexpr double kHidden = -std::numeric_limits<double>::infinity();

// What any(k) stands for in the patterns below.
constexpr int kScale = 0;
constexpr int kDropout = 1;
constexpr int kIgnoreIndex = 2;
constexpr int kSmoothing = 3;

/// The number that a capture stands for, or nothing for a symbolic one.
std::optional<double> captured(const Subgraph& match, int capture) {
  const auto found = match.captures.find(capture);
  if (found == match.captures.end()) return std::nullopt;
  if (const auto* number = std::get_if<double>(&found->second)) return *number;
  if (const auto* number = std::get_if<std::int64_t>(&found->second)) {
    return static_cast<double>(*number);
  }
  if (const auto* scalar = std::get_if<Scalar>(&found->second)) {
    if (scalar->is_constant()) return scalar->hint();
  }
  return std::nullopt;
}

/// Applies a primitive to all places at once; where that is refused, to each on its own, and what is
/// refused then is noted and left alone.
template <class Place, class F>
void attempt(Summary& summary, const std::vector<Place>& places, const F& primitive) {
  if (places.empty()) return;
  try {
    primitive(places);
    summary.rewritten += static_cast<int>(places.size());
    return;
  } catch (const ScheduleError& error) {
    if (places.size() == 1) {
      summary.refused.emplace_back(error.what());
      return;
    }
  }
  for (const Place& place : places) attempt(summary, std::vector<Place>{place}, primitive);
}

std::vector<Subgraph> as_list(const Matches& matches) { return {matches.begin(), matches.end()}; }

void require_rewrites(const Summary& summary, const char* schedule) {
  TENON_CHECK(summary.rewritten > 0, ScheduleError, "schedules::{} found nothing to rewrite{}",
              schedule,
              summary.refused.empty() ? std::string()
                                      : fmt::format(": {}", fmt::join(summary.refused, "; ")));
}

bool is_linear(const Node& node) { return node.op->name == "linear"; }

void fuse_linears_of_one_input(Schedule& sch, Summary& summary) {
  std::map<ValueId, std::vector<Subgraph>> by_input;
  for (const Subgraph& match : sch.find(is_linear)) by_input[match.inputs.at(0)].push_back(match);
  std::vector<std::vector<Subgraph>> groups;
  for (auto& [input, linears] : by_input) {
    if (linears.size() > 1) groups.push_back(std::move(linears));
  }
  attempt(summary, groups, [&](const std::vector<std::vector<Subgraph>>& chosen) {
    std::vector<Subgraph> all;
    for (const auto& group : chosen) all.insert(all.end(), group.begin(), group.end());
    sch.fuse_parallel({std::move(all), {}});
  });
}

enum class ScaleForm { divided, multiplied, query_divided, query_multiplied, none };
enum class MaskForm { none, added, filled };

/// One way of writing attention down.
struct Spelling {
  ScaleForm scale;
  MaskForm mask;
  bool drops;

  Tensor scores(const Tensor& q, const Tensor& k) const {
    const Tensor keys = k.transpose(-2, -1);
    switch (scale) {
      case ScaleForm::divided: return matmul(q, keys) / Any(kScale);
      case ScaleForm::multiplied: return matmul(q, keys) * Any(kScale);
      case ScaleForm::query_divided: return matmul(q / Any(kScale), keys);
      case ScaleForm::query_multiplied: return matmul(q * Any(kScale), keys);
      case ScaleForm::none: break;
    }
    return matmul(q, keys);
  }

  Tensor attend(const Tensor& masked_scores, const Tensor& v) const {
    const Tensor probabilities = softmax(masked_scores, -1);
    return matmul(drops ? dropout(probabilities, Any(kDropout)) : probabilities, v);
  }

  Matches find(const Schedule& sch) const {
    if (mask == MaskForm::none) {
      return sch.find([this](const Tensor& q, const Tensor& k, const Tensor& v) {
        return attend(scores(q, k), v);
      });
    }
    return sch.find([this](const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& m) {
      const Tensor s = scores(q, k);
      return attend(mask == MaskForm::added ? s + m : masked_fill(s, m, kHidden), v);
    });
  }

  /// The factor on the scores, or nothing when it is no number.
  std::optional<double> factor(const Subgraph& match) const {
    if (scale == ScaleForm::none) return 1.0;
    const auto number = captured(match, kScale);
    const bool divides = scale == ScaleForm::divided || scale == ScaleForm::query_divided;
    return number && divides ? std::optional(1 / *number) : number;
  }
};

std::vector<Spelling> spellings() {
  std::vector<Spelling> list;
  for (const ScaleForm scale : {ScaleForm::divided, ScaleForm::multiplied, ScaleForm::query_divided,
                                ScaleForm::query_multiplied, ScaleForm::none}) {
    for (const MaskForm mask : {MaskForm::none, MaskForm::added, MaskForm::filled}) {
      for (const bool drops : {true, false}) list.push_back({scale, mask, drops});
    }
  }
  return list;
}

/// Bool values that are true exactly where a key comes after the query: triu(1, 1) > 0.
std::set<ValueId> causal_masks(const Schedule& sch) {
  std::set<ValueId> masks;
  const Matches found = sch.find([](const Tensor& one) {
    return gt(triu(one.expand({Dim(any()), Dim(any())}), 1), 0);
  });
  for (const Subgraph& match : found) {
    const Value& one = sch.graph().value(match.inputs[0]);
    const bool positive = one.kind == ValueKind::constant && one.tensor.layout().numel() == 1 &&
                          one.tensor.to_doubles()[0] > 0;
    if (positive) masks.insert(match.outputs[0]);
  }
  return masks;
}

bool is_causal(const Schedule& sch, const Subgraph& match, const std::set<ValueId>& masks) {
  if (match.inputs.size() < 4 || !masks.contains(match.inputs[3])) return false;
  const auto shape = [&](int i) { return sch.graph().value(match.inputs[i]).spec.shape; };
  const Shape mask = shape(3);
  return mask[-2].same_as(shape(0)[-2]) && mask[-1].same_as(shape(1)[-2]) &&
         mask[-1].same_as(mask[-2]);
}

/// What stands for one spelling with these numbers.
void replace_by_kernel(Schedule& sch, const Matches& matches, MaskForm mask,
                       const AttentionOptions& options) {
  const ReplaceOptions name{.name = "attention"};
  if (mask == MaskForm::none) {
    sch.replace(
        [options](const Tensor& q, const Tensor& k, const Tensor& v) {
          return scaled_dot_product_attention(q, k, v, {}, options);
        },
        matches, name);
    return;
  }
  // A filled mask hides where it is true; attention's lets through where it is true.
  const bool inverted = mask == MaskForm::filled;
  sch.replace(
      [options, inverted](const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& m) {
        const Tensor given = options.is_causal ? Tensor() : inverted ? eq(m, 0) : m;
        return scaled_dot_product_attention(q, k, v, given, options);
      },
      matches, name);
}

void replace_attention(Schedule& sch, Summary& summary, const std::set<ValueId>& causal) {
  for (const Spelling& spelling : spellings()) {
    std::map<std::tuple<double, double, bool>, std::vector<Subgraph>> by_numbers;
    for (const Subgraph& match : spelling.find(sch)) {
      const auto scale = spelling.factor(match);
      const auto drop = captured(match, kDropout);
      if (!scale || (spelling.drops && !drop)) continue;
      by_numbers[{drop.value_or(0), *scale, is_causal(sch, match, causal)}].push_back(match);
    }
    for (const auto& [numbers, matches] : by_numbers) {
      const auto [drop, scale, masks_later] = numbers;
      const AttentionOptions options{drop, masks_later, scale};
      attempt(summary, matches, [&](const std::vector<Subgraph>& chosen) {
        replace_by_kernel(sch, {chosen, {}}, spelling.mask, options);
      });
    }
  }
}

Tensor ordered(const Tensor& x, const std::vector<std::int64_t>& order) {
  return std::is_sorted(order.begin(), order.end()) ? x : permute(x, order);
}

/// Keys and values whose heads are repeated for groups of the query's are read where they are.
void read_groups_once(Schedule& sch, Summary& summary) {
  using Numbers =
      std::tuple<std::string, std::vector<std::int64_t>, std::vector<std::int64_t>, bool>;
  std::map<Numbers, std::vector<detail::GroupedAttention>> by_numbers;
  for (auto& call : detail::find_grouped_attention(sch.graph(), sch.path())) {
    call.attrs.site = 0;  // replace carries sites over
    const bool masked = call.match.inputs.size() > 3;
    by_numbers[{Attrs(call.attrs).to_string(), call.key_order, call.value_order, masked}].push_back(
        std::move(call));
  }
  for (const auto& [numbers, calls] : by_numbers) {
    const auto attend = [call = calls[0]](const Tensor& q, const Tensor& k, const Tensor& v,
                                          const Tensor& mask) {
      const Tensor operands[] = {q, ordered(k, call.key_order), ordered(v, call.value_order), mask};
      return apply(get_op("scaled_dot_product_attention"), operands, call.attrs).at(0);
    };
    std::vector<Subgraph> matches;
    for (const auto& call : calls) matches.push_back(call.match);
    attempt(summary, matches, [&](const std::vector<Subgraph>& chosen) {
      const ReplaceOptions name{.name = "grouped_attention"};
      if (std::get<bool>(numbers)) return sch.replace(attend, {chosen, {}}, name);
      sch.replace([attend](const Tensor& q, const Tensor& k,
                           const Tensor& v) { return attend(q, k, v, {}); },
                  {chosen, {}}, name);
    });
  }
}

void fuse_attention(Schedule& sch, Summary& summary, const std::set<ValueId>& causal) {
  fuse_linears_of_one_input(sch, summary);
  replace_attention(sch, summary, causal);
  read_groups_once(sch, summary);
}

/// Splits the product from the bias in the linear node that starts each match, so that the rest can
/// be fused with the bias.
void decompose_linears(Schedule& sch, const Matches& matches, Summary& summary) {
  std::set<NodeId> wanted;
  for (const Subgraph& match : matches) wanted.insert(match.nodes.begin(), match.nodes.end());
  std::vector<Subgraph> linears;
  for (const Subgraph& match : sch.find(is_linear)) {
    if (wanted.contains(match.nodes[0])) linears.push_back(match);
  }
  Summary splits;
  attempt(splits, linears, [&](const std::vector<Subgraph>& chosen) {
    sch.decompose({chosen, {}});
  });
  summary.refused.insert(summary.refused.end(), splits.refused.begin(), splits.refused.end());
}

void fuse_residual_norms(Schedule& sch, Summary& summary) {
  decompose_linears(sch,
                    sch.find([](const Tensor& x, const Tensor& w, const Tensor& b,
                                const Tensor& residual, const Tensor& weight, const Tensor& bias) {
                      return layer_norm(dropout(linear(x, w, b), any()) + residual, weight, bias,
                                        any());
                    }),
                    summary);
  const Matches tails = sch.find([](const Tensor& x, const Tensor& b, const Tensor& residual,
                                    const Tensor& weight, const Tensor& bias) {
    return layer_norm(dropout(x + b, any()) + residual, weight, bias, any());
  });
  attempt(summary, as_list(tails), [&](const std::vector<Subgraph>& chosen) {
    sch.fuse({chosen, {}}, {.name = "FusedResidualNorm"});
  });
}

/// Of the matches, those whose result is not a factor: silu(gate) * up is one kernel on its own, which
/// an activation inside the product would only add a matrix to.
std::vector<Subgraph> that_are_no_gates(const Schedule& sch, const Matches& matches) {
  std::vector<Subgraph> chosen;
  for (const Subgraph& match : matches) {
    const auto& uses = sch.graph().value(match.outputs[0]).uses;
    const bool gates = std::any_of(uses.begin(), uses.end(), [&](const Use& use) {
      return sch.graph().node(use.node).op->name == "mul";
    });
    if (!gates) chosen.push_back(match);
  }
  return chosen;
}

/// Activations that a product can end in, with a bias and without.
void fuse_activations(Schedule& sch, Summary& summary) {
  using Activation = Tensor (*)(const Tensor&);
  using Product = Tensor (*)(const Tensor&, const Tensor&, const Tensor&);
  struct Ending {
    const char* name;
    Activation activation;
    Product product;
  };
  const Ending endings[] = {
      {"FusedLinearGELU", [](const Tensor& x) { return gelu(x); },
       [](const Tensor& x, const Tensor& w, const Tensor& b) { return linear_gelu(x, w, b); }},
      {"FusedLinearGELU", [](const Tensor& x) { return gelu(x, Approximate::tanh); },
       [](const Tensor& x, const Tensor& w, const Tensor& b) {
         return linear_gelu(x, w, b, Approximate::tanh);
       }},
      {"FusedLinearReLU", relu, linear_relu},
      {"FusedLinearSiLU", silu, linear_silu}};
  for (const Ending& ending : endings) {
    const ReplaceOptions name{.name = ending.name};
    const Matches biased = sch.find([&](const Tensor& x, const Tensor& w, const Tensor& b) {
      return ending.activation(linear(x, w, b));
    });
    attempt(summary, that_are_no_gates(sch, biased), [&](const std::vector<Subgraph>& chosen) {
      sch.fuse({chosen, {}}, {.name = ending.name});
    });
    const Matches plain =
        sch.find([&](const Tensor& x, const Tensor& w) { return ending.activation(linear(x, w)); });
    const Product product = ending.product;
    attempt(summary, that_are_no_gates(sch, plain), [&](const std::vector<Subgraph>& chosen) {
      sch.replace([product](const Tensor& x, const Tensor& w) { return product(x, w, {}); },
                  {chosen, {}}, name);
    });
  }
}

/// Of the matches, those whose dropout, if the pattern has one, never drops anything.
std::vector<Subgraph> that_drop_nothing(const Matches& matches) {
  std::vector<Subgraph> chosen;
  for (const Subgraph& match : matches) {
    if (captured(match, kDropout).value_or(0) == 0) chosen.push_back(match);
  }
  return chosen;
}

/// residual + linear(x): what a block adds to its input.
void fuse_residuals(Schedule& sch, Summary& summary) {
  const ReplaceOptions name{.name = "FusedLinearResidual"};
  for (const bool drops : {false, true}) {
    const auto branch = [drops](const Tensor& y) { return drops ? dropout(y, Any(kDropout)) : y; };
    const Matches biased =
        sch.find([&](const Tensor& x, const Tensor& w, const Tensor& b, const Tensor& residual) {
          return residual + branch(linear(x, w, b));
        });
    attempt(summary, that_drop_nothing(biased), [&](const std::vector<Subgraph>& chosen) {
      sch.replace(linear_residual, {chosen, {}}, name);
    });
    const Matches plain = sch.find([&](const Tensor& x, const Tensor& w, const Tensor& residual) {
      return residual + branch(linear(x, w));
    });
    attempt(summary, that_drop_nothing(plain), [&](const std::vector<Subgraph>& chosen) {
      sch.replace([](const Tensor& x, const Tensor& w,
                     const Tensor& residual) { return linear_residual(x, w, {}, residual); },
                  {chosen, {}}, name);
    });
  }
}

/// silu(gate)·up, the middle of a gated feed-forward part.
void fuse_gates(Schedule& sch, Summary& summary) {
  std::vector<Subgraph> gates;
  for (const Subgraph& match :
       sch.find([](const Tensor&gate, const Tensor&up) { return silu(gate) * up; })) {
    const TensorSpec& gate = sch.graph().value(match.inputs[0]).spec;
    const TensorSpec& up = sch.graph().value(match.inputs[1]).spec;
    if (gate.shape.same_as(up.shape) && gate.dtype == up.dtype) gates.push_back(match);
  }
  attempt(summary, gates, [&](const std::vector<Subgraph>& chosen) {
    sch.replace(silu_mul, {chosen, {}}, {.name = "FusedSiluMul"});
  });
}

/// Whether the pieces that the match takes of rows are their halves, the second of which is negated, and
/// nothing but x has its shape.
bool turns_halves(const Graph& graph, const Subgraph& match) {
  const TensorSpec& x = graph.value(match.inputs.at(0)).spec;
  const TensorSpec& result = graph.value(match.outputs.at(0)).spec;
  for (const ValueId table : {match.inputs.at(1), match.inputs.at(2)}) {
    if (graph.value(table).spec.dtype != x.dtype) return false;
  }
  if (x.shape.empty() || !result.shape.same_as(x.shape)) return false;
  const Dim& width = x.shape[-1];
  for (const NodeId id : match.nodes) {
    const Node& node = graph.node(id);
    if (node.op->name != "narrow") continue;
    const auto& piece = node.attrs.as<NarrowAttrs>();
    const NodeId user = graph.value(node.outputs[0]).uses.at(0).node;
    const bool is_second = graph.node(user).op->name == "neg";
    if (!(piece.length * 2).same_as(width)) return false;
    if (!piece.start.same_as(is_second ? piece.length : Dim(0))) return false;
  }
  return true;
}

/// x·cos + [-b a]·sin for the halves a and b of rows: rotary positions.
void fuse_rotations(Schedule& sch, Summary& summary) {
  std::vector<Subgraph> rotations;
  const Matches found = sch.find([](const Tensor& x, const Tensor& cos, const Tensor& sin) {
    const Tensor a = narrow(x, -1, Dim(any()), Dim(any()));
    const Tensor b = narrow(x, -1, Dim(any()), Dim(any()));
    return x * cos + cat({neg(b), a}, -1) * sin;
  });
  for (const Subgraph& match : found) {
    if (turns_halves(sch.graph(), match)) rotations.push_back(match);
  }
  attempt(summary, rotations, [&](const std::vector<Subgraph>& chosen) {
    sch.replace(rotary_embedding, {chosen, {}}, {.name = "FusedRotary"});
  });
}

/// One way of writing down the loss of a classifier's last layer.
struct LossSpelling {
  enum class Logits { plain, cast, viewed, cast_viewed, viewed_cast };
  Logits logits;      // to float32, as rows, and in which order
  bool views_target;  // targets as rows
  Reduction reduction;

  Matches find(const Schedule& sch) const {
    return sch.find([this](const Tensor& x, const Tensor& weight, const Tensor& target) {
      const auto rows = [](const Tensor& y) { return view(y, {Dim(any()), Dim(any())}); };
      const auto wide = [](const Tensor& y) { return cast(y, DType::float32); };
      Tensor y = linear(x, weight);
      switch (logits) {
        case Logits::plain: break;
        case Logits::cast: y = wide(y); break;
        case Logits::viewed: y = rows(y); break;
        case Logits::cast_viewed: y = rows(wide(y)); break;
        case Logits::viewed_cast: y = wide(rows(y)); break;
      }
      return cross_entropy(y, views_target ? view(target, {Dim(any())}) : target,
                           {Any(kIgnoreIndex), reduction, Any(kSmoothing)});
    });
  }
};

std::vector<LossSpelling> loss_spellings() {
  std::vector<LossSpelling> list;
  using enum LossSpelling::Logits;
  for (const auto logits : {plain, cast, viewed, cast_viewed, viewed_cast}) {
    for (const bool views_target : {true, false}) {
      for (const Reduction reduction : {Reduction::mean, Reduction::sum}) {
        list.push_back({logits, views_target, reduction});
      }
    }
  }
  return list;
}

/// Whether the match's logits keep the classes last, and the loss would have the dtype it has.
bool keeps_classes_last(const Schedule& sch, const Subgraph& match) {
  const auto spec = [&](ValueId id) { return sch.graph().value(id).spec; };
  const Dim classes = spec(match.inputs.at(1)).shape[0];
  const DType dtype = spec(match.inputs[0]).dtype;
  const DType loss = dtype == DType::float64 ? DType::float64 : DType::float32;
  if (spec(match.outputs.at(0)).dtype != loss) return false;
  for (NodeId id : match.nodes) {
    const Node& node = sch.graph().node(id);
    if (node.op->name == "cross_entropy") return spec(node.inputs[0]).shape[-1].same_as(classes);
  }
  return false;
}

void fuse_loss(Schedule& sch, Summary& summary) {
  for (const LossSpelling& spelling : loss_spellings()) {
    for (const Subgraph& match : spelling.find(sch)) {
      const auto ignored = captured(match, kIgnoreIndex);
      const auto smoothing = captured(match, kSmoothing);
      if (!ignored || !smoothing || !keeps_classes_last(sch, match)) continue;
      const CrossEntropyOptions options{static_cast<std::int64_t>(*ignored), spelling.reduction,
                                        *smoothing};
      attempt(summary, std::vector{match}, [&](const std::vector<Subgraph>& chosen) {
        sch.replace(
            [options](const Tensor& x, const Tensor& weight, const Tensor& target) {
              return linear_cross_entropy(reshape(x, {-1, x.size(-1)}), weight,
                                          reshape(target, {-1}), options);
            },
            {chosen, {}}, {.name = "loss"});
      });
    }
  }
}

/// Of matches whose last input is a residual, those where it has the first one's shape.
std::vector<Subgraph> of_one_shape(const Schedule& sch, const Matches& matches) {
  std::vector<Subgraph> chosen;
  for (const Subgraph& match : matches) {
    const Shape& x = sch.graph().value(match.inputs.front()).spec.shape;
    const Shape& residual = sch.graph().value(match.inputs.back()).spec.shape;
    bool same = x.rank() == residual.rank();
    for (int axis = 0; same && axis < x.rank(); ++axis) same = x[axis].same_as(residual[axis]);
    if (same) chosen.push_back(match);
  }
  return chosen;
}

/// Of those that a pattern allows for.
std::vector<Tensor> all_results(std::vector<Tensor> results) {
  constexpr std::size_t kResults = 5;
  results.resize(kResults);
  return results;
}

/// All results of batch_norm, the new running statistics among them, with any momentum and epsilon.
std::vector<Tensor> norm_results(std::span<const Tensor> operands, DropoutMode mode) {
  return all_results(apply(get_op("batch_norm"), operands, BatchNormAttrs{mode, Any(0), Any(1)}));
}

/// Into the convolutions and Linears before them; others stay for fuse_batch_norms.
void fold_batch_norms(Schedule& sch, Summary& summary) {
  const Matches norms = sch.find([](const Node& node) {
    return node.op->name == "batch_norm" &&
           node.attrs.as<BatchNormAttrs>().mode != DropoutMode::train;
  });
  attempt(summary, as_list(norms), [&](const std::vector<Subgraph>& chosen) {
    sch.fold({chosen, {}});
  });
}

/// Of the one convolution in a match.
Conv2dAttrs windows_of(const Schedule& sch, const Subgraph& match) {
  for (const NodeId id : match.nodes) {
    const Node& node = sch.graph().node(id);
    if (node.op->name == "conv2d") return node.attrs.as<Conv2dAttrs>();
  }
  detail::fail<ScheduleError>("there is no conv2d in the match");
}

/// Puts `replacement(windows)` in place of what `find` gives, those of one kind of windows at a time:
/// each replacement changes what others read.
template <class Find, class Replacement>
void replace_convolutions(Schedule& sch, Summary& summary, const Find& find,
                          const Replacement& replacement) {
  std::set<std::string> tried;
  while (true) {
    std::vector<Subgraph> alike;
    std::string kind;
    for (const Subgraph& match : find()) {
      const std::string text = Attrs(windows_of(sch, match)).to_string();
      if (alike.empty() && tried.insert(text).second) kind = text;
      if (text == kind) alike.push_back(match);
    }
    if (alike.empty()) return;
    const Conv2dAttrs windows = windows_of(sch, alike.front());
    attempt(summary, alike, [&](const std::vector<Subgraph>& chosen) {
      sch.replace(replacement(windows), {chosen, {}}, {.name = "FusedConvReLU"});
    });
  }
}

/// relu(conv2d(x) + residual) and relu(conv2d(x)), as folding leaves them.
void fuse_activated_convolutions(Schedule& sch, Summary& summary) {
  static const Op& op = get_op("conv2d_relu");
  const Conv2dAttrs any_windows{{any()}, {any()}, {any()}, any()};
  const auto ends = [&] {
    std::vector<Subgraph> chosen;
    for (const Subgraph& match :
         sch.find([&](const Tensor&x, const Tensor&f, const Tensor&b, const Tensor&residual) {
           return relu(ops::conv2d_with(x, f, b, any_windows) + residual);
         })) {
      const Shape& result = sch.graph().value(match.outputs[0]).spec.shape;
      const Shape& residual = sch.graph().value(match.inputs.back()).spec.shape;
      bool same = residual.rank() == result.rank();
      for (int i = 0; same && i < result.rank(); ++i) same = residual[i].same_as(result[i]);
      if (same) chosen.push_back(match);
    }
    return chosen;
  };
  replace_convolutions(sch, summary, ends, [](const Conv2dAttrs& windows) {
    return [windows](const Tensor& x, const Tensor& f, const Tensor& b, const Tensor& residual) {
      return apply1(op, {x, f, b, residual}, windows);
    };
  });
  const auto plain = [&] {
    return as_list(sch.find([&](const Tensor& x, const Tensor& f, const Tensor& b) {
      return relu(ops::conv2d_with(x, f, b, any_windows));
    }));
  };
  replace_convolutions(sch, summary, plain, [](const Conv2dAttrs& windows) {
    return [windows](const Tensor& x, const Tensor& f, const Tensor& b) {
      return apply1(op, {x, f, b, Tensor()}, windows);
    };
  });
}

void fuse_batch_norms(Schedule& sch, Summary& summary) {
  for (const DropoutMode mode : {DropoutMode::follow, DropoutMode::train, DropoutMode::eval}) {
    const Matches added =
        sch.find([mode](const Tensor& x, const Tensor& mean, const Tensor& var, const Tensor& w,
                        const Tensor& b, const Tensor& residual) {
          const Tensor operands[] = {x, mean, var, w, b};
          std::vector<Tensor> results = norm_results(operands, mode);
          results[0] = relu(results[0] + residual);
          return results;
        });
    attempt(summary, of_one_shape(sch, added), [&](const std::vector<Subgraph>& chosen) {
      sch.fuse({chosen, {}}, {.name = "FusedNormAddReLU"});
    });
    const Matches plain = sch.find([mode](const Tensor& x, const Tensor& mean, const Tensor& var,
                                          const Tensor& w, const Tensor& b) {
      const Tensor operands[] = {x, mean, var, w, b};
      std::vector<Tensor> results = norm_results(operands, mode);
      results[0] = relu(results[0]);
      return results;
    });
    attempt(summary, as_list(plain), [&](const std::vector<Subgraph>& chosen) {
      sch.fuse({chosen, {}}, {.name = "FusedNormReLU"});
    });
  }
}

}  // namespace

Summary attention(Schedule sch) {
  Summary summary;
  fuse_attention(sch, summary, {});
  require_rewrites(summary, "attention");
  return summary;
}

Summary transformer_encoder(Schedule sch) {
  Summary summary;
  fuse_attention(sch, summary, {});
  sch.trace({.flatten = true});
  fuse_residual_norms(sch, summary);
  fuse_activations(sch, summary);
  fuse_gates(sch, summary);
  fuse_rotations(sch, summary);
  fuse_residuals(sch, summary);
  require_rewrites(summary, "transformer_encoder");
  return summary;
}

Summary gpt(Schedule sch) {
  Summary summary;
  fuse_attention(sch, summary, causal_masks(sch));
  sch.trace({.flatten = true});
  fuse_activations(sch, summary);
  fuse_gates(sch, summary);
  fuse_rotations(sch, summary);
  fuse_residuals(sch, summary);
  fuse_loss(sch, summary);
  require_rewrites(summary, "gpt");
  return summary;
}

Summary convolutional(Schedule sch) {
  Summary summary;
  sch.trace({.flatten = true});
  if (!sch.model().training()) {  // what it computes then is for evaluation alone
    fold_batch_norms(sch, summary);
    fuse_activated_convolutions(sch, summary);
  }
  fuse_batch_norms(sch, summary);
  require_rewrites(summary, "convolutional");
  return summary;
}

}  // namespace tenon::schedules
