// IndexInputs: integers for the inputs of a Graph such that every index which is computed from them is
// one of its table's. The Graph says which tables there are; what computes an index (views, casts,
// arithmetic, comparisons) is run, not guessed.
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
  std::vector<std::size_t> inputs;  // integer inputs that they are computed from
  std::string to_string() const;
};

class IndexInputs {
 public:
  /// `graph` without effects.
  explicit IndexInputs(const Graph& graph);

  /// Replaces the integers among `inputs`, which are all there, by random ones. What it returns no
  /// integers mend. The ranges that were found stay for later calls.
  std::optional<IndexMisfit> draw(std::vector<Tensor>& inputs, Generator& generator);
  /// Indices computed from these inputs that are in no table; nothing when all are.
  std::optional<IndexMisfit> first_misfit(const std::vector<Tensor>& inputs) const;
  /// Forgets the ranges found: for other sizes.
  void reset();
  /// Integers are in [0, bound) from now on, or in less.
  void limit(std::int64_t bound);
  /// False when an index depends on parameters or on chance, so that ranges must be tried out.
  bool all_known() const { return all_known_; }

 private:
  /// An index operand and what computes it.
  struct Selection {
    std::string node;
    Graph graph;                      // its output: the index
    Dim size;                         // of the axis that is selected from
    std::optional<double> ignored;    // selects nothing
    std::vector<std::size_t> inputs;  // integers
  };
  /// The numbers low, low + 1, … of an input.
  struct Window {
    std::int64_t low = 0;
    std::int64_t width = 0;
  };

  void add_selection(const Graph& graph, const Node& node);
  Tensor numbers(const Tensor& like, const Window& window, Generator& generator) const;
  bool narrow_windows(const IndexMisfit& misfit);

  std::vector<DType> dtypes_;  // by input
  std::vector<Window> windows_;
  std::vector<Selection> selections_;
  std::int64_t limit_ = 7;  // few, so that an index comes more than once
  bool all_known_ = true;
};

}  // namespace tenon::detail
