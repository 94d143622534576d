#include "cuda/gemm.h"

#include <algorithm>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <utility>

#include "cuda/context.h"
#include "cuda/gemm_plan.h"
#include "cuda/gemm_rank.h"
#include "tensor/support/check.h"

namespace tenon::cuda {
namespace {

/// cuBLASLt's batch count is a 32-bit number that becomes a grid axis.
constexpr std::int64_t kMaxBatch = 65535;
/// A model has tens of shapes; the bound is for programs that keep making new ones.
constexpr std::size_t kMaxPlans = 4096;

#define TENON_CUBLAS_CHECK(call) ::tenon::cuda::check((call), #call)

struct Plan {
  GemmDescriptors descriptors;
  cublasLtMatmulAlgo_t algorithm{};
  bool has_run = false;
};

/// The library's state on one device; calls are serialized because addresses are set in a plan.
struct GemmLibrary {
  std::mutex mutex;
  LtHandle handle;
  int multiprocessors = 0;
  GemmTable table;
  std::unordered_map<GemmKey, std::unique_ptr<Plan>, GemmKeyHash> plans;
};

// Never destroyed: cuBLAS may be unloaded before static objects are torn down.
GemmLibrary& library_of(int device) {
  static std::mutex mutex;
  static auto* libraries = new std::unordered_map<int, std::unique_ptr<GemmLibrary>>;
  const std::lock_guard lock(mutex);
  std::unique_ptr<GemmLibrary>& library = (*libraries)[device];
  if (library == nullptr) {
    auto made = std::make_unique<GemmLibrary>();
    cublasLtHandle_t handle = nullptr;
    TENON_CUBLAS_CHECK(cublasLtCreate(&handle));
    made->handle = LtHandle(handle);
    cudaDeviceProp properties{};
    TENON_CUDA_CHECK(cudaGetDeviceProperties(&properties, device));
    made->multiprocessors = properties.multiProcessorCount;
    made->table = load_gemm_table(properties.name, static_cast<std::int64_t>(cublasLtGetVersion()));
    library = std::move(made);
  }
  return *library;
}

std::optional<cublasLtMatmulAlgo_t> algorithm_for(const GemmLibrary& library, const GemmProblem& p,
                                                  const GemmDescriptors& descriptors) {
  constexpr int kCandidates = 16;
  const auto ask = [&](bool splits_k, int count) {
    return candidates(library.handle.get(), p, descriptors, splits_k, count);
  };
  // Expected times were fitted to single products of 16-bit floats; else the library's favourite stands.
  if (size_of(p.dtype) != 2 || p.batch > 1) {
    const auto found = ask(may_split_k(p, library.multiprocessors), 1);
    return found.empty() ? std::nullopt : std::optional(found[0]);
  }
  std::vector<cublasLtMatmulAlgo_t> found =
      ask(may_split_k(p, library.multiprocessors), kCandidates);
  for (const auto& other : ask(!may_split_k(p, library.multiprocessors), kCandidates)) {
    found.push_back(other);
  }
  std::vector<GemmAlgorithm> configurations;
  for (const auto& algorithm : found) configurations.push_back(configuration_of(algorithm));
  if (found.empty()) return std::nullopt;
  return found[choose_algorithm(p, configurations, library.multiprocessors)];
}

/// Null when cuBLASLt has no algorithm.
std::unique_ptr<Plan> make_plan(const GemmLibrary& library, const GemmProblem& p) {
  auto descriptors = describe(p);
  if (!descriptors) return nullptr;
  if (const GemmAlgorithm* saved = library.table.find(signature_of(p))) {
    const auto algorithm = algorithm_of(library.handle.get(), p, *descriptors, *saved);
    if (algorithm)
      return std::make_unique<Plan>(
          Plan{.descriptors = std::move(*descriptors), .algorithm = *algorithm});
  }
  const auto algorithm = algorithm_for(library, p, *descriptors);
  if (!algorithm) return nullptr;
  return std::make_unique<Plan>(
      Plan{.descriptors = std::move(*descriptors), .algorithm = *algorithm});
}

/// The plan of a problem, found or made; the library's mutex is held.
Plan* plan_of(GemmLibrary& library, const GemmProblem& p) {
  const GemmKey key = key_of(p);
  auto found = library.plans.find(key);
  if (found == library.plans.end()) {
    if (library.plans.size() >= kMaxPlans) library.plans.clear();
    found = library.plans.emplace(key, make_plan(library, p)).first;
  }
  return found->second.get();
}

void run_batch(Stream stream, const GemmProblem& p) {
  GemmLibrary& library = library_of(stream.device);
  const std::lock_guard lock(library.mutex);
  Plan* plan = plan_of(library, p);
  TENON_CHECK(plan != nullptr, DeviceError,
              "[matmul] cuBLASLt has no algorithm for {}, {} x {} x {}, batch {}", name(p.dtype),
              p.m, p.n, p.k, p.batch);
  run_algorithm(library.handle.get(), stream, p, plan->descriptors, plan->algorithm);
  if (!std::exchange(plan->has_run, true)) stop_other_threads_at_exit();
}

const void* advanced(const void* data, std::int64_t bytes) {
  return data == nullptr ? nullptr : static_cast<const char*>(data) + bytes;
}

}  // namespace

bool has_algorithm(Stream stream, const GemmProblem& problem) {
  static_cast<void>(device_context(stream.device));
  GemmLibrary& library = library_of(stream.device);
  const std::lock_guard lock(library.mutex);
  return plan_of(library, problem) != nullptr;
}

void gemm(Stream stream, const GemmProblem& problem) {
  const auto element = static_cast<std::int64_t>(size_of(problem.dtype));
  const auto stored = static_cast<std::int64_t>(size_of(problem.stored_dtype()));
  for (std::int64_t first = 0; first < problem.batch; first += kMaxBatch) {
    GemmProblem part = problem;
    part.batch = std::min(kMaxBatch, problem.batch - first);
    part.a.data = advanced(problem.a.data, first * problem.a.batch_stride * element);
    part.b.data = advanced(problem.b.data, first * problem.b.batch_stride * element);
    part.c.data = advanced(problem.c.data, first * problem.c.batch_stride * stored);
    part.d = static_cast<char*>(problem.d) + first * problem.d_batch_stride * stored;
    run_batch(stream, part);
  }
}

}  // namespace tenon::cuda
