// What scheduling itself costs: tracing a model, all primitives of its schedule, lowering, and finding
// patterns in a large Graph; with --verify also verification, its memory included. Medians of several runs.
//
//   bench_schedule --layers 24 [--hidden 64] [--runs 9] [--json]
//   bench_schedule --model bert --verify [--batch 2] [--seq 128] [--dtype bfloat16] [--device cuda]
#include <algorithm>
#include <chrono>
#include <fstream>
#include <functional>
#include <iostream>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "benchmarks/schedule_models.h"
#include "examples/command_line.h"
#include "graph/program.h"
#include "nn/nn.h"
#include "schedule/verification.h"

namespace {

using namespace tenon;

struct Options {
  bench::ScheduledModelOptions model;
  std::string device = "cpu";
  std::string dtype = "float32";
  int runs = 9;
  int verify_runs = 1;
  std::uint64_t seed = 0;
  bool verify = false;
  bool whole = false;
  bool json = false;
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

/// Bytes that /proc/self/status says under this name, in kB there.
std::optional<std::int64_t> process_bytes(const std::string& name) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with(name + ":")) return std::stoll(line.substr(name.size() + 1)) * 1024;
  }
  return std::nullopt;
}

/// The peak of resident memory begins anew; false where the kernel does not let it.
bool forget_peak() {
  std::ofstream refs("/proc/self/clear_refs");
  refs << 5 << std::flush;
  return refs.good();
}

void measure_verification(const Schedule& sch, const Options& o, nlohmann::ordered_json& figures) {
  const VerifyOptions options{.seed = o.seed, .whole = o.whole};
  const bool forgotten = forget_peak();
  const auto before = process_bytes("VmRSS");
  VerifyReport report;
  figures["verify_ms"] = median_ms(o.verify_runs, [&] { report = verify(sch, options); });
  const auto peak = process_bytes("VmHWM");
  figures["record_ms"] = report.record_milliseconds;
  figures["regions"] = report.regions;
  figures["distinct_regions"] = report.distinct_regions;
  if (forgotten && before && peak) figures["peak_extra_bytes"] = *peak - *before;
  figures["not_compared"] = report.not_compared.size();
  figures["left_out"] = report.left_out.size();
  std::cerr << report.summary() << "\n";
  if (!report.ok()) throw VerificationError("verification fails:\n" + report.to_string());
}

nlohmann::ordered_json measure(const Options& o) {
  const bench::ScheduledModel model = bench::make_scheduled_model(o.model);
  const double trace_ms = median_ms(o.runs, [&] { model.trace(); });
  const double schedule_ms = median_ms(o.runs, [&] {
    Schedule sch = model.trace();
    model.apply(sch);
  });
  Schedule sch = model.trace();
  model.apply(sch);
  nlohmann::ordered_json figures = {{"trace_ms", trace_ms}, {"schedule_ms", schedule_ms}};
  if (o.verify) measure_verification(sch, o, figures);
  figures["lower_ms"] = median_ms(o.runs, [&] { lower(sch.graph(), model.inputs); });
  figures["find_2000_nodes_ms"] = measure_find(o);
  return figures;
}

void add_sizes(CommandLine& line, bench::ScheduledModelOptions& model) {
  const auto size = [&](const char* name, std::int64_t& value, const char* what) {
    line.option(name, value, what).positive().without_default();
  };
  size("--layers", model.layers, "24; bert 12, linears 1000, positions 2");
  size("--batch", model.batch, "2; llama and positions 1, block and linears 8");
  size("--seq", model.seq, "8; bert and llama 128, block 512, tied 64; positions takes 2048 only");
  size("--hidden", model.hidden,
       "hidden size, divisible by the heads: 64; bert 768, llama 2048, block 1024, tied 256");
  size("--heads", model.heads, "4; bert 12, llama 32, block 16");
  size("--mlp", model.mlp, "bert 3072, llama 5632");
  size("--vocabulary", model.vocabulary, "bert 30522, llama 32000, tied 50257, positions 1000");
}

}  // namespace

int main(int argc, char** argv) {
  CommandLine line("Times tracing, scheduling, lowering, finding and verification");
  Options options;
  line.option("--model", options.model.model, "what is scheduled")
      .one_of({"encoder", "bert", "llama", "block", "linears", "tied", "positions"});
  add_sizes(line, options.model);
  line.option("--device", options.device, "where the model is").one_of({"cpu", "cuda"});
  line.option("--dtype", options.dtype, "of the model")
      .one_of({"float32", "float64", "float16", "bfloat16"});
  line.option("--runs", options.runs, "of which the median counts").positive();
  line.flag("--verify", options.verify, "also time verification of the schedule");
  line.option("--verify-runs", options.verify_runs, "of which the median counts").positive();
  line.flag("--whole", options.whole, "verification compares the whole model");
  line.option("--seed", options.seed, "of what verification draws");
  line.flag("--json", options.json, "one JSON object on stdout");
  if (const auto status = line.parse(argc, argv)) return *status;
  try {
    options.model.device = Device::parse(options.device);
    options.model.dtype = parse_dtype(options.dtype);
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
