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
std::vector<Planted> planted_in_layers();
std::vector<Planted> planted_out_of_reach();
std::vector<Planted> all_planted();
/// Edits that mean the same, which must be accepted.
std::vector<Planted> planted_legal();

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
Schedule layers();           // three of the tutorial's block
Schedule fused_layers();     // the same with one product for q, k and v each
Schedule norms();            // batch norms of two layers, which read each other's result
Schedule two_masks();        // attention twice, under masks of its own
Schedule window();           // attention over the last 16 keys, traced at 40
Schedule loud();             // tanh, silu and relu of a Linear with large weights
Schedule numbered();         // rows of a table of 200, number 150 cleared
Schedule rows();  // mean, log_softmax and x/(|x| + 1e-15) of rows, and their first 64 doubled
}  // namespace scenes

}  // namespace tenon::fuzz
