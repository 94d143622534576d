// Measures cuBLASLt's algorithms for the products of a Transformer and saves the fastest as a table that
// the library reads (cuda/gemm_table.h). Inputs are random and rotate, so that none lies in the cache.
//
//   tune_gemm --tokens 4096 32768 --hidden 768 --output NVIDIA_H200.json
//   TENON_GEMM_TABLE=NVIDIA_H200.json bench_gpt2 …
//
// Products that the file holds already and that are not measured again stay in it.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "benchmarks/measure.h"
#include "cuda/gemm_plan.h"
#include "tensor/device_backend.h"
#include "tensor/error.h"
#include "tensor/tensor.h"

namespace {

using namespace tenon;
using cuda::GemmEpilogue;
using cuda::GemmProblem;

struct Options : bench::CommonOptions {
  std::vector<std::int64_t> tokens = {4096, 32768};
  std::int64_t hidden = 768;
  std::int64_t expansion = 4;
  int algorithms = 24;
  int runs = 20;
  std::string output;
};

struct Product {
  std::string name;
  std::int64_t m, n, k;
  bool a_transposed, b_transposed, bias, addend, aux;
  GemmEpilogue epilogue;
};

/// What the layers of one block multiply, forward and backward, for `t` tokens.
std::vector<Product> products_of(const Options& o, std::int64_t t) {
  struct Layer {
    const char* name;
    std::int64_t outputs, inputs;
    bool addend;
    GemmEpilogue epilogue;
  };
  const std::int64_t wide = o.expansion * o.hidden;
  const Layer layers[] = {{"qkv", 3 * o.hidden, o.hidden, false, GemmEpilogue::none},
                          {"projection", o.hidden, o.hidden, true, GemmEpilogue::none},
                          {"up", wide, o.hidden, false, GemmEpilogue::gelu},
                          {"down", o.hidden, wide, true, GemmEpilogue::none}};
  std::vector<Product> products;
  for (const Layer& l : layers) {
    const std::string name = l.name;
    const bool activates = l.epilogue == GemmEpilogue::gelu;
    // (T, K) x (N, K)ᵀ -> (T, N)
    products.push_back(
        {name, t, l.outputs, l.inputs, false, true, true, l.addend, activates, l.epilogue});
    if (activates) {  // without a gradient to come
      products.push_back(
          {name + " eval", t, l.outputs, l.inputs, false, true, true, false, false, l.epilogue});
    }
    // (T, N) x (N, K) -> (T, K), through the activation before it
    const bool through = l.inputs == wide;
    products.push_back({name + " dgrad", t, l.inputs, l.outputs, false, false, false, false,
                        through, through ? GemmEpilogue::gelu_gradient : GemmEpilogue::none});
    // (T, N)ᵀ x (T, K) -> (N, K)
    products.push_back({name + " wgrad", l.outputs, l.inputs, t, true, false, false, false, false,
                        GemmEpilogue::none});
  }
  return products;
}

/// One set of operands.
class Operands {
 public:
  Operands(const Product& p, DType dtype, Device device, Generator& generator) : product_(p) {
    const auto draw = [&](std::int64_t rows, std::int64_t cols) {
      return randn({rows, cols}, {dtype, device}, &generator);
    };
    a_ = p.a_transposed ? draw(p.k, p.m) : draw(p.m, p.k);
    b_ = p.b_transposed ? draw(p.n, p.k) : draw(p.k, p.n);
    d_ = draw(p.m, p.n);
    if (p.addend) c_ = draw(p.m, p.n);
    if (p.aux) aux_ = draw(p.m, p.n);
    if (p.bias) bias_ = randn({p.n}, {dtype, device}, &generator);
  }

  GemmProblem problem() const {
    const Product& p = product_;
    GemmProblem problem{.dtype = d_.dtype(), .m = p.m, .n = p.n, .k = p.k};
    problem.a = {data(a_), p.a_transposed, p.a_transposed ? p.m : p.k, 0};
    problem.b = {data(b_), p.b_transposed, p.b_transposed ? p.k : p.n, 0};
    if (p.addend) problem.c = {data(c_), false, p.n, 0};
    problem.d = data(d_);
    problem.d_leading = p.n;
    if (p.bias) problem.bias = data(bias_);
    problem.epilogue = p.epilogue;
    if (p.aux) {
      problem.aux = data(aux_);
      problem.aux_leading = p.n;
    }
    return problem;
  }

  std::size_t bytes() const {
    std::size_t sum = 0;
    for (const Tensor* tensor : {&a_, &b_, &c_, &d_, &aux_}) {
      if (*tensor) sum += tensor->storage()->bytes();
    }
    return sum;
  }

 private:
  static void* data(const Tensor& tensor) { return tensor.view_of_data().data; }

  Product product_;
  Tensor a_, b_, c_, d_, aux_, bias_;
};

class Tuner {
 public:
  explicit Tuner(const Options& o) : o_(o), device_(o.chosen_device()), generator_(o.seed) {
    if (!device_.is_cuda()) throw DeviceError("tune_gemm measures a GPU; needed --device cuda");
    backend_ = &device_backend(DeviceType::cuda);
    stream_ = {static_cast<cudaStream_t>(backend_->stream(device_.index)), device_.index};
    cublasLtHandle_t handle = nullptr;
    cuda::check(cublasLtCreate(&handle), "cublasLtCreate");
    handle_ = cuda::LtHandle(handle);
    cuda::check(
        cudaDeviceGetAttribute(&multiprocessors_, cudaDevAttrMultiProcessorCount, device_.index),
        "cudaDeviceGetAttribute");
  }

