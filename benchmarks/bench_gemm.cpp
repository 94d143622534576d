// input·weightᵀ + bias as a Program runs it, beside the fastest of cuBLASLt's algorithms.
//
//   bench_gemm --sizes 128 768 3072 --sizes 1 4096 4096 --json
//
// --sizes M N K, again and again: (M, K) x (N, K)ᵀ. Operands are random and rotate through more memory than
// the cache holds, as weights do in a model; --warm keeps one set. microseconds: the kernel that Tenon picks.
// best_microseconds: the fastest of --algorithms deterministic ones that cuBLASLt names, with sums cut into
// parts or not; first_microseconds: the one that it names first without cutting. --epilogue: of linear_gelu
// and its like, beside cuBLASLt's tanh form of GELU where it lacks the epilogue. --plans: the time of each of
// cuBLASLt's algorithms, by its configuration, and of each plan of Tenon's own kernels.
#include <cuda_runtime_api.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <iostream>
#include <nlohmann/json.hpp>

#include "benchmarks/measure.h"
#include "cuda/gemm_plan.h"
#include "cuda/kernels/gemm_skinny.h"
#include "cuda/kernels/gemm_split.h"
#include "cuda/kernels/gemm_wgmma.h"
#include "tensor/device_backend.h"
#include "tensor/error.h"
#include "tensor/functional.h"
#include "tensor/op.h"
#include "tensor/ops/attributes.h"
#include "tensor/tensor.h"

namespace {

using namespace tenon;
using cuda::GemmProblem;

struct Options : bench::CommonOptions {
  std::vector<std::int64_t> sizes;
  int algorithms = 16;
  int runs = 20;
  bool warm = false;
  bool no_bias = false;
  bool plans = false;
  std::string epilogue = "none";
  std::string layout = "linear";
};

/// How the operands are stored: linear x (M, K), w (N, K); product x (M, K), w (K, N), as the gradient of
/// an input has them; gradient x (K, M), w (K, N), as that of a weight has them.
struct Layout {
  bool input_by_columns = false;
  bool weight_by_columns = true;
  explicit Layout(const std::string& name)
      : input_by_columns(name == "gradient"), weight_by_columns(name == "linear") {}
};

struct Operands {
  std::int64_t m, n, k;
  Layout layout;
  Tensor input, weight, bias, output;

  Operands(const Options& o, std::int64_t rows_of_output, std::int64_t columns_of_output,
           std::int64_t depth, Device device, Generator& generator)
      : m(rows_of_output), n(columns_of_output), k(depth), layout(o.layout) {
    const TensorOptions like{parse_dtype(o.dtype), device};
    const auto make = [&](std::int64_t rows, std::int64_t columns, bool by_columns) {
      return by_columns ? randn({columns, rows}, like, &generator)
                        : randn({rows, columns}, like, &generator);
    };
    input = make(m, k, layout.input_by_columns);
    weight = make(k, n, layout.weight_by_columns);
    output = make(m, n, false);
    if (layout.weight_by_columns && !o.no_bias) bias = randn({n}, like, &generator);
  }
  std::size_t bytes() const {
    return input.storage()->bytes() + weight.storage()->bytes() + output.storage()->bytes();
  }
  static void* data(const Tensor& tensor) { return tensor ? tensor.view_of_data().data : nullptr; }
  GemmProblem problem() const {
    GemmProblem p{.dtype = input.dtype(), .m = m, .n = n, .k = k};
    p.a = {data(input), layout.input_by_columns, layout.input_by_columns ? m : k, 0};
    p.b = {data(weight), layout.weight_by_columns, layout.weight_by_columns ? k : n, 0};
    p.d = data(output);
    p.d_leading = n;
    p.bias = data(bias);
    return p;
  }
};

class Comparison {
 public:
  explicit Comparison(const Options& o) : o_(o), device_(o.chosen_device()), generator_(o.seed) {
    if (!device_.is_cuda()) throw DeviceError("bench_gemm measures a GPU; needed --device cuda");
    if (o.sizes.empty() || o.sizes.size() % 3 != 0) throw ValueError("needed --sizes M N K");
    backend_ = &device_backend(DeviceType::cuda);
    cublasLtHandle_t handle = nullptr;
    cuda::check(cublasLtCreate(&handle), "cublasLtCreate");
    handle_ = cuda::LtHandle(handle);
  }

  nlohmann::ordered_json run() {
    nlohmann::ordered_json rows = nlohmann::ordered_json::array();
    for (std::size_t i = 0; i < o_.sizes.size(); i += 3) {
      rows.push_back(row(o_.sizes[i], o_.sizes[i + 1], o_.sizes[i + 2]));
      std::cerr << rows.back().dump() << "\n";
    }
    return {{"device", backend_->device_name(device_.index)}, {"rows", std::move(rows)}};
  }

