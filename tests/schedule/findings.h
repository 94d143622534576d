// Rewrites that schedule verification must tell apart: wrong ones that once passed, or would pass a
// check on small drawn inputs, and right ones that such a check must not stop. One list a file.
#pragma once

#include <gtest/gtest.h>

#include <cctype>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "graph/verify.h"
#include "nn/nn.h"
#include "schedule/schedule.h"
#include "tests/fuzz/graph_edit.h"
#include "tests/support/models.h"

namespace tenon::test {

struct Finding {
  const char* name;
  Schedule (*make)();
};
inline std::ostream& operator<<(std::ostream& stream, const Finding& finding) {
  return stream << finding.name;
}
/// The finding's name as gtest takes it.
inline std::string name_of(const ::testing::TestParamInfo<Finding>& info) {
  std::string name;
  for (const char c : std::string(info.param.name)) {
    name += std::isalnum(static_cast<unsigned char>(c)) != 0 ? c : '_';
  }
  return name;
}

// Wrong ones.
std::vector<Finding> wrong_at_sizes();
std::vector<Finding> wrong_integers();
std::vector<Finding> wrong_constants();
std::vector<Finding> wrong_behind_others();
std::vector<Finding> wrong_kernels();
std::vector<Finding> wrong_state();
std::vector<Finding> wrong_borders();
/// Wrong or right, but compared on few finite values or on none: build must refuse them.
std::vector<Finding> hardly_finite();
/// Right, and never finite: build refuses them unless told to accept what was not compared.
std::vector<Finding> never_finite();
// Right ones.
std::vector<Finding> legal_by_proof();
std::vector<Finding> legal_spellings();
std::vector<Finding> legal_masks();
std::vector<Finding> legal_integers_and_state();

/// `other` in place of `part`, which the model calls; constants that `part` makes are its parameters.
template <class M, class Part, class Other>
Schedule rewritten(const nn::Child<M>& model, const std::vector<ExampleInput>& examples, Part part,
                   Other other) {
  Schedule sch = create_schedule(model, examples);
  sch.replace(other, sch.find(part));
  return sch;
}

/// The model's schedule after `edit`, as a primitive that did wrong would leave it.
template <class M, class Edit>
Schedule edited(const nn::Child<M>& model, const std::vector<ExampleInput>& examples, Edit edit) {
  const Schedule sch = create_schedule(model, examples);
  Graph graph = sch.graph();
  fuzz::GraphEdit writing(graph);
  edit(writing);
  graph.eliminate_dead_code();
  verify(graph);  // well-formed, or it would be no test of schedule verification
  return fuzz::with_graph(sch, std::move(graph));
}

/// `other` of the inputs, and of the model's "state" behind them if it takes one more, in place of
/// all that the model computes.
template <class M, class Other>
Schedule recomputed(const nn::Child<M>& model, const std::vector<ExampleInput>& examples,
                    Other other) {
  return edited(model, examples, [&](fuzz::GraphEdit& e) {
    constexpr int kArity = detail::tensor_arity<Other>();
    const std::size_t inputs = e.graph().inputs().size();
    const Tensor state = static_cast<std::size_t>(kArity) > inputs ? e.state("state") : Tensor();
    e.replace(e.graph().value(e.graph().outputs()[0]).producer, [&](const auto&) {
      const auto at = [&](std::size_t i) { return i < inputs ? e.input(i) : state; };
      if constexpr (kArity == 1) return other(at(0));
      if constexpr (kArity == 2) return other(at(0), at(1));
      if constexpr (kArity == 3) return other(at(0), at(1), at(2));
    });
  });
}
template <class F, class Other>
Schedule recomputed(const std::vector<ExampleInput>& examples, F function, Other other) {
  return recomputed(function_model(function), examples, other);
}

/// A function of an input and a parameter or buffer of the model.
template <class F>
struct Stateful : nn::Module {
  Stateful(F f, const Tensor& value, bool is_parameter)
      : state(is_parameter ? register_parameter("state", value) : register_buffer("state", value)),
        function(std::move(f)) {}
  Tensor forward(const Tensor& x) const { return function(x, state); }
  Tensor state;
  F function;
};
template <class F>
auto with_parameter(F f, const Tensor& value) {
  return nn::make<Stateful<F>>(std::move(f), value, true);
}
template <class F>
auto with_buffer(F f, const Tensor& value) {
  return nn::make<Stateful<F>>(std::move(f), value, false);
}

inline Tensor integer(std::int64_t value) { return full({}, value, {DType::int64, kCpu}); }
inline Tensor example_integers(const Shape& shape) { return zeros(shape, {DType::int64, kCpu}); }
inline Tensor example_flags(const Shape& shape) { return zeros(shape, {DType::boolean, kCpu}); }

/// (n, n) float ones, written as a broadcast number.
inline Tensor square_of_ones(const Dim& n) { return full({}, 1.0, {}).expand({n, n}); }
/// (n, n) bool: the key comes after the query.
inline Tensor later_keys(const Dim& n) { return gt(triu(square_of_ones(n), 1), 0); }
/// (n, n) bool: the key comes after the query, or `window` or more before it.
inline Tensor keys_outside_window(const Dim& n, std::int64_t window) {
  return gt(triu(square_of_ones(n), 1) + tril(square_of_ones(n), -window), 0);
}
/// 1, 2, …, n as int64.
inline Tensor counted(const Dim& n) {
  return cumsum(full({}, 1, {DType::int64, kCpu}).expand({n}), 0);
}
/// (n, n) int64: how far the key is behind the query.
inline Tensor distances(const Dim& n) { return counted(n).unsqueeze(0) - counted(n).unsqueeze(1); }
/// Self-attention of x (batch, n, d) that hides keys.
inline Tensor attention_without(const Tensor& x, const Tensor& hidden) {
  const Tensor scores = matmul(x, x.transpose(-2, -1)) / sqrt(x.size(-1));
  return matmul(softmax(masked_fill(scores, hidden, -HUGE_VAL), -1), x);
}

}  // namespace tenon::test
