// What scheduling itself costs: tracing an encoder, all primitives of its schedule, lowering, and
// finding patterns in a large Graph. Medians of several runs; verification is off.
//
//   bench_schedule --layers 24 [--hidden 64] [--runs 9] [--json]
#include <algorithm>
#include <chrono>
#include <functional>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "examples/attention_model.h"
#include "examples/command_line.h"
#include "graph/program.h"
#include "nn/nn.h"
#include "schedule/schedules.h"

namespace {

using namespace tenon;

struct Options {
  std::int64_t layers = 24;
  std::int64_t hidden = 64;
  std::int64_t heads = 4;
  int runs = 9;
  bool json = false;
};

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

double median_ms(int runs, const std::function<void()>& work) {
  std::vector<double> times;
  for (int i = 0; i < runs; ++i) {
    const auto start = std::chrono::steady_clock::now();
    work();
    times.push_back(
        std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start)
            .count());
  }
  std::nth_element(times.begin(), times.begin() + runs / 2, times.end());
  return times[static_cast<std::size_t>(runs / 2)];
}

Schedule trace_encoder(const nn::Child<Encoder>& model, const Options& o) {
  return create_schedule(model, {{"hidden_states", zeros({2, 8, o.hidden})}});
}

/// A Graph of 2,000 nodes: chains of four ops, one in ten of which is what is looked for.
struct LargeGraph : nn::Module {
  Tensor forward(Tensor x) const {
    for (int i = 0; i < 500; ++i) {
      x = i % 10 == 0 ? tanh(relu(exp(x + x))) : sigmoid(relu(exp(x + x)));
    }
    return x;
  }
};

double measure_find(const Options& o) {
  const Schedule sch = create_schedule(nn::make<LargeGraph>(), {zeros({2, 3})});
  if (sch.graph().order().size() != 2000) throw std::runtime_error("the Graph has another size");
  const auto pattern = [](const Tensor& x) { return tanh(relu(exp(x + x))); };
  // Begins to match at every chain and fails at the last call.
  const auto near_miss = [](const Tensor& x) { return relu(exp(relu(x + x))); };
  std::size_t found = 0;
  const double hits = median_ms(o.runs, [&] { found = sch.find(pattern).size(); });
  if (found != 50) throw std::runtime_error("find does not find what is there");
  const double misses = median_ms(o.runs, [&] { found = sch.find(near_miss).size(); });
  if (found != 0) throw std::runtime_error("find finds what is not there");
  return std::max(hits, misses);
}

nlohmann::ordered_json measure(const Options& o) {
  const auto model = nn::make<Encoder>(o);
  const double trace_ms = median_ms(o.runs, [&] { trace_encoder(model, o); });
  const double schedule_ms = median_ms(o.runs, [&] {
    Schedule sch = trace_encoder(model, o);
    schedules::transformer_encoder(sch);
  });
  Schedule sch = trace_encoder(model, o);
  schedules::transformer_encoder(sch);
  const std::vector<TensorSpec> inputs = {zeros({2, 8, o.hidden}).spec()};
  const double lower_ms = median_ms(o.runs, [&] { lower(sch.graph(), inputs); });
  return {{"trace_ms", trace_ms},
          {"schedule_ms", schedule_ms},
          {"lower_ms", lower_ms},
          {"find_2000_nodes_ms", measure_find(o)}};
}

}  // namespace

int main(int argc, char** argv) {
  CommandLine line("Times tracing, scheduling, lowering and finding");
  Options options;
  line.option("--layers", options.layers, "encoder layers").positive();
  line.option("--hidden", options.hidden, "hidden size, divisible by 4").positive();
  line.option("--runs", options.runs, "of which the median counts").positive();
  line.flag("--json", options.json, "one JSON object on stdout");
  if (const auto status = line.parse(argc, argv)) return *status;
  try {
    const nlohmann::ordered_json figures = measure(options);
    if (options.json) {
      std::cout << figures.dump() << std::endl;
      return 0;
    }
    for (const auto& [name, value] : figures.items()) {
      std::cout << name << " " << value.get<double>() << "\n";
    }
    return 0;
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << "\n";
    return 2;
  }
}
