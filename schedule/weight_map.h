// Weight maps: where the parameters of a replacing module come from. The model's parameters stay what
// they are; a mapped one is an expression of them, so values, names, checkpoints and optimizer state
// remain those of the model, and a gradient reaches each source through the expression.
//
//   {.weights = {{"fused_linear.weight", cat("q_proj.weight", "k_proj.weight", "v_proj.weight")},
//                {"up.weight", transpose("mlp.w1", 0, 1)},
//                {"lora_b", fresh()}}}
//
// Sources are whole names ("layer.0.q_proj.weight") or their ends ("q_proj.weight"), the latter among
// the parameters that the replaced nodes read.
#pragma once

#include <concepts>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "tensor/functional.h"

namespace tenon {

/// An expression of the model's parameters that takes no work at run time: concatenation and views.
class WeightSource {
 public:
  using Lookup = std::function<Tensor(const std::string& name)>;

  /// The parameter of that name as it is.
  WeightSource(std::string name);
  WeightSource(const char* name) : WeightSource(std::string(name)) {}

  /// The tensor, from those that `lookup` gives for names.
  Tensor evaluate(const Lookup& lookup) const { return make_(lookup); }
  bool is_fresh() const { return make_ == nullptr; }
  /// "cat(q_proj.weight, k_proj.weight)".
  const std::string& to_string() const { return text_; }

 private:
  friend WeightSource cat(const std::vector<WeightSource>&, std::int64_t);
  friend WeightSource fresh();
  friend WeightSource narrow(const WeightSource&, std::int64_t, std::int64_t, std::int64_t);
  friend WeightSource split(const WeightSource&, std::int64_t, std::int64_t, std::int64_t);
  friend WeightSource transpose(const WeightSource&, std::int64_t, std::int64_t);
  friend WeightSource reshape(const WeightSource&, const std::vector<std::int64_t>&);
  WeightSource(std::string text, std::function<Tensor(const Lookup&)> make)
      : text_(std::move(text)), make_(std::move(make)) {}

  std::string text_;
  std::function<Tensor(const Lookup&)> make_;  // null: fresh
};

/// By parameter of the replacement.
using WeightMap = std::map<std::string, WeightSource>;

/// The sources one after another along `axis`.
WeightSource cat(const std::vector<WeightSource>& sources, std::int64_t axis);
template <class... S>
requires(sizeof...(S) > 0 && (std::convertible_to<const S&, WeightSource> && ...)) WeightSource
    cat(const S&... sources) {
  return cat(std::vector<WeightSource>{WeightSource(sources)...}, 0);
}
/// `length` slices along `axis`, from `start`.
WeightSource narrow(const WeightSource& source, std::int64_t axis, std::int64_t start,
                    std::int64_t length);
/// Piece `index` of `pieces` equal ones along `axis`.
WeightSource split(const WeightSource& source, std::int64_t pieces, std::int64_t index,
                   std::int64_t axis = 0);
WeightSource transpose(const WeightSource& source, std::int64_t axis0, std::int64_t axis1);
/// One size may be -1.
WeightSource reshape(const WeightSource& source, const std::vector<std::int64_t>& sizes);
/// The replacement's own tensor, which becomes a parameter beside the model's: see
/// Schedule::added_parameters().
WeightSource fresh();

}  // namespace tenon