 private:
  nlohmann::ordered_json row(std::int64_t m, std::int64_t n, std::int64_t k) {
    std::vector<Operands> sets;
    sets.emplace_back(o_, m, n, k, device_, generator_);
    // Small operands take turns too, for more launches than one cache holds.
    constexpr std::size_t kCold = std::size_t{128} << 20;
    const std::size_t wanted =
        o_.warm ? 1 : std::clamp<std::size_t>(kCold / sets[0].bytes() + 1, 2, 64);
    while (sets.size() < wanted) {
      sets.emplace_back(o_, m, n, k, device_, generator_);
    }
    runs_ = runs_for(m, n, k, size_of(parse_dtype(o_.dtype)));
    Times plans;
    const Measured library = measure_library(sets, plans);
    const Kernel* kernel = nullptr;
    const auto ours = record([&](std::size_t i) { kernel = launch(sets[i % sets.size()]); });
    // In turns, so that the choice of the least of many measurements does not flatter it.
    std::vector<double> times[2];
    for (int repeat = 0; repeat < 5; ++repeat) {
      times[0].push_back(microseconds(*ours));
      if (library.best != nullptr) times[1].push_back(microseconds(*library.best));
    }
    const double microseconds = bench::median(std::move(times[0]));
    const double best = library.best == nullptr ? HUGE_VAL : bench::median(std::move(times[1]));
    nlohmann::ordered_json found = {{"m", m},
                                    {"n", n},
                                    {"k", k},
                                    {"kernel", kernel == nullptr ? "two ops" : kernel->name},
                                    {"microseconds", microseconds},
                                    {"best_microseconds", best},
                                    {"first_microseconds", library.first},
                                    {"best_splits_k", library.best_splits},
                                    {"ratio", best / microseconds}};
    if (!o_.plans) return found;
    measure_plans(sets, plans);
    found["plans"] = nlohmann::ordered_json::object();
    for (const auto& [name, time] : plans) found["plans"][name] = time;
    return found;
  }

  using Work = std::unique_ptr<CapturedWork>;
  using Times = std::vector<std::pair<std::string, double>>;

  /// The fastest of cuBLASLt's algorithms and the time of the first.
  struct Measured {
    Work best;
    double first = 0;
    bool best_splits = false;
  };

  Measured measure_library(const std::vector<Operands>& sets, Times& plans) {
    const GemmProblem problem = library_problem(sets[0]);
    Measured found;
    const auto descriptors = cuda::describe(problem);
    if (!descriptors) return found;
    double least = HUGE_VAL;
    std::vector<cuda::GemmAlgorithm> seen;
    for (const bool splits_k : {false, true}) {
      for (const auto& algorithm :
           cuda::candidates(handle_.get(), problem, *descriptors, splits_k, o_.algorithms)) {
        const cuda::GemmAlgorithm configuration = cuda::configuration_of(algorithm);
        if (!cuda::is_deterministic(configuration) ||
            std::find(seen.begin(), seen.end(), configuration) != seen.end()) {
          continue;
        }
        seen.push_back(configuration);
        auto work = record([&](std::size_t i) {
          cuda::run_algorithm(handle_.get(), stream(), library_problem(sets[i % sets.size()]),
                              *descriptors, algorithm);
        });
        const double time = median_us(*work);
        if (found.first == 0) found.first = time;
        if (o_.plans) plans.emplace_back(fmt::format("{}", fmt::join(configuration, ",")), time);
        if (time >= least) continue;
        least = time;
        found.best = std::move(work);
        found.best_splits = splits_k;
      }
    }
    return found;
  }

  /// cuBLASLt lacks most activations: its tanh form of GELU costs no less.
  GemmProblem library_problem(const Operands& x) const {
    GemmProblem p = x.problem();
    if (activates()) p.epilogue = cuda::GemmEpilogue::gelu_tanh;
    return p;
  }

  bool activates() const { return o_.epilogue != "none"; }

  /// Tenon's own kernels, without an activation.
  void measure_plans(const std::vector<Operands>& sets, Times& times) {
    const GemmProblem problem = sets[0].problem();
    const cuda::DeviceLimits& limits = cuda::device_limits(device_.index);
    const auto measure = [&](std::string name, auto&& run) {
      const auto work = record([&](std::size_t i) { run(sets[i % sets.size()].problem()); });
      times.emplace_back(std::move(name), median_us(*work));
    };
    if (cuda::gemm_skinny_takes(problem)) {
      measure("skinny",
              [&](const GemmProblem& p) { cuda::gemm_skinny(stream(), "gemm_skinny", p); });
    }
    if (cuda::gemm_wgmma_takes(problem, limits)) {
      measure("wgmma", [&](const GemmProblem& p) { cuda::gemm_wgmma(stream(), "gemm_wgmma", p); });
    }
    if (!cuda::gemm_split_takes(problem, limits)) return;
    for (const auto& [rows, columns] : {std::pair{64, 64}, {64, 128}, {128, 128}}) {
      const std::int64_t tiles =
          cuda::ceil_div(problem.m, rows) * cuda::ceil_div(problem.n, columns);
      for (const int parts : {1, 2, 3, 4, 6, 8}) {
        constexpr std::int64_t kMostBlocks = 600, kMostTiles = 2000;
        if (parts > cuda::ceil_div(problem.k, 64) || tiles > kMostTiles ||
            (parts > 1 && tiles * parts > kMostBlocks)) {
          continue;
        }
        measure(fmt::format("{}x{}/{}", rows, columns, parts), [&](const GemmProblem& p) {
          cuda::gemm_split(stream(), "gemm_split", p, {rows, columns, parts});
        });
      }
    }
  }

