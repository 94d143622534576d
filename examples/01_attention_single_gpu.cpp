// The schedule tutorial on one device: an attention block is loaded from a JSON checkpoint and taken,
// step by step, from its plain form to four kernels. After each step the module tree is printed, what
// was found or replaced, the difference to the unscheduled model, kernels, time and rate.
//
//   attention_single_gpu [--device cuda] [--dtype bfloat16] [--batch 8 --seq 512] [--json]
#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>

#include "examples/attention_model.h"
#include "examples/command_line.h"
#include "graph/dot.h"
#include "graph/profile.h"
#include "graph/svg.h"
#include "nn/checkpoint.h"
#include "schedule/report.h"
#include "schedule/schedule.h"
#include "schedule/verification.h"
#include "tensor/cpu/bare_product.h"
#include "tensor/device_backend.h"

namespace {

using namespace tenon;
using nlohmann::ordered_json;

struct Options {
  std::string device = "auto";
  std::string dtype = "float32";
  std::int64_t batch = 8;
  std::int64_t seq = 128;
  std::int64_t hidden = 0;
  std::int64_t heads = 0;
  std::string checkpoint;
  std::uint64_t seed = 0;
  bool json = false;
  std::string dot;
  std::string svg;
  std::string profile;
  bool report = false;
};

struct Step {
  std::string name;
  std::int64_t matched = 0;
  double max_abs_err = 0;
  std::int64_t kernels = 0;
  double ms = 0;
  double gflops = 0;
};

double max_abs_difference(const Tensor& a, const Tensor& b) {
  const auto x = a.to_doubles();
  const auto y = b.to_doubles();
  double largest = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double apart = std::abs(x[i] - y[i]);
    largest = std::isnan(apart) ? HUGE_VAL : std::max(largest, apart);
  }
  return largest;
}

/// Median milliseconds of a run, over at least 5 runs and about a quarter of a second.
double median_ms(Device device, const std::function<void()>& work) {
  DeviceBackend& backend = device_backend(device.type);
  const double first = std::max(backend.time_ms(device.index, work), 1e-3);
  const int runs = std::clamp(static_cast<int>(250.0 / first), 5, 200);
  std::vector<double> times;
  for (int i = 0; i < runs; ++i) times.push_back(backend.time_ms(device.index, work));
  std::nth_element(times.begin(), times.begin() + runs / 2, times.end());
  return times[static_cast<std::size_t>(runs / 2)];
}

/// The rate to compare with: a bare 1024³ float32 Eigen product on the CPU, a 4096³ product of the
/// run's dtype on the GPU.
double gemm_gflops(Device device, DType dtype) {
  if (device.is_cpu()) return cpu::bare_product_gflops(1024);
  constexpr std::int64_t kSize = 4096;
  const Tensor a = randn({kSize, kSize}, {dtype, kCpu}).to(device);
  const Tensor b = randn({kSize, kSize}, {dtype, kCpu}).to(device);
  const double ms = median_ms(device, [&] { matmul(a, b); });
  return 2.0 * kSize * kSize * kSize / ms * 1e-6;
}

std::string default_checkpoint() {
  namespace fs = std::filesystem;
  if (const char* folder = std::getenv("TENON_TEST_DATA")) {
    return fs::path(folder) / "attention" / "attention.json";
  }
  const fs::path program = fs::read_symlink("/proc/self/exe");
  return (program.parent_path() / "../share/tenon/tests/attention/attention.json")
      .lexically_normal();
}

