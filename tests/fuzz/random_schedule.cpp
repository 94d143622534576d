#include "tests/fuzz/random_schedule.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>

#include "schedule/schedules.h"
#include "tests/fuzz/function_tables.h"
#include "tests/fuzz/random_model.h"

namespace tenon::fuzz {
namespace {

/// Steps at one place of the model, which keep their order.
using Sequence = std::vector<Step>;

/// What the generator planted must be found: nothing to replace is a finding as well.
Matches require(Matches matches, std::size_t at_least = 1) {
  if (matches.size() < at_least) {
    throw ScheduleError(fmt::format("{} matches of what was planted; needed {}: {}", matches.size(),
                                    at_least, matches.explain()));
  }
  return matches;
}

Step make_step(const std::string& path, const std::string& what,
               std::function<void(Schedule)> apply) {
  return {fmt::format("{}: {}", path.empty() ? "model" : path, what),
          [path, apply = std::move(apply)](Schedule& root) {
            apply(path.empty() ? root : root[path]);
          }};
}

Tensor composed_layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  const Tensor centred = x - mean(x, {-1}, true);
  return centred * rsqrt(mean(square(centred), {-1}, true) + 1e-5) * weight + bias;
}

Tensor composed_activation(Activation activation, const Tensor& x) {
  const auto of = [&](const char* name) {
    for (const FunctionEntry& entry : pointwise_table()) {
      if (std::string_view(entry.name) == name) return entry.equal(x);
    }
    throw ValueError(fmt::format("no function '{}' in the table", name));
  };
  switch (activation) {
    case Activation::relu: return of("relu");
    case Activation::silu: return of("silu");
    case Activation::gelu_tanh: return of("gelu_tanh");
    default: return of("gelu");
  }
}

Tensor called_activation(Activation activation, const Tensor& x) {
  switch (activation) {
    case Activation::relu: return relu(x);
    case Activation::silu: return silu(x);
    case Activation::gelu_tanh: return gelu(x, Approximate::tanh);
    default: return gelu(x);
  }
}

bool has_tail(const BlockProgram& b) {
  return b.kind == BlockKind::attention || b.kind == BlockKind::cross_attention ||
         b.kind == BlockKind::mlp || b.kind == BlockKind::parallel;
}

/// What transformer_encoder finds to rewrite, at least.
bool has_fusible_tail(const std::vector<BlockProgram>& blocks) {
  return std::any_of(blocks.begin(), blocks.end(), [](const BlockProgram& b) {
    return has_tail(b) && b.tail == TailKind::norm && b.bias && !b.frozen;
  });
}

bool has_layer_norm(const std::vector<BlockProgram>& blocks) {
  return std::any_of(blocks.begin(), blocks.end(), [](const BlockProgram& b) {
    return b.pre_norm == NormKind::layer || (has_tail(b) && b.tail == TailKind::norm) ||
           has_layer_norm(b.inner);
  });
}

WeightMap weights_of_projections(bool bias) {
  WeightMap weights = {{"fused.weight", cat("q_proj.weight", "k_proj.weight", "v_proj.weight")}};
  if (bias) weights.emplace("fused.bias", cat("q_proj.bias", "k_proj.bias", "v_proj.bias"));
  return weights;
}

auto nodes_of_op(std::string op) {
  return [op = std::move(op)](const Node& node) { return node.op->name == op; };
}

class Drawing {
 public:
  Drawing(RandomSource& source, const ModelProgram& program) : source_(source), program_(program) {}

  std::vector<Step> schedule() {
    if (!program_.tokens && likely()) decompose("stem");
    for (std::size_t i = 0; i < program_.blocks.size(); ++i) {
      block(program_.blocks[i], fmt::format("blocks.{}", i));
    }
    if (source_.chance(10) && has_fusible_tail(program_.blocks)) {
      return {make_step("", "transformer_encoder",
                        [](Schedule sch) { schedules::transformer_encoder(sch); })};
    }
    std::vector<Step> steps;
    if (has_layer_norm(program_.blocks) && source_.chance(10)) {
      steps.push_back(replace_every_norm());
    }
    for (Step& step : interleaved()) steps.push_back(std::move(step));
    finish(steps);
    return steps;
  }

