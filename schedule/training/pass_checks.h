// PassChecks: what passes make of joint Graphs, compared with what stood there before each of them.
//
//   PassChecks checks("build_training");
//   Graph graph = joint.record(step, passes, checks.observer());  // VerificationError
//   log << checks.summary();
#pragma once

#include <set>
#include <string>
#include <vector>

#include "schedule/joint_graph.h"
#include "schedule/verification.h"

namespace tenon::detail {

class PassChecks {
 public:
  explicit PassChecks(std::string caller) : caller_(std::move(caller)) {}

  /// For JointGraph::record; this object outlives it.
  PassObserver observer() {
    return [this](const char* pass, const Graph& before, const Graph& after) {
      compare(pass, before, after);
    };
  }

  /// VerificationError that names the pass and its regions, unless every result of a rewritten region
  /// agrees. Gradients may be finite on no drawn input; those are counted only.
  void compare(const char* pass, const Graph& before, const Graph& after);

  /// Regions of all passes so far.
  std::size_t regions() const;
  double milliseconds() const { return milliseconds_; }
  /// One line: how many regions each pass rewrote, and what comparing them cost.
  std::string summary() const;

 private:
  struct Count {
    std::string pass;
    std::size_t regions = 0;
    std::size_t structures = 0;
  };

  std::string caller_;
  std::vector<Count> counts_;  // of passes that rewrote something
  std::size_t results_ = 0;
  std::size_t not_compared_ = 0;
  std::size_t left_out_ = 0;
  double milliseconds_ = 0;
  std::set<std::string> agreed_;  // structures, of all Graphs of one step
};

}  // namespace tenon::detail
