// input·weightᵀ + bias as a Program runs it, beside the fastest of cuBLASLt's algorithms.
//
//   bench_gemm --sizes 128 768 3072 --sizes 1 4096 4096 --json
//
// --sizes M N K, again and again: (M, K) x (N, K)ᵀ. Operands are random and rotate through more memory than
// the cache holds, as weights do in a model; --warm keeps one set. microseconds: the kernel that Tenon picks.
// best_microseconds: the fastest of --algorithms deterministic ones that cuBLASLt names, with sums cut into
// parts or not; first_microseconds: the one that it names first without cutting.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <iostream>
#include <nlohmann/json.hpp>

#include "benchmarks/measure.h"
#include "cuda/gemm_plan.h"
#include "tensor/device_backend.h"
#include "tensor/error.h"
#include "tensor/op.h"
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
};

struct Operands {
  Tensor input, weight, bias, output;

  Operands(std::int64_t m, std::int64_t n, std::int64_t k, bool has_bias, DType dtype,
           Device device, Generator& generator)
      : input(randn({m, k}, {dtype, device}, &generator)),
        weight(randn({n, k}, {dtype, device}, &generator)),
        output(randn({m, n}, {dtype, device}, &generator)) {
    if (has_bias) bias = randn({n}, {dtype, device}, &generator);
  }
  std::size_t bytes() const {
    return input.storage()->bytes() + weight.storage()->bytes() + output.storage()->bytes();
  }
  static void* data(const Tensor& tensor) { return tensor ? tensor.view_of_data().data : nullptr; }
  GemmProblem problem() const {
    const std::int64_t m = input.size(0).value(), n = weight.size(0).value();
    const std::int64_t k = input.size(1).value();
    GemmProblem p{.dtype = input.dtype(), .m = m, .n = n, .k = k};
    p.a = {data(input), false, k, 0};
    p.b = {data(weight), true, k, 0};
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
    const DType dtype = parse_dtype(o_.dtype);
    std::vector<Operands> sets;
    sets.emplace_back(m, n, k, !o_.no_bias, dtype, device_, generator_);
    // Small operands take turns too, for more launches than one cache holds.
    constexpr std::size_t kCold = std::size_t{128} << 20;
    const std::size_t wanted =
        o_.warm ? 1 : std::clamp<std::size_t>(kCold / sets[0].bytes() + 1, 2, 64);
    while (sets.size() < wanted) {
      sets.emplace_back(m, n, k, !o_.no_bias, dtype, device_, generator_);
    }
    double best = HUGE_VAL, first = 0;
    bool best_splits = false;
    const GemmProblem problem = sets[0].problem();
    const auto descriptors = cuda::describe(problem);
    for (const bool splits_k : {false, true}) {
      if (!descriptors) break;
      for (const auto& algorithm :
           cuda::candidates(handle_.get(), problem, *descriptors, splits_k, o_.algorithms)) {
        if (!cuda::is_deterministic(cuda::configuration_of(algorithm))) continue;
        const double time = time_us([&](std::size_t i) {
          cuda::run_algorithm(handle_.get(), stream(), sets[i % sets.size()].problem(),
                              *descriptors, algorithm);
        });
        if (first == 0) first = time;
        if (time >= best) continue;
        best = time;
        best_splits = splits_k;
      }
    }
    const Kernel* kernel = nullptr;
    const double ours = time_us([&](std::size_t i) { kernel = launch(sets[i % sets.size()]); });
    return {{"m", m},
            {"n", n},
            {"k", k},
            {"kernel", kernel->name},
            {"microseconds", ours},
            {"best_microseconds", best},
            {"first_microseconds", first},
            {"best_splits_k", best_splits},
            {"ratio", best / ours}};
  }

  /// This thread's, or while work is captured that of the capture.
  cuda::Stream stream() const {
    return {static_cast<cudaStream_t>(backend_->stream(device_.index)), device_.index};
  }

  /// As a Program launches it: the kernel is chosen before addresses are known.
  const Kernel* launch(const Operands& x) const {
    static const Op& op = get_op("linear");
    static const Attrs attrs;
    TensorView inputs[3] = {x.input.view_of_data(), x.weight.view_of_data(), {}};
    if (x.bias) inputs[2] = x.bias.view_of_data();
    TensorView outputs[1] = {x.output.view_of_data()};
    KernelArgs args{&op, inputs, outputs, &attrs};
    args.stream = backend_->stream(device_.index);
    std::vector<void*> addresses;
    for (TensorView* view : {&inputs[0], &inputs[1], &inputs[2], &outputs[0]}) {
      addresses.push_back(std::exchange(view->data, nullptr));
    }
    const Kernel* kernel = select_kernel(op, DeviceType::cuda, args);
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

  template <class F>
  double time_us(const F& one) {
    std::size_t next = 0;
    const auto launch = [&] {
      for (int i = 0; i < o_.runs; ++i) one(next++);
    };
    one(next++);
    // One graph launch for all runs: small products take less time than the host's calls.
    const auto work = backend_->capture(device_.index, [&](const auto*) { launch(); });
    work->launch(0);
    std::vector<double> times;
    for (int repeat = 0; repeat < 5; ++repeat) {
      times.push_back(backend_->time_ms(device_.index, [&] { work->launch(0); }) * 1e3 / o_.runs);
    }
    return bench::median(std::move(times));
  }

  Options o_;
  Device device_;
  Generator generator_;
  DeviceBackend* backend_ = nullptr;
  cuda::LtHandle handle_;
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
  line.option("--runs", options.runs, "products of a measurement").positive();
  line.flag("--warm", options.warm, "the same operands again and again");
  line.flag("--no-bias", options.no_bias, "without a bias");
  return bench::run_program(line, argc, argv, options, [&] { return Comparison(options).run(); });
}
