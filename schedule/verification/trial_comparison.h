// TrialComparison: one trial of a region in one mode: what both sides compute, by their meaning and by
// the kernels that will run, result by result.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "schedule/trials/comparison.h"
#include "schedule/trials/reference_run.h"
#include "schedule/verification/region_sides.h"

namespace tenon::detail {

/// What a trial runs on.
struct Trial {
  std::string name;
  std::vector<Tensor> inputs;
  std::vector<Tensor> cotangents;
  bool gradients = true;
  bool bound = false;       // the kernels that will run are compared as well
  bool is_first = false;    // its figures are reported
  bool is_extreme = false;  // the model may overflow where the schedule does not
  bool hides_rows = false;  // masks have rows of one truth value
  bool is_aimed = false;    // at constants
  bool is_coarse = false;   // by rows: what an element's terms are would take several more runs
};

/// An output of a region, or the gradient of an input.
struct ResultName {
  std::string text;
  bool is_gradient = false;
};

/// What a trial in one mode shows.
struct TrialResults {
  std::vector<Comparison> comparisons;
  std::vector<std::size_t> results;  // which result each of them is of
  std::string note;                  // where the schedule gives numbers and the model NaN
};

class TrialComparison {
 public:
  /// All of them outlive it.
  TrialComparison(const Region& region, const std::vector<InputFacts>& inputs,
                  const CheckContext& context);

  const std::vector<ResultName>& names() const { return names_; }
  /// Throws what the ops of either side throw.
  TrialResults run(const Sides& sides, const Trial& trial, bool training) const;
  /// Why the model cannot run, or nothing.
  std::optional<std::string> refusal_of_model(const Sides& sides, const Trial& trial,
                                              bool training) const;
  /// The numbers that the bound kernels get are those of the model's dtype.
  void round_to_dtypes(const Sides& sides, Trial& trial) const;
  /// The model's meaning on the trial, forward; throws what it throws.
  void try_model(const Sides& sides, const std::vector<Tensor>& inputs) const;

 private:
  struct Runs;
  Runs run_both(const Sides& sides, const Graph& model, const Trial& trial, bool training) const;
  TrialResults compare(const Sides& sides, const Graph& model, const Trial& trial,
                       bool training) const;
  Comparison compare_result(Runs& runs, const Trial& trial, std::size_t r, Excused excused) const;
  void compare_numbers(Comparison& c, Runs& runs, const Trial& trial, std::size_t r,
                       Excused excused) const;
  const std::vector<double>& terms_of(Runs& runs, const Trial& trial, std::size_t r) const;
  RunMode mode(bool training, bool gradients) const;
  std::vector<Tensor> bound_inputs(const Graph& graph, const Trial& trial) const;
  std::vector<Tensor> run_bound(const Graph& graph, const std::vector<Tensor>& given,
                                const Trial& trial, bool training) const;

  const Region& region_;
  const std::vector<InputFacts>& inputs_;
  const CheckContext& context_;
  std::vector<bool> differentiable_;
  std::vector<ResultName> names_;
};

}  // namespace tenon::detail
