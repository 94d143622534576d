#include "tests/fuzz/model_program.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "tests/fuzz/function_tables.h"

namespace tenon::fuzz {
namespace {

constexpr const char* kKinds[] = {"attention", "cross_attention", "mlp",   "parallel", "pointwise",
                                  "shapes",    "batch_norm",      "twice", "stack"};
constexpr const char* kMasks[] = {"none", "causal", "hidden", "additive"};
constexpr const char* kActivations[] = {"gelu", "gelu_tanh", "relu", "silu"};
constexpr const char* kTails[] = {"dense", "residual", "norm"};
constexpr const char* kNorms[] = {"none", "layer", "rms"};

template <class E, std::size_t N>
const char* name_of(const char* const (&names)[N], E value) {
  return names[static_cast<std::size_t>(value)];
}

class Drawing {
 public:
  Drawing(RandomSource& source, bool smooth) : source_(source), smooth_(smooth) {}

  ModelProgram model() {
    program_.hidden = source_.one_of<std::int64_t>({8, 8, 12, 16});
    program_.tokens = source_.chance(40);
    program_.features = source_.between(3, 8);
    program_.vocabulary = source_.between(5, 13);
    program_.batch = source_.between(1, 3);
    program_.seq = source_.between(2, 6);
    program_.length = source_.between(2, 6);
    program_.memory = source_.chance(35);
    program_.mask = source_.one_of({MaskKind::none, MaskKind::hidden, MaskKind::additive});
    program_.pooled_output = source_.chance(30);
    program_.tied_head = program_.tokens && source_.chance(40);
    program_.fresh_weights = source_.chance(20);
    program_.weight_seed = source_.below(1U << 30);
    const std::int64_t blocks = source_.between(1, 4);
    for (std::int64_t i = 0; i < blocks; ++i) program_.blocks.push_back(block(0));
    return program_;
  }

 private:
  BlockKind kind(int depth) {
    using K = BlockKind;
    const K drawn = source_.one_of({K::attention, K::attention, K::attention, K::mlp, K::mlp,
                                    K::mlp, K::parallel, K::parallel, K::pointwise, K::shapes,
                                    K::batch_norm, K::cross_attention, K::twice, K::stack});
    if (drawn == K::cross_attention && !program_.memory) return K::attention;
    if ((drawn == K::twice || drawn == K::stack) && depth > 0) return K::mlp;
    return drawn;
  }

  BlockProgram block(int depth) {
    BlockProgram b;
    b.kind = kind(depth);
    b.pre_norm = source_.one_of({NormKind::none, NormKind::none, NormKind::layer, NormKind::rms});
    b.tail = source_.one_of({TailKind::dense, TailKind::residual, TailKind::norm, TailKind::norm});
    b.dropout = source_.one_of({0.0, 0.1, 0.25});
    b.bias = source_.chance(80);
    b.frozen = source_.chance(8);
    switch (b.kind) {
      case BlockKind::attention:
      case BlockKind::cross_attention: attention(b); break;
      case BlockKind::mlp: mlp(b); break;
      case BlockKind::parallel: parallel(b); break;
      case BlockKind::pointwise: functions(b, static_cast<int>(pointwise_table().size())); break;
      case BlockKind::shapes: functions(b, static_cast<int>(shape_table().size())); break;
      case BlockKind::batch_norm: break;
      case BlockKind::twice: b.inner.push_back(block(depth + 1)); break;
      case BlockKind::stack:
        for (int i = 0; i < 2; ++i) b.inner.push_back(block(depth + 1));
        break;
    }
    return b;
  }

  void attention(BlockProgram& b) {
    b.heads = source_.one_of<std::int64_t>({1, 2, 2, 4});
    b.kv_heads = b.heads;
    if (source_.chance(25))
      b.kv_heads = source_.one_of<std::int64_t>({1, b.heads / 2 + b.heads % 2});
    b.head_dim = source_.chance(60) ? program_.hidden / b.heads : source_.between(1, 5);
    const bool cross = b.kind == BlockKind::cross_attention;
    b.mask = source_.one_of({MaskKind::none, MaskKind::causal, program_.mask});
    if (cross) b.mask = MaskKind::none;
    b.attention_dropout = source_.one_of({0.0, 0.1, 0.3});
    b.q_bias = b.k_bias = b.v_bias = source_.chance(70);
    if (source_.chance(20)) b.k_bias = !b.k_bias;
    b.scale_by_product = source_.chance(30);
  }