/// A folder that is removed with its content.
class ScratchFolder {
 public:
  ScratchFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "tenon-XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) throw ValueError("cannot make a folder like " + name);
    path_ = name;
  }
  ~ScratchFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;
  std::string file(const std::string& name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

/// Writes a checkpoint of a freshly initialized model with a recorded call, for sizes that no
/// checkpoint was given for.
nn::Checkpoint write_and_load(const Options& options, const std::string& path) {
  manual_seed(options.seed);
  auto model = nn::make<tutorial::Attention>(options.hidden, options.heads);
  model->eval();
  nn::Checkpoint checkpoint;
  checkpoint.metadata.set("producer", "attention_single_gpu");
  checkpoint.config.set("hidden_size", options.hidden);
  checkpoint.config.set("num_heads", options.heads);
  checkpoint.tensors = model->state_dict();
  nn::RecordedTest test;
  test.inputs = {randn({1, 16, options.hidden})};
  test.outputs = {model(test.inputs[0])};
  checkpoint.tests.push_back(test);
  nn::save_checkpoint(path, checkpoint);
  return nn::load_checkpoint(path);
}

class Tutorial {
 public:
  explicit Tutorial(Options options)
      : options_(std::move(options)), out_(options_.json ? std::cerr : std::cout) {}

  int run() {
    device_ = options_.device == "auto" ? (is_available(kCuda) ? kCuda : kCpu)
                                        : Device::parse(options_.device);
    require_available(device_);
    dtype_ = parse_dtype(options_.dtype);
    if (!is_floating(dtype_)) throw DTypeError("--dtype " + options_.dtype + " is not a float");
    if (options_.batch < 1 || options_.seq < 1) throw ValueError("--batch and --seq start at 1");
    if (!options_.svg.empty())
      to_svg("digraph {}");  // so that a missing dot is told before the work
    load();
    walk();
    check_recorded();
    finish();
    return ok_ ? 0 : 1;
  }

 private:
  void load() {
    const bool own_sizes = options_.hidden > 0 || options_.heads > 0;
    nn::Checkpoint checkpoint;
    ScratchFolder scratch;
    if (options_.checkpoint.empty() && own_sizes) {
      if (options_.hidden == 0) options_.hidden = 128;
      if (options_.heads == 0) options_.heads = 8;
      checkpoint = write_and_load(options_, scratch.file("attention.json"));
      options_.checkpoint = "(written with seed " + std::to_string(options_.seed) + ")";
    } else {
      if (options_.checkpoint.empty()) options_.checkpoint = default_checkpoint();
      checkpoint = nn::load_checkpoint(options_.checkpoint);
      const auto hidden = checkpoint.config.integer("hidden_size");
      const auto heads = checkpoint.config.integer("num_heads");
      if (options_.hidden == 0) options_.hidden = hidden.value_or(0);
      if (options_.heads == 0) options_.heads = heads.value_or(0);
      if (options_.hidden < 1 || options_.heads < 1) {
        throw ValueError(
            options_.checkpoint +
            ": its config has no hidden_size and num_heads; give --hidden and --heads");
      }
    }
    model_ = nn::make<tutorial::Attention>(options_.hidden, options_.heads);
    const nn::LoadReport loaded = nn::load_into(*model_, checkpoint);
    out_ << "checkpoint " << options_.checkpoint << ": " << loaded.loaded.size()
         << " tensors loaded\n";
    tests_ = checkpoint.tests;
    model_->eval();
    model_->to(device_, dtype_);
    Generator generator(options_.seed + 1);
    input_ = randn({options_.batch, options_.seq, options_.hidden}, {}, &generator)
                 .to(dtype_)
                 .to(device_);
    gemm_gflops_ = gemm_gflops(device_, dtype_);
    out_ << "device " << device_backend(device_.type).device_name(device_.index) << ", "
         << name(dtype_) << ", a plain product runs at " << gemm_gflops_ << " GFLOP/s\n";
  }

  void walk() {
    Schedule sch = create_schedule(model_, {{"hidden_states", input_}});
    expected_ = model_(input_);
    finish_step(sch, "create_schedule", 0, true);

    Schedule attn = sch["self_attn"];
    out_ << "\n" << attn.to_string() << "\n";
    finish_step(sch, "self_attn", 0, false);

    const std::int64_t heads = options_.heads;
    const auto qkv_pattern = [heads](const Tensor& x) {
      const Tensor y = call_module("[qkv]_proj", x);
      return y.view({y.size(0), y.size(1), heads, -1}).permute({0, 2, 1, 3});
    };
    const Matches qkv = found(sch.find(qkv_pattern), 3);
    finish_step(sch, "find_qkv", qkv, false);
    sch.replace(nn::make<tutorial::FusedQKV>(options_.hidden, heads), qkv);
    finish_step(sch, "replace_qkv", qkv, true);

    const Matches core = found(sch.find(tutorial::scaled_dot_product), 1);
    finish_step(sch, "find_scaled_dot_product", core, false);
    sch.replace(nn::make<tutorial::FlashAttention>(), core,
                {.concrete_args = {{"attention_mask", std::monostate{}}, {"p", 0.1}}});
    finish_step(sch, "replace_attention", core, true);

    Schedule proj = sch["proj"];
    proj["dense"].decompose();
    finish_step(sch, "decompose_dense", 0, true);
    proj.trace({.flatten = true});
    finish_step(sch, "trace_flat", 0, false);

    const auto tail_pattern = [](const Tensor& x, const Tensor& bias, const Tensor& residual,
                                 const Tensor& weight, const Tensor& norm_bias) {
      return layer_norm(dropout(x + bias, 0.1) + residual, weight, norm_bias);
    };
    const Matches tail = found(proj.find(tail_pattern), 1);
    finish_step(sch, "find_bias_dropout_residual_layer_norm", tail, false);
    proj.fuse(tail, {.name = "FusedLayerNorm"});
    finish_step(sch, "fuse", tail, true);

    const Executor built = build(sch);
    finish_step(sch, "build", 0, true);
    scheduled_ = std::make_unique<Executor>(built);
    check_other_sizes();
    show(sch);
  }

  /// What the whole schedule changed, what each primitive bought, where the time goes, and pictures.
  void show(const Schedule& sch) {
    out_ << "\n" << sch << "\n";
    if (!options_.profile.empty()) {
      const Tensor inputs[] = {input_};
      const Profile times = profile(scheduled_->program(inputs), inputs);
      times.write_chrome_trace(options_.profile);
      out_ << "\n" << times.to_string();
    }
    if (options_.report) {
      report_ = report(sch, {.inputs = {input_}});
      out_ << "\n" << report_->to_string();
    }
    if (options_.svg.empty()) return;
    const std::filesystem::path folder = options_.svg;
    std::filesystem::create_directories(folder);
    const GraphDiff changes = diff(sch.original(), sch.graph());
    write_svg(folder / "before.svg", to_dot(sch.original(), changes));
    write_svg(folder / "after.svg", to_dot(sch.graph(), changes));
  }

  Matches found(Matches matches, std::size_t expected) {
    out_ << "\nfound " << matches << "\n";
    if (matches.size() != expected) {
      out_ << matches.explain() << "\n";
      throw ScheduleError("found " + std::to_string(matches.size()) + " matches; expected " +
                          std::to_string(expected) + "\n" + matches.explain());
    }
    return matches;
  }

  void finish_step(const Schedule& sch, const std::string& step_name, const Matches& matches,
                   bool changed) {
    finish_step(sch, step_name, static_cast<std::int64_t>(matches.size()), changed);
  }

  /// Runs what the schedule has become and compares it with the unscheduled model.
  void finish_step(const Schedule& sch, const std::string& step_name, std::int64_t matched,
                   bool changed) {
    Step step;
    if (!steps_.empty()) step = steps_.back();
    step.name = step_name;
    step.matched = matched;
    if (changed) {
      const VerifyReport verified = verify(sch);
      ok_ &= verified.ok();
      Executor executor = build(sch, {.verify = false});
      const Tensor inputs[] = {input_};
      Program& program = executor.program(inputs);
      step.max_abs_err = max_abs_difference(program.run(inputs).at(0), expected_);
      step.kernels = program.count_kernels(inputs);
      step.ms = median_ms(device_, [&] { program.run(inputs); });
      step.gflops = program.flops() / step.ms * 1e-6;
      out_ << "\n== " << step_name << "\n" << sch.to_string() << "\n" << verified.to_string();
    } else {
      out_ << "\n== " << step_name << " (the computation is unchanged)\n";
    }
    char line[200];
    std::snprintf(line, sizeof line,
                  "largest difference %.3g, %lld kernels, %.4f ms, %.1f GFLOP/s\n",
                  step.max_abs_err, static_cast<long long>(step.kernels), step.ms, step.gflops);
    out_ << line;
    write_dot(sch, step_name);
    steps_.push_back(step);
  }

  void write_dot(const Schedule& sch, const std::string& step_name) {
    if (options_.dot.empty()) return;
    std::filesystem::create_directories(options_.dot);
    const auto number = std::to_string(100 + steps_.size()).substr(1);
    const auto path = std::filesystem::path(options_.dot) / (number + "_" + step_name + ".dot");
    std::ofstream file(path);
    file << to_dot(sch.graph());
    if (!file.flush()) throw ValueError("cannot write " + path.string());
  }

  /// The same build on other sizes: no trace, schedule or build call in between.
  void check_other_sizes() {
    constexpr std::array<std::pair<int, int>, 3> kSizes = {{{1, 128}, {8, 512}, {3, 77}}};
    for (const auto& [batch, seq] : kSizes) {
      Generator generator(options_.seed + 2);
      const Tensor x = randn({batch, seq, options_.hidden}, {}, &generator).to(dtype_).to(device_);
      const double apart = max_abs_difference((*scheduled_)(x), model_(x));
      out_ << "(batch, seq) = (" << batch << ", " << seq << "): largest difference " << apart
           << "\n";
      ok_ &= apart <= tolerance();
    }
  }

  /// For normalized outputs, of which the largest are about 5.
  double tolerance() const {
    if (dtype_ == DType::float32) return 1e-5;
    return std::max(1e-9, 32 * unit_roundoff(dtype_));
  }

  void check_recorded() {
    for (const nn::RecordedTest& test : tests_) {
      const Tensor output = (*scheduled_)(test.inputs.at(0).to(dtype_).to(device_));
      recorded_ = std::max(recorded_.value_or(0), max_abs_difference(output, test.outputs.at(0)));
      const double allowed = dtype_ == DType::float32 || dtype_ == DType::float64
                                 ? std::max(test.atol, test.rtol)
                                 : tolerance();
      ok_ &= *recorded_ <= allowed;
      out_ << "recorded output: largest difference " << *recorded_ << ", allowed " << allowed
           << "\n";
    }
  }

  void finish() {
    if (!options_.json) {
      out_ << "\n" << (ok_ ? "every step verified" : "a step FAILED verification") << "\n";
      return;
    }
    ordered_json steps = ordered_json::array();
    for (const Step& step : steps_) {
      steps.push_back({{"name", step.name},
                       {"matched", step.matched},
                       {"max_abs_err", step.max_abs_err},
                       {"kernels", step.kernels},
                       {"ms", step.ms},
                       {"gflops", step.gflops}});
    }
    ordered_json result = {
        {"device", device_.to_string()},
        {"dtype", name(dtype_)},
        {"batch", options_.batch},
        {"seq", options_.seq},
        {"hidden", options_.hidden},
        {"heads", options_.heads},
        {"checkpoint", options_.checkpoint},
        {"gemm_gflops", gemm_gflops_},
        {"steps", steps},
        {"recorded_max_abs_err", recorded_ ? ordered_json(*recorded_) : ordered_json()},
        {"ok", ok_}};
    if (report_) result["report"] = *report_;
    std::cout << result.dump(2) << "\n";
  }

  Options options_;
  std::ostream& out_;
  Device device_;
  DType dtype_ = DType::float32;
  nn::Child<tutorial::Attention> model_;
  std::vector<nn::RecordedTest> tests_;
  Tensor input_;
  Tensor expected_;
  double gemm_gflops_ = 0;
  std::vector<Step> steps_;
  std::unique_ptr<Executor> scheduled_;
  std::optional<double> recorded_;
  std::optional<ScheduleReport> report_;
  bool ok_ = true;
};

void add_options(CommandLine& line, Options& o) {
  line.last_wins();
  line.option("--device", o.device, "cpu, cuda, cuda:N, or auto: cuda where there is one");
  line.option("--dtype", o.dtype, "float32, float64, float16 or bfloat16");
  line.option("--batch", o.batch, "batch size of the timed input");
  line.option("--seq", o.seq, "sequence length of the timed input");
  line.option("--hidden", o.hidden,
              "hidden size; without --checkpoint, a checkpoint of this size is written, then read")
      .without_default();
  line.option("--heads", o.heads, "attention heads; must divide the hidden size").without_default();
  line.option("--checkpoint", o.checkpoint,
              "JSON checkpoint to load (default: the one that ships with the tests)");
  line.option("--seed", o.seed, "of the inputs, and of weights that are not loaded");
  line.flag("--json", o.json, "one JSON object on stdout, everything else on stderr");
  line.option("--dot", o.dot, "write the graph after each step to this folder (Graphviz)");
  line.option("--profile", o.profile,
              "writes a Chrome or Perfetto trace of the scheduled block to this file");
  line.option("--svg", o.svg,
              "draw the graph before and after the schedule, changes marked, into this folder: "
              "before.svg and after.svg (needs Graphviz)");
  line.flag("--report", o.report,
            "a table of what each primitive bought: nodes, kernels, bytes moved, memory, time, "
            "error; with --json in the object");
}

}  // namespace

int main(int argc, char** argv) {
  CommandLine line(
      "The schedule tutorial: an attention block, optimized step by step on one device");
  Options options;
  add_options(line, options);
  if (const auto status = line.parse(argc, argv)) return *status;
  try {
    return Tutorial(options).run();
  } catch (const tenon::Error& error) {
    std::cerr << "error: " << error.what() << "\n";
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << "\n";
  }
  return 2;
}
