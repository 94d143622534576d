// IndexInputs: integers for the inputs of a Graph such that every index which is computed from them is
// one of its table's; floating inputs that are cast to indices are whole numbers as well. The Graph says
// which tables there are; what computes an index (views, casts, arithmetic, comparisons) is run, not
// guessed.
//
//   tokens ─▶ ne ─▶ cumsum ─▶ add ─▶ embedding      an index of 5 in a table of 4 rows:
//      └───────────────────────────▶ embedding      tokens from a smaller range are drawn
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "graph/graph.h"
#include "tensor/random.h"

namespace tenon::detail {

/// Indices that are not all in [0, size).
struct IndexMisfit {
  std::string node;
  std::int64_t size = 0;
  double smallest = 0;
  double largest = 0;
  std::vector<std::size_t> inputs;  // drawn ones that they are computed from
  std::string to_string() const;
};

/// The numbers low, low + 1, …: `width` of them.
struct IntegerWindow {
  std::int64_t low = 0;
  std::int64_t width = 0;
};

class IndexInputs {
 public:
  /// `graph` is of concrete sizes, without effects and state. A window for each input, nothing for one
  /// that is not to be drawn; of floating ones those count that are cast to indices. `special` numbers
  /// are drawn more often where they are in the window.
  IndexInputs(const Graph& graph, std::vector<std::optional<IntegerWindow>> windows,
              std::vector<std::int64_t> special);

  /// Replaces the integers among `inputs`, which are all there, by random ones. What it returns no
  /// integers mend. The ranges that were found stay for later calls.
  std::optional<IndexMisfit> draw(std::vector<Tensor>& inputs, Generator& generator);
  /// Indices computed from these inputs that are in no table; nothing when all are.
  std::optional<IndexMisfit> first_misfit(const std::vector<Tensor>& inputs) const;
  /// Integers are in [0, bound) from now on, or in less.
  void limit(std::int64_t bound);
  /// False when an index depends on parameters or on chance, so that ranges must be tried out.
  bool all_known() const { return all_known_; }

 private:
  /// An index operand and what computes it.
  struct Selection {
    std::string node;
    Graph graph;                       // its output: the index
    std::vector<std::size_t> sources;  // the inputs that its own ones are
    std::int64_t size = 0;             // of the axis that is selected from
    std::optional<double> ignored;     // selects nothing
    std::vector<std::size_t> inputs;   // of the sources, those that are drawn
  };

  void add_selection(const Graph& graph, const Node& node);
  Tensor numbers(std::size_t input, const Tensor& like, Generator& generator) const;
  void find_outsiders(const std::vector<Tensor>& inputs);
  bool narrow_windows(const IndexMisfit& misfit);

  std::vector<DType> dtypes_;  // by input
  std::vector<bool> draws_;
  std::vector<std::optional<IntegerWindow>> windows_;
  std::vector<std::int64_t> special_;
  /// By input: special numbers outside of its window that make no index misfit: what a loss ignores,
  /// padding that the Graph replaces.
  std::optional<std::vector<std::vector<double>>> outsiders_;
  std::vector<Selection> selections_;
  bool all_known_ = true;
};

}  // namespace tenon::detail
