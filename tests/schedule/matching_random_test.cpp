// Regions cut out of random graphs, as patterns: each is found again, and whatever else is found computes
// the same of its inputs.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>

#include "schedule/schedule.h"
#include "tests/support/models.h"

namespace tenon {
namespace {

constexpr int kGraphs = 400;

Schedule random_graph(std::mt19937& random) {
  const auto model = test::function_model([&](const Tensor& x, const Tensor& y) {
    std::vector<Tensor> values = {x, y};
    const auto pick = [&] {  // rather a late one, so that graphs get deep
      const std::size_t back = std::min<std::size_t>(random() % 6, values.size() - 1);
      return values[values.size() - 1 - back];
    };
    const int ops = 4 + static_cast<int>(random() % 20);
    for (int i = 0; i < ops; ++i) {
      switch (random() % 8) {
        case 0: values.push_back(relu(pick())); break;
        case 1: values.push_back(exp(pick())); break;
        case 2: values.push_back(pick() - pick()); break;
        case 3: values.push_back(pick() * pick()); break;
        case 4: values.push_back(pick() * (random() % 2 ? 2.0 : 3.0)); break;
        case 5: values.push_back(transpose(pick(), 0, 1)); break;
        case 6: values.push_back(matmul(pick(), pick())); break;
        default: values.push_back(pick() + pick()); break;
      }
    }
    return cat(values, 0);
  });
  return create_schedule(model, {randn({3, 3}), randn({3, 3})});
}

/// Some nodes that hang together, with what they read from outside and what others need of them.
Subgraph random_region(const Graph& graph, std::mt19937& random) {
  std::set<NodeId> chosen;
  const auto& order = graph.order();
  chosen.insert(order[random() % (order.size() - 1)]);  // not the cat that reads them all
  const std::size_t wanted = 1 + random() % 9;
  for (int attempt = 0; attempt < 30 && chosen.size() < wanted; ++attempt) {
    const NodeId candidate = order[random() % (order.size() - 1)];
    for (ValueId input : graph.node(candidate).inputs) {
      if (input == kNone) continue;
      const NodeId producer = graph.value(input).producer;
      if (producer != kNone && chosen.contains(producer)) chosen.insert(candidate);
      for (const Use& use : graph.value(input).uses) {
        if (chosen.contains(use.node)) chosen.insert(candidate);
      }
    }
  }
  Subgraph region;
  region.nodes.assign(chosen.begin(), chosen.end());
  std::sort(region.nodes.begin(), region.nodes.end(),
            [&](NodeId a, NodeId b) { return graph.position(a) < graph.position(b); });
  for (NodeId id : region.nodes) {
    for (ValueId input : graph.node(id).inputs) {
      if (input == kNone || chosen.contains(graph.value(input).producer)) continue;
      auto& inputs = region.inputs;
      if (std::find(inputs.begin(), inputs.end(), input) == inputs.end()) inputs.push_back(input);
    }
    for (ValueId output : graph.node(id).outputs) {
      const auto& uses = graph.value(output).uses;
      const bool needed = std::any_of(uses.begin(), uses.end(),
                                      [&](const Use& use) { return !chosen.contains(use.node); });
      if (needed) region.outputs.push_back(output);
    }
  }
  return region;
}

Pattern pattern_of(const Graph& graph, const Subgraph& region) {
  return record_pattern(static_cast<int>(region.inputs.size()),
                        [&](std::span<const Tensor> tensors) {
                          std::map<ValueId, Tensor> values;
                          for (std::size_t i = 0; i < tensors.size(); ++i)
                            values[region.inputs[i]] = tensors[i];
                          for (NodeId id : region.nodes) {
                            const Node& node = graph.node(id);
                            std::vector<Tensor> operands;
                            for (ValueId input : node.inputs) {
                              operands.push_back(input == kNone ? Tensor() : values.at(input));
                            }
                            values[node.outputs[0]] = apply(*node.op, operands, node.attrs)[0];
                          }
                          std::vector<Tensor> outputs;
                          for (ValueId output : region.outputs)
                            outputs.push_back(values.at(output));
                          return outputs;
                        });
}

/// What a node computes, written out in what its operands are.
std::string formula(const Node& node, std::vector<std::string> operands) {
  if (node.op->has(Trait::commutative)) std::sort(operands.begin(), operands.end());
  std::string text = node.op->name + "[" + node.attrs.to_string() + "](";
  for (const std::string& operand : operands) text += operand + ";";
  return std::to_string(std::hash<std::string>()(text + ")"));
}

/// The formulas of values by those of the ones that no node here makes.
std::map<ValueId, std::string> formulas(const Graph& graph, const std::vector<NodeId>& nodes,
                                        std::map<ValueId, std::string> known) {
  for (NodeId id : nodes) {
    std::vector<std::string> operands;
    for (ValueId input : graph.node(id).inputs) {
      operands.push_back(input == kNone ? "none" : known.at(input));
    }
    known[graph.node(id).outputs[0]] = formula(graph.node(id), operands);
  }
  return known;
}

TEST(RandomRegions, AreFoundAgainAndAnythingFoundComputesTheSame) {
  const unsigned seed = std::random_device{}();
  std::mt19937 random(seed);
  int tried = 0;
  for (int i = 0; i < kGraphs; ++i) {
    SCOPED_TRACE("seed " + std::to_string(seed) + ", graph " + std::to_string(i));
    const Schedule sch = random_graph(random);
    const Graph& graph = sch.graph();
    const Subgraph region = random_region(graph, random);
    if (!match_fault(graph, region).empty() || region.outputs.empty()) continue;
    ++tried;
    const Pattern pattern = pattern_of(graph, region);
    const Matches matches = find_matches(graph, pattern, "");
    ASSERT_FALSE(matches.empty()) << pattern.to_string() << "\n"
                                  << to_text(graph) << matches.explain();
    const auto whole =
        formulas(graph, graph.order(), {{graph.inputs()[0], "x"}, {graph.inputs()[1], "y"}});
    std::set<NodeId> used;
    for (const Subgraph& match : matches) {
      EXPECT_EQ(match_fault(graph, match), "");
      for (NodeId id : match.nodes) EXPECT_TRUE(used.insert(id).second) << "matches overlap";
      std::map<ValueId, std::string> given;
      for (std::size_t k = 0; k < match.inputs.size(); ++k) {
        given[region.inputs[k]] = whole.at(match.inputs[k]);
      }
      const auto computed = formulas(graph, region.nodes, given);
      for (std::size_t k = 0; k < match.outputs.size(); ++k) {
        EXPECT_EQ(computed.at(region.outputs[k]), whole.at(match.outputs[k]))
            << pattern.to_string() << "\n"
            << to_text(graph) << matches;
      }
    }
  }
  EXPECT_GT(tried, kGraphs / 4) << "seed " << seed;
}

}  // namespace
}  // namespace tenon
