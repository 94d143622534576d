// Algorithms of cuBLASLt that bin/tune_gemm measured, saved as JSON:
//
//   {"gpu": "NVIDIA H200", "cublaslt": 130100, "products": [{"m": 768, …, "algorithm": {"id": 66, …}}]}
//
// A table for another GPU or another version of the library is ignored. Looked up when a product is
// planned, never when it runs.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "cuda/gemm.h"

namespace tenon::cuda {

/// A cublasLtMatmulAlgo_t as its configuration, in the order of cublasLtMatmulAlgoConfigAttributes_t.
using GemmAlgorithm = std::array<std::uint32_t, 9>;
inline constexpr std::array<const char*, 9> kGemmAlgorithmFields = {
    "id", "tile", "split_k", "reduction", "swizzle", "custom", "stages", "inner_shape", "cluster"};

/// Whether parts of a sum, if there are any, are added in a fixed order and rounded once.
bool is_deterministic(const GemmAlgorithm& algorithm);

/// What an algorithm is chosen by: sizes, storage orders, types and epilogue. Strides between rows and
/// matrices are not among it; cuBLASLt checks each use.
struct GemmSignature {
  std::int64_t m = 0;
  std::int64_t n = 0;
  std::int64_t k = 0;
  std::int64_t batch = 1;
  DType dtype = DType::bfloat16;
  DType result = DType::bfloat16;
  bool a_transposed = false;
  bool b_transposed = false;
  bool bias = false;
  bool addend = false;
  GemmEpilogue epilogue = GemmEpilogue::none;
  bool aux = false;
  std::int64_t alignment = 256;  // the least of all operands, in bytes
  friend bool operator==(const GemmSignature&, const GemmSignature&) = default;
};
GemmSignature signature_of(const GemmProblem& problem);

class GemmTable {
 public:
  struct Entry {
    GemmSignature product;
    GemmAlgorithm algorithm{};
    double microseconds = 0;
    double heuristic_microseconds = 0;  // of what cuBLASLt would have chosen
  };

  GemmTable() = default;
  GemmTable(std::string gpu, std::int64_t cublaslt) : gpu_(std::move(gpu)), cublaslt_(cublaslt) {}
  /// ValueError that names `file` and the place where the text is no table, or where an algorithm adds
  /// parts of a sum in no fixed order.
  static GemmTable parse(std::string_view text, const std::string& file);
  std::string to_json() const;

  bool is_for(std::string_view gpu, std::int64_t cublaslt) const {
    return gpu == gpu_ && cublaslt == cublaslt_;
  }
  const std::vector<Entry>& entries() const { return entries_; }
  /// The algorithm for this product, or null.
  const GemmAlgorithm* find(const GemmSignature& product) const;
  /// Adds an entry, in place of one for the same product.
  void put(const Entry& entry);

 private:
  std::string gpu_;
  std::int64_t cublaslt_ = 0;
  std::vector<Entry> entries_;
};

/// Where the table of a GPU lies: $TENON_GEMM_TABLE, or share/tenon/gemm/NVIDIA_H200.json in the folder
/// above the library's.
std::filesystem::path gemm_table_path(std::string_view gpu);
/// That table; an empty one where there is none, or where it is for another GPU or library. ValueError
/// for a malformed one, and for a missing one that TENON_GEMM_TABLE names.
GemmTable load_gemm_table(std::string_view gpu, std::int64_t cublaslt);

}  // namespace tenon::cuda