 private:
  static Step replace_every_norm() {
    return make_step("", "replace_all LayerNorm", [](Schedule sch) {
      sch.replace_all<nn::LayerNorm>([](const std::string&, nn::LayerNorm& old) {
        return nn::make<nn::LayerNorm>(old.normalized_shape, old.eps);
      });
    });
  }

  /// What stands in the way of patterns comes last.
  void finish(std::vector<Step>& steps) {
    for (std::size_t i = 0; i < program_.blocks.size(); ++i) {
      const std::string path = fmt::format("blocks.{}", i);
      if (!checkpointed_ && source_.chance(25)) {
        steps.push_back(make_step(path, "checkpoint", [](Schedule sch) { sch.checkpoint(); }));
      }
      if (source_.chance(10)) {
        steps.push_back(make_step(path, "print", [](Schedule sch) { sch.print("fuzz"); }));
      }
      if (source_.chance(10)) steps.push_back(print_and_undo(path));
      if (has_tail(program_.blocks[i]) && source_.chance(10)) {
        steps.push_back(make_step(path, "annotate", [](Schedule sch) {
          sch.annotate("tail.dense.weight", "key", "value");
          if (sch.annotation("tail.dense.weight", "key") != "value") {
            throw ScheduleError("the annotation is not there");
          }
        }));
      }
    }
    if (source_.chance(15)) {
      steps.push_back(
          make_step("", "trace flatten", [](Schedule sch) { sch.trace({.flatten = true}); }));
    }
  }

  static Step print_and_undo(const std::string& path) {
    Step step = make_step(path, "print, then undo", [](Schedule sch) {
      const std::string before = to_text(sch.graph());
      sch.print("undone");
      if (to_text(sch.graph()) == before) throw ScheduleError("print left the Graph as it was");
      sch.undo();
      if (to_text(sch.graph()) != before) throw ScheduleError("undo left another Graph");
    });
    step.also = "undo";
    return step;
  }

  /// All of the Linears that `regex` names and that have, or lack, a bias alike.
  void fuse_parallel(const std::string& path, const std::string& regex, std::size_t count) {
    sequences_.push_back({make_step(path, "fuse_parallel " + regex, [regex, count](Schedule sch) {
      sch.fuse_parallel(require(sch.find(regex), count));
    })});
  }

  bool likely() { return source_.chance(75); }

  void block(const BlockProgram& b, const std::string& path) {
    const bool only_norm = b.tail != TailKind::norm && b.inner.empty();
    if (b.pre_norm == NormKind::layer && only_norm && source_.chance(60)) replace_layer_norm(path);
    if (has_tail(b)) sequences_.push_back(tail(b, path + ".tail"));
    switch (b.kind) {
      case BlockKind::attention:
      case BlockKind::cross_attention: attention(b, path + ".attn"); break;
      case BlockKind::mlp: mlp(b, path); break;
      case BlockKind::parallel: parallel(b, path); break;
      case BlockKind::pointwise: functions(b, path, pointwise_table()); break;
      case BlockKind::shapes: functions(b, path, shape_table()); break;
      default: break;
    }
    // Twice the same memory: k and v of both calls would be joined, and they share their weights.
    in_twice_ = b.kind == BlockKind::twice;
    for (std::size_t i = 0; i < b.inner.size(); ++i) {
      block(b.inner[i], fmt::format("{}.inner.{}", path, i));
    }
    in_twice_ = false;
  }

  void decompose(const std::string& path) {
    sequences_.push_back({make_step(path, "decompose", [](Schedule sch) { sch.decompose(); })});
  }

  void replace_layer_norm(const std::string& path) {
    sequences_.push_back({make_step(path, "replace layer_norm", [](Schedule sch) {
      const auto pattern = [](const Tensor& x, const Tensor& w, const Tensor& b) {
        return layer_norm(x, w, b);
      };
      sch.replace(composed_layer_norm, require(sch.find(pattern)));
    })});
  }

