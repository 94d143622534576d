#include "cuda/gemm_plan.h"

#include <algorithm>
#include <bit>

#include "cuda/context.h"
#include "tensor/support/check.h"

namespace tenon::cuda {
namespace {

constexpr std::uint32_t kMaxAlignment = 256;
/// What the bias and GELU's second matrix must be aligned to, in bytes: the heuristic cannot be
/// told of less, and its kernels read them by vectors.
constexpr std::uint32_t kEpilogueAlignment = 16;
/// Of the second matrix's leading dimension, in elements.
constexpr std::int64_t kAuxLeadingMultiple = 8;
/// A shorter sum costs less than the second pass over its parts, unless a few tiles alone would walk
/// along it. Without tensor cores a tile takes some ten times as long.
std::int64_t shortest_split_k(DType dtype, std::int64_t tiles) {
  constexpr std::int64_t kFewTiles = 8;
  if (size_of(dtype) != 2) return 512;
  return tiles <= kFewTiles ? 2048 : 4096;
}
constexpr std::int64_t kTile = 128;

#define TENON_CUBLAS_CHECK(call) ::tenon::cuda::check((call), #call)

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
LtMatrixLayout make_layout(DType dtype, std::int64_t rows, std::int64_t cols, std::int64_t leading,
                           std::int64_t count, std::int64_t batch_stride) {
  cublasLtMatrixLayout_t raw = nullptr;
  TENON_CUBLAS_CHECK(cublasLtMatrixLayoutCreate(&raw, data_type(dtype),
                                                static_cast<std::uint64_t>(rows),
                                                static_cast<std::uint64_t>(cols), leading));
  LtMatrixLayout layout(raw);
  const auto batch = static_cast<std::int32_t>(count);
  TENON_CUBLAS_CHECK(cublasLtMatrixLayoutSetAttribute(raw, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT,
                                                      &batch, sizeof(batch)));
  TENON_CUBLAS_CHECK(cublasLtMatrixLayoutSetAttribute(
      raw, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &batch_stride, sizeof(batch_stride)));
  return layout;
}

cublasLtEpilogue_t epilogue_of(const GemmProblem& p) {
  const bool biased = p.bias != nullptr;
  switch (p.epilogue) {
    case GemmEpilogue::none: return biased ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
    case GemmEpilogue::gelu_tanh_gradient: return CUBLASLT_EPILOGUE_DGELU;
    default: break;
  }
  if (p.aux == nullptr) return biased ? CUBLASLT_EPILOGUE_GELU_BIAS : CUBLASLT_EPILOGUE_GELU;
  return biased ? CUBLASLT_EPILOGUE_GELU_AUX_BIAS : CUBLASLT_EPILOGUE_GELU_AUX;
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
  set(operation, CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue_of(p));
  if (p.bias != nullptr) {
    set(operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, p.bias);
    set(operation, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, data_type(p.stored_dtype()));
  }
  if (p.aux != nullptr) {
    set(operation, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, p.aux);
    set(operation, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, p.aux_leading);
  }
  return operation;
}

LtPreference make_preference(const GemmProblem& p, bool splits_k) {
  cublasLtMatmulPreference_t raw = nullptr;
  TENON_CUBLAS_CHECK(cublasLtMatmulPreferenceCreate(&raw));
  LtPreference preference(raw);
  set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kWorkspaceBytes);
  // Parts of a sum are kept in the type they are computed in: no other scheme rounds just once.
  const std::uint32_t schemes =
      splits_k ? CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE : CUBLASLT_REDUCTION_SCHEME_NONE;
  set(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, schemes);
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment_of(p.b.data));
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment_of(p.a.data));
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
      alignment_of(p.c.data != nullptr ? p.c.data : p.d));
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment_of(p.d));
  return preference;
}

/// The last two attributes, from INNER_SHAPE_ID on, have 16 bits.
std::size_t bytes_of_attribute(std::size_t attribute) {
  return attribute >= CUBLASLT_ALGO_CONFIG_INNER_SHAPE_ID ? 2 : 4;
}

}  // namespace