  /// This thread's, or while work is captured that of the capture.
  cuda::Stream stream() const {
    return {static_cast<cudaStream_t>(backend_->stream(device_.index)), device_.index};
  }

  /// As a Program launches it: the kernel is chosen before addresses are known. Null where the product and
  /// its activation are two ops.
  const Kernel* launch(const Operands& x) const {
    const bool linear = x.layout.weight_by_columns;
    const Op& op = get_op(activates() ? "linear_gelu" : linear ? "linear" : "matmul");
    static const Attrs attrs =
        !activates() ? Attrs{}
                     : Attrs(GeluAttrs{o_.epilogue == "gelu" ? Approximate::none : Approximate::tanh});
    const Tensor input = x.layout.input_by_columns ? x.input.transpose(0, 1) : x.input;
    TensorView inputs[3] = {input.view_of_data(), x.weight.view_of_data(), {}};
    if (x.bias) inputs[2] = x.bias.view_of_data();
    TensorView outputs[1] = {x.output.view_of_data()};
    KernelArgs args{&op, std::span(inputs, linear ? 3 : 2), outputs, &attrs};
    args.stream = backend_->stream(device_.index);
    std::vector<void*> addresses;
    for (TensorView* view : {&inputs[0], &inputs[1], &inputs[2], &outputs[0]}) {
      addresses.push_back(std::exchange(view->data, nullptr));
    }
    const Kernel* kernel = select_kernel(op, DeviceType::cuda, args);
    if (kernel == nullptr) {
      const Tensor& bias = x.bias;
      static_cast<void>(gelu(tenon::linear(x.input, x.weight, bias),
                             o_.epilogue == "gelu" ? Approximate::none : Approximate::tanh));
      return nullptr;
    }
    const std::size_t bytes = kernel->workspace_bytes ? kernel->workspace_bytes(args) : 0;
    if (bytes > workspace_size_) {
      workspace_ = empty({static_cast<std::int64_t>(bytes)}, {DType::uint8, device_});
      workspace_size_ = bytes;
    }
    args.workspace = bytes > 0 ? workspace_.view_of_data().data : nullptr;
    std::size_t i = 0;
    for (TensorView* view : {&inputs[0], &inputs[1], &inputs[2], &outputs[0]}) {
      view->data = addresses[i++];
    }
    kernel->run(args);
    return kernel;
  }

  /// Enough runs for a millisecond, at least 4.
  int runs_for(std::int64_t m, std::int64_t n, std::int64_t k, std::size_t element) const {
    const auto size = [](std::int64_t x) { return static_cast<double>(x); };
    const double operations = 2 * size(m) * size(n) * size(k);
    const double bytes = size(m * k + n * k + m * n) * static_cast<double>(element);
    const double least_us = 2 + std::max(operations / 6e8, bytes / 4e6);
    return std::min(o_.runs, static_cast<int>(std::max(4.0, 1000 / least_us)));
  }

  /// One graph launch for all runs: small products take less time than the host's calls.
  template <class F>
  Work record(const F& one) {
    std::size_t next = 0;
    one(next++);
    auto work = backend_->capture(device_.index, [&](const auto*) {
      for (int i = 0; i < runs_; ++i) one(next++);
    });
    work->launch(0);
    return work;
  }

  double microseconds(CapturedWork& work) {
    return backend_->time_ms(device_.index, [&] { work.launch(0); }) * 1e3 / runs_;
  }

  double median_us(CapturedWork& work) {
    std::vector<double> times;
    for (int repeat = 0; repeat < 3; ++repeat) times.push_back(microseconds(work));
    return bench::median(std::move(times));
  }

  Options o_;
  Device device_;
  Generator generator_;
  DeviceBackend* backend_ = nullptr;
  cuda::LtHandle handle_;
  int runs_ = 0;
  mutable Tensor workspace_;
  mutable std::size_t workspace_size_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
  CommandLine line("Times input x weight^T + bias beside cuBLASLt's fastest algorithm");
  Options options;
  options.add_to(line);
  line.option("--sizes", options.sizes, "M N K of each product").positive().without_default();
  line.option("--algorithms", options.algorithms, "at most so many of cuBLASLt's").positive();
  line.option("--runs", options.runs, "products of a measurement, at most").positive();
  line.flag("--warm", options.warm, "the same operands again and again");
  line.flag("--no-bias", options.no_bias, "without a bias");
  line.flag("--plans", options.plans, "list the time of every algorithm and plan");
  line.option("--layout", options.layout, "of the operands")
      .one_of({"linear", "product", "gradient"});
  line.option("--epilogue", options.epilogue, "what follows").one_of({"none", "gelu", "gelu_tanh"});
  return bench::run_program(line, argc, argv, options, [&] { return Comparison(options).run(); });
}
