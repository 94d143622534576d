// Correspondence: which values of a rewritten Graph are those of the original, and the regions that a
// rewrite has to answer for.
//
//   original:   x ─▶ a ─▶ b ─▶ c ─▶ d        a and d call the same op with the same attributes on the
//   rewritten:  x ─▶ a ─▶ f ───▶ d           same values: nothing to compare. The rewrite put f in the
//                                            place of c: region {b, c | f} from a to c
//
// Why comparing regions is enough. Values are numbered as in global value numbering: an input or a
// state is itself on both sides (state by the identity of its tensor, so a weight, mask or buffer of
// another layer is another value); a call of the same op with the same attributes, dropout site
// included, on equal values gives equal values. What remains are claims "this stands for that": the
// log of the rewrite, and a value that kept its id. Each claim is a region: the nodes on either side
// back to values that both sides have. If the two sides of every region agree for all values of its
// inputs, then by induction over the rewritten Graph's order both Graphs agree, outputs and state
// writes included; and gradients too, by the chain rule, if the regions' gradients agree. A claim that
// does not hold is no error by itself: it is dropped, and what reads the value becomes part of the
// region, up to what a run returns or writes.
#pragma once

#include <compare>
#include <cstdint>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "graph/graph.h"

namespace tenon::detail {

/// A value of the original and the one that stands for it.
struct ValuePair {
  ValueId before = kNone;
  ValueId after = kNone;
  friend auto operator<=>(const ValuePair&, const ValuePair&) = default;
};

/// A value that enters a region from outside, under its names on both sides.
struct RegionInput {
  ValueId before = kNone;  // kNone: the original has no such value
  ValueId after = kNone;
};

/// A part of both Graphs that must compute the same outputs from the same inputs.
struct Region {
  std::vector<NodeId> before;  // in program order
  std::vector<NodeId> after;
  std::vector<RegionInput> inputs;
  std::vector<ValuePair> outputs;
  std::unordered_map<ValueId, int> inputs_before;  // value -> index into `inputs`
  std::unordered_map<ValueId, int> inputs_after;
};

class Correspondence {
 public:
  /// `after` was rewritten from a copy of `before`; neither has effects.
  Correspondence(const Graph& before, const Graph& after);

  /// The regions of all claims that hold up so far; empty where nothing was rewritten.
  std::vector<Region> regions() const;
  /// The same region, seen from further back: the nodes that make its inputs belong to it as well.
  /// False when nothing makes them: they are inputs and state of the model.
  bool widen(Region& region) const;
  /// Everything from the Graphs' inputs to their results.
  Region whole() const;
  /// Drops the region's claims about values that no run returns or writes, so that what reads them is
  /// compared instead. False when there are none.
  bool drop_claims(const Region& region);

 private:
  /// Classes of equal values: a union-find over numbers, each with the sides that have it.
  struct Class {
    int parent = 0;
    bool in_before = false;
    bool in_after = false;
  };
  struct Side {
    const Graph& graph;
    std::vector<int> numbers;  // by value
  };

  void number();
  void number_original();
  void number_rewritten();
  void claim(ValueId before, ValueId after);
  int new_class(bool in_before, bool in_after);
  int root(int number) const;
  void join(int a, int b);
  int& class_of(Side& side, ValueId id) { return side.numbers[static_cast<std::size_t>(id)]; }
  int class_of(const Side& side, ValueId id) const {
    return root(side.numbers[static_cast<std::size_t>(id)]);
  }
  std::size_t hash_of(const Side& side, const Node& node) const;
  bool same_call(const Node& original, const Side& side, const Node& rewritten) const;
  void take_results(const Node& original, const Node& rewritten);
  /// What stands for a value of the original, as the rewrite says it; kNone: nothing does.
  ValueId stand_in(ValueId id) const;
  using Cone = std::set<NodeId>;
  Cone cone(const Side& side, bool is_before, ValueId result, const std::set<int>& opened,
            std::set<ValueId>& inputs) const;
  Region region_of(const std::vector<ValuePair>& outputs, const std::set<int>& opened) const;
  void add_input(Region& region, std::unordered_map<int, int>& by_class, ValueId id,
                 bool is_before) const;

  Side before_;
  Side after_;
  mutable std::vector<Class> classes_;
  std::unordered_map<ValueId, ValueId> replaced_;       // by the log of the rewrite
  std::unordered_multimap<std::size_t, NodeId> calls_;  // of the original, by hash
  std::vector<ValuePair> claims_;
  std::set<ValueId> dropped_;  // values of the original whose claims do not hold
  std::set<ValueId>
      recognized_;             // of the rewritten Graph: results of calls that the original makes
  std::set<ValueId> results_;  // of the original: returned or written
};

/// What tells two regions apart: ops, attributes, bound kernels, dtypes and symbolic shapes, which
/// operands coincide, dropout sites up to renaming, and `inputs`, what is known of each input.
std::string structure_text(const Region& region, const Graph& before, const Graph& after,
                           const std::vector<std::string>& inputs);

}  // namespace tenon::detail
