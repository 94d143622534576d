// Planted wrong rewrites: edits of a Graph that the IR verifier accepts and that change what the model
// means, which schedule verification must catch. They exist in test programs only.
#pragma once

#include <vector>

#include "schedule/schedule.h"
#include "tests/fuzz/graph_edit.h"

namespace tenon::fuzz {

/// A model, maybe scheduled already, that edits are tried on.
using Scene = Schedule (*)();

struct Planted {
  const char* name;
  Scene scene;
  void (*edit)(GraphEdit&);
};

// One list a file of planted_*.cpp.
std::vector<Planted> planted_in_attention();
std::vector<Planted> planted_in_models();
std::vector<Planted> planted_in_values();
std::vector<Planted> planted_in_state();
std::vector<Planted> all_planted();

namespace scenes {
Schedule attention();        // the tutorial's block
Schedule zero_biases();      // the same with all biases zero
Schedule fused_attention();  // the same after the tutorial's schedule
Schedule mlp();              // test::ResidualMlp
Schedule cross_attention();  // test::CrossAttention
Schedule gpt();              // one block
Schedule vision();           // conv2d, batch_norm, relu
Schedule tied();             // token logits by the embedding's weight, a frozen weight on the way
Schedule masked();           // softmax of scores under a bool mask
Schedule kinks();            // relu(x), maximum(x, y), abs(y), as one output each
Schedule outputs();          // two outputs and an intermediate of both
}  // namespace scenes

}  // namespace tenon::fuzz
