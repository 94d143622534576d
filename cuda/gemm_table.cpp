#include "cuda/gemm_table.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "cuda/gemm_plan.h"
#include "tensor/support/check.h"

namespace tenon::cuda {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

constexpr std::size_t kSplitK = 2;
constexpr std::size_t kReduction = 3;
constexpr std::array<const char*, 3> kEpilogues = {"none", "gelu", "gelu_gradient"};

/// One value of the file and where it stands.
class Place {
 public:
  Place(const json& value, std::string where) : value_(value), where_(std::move(where)) {}

  [[noreturn]] void fail(std::string_view needed) const {
    detail::fail<ValueError>("[gemm table] {}: needed {}", where_, needed);
  }
  Place member(const char* name) const {
    if (!value_.is_object()) fail("an object");
    const auto found = value_.find(name);
    if (found == value_.end()) fail(std::string("a member '") + name + "'");
    return {*found, where_ + "." + name};
  }
  std::vector<Place> elements() const {
    if (!value_.is_array()) fail("an array");
    std::vector<Place> places;
    for (std::size_t i = 0; i < value_.size(); ++i) {
      places.emplace_back(value_[i], where_ + "[" + std::to_string(i) + "]");
    }
    return places;
  }
  std::int64_t integer(std::int64_t low, std::int64_t high) const {
    const bool fits = value_.is_number_unsigned() &&
                      value_.get<std::uint64_t>() <= static_cast<std::uint64_t>(high) &&
                      value_.get<std::int64_t>() >= low;
    if (!fits) fail("an integer from " + std::to_string(low) + " to " + std::to_string(high));
    return value_.get<std::int64_t>();
  }
  double number() const {
    if (!value_.is_number()) fail("a number");
    return value_.get<double>();
  }
  bool flag() const {
    if (!value_.is_boolean()) fail("true or false");
    return value_.get<bool>();
  }
  std::string text() const {
    if (!value_.is_string()) fail("a string");
    return value_.get<std::string>();
  }

 private:
  const json& value_;
  std::string where_;
};

DType read_dtype(const Place& place) {
  for (const DType dtype : {DType::float32, DType::float64, DType::float16, DType::bfloat16}) {
    if (place.text() == name(dtype)) return dtype;
  }
  place.fail("float32, float64, float16 or bfloat16");
}

GemmEpilogue read_epilogue(const Place& place) {
  const auto found = std::find(kEpilogues.begin(), kEpilogues.end(), place.text());
  if (found == kEpilogues.end()) place.fail("none, gelu or gelu_gradient");
  return static_cast<GemmEpilogue>(found - kEpilogues.begin());
}

GemmSignature read_signature(const Place& place) {
  constexpr std::int64_t kLargest = std::int64_t{1} << 40;
  const auto size = [&](const char* member) { return place.member(member).integer(1, kLargest); };
  GemmSignature s;
  s.m = size("m");
  s.n = size("n");
  s.k = size("k");
  s.batch = size("batch");
  s.dtype = read_dtype(place.member("dtype"));
  s.result = read_dtype(place.member("result"));
  s.a_transposed = place.member("a_transposed").flag();
  s.b_transposed = place.member("b_transposed").flag();
  s.bias = place.member("bias").flag();
  s.addend = place.member("addend").flag();
  s.epilogue = read_epilogue(place.member("epilogue"));
  s.aux = place.member("aux").flag();
  s.alignment = place.member("alignment").integer(1, 256);
  return s;
}

GemmAlgorithm read_algorithm(const Place& place) {
  constexpr std::int64_t kWide = 0xffffffff;
  constexpr std::int64_t kNarrow = 0xffff;  // the last two attributes have 16 bits
  GemmAlgorithm algorithm{};
  for (std::size_t i = 0; i < algorithm.size(); ++i) {
    const std::int64_t high = i + 2 < algorithm.size() ? kWide : kNarrow;
    algorithm[i] =
        static_cast<std::uint32_t>(place.member(kGemmAlgorithmFields[i]).integer(0, high));
  }
  if (!is_deterministic(algorithm)) {
    place.fail("reduction 0 without split_k, or 2 (parts kept in the compute type) with it");
  }
  return algorithm;
}

ordered_json to_json(const GemmTable::Entry& entry) {
  const GemmSignature& s = entry.product;
  ordered_json algorithm;
  for (std::size_t i = 0; i < entry.algorithm.size(); ++i) {
    algorithm[kGemmAlgorithmFields[i]] = entry.algorithm[i];
  }
  return {{"m", s.m},
          {"n", s.n},
          {"k", s.k},
          {"batch", s.batch},
          {"dtype", name(s.dtype)},
          {"result", name(s.result)},
          {"a_transposed", s.a_transposed},
          {"b_transposed", s.b_transposed},
          {"bias", s.bias},
          {"addend", s.addend},
          {"epilogue", kEpilogues.at(static_cast<std::size_t>(s.epilogue))},
          {"aux", s.aux},
          {"alignment", s.alignment},
          {"algorithm", std::move(algorithm)},
          {"microseconds", entry.microseconds},
          {"heuristic_microseconds", entry.heuristic_microseconds}};
}

}  // namespace