  void attention(const BlockProgram& b, const std::string& path) {
    const bool equal_projections =
        b.kv_heads == b.heads && b.q_bias == b.k_bias && b.k_bias == b.v_bias;
    if (b.kind == BlockKind::attention && equal_projections && likely()) {
      const bool mapped = source_.chance(40);
      sequences_.push_back(
          {make_step(path, mapped ? "replace projections by a weight map" : "replace projections",
                     [b, mapped, hidden = program_.hidden](Schedule sch) {
                       const auto pattern = [&](const Tensor& x) {
                         return split_heads(call_module("[qkv]_proj", x), b.heads);
                       };
                       ReplaceOptions options;
                       if (mapped) options.weights = weights_of_projections(b.q_bias);
                       sch.replace(nn::make<FusedProjections>(b, hidden),
                                   require(sch.find(pattern), 3), options);
                     })});
    } else if (b.kind == BlockKind::attention && b.q_bias == b.k_bias && b.k_bias == b.v_bias &&
               source_.chance(50)) {
      fuse_parallel(path, "[qkv]_proj", 3);
    } else if (b.k_bias == b.v_bias && !in_twice_ && source_.chance(40)) {
      fuse_parallel(path, "[kv]_proj", 2);
    } else if (b.q_bias && source_.chance(40)) {
      decompose(path + ".q_proj");
    } else if (source_.chance(40)) {
      replace_linear(path, "k_proj", program_.hidden, b.kv_heads * b.head_dim, b.k_bias);
    }
    if (!likely()) {
      if (source_.chance(40)) checkpoint_attention(b, path);
      return;
    }
    sequences_.push_back({make_step(path, "replace attention", [b](Schedule sch) {
      if (b.mask == MaskKind::none) {
        const auto pattern = [&](const Tensor& q, const Tensor& k, const Tensor& v) {
          return composed_attention(b, q, k, v, Tensor());
        };
        const auto fused = [b](const Tensor& q, const Tensor& k, const Tensor& v) {
          return fused_attention(b, q, k, v, Tensor());
        };
        sch.replace(fused, require(sch.find(pattern)));
        return;
      }
      const auto pattern = [&](const Tensor& q, const Tensor& k, const Tensor& v,
                               const Tensor& mask) { return composed_attention(b, q, k, v, mask); };
      const auto fused = [b](const Tensor& q, const Tensor& k, const Tensor& v,
                             const Tensor& mask) { return fused_attention(b, q, k, v, mask); };
      sch.replace(fused, require(sch.find(pattern)));
    })});
  }

  void checkpoint_attention(const BlockProgram& b, const std::string& path) {
    checkpointed_ = true;
    sequences_.push_back({make_step(path, "checkpoint softmax and dropout", [b](Schedule sch) {
      const auto pattern = [&](const Tensor& scores, const Tensor& v) {
        const Tensor p = softmax(scores, -1);
        return matmul(b.attention_dropout == 0 ? p : dropout(p, any()), v);
      };
      sch.checkpoint(require(sch.find(pattern)));
    })});
  }

  void replace_linear(const std::string& path, const std::string& name, std::int64_t in,
                      std::int64_t out, bool bias) {
    sequences_.push_back({make_step(path, "replace " + name, [name, in, out, bias](Schedule sch) {
      sch.replace(nn::make<nn::Linear>(in, out, bias), require(sch.find(name)));
    })});
  }

  /// Behind the tail's steps: once the block is flattened, its tail is a closed leaf.
  void mlp(const BlockProgram& b, const std::string& path) {
    const bool is_gelu = b.activation == Activation::gelu || b.activation == Activation::gelu_tanh;
    if (b.bias && is_gelu && likely()) {
      Sequence& steps = sequences_.back();
      steps.push_back(make_step(path + ".up", "decompose", [](Schedule sch) { sch.decompose(); }));
      steps.push_back(make_step(path, "trace flatten", [](Schedule sch) {
        sch.trace({.flatten = true, .leaf_modules = {"RandomTail"}});
      }));
      if (find_op("bias_gelu") != nullptr) {
        steps.push_back(make_step(path, "fuse bias and gelu", [b](Schedule sch) {
          const auto pattern = [&](const Tensor& x, const Tensor& bias) {
            return called_activation(b.activation, x + bias);
          };
          sch.fuse(require(sch.find(pattern)), {.name = "BiasGelu"});
        }));
      }
      return;
    }
    if (likely()) {
      sequences_.push_back({make_step(path, "replace activation", [b](Schedule sch) {
        const auto pattern = [&](const Tensor& x) { return called_activation(b.activation, x); };
        const auto composed = [a = b.activation](const Tensor& x) {
          return composed_activation(a, x);
        };
        sch.replace(composed, require(sch.find(pattern)));
      })});
    }
    if (b.gated && source_.chance(60)) {
      fuse_parallel(path, "up|gate", 2);
    } else if (b.bias && source_.chance(40)) {
      sequences_.push_back({make_step(path + ".up", "replace module, weight transposed",
                                      [in = program_.hidden, out = b.width](Schedule sch) {
                                        sch.replace(
                                            nn::make<TransposedLinear>(in, out),
                                            {.weights = {{"transposed", transpose("weight", 0, 1)},
                                                         {"shift", "bias"}}});
                                      })});
    } else if (likely()) {
      replace_linear(path, "up", program_.hidden, b.width, b.bias);
    }
  }

