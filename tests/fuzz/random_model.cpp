#include "tests/fuzz/random_model.h"

#include <cmath>
#include <limits>

#include "tensor/interpreter.h"
#include "tensor/random.h"
#include "tests/fuzz/function_tables.h"

namespace tenon::fuzz {
namespace {

constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();

bool is_attention(const BlockProgram& program) {
  return program.kind == BlockKind::attention || program.kind == BlockKind::cross_attention;
}

bool has_input_mask(const BlockProgram& program) {
  return program.mask == MaskKind::hidden || program.mask == MaskKind::additive;
}

/// (length, length) bool, true where a key comes after the query.
Tensor later_keys(const Dim& length, const TensorSpec& like) {
  const Tensor one = full({}, 1, {like.dtype, like.device});
  return gt(triu(one.expand({length, length}), 1), 0);
}

/// (batch, kv_heads, seq, d) -> (batch, heads, seq, d), each head repeated.
Tensor repeat_heads(const Tensor& x, std::int64_t repeats) {
  if (repeats == 1) return x;
  const Tensor wide = x.unsqueeze(2).expand({x.size(0), x.size(1), repeats, x.size(2), x.size(3)});
  return wide.reshape({x.size(0), x.size(1) * repeats, x.size(2), x.size(3)});
}

std::int64_t joined_width(const BlockProgram& program) {
  if (!program.join) return program.widths[0];
  std::int64_t sum = 0;
  for (const std::int64_t width : program.widths) sum += width;
  return sum;
}

}  // namespace

std::int64_t tail_width(const BlockProgram& program) {
  if (is_attention(program)) return program.heads * program.head_dim;
  return program.kind == BlockKind::mlp ? program.width : joined_width(program);
}

Tensor split_heads(const Tensor& x, std::int64_t heads) {
  return x.view({x.size(0), x.size(1), heads, -1}).permute({0, 2, 1, 3});
}

Tensor composed_attention(const BlockProgram& program, const Tensor& q, const Tensor& k,
                          const Tensor& v, const Tensor& mask) {
  const Tensor products = matmul(q, k.transpose(-2, -1));
  Tensor scores = program.scale_by_product ? products * 0.37 : products / sqrt(q.size(-1));
  if (program.mask == MaskKind::additive) scores = scores + mask;
  if (program.mask == MaskKind::hidden || program.mask == MaskKind::causal) {
    scores = masked_fill(scores, mask, kMinusInfinity);
  }
  Tensor probabilities = softmax(scores, -1);
  if (program.attention_dropout != 0) {
    probabilities = dropout(probabilities, program.attention_dropout);
  }
  return matmul(probabilities, v);
}

Tensor fused_attention(const BlockProgram& program, const Tensor& q, const Tensor& k,
                       const Tensor& v, const Tensor& mask) {
  AttentionOptions options{.dropout_p = program.attention_dropout};
  options.is_causal = program.mask == MaskKind::causal;
  if (program.scale_by_product) options.scale = 0.37;
  if (program.mask == MaskKind::hidden) {
    return scaled_dot_product_attention(q, k, v, eq(mask, 0), options);
  }
  const bool added = program.mask == MaskKind::additive;
  return scaled_dot_product_attention(q, k, v, added ? mask : Tensor(), options);
}

RandomAttention::RandomAttention(const BlockProgram& p, std::int64_t hidden)
    : program(p),
      q_proj(add<nn::Linear>("q_proj", hidden, p.heads * p.head_dim, p.q_bias)),
      k_proj(add<nn::Linear>("k_proj", hidden, p.kv_heads * p.head_dim, p.k_bias)),
      v_proj(add<nn::Linear>("v_proj", hidden, p.kv_heads * p.head_dim, p.v_bias)) {}

Tensor RandomAttention::forward(const Tensor& x, const Tensor& memory, const Tensor& mask) const {
  const Tensor& source = memory ? memory : x;
  const std::int64_t repeats = program.heads / program.kv_heads;
  const Tensor q = split_heads(q_proj(x), program.heads);
  const Tensor k = repeat_heads(split_heads(k_proj(source), program.kv_heads), repeats);
  const Tensor v = repeat_heads(split_heads(v_proj(source), program.kv_heads), repeats);
  const bool causal = program.mask == MaskKind::causal;
  const Tensor hidden = causal ? later_keys(x.size(1), x.spec()) : mask;
  const Tensor y = composed_attention(program, q, k, v, hidden).permute({0, 2, 1, 3});
  return y.reshape({y.size(0), y.size(1), -1});
}

RandomTail::RandomTail(const BlockProgram& p, std::int64_t width, std::int64_t hidden)
    : program(p),
      dense(add<nn::Linear>("dense", width, hidden, p.bias)),
      dropout(add<nn::Dropout>("dropout", p.dropout)),
      norm(add<nn::LayerNorm>("norm", hidden)) {}

Tensor RandomTail::forward(const Tensor& y, const Tensor& residual) const {
  const Tensor dropped = dropout(dense(y));
  if (program.tail == TailKind::dense) return dropped;
  return program.tail == TailKind::norm ? norm(dropped + residual) : dropped + residual;
}

RandomBlock::RandomBlock(const BlockProgram& p, std::int64_t hidden) : program(p) {
  if (p.pre_norm == NormKind::layer) layer_norm = add<nn::LayerNorm>("layer_norm", hidden);
  if (p.pre_norm == NormKind::rms) rms_norm = add<nn::RMSNorm>("rms_norm", hidden, 1e-5);
  if (is_attention(p)) attn = add<RandomAttention>("attn", p, hidden);
  if (p.kind == BlockKind::mlp) {
    up = add<nn::Linear>("up", hidden, p.width, p.bias);
    if (p.gated) gate = add<nn::Linear>("gate", hidden, p.width, p.bias);
    if (p.activation_module) {
      switch (p.activation) {
        case Activation::gelu: gelu_act = add<nn::GELU>("act"); break;
        case Activation::gelu_tanh: gelu_act = add<nn::GELU>("act", Approximate::tanh); break;
        case Activation::relu: relu_act = add<nn::ReLU>("act"); break;
        case Activation::silu: silu_act = add<nn::SiLU>("act"); break;
      }
    }
  }
  if (p.kind == BlockKind::parallel) {
    linears = add<nn::ModuleList<nn::Linear>>("linears");
    for (std::size_t i = 0; i < p.widths.size(); ++i) {
      linears->emplace_back(hidden, p.widths[i], static_cast<bool>(p.biases[i]));
    }
  }
  if (p.kind == BlockKind::batch_norm) batch_norm = add<nn::BatchNorm2d>("batch_norm", hidden);
  if (is_attention(p) || p.kind == BlockKind::mlp || p.kind == BlockKind::parallel) {
    tail = add<RandomTail>("tail", p, tail_width(p), hidden);
  }
  if (!p.inner.empty()) {
    inner = add<nn::ModuleList<RandomBlock>>("inner");
    for (const BlockProgram& block : p.inner) inner->emplace_back(block, hidden);
  }
  if (p.frozen) requires_grad_(false);
}

Tensor RandomBlock::normalized(const Tensor& x) const {
  if (layer_norm) return layer_norm(x);
  return rms_norm ? rms_norm(x) : x;
}

Tensor RandomBlock::activated(const Tensor& x) const {
  if (gelu_act) return gelu_act(x);
  if (relu_act) return relu_act(x);
  if (silu_act) return silu_act(x);
  switch (program.activation) {
    case Activation::relu: return relu(x);
    case Activation::silu: return silu(x);
    case Activation::gelu_tanh: return gelu(x, Approximate::tanh);
    default: return gelu(x);
  }
}

Tensor RandomBlock::mlp(const Tensor& x) const {
  return gate ? activated(up(x)) * gate(x) : activated(up(x));
}

Tensor RandomBlock::joined(const Tensor& x) const {
  std::vector<Tensor> parts;
  for (const auto& one : *linears) parts.push_back(one(x));
  if (program.join) return cat(parts, -1);
  Tensor sum = sigmoid(parts[0]);
  for (std::size_t i = 1; i < parts.size(); ++i) sum = sum * 0.5 + tanh(parts[i]);
  return sum;
}

Tensor RandomBlock::functions(Tensor x) const {
  const bool pointwise = program.kind == BlockKind::pointwise;
  const auto& table = pointwise ? pointwise_table() : shape_table();
  for (const int f : program.functions) x = table[static_cast<std::size_t>(f)].function(x);
  return x;
}

Tensor RandomBlock::forward(const Tensor& input, const Tensor& memory, const Tensor& mask) const {
  const Tensor x = normalized(input);
  switch (program.kind) {
    case BlockKind::attention:
      return tail(attn(x, Tensor(), has_input_mask(program) ? mask : Tensor()), x);
    case BlockKind::cross_attention: return tail(attn(x, memory, Tensor()), x);
    case BlockKind::mlp: return tail(mlp(x), x);
    case BlockKind::parallel: return tail(joined(x), x);
    case BlockKind::pointwise:
    case BlockKind::shapes: return functions(x);
    case BlockKind::batch_norm: {
      const Tensor image = x.permute({0, 2, 1}).unsqueeze(-1);  // (batch, hidden, seq, 1)
      return batch_norm(image).squeeze(-1).permute({0, 2, 1});
    }
    case BlockKind::twice: {
      const auto& block = (*inner)[0];
      return block(tanh(block(x, memory, mask)), memory, mask);
    }
    case BlockKind::stack: break;
  }
  Tensor y = x;
  for (const auto& block : *inner) y = block(y, memory, mask);
  return y;
}

RandomModel::RandomModel(const ModelProgram& p) : program(p) {
  if (p.tokens) {
    tokens = add<nn::Embedding>("tokens", p.vocabulary, p.hidden);
  } else {
    stem = add<nn::Linear>("stem", p.features, p.hidden);
  }
  if (p.memory) memory_stem = add<nn::Linear>("memory_stem", p.hidden, p.hidden, false);
  blocks = add<nn::ModuleList<RandomBlock>>("blocks");
  for (const BlockProgram& block : p.blocks) blocks->emplace_back(block, p.hidden);
}

std::vector<Tensor> RandomModel::forward(const std::vector<Tensor>& inputs) const {
  std::size_t next = 0;
  Tensor x = program.tokens ? tokens(inputs[next]) : stem(inputs[next]);
  ++next;
  Context context;
  if (program.memory) context.memory = memory_stem(inputs[next++]);
  if (program.mask != MaskKind::none) context.mask = inputs[next++];
  for (const auto& block : *blocks) x = block(x, context.memory, context.mask);
  std::vector<Tensor> outputs{x};
  if (program.pooled_output) outputs.push_back(tanh(mean(x, {1})));
  if (program.tied_head) outputs.push_back(linear(x, tokens->weight));
  return outputs;
}

nn::Child<RandomModel> make_model(const ModelProgram& program, DType dtype) {
  auto model = nn::make<RandomModel>(program);
  Generator generator(program.weight_seed);
  const NoGradGuard no_grad;
  for (const auto& [name, parameter] : model->named_parameters()) {
    const bool matrix = parameter.dim() >= 2;
    const bool scale = name.ends_with("norm.weight");
    Tensor values = randn(parameter.shape(), {}, &generator);
    if (matrix) {
      values = values * (1.2 / std::sqrt(static_cast<double>(parameter.size(-1).value())));
    } else if (program.fresh_weights) {
      values = full(parameter.shape(), scale ? 1 : 0);
    } else {
      values = values * 0.3 + (scale ? 1.0 : 0.0);
    }
    Tensor(parameter).copy_(values);
  }
  if (dtype != DType::float32) model->to(dtype);
  return model;
}

std::vector<Tensor> make_inputs(const ModelProgram& p, DType dtype) {
  Generator generator(p.weight_seed + 1);
  std::vector<Tensor> inputs;
  if (p.tokens) {
    inputs.push_back(
        cast(uniform({p.batch, p.seq}, 0, static_cast<double>(p.vocabulary), {}, &generator),
             DType::int64));
  } else {
    inputs.push_back(randn({p.batch, p.seq, p.features}, {}, &generator));
  }
  if (p.memory) inputs.push_back(randn({p.batch, p.length, p.hidden}, {}, &generator));
  if (p.mask == MaskKind::additive) inputs.push_back(randn({p.seq, p.seq}, {}, &generator));
  if (p.mask == MaskKind::hidden) {
    // The diagonal stays: a row without keys is not a number.
    const Tensor drawn = uniform({p.seq, p.seq}, 0, 1, {}, &generator);
    const Tensor off_diagonal = full({p.seq, p.seq}, 1) - tril(triu(full({p.seq, p.seq}, 1)));
    inputs.push_back(gt(drawn * off_diagonal, 0.6));
  }
  for (Tensor& input : inputs) {
    if (is_floating(input.dtype())) input = input.to(dtype);
  }
  return inputs;
}

FusedProjections::FusedProjections(const BlockProgram& p, std::int64_t hidden)
    : heads(p.heads), fused(add<nn::Linear>("fused", hidden, 3 * p.heads * p.head_dim, p.q_bias)) {}

std::vector<Tensor> FusedProjections::forward(const Tensor& x) const {
  std::vector<Tensor> parts;
  for (const Tensor& part : chunk(fused(x), 3, -1)) parts.push_back(split_heads(part, heads));
  return parts;
}

}  // namespace tenon::fuzz
