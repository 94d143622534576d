#include "cuda/gemm.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <memory>
#include <mutex>
#include <unordered_map>

#include "cuda/context.h"
#include "cuda/handle.h"
#include "tensor/detail/check.h"

namespace tenon::cuda {
namespace {

/// cuBLASLt's batch count is a 32-bit number that becomes a grid axis.
constexpr std::int64_t kMaxBatch = 65535;
/// A model has tens of shapes; the bound is for programs that keep making new ones.
constexpr std::size_t kMaxPlans = 4096;
constexpr std::uint32_t kMaxAlignment = 256;

#define TENON_CUBLAS_CHECK(call) ::tenon::cuda::check((call), #call)

/// Everything that descriptors and the choice of an algorithm depend on; compared as bytes.
struct PlanKey {
  std::array<std::int64_t, 10> sizes{};
  std::array<std::uint32_t, 4> alignment{};
  std::array<std::uint32_t, 5> flags{};
  friend bool operator==(const PlanKey&, const PlanKey&) = default;
};

struct PlanKeyHash {
  std::size_t operator()(const PlanKey& key) const {
    std::uint64_t hash = 0xcbf29ce484222325U;
    const auto mix = [&](std::uint64_t value) { hash = (hash ^ value) * 0x100000001b3U; };
    for (std::int64_t value : key.sizes) mix(static_cast<std::uint64_t>(value));
    for (std::uint32_t value : key.alignment) mix(value);
    for (std::uint32_t value : key.flags) mix(value);
    return hash ^ (hash >> 29);
  }
};

struct Plan {
  LtMatmulDesc operation;
  LtMatrixLayout first;   // cuBLAS's A, our B
  LtMatrixLayout second;  // cuBLAS's B, our A
  LtMatrixLayout result;
  cublasLtMatmulAlgo_t algorithm{};
};

/// The library's state on one device; calls are serialized because the bias pointer is set in a plan.
struct GemmLibrary {
  std::mutex mutex;
  LtHandle handle;
  std::unordered_map<PlanKey, std::unique_ptr<Plan>, PlanKeyHash> plans;
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
    library = std::move(made);
  }
  return *library;
}

cudaDataType_t data_type(DType dtype) {
  switch (dtype) {
    case DType::float64: return CUDA_R_64F;
    case DType::float16: return CUDA_R_16F;
    case DType::bfloat16: return CUDA_R_16BF;
    default: return CUDA_R_32F;
  }
}

std::uint32_t alignment_of(const void* data) {
  const auto address = reinterpret_cast<std::uintptr_t>(data);
  if (address == 0) return kMaxAlignment;
  return static_cast<std::uint32_t>(
      std::min<std::uint64_t>(kMaxAlignment, std::uint64_t{1} << std::countr_zero(address)));
}

PlanKey key_of(const GemmProblem& p) {
  return {{p.m, p.n, p.k, p.batch, p.a.leading, p.b.leading, p.c_leading, p.a.batch_stride,
           p.b.batch_stride, p.c_batch_stride},
          {alignment_of(p.a.data), alignment_of(p.b.data), alignment_of(p.c), alignment_of(p.bias)},
          {static_cast<std::uint32_t>(p.dtype), p.a.transposed, p.b.transposed, p.bias != nullptr,
           p.accumulates}};
}

template <class T>
void set(const LtMatmulDesc& desc, cublasLtMatmulDescAttributes_t attribute, const T& value) {
  TENON_CUBLAS_CHECK(cublasLtMatmulDescSetAttribute(desc.get(), attribute, &value, sizeof(value)));
}

template <class T>
void set(const LtPreference& preference, cublasLtMatmulPreferenceAttributes_t attribute,
         const T& value) {
  TENON_CUBLAS_CHECK(
      cublasLtMatmulPreferenceSetAttribute(preference.get(), attribute, &value, sizeof(value)));
}

/// Column-major, as cuBLAS counts: rows are neighbours in memory.
LtMatrixLayout make_layout(const GemmProblem& p, std::int64_t rows, std::int64_t cols,
                           std::int64_t leading, std::int64_t batch_stride) {
  cublasLtMatrixLayout_t raw = nullptr;
  TENON_CUBLAS_CHECK(cublasLtMatrixLayoutCreate(&raw, data_type(p.dtype),
                                                static_cast<std::uint64_t>(rows),
                                                static_cast<std::uint64_t>(cols), leading));
  LtMatrixLayout layout(raw);
  const auto batch = static_cast<std::int32_t>(p.batch);
  TENON_CUBLAS_CHECK(cublasLtMatrixLayoutSetAttribute(raw, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT,
                                                      &batch, sizeof(batch)));
  TENON_CUBLAS_CHECK(cublasLtMatrixLayoutSetAttribute(
      raw, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &batch_stride, sizeof(batch_stride)));
  return layout;
}

LtMatmulDesc make_operation(const GemmProblem& p) {
  const bool is_double = p.dtype == DType::float64;
  cublasLtMatmulDesc_t raw = nullptr;
  TENON_CUBLAS_CHECK(cublasLtMatmulDescCreate(&raw,
                                              is_double ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F,
                                              is_double ? CUDA_R_64F : CUDA_R_32F));
  LtMatmulDesc operation(raw);
  const cublasOperation_t first = p.b.transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
  const cublasOperation_t second = p.a.transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
  set(operation, CUBLASLT_MATMUL_DESC_TRANSA, first);
  set(operation, CUBLASLT_MATMUL_DESC_TRANSB, second);
  if (p.bias != nullptr) {
    set(operation, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
    set(operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, p.bias);
    set(operation, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, data_type(p.dtype));
  }
  return operation;
}

LtPreference make_preference(const PlanKey& key) {
  cublasLtMatmulPreference_t raw = nullptr;
  TENON_CUBLAS_CHECK(cublasLtMatmulPreferenceCreate(&raw));
  LtPreference preference(raw);
  set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kWorkspaceBytes);
  // No split-K: its second kernel, and for some schemes its order of summation, are not wanted.
  const std::uint32_t schemes = CUBLASLT_REDUCTION_SCHEME_NONE;
  set(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, schemes);
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, key.alignment[1]);
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, key.alignment[0]);
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, key.alignment[2]);
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, key.alignment[2]);
  return preference;
}