  void mlp(BlockProgram& b) {
    using A = Activation;
    b.activation = source_.one_of({A::gelu, A::gelu, A::gelu_tanh, A::relu, A::silu});
    if (smooth_ && b.activation == A::relu) b.activation = A::gelu;
    b.activation_module = source_.chance(50);
    b.gated = source_.chance(25);
    b.width = source_.one_of<std::int64_t>({5, 8, 16, 24});
  }

  void parallel(BlockProgram& b) {
    const std::int64_t count = source_.between(2, 4);
    b.join = source_.chance(50);
    const std::int64_t common = source_.between(2, 9);
    const bool equal = !b.join || source_.chance(50);
    const bool biased = source_.chance(70);
    for (std::int64_t i = 0; i < count; ++i) {
      b.widths.push_back(equal ? common : source_.between(1, 9));
      b.biases.push_back(source_.chance(85) ? biased : !biased);
    }
  }

  void functions(BlockProgram& b, int table_size) {
    const std::int64_t count = source_.between(1, 4);
    while (static_cast<std::int64_t>(b.functions.size()) < count) {
      const int drawn = static_cast<int>(source_.below(static_cast<std::uint64_t>(table_size)));
      const bool kinked = b.kind == BlockKind::pointwise &&
                          pointwise_table()[static_cast<std::size_t>(drawn)].kinked;
      b.functions.push_back(smooth_ && kinked ? 0 : drawn);
    }
  }

  RandomSource& source_;
  bool smooth_;
  ModelProgram program_;
};

std::string text_of(const BlockProgram& b, const std::string& path) {
  std::string text = fmt::format("  {} {}", path, name_of(kKinds, b.kind));
  const auto add = [&](const char* name, const auto& value) {
    text += fmt::format(" {}={}", name, value);
  };
  const bool is_attention = b.kind == BlockKind::attention || b.kind == BlockKind::cross_attention;
  if (is_attention) {
    add("heads", b.heads);
    add("kv_heads", b.kv_heads);
    add("head_dim", b.head_dim);
    add("mask", name_of(kMasks, b.mask));
    add("attention_dropout", b.attention_dropout);
    text += fmt::format(" biases={}{}{}", int{b.q_bias}, int{b.k_bias}, int{b.v_bias});
    add("scale_by_product", b.scale_by_product);
  }
  if (b.kind == BlockKind::mlp) {
    add("activation", name_of(kActivations, b.activation));
    add("module", b.activation_module);
    add("gated", b.gated);
    add("width", b.width);
  }
  if (b.kind == BlockKind::parallel) {
    text += fmt::format(" widths={} biases={} join={}", b.widths, b.biases, b.join);
  }
  for (int f : b.functions) {
    const bool pointwise = b.kind == BlockKind::pointwise;
    const auto i = static_cast<std::size_t>(f);
    text += fmt::format(" {}", pointwise ? pointwise_table()[i].name : shape_table()[i].name);
  }
  if (is_attention || b.kind == BlockKind::mlp || b.kind == BlockKind::parallel) {
    text += fmt::format(" tail={} dropout={} bias={}", name_of(kTails, b.tail), b.dropout, b.bias);
  }
  text += fmt::format(" pre_norm={}{}\n", name_of(kNorms, b.pre_norm), b.frozen ? " frozen" : "");
  for (std::size_t i = 0; i < b.inner.size(); ++i) {
    text += text_of(b.inner[i], fmt::format("{}.inner.{}", path, i));
  }
  return text;
}

}  // namespace

std::string ModelProgram::to_string() const {
  std::string text = fmt::format(
      "hidden={} input={} memory={} mask={} pooled_output={} tied_head={} fresh_weights={} "
      "batch={} seq={} length={} weight_seed={}\n",
      hidden, tokens ? fmt::format("tokens<{}", vocabulary) : fmt::format("features {}", features),
      memory, name_of(kMasks, mask), pooled_output, tied_head, fresh_weights, batch, seq, length,
      weight_seed);
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    text += text_of(blocks[i], fmt::format("blocks.{}", i));
  }
  return text;
}

ModelProgram draw_model(RandomSource& source, bool smooth) {
  return Drawing(source, smooth).model();
}

}  // namespace tenon::fuzz
