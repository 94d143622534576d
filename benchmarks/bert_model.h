// BERT without its pooler, with the names of its public checkpoints (J. Devlin et al., "BERT", 2018):
// attention written out, a padding mask that is added to the scores, GELU by erf, dropout of 0.1.
#pragma once

#include <limits>

#include "nn/nn.h"

namespace tenon::bench {

struct BertSizes {
  std::int64_t layers = 12;
  std::int64_t hidden = 768;
  std::int64_t heads = 12;
  std::int64_t mlp = 3072;
  std::int64_t vocabulary = 30522;
  std::int64_t positions = 512;
};

struct BertSelfAttention : nn::Module {
  explicit BertSelfAttention(const BertSizes& s)
      : query(add<nn::Linear>("query", s.hidden, s.hidden)),
        key(add<nn::Linear>("key", s.hidden, s.hidden)),
        value(add<nn::Linear>("value", s.hidden, s.hidden)),
        heads(s.heads) {}
  Tensor forward(const Tensor& x, const Tensor& mask) const {
    const auto split = [&](const Tensor& t) {
      return t.view({t.size(0), t.size(1), heads, -1}).permute({0, 2, 1, 3});
    };
    const Tensor q = split(query(x)), k = split(key(x)), v = split(value(x));
    const Tensor scores = matmul(q, k.transpose(-1, -2)) / sqrt(q.size(-1)) + mask;
    const Tensor y = matmul(dropout(softmax(scores, -1), 0.1), v).permute({0, 2, 1, 3});
    return y.reshape({y.size(0), y.size(1), -1});
  }
  nn::Child<nn::Linear> query, key, value;
  std::int64_t heads;
};

/// layer_norm(dropout(linear(x)) + residual).
struct BertResidual : nn::Module {
  BertResidual(std::int64_t in, std::int64_t hidden)
      : dense(add<nn::Linear>("dense", in, hidden)),
        layer_norm(add<nn::LayerNorm>("LayerNorm", hidden, 1e-12)) {}
  Tensor forward(const Tensor& x, const Tensor& residual) const {
    return layer_norm(dropout(dense(x), 0.1) + residual);
  }
  nn::Child<nn::Linear> dense;
  nn::Child<nn::LayerNorm> layer_norm;
};

struct BertAttention : nn::Module {
  explicit BertAttention(const BertSizes& s)
      : self(add<BertSelfAttention>("self", s)),
        output(add<BertResidual>("output", s.hidden, s.hidden)) {}
  Tensor forward(const Tensor& x, const Tensor& mask) const { return output(self(x, mask), x); }
  nn::Child<BertSelfAttention> self;
  nn::Child<BertResidual> output;
};

struct BertIntermediate : nn::Module {
  explicit BertIntermediate(const BertSizes& s)
      : dense(add<nn::Linear>("dense", s.hidden, s.mlp)) {}
  Tensor forward(const Tensor& x) const { return gelu(dense(x)); }
  nn::Child<nn::Linear> dense;
};

struct BertLayer : nn::Module {
  explicit BertLayer(const BertSizes& s)
      : attention(add<BertAttention>("attention", s)),
        intermediate(add<BertIntermediate>("intermediate", s)),
        output(add<BertResidual>("output", s.mlp, s.hidden)) {}
  Tensor forward(const Tensor& x, const Tensor& mask) const {
    const Tensor y = attention(x, mask);
    return output(intermediate(y), y);
  }
  nn::Child<BertAttention> attention;
  nn::Child<BertIntermediate> intermediate;
  nn::Child<BertResidual> output;
};

struct BertEncoder : nn::Module {
  explicit BertEncoder(const BertSizes& s) : layer(add<nn::ModuleList<BertLayer>>("layer")) {
    for (std::int64_t i = 0; i < s.layers; ++i) layer->emplace_back(s);
  }
  Tensor forward(Tensor x, const Tensor& mask) const {
    for (const auto& one : *layer) x = one(x, mask);
    return x;
  }
  nn::Child<nn::ModuleList<BertLayer>> layer;
};

struct BertEmbeddings : nn::Module {
  explicit BertEmbeddings(const BertSizes& s)
      : words(add<nn::Embedding>("word_embeddings", s.vocabulary, s.hidden)),
        positions(add<nn::Embedding>("position_embeddings", s.positions, s.hidden)),
        types(add<nn::Embedding>("token_type_embeddings", 2, s.hidden)),
        layer_norm(add<nn::LayerNorm>("LayerNorm", s.hidden, 1e-12)) {}
  Tensor forward(const Tensor& ids) const {
    const Tensor position = positions->weight.narrow(0, 0, ids.size(1));
    return dropout(layer_norm(words(ids) + types->weight.narrow(0, 0, 1) + position), 0.1);
  }
  nn::Child<nn::Embedding> words, positions, types;
  nn::Child<nn::LayerNorm> layer_norm;
};

class Bert : public nn::Module {
 public:
  explicit Bert(const BertSizes& s)
      : embeddings_(add<BertEmbeddings>("embeddings", s)),
        encoder_(add<BertEncoder>("encoder", s)) {}
  /// (B, L) of int64, (B, L) of int64, 0 for padding -> (B, L, hidden).
  Tensor forward(const Tensor& ids, const Tensor& attention_mask) const {
    const TensorOptions options{embeddings_->words->weight.dtype(), ids.device()};
    const Tensor open = zeros({}, options).expand({ids.size(0), 1, 1, ids.size(1)});
    const Tensor padding = eq(attention_mask, 0).unsqueeze(1).unsqueeze(1);
    return encoder_(embeddings_(ids), masked_fill(open, padding, -1e30));
  }

 private:
  nn::Child<BertEmbeddings> embeddings_;
  nn::Child<BertEncoder> encoder_;
};

}  // namespace tenon::bench