  nlohmann::ordered_json run() {
    const std::string gpu = backend_->device_name(device_.index);
    const auto version = static_cast<std::int64_t>(cublasLtGetVersion());
    cuda::GemmTable table = known_table(gpu, version);
    nlohmann::ordered_json rows = nlohmann::ordered_json::array();
    for (const std::int64_t tokens : o_.tokens) {
      for (const Product& product : products_of(o_, tokens)) {
        if (const auto entry = measure(product)) {
          table.put(*entry);
          rows.push_back(row_of(product, *entry));
          std::cerr << rows.back().dump() << "\n";
        }
      }
    }
    if (!o_.output.empty()) {
      std::ofstream file(o_.output, std::ios::binary);
      file << table.to_json();
      if (!file.flush()) throw ValueError("tune_gemm cannot write " + o_.output);
    }
    return {{"gpu", gpu}, {"cublaslt", version}, {"products", std::move(rows)}};
  }

 private:
  /// What the output file holds for this GPU and library.
  cuda::GemmTable known_table(const std::string& gpu, std::int64_t version) const {
    std::ifstream file(o_.output, std::ios::binary);
    if (!o_.output.empty() && file) {
      const std::string text{std::istreambuf_iterator<char>(file),
                             std::istreambuf_iterator<char>()};
      cuda::GemmTable table = cuda::GemmTable::parse(text, o_.output);
      if (table.is_for(gpu, version)) return table;
    }
    return {gpu, version};
  }

  static nlohmann::ordered_json row_of(const Product& p, const cuda::GemmTable::Entry& entry) {
    const double operations =
        2.0 * static_cast<double>(p.m) * static_cast<double>(p.n) * static_cast<double>(p.k);
    return {{"product", p.name},
            {"m", p.m},
            {"n", p.n},
            {"k", p.k},
            {"microseconds", entry.microseconds},
            {"heuristic_microseconds", entry.heuristic_microseconds},
            {"tflops", operations / entry.microseconds * 1e-6}};
  }

  /// The fastest algorithm; nothing where cuBLASLt has none.
  std::optional<cuda::GemmTable::Entry> measure(const Product& product) {
    std::vector<Operands> sets;
    sets.emplace_back(product, parse_dtype(o_.dtype), device_, generator_);
    const std::int64_t wanted = bench::rotation_length(sets[0].bytes());
    for (std::int64_t i = 1; i < wanted; ++i) {
      sets.emplace_back(product, parse_dtype(o_.dtype), device_, generator_);
    }
    const GemmProblem problem = sets[0].problem();
    const auto descriptors = cuda::describe(problem);
    if (!descriptors) return std::nullopt;
    cuda::GemmTable::Entry best{.product = cuda::signature_of(problem)};
    bool first = true;
    for (const cublasLtMatmulAlgo_t& algorithm :
         cuda::candidates(handle_.get(), problem, *descriptors,
                          cuda::may_split_k(problem, multiprocessors_), o_.algorithms)) {
      const cuda::GemmAlgorithm configuration = cuda::configuration_of(algorithm);
      if (!cuda::is_deterministic(configuration)) continue;
      const double time = time_us(sets, *descriptors, algorithm);
      if (first) best.heuristic_microseconds = time;
      if (first || time < best.microseconds) {
        best.algorithm = configuration;
        best.microseconds = time;
      }
      first = false;
    }
    return first ? std::nullopt : std::optional(best);
  }

  double time_us(const std::vector<Operands>& sets, const cuda::GemmDescriptors& descriptors,
                 const cublasLtMatmulAlgo_t& algorithm) {
    std::size_t next = 0;
    const auto launch = [&](int count) {
      for (int i = 0; i < count; ++i) {
        cuda::run_algorithm(handle_.get(), stream_, sets[next].problem(), descriptors, algorithm);
        next = (next + 1) % sets.size();
      }
    };
    launch(3);
    std::vector<double> times;
    for (int repeat = 0; repeat < 5; ++repeat) {
      times.push_back(backend_->time_ms(device_.index, [&] { launch(o_.runs); }) * 1e3 / o_.runs);
    }
    return bench::median(std::move(times));
  }

  Options o_;
  Device device_;
  Generator generator_;
  DeviceBackend* backend_ = nullptr;
  cuda::Stream stream_;
  cuda::LtHandle handle_;
  int multiprocessors_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
  CommandLine line("Measures algorithms of matrix products and saves the fastest");
  Options options;
  options.add_to(line);
  constexpr std::int64_t kLargest = std::int64_t{1} << 24;
  const auto numbers = [&](const char* name, auto& values, std::int64_t most, const char* what) {
    line.option(name, values, what).range(1, most).without_default();
  };
  numbers("--tokens", options.tokens, kLargest, "Rows of the activations");
  numbers("--hidden", options.hidden, kLargest, "Width of the model");
  numbers("--expansion", options.expansion, kLargest, "Width of the MLP over that");
  numbers("--algorithms", options.algorithms, 1000, "At most so many a product");
  numbers("--runs", options.runs, 10000, "Products a measurement");
  line.option("--output", options.output, "The table; made or added to");
  return bench::run_program(line, argc, argv, options, [&] { return Tuner(options).run(); });
}
