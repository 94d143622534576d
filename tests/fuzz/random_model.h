// The nn::Modules that a ModelProgram describes, and what a schedule may put in their place.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "graph/tracer.h"
#include "nn/nn.h"
#include "tests/fuzz/model_program.h"

namespace tenon::fuzz {

/// What every block may read beside the stream; undefined where the model has no such input.
struct Context {
  Tensor memory;  // (batch, length, hidden)
  Tensor mask;    // (seq, seq), bool (true: hidden) or floating (added)
};

/// softmax(q·kᵀ/√d + mask)·v as this program writes it, and the same as one op.
Tensor composed_attention(const BlockProgram& program, const Tensor& q, const Tensor& k,
                          const Tensor& v, const Tensor& mask);
Tensor fused_attention(const BlockProgram& program, const Tensor& q, const Tensor& k,
                       const Tensor& v, const Tensor& mask);
/// (batch, seq, heads·d) -> (batch, heads, seq, d).
Tensor split_heads(const Tensor& x, std::int64_t heads);

struct RandomAttention : nn::Module {
  RandomAttention(const BlockProgram& program, std::int64_t hidden);
  /// `mask` is undefined unless the program has one.
  Tensor forward(const Tensor& x, const Tensor& memory, const Tensor& mask) const;
  BlockProgram program;
  nn::Child<nn::Linear> q_proj, k_proj, v_proj;
};

/// The size of what a tail is given.
std::int64_t tail_width(const BlockProgram& program);

/// dense, then dropout, the residual and a norm, as far as the program goes.
struct RandomTail : nn::Module {
  RandomTail(const BlockProgram& program, std::int64_t width, std::int64_t hidden);
  Tensor forward(const Tensor& y, const Tensor& residual) const;
  BlockProgram program;
  nn::Child<nn::Linear> dense;
  nn::Child<nn::Dropout> dropout;
  nn::Child<nn::LayerNorm> norm;
};

struct RandomBlock : nn::Module {
  RandomBlock(const BlockProgram& program, std::int64_t hidden);
  Tensor forward(const Tensor& x, const Tensor& memory, const Tensor& mask) const;

  BlockProgram program;
  nn::Child<nn::LayerNorm> layer_norm;
  nn::Child<nn::RMSNorm> rms_norm;
  nn::Child<RandomAttention> attn;
  nn::Child<nn::Linear> up, gate;
  nn::Child<nn::GELU> gelu_act;
  nn::Child<nn::ReLU> relu_act;
  nn::Child<nn::SiLU> silu_act;
  nn::Child<nn::ModuleList<nn::Linear>> linears;
  nn::Child<nn::BatchNorm2d> batch_norm;
  nn::Child<nn::ModuleList<RandomBlock>> inner;
  nn::Child<RandomTail> tail;

 private:
  Tensor activated(const Tensor& x) const;
  Tensor mlp(const Tensor& x) const;
  Tensor joined(const Tensor& x) const;
  Tensor functions(Tensor x) const;
  Tensor normalized(const Tensor& x) const;
};

struct RandomModel : nn::Module {
  explicit RandomModel(const ModelProgram& program);
  std::vector<Tensor> forward(const std::vector<Tensor>& inputs) const;

  ModelProgram program;
  nn::Child<nn::Embedding> tokens;
  nn::Child<nn::Linear> stem, memory_stem;
  nn::Child<nn::ModuleList<RandomBlock>> blocks;
};

/// A model with the program's weights, in training mode.
nn::Child<RandomModel> make_model(const ModelProgram& program, DType dtype);
/// Inputs of the sizes that the program names.
std::vector<Tensor> make_inputs(const ModelProgram& program, DType dtype);

/// q, k and v from one product; its results are split into heads like the projections'.
struct FusedProjections : nn::Module {
  FusedProjections(const BlockProgram& program, std::int64_t hidden);
  std::vector<Tensor> forward(const Tensor& x) const;
  std::int64_t heads;
  nn::Child<nn::Linear> fused;
};

/// A Linear that keeps its weight as (in, out).
struct TransposedLinear : nn::Module {
  TransposedLinear(std::int64_t in, std::int64_t out)
      : transposed(register_parameter("transposed", zeros({in, out}))),
        shift(register_parameter("shift", zeros({out}))) {}
  Tensor forward(const Tensor& x) const { return matmul(x, transposed) + shift; }
  Tensor transposed, shift;
};

}  // namespace tenon::fuzz
