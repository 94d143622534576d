// A random model as data: blocks on a residual stream (batch, seq, hidden). What it is made of follows
// from a RandomSource alone, so the same program makes any number of equal models.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tests/fuzz/random_source.h"

namespace tenon::fuzz {

enum class BlockKind : std::uint8_t {
  attention,        // q, k, v of the stream; heads; a tail
  cross_attention,  // k and v of the memory input
  mlp,              // up, activation, a tail
  parallel,         // several linears of one input, their results joined
  pointwise,        // a chain of entries of pointwise_table()
  shapes,           // views, permutations, pieces and joins
  batch_norm,
  twice,  // inner blocks called twice
  stack,  // inner blocks in a list of their own
};
enum class MaskKind : std::uint8_t { none, causal, hidden, additive };
enum class Activation : std::uint8_t { gelu, gelu_tanh, relu, silu };
enum class TailKind : std::uint8_t { dense, residual, norm };
enum class NormKind : std::uint8_t { none, layer, rms };

struct BlockProgram {
  BlockKind kind = BlockKind::pointwise;
  NormKind pre_norm = NormKind::none;
  TailKind tail = TailKind::dense;
  double dropout = 0;  // of the tail
  bool bias = true;    // of the tail's and of up's linear
  bool frozen = false;
  // attention
  std::int64_t heads = 1;
  std::int64_t kv_heads = 1;  // divides heads
  std::int64_t head_dim = 4;
  MaskKind mask = MaskKind::none;
  double attention_dropout = 0;
  bool q_bias = true, k_bias = true, v_bias = true;
  bool scale_by_product = false;  // scores * c instead of scores / √d
  // mlp
  Activation activation = Activation::gelu;
  bool activation_module = true;
  bool gated = false;
  std::int64_t width = 16;
  // parallel
  std::vector<std::int64_t> widths = {};
  std::vector<bool> biases = {};
  bool join = false;  // cat the results; else each goes through a function and all are added
  // pointwise and shapes: indices into the tables
  std::vector<int> functions = {};
  std::vector<BlockProgram> inner = {};
};

struct ModelProgram {
  std::int64_t hidden = 8;
  bool tokens = false;  // the first input is token numbers; else (batch, seq, features)
  std::int64_t features = 6;
  std::int64_t vocabulary = 11;
  bool memory = false;             // a second input (batch, length, hidden)
  MaskKind mask = MaskKind::none;  // hidden or additive: a further input
  bool pooled_output = false;
  bool tied_head = false;      // logits by the embedding's weight; only with tokens
  bool fresh_weights = false;  // initial values as the layers give them: norms 1 and 0
  std::int64_t batch = 2, seq = 4, length = 3;  // of the examples
  std::uint64_t weight_seed = 0;
  std::vector<BlockProgram> blocks = {};
  /// One line a block.
  std::string to_string() const;
};

/// Without kinks or jumps when `smooth`, so that float32 can be compared with float64.
ModelProgram draw_model(RandomSource& source, bool smooth);

}  // namespace tenon::fuzz