bool may_split_k(const GemmProblem& p, int multiprocessors) {
  const std::int64_t tiles = ceil_div(p.m, kTile) * ceil_div(p.n, kTile) * p.batch;
  return p.k >= shortest_split_k(p.dtype, tiles) && tiles < 2 * std::int64_t{multiprocessors};
}

GemmKey key_of(const GemmProblem& p) {
  GemmKey key;
  key.sizes = {p.m,
               p.n,
               p.k,
               p.batch,
               p.a.leading,
               p.b.leading,
               p.c.leading,
               p.d_leading,
               p.aux_leading,
               p.a.batch_stride,
               p.b.batch_stride,
               p.c.batch_stride,
               p.d_batch_stride};
  for (const void* data : {p.a.data, p.b.data, p.c.data, static_cast<const void*>(p.d), p.bias,
                           static_cast<const void*>(p.aux)}) {
    key.alignments =
        key.alignments << 4U | static_cast<std::uint64_t>(std::countr_zero(alignment_of(data)));
  }
  const std::uint64_t choices[] = {static_cast<std::uint64_t>(p.dtype),
                                   static_cast<std::uint64_t>(p.stored_dtype()),
                                   p.a.transposed,
                                   p.b.transposed,
                                   p.c.data != nullptr,
                                   p.bias != nullptr,
                                   static_cast<std::uint64_t>(p.epilogue),
                                   p.aux != nullptr};
  for (const std::uint64_t choice : choices) key.flags = key.flags << 4U | choice;
  return key;
}

std::size_t GemmKeyHash::operator()(const GemmKey& key) const {
  std::uint64_t hash = 0xcbf29ce484222325U;
  const auto mix = [&](std::uint64_t value) { hash = (hash ^ value) * 0x100000001b3U; };
  for (const std::int64_t value : key.sizes) mix(static_cast<std::uint64_t>(value));
  mix(key.alignments);
  mix(key.flags);
  return hash ^ (hash >> 29U);
}

std::uint32_t alignment_of(const GemmProblem& p) {
  std::uint32_t least = kMaxAlignment;
  for (const void* data : {p.a.data, p.b.data, p.c.data, static_cast<const void*>(p.d), p.bias,
                           static_cast<const void*>(p.aux)}) {
    least = std::min(least, alignment_of(data));
  }
  return least;
}

std::optional<GemmDescriptors> describe(const GemmProblem& p) {
  const bool is_double = p.dtype == DType::float64;
  if (is_double && (p.bias != nullptr || p.epilogue != GemmEpilogue::none)) return std::nullopt;
  if (!is_plain_or_gelu_tanh(p.epilogue)) return std::nullopt;
  if (std::min(alignment_of(p.bias), alignment_of(p.aux)) < kEpilogueAlignment) return std::nullopt;
  if (p.aux != nullptr && (p.aux_leading % kAuxLeadingMultiple != 0 || p.batch != 1)) {
    return std::nullopt;
  }
  GemmDescriptors made;
  made.operation = make_operation(p);
  made.first = make_layout(p.dtype, p.b.transposed ? p.k : p.n, p.b.transposed ? p.n : p.k,
                           p.b.leading, p.batch, p.b.batch_stride);
  made.second = make_layout(p.dtype, p.a.transposed ? p.m : p.k, p.a.transposed ? p.k : p.m,
                            p.a.leading, p.batch, p.a.batch_stride);
  made.result = make_layout(p.stored_dtype(), p.n, p.m, p.d_leading, p.batch, p.d_batch_stride);
  made.addend =
      p.c.data == nullptr
          ? make_layout(p.stored_dtype(), p.n, p.m, p.d_leading, p.batch, p.d_batch_stride)
          : make_layout(p.stored_dtype(), p.n, p.m, p.c.leading, p.batch, p.c.batch_stride);
  return made;
}