  void parallel(const BlockProgram& b, const std::string& path) {
    const bool alike = std::adjacent_find(b.biases.begin(), b.biases.end(),
                                          std::not_equal_to<>()) == b.biases.end();
    if (alike && likely()) return fuse_parallel(path, "linears\\.\\d+", b.widths.size());
    for (std::size_t i = 0; i < b.widths.size(); ++i) {
      if (b.biases[i] && source_.chance(40)) decompose(fmt::format("{}.linears.{}", path, i));
    }
  }

  void functions(const BlockProgram& b, const std::string& path,
                 const std::vector<FunctionEntry>& table) {
    for (const int index : b.functions) {
      const FunctionEntry& entry = table[static_cast<std::size_t>(index)];
      if (entry.equal == nullptr || !likely()) continue;
      sequences_.push_back(
          {make_step(path, fmt::format("replace {}", entry.name), [entry](Schedule sch) {
            sch.replace(entry.equal, require(sch.find(entry.function)));
          })});
      return;  // the matches of a second one may be gone by then
    }
  }

  Sequence tail(const BlockProgram& b, const std::string& path) {
    Sequence steps;
    const auto flatten = [&] {
      steps.push_back(
          make_step(path, "trace flatten", [](Schedule sch) { sch.trace({.flatten = true}); }));
    };
    if (b.bias && likely()) {
      steps.push_back(
          make_step(path + ".dense", "decompose", [](Schedule sch) { sch.decompose(); }));
      if (b.tail != TailKind::norm) return steps;
      flatten();
      steps.push_back(make_step(path, "fuse tail", [](Schedule sch) {
        const auto pattern = [](const Tensor& x, const Tensor& bias, const Tensor& residual,
                                const Tensor& weight, const Tensor& norm_bias) {
          return layer_norm(dropout(x + bias, any()) + residual, weight, norm_bias);
        };
        sch.fuse(require(sch.find(pattern)), {.name = "FusedTail"});
      }));
      if (source_.chance(25)) {
        steps.push_back(make_step(path, "bind the tail's decomposition", [](Schedule sch) {
          const auto fused = nodes_of_op("bias_dropout_residual_layer_norm");
          sch.bind(require(sch.find(fused)), "decomposition");
        }));
      }
    } else if (source_.chance(60)) {
      steps.push_back(
          make_step(path, "replace module", [b, hidden = program_.hidden](Schedule sch) {
            sch.replace(nn::make<RandomTail>(b, tail_width(b), hidden));
          }));
    } else if (likely()) {
      flatten();
    }
    return steps;
  }

  /// One order of all steps in which each sequence keeps its own.
  std::vector<Step> interleaved() {
    std::vector<Step> steps;
    std::vector<std::size_t> next(sequences_.size(), 0);
    while (true) {
      std::vector<std::size_t> open;
      for (std::size_t i = 0; i < sequences_.size(); ++i) {
        if (next[i] < sequences_[i].size()) open.push_back(i);
      }
      if (open.empty()) return steps;
      const std::size_t chosen = source_.one_of(open);
      steps.push_back(sequences_[chosen][next[chosen]++]);
    }
  }

  RandomSource& source_;
  const ModelProgram& program_;
  std::vector<Sequence> sequences_;
  bool in_twice_ = false;
  bool checkpointed_ = false;  // part of a block: regions do not nest
};

}  // namespace

std::vector<Step> draw_schedule(RandomSource& source, const ModelProgram& program) {
  return Drawing(source, program).schedule();
}

}  // namespace tenon::fuzz