/// cuBLAS is column-major: C^T = B^T · A^T, so operands swap places and row-major becomes "no
/// transpose". Null when cuBLASLt has no algorithm.
std::unique_ptr<Plan> make_plan(const LtHandle& handle, const GemmProblem& p, const PlanKey& key) {
  auto plan = std::make_unique<Plan>();
  plan->operation = make_operation(p);
  plan->first = make_layout(p, p.b.transposed ? p.k : p.n, p.b.transposed ? p.n : p.k, p.b.leading,
                            p.b.batch_stride);
  plan->second = make_layout(p, p.a.transposed ? p.m : p.k, p.a.transposed ? p.k : p.m, p.a.leading,
                             p.a.batch_stride);
  plan->result = make_layout(p, p.n, p.m, p.c_leading, p.c_batch_stride);
  const LtPreference preference = make_preference(key);
  cublasLtMatmulHeuristicResult_t found{};
  int count = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
      handle.get(), plan->operation.get(), plan->first.get(), plan->second.get(),
      plan->result.get(), plan->result.get(), preference.get(), 1, &found, &count);
  if (status == CUBLAS_STATUS_NOT_SUPPORTED || (status == CUBLAS_STATUS_SUCCESS && count == 0)) {
    return nullptr;
  }
  check(status, "cublasLtMatmulAlgoGetHeuristic");
  if (found.state != CUBLAS_STATUS_SUCCESS) return nullptr;
  plan->algorithm = found.algo;
  return plan;
}

/// The plan of a problem, found or made; the library's mutex is held.
const Plan* plan_of(GemmLibrary& library, const GemmProblem& p) {
  const PlanKey key = key_of(p);
  auto found = library.plans.find(key);
  if (found == library.plans.end()) {
    if (library.plans.size() >= kMaxPlans) library.plans.clear();
    found = library.plans.emplace(key, make_plan(library.handle, p, key)).first;
  }
  return found->second.get();
}

void run_batch(Stream stream, const GemmProblem& p) {
  void* workspace = device_context(stream.device).workspace();
  GemmLibrary& library = library_of(stream.device);
  const std::lock_guard lock(library.mutex);
  const Plan* found = plan_of(library, p);
  TENON_CHECK(found != nullptr, DeviceError,
              "[matmul] cuBLASLt has no algorithm for {}, {} x {} x {}, batch {}", name(p.dtype),
              p.m, p.n, p.k, p.batch);
  const Plan& plan = *found;
  if (p.bias != nullptr) set(plan.operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, p.bias);
  const double one = 1;
  const double beta = p.accumulates ? 1 : 0;
  const float one_float = 1;
  const auto beta_float = static_cast<float>(beta);
  const bool is_double = p.dtype == DType::float64;
  TENON_CUBLAS_CHECK(cublasLtMatmul(library.handle.get(), plan.operation.get(),
                                    is_double ? static_cast<const void*>(&one) : &one_float,
                                    p.b.data, plan.first.get(), p.a.data, plan.second.get(),
                                    is_double ? static_cast<const void*>(&beta) : &beta_float, p.c,
                                    plan.result.get(), p.c, plan.result.get(), &plan.algorithm,
                                    workspace, kWorkspaceBytes, stream.handle));
}

const void* advanced(const void* data, std::int64_t bytes) {
  return static_cast<const char*>(data) + bytes;
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
  for (std::int64_t first = 0; first < problem.batch; first += kMaxBatch) {
    GemmProblem part = problem;
    part.batch = std::min(kMaxBatch, problem.batch - first);
    part.a.data = advanced(problem.a.data, first * problem.a.batch_stride * element);
    part.b.data = advanced(problem.b.data, first * problem.b.batch_stride * element);
    part.c = static_cast<char*>(problem.c) + first * problem.c_batch_stride * element;
    run_batch(stream, part);
  }
}

}  // namespace tenon::cuda