std::vector<cublasLtMatmulAlgo_t> candidates(cublasLtHandle_t handle, const GemmProblem& p,
                                             const GemmDescriptors& descriptors, bool splits_k,
                                             int count) {
  const LtPreference preference = make_preference(p, splits_k);
  std::vector<cublasLtMatmulHeuristicResult_t> found(static_cast<std::size_t>(count));
  int returned = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
      handle, descriptors.operation.get(), descriptors.first.get(), descriptors.second.get(),
      descriptors.addend.get(), descriptors.result.get(), preference.get(), count, found.data(),
      &returned);
  if (status == CUBLAS_STATUS_NOT_SUPPORTED) return {};
  check(status, "cublasLtMatmulAlgoGetHeuristic");
  std::vector<cublasLtMatmulAlgo_t> algorithms;
  for (int i = 0; i < returned; ++i) {
    const auto& result = found[static_cast<std::size_t>(i)];
    if (result.state == CUBLAS_STATUS_SUCCESS) algorithms.push_back(result.algo);
  }
  return algorithms;
}

GemmAlgorithm configuration_of(const cublasLtMatmulAlgo_t& algorithm) {
  GemmAlgorithm configuration{};
  for (std::size_t i = 0; i < configuration.size(); ++i) {
    std::size_t written = 0;  // 2 or 4 bytes, little-endian
    TENON_CUBLAS_CHECK(cublasLtMatmulAlgoConfigGetAttribute(
        &algorithm, static_cast<cublasLtMatmulAlgoConfigAttributes_t>(i), &configuration[i],
        bytes_of_attribute(i), &written));
  }
  return configuration;
}

std::optional<cublasLtMatmulAlgo_t> algorithm_of(cublasLtHandle_t handle, const GemmProblem& p,
                                                 const GemmDescriptors& descriptors,
                                                 const GemmAlgorithm& configuration) {
  const bool is_double = p.dtype == DType::float64;
  const cudaDataType_t operand = data_type(p.dtype);
  const cudaDataType_t stored = data_type(p.stored_dtype());
  cublasLtMatmulAlgo_t algorithm{};
  if (cublasLtMatmulAlgoInit(handle, is_double ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F,
                             is_double ? CUDA_R_64F : CUDA_R_32F, operand, operand, stored, stored,
                             static_cast<int>(configuration[0]),
                             &algorithm) != CUBLAS_STATUS_SUCCESS) {
    return std::nullopt;
  }
  for (std::size_t i = 1; i < configuration.size(); ++i) {
    if (cublasLtMatmulAlgoConfigSetAttribute(
            &algorithm, static_cast<cublasLtMatmulAlgoConfigAttributes_t>(i), &configuration[i],
            bytes_of_attribute(i)) != CUBLAS_STATUS_SUCCESS) {
      return std::nullopt;
    }
  }
  cublasLtMatmulHeuristicResult_t result{};
  const cublasStatus_t status = cublasLtMatmulAlgoCheck(
      handle, descriptors.operation.get(), descriptors.first.get(), descriptors.second.get(),
      descriptors.addend.get(), descriptors.result.get(), &algorithm, &result);
  const bool runs = status == CUBLAS_STATUS_SUCCESS && result.workspaceSize <= kWorkspaceBytes;
  return runs ? std::optional(algorithm) : std::nullopt;
}

void run_algorithm(cublasLtHandle_t handle, Stream stream, const GemmProblem& p,
                   const GemmDescriptors& descriptors, const cublasLtMatmulAlgo_t& algorithm) {
  if (p.bias != nullptr) {
    set(descriptors.operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, p.bias);
  }
  if (p.aux != nullptr) {
    set(descriptors.operation, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, p.aux);
  }
  const bool adds = p.c.data != nullptr;
  const double factors[] = {1, adds ? 1.0 : 0.0};
  const float float_factors[] = {1, adds ? 1.0F : 0.0F};
  const bool is_double = p.dtype == DType::float64;
  const auto factor = [&](int i) {
    return is_double ? static_cast<const void*>(&factors[i]) : &float_factors[i];
  };
  TENON_CUBLAS_CHECK(cublasLtMatmul(
      handle, descriptors.operation.get(), factor(0), p.b.data, descriptors.first.get(), p.a.data,
      descriptors.second.get(), factor(1), adds ? p.c.data : p.d, descriptors.addend.get(), p.d,
      descriptors.result.get(), &algorithm, device_context(stream.device).work_stream().workspace(),
      kWorkspaceBytes, stream.handle));
}

}  // namespace tenon::cuda