bool is_deterministic(const GemmAlgorithm& algorithm) {
  constexpr std::uint32_t kNone = 0;
  constexpr std::uint32_t kComputeType = 2;
  return algorithm[kSplitK] > 1
             ? algorithm[kReduction] == kComputeType
             : algorithm[kReduction] == kNone || algorithm[kReduction] == kComputeType;
}

GemmSignature signature_of(const GemmProblem& p) {
  return {.m = p.m,
          .n = p.n,
          .k = p.k,
          .batch = p.batch,
          .dtype = p.dtype,
          .result = p.stored_dtype(),
          .a_transposed = p.a.transposed,
          .b_transposed = p.b.transposed,
          .bias = p.bias != nullptr,
          .addend = p.c.data != nullptr,
          .epilogue = p.epilogue,
          .aux = p.aux != nullptr,
          .alignment = alignment_of(p)};
}

GemmTable GemmTable::parse(std::string_view text, const std::string& file) {
  json parsed;
  try {
    parsed = json::parse(text);
  } catch (const json::exception& error) {
    detail::fail<ValueError>("[gemm table] {}: {}", file, error.what());
  }
  const Place root(parsed, file + ": $");
  GemmTable table(root.member("gpu").text(), root.member("cublaslt").integer(0, 1 << 30));
  for (const Place& product : root.member("products").elements()) {
    table.put({read_signature(product), read_algorithm(product.member("algorithm")),
               product.member("microseconds").number(),
               product.member("heuristic_microseconds").number()});
  }
  return table;
}

std::string GemmTable::to_json() const {
  ordered_json products = ordered_json::array();
  for (const Entry& entry : entries_) products.push_back(cuda::to_json(entry));
  const ordered_json table = {
      {"gpu", gpu_}, {"cublaslt", cublaslt_}, {"products", std::move(products)}};
  return table.dump(1) + "\n";
}

const GemmAlgorithm* GemmTable::find(const GemmSignature& product) const {
  const auto found = std::find_if(entries_.begin(), entries_.end(),
                                  [&](const Entry& entry) { return entry.product == product; });
  return found == entries_.end() ? nullptr : &found->algorithm;
}

void GemmTable::put(const Entry& entry) {
  const auto same = std::find_if(entries_.begin(), entries_.end(), [&](const Entry& known) {
    return known.product == entry.product;
  });
  if (same == entries_.end()) {
    entries_.push_back(entry);
  } else {
    *same = entry;
  }
}

std::filesystem::path gemm_table_path(std::string_view gpu) {
  if (const char* named = std::getenv("TENON_GEMM_TABLE")) return named;
  Dl_info library{};
  if (dladdr(reinterpret_cast<const void*>(&gemm_table_path), &library) == 0) return {};
  std::string file(gpu);
  std::replace(file.begin(), file.end(), ' ', '_');
  const auto folder = std::filesystem::absolute(library.dli_fname).parent_path().parent_path();
  return folder / "share" / "tenon" / "gemm" / (file + ".json");
}

GemmTable load_gemm_table(std::string_view gpu, std::int64_t cublaslt) {
  const std::filesystem::path path = gemm_table_path(gpu);
  const bool named = std::getenv("TENON_GEMM_TABLE") != nullptr;
  if (path.empty()) return {};  // TENON_GEMM_TABLE= switches tables off
  std::ifstream file(path, std::ios::binary);
  TENON_CHECK(file || !named, ValueError, "[gemm table] {}: needed a file that can be read",
              path.string());
  if (!file) return {};
  const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  GemmTable table = GemmTable::parse(text, path.string());
  return table.is_for(gpu, cublaslt) ? table : GemmTable();
}

}  // namespace tenon::cuda
