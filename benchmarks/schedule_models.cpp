#include "benchmarks/schedule_models.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "examples/attention_model.h"
#include "nn/nn.h"
#include "schedule/schedules.h"
#include "tensor/error.h"

namespace tenon::bench {
namespace {

using Options = ScheduledModelOptions;

constexpr std::int64_t kPositions = 2048;

/// Normal numbers, the same 2^18 again and again from another one on.
Tensor repeated_normal(const Shape& shape, double deviation, DType dtype) {
  constexpr std::int64_t kCount = 1 << 18;
  static const Tensor drawn = randn({kCount});
  static std::int64_t first = 0;
  const Tensor block = (drawn * deviation).to(dtype);
  Tensor weight = zeros(shape, {dtype, kCpu});
  const auto* source = static_cast<const std::byte*>(block.view_of_data().data);
  auto* target = static_cast<std::byte*>(weight.view_of_data().data);
  const auto bytes = static_cast<std::int64_t>(size_of(dtype));
  const std::int64_t count = weight.layout().numel();
  for (std::int64_t done = 0; done < count;) {
    const std::int64_t length = std::min(count - done, kCount - first);
    std::memcpy(target + done * bytes, source + first * bytes,
                static_cast<std::size_t>(length * bytes));
    done += length;
    first = (first + length + 1) % kCount;
  }
  return weight.requires_grad_();
}

nn::Child<nn::Linear> linear_of(std::int64_t in, std::int64_t out, const Options& o,
                                bool bias = true) {
  const double deviation = 1 / std::sqrt(static_cast<double>(in));
  return nn::make<nn::Linear>(repeated_normal({out, in}, deviation, o.dtype),
                              bias ? repeated_normal({out}, 0.02, o.dtype) : Tensor());
}

struct Table : nn::Module {
  Table(std::int64_t rows, std::int64_t columns, const Options& o)
      : weight(register_parameter("weight", repeated_normal({rows, columns}, 0.5, o.dtype))) {}
  Tensor forward(const Tensor& ids) const { return embedding(ids, weight); }
  Tensor weight;
};

Tensor split_heads(const Tensor& x, std::int64_t heads) {
  return x.view({x.size(0), x.size(1), heads, -1}).permute({0, 2, 1, 3});
}
Tensor merge_heads(const Tensor& x) {
  const Tensor y = x.permute({0, 2, 1, 3});
  return y.reshape({y.size(0), y.size(1), -1});
}

// --- encoder and block ---------------------------------------------------------------------------

/// The way down of an MLP with the tail of a residual block.
struct Output : nn::Module {
  explicit Output(std::int64_t hidden)
      : dense(add<nn::Linear>("dense", 4 * hidden, hidden)),
        dropout(add<nn::Dropout>("dropout", 0.1)),
        layer_norm(add<nn::LayerNorm>("layer_norm", hidden)) {}
  Tensor forward(const Tensor& x, const Tensor& residual) const {
    return layer_norm(dropout(dense(x)) + residual);
  }
  nn::Child<nn::Linear> dense;
  nn::Child<nn::Dropout> dropout;
  nn::Child<nn::LayerNorm> layer_norm;
};

struct EncoderLayer : nn::Module {
  EncoderLayer(std::int64_t hidden, std::int64_t heads)
      : attention(add<tutorial::Attention>("attention", hidden, heads)),
        up(add<nn::Linear>("up", hidden, 4 * hidden)),
        act(add<nn::GELU>("act")),
        output(add<Output>("output", hidden)) {}
  Tensor forward(const Tensor& x) const {
    const Tensor y = attention(x);
    return output(act(up(y)), y);
  }
  nn::Child<tutorial::Attention> attention;
  nn::Child<nn::Linear> up;
  nn::Child<nn::GELU> act;
  nn::Child<Output> output;
};

struct Encoder : nn::Module {
  explicit Encoder(const Options& o) : layer(add<nn::ModuleList<EncoderLayer>>("layer")) {
    for (std::int64_t i = 0; i < o.layers; ++i) layer->emplace_back(o.hidden, o.heads);
  }
  Tensor forward(Tensor x) const {
    for (const auto& one : *layer) x = one(x);
    return x;
  }
  nn::Child<nn::ModuleList<EncoderLayer>> layer;
};

/// Learned positions, all of them or none.
struct FixedPositions : nn::Module {
  explicit FixedPositions(const Options& o)
      : tokens(add<nn::Embedding>("tokens", o.vocabulary, o.hidden)),
        positions(register_parameter("positions",
                                     repeated_normal({kPositions, o.hidden}, 0.1, DType::float32))),
        encoder(add<Encoder>("encoder", o)) {}
  Tensor forward(const Tensor& ids) const {
    if (ids.size(1) != kPositions) throw ValueError("the model takes 2048 positions");
    return encoder(tokens(ids) + positions);
  }
  nn::Child<nn::Embedding> tokens;
  Tensor positions;
  nn::Child<Encoder> encoder;
};

// --- bert ----------------------------------------------------------------------------------------

struct BertOutput : nn::Module {
  BertOutput(std::int64_t in, const Options& o)
      : dense(register_module("dense", linear_of(in, o.hidden, o))),
        dropout(add<nn::Dropout>("dropout", 0.1)),
        norm(add<nn::LayerNorm>("norm", o.hidden, 1e-12)) {}
  Tensor forward(const Tensor& x, const Tensor& residual) const {
    return norm(dropout(dense(x)) + residual);
  }
  nn::Child<nn::Linear> dense;
  nn::Child<nn::Dropout> dropout;
  nn::Child<nn::LayerNorm> norm;
};

struct BertLayer : nn::Module {
  explicit BertLayer(const Options& o)
      : query(register_module("query", linear_of(o.hidden, o.hidden, o))),
        key(register_module("key", linear_of(o.hidden, o.hidden, o))),
        value(register_module("value", linear_of(o.hidden, o.hidden, o))),
        attention_output(add<BertOutput>("attention_output", o.hidden, o)),
        intermediate(register_module("intermediate", linear_of(o.hidden, o.mlp, o))),
        output(add<BertOutput>("output", o.mlp, o)),
        heads(o.heads) {}
  Tensor forward(const Tensor& x, const Tensor& mask) const {
    const Tensor q = split_heads(query(x), heads);
    const Tensor k = split_heads(key(x), heads);
    const Tensor v = split_heads(value(x), heads);
    const Tensor scores = matmul(q, k.transpose(-2, -1)) / sqrt(q.size(-1)) + mask;
    const Tensor y = matmul(dropout(softmax(scores, -1), 0.1), v);
    const Tensor attended = attention_output(merge_heads(y), x);
    return output(gelu(intermediate(attended)), attended);
  }
  nn::Child<nn::Linear> query, key, value;
  nn::Child<BertOutput> attention_output;
  nn::Child<nn::Linear> intermediate;
  nn::Child<BertOutput> output;
  std::int64_t heads;
};

struct Bert : nn::Module {
  explicit Bert(const Options& o)
      : words(add<Table>("words", o.vocabulary, o.hidden, o)),
        positions(add<Table>("positions", 512, o.hidden, o)),
        types(add<Table>("types", 2, o.hidden, o)),
        norm(add<nn::LayerNorm>("norm", o.hidden, 1e-12)),
        dropout(add<nn::Dropout>("dropout", 0.1)),
        layer(add<nn::ModuleList<BertLayer>>("layer")) {
    for (std::int64_t i = 0; i < o.layers; ++i) layer->emplace_back(o);
  }
  /// Ids and types (batch, seq), a mask (batch, 1, 1, seq) that is added to the scores.
  Tensor forward(const Tensor& ids, const Tensor& type, const Tensor& mask) const {
    const Tensor places = positions->weight.narrow(0, 0, ids.size(1));
    Tensor x = dropout(norm(words(ids) + types(type) + places));
    for (const auto& one : *layer) x = one(x, mask);
    return x;
  }
  nn::Child<Table> words, positions, types;
  nn::Child<nn::LayerNorm> norm;
  nn::Child<nn::Dropout> dropout;
  nn::Child<nn::ModuleList<BertLayer>> layer;
};

// --- llama ---------------------------------------------------------------------------------------

struct LlamaLayer : nn::Module {
  explicit LlamaLayer(const Options& o)
      : query(register_module("query", linear_of(o.hidden, o.hidden, o, false))),
        key(register_module("key", linear_of(o.hidden, o.hidden, o, false))),
        value(register_module("value", linear_of(o.hidden, o.hidden, o, false))),
        out(register_module("out", linear_of(o.hidden, o.hidden, o, false))),
        gate(register_module("gate", linear_of(o.hidden, o.mlp, o, false))),
        up(register_module("up", linear_of(o.hidden, o.mlp, o, false))),
        down(register_module("down", linear_of(o.mlp, o.hidden, o, false))),
        attention_norm(add<nn::RMSNorm>("attention_norm", o.hidden, 1e-6)),
        mlp_norm(add<nn::RMSNorm>("mlp_norm", o.hidden, 1e-6)),
        heads(o.heads) {}
  static Tensor rotated(const Tensor& x, const Tensor& cos, const Tensor& sin) {
    const auto halves = chunk(x, 2, -1);
    return x * cos + cat({-halves[1], halves[0]}, -1) * sin;
  }
  Tensor forward(const Tensor& x, const Tensor& cos, const Tensor& sin) const {
    const Tensor normed = attention_norm(x);
    const Tensor q = rotated(split_heads(query(normed), heads), cos, sin);
    const Tensor k = rotated(split_heads(key(normed), heads), cos, sin);
    const Tensor v = split_heads(value(normed), heads);
    const Tensor y = scaled_dot_product_attention(q, k, v, {}, {.is_causal = true});
    const Tensor attended = x + out(merge_heads(y));
    const Tensor wide = mlp_norm(attended);
    return attended + down(silu(gate(wide)) * up(wide));
  }
  nn::Child<nn::Linear> query, key, value, out, gate, up, down;
  nn::Child<nn::RMSNorm> attention_norm, mlp_norm;
  std::int64_t heads;
};

struct Llama : nn::Module {
  explicit Llama(const Options& o)
      : tokens(add<Table>("tokens", o.vocabulary, o.hidden, o)),
        layer(add<nn::ModuleList<LlamaLayer>>("layer")),
        norm(add<nn::RMSNorm>("norm", o.hidden, 1e-6)),
        head(register_module("head", linear_of(o.hidden, o.vocabulary, o, false))) {
    for (std::int64_t i = 0; i < o.layers; ++i) layer->emplace_back(o);
    const std::int64_t width = o.hidden / o.heads;
    std::vector<double> cosines, sines;
    for (std::int64_t position = 0; position < kPositions; ++position) {
      for (std::int64_t i = 0; i < width; ++i) {
        const double exponent =
            2 * static_cast<double>(i % (width / 2)) / static_cast<double>(width);
        const double angle = static_cast<double>(position) * std::pow(10000.0, -exponent);
        cosines.push_back(std::cos(angle));
        sines.push_back(std::sin(angle));
      }
    }
    const auto table = [&](const std::vector<double>& values) {
      return tensor(std::span<const double>(values), {kPositions, width}, {o.dtype, kCpu});
    };
    cos = register_buffer("cos", table(cosines), false);
    sin = register_buffer("sin", table(sines), false);
  }
  Tensor forward(const Tensor& ids) const {
    Tensor x = tokens(ids);
    const Tensor c = cos.narrow(0, 0, ids.size(1));
    const Tensor s = sin.narrow(0, 0, ids.size(1));
    for (const auto& one : *layer) x = one(x, c, s);
    return head(norm(x));
  }
  nn::Child<Table> tokens;
  nn::Child<nn::ModuleList<LlamaLayer>> layer;
  nn::Child<nn::RMSNorm> norm;
  nn::Child<nn::Linear> head;
  Tensor cos, sin;
};

// --- linears and tied ----------------------------------------------------------------------------

struct Linears : nn::Module {
  explicit Linears(const Options& o) : layer(add<nn::ModuleList<nn::Linear>>("layer")) {
    for (std::int64_t i = 0; i < o.layers; ++i) {
      layer->push_back(linear_of(o.hidden, o.hidden, o));
    }
  }
  Tensor forward(Tensor x) const {
    for (const auto& one : *layer) x = tanh(one(x));
    return x;
  }
  nn::Child<nn::ModuleList<nn::Linear>> layer;
};

/// Ids and the ids that follow (batch, seq) to a loss.
struct Tied : nn::Module {
  explicit Tied(const Options& o)
      : tokens(add<Table>("tokens", o.vocabulary, o.hidden, o)),
        mix(register_module("mix", linear_of(o.hidden, o.hidden, o))) {}
  Tensor forward(const Tensor& ids, const Tensor& targets) const {
    const Tensor x = tanh(mix(tokens(ids)));
    const Dim rows = x.size(0) * x.size(1);
    return cross_entropy(linear(x.view({rows, x.size(2)}), tokens->weight), targets.view({rows}));
  }
  nn::Child<Table> tokens;
  nn::Child<nn::Linear> mix;
};

template <class Model>
ScheduledModel scheduled(const nn::Child<Model>& model, const Options& o,
                         const std::vector<ExampleInput>& examples,
                         const std::vector<Tensor>& inputs, std::function<void(Schedule&)> apply) {
  model->to(o.device, o.dtype);
  ScheduledModel result;
  result.trace = [model, examples] { return create_schedule(model, examples); };
  result.apply = std::move(apply);
  for (const Tensor& input : inputs) result.inputs.push_back(input.spec());
  return result;
}

template <class Model>
ScheduledModel scheduled(const nn::Child<Model>& model, const Options& o,
                         std::vector<std::pair<std::string, Tensor>> inputs,
                         std::function<void(Schedule&)> apply) {
  std::vector<ExampleInput> examples;
  std::vector<Tensor> tensors;
  for (auto& [name, tensor] : inputs) {
    tensors.push_back(tensor.to(o.device));
    examples.emplace_back(name, tensors.back());
  }
  return scheduled(model, o, examples, tensors, std::move(apply));
}

void encode(Schedule& sch) { schedules::transformer_encoder(sch); }

void split_all_linears(Schedule& sch) { sch.decompose(sch.find<nn::Linear>()); }

void join_loss(Schedule& sch) {
  sch.replace([](const Tensor& x, const Tensor& weight,
                 const Tensor& targets) { return linear_cross_entropy(x, weight, targets); },
              sch.find([](const Tensor& x, const Tensor& weight, const Tensor& targets) {
                return cross_entropy(linear(x, weight), targets);
              }));
}

/// Sizes that were not given: layers, batch, seq, hidden, heads, mlp, vocabulary.
void fill_in(Options& o, const std::array<std::int64_t, 7>& own) {
  std::int64_t* const sizes[] = {&o.layers, &o.batch, &o.seq,       &o.hidden,
                                 &o.heads,  &o.mlp,   &o.vocabulary};
  for (std::size_t i = 0; i < own.size(); ++i) {
    if (*sizes[i] == 0) *sizes[i] = own[i];
  }
}

}  // namespace

ScheduledModel make_scheduled_model(Options o) {
  const auto ids = [&] { return zeros({o.batch, o.seq}, {DType::int64, kCpu}); };
  const auto numbers = [&](const Shape& shape) { return zeros(shape, {o.dtype, kCpu}); };
  if (o.model == "bert") {
    fill_in(o, {12, 2, 128, 768, 12, 3072, 30522});
    return scheduled(nn::make<Bert>(o), o,
                     {{"ids", ids()}, {"types", ids()}, {"mask", numbers({o.batch, 1, 1, o.seq})}},
                     encode);
  }
  if (o.model == "llama") {
    fill_in(o, {24, 1, 128, 2048, 32, 5632, 32000});
    return scheduled(nn::make<Llama>(o), o, {{"ids", ids()}},
                     [](Schedule& sch) { schedules::gpt(sch); });
  }
  if (o.model == "block") {
    fill_in(o, {1, 8, 512, 1024, 16, 0, 0});
    return scheduled(nn::make<tutorial::Attention>(o.hidden, o.heads), o,
                     {{"hidden_states", numbers({o.batch, o.seq, o.hidden})}}, encode);
  }
  if (o.model == "linears") {
    fill_in(o, {1000, 8, 1, 64, 1, 0, 0});
    return scheduled(nn::make<Linears>(o), o, {{"x", numbers({o.batch, o.hidden})}},
                     split_all_linears);
  }
  if (o.model == "tied") {
    fill_in(o, {1, 2, 64, 256, 1, 0, 50257});
    return scheduled(nn::make<Tied>(o), o, {{"ids", ids()}, {"targets", ids()}}, join_loss);
  }
  if (o.model == "positions") {
    fill_in(o, {2, 1, kPositions, 64, 4, 0, 1000});
    return scheduled(nn::make<FixedPositions>(o), o, {{"ids", ids()}}, encode);
  }
  fill_in(o, {24, 2, 8, 64, 4, 0, 0});
  return scheduled(nn::make<Encoder>(o), o,
                   {{"hidden_states", numbers({o.batch, o.seq, o.hidden})}}, encode);
}

}  // namespace tenon::bench
